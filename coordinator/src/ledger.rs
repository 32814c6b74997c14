//! The recorder's hand on the ledger: lines in the order of steps, written in batches before what names them.

use std::collections::BTreeMap;

use polygram_checkpoint::{ChainHash, CheckpointError, ConfigHash, Entry, Heading, Manifest, RunStore};
use polygram_domain::spikes::{Memory, SpikeSpec};
use polygram_domain::{Step, StepOutcome};
use polygram_proto::control::StepMetrics;

/// Lines that may wait for a commit.
const MOST_WAITING: usize = 1024;

/// What a chain goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// A state version.
    pub(crate) step: Step,
    /// The hash of its line.
    pub(crate) head: ChainHash,
    /// That line is not in this run's ledger.
    pub(crate) is_imported: bool,
    /// What the run remembered there.
    pub(crate) memory: Memory,
}

impl Base {
    /// A checkpoint's.
    pub(crate) async fn of(store: &RunStore, manifest: &Manifest) -> Result<Base, CheckpointError> {
        let head = manifest.ledger.unwrap_or_else(ChainHash::genesis);
        let is_imported = manifest.ledger.is_none() || store.has_no_ledger().await?;
        Ok(Base { step: manifest.step, head, is_imported, memory: manifest.policy.memory.clone() })
    }

    /// The beginning of a run.
    pub(crate) fn genesis() -> Base {
        Base { step: Step(0), head: ChainHash::genesis(), is_imported: false, memory: Memory::default() }
    }
}

/// The ledger of one attempt.
#[derive(Debug)]
pub(crate) struct Ledger {
    attempt: u64,
    seq: u64,
    heading: Heading,
    /// Lines that are not in the store.
    waiting: Vec<Entry>,
    /// Hashes of lines from the newest commit on.
    heads: BTreeMap<Step, ChainHash>,
    spikes: SpikeSpec,
    /// What was remembered at the oldest of them.
    remembered: (Step, Memory),
    /// Lines behind that.
    since: BTreeMap<Step, Entry>,
}

impl Ledger {
    /// The ledger of `attempt`, continued from `base` with a configuration and its idea of spikes.
    pub(crate) fn new(attempt: u64, base: Base, (config, spikes): (ConfigHash, SpikeSpec)) -> Ledger {
        let heading = Heading { after: base.step, head: base.head, config, imported: base.is_imported };
        Ledger {
            attempt,
            seq: 0,
            heading,
            waiting: Vec::new(),
            heads: BTreeMap::from([(base.step, base.head)]),
            spikes,
            remembered: (base.step, base.memory),
            since: BTreeMap::new(),
        }
    }

    /// What is remembered at `step`, if it is not older than the newest commit: as workers remember it.
    pub(crate) fn memory(&self, step: Step) -> Option<Memory> {
        let (from, memory) = &self.remembered;
        if step < *from {
            return None;
        }
        let mut memory = memory.clone();
        for entry in self.since.range(..=step).map(|(_, entry)| entry) {
            match entry.outcome {
                StepOutcome::Applied => memory.applied(&self.spikes, (entry.loss, entry.norm)),
                _ => memory.skipped(&self.spikes, entry.step - 1),
            }
        }
        Some(memory)
    }

    /// Adds the line of the next step; the error is one sentence.
    pub(crate) fn add(&mut self, m: &StepMetrics) -> Result<(), String> {
        let (last, prev) = self.last();
        if m.step != last {
            return Err(format!("step {} was told where step {last} is the next of the ledger", m.step));
        }
        let entry = Entry {
            step: m.step.next().0,
            samples: [m.proof.first_sample, m.proof.samples],
            tokens: m.tokens,
            lr: Entry::bits(m.lr),
            loss: Entry::bits(m.loss),
            norm: Entry::bits(m.grad_norm),
            outcome: m.proof.outcome,
            rows: m.proof.rows.0,
            dense: m.proof.dense.0,
            prev,
        };
        self.heads.insert(m.step.next(), entry.hash());
        self.since.insert(m.step.next(), entry);
        self.waiting.push(entry);
        Ok(())
    }

    fn last(&self) -> (Step, ChainHash) {
        let last = self.heads.last_key_value().map(|(step, head)| (*step, *head));
        last.unwrap_or((self.heading.after, self.heading.head))
    }

    /// The hash of the line of `step`, if it is not older than the newest commit.
    pub(crate) fn head(&self, step: Step) -> Option<ChainHash> {
        self.heads.get(&step).copied()
    }

    /// Whether so many lines wait that they are to be written.
    pub(crate) fn is_long(&self) -> bool {
        self.waiting.len() >= MOST_WAITING
    }

    /// Goes on from an earlier step: later lines are void.
    pub(crate) fn go_back(&mut self, base: Base) {
        self.heads.split_off(&base.step.next());
        self.heads.insert(base.step, base.head);
        self.since.split_off(&base.step.next());
        if base.step < self.remembered.0 {
            self.remembered = (base.step, base.memory);
        }
        self.waiting.retain(|entry| entry.step <= base.step.0);
        if base.step < self.heading.after {
            let Base { step, head, is_imported, .. } = base;
            self.heading = Heading { after: step, head, imported: is_imported, ..self.heading.clone() };
        }
    }

    /// Writes what waits.
    pub(crate) async fn flush(&mut self, store: &RunStore) -> Result<(), CheckpointError> {
        let Some(newest) = self.waiting.last() else { return Ok(()) };
        let (after, head) = (Step(newest.step), newest.hash());
        store.append_ledger((self.attempt, self.seq), &self.heading, &self.waiting).await?;
        self.heading = Heading { after, head, imported: false, ..self.heading.clone() };
        self.seq += 1;
        self.waiting.clear();
        Ok(())
    }

    /// A commit names the line of `step`: earlier ones are not asked for again.
    pub(crate) fn committed(&mut self, step: Step) {
        if let Some(memory) = self.memory(step) {
            self.remembered = (step, memory);
        }
        self.since = self.since.split_off(&step.next());
        self.heads = self.heads.split_off(&step);
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunName;

    use super::*;

    fn metrics(step: u64, loss: f64) -> StepMetrics {
        StepMetrics { step: Step(step), loss, ..StepMetrics::default() }
    }

    fn store() -> RunStore {
        RunStore::create("memory://", &RunName::new("r").unwrap()).unwrap()
    }

    fn ledger(attempt: u64, base: Base) -> Ledger {
        Ledger::new(attempt, base, (ConfigHash::of("c"), SpikeSpec::off()))
    }

    async fn lines(store: &RunStore) -> Vec<(u64, f64)> {
        let (chain, faults) = store.read_ledger().await.unwrap();
        assert!(faults.0.is_empty(), "{faults:?}");
        chain.entries().map(|entry| (entry.step, f64::from_bits(entry.loss))).collect()
    }

    #[tokio::test]
    async fn steps_done_again_are_there_once() {
        let store = store();
        let mut first = ledger(1, Base::genesis());
        for step in 0..6 {
            first.add(&metrics(step, 1.0)).unwrap();
            if step == 3 {
                first.flush(&store).await.unwrap();
                first.committed(Step(4));
            }
        }
        // Back to the commit before the two waiting lines are written, and again when they are.
        let base = Base { step: Step(4), head: first.head(Step(4)).unwrap(), ..Base::genesis() };
        first.go_back(base.clone());
        assert!(first.add(&metrics(5, 2.0)).unwrap_err().contains("step 4"));
        first.add(&metrics(4, 2.0)).unwrap();
        first.flush(&store).await.unwrap();
        first.go_back(base.clone());
        first.add(&metrics(4, 3.0)).unwrap();
        first.flush(&store).await.unwrap();
        assert_eq!(lines(&store).await, [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 3.0)]);
        // Its successor begins from the commit; what the old one still writes counts no more.
        let mut second = ledger(2, base.clone());
        second.add(&metrics(4, 4.0)).unwrap();
        second.flush(&store).await.unwrap();
        first.add(&metrics(5, 3.0)).unwrap();
        first.flush(&store).await.unwrap();
        assert_eq!(lines(&store).await.last(), Some(&(5, 4.0)));
        // Back to the beginning.
        second.go_back(Base::genesis());
        second.add(&metrics(0, 5.0)).unwrap();
        second.flush(&store).await.unwrap();
        assert_eq!(lines(&store).await, [(1, 5.0)]);
    }

    #[tokio::test]
    async fn a_run_may_begin_from_anothers_checkpoint() {
        let store = store();
        let mut ledger = ledger(1, Base { step: Step(7), is_imported: true, ..Base::genesis() });
        ledger.add(&metrics(7, 1.0)).unwrap();
        ledger.flush(&store).await.unwrap();
        ledger.add(&metrics(8, 1.0)).unwrap();
        ledger.flush(&store).await.unwrap();
        assert_eq!(lines(&store).await, [(8, 1.0), (9, 1.0)]);
    }
}
