//! Groups within a group.

use std::io;
use std::net::SocketAddr;

use polygram_domain::Rank;
use serde::{Deserialize, Serialize};

use crate::collective::Collective;
use crate::error::JoinError;
use crate::group::Options;

/// A group whose ranks can form smaller groups among themselves.
pub trait Split: Collective {
    /// Forms groups out of this one: every rank of it calls this at the same time, with the ascending list of the seats,
    /// in this group, that form the group it will be in. A rank's seat in the new group is its place in the list. Different
    /// ranks may give different lists that share no rank; those of a group all give its list and the same `options`.
    ///
    /// This group goes on as before, and the new one lives without it: neither an abort nor the end of one ends the
    /// other.
    ///
    /// # Errors
    /// [`JoinError::Collective`] when this group fails meanwhile. [`JoinError::Argument`], on all ranks and before any
    /// group is formed, when lists or group names do not fit together; this group still works then. Whatever keeps the
    /// members from reaching each other, which may be found out by some ranks only.
    fn split(&mut self, members: &[Rank], options: Options) -> Result<Box<dyn Collective>, JoinError>;
}

/// What a rank tells all others of the larger group.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Letter {
    /// Seats of the larger group.
    members: Vec<Rank>,
    /// The new group's name.
    group: String,
    /// Where it listens, if it does, or why it cannot.
    address: Result<Option<SocketAddr>, String>,
}

/// Exchanges what all ranks of the group of `seat` want, and checks that it fits together. Answers the addresses of
/// `members`, in their order, of those that have one.
pub(crate) fn agree(
    seat: &mut impl Collective,
    members: &[Rank],
    options: &Options,
    address: Option<io::Result<SocketAddr>>,
) -> Result<Vec<SocketAddr>, JoinError> {
    let group = || options.group.clone();
    let refuse = |detail| JoinError::Argument { group: group(), detail };
    let address = address.transpose().map_err(|error| error.to_string());
    let letter = Letter { members: members.to_vec(), group: group(), address };
    let bytes = serde_json::to_vec(&letter)
        .map_err(|error| refuse(format!("what this rank wants cannot be written down: {error}")))?;
    let gathered = seat.all_gather(&bytes);
    let gathered = gathered.map_err(|source| JoinError::Collective { group: group(), source })?;
    let read = |(rank, bytes): (&Rank, &Vec<u8>)| {
        serde_json::from_slice(bytes).map_err(|error| {
            refuse(format!(
                "rank {rank} does not say which group it will be in ({error}); all ranks must split at once"
            ))
        })
    };
    let letters: Vec<Letter> = seat.members().iter().zip(&gathered).map(read).collect::<Result<_, _>>()?;
    check(&letters, seat.members()).map_err(refuse)?;
    let addresses = members.iter().filter_map(|member| letters.get(member.index())?.address.clone().ok()?);
    Ok(addresses.collect())
}

/// Whether `letters`, by seat, fit together; `ranks` are those of the run. The error says what does not.
fn check(letters: &[Letter], ranks: &[Rank]) -> Result<(), String> {
    let world_size = letters.len();
    for (seat, (letter, rank)) in (0..).map(Rank).zip(letters.iter().zip(ranks)) {
        let members = &letter.members;
        let ascends = members.is_sorted_by(|lower, higher| lower < higher);
        let fits = members.last().is_some_and(|last| last.index() < world_size);
        if !(ascends && fits && members.contains(&seat)) {
            return Err(format!(
                "rank {rank}, at seat {seat} of {world_size}, will be in a group of {}; they must ascend, be below \
                 {world_size}, and have its own among them",
                seats(members)
            ));
        }
        if let Err(error) = &letter.address {
            return Err(format!("rank {rank} cannot listen: {error}"));
        }
    }
    for (rank, letter) in ranks.iter().zip(letters) {
        for member in &letter.members {
            let theirs = &letters[member.index()];
            if (&theirs.members, &theirs.group) != (&letter.members, &letter.group) {
                return Err(format!(
                    "rank {rank} will be in {:?} of {}, but rank {} in {:?} of {}; all ranks of a group must give the \
                     same",
                    letter.group,
                    seats(&letter.members),
                    ranks[member.index()],
                    theirs.group,
                    seats(&theirs.members)
                ));
            }
        }
    }
    Ok(())
}

/// "seats 1, 3".
fn seats(members: &[Rank]) -> String {
    let names: Vec<String> = members.iter().map(Rank::to_string).collect();
    match names.len() {
        0 => "no seats".to_string(),
        1 => format!("seat {}", names[0]),
        _ => format!("seats {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(lists: &[&[u32]]) -> Vec<Letter> {
        let letter = |list: &&[u32]| Letter {
            members: list.iter().copied().map(Rank).collect(),
            group: "part".to_string(),
            address: Ok(None),
        };
        lists.iter().map(letter).collect()
    }

    const RANKS: [Rank; 4] = [Rank(10), Rank(11), Rank(12), Rank(13)];

    #[test]
    fn disjoint_groups_of_any_sizes_fit() {
        let lists: [&[&[u32]]; 3] =
            [&[&[0], &[1], &[2], &[3]], &[&[0, 2], &[1, 3], &[0, 2], &[1, 3]], &[&[0, 1, 2, 3][..]; 4]];
        for lists in lists {
            check(&letters(lists), &RANKS).unwrap();
        }
        let mut named = letters(&[&[0, 1], &[0, 1], &[2, 3], &[2, 3]]);
        named[2].group = "other".to_string();
        assert!(check(&named, &RANKS).unwrap_err().contains("rank 12 will be in \"other\" of seats 2, 3"));
        named[3].group = "other".to_string();
        check(&named, &RANKS).unwrap();
    }

    #[test]
    fn lists_that_do_not_fit_are_refused_with_the_reason() {
        let refused = |lists: &[&[u32]]| check(&letters(lists), &RANKS).unwrap_err();
        let words = refused(&[&[0], &[1], &[], &[3]]);
        assert!(words.contains("rank 12, at seat 2 of 4, will be in a group of no seats"), "{words}");
        for wrong in [&[0][..], &[1, 0], &[1, 1], &[1, 4]] {
            assert!(refused(&[&[0], wrong, &[2], &[3]]).contains("rank 11, at seat 1"), "{wrong:?}");
        }
        let words = refused(&[&[0, 1], &[1, 2], &[1, 2], &[3]]);
        assert!(words.contains("rank 10 will be in") && words.contains("but rank 11 in"), "{words}");
    }

    #[test]
    fn a_rank_that_cannot_listen_is_named() {
        let mut letters = letters(&[&[0, 1], &[0, 1], &[2, 3], &[2, 3]]);
        letters[3].address = Err("no port is free".to_string());
        assert_eq!(check(&letters, &RANKS).unwrap_err(), "rank 13 cannot listen: no port is free");
    }
}
