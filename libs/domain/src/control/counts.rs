//! What members count and report now and then: shards their rows, workers their input.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Step, float};

/// A fingerprint of row updates. As text it has sixteen hexadecimal digits, in JSON too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = u64::from_str_radix(&text, 16);
        value
            .map(Fingerprint)
            .map_err(|_| serde::de::Error::custom("a fingerprint is sixteen hexadecimal digits"))
    }
}

/// The fingerprint of all row updates from some version up to this one. Those of shards are added, wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Updates in the rows.
    pub version: Step,
    /// The fingerprint.
    pub fingerprint: Fingerprint,
}

/// The versions that all parts have in common, with the parts' fingerprints added up.
pub fn common_marks<'a>(parts: impl IntoIterator<Item = &'a [Mark]>) -> Vec<Mark> {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return Vec::new() };
    let mut common = first.to_vec();
    for part in parts {
        common.retain_mut(|mark| match part.iter().find(|other| other.version == mark.version) {
            Some(other) => {
                mark.fingerprint.0 = mark.fingerprint.0.wrapping_add(other.fingerprint.0);
                true
            }
            None => false,
        });
    }
    common
}

/// One table's rows on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// Rows that the shard owns.
    pub owned_rows: u64,
    /// Of which written.
    pub touched_rows: u64,
}

/// What a shard has counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Updates in its rows.
    pub version: Step,
    /// The version at which counting began.
    pub since: Step,
    /// Bytes of one written row's record.
    pub record_bytes: u64,
    /// Every table of the model, in order.
    pub tables: Vec<TableRows>,
    /// Rows that cells declared, counted once a cell.
    pub declared_rows: u64,
    /// Rows that steps declared, counted once a step.
    pub step_rows: u64,
    /// Answers that were held back for a pending update.
    pub parked_lookups: u64,
    /// For how long, added up.
    #[serde(with = "float")]
    pub parked_seconds: f64,
    /// One minus the mean lane's work over the busiest lane's.
    pub lane_skew_ratio: Option<f64>,
    /// Fingerprints of all tables at some versions, newest first.
    pub marks: Vec<Mark>,
    /// Where it answers reads.
    pub query_address: Option<SocketAddr>,
    /// Where it tells its metrics.
    pub metrics_address: Option<SocketAddr>,
}

impl ShardReport {
    /// Rows that it owns.
    pub fn owned_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.owned_rows).fold(0, u64::saturating_add)
    }

    /// Rows that are written.
    pub fn touched_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.touched_rows).fold(0, u64::saturating_add)
    }

    /// How long an answer that was held back waited on average; `None` where none was.
    pub fn mean_parked_seconds(&self) -> Option<f64> {
        (self.parked_lookups > 0).then(|| self.parked_seconds / self.parked_lookups as f64)
    }

    /// Share of declarations that another cell of the step had made already; `None` before the first.
    pub fn overlap_ratio(&self) -> Option<f64> {
        (self.declared_rows > 0).then(|| 1.0 - self.step_rows as f64 / self.declared_rows as f64)
    }
}

/// What a worker has counted of its input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputReport {
    /// The step at which counting began.
    pub since: Step,
    /// Every step before this one is counted.
    pub step: Step,
    /// Row ids of its cells.
    pub row_ids: u64,
    /// Of which different within their cell.
    pub unique_rows: u64,
    /// HyperLogLog registers of the distinct n-grams of each order, from 2.
    pub sketches: Vec<Vec<u8>>,
}

/// The tables of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowsStatus {
    /// Every table, in order; none before all shards have reported.
    pub tables: Vec<TableStatus>,
    /// What workers have counted; `None` before the first report.
    pub input: Option<InputStatus>,
    /// The newest fingerprint that all shards have reported.
    pub fingerprint: Option<RunFingerprint>,
}

/// One table of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The name of its weight.
    pub name: String,
    /// N-gram order.
    pub order: u32,
    /// Rows.
    pub rows: u64,
    /// Of which written.
    pub touched_rows: u64,
    /// Against the ideal hash; `None` where n-grams were not counted from the run's first step on.
    pub collisions: Option<CollisionStatus>,
}

/// A table against the ideal hash.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollisionStatus {
    /// Distinct n-grams of the table's order, estimated.
    pub distinct_ngrams: f64,
    /// Rows that these touch on average under the ideal hash.
    pub ideal_rows: f64,
    /// Share of those that were not touched; about 0 for a good size, within the estimate's error.
    pub excess_ratio: Option<f64>,
    /// Distinct n-grams for each touched row, on average.
    #[serde(default)]
    pub ngrams_per_row: Option<f64>,
    /// Expected share of lookups whose row another n-gram uses too.
    #[serde(default)]
    pub shared_lookups_ratio: Option<f64>,
}

/// What all workers have counted of their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputStatus {
    /// The step at which counting began.
    pub since: Step,
    /// Row ids of all cells.
    pub row_ids: u64,
    /// Of which different within their cell.
    pub unique_rows: u64,
}

impl InputStatus {
    /// Unique rows among the row ids of a cell, on average; `None` before the first.
    pub fn unique_ratio(&self) -> Option<f64> {
        (self.row_ids > 0).then(|| self.unique_rows as f64 / self.row_ids as f64)
    }
}

/// The fingerprint of the whole run's row updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFingerprint {
    /// The version at which it began.
    pub since: Step,
    /// Version and value.
    #[serde(flatten)]
    pub mark: Mark,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_added_where_versions_meet() {
        let mark = |version, value| Mark { version: Step(version), fingerprint: Fingerprint(value) };
        let (ahead, behind) = ([mark(9, 5), mark(8, u64::MAX), mark(4, 1)], [mark(8, 3), mark(4, 10)]);
        assert_eq!(common_marks([&ahead[..], &behind]), [mark(8, 2), mark(4, 11)]);
        assert_eq!(common_marks([&ahead[..]]), ahead);
        assert_eq!(common_marks([&ahead[..], &[]]), []);
        assert_eq!(common_marks([]), []);
    }

    #[test]
    fn fingerprints_keep_every_bit_in_json() {
        let mark = Mark { version: Step(7), fingerprint: Fingerprint(0x00ff_0000_dead_beef) };
        let text = serde_json::to_string(&RunFingerprint { since: Step(2), mark }).unwrap();
        assert_eq!(text, r#"{"since":2,"version":7,"fingerprint":"00ff0000deadbeef"}"#);
        assert_eq!(serde_json::from_str::<RunFingerprint>(&text).unwrap().mark, mark);
        assert!(serde_json::from_str::<Fingerprint>("\"seven\"").is_err());
    }
}
