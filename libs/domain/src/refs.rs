//! Pairs of identifiers that belong together, so that functions take one argument with named parts.

use std::fmt;

use crate::checkpoint::CheckpointKind;
use crate::ids::{Cell, RowId, Step, TableIndex};

/// A micro-batch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroBatchRef {
    /// The step.
    pub step: Step,
    /// The index in the step's grid.
    pub index: Cell,
}

impl fmt::Display for MicroBatchRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}, micro-batch {}", self.step, self.index)
    }
}

/// A row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowRef {
    /// The table.
    pub table: TableIndex,
    /// The row in it.
    pub row: RowId,
}

impl fmt::Display for RowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of table {}", self.row, self.table)
    }
}

/// A checkpoint of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointRef {
    /// The state version.
    pub step: Step,
    /// A commit or a recovery point.
    pub kind: CheckpointKind,
}

impl fmt::Display for CheckpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of step {}", self.kind.noun(), self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_read_as_words_of_a_message() {
        let at = MicroBatchRef { step: Step(7), index: Cell(3) };
        assert_eq!(at.to_string(), "step 7, micro-batch 3");
        let point = CheckpointRef { step: Step(25), kind: CheckpointKind::Point };
        assert_eq!(point.to_string(), "recovery point of step 25");
        let row = RowRef { table: TableIndex(2), row: RowId(70_000) };
        assert_eq!(row.to_string(), "row 70000 of table 2");
    }
}
