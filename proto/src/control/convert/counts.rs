//! What members have counted, and the tables of the run.

use polygram_domain::Step;
use polygram_domain::control::{
    CollisionStatus, Fingerprint, InputReport, InputStatus, Mark, RowsStatus, RunFingerprint, ShardReport,
    TableRows, TableStatus,
};

use super::{address, malformed, present};
use crate::control::error::Malformed;
use crate::control::wire;

/// N-gram orders that are supported, from 2 on.
const ORDERS: usize = polygram_domain::model::MAX_ORDER as usize - 1;
/// Registers of a sketch, one byte each.
const REGISTERS: usize = 1 << 14;

impl From<Mark> for wire::Mark {
    fn from(mark: Mark) -> wire::Mark {
        wire::Mark { version: mark.version.0, fingerprint: mark.fingerprint.0 }
    }
}

impl From<wire::Mark> for Mark {
    fn from(mark: wire::Mark) -> Mark {
        Mark { version: Step(mark.version), fingerprint: Fingerprint(mark.fingerprint) }
    }
}

impl From<ShardReport> for wire::ShardReport {
    fn from(r: ShardReport) -> wire::ShardReport {
        let tables = r.tables.into_iter();
        wire::ShardReport {
            version: r.version.0,
            since: r.since.0,
            record_bytes: r.record_bytes,
            tables: tables
                .map(|t| wire::TableRows { owned_rows: t.owned_rows, touched_rows: t.touched_rows })
                .collect(),
            declared_rows: r.declared_rows,
            step_rows: r.step_rows,
            parked_lookups: r.parked_lookups,
            parked_seconds: r.parked_seconds,
            lane_skew_ratio: r.lane_skew_ratio,
            marks: r.marks.into_iter().map(Into::into).collect(),
            query_address: r.query_address.map(|address| address.to_string()),
            metrics_address: r.metrics_address.map(|address| address.to_string()),
        }
    }
}

impl TryFrom<wire::ShardReport> for ShardReport {
    type Error = Malformed;

    fn try_from(r: wire::ShardReport) -> Result<ShardReport, Malformed> {
        let address = |text: Option<String>| text.map(|text| address("ShardReport", &text)).transpose();
        let tables = r.tables.into_iter().enumerate().map(|(table, t)| {
            if t.touched_rows > t.owned_rows {
                let what = format!("table {table} has {} of {} rows touched", t.touched_rows, t.owned_rows);
                return Err(malformed("ShardReport", what));
            }
            Ok(TableRows { owned_rows: t.owned_rows, touched_rows: t.touched_rows })
        });
        Ok(ShardReport {
            version: Step(r.version),
            since: Step(r.since),
            record_bytes: r.record_bytes,
            tables: tables.collect::<Result<_, _>>()?,
            declared_rows: r.declared_rows,
            step_rows: r.step_rows,
            parked_lookups: r.parked_lookups,
            parked_seconds: r.parked_seconds,
            lane_skew_ratio: r.lane_skew_ratio,
            marks: r.marks.into_iter().map(Into::into).collect(),
            query_address: address(r.query_address)?,
            metrics_address: address(r.metrics_address)?,
        })
    }
}

impl From<InputReport> for wire::InputReport {
    fn from(r: InputReport) -> wire::InputReport {
        wire::InputReport {
            since: r.since.0,
            step: r.step.0,
            row_ids: r.row_ids,
            unique_rows: r.unique_rows,
            sketches: r.sketches,
        }
    }
}

impl TryFrom<wire::InputReport> for InputReport {
    type Error = Malformed;

    fn try_from(r: wire::InputReport) -> Result<InputReport, Malformed> {
        if r.sketches.len() > ORDERS || r.sketches.iter().any(|sketch| sketch.len() != REGISTERS) {
            let sizes: Vec<usize> = r.sketches.iter().map(Vec::len).take(ORDERS + 1).collect();
            let what = format!("sketches of {sizes:?} bytes; at most {ORDERS} of {REGISTERS} make sense");
            return Err(malformed("InputReport", what));
        }
        Ok(InputReport {
            since: Step(r.since),
            step: Step(r.step),
            row_ids: r.row_ids,
            unique_rows: r.unique_rows,
            sketches: r.sketches,
        })
    }
}

impl From<RowsStatus> for wire::RowsStatus {
    fn from(s: RowsStatus) -> wire::RowsStatus {
        let tables = s.tables.into_iter().map(|t| wire::TableStatus {
            name: t.name,
            order: t.order,
            rows: t.rows,
            touched_rows: t.touched_rows,
            collisions: t.collisions.map(|c| wire::Collisions {
                distinct_ngrams: c.distinct_ngrams,
                ideal_rows: c.ideal_rows,
                excess_ratio: c.excess_ratio,
                ngrams_per_row: c.ngrams_per_row,
                shared_lookups_ratio: c.shared_lookups_ratio,
            }),
        });
        wire::RowsStatus {
            tables: tables.collect(),
            input: s.input.map(|i| wire::InputStatus {
                since: i.since.0,
                row_ids: i.row_ids,
                unique_rows: i.unique_rows,
            }),
            fingerprint: s
                .fingerprint
                .map(|f| wire::RunFingerprint { since: f.since.0, mark: Some(f.mark.into()) }),
        }
    }
}

impl TryFrom<wire::RowsStatus> for RowsStatus {
    type Error = Malformed;

    fn try_from(s: wire::RowsStatus) -> Result<RowsStatus, Malformed> {
        let tables = s.tables.into_iter().map(|t| TableStatus {
            name: t.name,
            order: t.order,
            rows: t.rows,
            touched_rows: t.touched_rows,
            collisions: t.collisions.map(|c| CollisionStatus {
                distinct_ngrams: c.distinct_ngrams,
                ideal_rows: c.ideal_rows,
                excess_ratio: c.excess_ratio,
                ngrams_per_row: c.ngrams_per_row,
                shared_lookups_ratio: c.shared_lookups_ratio,
            }),
        });
        let fingerprint = s.fingerprint.map(|f| {
            let mark = present("RunFingerprint", "mark", f.mark)?;
            Ok(RunFingerprint { since: Step(f.since), mark: mark.into() })
        });
        Ok(RowsStatus {
            tables: tables.collect(),
            input: s.input.map(|i| InputStatus {
                since: Step(i.since),
                row_ids: i.row_ids,
                unique_rows: i.unique_rows,
            }),
            fingerprint: fingerprint.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polygram_domain::Generation;
    use polygram_domain::control::{Envelope, MemberReport};

    fn shard() -> ShardReport {
        ShardReport {
            version: Step(9),
            since: Step(2),
            record_bytes: 1536,
            tables: vec![
                TableRows { owned_rows: 10, touched_rows: 10 },
                TableRows { owned_rows: 7, touched_rows: 0 },
            ],
            declared_rows: 40,
            step_rows: 30,
            parked_lookups: 5,
            parked_seconds: 0.25,
            lane_skew_ratio: Some(0.125),
            marks: vec![Mark { version: Step(9), fingerprint: Fingerprint(u64::MAX) }],
            query_address: Some("127.0.0.1:9".parse().unwrap()),
            metrics_address: None,
        }
    }

    fn over_the_wire(report: MemberReport) -> Result<MemberReport, Malformed> {
        let member = polygram_domain::control::MemberId(1);
        let envelope = Envelope { member, generation: Generation(1), report };
        Envelope::try_from(wire::MemberReport::from(envelope)).map(|envelope| envelope.report)
    }

    #[test]
    fn counts_survive_the_wire() {
        let report = MemberReport::Shard(Box::new(shard()));
        assert_eq!(over_the_wire(report.clone()).unwrap(), report);
        let sketches = vec![vec![3; REGISTERS], vec![0; REGISTERS]];
        let input = InputReport { since: Step(0), step: Step(4), row_ids: 100, unique_rows: 60, sketches };
        let report = MemberReport::Input(Box::new(input));
        assert_eq!(over_the_wire(report.clone()).unwrap(), report);
        let rows = RowsStatus {
            tables: vec![TableStatus {
                name: "t".into(),
                order: 3,
                rows: 17,
                touched_rows: 5,
                collisions: Some(CollisionStatus {
                    distinct_ngrams: 6.0,
                    ideal_rows: 5.2,
                    excess_ratio: None,
                    ngrams_per_row: Some(1.25),
                    shared_lookups_ratio: None,
                }),
            }],
            input: Some(InputStatus { since: Step(0), row_ids: 8, unique_rows: 6 }),
            fingerprint: Some(RunFingerprint { since: Step(2), mark: shard().marks[0] }),
        };
        assert_eq!(RowsStatus::try_from(wire::RowsStatus::from(rows.clone())).unwrap(), rows);
        assert_eq!(
            (shard().owned_rows(), shard().touched_rows(), shard().overlap_ratio()),
            (17, 10, Some(0.25))
        );
        assert_eq!(rows.input.unwrap().unique_ratio(), Some(0.75));
    }

    #[test]
    fn impossible_counts_are_refused() {
        let mut more = shard();
        more.tables[0].touched_rows = 11;
        assert!(
            over_the_wire(MemberReport::Shard(Box::new(more))).unwrap_err().to_string().contains("11 of 10")
        );
        for sketches in [vec![vec![0; 5]], vec![vec![0; REGISTERS]; ORDERS + 1]] {
            let input = InputReport { sketches, ..InputReport::default() };
            assert!(over_the_wire(MemberReport::Input(Box::new(input))).is_err());
        }
        let unmarked = wire::RunFingerprint { since: 0, mark: None };
        let rows = wire::RowsStatus { fingerprint: Some(unmarked), ..Default::default() };
        assert!(RowsStatus::try_from(rows).is_err());
    }
}
