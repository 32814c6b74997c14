//! The failure log of a run: who was lost, what followed, where the run went on. Written by coordinators as it happens, read by
//! `polygram why`.
//!
//! Every line has a type, and nobody decides by its words. Lines that earlier builds wrote are read as what they are.

use polygram_domain::{Generation, Step, StepOutcome, float};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys::FAILURE_ROLE;
use crate::segments::{Segment, SegmentId, StepSpan};
use crate::store::RunStore;

/// One line. Times are milliseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FailureLine {
    /// A coordinator took over.
    Opened {
        /// When.
        at_unix_ms: u64,
        /// Its process.
        pid: u32,
        /// State version it began from.
        resumed_from: Step,
    },
    /// A member was lost.
    Lost(LossRecord),
    /// Another member failed in its wake.
    Consequence {
        /// When.
        at_unix_ms: u64,
        /// Who and how.
        sentence: String,
    },
    /// A step was skipped.
    StepSkipped {
        /// When.
        at_unix_ms: u64,
        /// The generation that skipped it.
        generation: Generation,
        /// Updates applied before it.
        step: Step,
        /// Why.
        outcome: StepOutcome,
        /// Its loss, nats per token.
        #[serde(with = "float")]
        loss: f64,
        /// Its gradient norm.
        #[serde(with = "float")]
        grad_norm: f64,
    },
    /// A worker asked for a rollback from a spike.
    RollbackRequested {
        /// When.
        at_unix_ms: u64,
        /// The generation that it ended.
        generation: Generation,
        /// Updates applied before the spike.
        step: Step,
        /// Who asked first, `worker 1`.
        member: String,
        /// What the spike was.
        cause: String,
    },
    /// A generation was assigned, to begin from an earlier state version.
    RolledBack {
        /// When.
        at_unix_ms: u64,
        /// The generation that begins.
        generation: Generation,
        /// Why the one before it ended.
        cause: RollbackCause,
        /// State version that it begins from.
        to: Step,
    },
    /// That generation was restored and began to train.
    Started {
        /// When.
        at_unix_ms: u64,
        /// The generation.
        generation: Generation,
    },
    /// The run is as far as it was before the rollback.
    CaughtUp {
        /// When.
        at_unix_ms: u64,
        /// The generation that did it.
        generation: Generation,
        /// How far that is.
        step: Step,
    },
    /// A checkpoint was found damaged and quarantined. Earlier builds called this line `fell_back`.
    #[serde(alias = "fell_back")]
    CheckpointQuarantined {
        /// When.
        at_unix_ms: u64,
        /// Its step.
        step: Step,
        /// What is wrong with it.
        reason: String,
        /// The older checkpoint that the run goes on from.
        to: Step,
    },
    /// The attempt ended.
    Ended {
        /// When.
        at_unix_ms: u64,
        /// The run's last state.
        state: String,
        /// Why.
        message: String,
    },
    /// As [`FailureLine::RolledBack`], by an earlier build, which did not say why. Never written.
    #[serde(skip_serializing)]
    WentBack {
        /// When.
        at_unix_ms: u64,
        /// The generation that begins.
        generation: Generation,
        /// State version that it begins from.
        step: Step,
    },
    /// A skipped step, or a rollback from a spike, in the words of an earlier build. Never written.
    #[serde(skip_serializing)]
    Policy {
        /// When.
        at_unix_ms: u64,
        /// The generation that it befell.
        generation: Generation,
        /// Updates applied before it.
        step: Step,
        /// What happened.
        sentence: String,
    },
}

impl FailureLine {
    /// When it happened.
    pub fn at_unix_ms(&self) -> u64 {
        match self {
            FailureLine::Lost(LossRecord { at_unix_ms, .. })
            | FailureLine::Opened { at_unix_ms, .. }
            | FailureLine::Consequence { at_unix_ms, .. }
            | FailureLine::StepSkipped { at_unix_ms, .. }
            | FailureLine::RollbackRequested { at_unix_ms, .. }
            | FailureLine::RolledBack { at_unix_ms, .. }
            | FailureLine::Started { at_unix_ms, .. }
            | FailureLine::CaughtUp { at_unix_ms, .. }
            | FailureLine::CheckpointQuarantined { at_unix_ms, .. }
            | FailureLine::Ended { at_unix_ms, .. }
            | FailureLine::WentBack { at_unix_ms, .. }
            | FailureLine::Policy { at_unix_ms, .. } => *at_unix_ms,
        }
    }
}

/// Why a run is rolled back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RollbackCause {
    /// A member was lost.
    #[default]
    MemberLost,
    /// There was a spike, and this is what the run leaves out from now on.
    Spike {
        /// Samples, first and last + 1 of each range.
        left_out: Vec<[u64; 2]>,
    },
    /// The checkpoint that was to be restored is damaged, or was reported so.
    DamagedCheckpoint,
}

/// A loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossRecord {
    /// When it was judged.
    pub at_unix_ms: u64,
    /// The generation that it ended.
    pub generation: Generation,
    /// What kind of loss, in one word.
    pub reason: String,
    /// What state the run was in.
    pub state: String,
    /// Who was lost.
    pub culprit: CulpritRecord,
    /// State version reached.
    pub reached: Step,
    /// Why the run was not rolled back; `None` where it was, or was not to be.
    pub gives_up: Option<String>,
}

/// Who was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CulpritRecord {
    /// Its slot, `worker 1`.
    pub member: String,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// What it was doing.
    pub phase: String,
    /// Updates it had applied.
    pub step: Step,
    /// What happened.
    pub message: String,
}

/// The failure log of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptLog {
    /// The attempt.
    pub attempt: u64,
    /// What happened, in order.
    pub lines: Vec<FailureLine>,
}

impl RunStore {
    /// Writes a segment of `attempt`'s failure log and answers its name.
    pub async fn append_failure_log(
        &self,
        attempt: u64,
        id: impl Into<SegmentId>,
        lines: &[FailureLine],
    ) -> Result<String, CheckpointError> {
        let segment = Segment { attempt, id: id.into(), span: StepSpan::ALL };
        self.append_json(FAILURE_ROLE, &segment, lines).await
    }

    /// Reads the whole failure log, by attempt. Segments that are not in the store any more are left out.
    pub async fn read_failure_log(&self) -> Result<Vec<AttemptLog>, CheckpointError> {
        let mut attempts: Vec<AttemptLog> = Vec::new();
        for object in self.read_events(FAILURE_ROLE, 0..=u64::MAX).await? {
            let attempt = object.segment.attempt;
            match attempts.last_mut().filter(|log| log.attempt == attempt) {
                Some(log) => log.lines.extend(object.lines),
                None => attempts.push(AttemptLog { attempt, lines: object.lines }),
            }
        }
        Ok(attempts)
    }
}
