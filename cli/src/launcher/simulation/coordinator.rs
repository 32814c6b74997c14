//! The coordinator of a simulated launch: its real core, and the only place that knows how that is spoken to.

use std::sync::OnceLock;

use polygram_coordinator::core::{
    Action, Event, Level, Outcome, Record, Reply, Resume, Settings, State, Ticket, Time, Uploaded, apply,
};
use polygram_domain::control::{
    Directive, Envelope, Incarnation, MemberId, MemberRef, MemberReport, RunState, RunStatus, StepMetrics,
    StopMode,
};
use polygram_domain::run_spec::RecoverySpec;
use polygram_domain::{CheckpointKind, Generation, RunFile, RunSpec, SCHEMA_VERSION, Step, Topology};
use polygram_proto::control::JoinRequest;

/// Something that happens to a coordinator.
pub(super) type Input = Event;

/// What a coordinator does, as far as others notice.
#[derive(Debug)]
pub(super) enum Effect {
    /// It answers a call.
    Answer(u64, Answer),
    /// It directs a member.
    Direct(MemberId, Directive),
    /// It shows its status.
    Status,
    /// It shows a step.
    Metrics(StepMetrics),
    /// It shows a commit.
    Committed(Step),
    /// It commits a step; [`commit_done`] is due.
    Commit(Step),
    /// Its process ends, well or not.
    End(bool),
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The slot is given.
    Admitted(MemberId, Generation),
    /// Not now.
    Later,
    /// The stream is open, the part is noted, or the run stops.
    Done,
    /// No.
    Refused,
}

/// One coordinator's core.
pub(super) struct Coordinator {
    state: State,
}

fn spec() -> RunSpec {
    static SPEC: OnceLock<RunSpec> = OnceLock::new();
    let parse = || {
        let text = include_str!("../../../../configs/tiny.toml");
        RunFile::parse(text, "tiny.toml", &[]).unwrap().resolve().unwrap()
    };
    SPEC.get_or_init(parse).clone()
}

/// The frame of a simulated run.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) topology: Topology,
    pub(super) steps: u64,
    pub(super) detection_seconds: f64,
    pub(super) recovery: RecoverySpec,
}

impl Coordinator {
    /// One that opens the run of `frame` at its newest commit, as start number `attempt`.
    pub(super) fn open(frame: &Frame, commit: Option<u64>, attempt: u32, now: u64) -> Coordinator {
        let mut spec = spec();
        spec.topology = frame.topology;
        spec.training.steps = frame.steps;
        spec.training.stop_at_step = None;
        spec.failure_detection_seconds = frame.detection_seconds;
        spec.recovery = frame.recovery.clone();
        let resume = commit.map(|step| Resume::at(Step(step)));
        let settings = Settings::of(&spec, (resume, Default::default()), attempt);
        Coordinator { state: State::new(settings, Time(now)) }
    }

    pub(super) fn run_state(&self) -> RunState {
        self.state.run_state()
    }

    pub(super) fn message(&self) -> &str {
        self.state.message()
    }

    pub(super) fn resume_step(&self) -> u64 {
        self.state.resume_step().0
    }

    pub(super) fn status(&self, now: u64) -> RunStatus {
        self.state.status(Time(now))
    }

    pub(super) fn apply(&mut self, input: Input, now: u64) -> Vec<Effect> {
        apply(&mut self.state, input, Time(now)).into_iter().filter_map(effect).collect()
    }
}

fn effect(action: Action) -> Option<Effect> {
    Some(match action {
        Action::Reply { ticket, answer } => Effect::Answer(
            ticket.0,
            match answer {
                Ok(Reply::Admitted { member, generation }) => Answer::Admitted(member, generation),
                Ok(Reply::Later(_)) => Answer::Later,
                Ok(_) => Answer::Done,
                Err(_) => Answer::Refused,
            },
        ),
        Action::Direct { member, directive } => Effect::Direct(member, directive),
        Action::Commit { step } => Effect::Commit(step),
        Action::StatusChanged => Effect::Status,
        Action::Record(Record::Metrics(metrics)) => Effect::Metrics(metrics),
        Action::Record(Record::Committed(step)) => Effect::Committed(step),
        Action::End(outcome) => Effect::End(outcome == Outcome::Good),
        Action::Log(Level::Error, line) if line.is_empty() => panic!("an error says what it is"),
        _ => return None,
    })
}

/// A process asks for its slot.
pub(super) fn join(ticket: u64, member: MemberRef, incarnation: Incarnation, pid: u32) -> Input {
    let data_address = ([127, 0, 0, 1], 1024 + (pid % 60_000) as u16).into();
    let request = JoinRequest {
        schema_version: SCHEMA_VERSION,
        member,
        incarnation,
        pid,
        host: "sim".into(),
        data_address,
    };
    Event::Join { ticket: Ticket(ticket), request }
}

/// A member opens its stream.
pub(super) fn attend(ticket: u64, member: MemberId, generation: Generation) -> Input {
    Event::Attend { ticket: Ticket(ticket), member, generation }
}

/// A member reports.
pub(super) fn report(member: MemberId, generation: Generation, report: MemberReport) -> Input {
    Event::Report(Envelope { member, generation, report })
}

/// A member's stream ends.
pub(super) fn stream_ended(member: MemberId) -> Input {
    Event::StreamEnded { member, message: "connection reset".into() }
}

/// A member has written its part of a commit.
pub(super) fn upload(ticket: u64, member: MemberId, generation: Generation, step: u64) -> Input {
    let uploaded = Uploaded::Part(CheckpointKind::Commit);
    Event::Upload { ticket: Ticket(ticket), member, generation, step: Step(step), uploaded }
}

/// A commit has ended.
pub(super) fn commit_done(step: Step, result: Result<(), String>) -> Input {
    Event::CommitDone { step, result }
}

/// The operator ends the run.
pub(super) fn stop(ticket: u64, mode: StopMode, reason: String) -> Input {
    Event::Stop { ticket: Ticket(ticket), mode, reason }
}

/// The process gets a signal.
pub(super) fn interrupt() -> Input {
    Event::Interrupt { reason: "SIGTERM".into() }
}

/// The store keeps the coordinator waiting, or no more.
pub(super) fn store_wait(sentence: Option<&str>) -> Input {
    Event::StoreWait { sentence: sentence.map(str::to_owned) }
}

/// Time passes.
pub(super) fn tick() -> Input {
    Event::Tick
}
