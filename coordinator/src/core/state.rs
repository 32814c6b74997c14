//! The state of a run, and one turn of changing it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use polygram_domain::{CheckpointKind, Generation, Step, words};
use polygram_proto::control::{
    AssignmentHash, Culprit, Directive, Evaluation, Failure, Incarnation, MemberId, MemberRef, Phase, Reason,
    Role, RunState, StepMetrics,
};

use super::counts::Counts;
use super::damage::Damage;
use super::event::{Action, Level, Reply, Ticket, Time};
use super::policy::Policy;
use super::recovery::Recovery;
use super::settings::{Resume, Settings};

/// A run, as far as the coordinator knows it. Changed only by [`super::apply`].
#[derive(Clone, Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) run: RunState,
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) since: Time,
    pub(super) members: BTreeMap<MemberRef, Member>,
    pub(super) admissions: u64,
    pub(super) generation: Generation,
    /// What this generation begins from.
    pub(super) resume: Option<Resume>,
    pub(super) assignment: Option<AssignmentHash>,
    pub(super) checkpoints: Checkpoints,
    pub(super) stop: Option<String>,
    /// When the wish to stop is not waited for any longer.
    pub(super) stop_until: Option<Time>,
    pub(super) suspicion: Option<Suspicion>,
    pub(super) culprit: Option<Culprit>,
    pub(super) consequences: Vec<String>,
    pub(super) ending: Option<Ending>,
    pub(super) metrics: Option<StepMetrics>,
    /// The newest evaluation of every held-out set, by name.
    pub(super) evaluations: BTreeMap<String, Evaluation>,
    pub(super) counts: Counts,
    pub(super) last_tick: Time,
    /// What members had read together when it was last shown, and when that was.
    pub(super) shown_restored: (u64, Time),
    pub(super) recovery: Recovery,
    pub(super) policy: Policy,
    pub(super) damage: Damage,
    /// Why the coordinator waits for the store, while it does.
    pub(super) store_wait: Option<String>,
    /// When the last step was reported, or steps began.
    pub(super) stepped: Option<Time>,
}

/// One admitted process.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) who: MemberRef,
    pub(super) incarnation: Incarnation,
    pub(super) pid: u32,
    pub(super) host: String,
    pub(super) address: SocketAddr,
    pub(super) attendance: Attendance,
    pub(super) ready: bool,
    pub(super) heard: Time,
    pub(super) step: Step,
    pub(super) phase: Phase,
    /// Read of the checkpoint that it restores.
    pub(super) restored_bytes: u64,
    /// Why it waits for the store, while it does.
    pub(super) store_wait: Option<String>,
    pub(super) finished: Option<Step>,
    pub(super) failed: bool,
}

/// Whether a member's stream is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attendance {
    /// Joined only.
    Expected,
    /// Open.
    Open,
    /// Was open.
    Ended,
}

/// What is reported, being committed and committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoints {
    /// What is reported of a step that is not complete.
    pub(super) parts: BTreeMap<Step, Parts>,
    /// Complete, not yet begun.
    pub(super) complete: BTreeMap<Step, CheckpointKind>,
    /// The commit that has begun.
    pub(super) committing: Option<Step>,
    /// The recovery point that is being kept; never beside a commit.
    pub(super) keeping: Option<Step>,
    /// Newest committed.
    pub(super) committed: Option<Step>,
    /// Newest recovery point that is kept, if it is newer than that.
    pub(super) point: Option<Step>,
    /// Newest recovery point that was given up by this generation.
    pub(super) given_up: Option<Step>,
}

/// Parts of one checkpoint.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) kind: CheckpointKind,
    /// Who is done with its part.
    pub(super) reported: BTreeSet<MemberRef>,
    /// Who could not write its part of a recovery point, and why.
    pub(super) not_written: Option<String>,
}

/// A failure that blames a peer, waiting for the peer's own end.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    pub(super) reporter: MemberRef,
    pub(super) failure: Failure,
    pub(super) suspect: MemberRef,
    pub(super) until: Time,
}

/// The run is over; members leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) until: Time,
    pub(super) done: bool,
    /// Whether the failure log has the end.
    pub(super) is_recorded: bool,
}

impl State {
    /// A run nobody has joined yet. One whose last step is already committed is over from the start.
    pub fn new(settings: Settings, now: Time) -> State {
        let resumed =
            |kind| settings.resume.as_ref().filter(|resume| resume.kind == kind).map(|resume| resume.step);
        let point = resumed(CheckpointKind::Point);
        let committed = settings.committed.max(resumed(CheckpointKind::Commit));
        let earlier = settings.earlier.evaluations.iter();
        let evaluations = earlier
            .filter(|evaluation| settings.held_out_sets.contains(&evaluation.set))
            .map(|evaluation| (evaluation.set.clone(), evaluation.clone()))
            .collect();
        let mut state = State {
            run: RunState::Pending,
            reason: Reason::WaitingForMembers,
            message: String::new(),
            since: now,
            members: BTreeMap::new(),
            admissions: 0,
            generation: Generation::of_attempt(settings.attempt),
            resume: settings.resume.clone(),
            assignment: None,
            checkpoints: Checkpoints { committed, point, ..Checkpoints::default() },
            stop: None,
            stop_until: None,
            suspicion: None,
            culprit: None,
            consequences: Vec::new(),
            ending: None,
            metrics: None,
            evaluations,
            counts: Counts::default(),
            last_tick: now,
            shown_restored: (0, now),
            recovery: Recovery::default(),
            policy: Policy { state: settings.policy.clone(), undecided: None },
            damage: Damage::default(),
            store_wait: None,
            stepped: None,
            settings,
        };
        let reached = state.resume_step();
        if reached.0 >= state.settings.last_step {
            let total = state.settings.total_steps;
            (state.run, state.reason) = if reached.0 >= total {
                (RunState::Completed, Reason::AllStepsDone)
            } else {
                (RunState::Stopped, Reason::StopAtStep)
            };
            state.message = format!("step {reached} of {total} was already committed; nothing is left to do");
            state.ending = Some(Ending { until: now, done: false, is_recorded: false });
        } else {
            state.message = state.waiting_to_join();
        }
        state
    }

    /// The frame of the run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the run is in its life.
    pub fn run_state(&self) -> RunState {
        self.run
    }

    /// Why, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Newest committed step of the run.
    pub fn last_commit(&self) -> Option<Step> {
        self.checkpoints.committed
    }

    /// What a generation goes on from that begins now.
    pub(super) fn newest(&self) -> Option<Resume> {
        let point = self.checkpoints.point.filter(|point| Some(*point) > self.checkpoints.committed);
        point.map(Resume::at_point).or(self.checkpoints.committed.map(Resume::at))
    }

    /// The active generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Updates applied before this generation.
    pub fn resume_step(&self) -> Step {
        self.resume.as_ref().map_or(Step(0), |resume| resume.step)
    }

    /// The slot of an admission.
    pub fn who(&self, member: MemberId) -> Option<MemberRef> {
        self.members.values().find(|m| m.id == member).map(|m| m.who)
    }

    /// Every slot of the run, workers first.
    pub(super) fn slots(&self) -> impl Iterator<Item = MemberRef> + '_ {
        let slots = |role, count| (0..count).map(move |index| MemberRef { role, index });
        slots(Role::Worker, self.settings.topology.workers)
            .chain(slots(Role::Shard, self.settings.topology.shards))
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.who.role == Role::Worker)
    }

    /// Who waits for the store, and why.
    fn store_trouble(&self) -> Option<String> {
        let waiting: Vec<&Member> = self.members.values().filter(|m| m.store_wait.is_some()).collect();
        let (Some(first), rest) = (waiting.first(), waiting.len().saturating_sub(1)) else {
            return self.store_wait.clone();
        };
        let others =
            if rest == 0 { String::new() } else { format!(" and {}", words::counted(rest as u64, "other")) };
        first.store_wait.as_ref().map(|sentence| format!("{sentence} ({}{others})", first.who))
    }

    pub(super) fn is_over(&self) -> bool {
        self.run.is_over()
    }
}

/// One event being applied.
pub(super) struct Turn<'a> {
    pub(super) state: &'a mut State,
    pub(super) now: Time,
    pub(super) actions: Vec<Action>,
}

impl Turn<'_> {
    pub(super) fn reply(&mut self, ticket: Ticket, answer: Result<Reply, String>) {
        self.actions.push(Action::Reply { ticket, answer });
    }

    pub(super) fn log(&mut self, level: Level, message: String) {
        self.actions.push(Action::Log(level, message));
    }

    /// Sends `directive` to every member whose stream is open.
    pub(super) fn direct_all(&mut self, directive: &Directive) {
        let open = self.state.members.values().filter(|m| m.attendance == Attendance::Open);
        let directed = open.map(|m| Action::Direct { member: m.id, directive: directive.clone() });
        self.actions.extend(directed);
    }

    /// Enters `run` for `reason`. Later turns may refine reason and message within the state.
    pub(super) fn enter(&mut self, run: RunState, reason: Reason, message: String) {
        let (reason, message) = match self.state.store_trouble() {
            // Where members are waited for, that is the reason: the store is in nobody's way yet.
            Some(trouble)
                if !run.is_over() && !matches!(reason, Reason::WaitingForMembers | Reason::BackingOff) =>
            {
                (Reason::StoreTrouble, trouble)
            }
            _ => (reason, message),
        };
        let state = &mut *self.state;
        if state.run == run && state.reason == reason && state.message == message {
            return;
        }
        if state.run != run {
            state.since = self.now;
        }
        state.run = run;
        state.reason = reason;
        state.message = message;
        let level = match run {
            RunState::Failed => Level::Error,
            RunState::Recovering => Level::Warn,
            _ if reason == Reason::StoreTrouble => Level::Warn,
            _ => Level::Info,
        };
        let line = format!("{run}: {}", state.message);
        self.log(level, line);
        self.actions.push(Action::StatusChanged);
    }
}
