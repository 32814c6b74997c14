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

/// The ranks that a bucket's gradient is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumGroup {
    /// All workers.
    Workers,
    /// The workers that hold the same experts.
    SameExperts,
}

impl Topology {
    /// Checks the sizes against each other, against the step's grid of `cells` and against the FFN `experts` of a layer.
    pub fn validated(self, cells: u32, experts: u32) -> Result<Topology, String> {
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
        if !experts.is_multiple_of(expert_parallel) {
            return Err(format!(
                "topology.expert_parallel is {expert_parallel}; it must divide model.n_routed_experts = {experts}"
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

    /// The experts that `rank` holds out of `experts`, which the expert-parallel size divides.
    pub fn experts_of(&self, rank: Rank, experts: u32) -> Range<u32> {
        let each = experts / self.expert_parallel;
        let index = rank.0 % self.expert_parallel;
        index * each..(index + 1) * each
    }

    /// The ranks that divide all experts among them, with `rank`: neighbours.
    pub fn expert_group(&self, rank: Rank) -> Vec<Rank> {
        let first = rank.0 - rank.0 % self.expert_parallel;
        (first..first + self.expert_parallel).map(Rank).collect()
    }

    /// The ranks over which gradients of `group` are summed, with `rank`.
    pub fn sum_group(&self, group: SumGroup, rank: Rank) -> Vec<Rank> {
        match group {
            SumGroup::Workers => (0..self.workers).map(Rank).collect(),
            SumGroup::SameExperts => {
                let first = rank.0 % self.expert_parallel;
                (first..self.workers).step_by(self.expert_parallel as usize).map(Rank).collect()
            }
        }
    }

    /// How many ranks `group` has, and which of them `rank` is.
    pub fn seat_in(&self, group: SumGroup, rank: Rank) -> (u32, u32) {
        match group {
            SumGroup::Workers => (self.workers, rank.0),
            SumGroup::SameExperts => (self.workers / self.expert_parallel, rank.0 / self.expert_parallel),
        }
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
        let topology = Topology { workers: 4, expert_parallel: 2, shards: 3 }.validated(8, 6).unwrap();
        for cell in 0..8 {
            let rank = topology.rank_of(Cell(cell), 8);
            assert!(topology.cells_of(rank, 8).contains(&cell));
        }
    }

    #[test]
    fn groups_partition_ranks_and_experts() {
        let topology = Topology { workers: 8, expert_parallel: 2, shards: 1 }.validated(8, 6).unwrap();
        let ranks = |list: &[u32]| list.iter().copied().map(Rank).collect::<Vec<_>>();
        assert_eq!(topology.expert_group(Rank(5)), ranks(&[4, 5]));
        assert_eq!(topology.experts_of(Rank(5), 6), 3..6);
        assert_eq!(topology.sum_group(SumGroup::SameExperts, Rank(5)), ranks(&[1, 3, 5, 7]));
        for group in [SumGroup::Workers, SumGroup::SameExperts] {
            for rank in (0..8).map(Rank) {
                let members = topology.sum_group(group, rank);
                let (size, seat) = topology.seat_in(group, rank);
                assert_eq!((members.len() as u32, members[seat as usize]), (size, rank));
            }
        }
    }

    #[test]
    fn illegal_sizes_name_both_numbers() {
        let topology = |workers, expert_parallel, shards| Topology { workers, expert_parallel, shards };
        assert!(topology(3, 1, 1).validated(4, 8).unwrap_err().contains('3'));
        assert!(topology(8, 1, 1).validated(4, 8).unwrap_err().contains('4'));
        assert!(topology(4, 3, 1).validated(4, 8).unwrap_err().contains('4'));
        let experts = topology(4, 4, 1).validated(4, 6).unwrap_err();
        assert!(experts.contains('4') && experts.contains('6'), "{experts}");
        assert!(topology(1, 1, 0).validated(4, 8).is_err());
        assert!(topology(1, 1, 1).validated(3, 8).is_err());
    }
}
