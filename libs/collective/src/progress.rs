//! Who has entered what: the table that names the rank a collective waits for.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polygram_domain::Rank;

use crate::call::Call;
use crate::members::Members;

/// How far a rank is in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Inside it.
    Entered,
    /// Done with it.
    Left,
    /// It failed there.
    Failed,
}

/// One rank's line of the table, in which ranks are those of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankProgress {
    /// Whose line it is.
    pub rank: Rank,
    /// The latest call it is known to have entered, and how far it got; `None` before its first.
    /// Of this rank itself that is exact; of a peer it is what was heard from it.
    pub latest: Option<(Call, Stage)>,
}

impl fmt::Display for RankProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.latest {
            None => write!(f, "rank {} has entered no call", self.rank),
            Some((call, Stage::Entered)) => write!(f, "rank {} entered {call}", self.rank),
            Some((call, Stage::Left)) => write!(f, "rank {} left {call}", self.rank),
            Some((call, Stage::Failed)) => write!(f, "rank {} failed in {call}", self.rank),
        }
    }
}

/// A live view of a group's progress, to be read from any thread (a heartbeat, say) while the rank is in a call.
#[derive(Clone, Debug)]
pub struct Progress {
    group: Arc<str>,
    seat: Rank,
    members: Members,
    /// By seat.
    rows: Arc<Mutex<Vec<RankProgress>>>,
}

impl Progress {
    pub(crate) fn new(group: Arc<str>, seat: Rank, members: Members) -> Progress {
        let row = |rank: &Rank| RankProgress { rank: *rank, latest: None };
        let rows = members.ranks().iter().map(row).collect();
        Progress { group, seat, members, rows: Arc::new(Mutex::new(rows)) }
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// This rank's own line.
    pub fn own(&self) -> RankProgress {
        self.rows()[self.seat.index()]
    }

    /// All ranks' lines as known here, by seat.
    pub fn table(&self) -> Vec<RankProgress> {
        self.rows().clone()
    }

    /// Of a table put together from every rank's [`Progress::own`]: the ranks furthest behind, when not all are
    /// in the same call. Those are the ranks that the others wait for.
    pub fn never_entered(table: &[RankProgress]) -> Vec<Rank> {
        let entered = |row: &RankProgress| row.latest.map(|(call, _)| call.sequence);
        let furthest = table.iter().map(entered).max().flatten();
        let last = table.iter().map(entered).min().flatten();
        if furthest == last && table.iter().all(|row| entered(row) == furthest) {
            return Vec::new();
        }
        let behind = table.iter().filter(|row| entered(row) == last);
        behind.map(|row| row.rank).collect()
    }

    pub(crate) fn mark(&self, call: Call, stage: Stage) {
        self.rows()[self.seat.index()].latest = Some((self.members.call(call), stage));
    }

    /// The rank at seat `peer` was heard to have entered `call`.
    pub(crate) fn heard(&self, peer: Rank, call: Call) {
        self.rows()[peer.index()].latest = Some((self.members.call(call), Stage::Entered));
    }

    fn rows(&self) -> MutexGuard<'_, Vec<RankProgress>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Op;

    fn row(rank: u32, sequence: Option<u64>) -> RankProgress {
        let call = |sequence| Call { sequence, ..Call::of(Op::Barrier) };
        RankProgress { rank: Rank(rank), latest: sequence.map(|sequence| (call(sequence), Stage::Entered)) }
    }

    #[test]
    fn the_ranks_behind_are_named() {
        let table = [row(0, Some(4)), row(1, Some(3)), row(2, Some(4)), row(3, Some(3))];
        assert_eq!(Progress::never_entered(&table), [Rank(1), Rank(3)]);
        let table = [row(0, Some(0)), row(1, None)];
        assert_eq!(Progress::never_entered(&table), [Rank(1)]);
        assert!(Progress::never_entered(&[row(0, Some(2)), row(1, Some(2))]).is_empty());
        assert!(Progress::never_entered(&[row(0, None), row(1, None)]).is_empty());
        assert!(Progress::never_entered(&[]).is_empty());
    }
}
