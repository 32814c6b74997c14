//! Held-out losses at a step boundary.
//!
//! Every held-out set is evaluated on its first `evaluation.cells` micro-batches, in the order of its file: the same tokens
//! at every evaluation of a run. Micro-batches are dealt to ranks in contiguous runs; their losses are gathered and summed
//! in one fixed order, so that the figure does not depend on the number of ranks.

use polygram_domain::control::{Evaluation, Phase};
use polygram_domain::sum_tree::tree_sum;
use polygram_domain::{Cell, MicroBatchRef, Step};

use crate::error::WorkerError;
use crate::step::Trainer;

impl Trainer {
    /// Where an evaluation is due at state version `step`: evaluates every held-out set, and reports the mean loss per
    /// target of each.
    pub(crate) fn evaluate_if_due(&mut self, step: Step) -> Result<(), WorkerError> {
        let Some(evaluation) = self.spec.evaluation.clone() else { return Ok(()) };
        if !step.0.is_multiple_of(evaluation.every_steps) && step.0 != self.spec.last_step() {
            return Ok(());
        }
        self.phases.enter(step, Phase::Evaluating);
        for (number, set) in self.input.held_out_sets().into_iter().enumerate() {
            let held_out = HeldOut { set: number, micro_batches: evaluation.cells };
            let (loss, tokens) = self.held_out_loss(step, held_out)?;
            if tokens > 0 {
                let loss = loss / tokens as f64;
                self.reports.evaluation(Evaluation { step, set, loss, tokens })?;
            }
        }
        Ok(())
    }

    /// Sum of losses and number of targets, of all ranks.
    fn held_out_loss(&mut self, step: Step, held_out: HeldOut) -> Result<(f64, u64), WorkerError> {
        let HeldOut { set, micro_batches } = held_out;
        let workers = self.collective.world_size();
        let each = micro_batches.div_ceil(workers);
        let first = self.collective.rank().0.saturating_mul(each).min(micro_batches);
        let mut mine = Vec::new();
        for index in (0..each).map(|n| Cell(first.saturating_add(n))) {
            let work = match index.0 < micro_batches {
                true => self.input.held_out(set, MicroBatchRef { step, index }, &self.rows)?,
                false => None,
            };
            let Some(work) = work else {
                self.compute.assist_evaluation()?;
                continue;
            };
            let loss = self.compute.evaluate(&work)?;
            mine.extend_from_slice(&loss.to_bits().to_le_bytes());
            mine.extend_from_slice(&work.batch.target_count().to_le_bytes());
        }
        let all = self.collective.all_gather(&mine)?.concat();
        let words: Vec<u64> =
            all.chunks_exact(8).map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i]))).collect();
        let loss = tree_sum(words.iter().step_by(2).map(|bits| f64::from_bits(*bits)));
        Ok((loss, words.iter().skip(1).step_by(2).sum()))
    }
}

/// The first micro-batches of a held-out set.
#[derive(Clone, Copy)]
struct HeldOut {
    set: usize,
    micro_batches: u32,
}
