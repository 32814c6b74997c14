//! Records of an attempt that wait for the store (metrics, losses, the ledger), and the times at which they are written.
//!
//! The pause between writes grows from one second to ten, so that a run of any speed makes few objects. Newer metrics
//! are served by the coordinator.

use std::time::Duration;

use polygram_checkpoint::{
    AttemptRecord, CheckpointError, FailureLine, MetricsLine, RunStore, StoreProblem, Wait, Waits,
};
use polygram_faults::{Point, pass};
use tokio::time::Instant;

use crate::ledger::Ledger;
use crate::segment_buffer::SegmentBuffer;

/// The first pause between writes; a line about a loss waits no longer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Lines held in memory while the store takes none, of metrics and of the ledger each: about 120 MB in all.
const MOST_WAITING: usize = 1 << 18;

/// Records that wait.
pub(crate) struct PendingRecords {
    begins: AttemptRecord,
    metrics: SegmentBuffer<MetricsLine>,
    failures: SegmentBuffer<FailureLine>,
    pub(crate) ledger: Ledger,
    pub(crate) schedule: FlushSchedule,
    pub(crate) outage: StoreOutage,
}

impl PendingRecords {
    pub(crate) fn new(begins: AttemptRecord, ledger: Ledger) -> PendingRecords {
        let (metrics, failures) = (SegmentBuffer::default(), SegmentBuffer::default());
        let (schedule, outage) = (FlushSchedule::new(Instant::now()), StoreOutage::default());
        PendingRecords { begins, metrics, failures, ledger, schedule, outage }
    }

    /// Records a line of metrics.
    pub(crate) fn push_metrics(&mut self, line: MetricsLine) {
        if self.metrics.is_untouched() {
            self.metrics.push(MetricsLine::Attempt(self.begins.clone()));
        }
        self.metrics.push(line);
    }

    /// Records a line about losses, which is written soon.
    pub(crate) fn push_failure_line(&mut self, line: FailureLine) {
        self.failures.push(line);
        self.schedule.expedite(Instant::now());
    }

    /// Lines of metrics that are not in the store.
    pub(crate) fn waiting_metrics(&self) -> &[MetricsLine] {
        self.metrics.waiting()
    }

    /// Whether memory should hold no more lines.
    pub(crate) fn is_full(&self) -> bool {
        self.metrics.waiting().len().max(self.ledger.waiting()) >= MOST_WAITING
    }

    /// Writes metrics and losses, and the ledger if many of its lines wait.
    pub(crate) async fn write(&mut self, store: &RunStore) -> Result<(), CheckpointError> {
        let PendingRecords { begins: AttemptRecord { attempt, .. }, metrics, failures, ledger, .. } = self;
        let write_metrics = metrics.write(async |id, lines| {
            pass(Point::CoordinatorBeforeFlush);
            let key = store.append_metrics(*attempt, id, lines).await;
            pass(Point::CoordinatorAfterFlush);
            key
        });
        let write_failures =
            failures.write(async |id, lines| store.append_failure_log(*attempt, id, lines).await);
        tokio::try_join!(write_metrics, write_failures)?;
        if metrics.is_long() {
            metrics.close();
        }
        if failures.is_long() {
            failures.close();
        }
        if ledger.is_long() {
            ledger.flush(store).await?;
        }
        Ok(())
    }

    /// Deletes what was replaced in the store.
    pub(crate) async fn delete_replaced(&mut self, store: &RunStore) {
        let PendingRecords { metrics, failures, ledger, .. } = self;
        tokio::join!(
            metrics.delete_replaced(store),
            failures.delete_replaced(store),
            ledger.delete_replaced(store)
        );
    }
}

/// When the next write is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlushSchedule {
    pause: Duration,
    due: Instant,
}

impl FlushSchedule {
    fn new(now: Instant) -> FlushSchedule {
        FlushSchedule { pause: FIRST_PAUSE / 2, due: now }
    }

    /// The moment of the next write.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// A write was made, or tried.
    pub(crate) fn flushed(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.due = now + self.pause;
    }

    /// The next write is soon.
    fn expedite(&mut self, now: Instant) {
        self.due = self.due.min(now + FIRST_PAUSE);
    }
}

/// Whether the store takes records.
#[derive(Debug, Default)]
pub(crate) struct StoreOutage {
    /// Since when it takes none, and what is told of it meanwhile.
    lasting: Option<(Instant, Option<Wait>)>,
}

impl StoreOutage {
    pub(crate) fn report_once(&mut self, error: &CheckpointError, waits: Option<&Waits>) {
        if self.lasting.is_none() {
            let headline = error.store_problem().unwrap_or(StoreProblem::Other).headline();
            let sentence = format!("{headline}: metrics and status lag, and the run goes on: {error}");
            self.lasting = Some((Instant::now(), waits.map(|waits| waits.begin(sentence))));
            tracing::warn!(
                %error,
                "the store takes no records: metrics and status lag; the run goes on, and they are tried again"
            );
        }
    }

    pub(crate) fn clear(&mut self) {
        if let Some((since, _)) = self.lasting.take() {
            tracing::info!(seconds = since.elapsed().as_secs(), "the store takes records again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_a_minute_are_few() {
        let start = Instant::now();
        let mut schedule = FlushSchedule::new(start);
        let mut writes = Vec::new();
        while schedule.due() < start + Duration::from_secs(60) {
            let now = schedule.due();
            writes.push((now - start).as_secs());
            schedule.flushed(now);
        }
        assert_eq!(writes, [0, 1, 3, 7, 15, 25, 35, 45, 55]);
        schedule.expedite(start + Duration::from_secs(60));
        assert_eq!(schedule.due(), start + Duration::from_secs(61));
        schedule.expedite(start + Duration::from_secs(70));
        assert_eq!(schedule.due(), start + Duration::from_secs(61), "never later");
    }
}
