//! Blocks of the page-sum table: as they are, and with a checksum that matches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mendfs::format::{Algorithm, BLOCK, PoolTag, SumsBlock};

const HEADER: usize = 32;
const SUM_AT: usize = HEADER - 8;

fuzz_target!(|data: &[u8]| {
    let mut block = data.to_vec();
    block.resize(BLOCK, 0);
    // Pool and number are taken from the block, as if it were the one that was asked for.
    let field =
        |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    let (pool, number) = match data.len() {
        0..12 => (PoolTag(0), 0),
        _ => (PoolTag(field(4)), field(8)),
    };
    for algorithm in Algorithm::ALL {
        let _ = SumsBlock::decode(data, algorithm, pool, number);
        let sum = algorithm.sum64(&[&block[..SUM_AT], &block[HEADER..]]);
        block[SUM_AT..HEADER].copy_from_slice(&sum.to_le_bytes());
        if let Ok(decoded) = SumsBlock::decode(&block, algorithm, pool, number) {
            let again = decoded.encode(algorithm, pool);
            assert_eq!(
                SumsBlock::decode(&again, algorithm, pool, number),
                Ok(decoded)
            );
        }
    }
});
