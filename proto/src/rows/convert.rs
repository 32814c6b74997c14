//! Between the generated types and ours. What comes in is checked here, once.

use polygram_domain::{Generation, RowId, ShardIndex, Step, TableIndex};

use crate::control::Malformed;
use crate::rows::types::{
    Description, Distribution, HotRow, Looked, Lookup, OwnedTable, Stats, TableFingerprint, TableStats,
};
use crate::rows::{ROWS_LIMIT, wire};

fn malformed(message: &'static str, what: String) -> Malformed {
    Malformed { message, what }
}

impl From<Lookup> for wire::LookupRequest {
    fn from(lookup: Lookup) -> wire::LookupRequest {
        wire::LookupRequest { table: lookup.table.0, rows: lookup.rows }
    }
}

impl TryFrom<wire::LookupRequest> for Lookup {
    type Error = Malformed;

    fn try_from(request: wire::LookupRequest) -> Result<Lookup, Malformed> {
        if request.rows.len() > ROWS_LIMIT {
            let what = format!("{} rows in one call; ask for at most {ROWS_LIMIT}", request.rows.len());
            return Err(malformed("LookupRequest", what));
        }
        Ok(Lookup { table: TableIndex(request.table), rows: request.rows })
    }
}

impl From<Looked> for wire::LookupReply {
    fn from(looked: Looked) -> wire::LookupReply {
        wire::LookupReply { version: looked.version.0, values: looked.values_rw }
    }
}

impl From<wire::LookupReply> for Looked {
    fn from(reply: wire::LookupReply) -> Looked {
        Looked { version: Step(reply.version), values_rw: reply.values }
    }
}

impl From<Description> for wire::DescribeReply {
    fn from(d: Description) -> wire::DescribeReply {
        let tables = d.tables.into_iter().map(|t| wire::Table {
            table: t.table.0,
            name: t.name,
            order: t.order,
            rows: t.rows,
            width: t.width,
            first_row: t.owned.start,
            end_row: t.owned.end,
        });
        wire::DescribeReply {
            run: d.run,
            generation: d.generation.0,
            shard: d.shard.0,
            shards: d.shards,
            version: d.version.0,
            optimizer: d.optimizer,
            storage: d.storage,
            lanes: d.lanes,
            record_bytes: d.record_bytes,
            tables: tables.collect(),
        }
    }
}

impl TryFrom<wire::DescribeReply> for Description {
    type Error = Malformed;

    fn try_from(d: wire::DescribeReply) -> Result<Description, Malformed> {
        let tables = d.tables.into_iter().map(|t| {
            if t.first_row > t.end_row || t.end_row > t.rows {
                let what = format!("rows {}..{} of {} in table {}", t.first_row, t.end_row, t.rows, t.table);
                return Err(malformed("DescribeReply", what));
            }
            Ok(OwnedTable {
                table: TableIndex(t.table),
                name: t.name,
                order: t.order,
                rows: t.rows,
                width: t.width,
                owned: t.first_row..t.end_row,
            })
        });
        Ok(Description {
            run: d.run,
            generation: Generation(d.generation),
            shard: ShardIndex(d.shard),
            shards: d.shards,
            version: Step(d.version),
            optimizer: d.optimizer,
            storage: d.storage,
            lanes: d.lanes,
            record_bytes: d.record_bytes,
            tables: tables.collect::<Result<_, _>>()?,
        })
    }
}

impl From<Distribution> for wire::Distribution {
    fn from(d: Distribution) -> wire::Distribution {
        let (mut bounds, counts): (Vec<f64>, Vec<u64>) = d.buckets.into_iter().unzip();
        bounds.pop();
        wire::Distribution { sum: d.sum, bounds, counts }
    }
}

impl TryFrom<wire::Distribution> for Distribution {
    type Error = Malformed;

    fn try_from(d: wire::Distribution) -> Result<Distribution, Malformed> {
        let rises = d.bounds.is_sorted_by(|a, b| a < b) && d.bounds.iter().all(|bound| bound.is_finite());
        if !rises || d.counts.len() != d.bounds.len() + 1 {
            let what = format!("{} bounds for {} counts, or not rising", d.bounds.len(), d.counts.len());
            return Err(malformed("Distribution", what));
        }
        let bounds = d.bounds.into_iter().chain([f64::INFINITY]);
        Ok(Distribution { sum: d.sum, buckets: bounds.zip(d.counts).collect() })
    }
}

impl From<Stats> for wire::StatsReply {
    fn from(s: Stats) -> wire::StatsReply {
        let tables = s.tables.into_iter().map(|t| wire::TableStats {
            table: t.table.0,
            owned_rows: t.owned_rows,
            touched_rows: t.touched_rows,
            updates: t.updates,
            fingerprint: t.fingerprint.map(|f| wire::Fingerprint { step: f.step, chain: f.chain }),
        });
        let hot = s.hot_rows.into_iter();
        wire::StatsReply {
            version: s.version.0,
            since: s.since.0,
            record_bytes: s.record_bytes,
            tables: tables.collect(),
            declared_rows: s.declared_rows,
            step_rows: s.step_rows,
            row_norms: Some(s.row_norms.into()),
            park_seconds: Some(s.park_seconds.into()),
            hot_rows: hot
                .map(|h| wire::HotRow { table: h.table.0, row: h.row.0, updates: h.updates })
                .collect(),
            lane_busy_seconds: s.lane_busy_seconds,
        }
    }
}

impl TryFrom<wire::StatsReply> for Stats {
    type Error = Malformed;

    fn try_from(s: wire::StatsReply) -> Result<Stats, Malformed> {
        let tables = s.tables.into_iter().map(|t| TableStats {
            table: TableIndex(t.table),
            owned_rows: t.owned_rows,
            touched_rows: t.touched_rows,
            updates: t.updates,
            fingerprint: t.fingerprint.map(|f| TableFingerprint { step: f.step, chain: f.chain }),
        });
        let distribution = |field: &str, value: Option<wire::Distribution>| {
            value.ok_or_else(|| malformed("StatsReply", format!("{field} is missing")))?.try_into()
        };
        let hot = s.hot_rows.into_iter();
        Ok(Stats {
            version: Step(s.version),
            since: Step(s.since),
            record_bytes: s.record_bytes,
            tables: tables.collect(),
            declared_rows: s.declared_rows,
            step_rows: s.step_rows,
            row_norms: distribution("row_norms", s.row_norms)?,
            park_seconds: distribution("park_seconds", s.park_seconds)?,
            hot_rows: hot
                .map(|h| HotRow { table: TableIndex(h.table), row: RowId(h.row), updates: h.updates })
                .collect(),
            lane_busy_seconds: s.lane_busy_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        let fingerprint = Some(TableFingerprint { step: u64::MAX, chain: 3 });
        let table =
            TableStats { table: TableIndex(1), owned_rows: 9, touched_rows: 4, updates: 12, fingerprint };
        Stats {
            version: Step(5),
            since: Step(1),
            record_bytes: 128,
            tables: vec![TableStats { table: TableIndex(0), fingerprint: None, ..table }, table],
            declared_rows: 20,
            step_rows: 15,
            row_norms: Distribution { sum: 2.5, buckets: vec![(1.0, 3), (f64::INFINITY, 1)] },
            park_seconds: Distribution { sum: 0.0, buckets: vec![(f64::INFINITY, 0)] },
            hot_rows: vec![HotRow { table: TableIndex(1), row: RowId(7), updates: 3 }],
            lane_busy_seconds: vec![0.5, 0.25],
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        assert_eq!(Stats::try_from(wire::StatsReply::from(stats())).unwrap(), stats());
        let description = Description {
            run: "demo".into(),
            generation: Generation(2),
            shard: ShardIndex(1),
            shards: 2,
            version: Step(9),
            optimizer: "adam".into(),
            storage: "bf16".into(),
            lanes: 3,
            record_bytes: 1536,
            tables: vec![OwnedTable {
                table: TableIndex(0),
                name: "t".into(),
                order: 2,
                rows: 100,
                width: 8,
                owned: 50..100,
            }],
        };
        let back = Description::try_from(wire::DescribeReply::from(description.clone())).unwrap();
        assert_eq!(back, description);
        let looked = Looked { version: Step(3), values_rw: vec![1.0, -0.0, f32::INFINITY] };
        assert_eq!(Looked::from(wire::LookupReply::from(looked.clone())), looked);
        let lookup = Lookup { table: TableIndex(4), rows: vec![3, 1, 3] };
        assert_eq!(Lookup::try_from(wire::LookupRequest::from(lookup.clone())).unwrap(), lookup);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let many = wire::LookupRequest { table: 0, rows: vec![0; ROWS_LIMIT + 1] };
        assert!(Lookup::try_from(many).unwrap_err().to_string().contains("at most 4096"));
        let table = wire::Table { rows: 10, first_row: 4, end_row: 11, ..Default::default() };
        let reply = wire::DescribeReply { tables: vec![table], ..Default::default() };
        assert!(Description::try_from(reply).unwrap_err().to_string().contains("rows 4..11 of 10"));
        let mut short = wire::StatsReply::from(stats());
        short.row_norms = None;
        assert!(Stats::try_from(short).unwrap_err().to_string().contains("row_norms is missing"));
        for (bounds, counts) in
            [(vec![1.0], vec![1]), (vec![2.0, 1.0], vec![0; 3]), (vec![f64::NAN], vec![0; 2])]
        {
            assert!(Distribution::try_from(wire::Distribution { sum: 0.0, bounds, counts }).is_err());
        }
    }
}
