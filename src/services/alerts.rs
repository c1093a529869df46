//! What the operator must be told without asking: a pure function over one status after another.
//!
//! A state that lasts (a mirror is missing, space is low) is told once, and again only after it had
//! ended; damage also when there is more of it. Nothing is told more often than the interval
//! allows; what had to wait is told as soon as it may, if it is still so.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::pool::status::{MirrorState, MirrorStatus, PoolState, PoolStatus, ScrubState};

/// Version of an alert's JSON.
const ALERT_SCHEMA: u32 = 1;
/// Damaged files named in an alert.
const NAMED: usize = 10;

/// When space is low.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceLimit {
    /// Less than so many bytes are available.
    Bytes(u64),
    /// Less than that share of the pool.
    Percent(u8),
}

/// When to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Bad copies repaired on one mirror since it was last told.
    pub repaired: u64,
    /// Space that must be available.
    pub space: SpaceLimit,
    /// The same is not told again within so many seconds.
    pub interval_s: i64,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            repaired: 100,
            space: SpaceLimit::Percent(5),
            interval_s: 600,
        }
    }
}

/// What is told. The JSON is an interface: fields may be added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Version of this structure.
    pub schema: u32,
    /// `degraded`, `damaged`, `failed`, `repaired`, `scrub_errors`, `space_low` or `resync_done`.
    pub event: &'static str,
    /// Seconds since 1970-01-01 UTC.
    pub time: i64,
    /// Name of the pool.
    pub pool: String,
    /// UUID of the pool.
    pub uuid: String,
    /// State of the pool: `healthy`, `degraded`, `damaged` or `failed`.
    pub state: &'static str,
    /// Directory of the mirror it is about.
    pub mirror: Option<String>,
    /// Some of the files it is about.
    pub paths: Vec<String>,
    /// How many: blocks repaired, errors found, files damaged, bytes available.
    pub count: Option<u64>,
    /// A sentence.
    pub message: String,
}

/// Watches one pool.
#[derive(Debug)]
pub struct Watch {
    thresholds: Thresholds,
    /// What is so now and was told, with how much of it there was.
    told: BTreeMap<(&'static str, String), u64>,
    /// When something was last told.
    last: BTreeMap<(&'static str, String), i64>,
    /// Repairs by mirror, up to which it was told.
    repaired: BTreeMap<String, u64>,
    /// End of the last scrub that was seen.
    scrubbed: Option<i64>,
    resyncing: Vec<String>,
    first: bool,
}

/// Something that is so now.
struct Fact {
    event: &'static str,
    mirror: Option<String>,
    paths: Vec<String>,
    /// Told again when it grows.
    amount: u64,
    count: Option<u64>,
    message: String,
}

impl Fact {
    fn new(event: &'static str, message: String) -> Fact {
        Fact {
            event,
            mirror: None,
            paths: Vec::new(),
            amount: 0,
            count: None,
            message,
        }
    }
}

impl Watch {
    /// Watches from now on. What is wrong at the first look is told.
    pub fn new(thresholds: Thresholds) -> Watch {
        Watch {
            thresholds,
            told: BTreeMap::new(),
            last: BTreeMap::new(),
            repaired: BTreeMap::new(),
            scrubbed: None,
            resyncing: Vec::new(),
            first: true,
        }
    }

    /// Looks at the pool; returns what is to be told.
    pub fn look(&mut self, status: &PoolStatus, now: i64) -> Vec<Alert> {
        let mut facts = lasting(status, self.thresholds.space);
        let key = |fact: &Fact| (fact.event, fact.mirror.clone().unwrap_or_default());
        self.told
            .retain(|known, _| facts.iter().any(|fact| key(fact) == *known));
        facts.retain(|fact| {
            let told = self.told.get(&key(fact));
            told.is_none_or(|amount| *amount < fact.amount)
        });
        let mut alerts = Vec::new();
        for fact in facts {
            if self.may_tell(&key(&fact), now) {
                self.told.insert(key(&fact), fact.amount);
                alerts.push(alert(status, fact, now));
            }
        }
        for fact in self.passing(status, now) {
            alerts.push(alert(status, fact, now));
        }
        self.first = false;
        alerts
    }

    fn may_tell(&mut self, key: &(&'static str, String), now: i64) -> bool {
        let free = |last: &i64| now >= last.saturating_add(self.thresholds.interval_s);
        let may = self.last.get(key).is_none_or(free);
        if may {
            self.last.insert(key.clone(), now);
        }
        may
    }

    /// What happened since the last look.
    fn passing(&mut self, status: &PoolStatus, now: i64) -> Vec<Fact> {
        let mut facts = Vec::new();
        for mirror in &status.mirrors {
            let name = name(mirror);
            let before = self.repaired.get(name).copied().unwrap_or_default();
            let new = mirror.repaired.saturating_sub(before);
            if new < self.thresholds.repaired || !self.may_tell(&("repaired", name.to_owned()), now)
            {
                continue;
            }
            self.repaired.insert(name.to_owned(), mirror.repaired);
            facts.push(Fact {
                mirror: Some(name.to_owned()),
                count: Some(new),
                ..Fact::new(
                    "repaired",
                    format!("{new} bad blocks were repaired on mirror {name}: look at its disk"),
                )
            });
        }
        if let Some(scrub) = &status.scrub {
            let ended = scrub
                .finished
                .filter(|_| scrub.state == ScrubState::Finished);
            let news = ended.is_some() && ended != self.scrubbed && !self.first;
            if news && scrub.errors_found > 0 {
                let (found, left) = (scrub.errors_found, scrub.unrepairable);
                facts.push(Fact {
                    count: Some(found),
                    ..Fact::new(
                        "scrub_errors",
                        format!("a scrub found {found} bad copies; {left} of them are still bad"),
                    )
                });
            }
            self.scrubbed = ended.or(self.scrubbed);
        }
        for mirror in &status.mirrors {
            let name = name(mirror).to_owned();
            if mirror.state == MirrorState::Online && self.resyncing.contains(&name) {
                let message = format!("mirror {name} is up to date again");
                facts.push(Fact {
                    mirror: Some(name),
                    ..Fact::new("resync_done", message)
                });
            }
        }
        let resyncing = status.mirrors.iter();
        self.resyncing = resyncing
            .filter(|mirror| mirror.state == MirrorState::Resyncing)
            .map(|mirror| name(mirror).to_owned())
            .collect();
        facts
    }
}

fn name(mirror: &MirrorStatus) -> &str {
    if mirror.path.is_empty() {
        &mirror.uuid
    } else {
        &mirror.path
    }
}

/// What is wrong now.
fn lasting(status: &PoolStatus, limit: SpaceLimit) -> Vec<Fact> {
    let mut facts = Vec::new();
    if status.state == PoolState::Failed {
        let why = status.actions.first().cloned().unwrap_or_default();
        facts.push(Fact::new("failed", why));
    }
    for mirror in &status.mirrors {
        let state = match mirror.state {
            MirrorState::Online | MirrorState::Resyncing => continue,
            MirrorState::Suspect => "gave errors",
            MirrorState::Offline => "is offline",
            MirrorState::Missing => "is missing",
            MirrorState::Failed => "has failed",
        };
        let name = name(mirror);
        facts.push(Fact {
            mirror: Some(name.to_owned()),
            ..Fact::new("degraded", format!("mirror {name} {state}"))
        });
    }
    if status.unrepaired_blocks > 0 {
        let left = status.unrepaired_blocks;
        facts.push(Fact {
            amount: left,
            count: Some(left),
            ..Fact::new(
                "degraded",
                format!("{left} bad copies could not be rewritten"),
            )
        });
    }
    let files = status.damaged.len() as u64;
    let places = status.damaged_metadata.len() as u64;
    if files + places > 0 {
        let ranges = status.damaged.iter().flat_map(|file| &file.ranges);
        let bytes: u64 = ranges.map(|range| range.length).sum();
        let named = status.damaged.iter().take(NAMED);
        facts.push(Fact {
            paths: named.map(|file| file.path.clone()).collect(),
            amount: bytes.saturating_add(places),
            count: Some(files),
            ..Fact::new(
                "damaged",
                format!("{bytes} bytes of {files} files have no good copy on any mirror"),
            )
        });
    }
    let space = &status.space;
    let wanted = match limit {
        SpaceLimit::Bytes(bytes) => bytes,
        SpaceLimit::Percent(percent) => space.total_bytes / 100 * u64::from(percent),
    };
    // A pool that cannot tell its size tells none.
    if space.total_bytes > 0 && space.available_bytes < wanted {
        let left = space.available_bytes;
        facts.push(Fact {
            count: Some(left),
            ..Fact::new(
                "space_low",
                format!("{left} bytes are available for new data"),
            )
        });
    }
    facts
}

fn alert(status: &PoolStatus, fact: Fact, now: i64) -> Alert {
    Alert {
        schema: ALERT_SCHEMA,
        event: fact.event,
        time: now,
        pool: status.label.clone(),
        uuid: status.uuid.clone(),
        state: match status.state {
            PoolState::Healthy => "healthy",
            PoolState::Degraded => "degraded",
            PoolState::Damaged => "damaged",
            PoolState::Failed => "failed",
        },
        mirror: fact.mirror,
        paths: fact.paths,
        count: fact.count,
        message: fact.message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::status::{DamagedFile, DamagedRange, ScrubStatus, SpaceStatus};

    fn healthy() -> PoolStatus {
        let mirror = |path: &str| MirrorStatus {
            path: path.to_owned(),
            ..MirrorStatus::default()
        };
        PoolStatus {
            mirrors: vec![mirror("/a"), mirror("/b")],
            space: SpaceStatus {
                total_bytes: 1000,
                available_bytes: 900,
                ..SpaceStatus::default()
            },
            ..PoolStatus::default()
        }
    }

    fn watch() -> Watch {
        Watch::new(Thresholds {
            repaired: 10,
            space: SpaceLimit::Percent(5),
            interval_s: 100,
        })
    }

    fn told(watch: &mut Watch, status: &PoolStatus, now: i64) -> Vec<(&'static str, String)> {
        let alerts = watch.look(status, now).into_iter();
        alerts
            .map(|alert| (alert.event, alert.mirror.unwrap_or_default()))
            .collect()
    }

    fn one(event: &'static str, mirror: &str) -> Vec<(&'static str, String)> {
        vec![(event, mirror.to_owned())]
    }

    #[test]
    fn a_lasting_state_is_told_once_and_again_after_it_ended() {
        let (mut watch, mut status) = (watch(), healthy());
        assert!(told(&mut watch, &status, 0).is_empty());
        status.mirrors[1].state = MirrorState::Missing;
        assert_eq!(told(&mut watch, &status, 1), one("degraded", "/b"));
        assert!(told(&mut watch, &status, 1000).is_empty());
        status.mirrors[1].state = MirrorState::Online;
        assert!(told(&mut watch, &status, 1001).is_empty());
        status.mirrors[1].state = MirrorState::Failed;
        assert_eq!(told(&mut watch, &status, 1002), one("degraded", "/b"));
        status.space.available_bytes = 40;
        assert_eq!(told(&mut watch, &status, 1003), one("space_low", ""));
    }

    #[test]
    fn what_flutters_is_told_at_the_interval_and_not_forgotten() {
        let (mut watch, mut status) = (watch(), healthy());
        let mut count = 0;
        for second in 0..400 {
            status.mirrors[0].state = match second % 2 {
                0 => MirrorState::Suspect,
                _ => MirrorState::Online,
            };
            count += watch.look(&status, second).len();
        }
        assert_eq!(count, 4);
        status.mirrors[0].state = MirrorState::Failed;
        assert!(told(&mut watch, &status, 400 - 1).is_empty(), "too soon");
        assert_eq!(
            told(&mut watch, &status, 500),
            one("degraded", "/a"),
            "still so"
        );
    }

    #[test]
    fn more_damage_is_told_again() {
        let (mut watch, mut status) = (watch(), healthy());
        let file = |length| DamagedFile {
            path: "/f".to_owned(),
            ranges: vec![DamagedRange { offset: 0, length }],
            ..DamagedFile::default()
        };
        status.state = PoolState::Damaged;
        status.damaged = vec![file(4096)];
        let alerts = watch.look(&status, 0);
        assert_eq!(alerts.len(), 1);
        assert_eq!((alerts[0].event, alerts[0].state), ("damaged", "damaged"));
        assert_eq!(alerts[0].paths, ["/f"]);
        assert!(watch.look(&status, 500).is_empty());
        status.damaged = vec![file(8192)];
        assert_eq!(watch.look(&status, 501).len(), 1);
    }

    #[test]
    fn repairs_are_told_above_the_threshold() {
        let (mut watch, mut status) = (watch(), healthy());
        status.mirrors[0].repaired = 9;
        assert!(watch.look(&status, 0).is_empty());
        status.mirrors[0].repaired = 12;
        assert_eq!(watch.look(&status, 1)[0].count, Some(12));
        status.mirrors[0].repaired = 21;
        assert!(watch.look(&status, 500).is_empty(), "only 9 more");
        status.mirrors[0].repaired = 22;
        assert_eq!(watch.look(&status, 501)[0].count, Some(10));
    }

    #[test]
    fn a_scrub_with_errors_and_the_end_of_a_resync_are_told() {
        let (mut watch, mut status) = (watch(), healthy());
        let mut scrub = ScrubStatus {
            state: ScrubState::Finished,
            finished: Some(5),
            errors_found: 3,
            ..ScrubStatus::default()
        };
        status.scrub = Some(scrub.clone());
        assert!(watch.look(&status, 6).is_empty(), "of an earlier mount");
        scrub.finished = Some(7);
        status.scrub = Some(scrub.clone());
        assert_eq!(told(&mut watch, &status, 8), one("scrub_errors", ""));
        assert!(watch.look(&status, 9).is_empty());
        scrub.finished = Some(10);
        scrub.errors_found = 0;
        status.scrub = Some(scrub);
        status.mirrors[1].state = MirrorState::Resyncing;
        assert!(watch.look(&status, 11).is_empty());
        status.mirrors[1].state = MirrorState::Online;
        assert_eq!(told(&mut watch, &status, 12), one("resync_done", "/b"));
    }
}
