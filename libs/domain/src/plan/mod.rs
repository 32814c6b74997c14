//! What a configuration costs, before anything starts: parameters by part, activated range, bytes per role.
//!
//! Everything is computed from the run's numbers alone, in time that does not depend on their size: a run file with
//! absurd values is planned, or refused, as fast as any other.

mod activations;
mod fit;
mod memory;
mod operands;
mod parameters;

use std::collections::BTreeSet;

use serde::Serialize;

pub use fit::{DEVICE_MEMORY_GIB, Misfit, misfit};
pub use memory::{MemoryPlan, PartBytes, WorkerPart, memory_plan, row_record_bytes};
pub use operands::Operands;
pub use parameters::{MAX_PARAMETERS, MAX_TENSORS, ParameterCounts, check_model, count_parameters};

use crate::run_spec::{DataSpec, RunSpec};

/// Most tokens of an update and of a run: sums of them stay far from the ends of u64.
const MAX_STEP_TOKENS: u128 = 1 << 48;
const MAX_RUN_TOKENS: u128 = 1 << 62;
/// Most positions of a micro-batch, and most row ids: they are numbered in 32 bits.
const MAX_POSITIONS: u128 = i32::MAX as u128;
const MAX_ROW_IDS: u128 = u32::MAX as u128;
/// Share of the parameters above which n-gram tables stop paying off (arXiv 2601.21204).
pub const MAX_TABLE_SHARE: f64 = 0.5;

/// What a run costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Parameters by part.
    pub parameters: ParameterCounts,
    /// Bytes per role.
    pub memory: MemoryPlan,
    /// N-gram tables.
    pub tables: u64,
    /// Rows of all tables.
    pub table_rows: u64,
    /// Bytes of all table weights in f32, were they all stored.
    pub table_bytes: u64,
    /// Tokens of one update.
    pub tokens_per_step: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Row lookups of one update, duplicates included.
    pub lookups_per_step: u64,
}

/// Refuses a run whose tokens or row ids are too many to be counted; each number that enters is named by its key.
pub fn check_tokens(spec: &RunSpec) -> Result<(), String> {
    let training = &spec.training;
    let positions = u128::from(training.micro_batch_size) * u128::from(training.seq_len);
    let micro_batch = format!(
        "training.micro_batch_size = {} times training.seq_len = {}",
        training.micro_batch_size, training.seq_len
    );
    if positions > MAX_POSITIONS {
        return Err(format!(
            "{micro_batch} is {positions} positions in a micro-batch, at most {MAX_POSITIONS} are supported"
        ));
    }
    let ids = positions * u128::from(spec.tables().tables_per_site());
    if ids > MAX_ROW_IDS {
        return Err(format!(
            "{micro_batch} with {} n-gram tables is {ids} row ids in a micro-batch, at most {MAX_ROW_IDS} are supported",
            spec.tables().tables_per_site()
        ));
    }
    let step = positions * u128::from(training.cells);
    if step > MAX_STEP_TOKENS {
        return Err(format!(
            "training.cells = {} times {micro_batch} is {step} tokens a step, at most {MAX_STEP_TOKENS} are supported",
            training.cells
        ));
    }
    let tokens = step * u128::from(training.steps);
    if tokens > MAX_RUN_TOKENS {
        return Err(format!(
            "training.steps = {} times {step} tokens a step is {tokens} tokens, at most {MAX_RUN_TOKENS} are supported",
            training.steps
        ));
    }
    Ok(())
}

/// Refuses synthetic data of tokens that the n-gram hash does not have: it draws from the whole vocabulary. (Files may do
/// without the last tokens of a padded vocabulary; their tokens are checked where they are read.)
pub fn check_synthetic_tokens(spec: &RunSpec) -> Result<(), String> {
    let (model, ngram) = (&spec.model, &spec.model.ngram);
    let is_synthetic = matches!(spec.data, DataSpec::Synthetic { .. });
    if !is_synthetic || spec.tables().is_empty() || ngram.hash_vocab_size >= model.vocab_size {
        return Ok(());
    }
    let outside = model.vocab_size - ngram.hash_vocab_size;
    let ignored: BTreeSet<u32> =
        ngram.ignored_tokens.iter().copied().filter(|token| *token >= ngram.hash_vocab_size).collect();
    if ignored.len() >= outside as usize {
        return Ok(());
    }
    Err(format!(
        "ngram.hash_vocab_size is {}, below model.vocab_size = {}; synthetic data (data.synthetic_tokens) has all tokens \
         of the vocabulary: raise ngram.hash_vocab_size, or list the other tokens in ngram.ignored_tokens",
        ngram.hash_vocab_size, model.vocab_size
    ))
}

/// Plans `spec` as it runs on this machine.
pub fn plan(spec: &RunSpec) -> Plan {
    let parameters = count_parameters(&spec.model);
    let tables = spec.tables();
    let tokens_per_step = spec.tokens_per_step();
    Plan {
        memory: memory_plan(spec, Operands::of(spec)),
        tables: tables.len() as u64,
        table_rows: tables.rows(),
        table_bytes: parameters.ngram_tables.saturating_mul(4),
        tokens_per_step,
        tokens: tokens_per_step.saturating_mul(spec.training.steps),
        lookups_per_step: tokens_per_step.saturating_mul(tables.len() as u64),
        parameters,
    }
}

impl ParameterCounts {
    /// A warning where tables are more of the parameters than pays off.
    pub fn table_share_warning(&self) -> Option<String> {
        let share = self.ngram_tables as f64 / self.total.max(1) as f64;
        (share > MAX_TABLE_SHARE).then(|| {
            format!(
                "n-gram tables are {:.0} % of the parameters; above {:.0} % they help less than as many experts would \
                 (arXiv 2601.21204): lower ngram.base_rows or ngram.ratio, or raise model.n_routed_experts",
                100.0 * share,
                100.0 * MAX_TABLE_SHARE
            )
        })
    }
}

#[cfg(test)]
mod tests;
