//! The protocol of a shard, decided purely: messages and lane reports in, effects out. No socket, clock, thread or row
//! is touched here.
//!
//! What always holds:
//! * A lookup of step s is served only when every cell of every uncommitted step before s is declared: from then on
//!   the lanes know which rows may still change, and hold exactly those back.
//! * Gradients of a step reach the lanes in cell order, whatever order they came in.
//! * A step is closed once: when all its cells are in, its sums are known, and every worker has sent the same vote,
//!   to the bit. Steps close in order, and `version` counts them.
//! * A frame that comes again gets the same answer and changes nothing; one that contradicts an earlier one is
//!   refused. After the workers contradict each other, or the memory ceiling would be passed, everything is refused.

mod advance;
mod checks;
mod peer;
mod step;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use polygram_domain::{BucketIndex, Cell, MicroBatchRef, Rank, Step, TableIndex};
use polygram_row_exchange::message::{Message, Reason, Refusal, Request, RowBlock};

use crate::config::{ShardConfig, rows_of_buckets};
use crate::error::memory_message;
pub use peer::Peer;
use step::{CellLedger, ClosedStep, StepLedger};
pub use step::{FrameId, Sums, Vote};

/// Reads that wait for their version at most.
const MAX_PARKED_READS: usize = 4096;

/// What is to be done, in order.
#[derive(Debug)]
pub enum Effect {
    /// Lanes: these rows are going to change.
    Union {
        /// Step that changes them.
        step: Step,
        /// All cells' requests.
        requests: Vec<Arc<Request>>,
    },
    /// Lanes: answer a lookup.
    Serve {
        /// Its micro-batch.
        at: MicroBatchRef,
        /// Its rows.
        request: Arc<Request>,
        /// Who gets them.
        to: Peer,
    },
    /// Lanes: answer a read; the version is the present one.
    ServeRead {
        /// The version.
        version: Step,
        /// Number of the read.
        number: Cell,
        /// Its rows.
        request: Arc<Request>,
        /// Who gets them.
        to: Peer,
    },
    /// Lanes: add a cell's gradients.
    Add {
        /// Its step.
        step: Step,
        /// Its rows.
        request: Arc<Request>,
        /// Its gradients.
        blocks: Vec<Arc<RowBlock>>,
    },
    /// Lanes: compute sums of squares.
    Sum {
        /// The step.
        step: Step,
    },
    /// Lanes: apply or skip; begin a snapshot if the vote says so.
    Close {
        /// The step.
        step: Step,
        /// All workers' vote.
        vote: Vote,
    },
    /// Answer a worker.
    Reply {
        /// Who.
        to: Peer,
        /// Step of the answer.
        step: Step,
        /// The answer.
        message: Message,
    },
    /// Give up: tell every worker.
    Fail(Refusal),
}

#[derive(Debug)]
struct ParkedRead {
    version: Step,
    number: Cell,
    request: Arc<Request>,
    from: Peer,
}

/// The state of the protocol.
#[derive(Debug)]
pub struct Ledger {
    version: Step,
    /// How far beyond the version a step may be.
    window: u64,
    config: Arc<ShardConfig>,
    /// Rows of each site table that this shard owns.
    owned: Vec<Range<u32>>,
    lanes: usize,
    lane_rows: Vec<u64>,
    open: BTreeMap<Step, StepLedger>,
    closed: BTreeMap<Step, ClosedStep>,
    reads: Vec<ParkedRead>,
    snapshot_is_running: bool,
    failure: Option<Refusal>,
    effects: Vec<Effect>,
}

fn refuse<T>(reason: Reason, text: String) -> Result<T, Refusal> {
    Err(Refusal::new(reason, text))
}

impl Ledger {
    /// A ledger of rows at `version`; `lane_rows` are the written rows of each lane.
    pub fn new(config: Arc<ShardConfig>, version: Step, lane_rows: Vec<u64>) -> Ledger {
        let site = config.tables.iter().take(config.tables_per_site());
        let owned = site.map(|spec| rows_of_buckets(spec, &config.buckets())).collect();
        Ledger {
            version,
            window: u64::from(config.embedding.prefetch_steps) + 1,
            owned,
            lanes: lane_rows.len(),
            lane_rows,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            reads: Vec::new(),
            snapshot_is_running: false,
            failure: None,
            effects: Vec::new(),
            config,
        }
    }

    /// Steps closed so far: the version that the next effects see.
    pub fn version(&self) -> Step {
        self.version
    }

    /// Takes the effects decided since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Admits a worker, or says why not.
    pub fn hello(&self, rank: Rank, workers: u32) -> Result<(), Refusal> {
        self.check_alive()?;
        let expected = self.config.topology.workers;
        if workers != expected || rank.0 >= expected {
            let text = format!("worker {rank} of {workers} says hello, this run has {expected} workers");
            return refuse(Reason::WrongRun, text);
        }
        Ok(())
    }

    /// LOOKUP: declares a micro-batch's rows and asks for them.
    pub fn lookup(&mut self, from: Peer, at: MicroBatchRef, request: Request) -> Result<(), Refusal> {
        let MicroBatchRef { step, index: cell } = at;
        self.check_alive()?;
        self.check_cell(from, cell)?;
        self.check_rows(&request)?;
        self.check_step(step)?;
        let cells = self.config.cells;
        let open = self.open.entry(step).or_insert_with(|| StepLedger::new(cells));
        match &mut open.cells[cell.index()] {
            Some(declared) if *declared.request != request => {
                return refuse(Reason::Conflict, "the cell was declared before with other rows".into());
            }
            Some(declared) => {
                // The same declaration again: the same rows again.
                (declared.from, declared.served) = (from, false);
            }
            place => *place = Some(CellLedger::new(Arc::new(request), from)),
        }
        if !open.is_declared && open.cells.iter().all(Option::is_some) {
            open.is_declared = true;
            let requests = open.cells.iter().flatten().map(|cell| Arc::clone(&cell.request)).collect();
            self.effects.push(Effect::Union { step, requests });
        }
        self.advance();
        Ok(())
    }

    /// READ: asks for rows at exactly `version`; `number` tells a worker's reads apart.
    pub fn read(&mut self, from: Peer, version: Step, number: Cell, request: Request) -> Result<(), Refusal> {
        self.check_alive()?;
        self.check_rows(&request)?;
        self.check_step(version)?;
        if self.reads.len() >= MAX_PARKED_READS {
            return refuse(Reason::Step, format!("{MAX_PARKED_READS} reads wait for their version already"));
        }
        self.reads.push(ParkedRead { version, number, request: Arc::new(request), from });
        self.advance();
        Ok(())
    }

    /// PUSH: some of a micro-batch's gradients, which came in `frame`.
    pub fn push(
        &mut self,
        from: Peer,
        at: MicroBatchRef,
        frame: FrameId,
        block: RowBlock,
    ) -> Result<(), Refusal> {
        let MicroBatchRef { step, index: cell } = at;
        self.check_alive()?;
        self.check_cell(from, cell)?;
        if let Some(closed) = self.closed.get(&step) {
            return match closed.checksums[cell.index()].get(&frame.chunk) {
                Some(&before) if before == frame.crc => Ok(()),
                _ => refuse(Reason::Conflict, "the step is closed and had other gradients".into()),
            };
        }
        self.check_step(step)?;
        let open = self.open.get_mut(&step).and_then(|open| open.cells[cell.index()].as_mut());
        let Some(declared) = open else {
            return refuse(Reason::Step, "gradients of a cell that was not declared".into());
        };
        declared.push(frame, Arc::new(block))?;
        self.advance();
        Ok(())
    }

    /// PREPARE: asks for the step's sums.
    pub fn prepare(&mut self, from: Peer, step: Step) -> Result<(), Refusal> {
        self.check_alive()?;
        if let Some(closed) = self.closed.get(&step) {
            let sums = Arc::clone(&closed.prepared);
            self.reply_sums(from, step, &sums);
            return Ok(());
        }
        self.check_step(step)?;
        let cells = self.config.cells;
        let open = self.open.entry(step).or_insert_with(|| StepLedger::new(cells));
        match open.prepared.clone() {
            Some(sums) => self.reply_sums(from, step, &sums),
            None if open.waiting.contains(&from) => {}
            None => open.waiting.push(from),
        }
        Ok(())
    }

    /// COMMIT or ABORT. Workers that contradict each other end the shard's work.
    pub fn vote(&mut self, from: Peer, step: Step, vote: Vote) -> Result<(), Refusal> {
        self.check_alive()?;
        if let Some(closed) = self.closed.get_mut(&step) {
            if !closed.vote.same(&vote) {
                let text =
                    format!("the step was closed by {}, worker {} says {vote}", closed.vote, from.rank);
                return refuse(Reason::Conflict, text);
            }
            match closed.open_lanes {
                0 => self.effects.push(acknowledgement(from, step, &vote, closed.fingerprint)),
                _ if closed.waiting.contains(&from) => {}
                _ => closed.waiting.push(from),
            }
            return Ok(());
        }
        self.check_step(step)?;
        let prepared = self.open.get(&step).and_then(|open| open.prepared.clone());
        let (Some(prepared), Some(open)) = (prepared, self.open.get_mut(&step)) else {
            return refuse(Reason::Step, format!("{vote} came before the step was prepared"));
        };
        if let Vote::Commit(_) = vote
            && !prepared.finite
        {
            let text = format!("worker {} says {vote}, but the step's gradients are not finite", from.rank);
            return refuse(Reason::Conflict, text);
        }
        if let Some((rank, (other, _))) = open.votes.iter().find(|(_, (other, _))| !other.same(&vote)) {
            let text = format!(
                "step {step}: worker {rank} says {other}, worker {} says {vote}; they must be equal to the bit",
                from.rank
            );
            let refusal = Refusal::new(Reason::Disagreement, text);
            self.fail(refusal.clone());
            return Err(refusal);
        }
        open.votes.insert(from.rank, (vote, from));
        self.advance();
        Ok(())
    }

    /// A lane knows how many rows it has and will have, once the open steps are applied.
    pub fn counted(&mut self, lane: usize, rows: u64) {
        self.lane_rows[lane] = rows;
        let (total, bytes) = (self.lane_rows.iter().sum::<u64>(), self.config.record_bytes());
        let limit = self.config.embedding.memory_limit_bytes;
        if total.saturating_mul(bytes) > limit {
            self.fail(Refusal::new(Reason::Memory, memory_message(total, bytes, limit)));
        }
    }

    /// A lane's sums of a step are here.
    pub fn summed(&mut self, step: Step, sums: Vec<(TableIndex, BucketIndex, f64)>) {
        let Some(open) = self.open.get_mut(&step) else { return };
        open.sums.extend(sums);
        open.summed += 1;
        if open.summed < self.lanes {
            return;
        }
        let mut sums = std::mem::take(&mut open.sums);
        sums.sort_unstable_by_key(|&(table, bucket, _)| (table, bucket));
        let finite = sums.iter().all(|(_, _, sum)| sum.is_finite());
        let prepared = Arc::new(Sums { finite, sums });
        open.prepared = Some(Arc::clone(&prepared));
        for peer in std::mem::take(&mut open.waiting) {
            self.reply_sums(peer, step, &prepared);
        }
    }

    /// A lane has closed a step;
    /// `fingerprint` is the sum of the hashes of the rows that it has updated.
    pub fn lane_closed(&mut self, step: Step, fingerprint: u64) {
        let Some(closed) = self.closed.get_mut(&step) else { return };
        closed.open_lanes = closed.open_lanes.saturating_sub(1);
        closed.fingerprint = closed.fingerprint.wrapping_add(fingerprint);
        if closed.open_lanes == 0 {
            for peer in std::mem::take(&mut closed.waiting) {
                self.effects.push(acknowledgement(peer, step, &closed.vote, closed.fingerprint));
            }
        }
    }

    /// The running snapshot is written.
    pub fn snapshot_finished(&mut self) {
        self.snapshot_is_running = false;
        self.advance();
    }

    /// Gives up: every later request is refused with the same words.
    pub fn fail(&mut self, refusal: Refusal) {
        if self.failure.is_none() {
            self.failure = Some(refusal.clone());
            self.effects.push(Effect::Fail(refusal));
        }
    }

    fn reply_sums(&mut self, to: Peer, step: Step, sums: &Sums) {
        for body in sums.parts() {
            self.effects.push(Effect::Reply { to, step, message: Message::Prepared(body) });
        }
    }
}

fn acknowledgement(to: Peer, step: Step, vote: &Vote, fingerprint: u64) -> Effect {
    let message = match vote {
        Vote::Commit(_) => Message::Committed(fingerprint),
        Vote::Abort { .. } => Message::Aborted,
    };
    Effect::Reply { to, step, message }
}
