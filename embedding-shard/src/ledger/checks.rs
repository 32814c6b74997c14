//! What a request must satisfy before the ledger looks at it.

use polygram_domain::{Cell, Step};
use polygram_row_exchange::message::{Reason, Refusal, Request};

use super::{Ledger, Peer, refuse};

impl Ledger {
    pub(super) fn check_alive(&self) -> Result<(), Refusal> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    pub(super) fn check_step(&self, step: Step) -> Result<(), Refusal> {
        let version = self.version;
        if step < version {
            return refuse(
                Reason::Step,
                format!("step {step} is over: the shard's rows are at version {version}"),
            );
        }
        if step.0 - version.0 > self.window {
            let text = format!(
                "step {step} is too far ahead: rows are at version {version}, and at most {} further steps may be \
                 open (embedding.prefetch_steps + 1)",
                self.window
            );
            return refuse(Reason::Step, text);
        }
        Ok(())
    }

    pub(super) fn check_cell(&self, from: Peer, cell: Cell) -> Result<(), Refusal> {
        let cells = self.config.cells;
        if cell.0 >= cells {
            return refuse(Reason::Conflict, format!("cell {cell} of a step of {cells} cells"));
        }
        let owner = self.config.topology.rank_of(cell, cells);
        if owner != from.rank {
            let text =
                format!("cell {cell} belongs to worker {owner}, but worker {} speaks for it", from.rank);
            return refuse(Reason::Conflict, text);
        }
        Ok(())
    }

    /// Rows ascend by the message's own rules; here they must be this shard's.
    pub(super) fn check_rows(&self, request: &Request) -> Result<(), Refusal> {
        let tables = request.offsets.len() - 1;
        if tables != self.owned.len() {
            let text = format!("{tables} tables asked, this model has {} per site", self.owned.len());
            return refuse(Reason::WrongRun, text);
        }
        for (table, owned) in self.owned.iter().enumerate() {
            let rows = request.rows_of(table);
            for row in rows.first().into_iter().chain(rows.last()) {
                if !owned.contains(row) {
                    let shard = self.config.index;
                    let text =
                        format!("row {row} of table {table} is not of shard {shard}, which has {owned:?}");
                    return refuse(Reason::WrongRun, text);
                }
            }
        }
        Ok(())
    }
}
