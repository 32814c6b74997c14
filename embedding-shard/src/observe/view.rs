//! The shard as the sum of its lanes, put together when somebody asks.

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::control::{Mark, common_marks};
use polygram_domain::{Step, TableIndex};
use polygram_proto::rows::HotRow;
use tokio::sync::watch;

use crate::config::{ShardConfig, rows_of_buckets};
use crate::observe::fingerprint::Fingerprint;
use crate::observe::histogram::LogHistogram;
use crate::observe::hot::HotRows;
use crate::observe::lane_stats::LaneStats;

/// One table's part on the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// Which.
    pub table: TableIndex,
    /// Rows of it that the shard owns.
    pub owned_rows: u64,
    /// Of which written.
    pub touched_rows: u64,
    /// Row updates since the process began.
    pub updates: u64,
    /// At the shard's version; `None` while its lanes are not at one version.
    pub fingerprint: Option<Fingerprint>,
}

/// A shard at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardStats {
    /// Updates in its rows: those of the lane that is furthest behind.
    pub version: Step,
    /// The version at which counting and fingerprints began.
    pub since: Step,
    /// Bytes of one written row's record.
    pub record_bytes: u64,
    /// Its tables, in order.
    pub tables: Vec<TableStats>,
    /// Rows declared by cells, counted once a cell.
    pub declared_rows: u64,
    /// Rows declared by steps, counted once a step.
    pub step_rows: u64,
    /// Rows that changed since all were last written to a recovery point; 0 where changes are not counted.
    pub changed_rows: u64,
    /// Norms of rows after an update, one row in eight.
    pub norms: LogHistogram,
    /// Seconds that lookups were held back.
    pub park: LogHistogram,
    /// Rows updated most often, most updates first.
    pub hot: Vec<HotRow>,
    /// Time that each lane worked.
    pub lane_busy: Vec<Duration>,
    /// Fingerprints of all tables at versions that all lanes have reached, newest first.
    pub marks: Vec<Mark>,
}

impl ShardStats {
    /// Written rows of all tables.
    pub fn touched_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.touched_rows).sum()
    }

    /// Owned rows of all tables.
    pub fn owned_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.owned_rows).sum()
    }

    /// Share of declarations that another cell of the step had made already; `None` before the first.
    pub fn overlap_ratio(&self) -> Option<f64> {
        let declared = self.declared_rows as f64;
        (self.declared_rows > 0).then(|| 1.0 - self.step_rows as f64 / declared)
    }

    /// One minus the mean lane's work over the busiest lane's; `None` before any work.
    pub fn lane_skew_ratio(&self) -> Option<f64> {
        let seconds = || self.lane_busy.iter().map(Duration::as_secs_f64);
        let busiest = seconds().fold(0.0, f64::max);
        (busiest > 0.0).then(|| 1.0 - seconds().sum::<f64>() / self.lane_busy.len() as f64 / busiest)
    }
}

/// The readers' side of a shard's counters. Clones see the same lanes.
#[derive(Clone, Debug)]
pub struct ShardView {
    config: Arc<ShardConfig>,
    lanes: Vec<watch::Receiver<LaneStats>>,
}

impl ShardView {
    /// The view of a shard whose lanes publish to `lanes`.
    pub fn new(config: Arc<ShardConfig>, lanes: Vec<watch::Receiver<LaneStats>>) -> ShardView {
        ShardView { config, lanes }
    }

    /// The shard's place in the run.
    pub fn config(&self) -> &Arc<ShardConfig> {
        &self.config
    }

    /// The shard now.
    pub fn stats(&self) -> ShardStats {
        let lanes: Vec<LaneStats> = self.lanes.iter().map(|lane| lane.borrow().clone()).collect();
        let version = lanes.iter().map(|lane| lane.version).min().unwrap_or_default();
        let agree = lanes.iter().all(|lane| lane.version == version);
        let buckets = self.config.buckets();
        let tables = self.config.tables.iter().map(|spec| {
            let counts = || lanes.iter().filter_map(|lane| lane.tables.get(spec.index.index()));
            TableStats {
                table: spec.index,
                owned_rows: rows_of_buckets(spec, &buckets).len() as u64,
                touched_rows: counts().map(|table| table.touched_rows).sum(),
                updates: counts().map(|table| table.updates).sum(),
                fingerprint: agree.then(|| {
                    counts().map(|table| table.fingerprint).fold(Fingerprint::default(), Fingerprint::and)
                }),
            }
        });
        let sum = |of: fn(&LaneStats) -> &LogHistogram| {
            lanes.iter().fold(LogHistogram::default(), |mut all, lane| {
                all.merge(of(lane));
                all
            })
        };
        let marks: Vec<Vec<Mark>> = lanes.iter().map(|lane| lane.marks.list()).collect();
        ShardStats {
            version,
            since: lanes.iter().map(|lane| lane.since).max().unwrap_or_default(),
            record_bytes: self.config.record_bytes(),
            tables: tables.collect(),
            declared_rows: lanes.iter().map(|lane| lane.declared_rows).sum(),
            step_rows: lanes.iter().map(|lane| lane.step_rows).sum(),
            changed_rows: lanes.iter().map(|lane| lane.changed_rows).sum(),
            norms: sum(|lane| &lane.norms),
            park: sum(|lane| &lane.park),
            hot: HotRows::merged(lanes.iter().map(|lane| &lane.hot)),
            lane_busy: lanes.iter().map(|lane| lane.busy).collect(),
            marks: common_marks(marks.iter().map(Vec::as_slice)),
        }
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Generation;
    use polygram_domain::{RowId, RunFile, ShardIndex, Topology};

    use super::*;
    use crate::observe::lane_stats::{LaneObserver, StepTotals, UpdatedRow};

    fn config(shards: u32) -> Arc<ShardConfig> {
        let text = include_str!("../../../configs/tiny.toml");
        let spec = RunFile::parse(text, "tiny.toml", &[]).unwrap().resolve().unwrap();
        let mut config = ShardConfig::of(&spec, ShardIndex(0), Generation(1));
        config.topology = Topology { shards, ..config.topology };
        Arc::new(config)
    }

    /// One step of eight rows of two tables, dealt to `count` lanes, seen as a shard.
    fn shard(count: usize, steps: u64) -> (ShardStats, ShardView, Vec<LaneObserver>) {
        let config = config(1);
        let tables = config.tables.len();
        let (mut lanes, inlets): (Vec<_>, Vec<_>) = (0..count).map(|_| LaneObserver::new(tables)).unzip();
        let view = ShardView::new(config, inlets);
        for step in 0..steps {
            for row in 0..8u32 {
                let lane = &mut lanes[row as usize % count];
                for table in 0..2 {
                    let updates = step as u32 + 1;
                    let row = UpdatedRow { table: TableIndex(table), row: RowId(row), updates };
                    lane.updated(row, &updates.to_le_bytes());
                }
                lane.row_norm(0.5);
                lane.released(Duration::from_millis(3));
            }
            for (number, lane) in lanes.iter_mut().enumerate() {
                let busy = Duration::from_millis(10 * (number as u64 + 1));
                let totals = StepTotals {
                    version: Step(step + 1),
                    declared_rows: 24 / count as u64,
                    step_rows: 8 / count as u64,
                    changed_rows: 16 / count as u64,
                    busy,
                };
                lane.closed_step(totals);
            }
        }
        (view.stats(), view, lanes)
    }

    #[test]
    fn lanes_add_up_to_the_shard() {
        let (one, ..) = shard(1, 3);
        let (four, ..) = shard(4, 3);
        assert_eq!(one.version, Step(3));
        assert_eq!((one.touched_rows(), one.tables[0].updates, one.tables[0].touched_rows), (16, 24, 8));
        assert_eq!(one.changed_rows, 16);
        assert!(one.owned_rows() > 1000);
        assert!((one.overlap_ratio().unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(one.lane_skew_ratio(), Some(0.0));
        // Work of 10, 20, 30 and 40 ms: the mean is 5/8 of the largest.
        assert!((four.lane_skew_ratio().unwrap() - 0.375).abs() < 1e-12);
        assert_eq!((four.norms.count(), four.park.count()), (24, 24));
        assert_eq!(four.hot.len(), 16);
        assert!(four.hot.iter().all(|row| row.updates == 3));
        // Nothing else depends on the number of lanes.
        let (lane_busy, park) = (one.lane_busy.clone(), one.park.clone());
        assert_eq!(ShardStats { lane_busy, park, ..four }, one);
        assert_ne!(one.tables[0].fingerprint, one.tables[1].fingerprint);
        assert_eq!(one.marks.len(), 2, "versions 3 and 2: {:?}", one.marks);
    }

    #[test]
    fn between_two_versions_the_older_one_is_told() {
        let (at_five, view, mut lanes) = shard(2, 5);
        let totals = StepTotals {
            version: Step(6),
            declared_rows: 0,
            step_rows: 0,
            changed_rows: 0,
            busy: Duration::ZERO,
        };
        lanes[0].closed_step(totals);
        let between = view.stats();
        assert_eq!(between.version, Step(5));
        assert!(between.tables.iter().all(|table| table.fingerprint.is_none()));
        assert_eq!(between.marks, at_five.marks[1..], "version 4 is common to both");
        lanes[1].closed_step(totals);
        let after = view.stats();
        assert_eq!(after.version, Step(6));
        assert_eq!(after.tables[0].fingerprint.map(|f| f.step), Some(0), "nothing was updated in step 5");
        assert_ne!(after.marks[0].fingerprint, at_five.marks[0].fingerprint);
    }

    #[test]
    fn restored_rows_count_as_touched() {
        let (_, view, mut lanes) = shard(2, 1);
        let tables = view.config().tables.len();
        lanes.iter_mut().for_each(|lane| lane.begin(Step(40), &vec![7; tables]));
        let stats = view.stats();
        assert_eq!((stats.version, stats.since), (Step(40), Step(40)));
        assert_eq!(stats.touched_rows(), 14 * tables as u64);
        assert_eq!((stats.declared_rows, stats.norms.count(), stats.marks.len()), (0, 0, 0));
        assert_eq!(stats.tables[0].fingerprint, Some(Fingerprint::default()));
    }

    #[test]
    fn a_shard_at_rest_has_nothing_to_divide() {
        let (stats, ..) = shard(2, 0);
        assert_eq!((stats.overlap_ratio(), stats.lane_skew_ratio()), (None, None));
        assert_eq!((stats.version, stats.touched_rows()), (Step(0), 0));
        assert!(stats.marks.is_empty() && stats.hot.is_empty());
    }
}
