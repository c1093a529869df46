//! Every decoder of `mendfs::format` on what a broken disk may hand it: no panic, and what decodes
//! comes back the same when it is encoded and decoded again.
//!
//! Inputs are random bytes, valid structures with a few bytes changed, and valid structures changed
//! and then given a checksum that matches: only these get past the checksum, to the checks behind
//! it. The seed is printed; `SEED=n` repeats a run. `fuzz/` does the same with coverage, for hours.

use mendfs::format::{
    Algorithm, BLOCK, Change, CheckpointBegin, CheckpointDone, CheckpointRef, DataImage, DentryRow,
    EXTENT_HEADER_LEN, Epoch, ExtentHeader, ExtentRow, FileKind, Framing, Ino, InodeRow,
    JournalRef, Key, Lsn, Member, MemberState, PoolTag, RECORD_HEADER_LEN, Record, RecordHeader,
    ReverseRow, SUMS_PER_BLOCK, SUPER_SLOT_LEN, SegmentNo, SegmentRow, StateRow, SumEntry,
    SumsBlock, Superblock, Table, Timestamp, TxnBody, Uuid,
};

const ROUNDS: usize = 40_000;
const POOL: PoolTag = PoolTag(0x0403_0201);

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Rng(u64);

impl Rng {
    /// From SEED, or else from the time, and says which.
    fn seeded(test: &str) -> Rng {
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| since.as_nanos() as u64)
        };
        let given = std::env::var("SEED").ok();
        let seed = given.map_or_else(now, |seed| seed.parse().expect("SEED is a number"));
        eprintln!("{test}: SEED={seed}");
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn algorithm(&mut self) -> Algorithm {
        Algorithm::ALL[self.below(Algorithm::ALL.len())]
    }

    /// A number as broken fields have them: small, huge, or anything.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 16,
            1 => u64::MAX - self.next() % 16,
            2 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    /// Changes some bytes, or whole fields, among the first `range` bytes; or the length.
    fn spoil(&mut self, bytes: &mut Vec<u8>, range: usize) {
        for _ in 0..=self.below(4) {
            let range = range.min(bytes.len());
            if range == 0 {
                return;
            }
            let at = self.below(range);
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => {
                    let more = self.below(64);
                    bytes.extend(self.bytes(more));
                }
                2..=4 => {
                    let field = self.number().to_le_bytes();
                    let len = (1 << self.below(4)).min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&field[..len]);
                }
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
    }
}

/// Puts a checksum at `at` that covers all before it and `tail`, if the bytes reach that far.
fn seal(algorithm: Algorithm, bytes: &mut [u8], at: usize, tail: std::ops::Range<usize>) {
    if let (Some(head), Some(tail)) = (bytes.get(..at), bytes.get(tail)) {
        let sum = algorithm.sum64(&[head, tail]).to_le_bytes();
        if let Some(place) = bytes.get_mut(at..at + 8) {
            place.copy_from_slice(&sum);
        }
    }
}

fn superblock(rng: &mut Rng, algorithm: Algorithm) -> Superblock {
    let member = |n: u8| Member {
        uuid: Uuid([n; 16]),
        state: [
            MemberState::Online,
            MemberState::Stale,
            MemberState::Resyncing,
            MemberState::Offline,
        ][usize::from(n) % 4],
        epoch: Epoch(u64::from(n)),
        lsn: Lsn(7),
        replaces: (n > 1 && n.is_multiple_of(3)).then_some(Uuid([1; 16])),
    };
    Superblock {
        compat: rng.number(),
        ro_compat: 0,
        incompat: rng.number(),
        pool: Uuid([1; 16]),
        mirror: Uuid([2; 16]),
        algorithm,
        sequence: rng.number(),
        epoch: Epoch(rng.number()),
        members: (1..=1 + rng.below(8) as u8).map(member).collect(),
        checkpoint: CheckpointRef {
            generation: 5,
            lsn: Lsn(6),
            index_len: 4096,
            sums_root: 8,
        },
        journal: JournalRef {
            size: 1 << 26,
            tail: rng.number(),
            tail_lsn: Lsn(11),
            run: 12,
            tail_run: 11,
        },
        clean: rng.below(2) == 0,
        hash_key: [6; 16],
        created: -1,
        label: "a label".to_owned(),
        written: rng.number() as i64,
    }
}

fn check_superblock(bytes: &[u8]) -> bool {
    let Ok(decoded) = Superblock::decode(bytes) else {
        return false;
    };
    assert_eq!(Superblock::decode(&decoded.encode()), Ok(decoded));
    true
}

#[test]
fn superblocks_are_decoded_or_refused() {
    let mut rng = Rng::seeded("superblocks");
    let mut accepted = 0;
    for round in 0..ROUNDS {
        let algorithm = rng.algorithm();
        let mut bytes = match round % 8 {
            0 => rng.bytes(SUPER_SLOT_LEN),
            _ => superblock(&mut rng, algorithm).encode(),
        };
        // Most of the slot is padding: the fields are what there is to spoil.
        rng.spoil(&mut bytes, 512);
        if round % 4 != 1 {
            let sum_at = SUPER_SLOT_LEN - 8;
            seal(algorithm, &mut bytes, sum_at, sum_at..sum_at);
        }
        accepted += usize::from(check_superblock(&bytes));
    }
    assert!(accepted > ROUNDS / 50, "only {accepted} got through");
}

fn record(rng: &mut Rng) -> Record {
    match rng.below(5) {
        0 => {
            let change = |rng: &mut Rng| Change {
                key: Key::extent(Ino(rng.number()), rng.number()),
                value: (rng.below(2) == 0).then(|| {
                    let len = rng.below(80);
                    rng.bytes(len)
                }),
            };
            Record::Txn(TxnBody {
                time: Timestamp {
                    seconds: -5,
                    nanoseconds: 999_999_999,
                },
                changes: (0..rng.below(6)).map(|_| change(rng)).collect(),
            })
        }
        1 => Record::DataImage(DataImage {
            segment: SegmentNo(rng.number()),
            offset: 512,
            bytes: {
                let len = rng.below(600);
                rng.bytes(len)
            },
        }),
        2 => Record::CheckpointBegin(CheckpointBegin {
            generation: rng.number(),
            page_zero: vec![3; if rng.below(2) == 0 { 0 } else { BLOCK }],
            pages: (0..rng.below(20)).map(|_| rng.next() as u32).collect(),
        }),
        3 => Record::CheckpointDone(CheckpointDone {
            generation: rng.number(),
            lsn: Lsn(rng.number()),
            tail: rng.number(),
            index_len: rng.number(),
            sums_root: rng.number(),
            sums: (0..rng.below(20))
                .map(|page| {
                    let (sum, generation) = (rng.next(), rng.next());
                    (page as u32, SumEntry { sum, generation })
                })
                .collect(),
        }),
        _ => Record::Durable(Lsn(rng.number())),
    }
}

fn framing(algorithm: Algorithm) -> Framing {
    Framing {
        algorithm,
        pool: POOL,
        run: 3,
    }
}

fn check_record(bytes: &[u8], algorithm: Algorithm) -> bool {
    let Ok(header) = RecordHeader::decode(bytes) else {
        return false;
    };
    let Ok(record) = header.verify(bytes) else {
        return false;
    };
    let mut again = Vec::new();
    let len = record.append(framing(algorithm), header.lsn, &mut again);
    assert_eq!(len, again.len());
    let header = RecordHeader::decode(&again).expect("what was just encoded");
    assert_eq!(header.record_len(), len);
    assert_eq!(header.verify(&again), Ok(record));
    true
}

#[test]
fn journal_records_are_decoded_or_refused() {
    let mut rng = Rng::seeded("journal records");
    let mut accepted = 0;
    for round in 0..ROUNDS {
        let algorithm = rng.algorithm();
        let mut bytes = Vec::new();
        if round % 8 == 0 {
            let len = rng.below(300);
            bytes = rng.bytes(len);
        } else {
            record(&mut rng).append(framing(algorithm), Lsn(9), &mut bytes);
        }
        let range = bytes.len();
        rng.spoil(&mut bytes, range);
        if round % 4 != 1 {
            // The sum covers as much payload as the header, spoiled or not, says that there is.
            let said = bytes
                .get(24..28)
                .map_or(0, |len| u32::from_le_bytes(len.try_into().unwrap()));
            let end = RECORD_HEADER_LEN + said as usize;
            let sum_at = RECORD_HEADER_LEN - 8;
            seal(algorithm, &mut bytes, sum_at, RECORD_HEADER_LEN..end);
        }
        accepted += usize::from(check_record(&bytes, algorithm));
    }
    assert!(accepted > ROUNDS / 50, "only {accepted} got through");
}

#[test]
fn extent_headers_are_decoded_or_refused() {
    let mut rng = Rng::seeded("extent headers");
    let mut accepted = 0;
    for round in 0..ROUNDS {
        let algorithm = rng.algorithm();
        let stored = 1 + rng.below(16 * BLOCK);
        let blocks = stored.div_ceil(BLOCK);
        let header = ExtentHeader {
            algorithm,
            pool: POOL,
            born: Lsn(rng.number()),
            ino: Ino(rng.number()),
            file_offset: rng.number(),
            payload_at: ExtentHeader::len_for(algorithm, stored) as u32 + rng.below(512) as u32,
            stored: stored as u32,
            sums: rng.bytes(blocks * algorithm.width()),
        };
        let mut bytes = header.encode();
        if round % 8 == 0 {
            bytes = rng.bytes(200);
        }
        rng.spoil(&mut bytes, EXTENT_HEADER_LEN + 64);
        if round % 4 != 1 {
            let sums = EXTENT_HEADER_LEN..ExtentHeader::len_for(algorithm, stored);
            seal(algorithm, &mut bytes, EXTENT_HEADER_LEN - 8, sums);
        }
        if let Ok(decoded) = ExtentHeader::decode(&bytes) {
            // Bounded by what was given, whatever the fields say.
            let again = decoded.encode();
            assert!(again.len() <= bytes.len() + BLOCK);
            assert_eq!(ExtentHeader::decode(&again), Ok(decoded));
            accepted += 1;
        }
    }
    assert!(accepted > ROUNDS / 50, "only {accepted} got through");
}

#[test]
fn page_sum_blocks_are_decoded_or_refused() {
    const HEADER: usize = 32;
    let mut rng = Rng::seeded("page-sum blocks");
    let mut accepted = 0;
    for round in 0..ROUNDS / 4 {
        let algorithm = rng.algorithm();
        let entry = |sum: u64| SumEntry { sum, generation: 2 };
        let block = SumsBlock {
            number: 4,
            generation: rng.number(),
            entries: (0..SUMS_PER_BLOCK).map(|_| entry(rng.next())).collect(),
        };
        let mut bytes = block.encode(algorithm, POOL);
        if round % 8 == 0 {
            bytes = rng.bytes(BLOCK);
        }
        rng.spoil(&mut bytes, BLOCK);
        if round % 4 != 1 {
            seal(algorithm, &mut bytes, HEADER - 8, HEADER..BLOCK);
        }
        if let Ok(decoded) = SumsBlock::decode(&bytes, algorithm, POOL, 4) {
            let again = decoded.encode(algorithm, POOL);
            assert_eq!(SumsBlock::decode(&again, algorithm, POOL, 4), Ok(decoded));
            accepted += 1;
        }
    }
    assert!(accepted > ROUNDS / 200, "only {accepted} got through");
}

fn inode_row(rng: &mut Rng) -> InodeRow {
    let time = Timestamp {
        seconds: rng.next() as i64,
        nanoseconds: (rng.next() % 1_000_000_000) as u32,
    };
    InodeRow {
        kind: FileKind::Symlink,
        permissions: (rng.next() & 0o7777) as u16,
        uid: rng.next() as u32,
        gid: rng.next() as u32,
        nlink: rng.next() as u32,
        size: rng.number(),
        allocated: rng.number(),
        rdev: rng.next() as u32,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent: Ino(rng.number()),
        generation: Lsn(rng.number()),
        target: {
            let len = rng.below(40);
            rng.bytes(len)
        },
    }
}

fn extent_row(rng: &mut Rng, width: usize) -> ExtentRow {
    let stored = 1 + rng.below(4 * BLOCK) as u32;
    ExtentRow {
        segment: SegmentNo(rng.number()),
        offset: 4096,
        stored,
        len: 1 + rng.below(stored as usize) as u32,
        header: rng.below(4096) as u32,
        born: Lsn(rng.number()),
        sums: rng.bytes((stored as usize).div_ceil(BLOCK) * width),
    }
}

/// Value of a random row of any table.
fn row(rng: &mut Rng, width: usize) -> Vec<u8> {
    match rng.below(6) {
        0 => inode_row(rng).encode(),
        1 => {
            let entry = DentryRow {
                ino: Ino(rng.number()),
                kind: FileKind::Fifo,
                name: b"a name".to_vec(),
            };
            entry.encode()
        }
        2 => extent_row(rng, width).encode(),
        3 => {
            let (stored, header) = (rng.next() as u32, rng.next() as u32);
            ReverseRow { stored, header }.encode()
        }
        4 => {
            let (live, end) = (rng.number(), rng.next() as u32);
            SegmentRow { live, end }.encode()
        }
        _ => {
            let row = StateRow {
                next_ino: Ino(rng.number()),
                next_segment: SegmentNo(rng.number()),
                inodes: rng.number(),
            };
            row.encode()
        }
    }
}

/// Decodes the bytes as the value of every table's row; returns how many took them.
fn check_row(bytes: &[u8], width: usize) -> usize {
    let mut accepted = 0;
    if let Ok(row) = InodeRow::decode(bytes) {
        assert_eq!(InodeRow::decode(&row.encode()), Ok(row));
        accepted += 1;
    }
    if let Ok(row) = DentryRow::decode(bytes) {
        assert_eq!(DentryRow::decode(&row.encode()), Ok(row));
        accepted += 1;
    }
    if let Ok(row) = ExtentRow::decode(bytes, width) {
        check_slices(&row, width);
        assert_eq!(ExtentRow::decode(&row.encode(), width), Ok(row));
        accepted += 1;
    }
    if let Ok(row) = ReverseRow::decode(bytes) {
        assert_eq!(ReverseRow::decode(&row.encode()), Ok(row));
        accepted += 1;
    }
    if let Ok(row) = SegmentRow::decode(bytes) {
        assert_eq!(SegmentRow::decode(&row.encode()), Ok(row));
        accepted += 1;
    }
    if let Ok(row) = StateRow::decode(bytes) {
        assert_eq!(StateRow::decode(&row.encode()), Ok(row));
        accepted += 1;
    }
    accepted
}

/// What is done with a row after it decoded must hold for any row that decodes.
fn check_slices(row: &ExtentRow, width: usize) {
    let blocks = row.blocks();
    for cut in [0, 1, blocks / 2].into_iter().filter(|cut| *cut < blocks) {
        let (front, back) = (row.slice(0, cut, width), row.slice(cut, blocks, width));
        assert_eq!(front.stored + back.stored, row.stored);
        assert_eq!(front.len + back.len, row.len);
        assert_eq!([front.sums, back.sums].concat(), row.sums);
    }
    let lengths: usize = (0..blocks).map(|block| row.block_len(block)).sum();
    assert_eq!(lengths, row.stored as usize);
    assert!((0..blocks).all(|block| row.sum(block, width).len() == width));
}

#[test]
fn rows_are_decoded_or_refused() {
    let mut rng = Rng::seeded("rows");
    let mut accepted = 0;
    for round in 0..4 * ROUNDS {
        let width = rng.algorithm().width();
        let mut bytes = match round % 8 {
            0 => {
                let len = rng.below(140);
                rng.bytes(len)
            }
            _ => row(&mut rng, width),
        };
        if round % 8 == 1 {
            assert!(check_row(&bytes, width) >= 1, "a row as it is written");
        }
        let range = bytes.len();
        rng.spoil(&mut bytes, range);
        accepted += check_row(&bytes, width);
    }
    assert!(accepted > ROUNDS / 10, "only {accepted} got through");
}

#[test]
fn keys_are_decoded_or_refused() {
    let mut rng = Rng::seeded("keys");
    for round in 0..4 * ROUNDS {
        let (a, b) = (rng.number(), rng.number());
        let mut bytes = match round % 5 {
            0 => Key::dentry(Ino(a), b).as_bytes().to_vec(),
            1 => Key::extent(Ino(a), b).as_bytes().to_vec(),
            2 => Key::reverse(SegmentNo(a), b as u32, Ino(b), a)
                .as_bytes()
                .to_vec(),
            3 => Key::xattr(Ino(a), b"user.name").as_bytes().to_vec(),
            _ => {
                let len = rng.below(40);
                rng.bytes(len)
            }
        };
        let range = bytes.len();
        rng.spoil(&mut bytes, range);
        let Ok(key) = Key::from_bytes(&bytes) else {
            continue;
        };
        assert_eq!(key.as_bytes(), bytes);
        assert!(key.table().is_some());
        // None of these may panic on a key of another table, or on one that was cut short.
        for table in Table::ALL {
            let _ = key.ino(table);
        }
        let _ = (key.xattr_name().is_ok(), key.segment_no().is_ok());
        if let Ok((parent, cookie)) = key.dentry_parts() {
            assert!(bytes.starts_with(Key::dentry(parent, cookie).as_bytes()));
        }
        if let Ok((ino, offset)) = key.extent_parts() {
            assert!(bytes.starts_with(Key::extent(ino, offset).as_bytes()));
        }
        if let Ok((segment, offset, ino, file_offset)) = key.reverse_parts() {
            let again = Key::reverse(segment, offset, ino, file_offset);
            assert!(bytes.starts_with(again.as_bytes()));
        }
    }
}
