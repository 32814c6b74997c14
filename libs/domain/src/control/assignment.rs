//! What the coordinator tells members: the assignment table and the directives.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::control::membership::{MemberRef, Phase};
use crate::spikes::LeftOut;
use crate::{CheckpointKind, Generation, Step};

/// The one table every member works from: who is where, and what the run continues from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Fencing number of this membership.
    pub generation: Generation,
    /// Data address of every worker, by rank.
    pub workers: Vec<SocketAddr>,
    /// Data address of every shard, by index.
    pub shards: Vec<SocketAddr>,
    /// Updates already applied: 0 for a fresh run.
    pub resume_step: Step,
    /// Object key of the manifest to restore; `None` for a fresh run.
    pub resume_manifest: Option<String>,
    /// What that manifest is of, and so in which root it is.
    pub resume_kind: CheckpointKind,
    /// Samples that are left out.
    pub left_out: LeftOut,
    /// Updates applied before each spike that the run went back from.
    pub ways_back: Vec<u64>,
}

impl Assignment {
    /// The recovery point that is continued from, if it is one.
    pub fn resume_point(&self) -> Option<Step> {
        let is_point = self.resume_manifest.is_some() && self.resume_kind == CheckpointKind::Point;
        is_point.then_some(self.resume_step)
    }

    /// BLAKE3 over the table's fields, each preceded by its length, so that no two tables share their bytes.
    /// Members acknowledge it before the run starts.
    pub fn hash(&self) -> AssignmentHash {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&self.generation.0.to_le_bytes());
        for addresses in [&self.workers, &self.shards] {
            field(&(addresses.len() as u64).to_le_bytes());
            for address in addresses {
                field(address.to_string().as_bytes());
            }
        }
        field(&self.resume_step.0.to_le_bytes());
        field(&[u8::from(self.resume_manifest.is_some())]);
        field(self.resume_manifest.as_deref().unwrap_or_default().as_bytes());
        field(&[u8::from(self.resume_kind == CheckpointKind::Point)]);
        for numbers in [self.left_out.ranges().as_flattened(), &self.ways_back] {
            field(&(numbers.len() as u64).to_le_bytes());
            for number in numbers {
                field(&number.to_le_bytes());
            }
        }
        AssignmentHash(*hasher.finalize().as_bytes())
    }
}

/// BLAKE3 of an [`Assignment`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AssignmentHash(pub [u8; 32]);

impl fmt::Display for AssignmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AssignmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssignmentHash({self})")
    }
}

/// The member that ended the run, as last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// Its slot.
    pub member: MemberRef,
    /// Its process.
    pub pid: u32,
    /// What it was doing.
    pub phase: Phase,
    /// Updates it had applied.
    pub step: Step,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Culprit { member, pid, phase, step, message } = self;
        write!(f, "{member} (pid {pid}) at step {step} while {phase}: {message}")
    }
}

/// What follows an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortKind {
    /// The run is over.
    End,
    /// The run goes back to its last commit: join again, as a member of this generation or a later one.
    Rejoin {
        /// The generation that takes over.
        generation: Generation,
    },
}

/// Why everybody stops at once, without a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abort {
    /// One sentence.
    pub reason: String,
    /// Who ended the run; `None` when it was nobody in it (the operator, the store).
    pub culprit: Option<Culprit>,
    /// Whether the run goes on.
    pub kind: AbortKind,
}

/// What a member is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Connect to these peers, restore this state, and report ready.
    Assign(Assignment),
    /// Everybody is ready: begin.
    Start,
    /// Commit at the next step boundary and stop.
    Stop {
        /// One sentence.
        reason: String,
    },
    /// The checkpoint of this step is whole and committed.
    Committed {
        /// Updates applied in it.
        step: Step,
    },
    /// The recovery point of this step is kept, or was given up: the run goes on without it.
    PointSettled {
        /// Updates applied in it.
        step: Step,
        /// Whether it is kept.
        kept: bool,
    },
    /// Stop now, commit nothing.
    Abort(Abort),
    /// The run is over: leave.
    Exit,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment() -> Assignment {
        Assignment {
            generation: Generation(3),
            workers: vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()],
            shards: vec!["127.0.0.1:3".parse().unwrap()],
            resume_step: Step(20),
            resume_manifest: Some("ckpt/commit/000000000020.json".into()),
            resume_kind: CheckpointKind::Commit,
            left_out: LeftOut::default(),
            ways_back: Vec::new(),
        }
    }

    #[test]
    fn every_field_changes_the_hash() {
        let base = assignment();
        let mut others = vec![base.clone(); 9];
        others[0].generation = Generation(4);
        others[1].workers.swap(0, 1);
        others[2].resume_step = Step(21);
        others[3].resume_manifest = None;
        others[4].resume_manifest = Some(String::new());
        let moved = others[5].workers.pop().unwrap();
        others[5].shards.insert(0, moved);
        others[6].left_out.add(3..7);
        others[7].ways_back = vec![3, 7];
        others[8].resume_kind = CheckpointKind::Point;
        let mut hashes: Vec<_> = others.iter().map(Assignment::hash).collect();
        hashes.push(base.hash());
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes[i + 1..].iter().all(|b| a != b), "hash {i} is not alone");
        }
        assert_eq!(base.hash(), assignment().hash());
    }
}
