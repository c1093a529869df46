//! The superblock: who a mirror is, who belongs to the pool, and where the last checkpoint ended.
//!
//! `mendfs.super` holds two slots that are written in turn, so that a crash while one is written
//! leaves the other. The valid slot with the higher sequence number wins.

use super::checksum::Algorithm;
use super::codec::{Decoder, Encoder, FormatError};
use super::ids::{Epoch, Lsn, Uuid};

/// Version that this build writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of one superblock slot.
pub const SUPER_SLOT_LEN: usize = 4096;
/// Most mirrors a pool can have.
pub const MAX_MIRRORS: usize = 8;

const MAGIC: [u8; 8] = *b"MENDFS\r\n";
const LABEL_MAX: usize = 64;
const SUM_AT: usize = SUPER_SLOT_LEN - 8;
/// Bytes of one member in the list.
const MEMBER_LEN: usize = 33;
/// Where the numbers of the members to replace lie, behind the longest list.
const REPLACES_AT: usize = 251 + MAX_MIRRORS * MEMBER_LEN;

/// How a mirror stood in its pool when the superblock was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Holds everything.
    Online,
    /// Missed changes: holds an older state, and is brought up to date when it comes back.
    Stale,
    /// Being brought up to date.
    Resyncing,
    /// Taken out by the operator; holds an older state until the operator takes it back.
    Offline,
}

impl MemberState {
    const fn id(self) -> u8 {
        match self {
            MemberState::Online => 1,
            MemberState::Stale => 2,
            MemberState::Resyncing => 3,
            MemberState::Offline => 4,
        }
    }

    fn from_id(id: u8) -> Result<MemberState, FormatError> {
        [
            MemberState::Online,
            MemberState::Stale,
            MemberState::Resyncing,
            MemberState::Offline,
        ]
        .into_iter()
        .find(|state| state.id() == id)
        .ok_or(FormatError::Field {
            field: "member state",
            value: u64::from(id),
        })
    }
}

/// One mirror of the pool as the others know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The mirror's UUID.
    pub uuid: Uuid,
    /// Its state.
    pub state: MemberState,
    /// Epoch in which it was last in sync.
    pub epoch: Epoch,
    /// It has all file data that was born up to this LSN.
    pub lsn: Lsn,
    /// The mirror whose place it takes when it is in sync.
    pub replaces: Option<Uuid>,
}

/// Where the last checkpoint left the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckpointRef {
    /// Number of the checkpoint.
    pub generation: u64,
    /// Everything up to here is in the index.
    pub lsn: Lsn,
    /// Length of the index in bytes.
    pub index_len: u64,
    /// Checksum over the page-sum table.
    pub sums_root: u64,
}

/// Where the journal begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalRef {
    /// Size of the journal file in bytes.
    pub size: u64,
    /// Position (counted up for ever; the offset is its remainder by the size) of the oldest record
    /// that is still needed.
    pub tail: u64,
    /// LSN of that record.
    pub tail_lsn: Lsn,
    /// Highest run number given to a mount: each mount that writes takes the next.
    pub run: u32,
    /// Run number that the record at the tail carries at least. It moves with the tail: until a
    /// recovery has moved that, the records of the run before are needed.
    pub tail_run: u32,
}

/// A decoded superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Features an old build may ignore.
    pub compat: u64,
    /// Features that an old build must not write to.
    pub ro_compat: u64,
    /// Features that an old build must not read.
    pub incompat: u64,
    /// The pool.
    pub pool: Uuid,
    /// The mirror this superblock lies on.
    pub mirror: Uuid,
    /// Checksums of data, records and index pages.
    pub algorithm: Algorithm,
    /// Counts up with every write; the higher of two slots wins.
    pub sequence: u64,
    /// Membership epoch.
    pub epoch: Epoch,
    /// All mirrors of the pool, this one included.
    pub members: Vec<Member>,
    /// The last checkpoint.
    pub checkpoint: CheckpointRef,
    /// The journal.
    pub journal: JournalRef,
    /// Whether the pool was closed in order.
    pub clean: bool,
    /// Key of the hash that orders directory entries.
    pub hash_key: [u8; 16],
    /// When the pool was made, seconds since 1970-01-01 UTC.
    pub created: i64,
    /// The user's name for the pool, up to 64 bytes of UTF-8.
    pub label: String,
    /// When this superblock was written, seconds since 1970-01-01 UTC.
    pub written: i64,
}

impl Superblock {
    /// The member with that UUID.
    pub fn member(&self, uuid: Uuid) -> Option<&Member> {
        self.members.iter().find(|member| member.uuid == uuid)
    }

    /// As [`Superblock::member`], to change it.
    pub fn member_mut(&mut self, uuid: Uuid) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.uuid == uuid)
    }

    /// Longest label in bytes.
    pub const LABEL_MAX: usize = LABEL_MAX;

    /// Encodes one slot of [`SUPER_SLOT_LEN`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(SUPER_SLOT_LEN);
        out.bytes(&MAGIC)
            .u32(FORMAT_VERSION)
            .u8(self.algorithm.id())
            .u8(u8::from(self.clean));
        out.u16(0).u32(super::BLOCK as u32).u32(0);
        out.u64(self.compat).u64(self.ro_compat).u64(self.incompat);
        out.bytes(&self.pool.0).bytes(&self.mirror.0);
        out.u64(self.sequence)
            .u64(self.epoch.0)
            .i64(self.created)
            .bytes(&self.hash_key);
        let checkpoint = &self.checkpoint;
        out.u64(checkpoint.generation).u64(checkpoint.lsn.0);
        out.u64(checkpoint.index_len).u64(checkpoint.sums_root);
        let journal = &self.journal;
        out.u64(journal.size)
            .u64(journal.tail)
            .u64(journal.tail_lsn.0)
            .u32(journal.run)
            .u32(journal.tail_run);
        let label: Vec<u8> = self.label.bytes().take(LABEL_MAX).collect();
        let label_end = out.len() + 2 + LABEL_MAX;
        out.u16(label.len() as u16).bytes(&label).pad_to(label_end);
        out.u8(self.members.len() as u8);
        for member in &self.members {
            out.bytes(&member.uuid.0).u8(member.state.id());
            out.u64(member.epoch.0).u64(member.lsn.0);
        }
        out.pad_to(REPLACES_AT);
        for member in &self.members {
            let replaces = |other: &Member| member.replaces == Some(other.uuid);
            let number = self.members.iter().position(replaces);
            out.u8(number.map_or(0, |number| number as u8 + 1));
        }
        out.pad_to(REPLACES_AT + MAX_MIRRORS).i64(self.written);
        out.pad_to(SUM_AT);
        let mut bytes = out.finish();
        let sum = self.algorithm.sum64(&[&bytes]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Decodes one slot.
    ///
    /// # Errors
    /// [`FormatError::Magic`] if these bytes never were a superblock, [`FormatError::Version`] for
    /// a newer one, and the other kinds for a damaged one.
    pub fn decode(slot: &[u8]) -> Result<Superblock, FormatError> {
        const WHAT: &str = "superblock";
        let mut from = Decoder::new(slot, WHAT);
        if from.bytes(MAGIC.len())? != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let version = from.u32()?;
        let algorithm_id = from.u8()?;
        let algorithm = Algorithm::from_id(algorithm_id).ok_or(FormatError::Field {
            field: "checksum algorithm",
            value: algorithm_id.into(),
        });
        // A newer version may lay everything else out differently, but keeps the sum at the end.
        let (body, sum) = slot
            .get(..SUPER_SLOT_LEN)
            .and_then(|slot| slot.split_at_checked(SUM_AT))
            .ok_or(FormatError::Short {
                what: WHAT,
                need: SUPER_SLOT_LEN,
                have: slot.len(),
            })?;
        let intact = algorithm
            .as_ref()
            .is_ok_and(|algorithm| algorithm.sum64(&[body]).to_le_bytes().as_slice() == sum);
        if version > FORMAT_VERSION && (intact || algorithm.is_err()) {
            return Err(FormatError::Version {
                what: WHAT,
                found: version,
                known: FORMAT_VERSION,
            });
        }
        if !intact {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if version != FORMAT_VERSION {
            return Err(FormatError::Field {
                field: "superblock version",
                value: version.into(),
            });
        }
        Superblock::decode_body(from, algorithm?)
    }

    fn decode_body(mut from: Decoder<'_>, algorithm: Algorithm) -> Result<Superblock, FormatError> {
        let clean = from.u8()? != 0;
        from.reserved(2)?;
        let block = from.u32()?;
        if block as usize != super::BLOCK {
            return Err(FormatError::Field {
                field: "block size",
                value: block.into(),
            });
        }
        from.reserved(4)?;
        let (compat, ro_compat, incompat) = (from.u64()?, from.u64()?, from.u64()?);
        let (pool, mirror) = (Uuid(from.array()?), Uuid(from.array()?));
        let (sequence, epoch) = (from.u64()?, Epoch(from.u64()?));
        let (created, hash_key) = (from.i64()?, from.array()?);
        let checkpoint = CheckpointRef {
            generation: from.u64()?,
            lsn: Lsn(from.u64()?),
            index_len: from.u64()?,
            sums_root: from.u64()?,
        };
        let journal = JournalRef {
            size: from.u64()?,
            tail: from.u64()?,
            tail_lsn: Lsn(from.u64()?),
            run: from.u32()?,
            tail_run: from.u32()?,
        };
        if journal.size == 0 || !journal.size.is_multiple_of(super::BLOCK_U64) {
            return Err(FormatError::Field {
                field: "journal size",
                value: journal.size,
            });
        }
        let label = decode_label(&mut from)?;
        let count = usize::from(from.u8()?);
        if count == 0 || count > MAX_MIRRORS {
            return Err(FormatError::Field {
                field: "member count",
                value: count as u64,
            });
        }
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            members.push(Member {
                uuid: Uuid(from.array()?),
                state: MemberState::from_id(from.u8()?)?,
                epoch: Epoch(from.u64()?),
                lsn: Lsn(from.u64()?),
                replaces: None,
            });
        }
        from.bytes((MAX_MIRRORS - count) * MEMBER_LEN)?;
        let replaces: [u8; MAX_MIRRORS] = from.array()?;
        let uuids: Vec<Uuid> = members.iter().map(|member| member.uuid).collect();
        for (member, number) in members.iter_mut().zip(replaces) {
            let other = usize::from(number).checked_sub(1);
            member.replaces = other.and_then(|other| uuids.get(other)).copied();
            let itself = member.replaces == Some(member.uuid);
            if number != 0 && (member.replaces.is_none() || itself) {
                return Err(FormatError::Field {
                    field: "member to replace",
                    value: number.into(),
                });
            }
        }
        let written = from.i64()?;
        Ok(Superblock {
            compat,
            ro_compat,
            incompat,
            pool,
            mirror,
            algorithm,
            sequence,
            epoch,
            members,
            checkpoint,
            journal,
            clean,
            hash_key,
            created,
            label,
            written,
        })
    }
}

fn decode_label(from: &mut Decoder<'_>) -> Result<String, FormatError> {
    let len = usize::from(from.u16()?);
    let field = from.bytes(LABEL_MAX)?;
    let invalid = FormatError::Field {
        field: "label length",
        value: len as u64,
    };
    let label = field.get(..len).ok_or_else(|| invalid.clone())?;
    String::from_utf8(label.to_vec()).map_err(|_| invalid)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Superblock {
        Superblock {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            pool: Uuid([1; 16]),
            mirror: Uuid([2; 16]),
            algorithm: Algorithm::Crc32,
            sequence: 3,
            epoch: Epoch(4),
            members: vec![
                Member {
                    uuid: Uuid([2; 16]),
                    state: MemberState::Online,
                    epoch: Epoch(4),
                    lsn: Lsn(9),
                    replaces: None,
                },
                Member {
                    uuid: Uuid([5; 16]),
                    state: MemberState::Stale,
                    epoch: Epoch(3),
                    lsn: Lsn(8),
                    replaces: Some(Uuid([2; 16])),
                },
            ],
            checkpoint: CheckpointRef {
                generation: 5,
                lsn: Lsn(6),
                index_len: 7,
                sums_root: 8,
            },
            journal: JournalRef {
                size: 1 << 20,
                tail: 10,
                tail_lsn: Lsn(11),
                run: 12,
                tail_run: 11,
            },
            clean: true,
            hash_key: [6; 16],
            created: 1_700_000_000,
            label: "home".to_owned(),
            written: 1_700_000_100,
        }
    }

    #[test]
    fn a_superblock_comes_back_as_it_was() {
        for algorithm in Algorithm::ALL {
            let superblock = Superblock {
                algorithm,
                ..sample()
            };
            assert_eq!(superblock.encode().len(), SUPER_SLOT_LEN);
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }

    #[test]
    fn any_flipped_byte_is_refused() {
        let good = sample().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            assert!(Superblock::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut slot = sample().encode();
        slot[8] = 2;
        let sum = Algorithm::Crc32.sum64(&[&slot[..SUM_AT]]);
        slot[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(
            Superblock::decode(&slot),
            Err(FormatError::Version {
                what: "superblock",
                found: 2,
                known: 1
            })
        );
    }

    #[test]
    fn golden_bytes_of_the_first_fields() {
        let slot = sample().encode();
        assert_eq!(&slot[..8], b"MENDFS\r\n");
        assert_eq!(
            &slot[8..24],
            &[1, 0, 0, 0, 1, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&slot[48..64], &[1; 16]);
        assert_eq!(&slot[64..80], &[2; 16]);
        assert_eq!(&slot[80..88], &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            Algorithm::Crc32.sum64(&[&slot[..SUM_AT]]).to_le_bytes(),
            slot[SUM_AT..]
        );
    }
}
