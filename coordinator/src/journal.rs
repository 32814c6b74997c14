//! What an attempt has to record, and when it is written: metrics, the story of losses, and the ledger.
//!
//! The pause between writes grows from one second to ten, so that a run of any speed makes few objects. Whoever needs
//! newer metrics asks the coordinator.

use std::time::Duration;

use polygram_checkpoint::{AttemptRecord, CheckpointError, MetricsLine, RecoveryLine, RunStore};
use polygram_faults::{Point, pass};
use tokio::time::Instant;

use crate::ledger::Ledger;
use crate::segment::OpenSegment;

/// The first pause between writes, and the longest that what just happened to the run waits.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Lines that memory holds for a store that takes none, of metrics and of the ledger each: about 120 MB in all.
const MOST_WAITING: usize = 1 << 18;

/// What is recorded, and not written yet.
pub(crate) struct Journal {
    begins: AttemptRecord,
    metrics: OpenSegment<MetricsLine>,
    story: OpenSegment<RecoveryLine>,
    pub(crate) ledger: Ledger,
    pub(crate) pace: Pace,
    pub(crate) trouble: Trouble,
}

impl Journal {
    pub(crate) fn new(begins: AttemptRecord, ledger: Ledger) -> Journal {
        let (metrics, story) = (OpenSegment::default(), OpenSegment::default());
        let (pace, trouble) = (Pace::new(Instant::now()), Trouble::default());
        Journal { begins, metrics, story, ledger, pace, trouble }
    }

    /// Records a line of metrics.
    pub(crate) fn measure(&mut self, line: MetricsLine) {
        if self.metrics.is_untouched() {
            self.metrics.push(MetricsLine::Attempt(self.begins.clone()));
        }
        self.metrics.push(line);
    }

    /// Records a line of the story, which is written soon.
    pub(crate) fn tell(&mut self, line: RecoveryLine) {
        self.story.push(line);
        self.pace.hurry(Instant::now());
    }

    /// Lines of metrics that are not in the store.
    pub(crate) fn waiting_metrics(&self) -> &[MetricsLine] {
        self.metrics.waiting()
    }

    /// Whether memory should hold no more lines.
    pub(crate) fn is_full(&self) -> bool {
        self.metrics.waiting().len().max(self.ledger.waiting()) >= MOST_WAITING
    }

    /// Writes metrics and the story, and the ledger where much of it waits.
    pub(crate) async fn write(&mut self, store: &RunStore) -> Result<(), CheckpointError> {
        let Journal { begins: AttemptRecord { attempt, .. }, metrics, story, ledger, .. } = self;
        let write_metrics = metrics.write(async |id, lines| {
            pass(Point::CoordinatorBeforeFlush);
            let key = store.append_metrics(*attempt, id, lines).await;
            pass(Point::CoordinatorAfterFlush);
            key
        });
        let write_story = story.write(async |id, lines| store.append_recovery(*attempt, id, lines).await);
        tokio::try_join!(write_metrics, write_story)?;
        if metrics.is_long() {
            metrics.close();
        }
        if story.is_long() {
            story.close();
        }
        if ledger.is_long() {
            ledger.flush(store).await?;
        }
        Ok(())
    }

    /// Deletes what was replaced in the store.
    pub(crate) async fn tidy(&mut self, store: &RunStore) {
        let Journal { metrics, story, ledger, .. } = self;
        tokio::join!(metrics.tidy(store), story.tidy(store), ledger.tidy(store));
    }
}

/// When the next write is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pause: Duration,
    due: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { pause: FIRST_PAUSE / 2, due: now }
    }

    /// The moment of the next write.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// A write was made, or tried.
    pub(crate) fn written(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.due = now + self.pause;
    }

    /// Something happened that should not wait for long.
    fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now + FIRST_PAUSE);
    }
}

/// Whether the store takes records.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
}

impl Trouble {
    pub(crate) fn goes_on(&mut self, error: &CheckpointError) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(
                %error,
                "the store takes no records: metrics and status lag; the run goes on, and they are tried again"
            );
        }
    }

    pub(crate) fn ended(&mut self) {
        if let Some(since) = self.since.take() {
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
        let mut pace = Pace::new(start);
        let mut writes = Vec::new();
        while pace.due() < start + Duration::from_secs(60) {
            let now = pace.due();
            writes.push((now - start).as_secs());
            pace.written(now);
        }
        assert_eq!(writes, [0, 1, 3, 7, 15, 25, 35, 45, 55]);
        pace.hurry(start + Duration::from_secs(60));
        assert_eq!(pace.due(), start + Duration::from_secs(61));
        pace.hurry(start + Duration::from_secs(70));
        assert_eq!(pace.due(), start + Duration::from_secs(61), "never later");
    }
}
