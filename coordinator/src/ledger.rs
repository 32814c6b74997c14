//! The recorder's hand on the ledger: lines in the order of steps, written in segments before what names them.
//!
//! Memory holds the lines that are not written yet, and the newest [`MOST_KEPT`] others: enough for whoever names a line
//! some steps later. What is older is read from the store again in the rare case that it is asked for.

use std::collections::BTreeMap;

use polygram_checkpoint::{ChainHash, CheckpointError, ConfigHash, Entry, Heading, Manifest, RunStore};
use polygram_domain::control::StepMetrics;
use polygram_domain::spikes::{Memory, SpikeSpec};
use polygram_domain::{Step, StepOutcome};

use crate::segment_buffer::SegmentBuffer;

/// More lines do not wait for a commit.
const MANY_WAITING: usize = 16 * 1024;
/// Lines that stay in memory although they are written.
const MOST_KEPT: usize = 4096;

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

/// A line as those name it who go on from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The state version that its step made.
    pub(crate) step: Step,
    /// Its hash.
    pub(crate) head: ChainHash,
    /// What the run remembers there, as workers remember it.
    pub(crate) memory: Memory,
}

impl Named {
    /// Takes the next line.
    fn take(&mut self, spikes: &SpikeSpec, entry: &Entry, head: ChainHash) {
        match entry.outcome {
            StepOutcome::Applied => self.memory.applied(spikes, (entry.loss, entry.norm)),
            _ => self.memory.skipped(spikes, entry.step - 1),
        }
        (self.step, self.head) = (Step(entry.step), head);
    }
}

/// A segment of the ledger that has lines since the newest commit.
#[derive(Clone, Debug)]
struct Written {
    seq: u64,
    key: String,
    /// Its newest line that counts.
    last: Step,
}

/// The ledger of one attempt.
#[derive(Debug)]
pub(crate) struct Ledger {
    attempt: u64,
    /// Of the open segment.
    heading: Heading,
    open: SegmentBuffer<Entry>,
    spikes: SpikeSpec,
    /// What the newest commit named, or the ledger goes on from.
    anchor: Named,
    /// Lines since the newest commit are in these, and in memory.
    written: Vec<Written>,
    /// The line before those in memory; never before the anchor.
    before: Named,
    /// Lines in memory, with their hashes.
    recent: BTreeMap<Step, (Entry, ChainHash)>,
    most_kept: usize,
}

impl Ledger {
    /// The ledger of `attempt`, continued from `base` with a configuration and its idea of spikes.
    pub(crate) fn new(attempt: u64, base: Base, (config, spikes): (ConfigHash, SpikeSpec)) -> Ledger {
        let Base { step, head, is_imported, memory } = base;
        let anchor = Named { step, head, memory };
        Ledger {
            attempt,
            heading: Heading { after: step, head, config, imported: is_imported },
            open: SegmentBuffer::default(),
            spikes,
            before: anchor.clone(),
            anchor,
            written: Vec::new(),
            recent: BTreeMap::new(),
            most_kept: MOST_KEPT,
        }
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
        self.recent.insert(m.step.next(), (entry, entry.hash()));
        self.open.push(entry);
        self.forget();
        Ok(())
    }

    /// Lets go of the oldest lines in memory that are in the store.
    fn forget(&mut self) {
        let stored = self.stored();
        while self.recent.len() > self.most_kept
            && let Some(oldest) = self.recent.first_entry()
            && *oldest.key() <= stored
        {
            let (entry, head) = oldest.remove();
            self.before.take(&self.spikes, &entry, head);
        }
    }

    /// The state version of the newest line in the store.
    fn stored(&self) -> Step {
        self.open.stored().last().map_or(self.heading.after, |entry| Step(entry.step))
    }

    fn last(&self) -> (Step, ChainHash) {
        let last = self.recent.last_key_value().map(|(step, (_, head))| (*step, *head));
        last.unwrap_or((self.before.step, self.before.head))
    }

    /// The line of `step`, if it is in memory.
    pub(crate) fn at(&self, step: Step) -> Option<Named> {
        if step == self.anchor.step {
            return Some(self.anchor.clone());
        }
        if step != self.before.step && !self.recent.contains_key(&step) {
            return None;
        }
        let mut named = self.before.clone();
        for (entry, head) in self.recent.range(..=step).map(|(_, line)| line) {
            named.take(&self.spikes, entry, *head);
        }
        Some(named)
    }

    /// The line of `step`, from memory or from `store`; `None` where there is none since the newest commit.
    pub(crate) async fn named(&self, store: &RunStore, step: Step) -> Result<Option<Named>, CheckpointError> {
        if let Some(named) = self.at(step) {
            return Ok(Some(named));
        }
        if step < self.anchor.step || step > self.before.step {
            return Ok(None);
        }
        let mut named = self.anchor.clone();
        for Written { key, last, .. } in &self.written {
            let entries = store.read_ledger_lines(key).await?;
            let counts = |entry: &&Entry| entry.step <= last.0.min(step.0);
            for entry in entries.iter().filter(counts) {
                // Those up to the anchor are known.
                if entry.step == named.step.0 + 1 && entry.prev == named.head {
                    named.take(&self.spikes, entry, entry.hash());
                }
            }
            if named.step == step {
                return Ok(Some(named));
            }
        }
        Err(CheckpointError::Damaged {
            key: self.written.last().map_or("ledger".to_owned(), |written| written.key.clone()),
            reason: format!("up to it the line of step {} is missing", named.step.next()),
        })
    }

    /// Whether so many lines wait that they are to be written.
    pub(crate) fn is_long(&self) -> bool {
        self.waiting() >= MANY_WAITING
    }

    /// Lines that are not in the store.
    pub(crate) fn waiting(&self) -> usize {
        self.open.waiting().len()
    }

    /// Goes on from an earlier step: later lines are void.
    pub(crate) fn go_back(&mut self, base: Base) {
        let Base { step, head, is_imported, memory } = base;
        self.recent.split_off(&step.next());
        if step < self.stored() {
            // Its lines beyond are void, which the next segment's heading says.
            self.open.close();
            self.heading = Heading { after: step, head, imported: is_imported, ..self.heading.clone() };
        } else {
            self.open.drop_waiting(|entry| entry.step > step.0);
        }
        // An object counts as far as its lines do.
        let first_void = self.written.partition_point(|written| written.last <= step);
        if let Some(written) = self.written.get_mut(first_void) {
            written.last = step;
        }
        self.written.truncate(first_void + 1);
        let named = Named { step, head, memory };
        if step < self.before.step {
            self.before = named.clone();
        }
        if step < self.anchor.step {
            self.written.clear();
            self.anchor = named;
        }
    }

    /// Writes what waits.
    pub(crate) async fn flush(&mut self, store: &RunStore) -> Result<(), CheckpointError> {
        let Ledger { attempt, heading, open, .. } = self;
        let written =
            open.write(async |id, lines| store.append_ledger(*attempt, id, heading, lines).await).await?;
        let (Some(key), Some(newest)) = (written, self.open.stored().last()) else { return Ok(()) };
        let (last, head, seq) = (Step(newest.step), newest.hash(), self.open.seq());
        match self.written.last_mut().filter(|written| written.seq == seq) {
            Some(written) => (written.key, written.last) = (key, last),
            None => self.written.push(Written { seq, key, last }),
        }
        if self.open.is_long() {
            self.open.close();
            self.heading = Heading { after: last, head, imported: false, ..self.heading.clone() };
        }
        self.forget();
        Ok(())
    }

    /// Deletes what was replaced in the store.
    pub(crate) async fn delete_replaced(&mut self, store: &RunStore) {
        self.open.delete_replaced(store).await;
    }

    /// A commit names this line: earlier ones are not asked for again.
    pub(crate) fn committed(&mut self, named: Named) {
        self.written.retain(|written| written.last > named.step);
        if named.step >= self.before.step {
            self.recent = self.recent.split_off(&named.step.next());
            self.before = named.clone();
        }
        self.anchor = named;
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunName;
    use polygram_domain::spikes::SpikeAction;

    use super::*;
    use crate::random::Random;

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
                first.committed(first.at(Step(4)).unwrap());
            }
        }
        // Back to the commit before the two waiting lines are written, and again when they are.
        let base = Base { step: Step(4), head: first.at(Step(4)).unwrap().head, ..Base::genesis() };
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

    /// Steps, commits of steps long past, and ways back, against a ledger that forgets nothing: what is named is the same,
    /// and memory holds no more than it may.
    #[tokio::test]
    async fn what_is_forgotten_is_read_again() {
        const KEPT: usize = 6;
        let spikes =
            SpikeSpec { action: SpikeAction::Skip, history_steps: 5, window_steps: 9, ..SpikeSpec::off() };
        let mut refilled = 0;
        for seed in 0..200u64 {
            let mut random = Random(seed);
            let store = store();
            let mut ledger = Ledger::new(1, Base::genesis(), (ConfigHash::of("c"), spikes.clone()));
            ledger.most_kept = KEPT;
            // By step, what a ledger without bounds would name.
            let mut all = vec![ledger.at(Step(0)).unwrap()];
            let mut newest_commit = 0;
            for turn in 0..120u64 {
                let reached = all.len() - 1;
                match random.below(12) {
                    0 => ledger.flush(&store).await.unwrap(),
                    1 if reached > newest_commit => {
                        let step =
                            newest_commit + 1 + random.below((reached - newest_commit) as u64) as usize;
                        let named = ledger.named(&store, Step(step as u64)).await.unwrap().unwrap();
                        assert_eq!(named, all[step], "seed {seed}, turn {turn}: commit of step {step}");
                        ledger.flush(&store).await.unwrap();
                        ledger.committed(named);
                        newest_commit = step;
                    }
                    2 => {
                        // To the newest commit or a later step, and now and then further.
                        let oldest = if random.once_in(4) { 0 } else { newest_commit };
                        let step = oldest + random.below((reached - oldest + 1) as u64) as usize;
                        refilled +=
                            u32::from(step >= newest_commit && ledger.at(Step(step as u64)).is_none());
                        let named = match ledger.named(&store, Step(step as u64)).await.unwrap() {
                            Some(named) => named,
                            None => all[step].clone(),
                        };
                        assert_eq!(named, all[step], "seed {seed}, turn {turn}: back to step {step}");
                        let Named { step: at, head, memory } = named;
                        ledger.go_back(Base { step: at, head, is_imported: false, memory });
                        all.truncate(step + 1);
                        newest_commit = newest_commit.min(step);
                    }
                    _ => {
                        let mut metrics = metrics(reached as u64, turn as f64);
                        if random.once_in(3) {
                            metrics.proof.outcome = StepOutcome::SkippedNonfinite;
                        }
                        ledger.add(&metrics).unwrap();
                        let mut next = all[reached].clone();
                        let entry = ledger.open.waiting().last().unwrap();
                        next.take(&spikes, entry, entry.hash());
                        all.push(next);
                    }
                }
                let most = KEPT.max(ledger.waiting());
                assert!(ledger.recent.len() <= most, "seed {seed}, turn {turn}: {}", ledger.recent.len());
            }
            // A rollback voids lines in the store once the next one is written.
            ledger.add(&metrics(all.len() as u64 - 1, 0.5)).unwrap();
            ledger.flush(&store).await.unwrap();
            let (chain, faults) = store.read_ledger().await.unwrap();
            assert!(faults.0.is_empty(), "seed {seed}: {faults:?}");
            let kept: Vec<ChainHash> = chain.entries().map(Entry::hash).collect();
            assert_eq!(kept.len(), all.len(), "seed {seed}");
            assert!(all[1..].iter().zip(&kept).all(|(named, head)| named.head == *head), "seed {seed}");
        }
        assert!(refilled > 20, "the schedules are too tame: {refilled}");
    }

    /// Thousands of steps without a commit, in the recorder's way of writing them.
    #[tokio::test]
    async fn a_run_without_commits_needs_no_more_memory() {
        let store = store();
        let mut ledger = ledger(1, Base::genesis());
        for step in 0..100_000 {
            ledger.add(&metrics(step, 1.0)).unwrap();
            if ledger.is_long() {
                ledger.flush(&store).await.unwrap();
            }
            assert!(ledger.recent.len() <= MANY_WAITING && ledger.waiting() < MANY_WAITING);
        }
        assert!(ledger.written.len() <= 8);
        let (chain, _) = store.read_ledger().await.unwrap();
        let early = ledger.named(&store, Step(3)).await.unwrap().unwrap();
        assert_eq!(Some(early.head), chain.hash_at(Step(3)));
        assert_eq!(ledger.named(&store, Step(100_001)).await.unwrap(), None);
        ledger.committed(early);
        assert_eq!(ledger.named(&store, Step(2)).await.unwrap(), None);
    }

    /// Where the store has lost a line that is needed, that is said and nothing is made up.
    #[tokio::test]
    async fn a_line_that_is_nowhere_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        let store = RunStore::create(&root, &RunName::new("r").unwrap()).unwrap();
        let mut ledger = ledger(1, Base::genesis());
        ledger.most_kept = 2;
        for step in 0..9 {
            ledger.add(&metrics(step, 1.0)).unwrap();
            ledger.flush(&store).await.unwrap();
        }
        let key = ledger.written[0].key.clone();
        assert_eq!(ledger.named(&store, Step(4)).await.unwrap().map(|named| named.step), Some(Step(4)));
        std::fs::remove_file(folder.path().join("runs/r").join(&key)).unwrap();
        let error = ledger.named(&store, Step(4)).await.unwrap_err().to_string();
        assert!(error.contains(&key), "{error}");
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
