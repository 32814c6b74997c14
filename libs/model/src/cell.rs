//! What goes into the model for one cell and what comes out of it: plain buffers.

use polygram_domain::CellBatch;
use polygram_domain::batch::IGNORED_TARGET;
use polygram_domain::model::{ModelSpec, Placement};

use crate::error::{ModelError, Result};

/// One cell's tokens and the rows they need.
#[derive(Clone, Copy, Debug)]
pub struct CellInput<'a> {
    /// Tokens and targets, `[B, T]` each.
    pub batch: &'a CellBatch,
    /// `[P, C]` row-major: index into a site's unique rows. Empty for a model without tables.
    pub inverse_pc: &'a [u32],
    /// `[S, U, w]` row-major: the unique rows of every site. Empty for a model without tables.
    pub rows_suw: &'a [f32],
    /// Unique rows of one site (U).
    pub unique: usize,
    /// Targets of the whole step, over all cells: what the loss is divided by before backward.
    pub global_targets: u64,
}

/// What one cell contributes to its step.
#[derive(Clone, Debug, PartialEq)]
pub struct CellOutput {
    /// Σ of the negative log-likelihoods in nats, added in f64 in position order.
    pub loss_sum: f64,
    /// Positions in that sum.
    pub targets: u64,
    /// This cell's share of the objective that backward differentiated: loss_sum / global_targets plus the auxiliary
    /// losses times their coefficients times targets / global_targets.
    pub objective: f64,
    /// `[S, U, w]`: gradient of the objective by the unique rows, duplicates summed in f32 in position order.
    pub row_grads_suw: Vec<f32>,
    /// `[layers, n + z]`: how often each expert was chosen.
    pub routing_counts: Vec<u64>,
    /// The auxiliary losses of this cell, without coefficients.
    pub auxiliary: Auxiliary,
}

/// Auxiliary losses of one cell, without coefficients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auxiliary {
    /// Balance loss per layer.
    pub balance: Vec<f64>,
    /// Router z-loss per layer: mean of logsumexp² of the router's logits.
    pub router_z: Vec<f64>,
    /// Hidden z-loss: mean of logsumexp² of |h| at the last layer's output.
    pub hidden_z: f64,
}

/// The buffer sizes that a model's placement asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowShape {
    /// Sites (S).
    pub(crate) sites: usize,
    /// Tables per site (C); 0 where there are no sites.
    pub(crate) tables: usize,
    /// Values per row (w).
    pub(crate) width: usize,
}

impl RowShape {
    pub(crate) fn of(model: &ModelSpec) -> RowShape {
        let tables = model.ngram.tables_per_site() as usize;
        match model.placement {
            Placement::Input => RowShape { sites: 1, tables, width: model.hidden_size as usize / tables },
            Placement::PerLayer => RowShape { sites: 0, tables: 0, width: 0 },
            Placement::PerLayerNgram => RowShape {
                sites: 2 * model.num_layers as usize,
                tables,
                width: model.ffn_hidden_size as usize / tables,
            },
        }
    }
}

impl CellInput<'_> {
    /// Checks every buffer against the model, so that nothing behind this door can be out of range.
    pub(crate) fn check(&self, model: &ModelSpec) -> Result<()> {
        let positions = self.batch.tokens_bt().len();
        if positions == 0 {
            return Err(ModelError::input("cell", "no tokens", "at least one sequence of one position"));
        }
        let vocab = model.vocab_size;
        if let Some((position, token)) =
            self.batch.tokens_bt().iter().enumerate().find(|&(_, &token)| token >= vocab)
        {
            return Err(ModelError::input(
                "token",
                format!("{token} at position {position} of the cell"),
                format!("less than the vocabulary size {vocab}"),
            ));
        }
        let legal = |&target: &i64| target == IGNORED_TARGET || (0..i64::from(vocab)).contains(&target);
        if let Some((position, target)) =
            self.batch.targets_bt().iter().enumerate().find(|(_, target)| !legal(target))
        {
            return Err(ModelError::input(
                "target",
                format!("{target} at position {position} of the cell"),
                format!("{IGNORED_TARGET} or less than the vocabulary size {vocab}"),
            ));
        }
        if self.global_targets < self.batch.target_count() {
            return Err(ModelError::input(
                "global_targets",
                self.global_targets,
                format!("at least this cell's {} targets", self.batch.target_count()),
            ));
        }
        self.check_rows(RowShape::of(model), positions)
    }

    fn check_rows(&self, shape: RowShape, positions: usize) -> Result<()> {
        let ids = positions * shape.tables;
        if self.inverse_pc.len() != ids {
            return Err(ModelError::input(
                "inverse_pc",
                format!("{} values", self.inverse_pc.len()),
                format!("{positions} positions × {} tables = {ids}", shape.tables),
            ));
        }
        let wanted = (shape.sites * shape.width).checked_mul(self.unique);
        if wanted != Some(self.rows_suw.len()) {
            return Err(ModelError::input(
                "rows_suw",
                format!("{} values", self.rows_suw.len()),
                format!("{} sites × {} rows × {} values", shape.sites, self.unique, shape.width),
            ));
        }
        match self.inverse_pc.iter().max() {
            Some(&largest) if largest as usize >= self.unique => Err(ModelError::input(
                "inverse_pc",
                format!("row {largest}"),
                format!("less than the {} unique rows", self.unique),
            )),
            _ => Ok(()),
        }
    }
}
