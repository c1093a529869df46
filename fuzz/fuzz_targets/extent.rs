//! Extent headers: as they are, and with a checksum that matches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mendfs::format::{Algorithm, BLOCK, EXTENT_HEADER_LEN, ExtentHeader, MAX_EXTENT};

const SUM_AT: usize = EXTENT_HEADER_LEN - 8;
/// Where the header says which algorithm its checksums have, and how long the payload is.
const ALGORITHM_AT: usize = 5;
const STORED_AT: usize = 40;

fn check(bytes: &[u8]) {
    if let Ok(header) = ExtentHeader::decode(bytes) {
        let again = header.encode();
        assert!(again.len() <= bytes.len() + BLOCK);
        assert_eq!(ExtentHeader::decode(&again), Ok(header));
    }
}

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut bytes = data.to_vec();
    let Some(stored) = bytes.get(STORED_AT..STORED_AT + 4) else {
        return;
    };
    let stored = u32::from_le_bytes(stored.try_into().expect("four bytes")) as usize;
    let Some(algorithm) = bytes
        .get(ALGORITHM_AT)
        .and_then(|id| Algorithm::from_id(*id))
    else {
        return;
    };
    let end = ExtentHeader::len_for(algorithm, stored.min(MAX_EXTENT));
    if bytes.len() >= end {
        let sum = algorithm.sum64(&[&bytes[..SUM_AT], &bytes[EXTENT_HEADER_LEN..end]]);
        bytes[SUM_AT..EXTENT_HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        check(&bytes);
    }
});
