//! Held-out loss at a step boundary.
//!
//! Evaluation cells are dealt to ranks in contiguous runs; their losses are gathered and summed in one fixed order, so
//! that the figure does not depend on the number of ranks.

use polygram_domain::Step;
use polygram_domain::sum_tree::tree_sum;

use crate::error::WorkerError;
use crate::step::Trainer;

/// Evaluates all held-out cells at state version `step` and reports the mean loss per target.
pub fn evaluate(trainer: &mut Trainer, step: Step) -> Result<(), WorkerError> {
    let Some(evaluation) = trainer.spec.evaluation.clone() else { return Ok(()) };
    let workers = trainer.collective.world_size();
    let each = evaluation.cells.div_ceil(workers);
    let first = (trainer.collective.rank().0 * each).min(evaluation.cells);
    let mut mine = Vec::new();
    for number in first..first + each {
        let work = match number < evaluation.cells {
            true => trainer.input.held_out(step, number, &trainer.rows)?,
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
    let tokens: u64 = words.iter().skip(1).step_by(2).sum();
    if tokens > 0 {
        trainer.boundary.report_evaluation(step, loss / tokens as f64, tokens)?;
    }
    Ok(())
}
