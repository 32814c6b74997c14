//! The state of a run: its parts, each with an owner in a file of its own, and what follows from several of them.

use polygram_domain::control::{Culprit, MemberId, MemberRef, Reason, Role, RunState};
use polygram_domain::{Generation, Step, words};

use super::checkpoints::Checkpoints;
use super::event::Time;
use super::lifecycle::Lifecycle;
use super::membership::{Member, Membership};
use super::reported::Reported;
use super::restart_budget::RestartBudget;
use super::rollback::Rollback;
use super::root_cause::RootCause;
use super::settings::Settings;

/// A run, as far as the coordinator knows it. Changed only by [`super::apply`].
#[derive(Clone, Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) lifecycle: Lifecycle,
    pub(super) membership: Membership,
    pub(super) checkpoints: Checkpoints,
    pub(super) root_cause: RootCause,
    pub(super) budget: RestartBudget,
    pub(super) rollback: Rollback,
    pub(super) reported: Reported,
}

impl State {
    /// A run nobody has joined yet. One whose last step is already committed is over from the start.
    pub fn new(settings: Settings, now: Time) -> State {
        let mut state = State {
            lifecycle: Lifecycle::new(now, String::new()),
            membership: Membership::new(Generation::of_attempt(settings.attempt), now),
            checkpoints: Checkpoints::new(settings.resume.clone(), settings.committed),
            root_cause: RootCause::default(),
            budget: RestartBudget::new(settings.recovery.clone()),
            rollback: Rollback::new(settings.policy.clone()),
            reported: Reported::new(&settings),
            settings,
        };
        let (reached, total) = (state.resume_step(), state.settings.total_steps);
        state.lifecycle = if reached.0 >= state.settings.last_step {
            let (run, reason) = if reached.0 >= total {
                (RunState::Completed, Reason::AllStepsDone)
            } else {
                (RunState::Stopped, Reason::StopAtStep)
            };
            let message = format!("step {reached} of {total} was already committed; nothing is left to do");
            Lifecycle::over(now, (run, reason, message))
        } else {
            Lifecycle::new(now, state.waiting_to_join())
        };
        state
    }

    /// The same run, of whose checkpoints some were quarantined when it was opened.
    pub fn with_quarantined(mut self, damaged: &[(Step, String)], to: Step) -> State {
        self.rollback.quarantine(damaged, to);
        self
    }

    /// The frame of the run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the run is in its life.
    pub fn run_state(&self) -> RunState {
        self.lifecycle.run()
    }

    /// Why, for people.
    pub fn message(&self) -> &str {
        self.lifecycle.message()
    }

    /// Newest committed step of the run.
    pub fn last_commit(&self) -> Option<Step> {
        self.checkpoints.committed()
    }

    /// The active generation.
    pub fn generation(&self) -> Generation {
        self.membership.generation()
    }

    /// Updates applied before this generation.
    pub fn resume_step(&self) -> Step {
        self.checkpoints.resume_step()
    }

    /// The slot of an admission.
    pub fn who(&self, member: MemberId) -> Option<MemberRef> {
        self.membership.by_id(member).map(|m| m.who)
    }

    /// Who is to blame for the end of the run, or of its last generation.
    pub fn culprit(&self) -> Option<&Culprit> {
        self.root_cause.culprit()
    }

    /// Every slot of the run, workers first.
    pub(super) fn slots(&self) -> impl Iterator<Item = MemberRef> + '_ {
        let slots = |role, count| (0..count).map(move |index| MemberRef { role, index });
        slots(Role::Worker, self.settings.topology.workers)
            .chain(slots(Role::Shard, self.settings.topology.shards))
    }

    pub(super) fn is_over(&self) -> bool {
        self.lifecycle.is_over()
    }

    /// The state version that this generation has reached, as rank 0 reports it.
    pub(super) fn reached(&self) -> Step {
        self.reported.reached().unwrap_or_else(|| self.resume_step())
    }

    /// Updates that a member has applied: its heartbeat may be older than what rank 0 has reported, and a step is applied
    /// by every member or by none.
    pub(super) fn step_of(&self, member: &Member) -> Step {
        if self.run_state() == RunState::Running { member.step.max(self.reached()) } else { member.step }
    }

    /// The recovery point that members are restoring, if they are.
    pub(super) fn restored_point(&self) -> Option<Step> {
        let is_restoring = self.run_state() == RunState::Restoring;
        self.checkpoints.resumed_point().filter(|_| is_restoring)
    }

    /// Who waits for the store, and why.
    pub(super) fn store_trouble(&self) -> Option<String> {
        let mut waiting = self.membership.iter().filter_map(|m| Some((m.who, m.store_wait.as_ref()?)));
        let Some((who, sentence)) = waiting.next() else {
            return self.lifecycle.store_wait().map(str::to_owned);
        };
        let others = match waiting.count() {
            0 => String::new(),
            rest => format!(" and {}", words::counted(rest as u64, "other")),
        };
        Some(format!("{sentence} ({who}{others})"))
    }
}
