//! What the present state allows: lookups to serve, gradients to add, steps to close.

use std::sync::Arc;

use polygram_domain::{Cell, MicroBatchRef};

use super::step::{CellLedger, ClosedStep};
use super::{Effect, Ledger, ParkedRead};

/// Closed steps that are remembered.
const REMEMBERED_STEPS: usize = 2;

impl Ledger {
    /// Decides everything that the present state allows.
    pub(super) fn advance(&mut self) {
        loop {
            self.serve();
            self.add();
            if self.failure.is_some() || !self.close() {
                return;
            }
        }
    }

    /// Lookups whose earlier steps are all declared, and reads of the present version. Where all rows decay, every step
    /// changes every row: lookups wait for their version.
    fn serve(&mut self) {
        let mut next = self.version;
        while let Some(open) = self.open.get_mut(&next) {
            for (cell, declared) in open.cells.iter_mut().enumerate() {
                let Some(declared) = declared.as_mut().filter(|declared| !declared.served) else { continue };
                declared.served = true;
                self.effects.push(Effect::Serve {
                    at: MicroBatchRef { step: next, index: Cell(cell as u32) },
                    request: Arc::clone(&declared.request),
                    to: declared.from,
                });
            }
            if !open.is_declared || self.config.embedding.all_rows_decay() {
                break;
            }
            next = next.next();
        }
        let version = self.version;
        for read in self.reads.extract_if(.., |read| read.version == version) {
            let ParkedRead { version, number, request, from } = read;
            self.effects.push(Effect::ServeRead { version, number, request, to: from });
        }
    }

    /// Gradients whose turn it is.
    fn add(&mut self) {
        for (&step, open) in self.open.iter_mut().filter(|(_, open)| open.is_declared) {
            let cells = open.cells.len();
            while let Some(Some(cell)) = open.cells.get_mut(open.added).filter(|cell| is_pushed(cell)) {
                let (request, blocks) = (Arc::clone(&cell.request), std::mem::take(&mut cell.blocks));
                self.effects.push(Effect::Add { step, request, blocks });
                open.added += 1;
                if open.added == cells {
                    self.effects.push(Effect::Sum { step });
                }
            }
        }
    }

    /// Closes the present step if every worker has said so. A snapshot waits for the one before it.
    fn close(&mut self) -> bool {
        let step = self.version;
        let workers = self.config.topology.workers as usize;
        let Some(open) = self.open.get(&step).filter(|open| open.votes.len() == workers) else {
            return false;
        };
        let (Some((vote, _)), Some(prepared)) = (open.votes.values().next(), &open.prepared) else {
            return false;
        };
        let (vote, prepared) = (*vote, Arc::clone(prepared));
        if vote.snapshot().is_some() && self.snapshot_is_running {
            return false;
        }
        let Some(open) = self.open.remove(&step) else { return false };
        self.snapshot_is_running |= vote.snapshot().is_some();
        self.closed.insert(
            step,
            ClosedStep {
                prepared,
                vote,
                checksums: open.cells.into_iter().flatten().map(|cell| cell.checksums).collect(),
                open_lanes: self.lanes,
                fingerprint: 0,
                waiting: open.votes.into_values().map(|(_, peer)| peer).collect(),
            },
        );
        while self.closed.len() > REMEMBERED_STEPS
            && self.closed.first_key_value().is_some_and(|(_, step)| step.open_lanes == 0)
        {
            self.closed.pop_first();
        }
        self.version = step.next();
        self.effects.push(Effect::Close { step, vote });
        true
    }
}

fn is_pushed(cell: &Option<CellLedger>) -> bool {
    cell.as_ref().is_some_and(CellLedger::is_pushed)
}
