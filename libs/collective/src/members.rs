//! Which ranks of the run sit in a group: what is shown to people is a rank of the run, whatever its seat.

use std::sync::Arc;

use polygram_domain::Rank;

use crate::call::{Call, Op};

/// The ranks of the run by their seats in a group. Between the ranks of a group, and inside it, seats are spoken of;
/// this is where they become ranks of the run, for errors and progress tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Members(Arc<[Rank]>);

impl Members {
    /// Those of a group that is the whole run.
    pub(crate) fn all(world_size: u32) -> Members {
        Members((0..world_size).map(Rank).collect())
    }

    /// Those of the group within this one that `seats` form.
    pub(crate) fn pick(&self, seats: &[Rank]) -> Members {
        Members(self.names(seats).into())
    }

    /// Ranks of the run, by seat.
    pub(crate) fn ranks(&self) -> &[Rank] {
        &self.0
    }

    /// The rank at `seat`. Of a seat that the group does not have, which only a stranger can claim, the number itself.
    pub(crate) fn name(&self, seat: Rank) -> Rank {
        self.0.get(seat.index()).copied().unwrap_or(seat)
    }

    /// [`Members::name`] of each of `seats`.
    pub(crate) fn names(&self, seats: &[Rank]) -> Vec<Rank> {
        seats.iter().map(|seat| self.name(*seat)).collect()
    }

    /// The seat of a rank of the run, if it has one here.
    pub(crate) fn seat(&self, rank: Rank) -> Option<Rank> {
        (0..).map(Rank).zip(self.ranks()).find_map(|(seat, member)| (*member == rank).then_some(seat))
    }

    /// `call` as it is shown.
    pub(crate) fn call(&self, call: Call) -> Call {
        match call.op {
            Op::Broadcast => Call { root: self.name(call.root), ..call },
            _ => call,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_within_a_group_within_a_group_knows_the_ranks_of_the_run() {
        let outer = Members::all(8).pick(&[1, 3, 5, 7].map(Rank));
        let inner = outer.pick(&[Rank(0), Rank(2)]);
        assert_eq!(inner.ranks(), [Rank(1), Rank(5)]);
        assert_eq!((inner.name(Rank(1)), inner.name(Rank(9))), (Rank(5), Rank(9)));
        assert_eq!((inner.seat(Rank(5)), inner.seat(Rank(3))), (Some(Rank(1)), None));
    }

    #[test]
    fn only_a_broadcast_has_a_root_to_name() {
        let members = Members::all(4).pick(&[Rank(2), Rank(3)]);
        let root = |op| members.call(Call { root: Rank(0), ..Call::of(op) }).root;
        assert_eq!((root(Op::Broadcast), root(Op::Barrier)), (Rank(2), Rank(0)));
    }
}
