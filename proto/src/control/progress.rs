//! Where a member is: step and phase in one atomic, written by whoever works and read by the heartbeat; how much it has
//! read of the checkpoint that it restores; and why it waits for the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polygram_domain::Step;
use polygram_domain::control::Phase;
use tokio::sync::watch;

/// A shared cell of (step, phase). Both are read and written together; clones share the cell.
///
/// The phase lies in the low 8 bits and the step in the 56 above: a run of 2⁵⁶ steps is out of reach, and a larger
/// step is stored as the largest.
#[derive(Clone, Debug)]
pub struct Progress {
    place: Arc<AtomicU64>,
    restored_bytes: Arc<AtomicU64>,
    store_wait: watch::Sender<Option<String>>,
}

const PHASE_BITS: u32 = 8;
const STEP_MAX: u64 = u64::MAX >> PHASE_BITS;

impl Progress {
    /// A cell at `step` and `phase`.
    pub fn new(step: Step, phase: Phase) -> Progress {
        Progress {
            place: Arc::new(AtomicU64::new(pack(step, phase))),
            restored_bytes: Arc::default(),
            store_wait: watch::Sender::new(None),
        }
    }

    /// Moves to `step` and `phase`.
    pub fn set(&self, step: Step, phase: Phase) {
        self.place.store(pack(step, phase), Ordering::Relaxed);
    }

    /// Moves to `phase` within the same step.
    pub fn phase(&self, phase: Phase) {
        // A failed exchange only means that another thread moved the step meanwhile; the closure is tried again.
        let _previous = self.place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            Some(word >> PHASE_BITS << PHASE_BITS | phase as u64)
        });
    }

    /// Counts bytes that were read of the checkpoint that is restored; a store adds to it.
    pub fn restored_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.restored_bytes)
    }

    /// Why the member waits for the store, one sentence; a store tells it, and that it waits no more.
    pub fn store_wait(&self) -> &watch::Sender<Option<String>> {
        &self.store_wait
    }

    /// The step (updates applied so far) and the phase.
    pub fn get(&self) -> (Step, Phase) {
        let word = self.place.load(Ordering::Relaxed);
        let phase = Phase::ALL[(word & 0xff) as usize];
        (Step(word >> PHASE_BITS), phase)
    }
}

fn pack(step: Step, phase: Phase) -> u64 {
    step.0.min(STEP_MAX) << PHASE_BITS | phase as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_and_phase_travel_together() {
        let cell = Progress::new(Step(0), Phase::Starting);
        assert_eq!(cell.get(), (Step(0), Phase::Starting));
        let other = cell.clone();
        for (i, &phase) in Phase::ALL.iter().enumerate() {
            other.set(Step(i as u64 * 1_000_003), phase);
            assert_eq!(cell.get(), (Step(i as u64 * 1_000_003), phase));
        }
        cell.set(Step(7), Phase::Computing);
        cell.phase(Phase::Reducing);
        assert_eq!(other.get(), (Step(7), Phase::Reducing));
        cell.set(Step(u64::MAX), Phase::Leaving);
        assert_eq!(cell.get(), (Step(STEP_MAX), Phase::Leaving));
        other.restored_bytes().fetch_add(7, Ordering::Relaxed);
        assert_eq!(cell.restored_bytes().load(Ordering::Relaxed), 7);
    }
}
