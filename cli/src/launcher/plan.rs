//! What is launched.

use std::time::Duration;

use polygram_domain::RunSpec;
use polygram_faults::FaultInjection;

use super::claim::Claim;
use super::decider::Setup;
use super::siblings::Program;
use crate::settings::{Configuration, Root};

/// What is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// The run.
    pub(crate) configuration: &'a Configuration,
    /// Newest steps whose numbers are kept.
    pub(crate) kept_steps: usize,
    /// Where it is stored.
    pub(crate) root: &'a Root,
    /// What becomes of another coordinator that leads it.
    pub(crate) claim: Claim,
    /// Whether its processes inject faults.
    pub(crate) faults: FaultInjection,
}

/// A member that is to be started.
pub(super) struct Member {
    /// Its name.
    pub(super) name: String,
    /// Its program.
    pub(super) program: Program,
    /// The argument that says which slot is its own.
    pub(super) slot: &'static str,
    /// The number of the slot.
    pub(super) number: u32,
}

/// The members of a run, in the order in which they are started.
pub(super) fn members(spec: &RunSpec) -> impl Iterator<Item = Member> {
    let shards = (0..spec.topology.shards).map(|number| Member {
        name: format!("shard {number}"),
        program: Program::EmbeddingShard,
        slot: "--index",
        number,
    });
    let workers = (0..spec.topology.workers).map(|number| Member {
        name: format!("worker {number}"),
        program: Program::Worker,
        slot: "--rank",
        number,
    });
    shards.chain(workers)
}

impl Plan<'_> {
    /// What the decider of the launch has to know.
    pub(super) fn setup(&self) -> Setup {
        let spec = &self.configuration.spec;
        Setup {
            run: spec.name.to_string(),
            members: members(spec).map(|member| member.name).collect(),
            detection: Duration::from_secs_f64(spec.failure_detection_seconds),
            last_step: spec.last_step(),
            kept_steps: self.kept_steps,
            claim: self.claim,
            recovery: spec.recovery.clone(),
        }
    }
}
