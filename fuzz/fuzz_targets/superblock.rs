//! Superblock slots: as they are, and with a checksum that matches, to get to the checks behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mendfs::format::{Algorithm, SUPER_SLOT_LEN, Superblock};

const SUM_AT: usize = SUPER_SLOT_LEN - 8;
/// Where the slot says which algorithm its checksum has.
const ALGORITHM_AT: usize = 12;

fn check(slot: &[u8]) {
    if let Ok(superblock) = Superblock::decode(slot) {
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }
}

fuzz_target!(|data: &[u8]| {
    check(data);
    // The input is the front of a slot; the rest is padding, the end is the sum.
    let mut slot = data.to_vec();
    slot.resize(SUPER_SLOT_LEN, 0);
    if let Some(algorithm) = Algorithm::from_id(slot[ALGORITHM_AT]) {
        let sum = algorithm.sum64(&[&slot[..SUM_AT]]);
        slot[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        check(&slot);
    }
});
