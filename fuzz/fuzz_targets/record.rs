//! Journal records: the header, then header and payload with a checksum that matches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mendfs::format::{Algorithm, Framing, Lsn, PoolTag, RECORD_HEADER_LEN, Record, RecordHeader};

const SUM_AT: usize = RECORD_HEADER_LEN - 8;
/// Where the header says which algorithm its checksum has, and how long the payload is.
const ALGORITHM_AT: usize = 6;
const LENGTH_AT: usize = 24;

fn check(bytes: &[u8]) {
    let Ok(header) = RecordHeader::decode(bytes) else {
        return;
    };
    if let Ok(record) = header.verify(bytes) {
        round_trip(&record, header.lsn);
    }
}

fn round_trip(record: &Record, lsn: Lsn) {
    let framing = Framing {
        algorithm: Algorithm::Crc32,
        pool: PoolTag(1),
        run: 1,
    };
    let mut bytes = Vec::new();
    record.append(framing, lsn, &mut bytes);
    let header = RecordHeader::decode(&bytes).expect("what was just encoded");
    assert_eq!(header.verify(&bytes).as_ref(), Ok(record));
}

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut record = data.to_vec();
    if record.len() < RECORD_HEADER_LEN {
        return;
    }
    let payload = (record.len() - RECORD_HEADER_LEN) as u32;
    record[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&payload.to_le_bytes());
    if let Some(algorithm) = Algorithm::from_id(record[ALGORITHM_AT]) {
        let sum = algorithm.sum64(&[&record[..SUM_AT], &record[RECORD_HEADER_LEN..]]);
        record[SUM_AT..RECORD_HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        check(&record);
    }
});
