//! From a broken exchange to an error that names the right rank.
//!
//! A rank that waits in vain sees only its partner, which may itself wait for another. So a failing rank tells all
//! peers whom *it* was waiting for, listens for a moment to what they tell, and follows the trail to the ranks
//! that told nothing.
//!
//! Ranks tell each other of seats. The errors made here, and the words in what is told, name ranks of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use polygram_domain::Rank;

use super::algorithms::{Seat, Stop};
use crate::error::{CollectiveError, Place, ranks};
use crate::link::{Broken, Cause, Link, Notice, NoticeKind};
use crate::members::Members;
use crate::progress::RankProgress;

/// The most time spent listening to peers after nothing was heard for `failure_detection`.
const GRACE: Duration = Duration::from_secs(1);
/// The most time spent listening to peers after one was lost. Who hears of a failure in the middle of a message cuts it,
/// and is lost to the receiver because of a failure that is somebody else's; that one has told all before.
const LOST_GRACE: Duration = Duration::from_millis(100);

/// Tells the peers, and answers the error that this rank's caller gets.
pub(super) fn reach<L: Link>(
    mut seat: Seat<'_, L>,
    stop: Stop,
    place: Box<Place>,
    failure_detection: Duration,
) -> CollectiveError {
    let Broken { cause, waiting } = match stop {
        Stop::Broken(broken) => broken,
        Stop::Overflow => {
            let error = CollectiveError::Overflow { place };
            seat.tell(&error, Vec::new());
            return error;
        }
    };
    let error = match cause {
        Cause::Silent => return seat.silence(place, waiting, None, failure_detection),
        Cause::Told { sender, notice } if notice.kind == NoticeKind::Silence => {
            return seat.silence(place, waiting, Some((sender, notice)), failure_detection);
        }
        Cause::Told { notice, .. } => {
            seat.link.announce(&Notice { waiting, ..notice.clone() });
            return peer_failed(seat.members, place, notice);
        }
        Cause::Aborted => {
            let reason = seat.round.abort.reason().unwrap_or_default();
            CollectiveError::Aborted { place, reason, waiting: seat.members.names(&waiting) }
        }
        Cause::Lost { peer, detail } => {
            let notices = seat.link.gather_notices(LOST_GRACE.min(failure_detection / 4));
            let other = |notice: &Notice| notice.origin != peer && notice.suspect != Some(peer);
            let first = notices.into_iter().map(|(_, notice)| notice);
            if let Some(notice) = first.filter(other).find(|notice| notice.kind == NoticeKind::Failure) {
                seat.link.announce(&Notice { waiting, ..notice.clone() });
                return peer_failed(seat.members, place, notice);
            }
            CollectiveError::PeerLost { place, peer: seat.members.name(peer), detail }
        }
        Cause::Unheard { peer, waited } => CollectiveError::Unheard { place, peer, waited },
        Cause::Mismatch { peer, theirs } => {
            let (peer, theirs) = (seat.members.name(peer), seat.members.call(theirs));
            CollectiveError::Mismatch { place, peer, theirs }
        }
        Cause::Corrupt { peer, detail } => {
            CollectiveError::Corrupt { place, peer: seat.members.name(peer), detail }
        }
        Cause::Injected => CollectiveError::Injected { place },
    };
    seat.tell(&error, waiting);
    error
}

fn peer_failed(members: &Members, place: Box<Place>, notice: Notice) -> CollectiveError {
    let Notice { origin, suspect, reason, .. } = notice;
    let (origin, suspect) = (members.name(origin), suspect.map(|seat| members.name(seat)));
    CollectiveError::PeerFailed { place, origin, suspect, reason }
}

impl<L: Link> Seat<'_, L> {
    /// Tells the peers of `error`, which began here.
    fn tell(&mut self, error: &CollectiveError, waiting: Vec<Rank>) {
        let reason = error.to_string();
        let suspect = error.suspects().first().and_then(|rank| self.members.seat(*rank));
        let origin = self.link.rank();
        self.link.announce(&Notice { origin, kind: NoticeKind::Failure, suspect, waiting, reason });
    }

    /// Nothing came, here or (`told`) at a peer: finds out who is silent.
    fn silence(
        &mut self,
        place: Box<Place>,
        waiting: Vec<Rank>,
        told: Option<(Rank, Notice)>,
        failure_detection: Duration,
    ) -> CollectiveError {
        let own = self.link.rank();
        let reason = format!("{place}: waits for {}", ranks(&self.members.names(&waiting)));
        let kind = NoticeKind::Silence;
        self.link.announce(&Notice { origin: own, kind, suspect: None, waiting: waiting.clone(), reason });
        let mut notices: BTreeMap<Rank, Notice> = told.into_iter().collect();
        notices.extend(self.link.gather_notices(GRACE.min(failure_detection / 4)));
        let failure = notices.values().find(|notice| notice.kind == NoticeKind::Failure);
        if let Some(notice) = failure {
            return peer_failed(self.members, place, notice.clone());
        }
        let silent = trail(own, &waiting, &notices);
        let table = self.round.progress.table();
        let heard = silent.iter().filter_map(|rank| table.get(rank.index()));
        let mut heard: Vec<String> = heard.map(RankProgress::to_string).collect();
        if silent != waiting {
            let waiting = ranks(&self.members.names(&waiting));
            heard.push(format!("this rank waits for {waiting}, found through its peers"));
        }
        let heard = format!("last known: {}", heard.join("; "));
        let silent = self.members.names(&silent);
        CollectiveError::TimedOut { place, silent, heard, waited: failure_detection }
    }
}

/// Follows who waits for whom, from this rank, to the ranks that gave no notice. A trail that only goes round in a
/// circle ends at this rank, if a peer waits for it, or else at the ranks it waits for itself.
fn trail(own: Rank, waiting: &[Rank], notices: &BTreeMap<Rank, Notice>) -> Vec<Rank> {
    let mut silent = BTreeSet::new();
    let mut seen = BTreeSet::from([own]);
    let mut open: Vec<Rank> = waiting.to_vec();
    while let Some(rank) = open.pop() {
        if !seen.insert(rank) {
            continue;
        }
        match notices.get(&rank) {
            None => {
                silent.insert(rank);
            }
            Some(notice) => open.extend(&notice.waiting),
        }
    }
    if !silent.is_empty() {
        silent.into_iter().collect()
    } else if notices.values().any(|notice| notice.waiting.contains(&own)) || waiting.is_empty() {
        vec![own]
    } else {
        waiting.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices(list: &[(u32, &[u32])]) -> BTreeMap<Rank, Notice> {
        let notice = |origin, waiting: &[u32]| Notice {
            origin: Rank(origin),
            kind: NoticeKind::Silence,
            suspect: None,
            waiting: waiting.iter().copied().map(Rank).collect(),
            reason: String::new(),
        };
        list.iter().map(|(rank, waiting)| (Rank(*rank), notice(*rank, waiting))).collect()
    }

    #[test]
    fn the_trail_ends_at_those_who_told_nothing() {
        assert_eq!(trail(Rank(0), &[Rank(2)], &notices(&[(2, &[3])])), [Rank(3)]);
        assert_eq!(trail(Rank(0), &[Rank(2)], &notices(&[])), [Rank(2)]);
        let told = notices(&[(1, &[0]), (2, &[3, 5]), (3, &[4])]);
        assert_eq!(trail(Rank(0), &[Rank(1), Rank(2)], &told), [Rank(4), Rank(5)]);
    }

    #[test]
    fn circles_end() {
        assert_eq!(trail(Rank(0), &[Rank(1)], &notices(&[(1, &[0])])), [Rank(0)]);
        assert_eq!(trail(Rank(0), &[Rank(1)], &notices(&[(1, &[2]), (2, &[1])])), [Rank(1)]);
        assert_eq!(trail(Rank(0), &[], &notices(&[(1, &[0])])), [Rank(0)]);
    }
}
