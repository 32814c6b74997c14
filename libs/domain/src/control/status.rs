//! What a run is doing, for people and programs that watch it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::control::assignment::Culprit;
use crate::control::counts::{RowsStatus, ShardReport};
use crate::control::membership::{Phase, Role};
use crate::control::report::{Evaluation, StepMetrics};
use crate::{Generation, Step};

/// Where the run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Nobody has joined.
    Pending,
    /// Some have joined.
    Admitting,
    /// All have joined; not all attend.
    Rendezvous,
    /// All were assigned; they connect and restore.
    Restoring,
    /// Steps are done.
    Running,
    /// A member was lost; the run goes back to its last commit with a new generation of members.
    Recovering,
    /// All steps of `training.steps` are done and committed.
    Completed,
    /// It ended by a fault.
    Failed,
    /// It ended by request, committed.
    Stopped,
}

impl RunState {
    /// Every state, in the order of a run's life.
    pub const ALL: &'static [RunState] = &[
        RunState::Pending,
        RunState::Admitting,
        RunState::Rendezvous,
        RunState::Restoring,
        RunState::Running,
        RunState::Recovering,
        RunState::Completed,
        RunState::Failed,
        RunState::Stopped,
    ];

    /// Whether nothing will happen any more.
    pub fn is_over(self) -> bool {
        matches!(self, RunState::Completed | RunState::Failed | RunState::Stopped)
    }

    /// The state as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Pending => "pending",
            RunState::Admitting => "admitting",
            RunState::Rendezvous => "rendezvous",
            RunState::Restoring => "restoring",
            RunState::Running => "running",
            RunState::Recovering => "recovering",
            RunState::Completed => "completed",
            RunState::Failed => "failed",
            RunState::Stopped => "stopped",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Why the run is in its state, for programs; the message says it to people.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];

            /// The reason as one word.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text),* }
            }
        }
    };
}

reasons! {
    /// Slots are empty.
    WaitingForMembers = "waiting_for_members",
    /// Members have joined but do not attend yet.
    WaitingForAttendance = "waiting_for_attendance",
    /// Members connect and restore.
    WaitingForReady = "waiting_for_ready",
    /// Steps are done.
    Training = "training",
    /// A checkpoint is being assembled.
    Committing = "committing",
    /// A stop was asked for; members come to their next boundary.
    Stopping = "stopping",
    /// All workers are done; the last checkpoint is not.
    FinalCommit = "final_commit",
    /// All steps are done and committed.
    AllStepsDone = "all_steps_done",
    /// The step of `training.stop_at_step` is committed.
    StopAtStep = "stop_at_step",
    /// Somebody asked for the stop.
    StopRequested = "stop_requested",
    /// The commit that was under way when a member was lost has not ended yet.
    WaitingForCommit = "waiting_for_commit",
    /// A member could not restore the checkpoint; the coordinator looks at it itself.
    Examining = "examining",
    /// Restarts in a row came to nothing; the next one waits a while.
    BackingOff = "backing_off",
    /// A member's stream ended.
    MemberLost = "member_lost",
    /// A member stopped giving signs of life.
    MemberSilent = "member_silent",
    /// A member reported its failure.
    MemberFailed = "member_failed",
    /// A member reported that its environment failed: a connection, a disk, a store.
    EnvironmentFailed = "environment_failed",
    /// A member broke the protocol.
    ProtocolBroken = "protocol_broken",
    /// A checkpoint could not be committed.
    CommitFailed = "commit_failed",
    /// The store refused something else.
    StoreFailed = "store_failed",
    /// The store does not take what it is given, for now; the message says why, and what waits for it.
    StoreTrouble = "store_trouble",
    /// Another coordinator leads the run.
    TakenOver = "taken_over",
    /// The operator did not wait for a commit.
    Aborted = "aborted",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One member, as last heard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Worker or shard.
    pub role: Role,
    /// Rank or shard index.
    pub index: u32,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// What it is doing.
    pub phase: Phase,
    /// Updates it has applied.
    pub step: Step,
    /// Its data address, `ip:port`.
    pub address: String,
    /// Milliseconds since its last sign of life.
    pub last_heard_ms: u64,
    /// Whether it still takes part.
    pub alive: bool,
    /// What it last said of its rows, if it is a shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardReport>,
}

/// Why a run went back to a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// What kind of loss.
    pub reason: Reason,
    /// Who was lost.
    pub culprit: Culprit,
}

/// A run whose next step takes longer than its steps do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Milliseconds since the last step, or since steps began.
    pub no_step_ms: u64,
    /// What the run waits for, as far as the coordinator knows: the end of a sentence.
    pub waiting_for: String,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.no_step_ms as f64 / 1000.0;
        write!(f, "no step for {seconds:.1} s, waiting for {}", self.waiting_for)
    }
}

/// The whole run at one instant. Also the content of `status.json` in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Where it is in its life.
    pub state: RunState,
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
    /// When the state began, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Name of the run.
    pub run: String,
    /// Fencing number of the membership.
    pub generation: Generation,
    /// Which start of the run this is, from 1.
    pub attempt: u32,
    /// Updates applied so far.
    pub step: Step,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// Updates that were already applied when this generation began.
    pub resume_step: Step,
    /// Members by role and index.
    pub members: Vec<MemberStatus>,
    /// Newest committed step of the run.
    pub last_commit: Option<Step>,
    /// Newest recovery point that is kept, if it is newer than that.
    #[serde(default)]
    pub last_point: Option<Step>,
    /// Newest update.
    pub last_metrics: Option<StepMetrics>,
    /// The newest evaluation of every held-out set, by name; those of earlier attempts count.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
    /// Who ended the run, or made it go back.
    pub culprit: Option<Culprit>,
    /// Who failed in its wake, one sentence each.
    pub consequences: Vec<String>,
    /// The tables.
    #[serde(default)]
    pub rows: RowsStatus,
    /// Times that this attempt went back to a commit because a member was lost.
    #[serde(default)]
    pub restarts: u32,
    /// Why it last did.
    #[serde(default)]
    pub last_rollback: Option<Rollback>,
    /// Damaged checkpoints that this attempt has set aside to go on from an older one, a sentence each.
    #[serde(default)]
    pub set_aside: Vec<String>,
    /// What the run waits for, where its next step takes longer than its steps do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
}

impl RunStatus {
    /// The status of the run called `run` of `total_steps` updates of which nothing else is known.
    pub fn of(run: impl Into<String>, total_steps: u64) -> RunStatus {
        RunStatus {
            state: RunState::Pending,
            reason: Reason::WaitingForMembers,
            message: String::new(),
            since_unix_ms: 0,
            run: run.into(),
            generation: Generation::of_attempt(0),
            attempt: 0,
            step: Step(0),
            total_steps,
            resume_step: Step(0),
            members: Vec::new(),
            last_commit: None,
            last_point: None,
            last_metrics: None,
            evaluations: Vec::new(),
            culprit: None,
            consequences: Vec::new(),
            rows: RowsStatus::default(),
            restarts: 0,
            last_rollback: None,
            set_aside: Vec::new(),
            stall: None,
        }
    }
}

/// What a watcher sees.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// State, reason or message changed; the first event of every watch, and, once the run is over, the last.
    Status(Box<RunStatus>),
    /// An update was applied.
    Metrics(StepMetrics),
    /// A held-out evaluation is done.
    Evaluation(Evaluation),
    /// A checkpoint is committed.
    Committed {
        /// Updates applied in it.
        step: Step,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Serialize>(value: &T) -> String {
        serde_json::to_string(value).unwrap()
    }

    /// The words on the wire and the words in JSON are the same ones.
    #[test]
    fn words_agree_with_serde() {
        for reason in Reason::ALL {
            assert_eq!(json(reason), format!("\"{reason}\""));
        }
        for state in RunState::ALL {
            assert_eq!(json(state), format!("\"{state}\""));
        }
        for phase in Phase::ALL {
            assert_eq!(json(phase), format!("\"{phase}\""));
        }
    }
}
