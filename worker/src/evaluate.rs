//! Held-out losses at a step boundary.
//!
//! Every held-out set is evaluated on its first `evaluation.cells` cells, in the order of its file: the same tokens at
//! every evaluation of a run. Cells are dealt to ranks in contiguous runs; their losses are gathered and summed in one
//! fixed order, so that the figure does not depend on the number of ranks.

use polygram_domain::Step;
use polygram_domain::sum_tree::tree_sum;
use polygram_proto::control::Evaluation;

use crate::error::WorkerError;
use crate::step::Trainer;

/// Evaluates every held-out set at state version `step` and reports the mean loss per target of each.
pub fn evaluate(trainer: &mut Trainer, step: Step) -> Result<(), WorkerError> {
    let Some(evaluation) = trainer.spec.evaluation.clone() else { return Ok(()) };
    for (number, set) in trainer.input.held_out_sets().into_iter().enumerate() {
        let (loss, tokens) = loss_sum(trainer, step, (number, evaluation.cells))?;
        if tokens > 0 {
            let loss = loss / tokens as f64;
            trainer.boundary.report_evaluation(Evaluation { step, set, loss, tokens })?;
        }
    }
    Ok(())
}

/// Sum of losses and number of targets over the first `cells` cells of held-out set number `set`, of all ranks.
fn loss_sum(
    trainer: &mut Trainer,
    step: Step,
    (set, cells): (usize, u32),
) -> Result<(f64, u64), WorkerError> {
    let workers = trainer.collective.world_size();
    let each = cells.div_ceil(workers);
    let first = trainer.collective.rank().0.saturating_mul(each).min(cells);
    let mut mine = Vec::new();
    for number in (0..each).map(|n| first.saturating_add(n)) {
        let work = match number < cells {
            true => trainer.input.held_out(step, (set, number), &trainer.rows)?,
            false => None,
        };
        let Some(work) = work else {
            trainer.compute.assist_evaluation()?;
            continue;
        };
        let loss = trainer.compute.evaluate(&work)?;
        mine.extend_from_slice(&loss.to_bits().to_le_bytes());
        mine.extend_from_slice(&work.batch.target_count().to_le_bytes());
    }
    let all = trainer.collective.all_gather(&mine)?.concat();
    let words: Vec<u64> =
        all.chunks_exact(8).map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i]))).collect();
    let loss = tree_sum(words.iter().step_by(2).map(|bits| f64::from_bits(*bits)));
    Ok((loss, words.iter().skip(1).step_by(2).sum()))
}
