//! How many processes take part, and who computes which cell.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::ids::{Cell, Rank};

/// Numbers of processes. Worker rank = data-parallel index · expert_parallel + expert index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Workers (W); a power of two that divides the cells of a step.
    pub workers: u32,
    /// Expert-parallel size (E); divides the workers.
    pub expert_parallel: u32,
    /// Embedding shards (S), 1 to 4096.
    pub shards: u32,
}

impl Topology {
    /// Checks the sizes against each other and against the step's grid of `cells`.
    pub fn validated(self, cells: u32) -> Result<Topology, String> {
        let Topology { workers, expert_parallel, shards } = self;
        if workers == 0 || !workers.is_power_of_two() {
            return Err(format!("topology.workers is {workers}; it must be a power of two"));
        }
        if !cells.is_power_of_two() {
            return Err(format!("training.cells is {cells}; it must be a power of two"));
        }
        if workers > cells {
            return Err(format!(
                "topology.workers is {workers}, but a step has only {cells} cells (training.cells); every worker \
                 needs at least one"
            ));
        }
        if expert_parallel == 0 || workers % expert_parallel != 0 {
            return Err(format!(
                "topology.expert_parallel is {expert_parallel}; it must divide topology.workers = {workers}"
            ));
        }
        if shards == 0 || shards > crate::tables::BUCKETS {
            return Err(format!("topology.shards is {shards}; it must be 1 to {}", crate::tables::BUCKETS));
        }
        Ok(self)
    }

    /// The contiguous run of cells that `rank` computes out of `cells`.
    pub fn cells_of(&self, rank: Rank, cells: u32) -> Range<u32> {
        let each = cells / self.workers;
        rank.0 * each..(rank.0 + 1) * each
    }

    /// The rank that computes `cell` out of `cells`.
    pub fn rank_of(&self, cell: Cell, cells: u32) -> Rank {
        Rank(cell.0 / (cells / self.workers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_partition_cells() {
        let topology = Topology { workers: 4, expert_parallel: 2, shards: 3 }.validated(8).unwrap();
        for cell in 0..8 {
            let rank = topology.rank_of(Cell(cell), 8);
            assert!(topology.cells_of(rank, 8).contains(&cell));
        }
    }

    #[test]
    fn illegal_sizes_name_both_numbers() {
        let topology = |workers, expert_parallel, shards| Topology { workers, expert_parallel, shards };
        assert!(topology(3, 1, 1).validated(4).unwrap_err().contains('3'));
        assert!(topology(8, 1, 1).validated(4).unwrap_err().contains('4'));
        assert!(topology(4, 3, 1).validated(4).unwrap_err().contains('4'));
        assert!(topology(1, 1, 0).validated(4).is_err());
        assert!(topology(1, 1, 1).validated(3).is_err());
    }
}
