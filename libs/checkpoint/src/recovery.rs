//! The story of a run's losses: who was lost, what followed, where the run went on. Written by coordinators as they
//! happen, read by `polygram why`.

use polygram_domain::{Generation, Step};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::segments::{Segment, SegmentId, StepSpan};
use crate::store::RunStore;

/// Role under which the story lies among the events.
pub const RECOVERY_ROLE: &str = "recovery";

/// One sentence of the story. Times are milliseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RecoveryLine {
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
    /// A generation was assigned, to begin from a commit.
    WentBack {
        /// When.
        at_unix_ms: u64,
        /// The generation.
        generation: Generation,
        /// The commit.
        step: Step,
    },
    /// That generation was restored and began to train.
    Started {
        /// When.
        at_unix_ms: u64,
        /// The generation.
        generation: Generation,
    },
    /// The run is as far as it was before the loss.
    CaughtUp {
        /// When.
        at_unix_ms: u64,
        /// The generation that did it.
        generation: Generation,
        /// How far that is.
        step: Step,
    },
    /// A checkpoint was found damaged and set aside.
    FellBack {
        /// When.
        at_unix_ms: u64,
        /// Its step.
        step: Step,
        /// What is wrong with it.
        reason: String,
        /// The older checkpoint that the run goes on from.
        to: Step,
    },
    /// A step was skipped, or the run goes back from a spike.
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
    /// The attempt ended.
    Ended {
        /// When.
        at_unix_ms: u64,
        /// The run's last state.
        state: String,
        /// Why.
        message: String,
    },
}

impl RecoveryLine {
    /// When it happened.
    pub fn at_unix_ms(&self) -> u64 {
        match self {
            RecoveryLine::Lost(LossRecord { at_unix_ms, .. })
            | RecoveryLine::Opened { at_unix_ms, .. }
            | RecoveryLine::Consequence { at_unix_ms, .. }
            | RecoveryLine::WentBack { at_unix_ms, .. }
            | RecoveryLine::Started { at_unix_ms, .. }
            | RecoveryLine::CaughtUp { at_unix_ms, .. }
            | RecoveryLine::FellBack { at_unix_ms, .. }
            | RecoveryLine::Policy { at_unix_ms, .. }
            | RecoveryLine::Ended { at_unix_ms, .. } => *at_unix_ms,
        }
    }
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
    /// Why the run did not go back; `None` where it did, or was not to.
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

/// The sentences of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chapter {
    /// The attempt.
    pub attempt: u64,
    /// What it told, in order.
    pub lines: Vec<RecoveryLine>,
}

impl RunStore {
    /// Writes a segment of `attempt`'s story and answers its name.
    pub async fn append_recovery(
        &self,
        attempt: u64,
        id: impl Into<SegmentId>,
        lines: &[RecoveryLine],
    ) -> Result<String, CheckpointError> {
        let segment = Segment { attempt, id: id.into(), span: StepSpan::ALL };
        self.append_json(RECOVERY_ROLE, &segment, lines).await
    }

    /// Reads the whole story, by attempt. Segments that are not in the store any more are left out.
    pub async fn read_recovery(&self) -> Result<Vec<Chapter>, CheckpointError> {
        let mut chapters: Vec<Chapter> = Vec::new();
        for object in self.read_events(RECOVERY_ROLE, 0..=u64::MAX).await? {
            let attempt = object.segment.attempt;
            match chapters.last_mut().filter(|chapter| chapter.attempt == attempt) {
                Some(chapter) => chapter.lines.extend(object.lines),
                None => chapters.push(Chapter { attempt, lines: object.lines }),
            }
        }
        Ok(chapters)
    }
}
