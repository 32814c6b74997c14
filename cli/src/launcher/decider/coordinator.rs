//! The coordinator of a launch: started, connected to, and started again where it ends before the run.

use std::time::{Duration, Instant};

use polygram_proto::control::{Announcement, ControlError};

use super::{Decider, Loss, Phase};
use crate::exit::{ExitStatus, Failure};
use crate::launcher::claim::Claim;
use crate::launcher::ended::{COORDINATOR, Ended};
use crate::launcher::messages::{Action, Cause, Conclusion, Ending};
use crate::launcher::supervisor::Verdict;

/// How long a coordinator may take to read its store and listen.
const LISTEN_PATIENCE: Duration = Duration::from_secs(60);
/// A coordinator whose watch broke has so long to end by itself before it is taken for frozen.
const BROKEN_PATIENCE: Duration = Duration::from_secs(1);
/// The same for one that ended its watch in good order, and after it was killed.
const LEAVING_PATIENCE: Duration = Duration::from_secs(10);

impl Decider {
    /// Starts the coordinator, where it listened before if it did.
    pub(super) fn open(&mut self, now: Instant) {
        self.phase = Phase::Opening { until: now + self.listen_patience() };
        self.starting += 1;
        self.actions.push(Action::Open { listen: self.address, claim: self.setup.claim });
    }

    /// It may have to see first whether another coordinator is silent for as long as members may be.
    fn listen_patience(&self) -> Duration {
        LISTEN_PATIENCE.saturating_add(self.setup.detection)
    }

    pub(super) fn not_listening(&mut self, now: Instant) {
        self.fail(Cause::NotListening(self.listen_patience()), ExitStatus::Failed, now);
    }

    pub(super) fn unreadable(&mut self, failure: Failure, now: Instant) {
        if let Phase::Opening { .. } = self.phase {
            self.fail_itself(failure, now);
        }
    }

    /// Whether a coordinator of this launch has listened before.
    pub(super) fn has_begun(&self) -> bool {
        self.address.port() != 0
    }

    pub(super) fn announced(&mut self, announcement: Announcement, now: Instant) {
        let Phase::Opening { .. } = self.phase else { return };
        let Announcement { pid, resume_step, address, .. } = announcement;
        match (self.has_begun(), resume_step) {
            (true, step) => {
                self.say(format!("the coordinator was started again (pid {pid}); committed step {step}"))
            }
            (false, 0) => self.say(format!("starting run {}", self.setup.run)),
            (false, step) => self.say(format!("resuming run {} from step {step}", self.setup.run)),
        }
        // From now on the run is this launch's own; what another one takes is its.
        self.setup.claim = Claim::IfVacant;
        (self.address, self.coordinator) = (address, Some(pid));
        if announcement.state.is_over() {
            self.is_over = true;
            return self.conclude(Conclusion::Ended(Ending::AlreadyOver(announcement)), now);
        }
        for name in self.setup.members.iter().filter(|name| self.unborn.contains(*name)) {
            self.starting += 1;
            self.actions.push(Action::Start(name.clone()));
        }
        self.phase = Phase::Connecting;
        self.actions.push(Action::Connect(address));
    }

    pub(super) fn connected(&mut self) {
        let Phase::Connecting = self.phase else { return };
        self.phase = Phase::Following;
        if self.stops > 0 {
            // It knows nothing of an older wish.
            self.request_stop();
        }
    }

    /// The watch ended, or could not be opened.
    pub(super) fn watch_ended(&mut self, error: Option<ControlError>, now: Instant) {
        if !matches!(self.phase, Phase::Connecting | Phase::Following) {
            return;
        }
        self.stall.stop();
        if !self.goes_on() {
            return self.end(error, now);
        }
        let noticed = self.loss.map_or(now, |loss| loss.noticed);
        self.loss = Some(Loss { noticed, missed_since: None });
        let patience = if error.is_some() { BROKEN_PATIENCE } else { LEAVING_PATIENCE };
        self.phase = Phase::AwaitingCoordinatorsEnd { until: now + patience, error };
        if self.pid_of(COORDINATOR).is_none() {
            self.coordinator_gone(now);
        }
    }

    /// It did not end in time.
    pub(super) fn kill_coordinator(&mut self, now: Instant) {
        let Some(pid) = self.pid_of(COORDINATOR) else { return self.coordinator_gone(now) };
        self.say(format!("killing the coordinator (pid {pid}), which hangs"));
        self.actions.push(Action::Kill(vec![pid]));
        if let Phase::AwaitingCoordinatorsEnd { until, .. } = &mut self.phase {
            *until = now + LEAVING_PATIENCE;
        }
    }

    /// The coordinator's process has ended and the run goes on.
    pub(super) fn coordinator_gone(&mut self, now: Instant) {
        let Phase::AwaitingCoordinatorsEnd { error, .. } = &mut self.phase else { return };
        let error = error.take();
        match self.supervisor.died(COORDINATOR) {
            Verdict::GiveUp => self.find_cause(error, now),
            Verdict::Again(pause) => self.phase = Phase::Pausing { until: now + pause },
        }
    }

    /// The coordinator's process has ended before it listened.
    pub(super) fn ended_before_listening(
        &mut self,
        ended: Ended,
        announcement: Option<Announcement>,
        now: Instant,
    ) {
        if let Some(announcement) = announcement.filter(|_| ended.status.success()) {
            // Nothing was left to do.
            return self.announced(announcement, now);
        }
        // One that ends by itself has said why, and would say it again.
        let was_killed = ended.status.code().is_none();
        match self.supervisor.died(COORDINATOR) {
            Verdict::Again(pause) if was_killed => self.phase = Phase::Pausing { until: now + pause },
            _ => {
                let status = self.status_of(&ended);
                self.fail(Cause::Process(ended), status, now);
            }
        }
    }

    /// The exit status for the sake of a process that ended: its own where nothing was done yet.
    pub(super) fn status_of(&self, ended: &Ended) -> ExitStatus {
        let is_early = self.furthest.is_none() && (self.asked_to_abort || !self.has_begun());
        if ended.is_usage() && is_early { ExitStatus::Usage } else { ExitStatus::Failed }
    }

    /// A request to stop before there is anything to stop.
    pub(super) fn stopped_before_listening(&mut self, now: Instant) {
        let failure = Failure::stopped(
            "stopped before the coordinator listened: nothing was trained; the same command goes on from the newest \
             commit",
        );
        self.fail_itself(failure, now);
        self.kill_everybody();
    }
}
