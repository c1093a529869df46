//! What kinds of histories there are, and what comes next in one besides operations.

use mendfs::backing::FileName;
use mendfs::backing::sim::{Fault, Faults, FileClass, PowerLoss, SimDisk, SimRng};
use mendfs::pool::ScrubOrder;

use super::life::Event;
use super::machine::Config;

/// From this seed on histories are about the life of mirrors.
pub(crate) const MEMBERS: u64 = 1_000_000_000;
/// And from this one on they are long.
pub(crate) const LONG: u64 = 2_000_000_000;

/// What may go wrong in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Plain,
    /// The power fails.
    Crash,
    /// One mirror's medium is damaged.
    Rot,
    /// As well as the power failing.
    RotAndCrash,
    /// One mirror loses writes or puts them elsewhere.
    Astray,
    /// One mirror fails reads.
    ReadErrors,
    /// One mirror fails a write or a sync.
    WriteError,
    /// One mirror is gone after a crash.
    MirrorLost,
    /// Both copies of some blocks are damaged.
    BothCopies,
    /// The disks are small.
    Full,
    /// As well as the power failing.
    FullAndCrash,
    /// Mirrors leave, come back, are added, replaced and removed.
    Members,
    /// As well as the power failing.
    MembersAndCrash,
}

impl Kind {
    pub(crate) fn of(seed: u64) -> Kind {
        if seed >= MEMBERS {
            return match seed % 3 {
                0 => Kind::Members,
                _ => Kind::MembersAndCrash,
            };
        }
        match seed % 17 {
            0 => Kind::Plain,
            1..=5 => Kind::Crash,
            6 => Kind::Rot,
            7 | 8 => Kind::RotAndCrash,
            9 => Kind::Astray,
            10 => Kind::ReadErrors,
            11 | 12 => Kind::WriteError,
            13 => Kind::MirrorLost,
            14 => Kind::BothCopies,
            15 => Kind::Full,
            _ => Kind::FullAndCrash,
        }
    }

    pub(crate) const fn is_full(self) -> bool {
        matches!(self, Kind::Full | Kind::FullAndCrash)
    }

    pub(crate) const fn is_members(self) -> bool {
        matches!(self, Kind::Members | Kind::MembersAndCrash)
    }

    pub(crate) const fn crashes(self) -> bool {
        matches!(
            self,
            Kind::Crash
                | Kind::RotAndCrash
                | Kind::WriteError
                | Kind::MirrorLost
                | Kind::Astray
                | Kind::FullAndCrash
                | Kind::MembersAndCrash
        )
    }
}

/// Something that befalls a mirror's medium. Files and places are drawn from what is there.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Corrupt { pick: u64, at: u64, len: u64 },
    Unreadable { pick: u64, at: u64, len: u64 },
    Truncate { pick: u64, at: u64 },
    Delete { pick: u64 },
    Flip { bits: usize },
}

/// The next thing to happen.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Op,
    Sync,
    Checkpoint,
    Reclaim,
    Repair,
    Inspect,
    Look,
    Remount,
    Kill,
    /// The power fails `after` changes, and again in the recoveries.
    Crash {
        after: u64,
        loss: PowerLoss,
        again: Vec<u64>,
    },
    Damage(Damage),
    Faults(Faults),
    /// Damage on the victim is found and healed by reading.
    Health,
    /// So many bytes are free from now on, on the disks of which the bit is set.
    Capacity {
        free: u64,
        disks: u64,
    },
    /// The victim is pulled out, until the next mount.
    Detach,
    /// A file gets more extents than fit in a transaction.
    Fragment,
    /// The scrub is told something, and then does so many pieces of work of so many bytes.
    Scrub {
        order: Option<ScrubOrder>,
        pieces: u64,
        budget: u32,
    },
    /// Something happens to the mirrors.
    Life(Event),
}

/// A kind of history with its choices.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// The only mirror to which faults happen.
    pub(crate) victim: usize,
    /// Largest usual file.
    pub(crate) large: u64,
    pub(crate) steps: u64,
    crashes: u64,
}

impl Plan {
    pub(crate) fn draw(seed: u64, config: &mut Config, rng: &mut SimRng) -> Plan {
        let kind = Kind::of(seed);
        let large = [16 << 10, 64 << 10, 64 << 10, 300 << 10][rng.index(4)];
        if kind.is_full() {
            config.journal = 256 << 10;
            config.kept = 128 << 10;
            config.segment = 256 << 10;
            config.capacity = Some((4 << 20) + rng.below(2 << 20));
        }
        if kind.is_members() {
            config.mirrors = 2 + rng.index(3);
            config.journal = 256 << 10;
            config.reserve = 256 << 10;
            config.segment = [128 << 10, 256 << 10, 1 << 20][rng.index(3)];
        }
        Plan {
            kind,
            victim: rng.index(config.mirrors),
            large: if kind.is_members() {
                large.min(64 << 10)
            } else {
                large
            },
            steps: match rng.below(50) {
                _ if seed >= LONG => 1000 + rng.below(1000),
                0 => 400,
                _ => 40 + rng.below(60),
            },
            crashes: 0,
        }
    }

    /// The plan of a script: nothing is drawn from it.
    pub(crate) const fn scripted(kind: Kind, victim: usize) -> Plan {
        Plan {
            kind,
            victim,
            large: 0,
            steps: 0,
            crashes: 0,
        }
    }

    /// Whether the victim is given to the mount after a crash; none if that does not change.
    pub(crate) fn present_after_crash(&mut self) -> Option<bool> {
        self.crashes += 1;
        (self.kind == Kind::MirrorLost).then_some(self.crashes.is_multiple_of(3))
    }

    pub(crate) fn step(&mut self, rng: &mut SimRng) -> Step {
        if self.kind.is_members()
            && let Some(step) = self.life(rng)
        {
            return step;
        }
        match rng.below(1000) {
            0..40 => Step::Sync,
            40..60 => Step::Checkpoint,
            60..80 => Step::Reclaim,
            80..90 => Step::Repair,
            90..100 => Step::Inspect,
            100..115 => Step::Look,
            115..120 => Step::Remount,
            120..125 => Step::Kill,
            125..165 => self.event(rng),
            165..190 if self.kind.crashes() => self.crash(rng),
            165..170 if self.kind != Kind::Plain && !self.kind.is_members() => Step::Health,
            192..207 => Plan::scrub(rng),
            190..192 if rng.below(6) == 0 => Step::Fragment,
            _ => Step::Op,
        }
    }

    fn scrub(rng: &mut SimRng) -> Step {
        let orders = [
            None,
            Some(ScrubOrder::Start { rate: None }),
            Some(ScrubOrder::Start { rate: None }),
            Some(ScrubOrder::Pause),
            Some(ScrubOrder::Resume { rate: None }),
            Some(ScrubOrder::Cancel),
        ];
        Step::Scrub {
            order: orders[rng.index(orders.len())],
            pieces: 1 + rng.below(30),
            budget: 4096 << rng.below(9),
        }
    }

    /// What happens to the mirrors, if anything does.
    fn life(&self, rng: &mut SimRng) -> Option<Step> {
        let (what, pick) = (rng.below(100), rng.next_u64() >> 8);
        let event = match what {
            0..3 => Event::Offline(pick),
            3..7 => Event::Online(pick),
            7..9 => Event::Add,
            9..11 => Event::Remove(pick),
            11..13 => Event::Replace(pick),
            13..15 => Event::Detach(pick),
            15..18 => Event::Attach(pick),
            18 => Event::Squeeze(pick, rng.below(64 << 10)),
            19 => Event::Relax(pick),
            20..24 => Event::Faults(pick, mirror_faults(rng)),
            24 => Event::PowerOfOne(pick),
            25 if rng.coin() => Event::Apart(pick),
            26..36 => Event::Resync(1 + rng.below(12)),
            36 => Event::Resync(u64::MAX),
            37 => Event::Wait,
            _ => return None,
        };
        Some(Step::Life(event))
    }

    fn crash(&self, rng: &mut SimRng) -> Step {
        let losses = [
            PowerLoss::KeepAll,
            PowerLoss::LoseAll,
            PowerLoss::Random,
            PowerLoss::Random,
        ];
        let after = match rng.below(3) {
            0 => 1 + rng.below(6),
            1 => 1 + rng.below(40),
            _ => 1 + rng.below(150),
        };
        let again = match rng.below(3) {
            0 => (0..1 + rng.below(3)).map(|_| 1 + rng.below(60)).collect(),
            _ => Vec::new(),
        };
        Step::Crash {
            after,
            loss: losses[rng.index(4)],
            again,
        }
    }

    fn event(&self, rng: &mut SimRng) -> Step {
        match self.kind {
            Kind::Plain | Kind::BothCopies | Kind::Members | Kind::MembersAndCrash => Step::Op,
            Kind::Crash | Kind::MirrorLost => self.crash(rng),
            Kind::Rot | Kind::RotAndCrash => Step::Damage(Damage::draw(rng)),
            Kind::Astray => {
                let fault = if rng.coin() {
                    Fault::LostWrite
                } else {
                    Fault::MisdirectedWrite
                };
                Step::Faults(one_shot(rng, fault))
            }
            Kind::ReadErrors => Step::Faults(match rng.below(3) {
                0 => Faults::none(),
                1 => one_shot(rng, Fault::ReadError),
                _ => Faults::none()
                    .rate(Fault::ReadError, None, 100_000)
                    .rate(Fault::ShortRead, None, 50_000)
                    .rate(Fault::SlowRead, None, 50_000),
            }),
            Kind::WriteError if rng.below(6) == 0 => Step::Detach,
            Kind::WriteError => {
                let fault = if rng.coin() {
                    Fault::WriteError
                } else {
                    Fault::SyncError
                };
                Step::Faults(one_shot(rng, fault))
            }
            Kind::Full | Kind::FullAndCrash => Step::Capacity {
                free: match rng.below(3) {
                    0 => 0,
                    1 => rng.below(64 << 10),
                    _ => rng.below(1 << 20),
                },
                disks: 1 + rng.below(7),
            },
        }
    }
}

/// What may go wrong with one mirror, or what ends it.
fn mirror_faults(rng: &mut SimRng) -> Faults {
    match rng.below(6) {
        0 | 1 => Faults::none(),
        2 => one_shot(rng, Fault::SyncError),
        3 => one_shot(rng, Fault::WriteError),
        4 => one_shot(rng, Fault::ReadError),
        _ => Faults::none().rate(Fault::ReadError, None, 100_000).rate(
            Fault::ShortRead,
            None,
            50_000,
        ),
    }
}

fn one_shot(rng: &mut SimRng, fault: Fault) -> Faults {
    let classes = [
        None,
        Some(FileClass::Superblock),
        Some(FileClass::Journal),
        Some(FileClass::Index),
        Some(FileClass::Sums),
        Some(FileClass::Segment),
        Some(FileClass::Segment),
    ];
    let class = classes[rng.index(classes.len())];
    Faults::none().once(fault, class, rng.below(8))
}

impl Damage {
    fn draw(rng: &mut SimRng) -> Damage {
        let (pick, at) = (rng.next_u64(), rng.next_u64());
        let len = 1 + rng.below(8192);
        match rng.below(20) {
            0 => Damage::Truncate { pick, at },
            1 => Damage::Delete { pick },
            2..5 => Damage::Unreadable { pick, at, len },
            5..8 => Damage::Flip {
                bits: 1 + rng.index(20),
            },
            _ => Damage::Corrupt { pick, at, len },
        }
    }

    /// One of the disk's files, segments preferred, and its size.
    pub(crate) fn target(&self, disk: &SimDisk, pick: u64) -> Option<(FileName, u64)> {
        let mut files: Vec<FileName> = disk.files();
        files.retain(|file| *file != FileName::Readme);
        let segments = |file: &FileName| matches!(file, FileName::Segment(_));
        if pick.is_multiple_of(2) && files.iter().any(segments) {
            files.retain(segments);
        }
        let file = *files.get((pick >> 8) as usize % files.len().max(1))?;
        let size = disk
            .content(file)
            .map_or(4096, |content| content.len() as u64);
        Some((file, size))
    }
}
