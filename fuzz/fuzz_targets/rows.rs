//! Rows and keys of the index. The first byte of the input chooses the checksums' width.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mendfs::format::{
    DentryRow, ExtentRow, InodeRow, Key, ReverseRow, SegmentRow, StateRow, Table,
};

macro_rules! round_trip {
    ($row:ty, $bytes:expr) => {
        if let Ok(row) = <$row>::decode($bytes) {
            assert_eq!(<$row>::decode(&row.encode()), Ok(row));
        }
    };
}

fn check_extent(bytes: &[u8], width: usize) {
    let Ok(row) = ExtentRow::decode(bytes, width) else {
        return;
    };
    let blocks = row.blocks();
    let (front, back) = (
        row.slice(0, blocks / 2, width),
        row.slice(blocks / 2, blocks, width),
    );
    assert_eq!(front.stored + back.stored, row.stored);
    assert_eq!(front.len + back.len, row.len);
    assert!((0..blocks).all(|block| row.sum(block, width).len() == width));
    assert_eq!(ExtentRow::decode(&row.encode(), width), Ok(row));
}

fn check_key(bytes: &[u8]) {
    let Ok(key) = Key::from_bytes(bytes) else {
        return;
    };
    assert_eq!(key.as_bytes(), bytes);
    for table in Table::ALL {
        let _ = key.ino(table);
    }
    let _ = (key.dentry_parts(), key.extent_parts(), key.reverse_parts());
    let _ = (key.xattr_name(), key.segment_no());
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    round_trip!(InodeRow, bytes);
    round_trip!(DentryRow, bytes);
    round_trip!(ReverseRow, bytes);
    round_trip!(SegmentRow, bytes);
    round_trip!(StateRow, bytes);
    check_extent(bytes, [4, 8, 32][usize::from(*choice) % 3]);
    check_key(bytes);
});
