//! What happens to a run, and what is to be done about it.

use polygram_checkpoint::FailureLine;
use polygram_domain::control::{
    DamagedCheckpoint, Directive, Envelope, Evaluation, MemberId, StepMetrics, StopMode,
};
use polygram_domain::spikes::PolicyState;
use polygram_domain::{CheckpointKind, Generation, Step};
use polygram_proto::control::JoinRequest;

/// Milliseconds since 1970, by a clock that never goes back while the coordinator lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Milliseconds from `earlier` to this; 0 when it is not earlier.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This much later.
    pub fn after(self, millis: u64) -> Time {
        Time(self.0.saturating_add(millis))
    }
}

/// Names a call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names a request to the store that a rollback depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RollbackId(pub u64);

/// What a rollback depends on, and the store decides.
#[derive(Clone, Debug, PartialEq)]
pub enum RollbackRequest {
    /// Decide, by an object that is made once, which commit before a spike is resumed from.
    Spike {
        /// Updates applied before the spike.
        at: Step,
        /// What it was, one sentence.
        cause: String,
    },
    /// A member reports a damaged commit: verify it, and quarantine it if it is damaged and there is an older one.
    DamagedCheckpoint(DamagedCheckpoint),
    /// A member cannot restore a recovery point: quarantine it.
    UnrestorablePoint {
        /// Updates applied in it.
        step: Step,
        /// What is wrong with it, one sentence.
        why: String,
    },
}

/// What the store has decided.
#[derive(Clone, Debug, PartialEq)]
pub enum RollbackResolution {
    /// The checkpoint is what was written.
    Sound,
    /// The run resumes from an older checkpoint.
    Target(RollbackTarget),
    /// The recovery point is quarantined.
    PointQuarantined,
}

/// The checkpoint that a run is rolled back to.
#[derive(Clone, Debug, PartialEq)]
pub struct RollbackTarget {
    /// Updates applied in the commit; `None`: the beginning of the run.
    pub to: Option<Step>,
    /// What the run remembers and leaves out from there.
    pub policy: PolicyState,
    /// Checkpoints that were found damaged and quarantined, newest first, and what is wrong with each: one sentence that
    /// names the object.
    pub quarantined: Vec<(Step, String)>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A process asks for its slot.
    Join {
        /// Of the call.
        ticket: Ticket,
        /// What it asks.
        request: JoinRequest,
    },
    /// A member opened its stream.
    Attend {
        /// Of the call.
        ticket: Ticket,
        /// The member.
        member: MemberId,
        /// The generation it lives in.
        generation: Generation,
    },
    /// A member said something on its stream.
    Report(Envelope),
    /// A member's stream is over.
    StreamEnded {
        /// The member.
        member: MemberId,
        /// How it ended.
        message: String,
    },
    /// A member is done with its part of a checkpoint.
    Upload {
        /// Of the call.
        ticket: Ticket,
        /// The member.
        member: MemberId,
        /// The generation it lives in.
        generation: Generation,
        /// Updates applied in the checkpoint.
        step: Step,
        /// What became of it.
        uploaded: Uploaded,
    },
    /// A commit came to its end; the error says why it did not succeed.
    CommitDone {
        /// The checkpoint.
        step: Step,
        /// How it ended.
        result: Result<(), String>,
    },
    /// A recovery point is kept; the error says why it could not be.
    PointDone {
        /// Updates applied in it.
        step: Step,
        /// How it ended.
        result: Result<(), String>,
    },
    /// The store has answered what a rollback depends on; the error says why it could not.
    RollbackResolved {
        /// Of the request.
        id: RollbackId,
        /// The answer.
        result: Result<RollbackResolution, String>,
    },
    /// The store refused something other than a commit.
    StoreFailed {
        /// One sentence.
        message: String,
    },
    /// The coordinator waits for the store, or waits no more.
    StoreWait {
        /// Why, one sentence, while it waits.
        sentence: Option<String>,
    },
    /// Another coordinator leads the run.
    TakenOver {
        /// Who, one sentence.
        message: String,
    },
    /// The operator ends the run.
    Stop {
        /// Of the call.
        ticket: Ticket,
        /// How.
        mode: StopMode,
        /// Why.
        reason: String,
    },
    /// The coordinator's process was asked to end. The first time means commit and stop, the second abort.
    Interrupt {
        /// Which signal.
        reason: String,
    },
    /// Time passed.
    Tick,
}

/// What became of a member's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It is in its store.
    Part(CheckpointKind),
    /// It is one of a recovery point and could not be written: why, one sentence.
    NotWritten(String),
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The slot is given.
    Admitted {
        /// The admission.
        member: MemberId,
        /// The generation it lives in.
        generation: Generation,
    },
    /// Not now: another try may succeed. One sentence.
    Later(String),
    /// The stream is welcome.
    Attending,
    /// The part is noted.
    PartNoted,
    /// What the stop does.
    Stopping(String),
}

/// Something worth keeping.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An update.
    Metrics(StepMetrics),
    /// A held-out evaluation.
    Evaluation(Evaluation),
    /// A commit.
    Committed(Step),
    /// A generation begins from this state version: what was recorded of later ones is done again.
    ResumedAt(Step),
    /// A line of the failure log.
    Failure(FailureLine),
}

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Completed or stopped, committed.
    Good,
    /// Failed.
    Bad,
}

/// Who a log line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What goes on often and as it should.
    Debug,
    /// The run's course.
    Info,
    /// Something odd that the run survives.
    Warn,
    /// A person must look.
    Error,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Answer a call; the error is a refusal, one sentence.
    Reply {
        /// Of the call.
        ticket: Ticket,
        /// The answer.
        answer: Result<Reply, String>,
    },
    /// Send a directive on a member's stream.
    Direct {
        /// The member.
        member: MemberId,
        /// What it is told.
        directive: Directive,
    },
    /// All parts of a step are here: assemble and commit them, and answer with [`Event::CommitDone`].
    Commit {
        /// The checkpoint.
        step: Step,
    },
    /// All parts of a recovery point are here: assemble and keep it, and answer with [`Event::PointDone`].
    KeepPoint {
        /// Updates applied in it.
        step: Step,
    },
    /// A rollback depends on the store: answer with [`Event::RollbackResolved`], behind whatever is being committed.
    ResolveRollback {
        /// Of the request.
        id: RollbackId,
        /// What the store is to do.
        request: RollbackRequest,
    },
    /// Parts of steps before this one will not be used any more.
    DropParts {
        /// The first step that still matters.
        before: Step,
    },
    /// Keep it and show it.
    Record(Record),
    /// State, reason or message changed: keep and show the status.
    StatusChanged,
    /// Write a line to the log.
    Log(Level, String),
    /// Everybody has left: end the process.
    End(Outcome),
}
