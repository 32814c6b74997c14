//! What a member tells the coordinator.

use serde::{Deserialize, Serialize};

use crate::control::assignment::AssignmentHash;
use crate::control::counts::{Fingerprint, InputReport, ShardReport};
use crate::control::damage::DamagedCheckpoint;
use crate::control::membership::{MemberId, MemberRef, Phase};
use crate::{FailureKind, Generation, HeldOutSets, Step, StepOutcome, float};

/// A member's sign of life: where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Updates applied so far.
    pub step: Step,
    /// What it is doing.
    pub phase: Phase,
    /// Bytes that it has read of the checkpoint that it restores.
    pub restored_bytes: u64,
    /// Why it waits for the store, one sentence, while it does.
    pub store_wait: Option<String>,
}

/// Wall seconds of one step of rank 0 in each phase; they add up to the step but for what lies between phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseSeconds {
    /// Waiting for tokens and rows.
    pub lookup: f64,
    /// Forward and backward.
    pub computing: f64,
    /// Handing over row gradients.
    pub pushing: f64,
    /// In collectives.
    pub reducing: f64,
    /// Two-phase update: norms, clip, optimizer, shards.
    pub updating: f64,
}

impl PhaseSeconds {
    /// Adds time spent in a phase. Phases that belong to no step are left out.
    pub fn add(&mut self, phase: Phase, seconds: f64) {
        match phase {
            Phase::Loading | Phase::Lookup => self.lookup += seconds,
            Phase::Computing => self.computing += seconds,
            Phase::Pushing => self.pushing += seconds,
            Phase::Reducing => self.reducing += seconds,
            Phase::Updating => self.updating += seconds,
            _ => {}
        }
    }
}

/// One update, as rank 0 saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The update, from 0: it read state version `step` and made version `step + 1`.
    pub step: Step,
    /// Training loss over the global batch, nats per token.
    #[serde(with = "float")]
    pub loss: f64,
    /// Global gradient norm before clipping.
    #[serde(with = "float")]
    pub grad_norm: f64,
    /// Learning rate of the dense parameters.
    #[serde(with = "float")]
    pub lr: f64,
    /// Tokens of the global batch.
    pub tokens: u64,
    /// Wall time of the step.
    #[serde(with = "float")]
    pub seconds: f64,
    /// Of which waiting for tokens.
    #[serde(with = "float")]
    pub data_wait_seconds: f64,
    /// Of which waiting for rows.
    #[serde(with = "float")]
    pub embedding_wait_seconds: f64,
    /// Resident memory of rank 0.
    pub resident_bytes: u64,
    /// The most that it ever was.
    pub peak_resident_bytes: u64,
    /// Its optimizer state: its part of that of all workers.
    pub optimizer_bytes: u64,
    /// Seconds between the step before and this one: reports, evaluation, the copy of the state for a checkpoint.
    #[serde(with = "float")]
    pub boundary_seconds: f64,
    /// Whether a checkpoint was being written when this step began.
    pub commit_under_way: bool,
    /// Memory that rank 0 keeps for snapshots.
    pub snapshot_bytes: u64,
    /// Its time by phase.
    pub phases: PhaseSeconds,
    /// What it was in every topology.
    #[serde(default)]
    pub proof: StepProof,
}

/// What a step was in every topology, beside its loss, norm and rate: what the run's ledger keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepProof {
    /// Number of its first sample, counted over epochs.
    pub first_sample: u64,
    /// Its samples, which follow one another.
    pub samples: u64,
    /// What became of the update.
    pub outcome: StepOutcome,
    /// Sum of the hashes of the rows that it has updated.
    pub rows: Fingerprint,
    /// Sum of the hashes of all blocks of dense weights after it.
    pub dense: Fingerprint,
}

/// An evaluation of one held-out set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Updates applied before it.
    pub step: Step,
    /// Name of the held-out set.
    #[serde(default = "unnamed_set")]
    pub set: String,
    /// Loss, nats per token.
    #[serde(with = "float")]
    pub loss: f64,
    /// Tokens it is the mean over.
    pub tokens: u64,
}

/// The set of records that were made when a run had one set without a name.
fn unnamed_set() -> String {
    HeldOutSets::UNNAMED.to_owned()
}

/// A member's own account of why it cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One sentence.
    pub message: String,
    /// Updates applied so far.
    pub step: Step,
    /// What it was doing.
    pub phase: Phase,
    /// The peer whose end made it fail, if it knows one. The coordinator then waits a moment for that peer's own
    /// end, so that the first cause is blamed and not its consequence.
    pub suspect: Option<MemberRef>,
    /// Nothing is broken: the run is to go back from a spike, which the message names.
    pub roll_back: bool,
    /// The checkpoint that it was to restore, if that is what it could not believe.
    pub damaged: Option<DamagedCheckpoint>,
    /// Whether the program or its environment failed.
    pub kind: FailureKind,
}

/// What a member reports on its stream.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberReport {
    /// Sign of life; the session sends it by itself.
    Heartbeat(Heartbeat),
    /// Peers are connected, state is restored, and this is the assignment that was done.
    Ready {
        /// Of the assignment received.
        assignment: AssignmentHash,
    },
    /// An update was applied (rank 0 only).
    Metrics(StepMetrics),
    /// A held-out evaluation is done (rank 0 only).
    Evaluation(Evaluation),
    /// It cannot go on.
    Failed(Failure),
    /// A worker did its last update, and its last part is reported.
    Finished {
        /// Updates applied.
        step: Step,
    },
    /// What it has counted (shards only).
    Shard(Box<ShardReport>),
    /// What it has counted of its input (workers only).
    Input(Box<InputReport>),
}

/// A report with its sender.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The sender's admission.
    pub member: MemberId,
    /// The generation the sender lives in.
    pub generation: Generation,
    /// What it says.
    pub report: MemberReport,
}
