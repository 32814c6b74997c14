//! Segments: numbered objects of lines, written by one attempt after the other.
//!
//! An attempt writes the segments 0, 1, 2, … of a folder. The newest one is open until it is long enough. Each write of
//! an open segment is an object of its own, a *version*, which repeats the lines of the version before and adds to them:
//!
//! ```text
//! <folder>/<attempt>/<seq>-<version>-<first step>-<last step>.jsonl
//! <folder>/<attempt>/<seq>.jsonl                                      version 0, of unknown steps
//! ```
//!
//! What always holds: an object is created once and never rewritten; an older version is deleted only after a newer one
//! exists; of every segment the newest version counts. So a reader finds no line twice, and at any instant the lines of
//! an attempt up to some moment. The steps in the name let a reader leave out what it does not need.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use bytes::Bytes;
use futures::StreamExt;

use crate::error::CheckpointError;
use crate::keys::{self, FAILURE_ROLE, METRICS_ROLE};
use crate::store::RunStore;

/// Segments that are read at a time.
const READS_AT_ONCE: usize = 32;
/// So often a folder is listed again because a version was replaced between listing and reading.
const LISTINGS: usize = 8;

/// Which version of which segment of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// Number within the attempt, from 0.
    pub seq: u64,
    /// Number within the segment; the highest counts.
    pub version: u64,
}

impl From<u64> for SegmentId {
    /// A segment that is written once.
    fn from(seq: u64) -> SegmentId {
        SegmentId { seq, version: 0 }
    }
}

/// The steps that a segment speaks of, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSpan {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl StepSpan {
    /// Any step.
    pub const ALL: StepSpan = StepSpan { first: 0, last: u64::MAX };

    /// Whether one of `steps` is in it.
    pub fn meets(self, steps: &RangeInclusive<u64>) -> bool {
        self.first <= *steps.end() && *steps.start() <= self.last
    }
}

/// A segment as its name tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Attempt that wrote it.
    pub attempt: u64,
    /// Which segment, and which version of it.
    pub id: SegmentId,
    /// What it speaks of.
    pub span: StepSpan,
}

impl Segment {
    /// Its object in `folder`.
    pub fn key(&self, folder: &str) -> String {
        let Segment { attempt, id: SegmentId { seq, version }, span: StepSpan { first, last } } = self;
        if *version == 0 {
            return format!("{folder}/{attempt:06}/{seq:08}.jsonl");
        }
        format!("{folder}/{attempt:06}/{seq:08}-{version:06}-{first:012}-{last:012}.jsonl")
    }

    /// The segment of an object's name, or `None` for another object.
    pub fn of_key(folder: &str, key: &str) -> Option<Segment> {
        let (attempt, name) = key.strip_prefix(folder)?.strip_prefix('/')?.split_once('/')?;
        let attempt = keys::parse_digits(attempt, 6)?;
        let parts: Vec<&str> = name.strip_suffix(".jsonl")?.split('-').collect();
        let (id, span) = match parts[..] {
            [seq] => (SegmentId::from(keys::parse_digits(seq, 8)?), StepSpan::ALL),
            [seq, version, first, last] => {
                let seq = keys::parse_digits(seq, 8)?;
                let version = keys::parse_digits(version, 6).filter(|version| *version > 0)?;
                let (first, last) = (keys::parse_digits(first, 12)?, keys::parse_digits(last, 12)?);
                (SegmentId { seq, version }, StepSpan { first, last })
            }
            _ => return None,
        };
        Some(Segment { attempt, id, span })
    }
}

impl RunStore {
    /// The newest version of every segment of `folder`, ascending.
    pub(crate) async fn segments(&self, folder: &str) -> Result<Vec<Segment>, CheckpointError> {
        let mut newest: BTreeMap<(u64, u64), Segment> = BTreeMap::new();
        for object in self.list(folder).await? {
            let Some(segment) = Segment::of_key(folder, &object.key) else { continue };
            let place = newest.entry((segment.attempt, segment.id.seq)).or_insert_with(|| segment.clone());
            if place.id < segment.id {
                *place = segment;
            }
        }
        Ok(newest.into_values().collect())
    }

    /// What `look` makes of the segments of `folder` that are `wanted`, ascending: many are read at a time. A version that
    /// its writer replaces meanwhile is looked for anew.
    pub(crate) async fn read_segments<T>(
        &self,
        folder: &str,
        wanted: impl Fn(&Segment) -> bool,
        look: impl Fn(&str, Bytes) -> T,
    ) -> Result<Vec<(Segment, T)>, CheckpointError> {
        let mut known: HashMap<String, T> = HashMap::new();
        for listing in 1.. {
            let mut segments = self.segments(folder).await?;
            segments.retain(&wanted);
            let missing: Vec<String> = segments
                .iter()
                .map(|segment| segment.key(folder))
                .filter(|key| !known.contains_key(key))
                .collect();
            let reads = missing.into_iter().map(|key| async move { (self.get(&key).await, key) });
            let mut reads = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
            let mut gone = None;
            while let Some((read, key)) = reads.next().await {
                match read {
                    Ok(bytes) => drop(known.insert(key.clone(), look(&key, bytes))),
                    Err(error @ CheckpointError::Missing { .. }) => gone = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match gone {
                Some(error) if listing >= LISTINGS => return Err(error),
                Some(_) => {}
                None => {
                    let found = segments.into_iter().filter_map(|segment| {
                        let read = known.remove(&segment.key(folder))?;
                        Some((segment, read))
                    });
                    return Ok(found.collect());
                }
            }
        }
        Ok(Vec::new())
    }

    /// The highest attempt that has recorded anything.
    pub(crate) async fn highest_attempt(&self) -> Result<Option<u64>, CheckpointError> {
        let mut highest = None;
        for folder in [keys::LEDGER.to_owned(), keys::events(METRICS_ROLE), keys::events(FAILURE_ROLE)] {
            let folders = self.root().folders(&format!("runs/{}/{folder}", self.run())).await?;
            let attempts = folders.iter().filter_map(|name| keys::parse_digits(name, 6));
            highest = highest.max(attempts.max());
        }
        Ok(highest)
    }

    /// Deletes versions that newer ones have replaced. Those that stay are in the way of nobody: what cannot be deleted is
    /// left in `replaced`.
    pub async fn remove_replaced(&self, replaced: &mut Vec<String>) {
        let mut left = Vec::new();
        for key in replaced.drain(..) {
            if let Err(error) = self.delete(&key).await {
                tracing::debug!(key, %error, "a replaced version stays for now");
                left.push(key);
            }
        }
        *replaced = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_segments() {
        for (seq, version, first, last) in
            [(0, 1, 0, 0), (7, 12, 3, 4096), (99_999_999, 1_000_000, 1, u64::MAX)]
        {
            let span = StepSpan { first, last };
            let segment = Segment { attempt: 3, id: SegmentId { seq, version }, span };
            assert_eq!(Segment::of_key("ledger", &segment.key("ledger")), Some(segment));
        }
        let once = Segment { attempt: 3, id: SegmentId::from(5), span: StepSpan::ALL };
        assert_eq!(once.key("ledger"), "ledger/000003/00000005.jsonl");
        assert_eq!(Segment::of_key("ledger", &once.key("ledger")), Some(once));
        for key in [
            "ledger/3/00000005.jsonl",
            "ledger/000003/00000005-000000-000000000001-000000000002.jsonl",
            "ledger/000003/00000005-000001-000000000001.jsonl",
            "ledger/000003/00000005-000001-000000000001-x.jsonl",
            "events/metrics/000003/00000005.jsonl",
        ] {
            assert_eq!(Segment::of_key("ledger", key), None, "{key}");
        }
    }

    #[test]
    fn names_sort_as_versions_do() {
        let key = |seq, version| {
            Segment { attempt: 1, id: SegmentId { seq, version }, span: StepSpan::ALL }.key("ledger")
        };
        // A listing that comes in pieces shows at least one of two versions that follow one another.
        assert!(key(1, 9) < key(1, 10) && key(1, 10) < key(2, 1));
    }

    #[test]
    fn spans_meet_ranges() {
        let span = StepSpan { first: 5, last: 9 };
        assert!(span.meets(&(9..=20)) && span.meets(&(0..=5)) && span.meets(&(6..=7)));
        assert!(!span.meets(&(10..=20)) && !span.meets(&(0..=4)));
    }
}
