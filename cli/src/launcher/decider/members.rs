//! The processes of a launch: which have ended, which are started again, and which are killed because they hang.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus as ProcessStatus;
use std::time::{Duration, Instant};

use polygram_domain::control::{Reason, RunStatus, StopMode};

use super::{Death, Decider, Phase, REPORT_PATIENCE};
use crate::exit::Failure;
use crate::launcher::ended::{COORDINATOR, Ended};
use crate::launcher::messages::{Action, Exit};
use crate::launcher::supervisor::{AT_ONCE, Verdict};

/// A member that ended well before the run was over is started again after this, unless the run is over by then.
const QUIET_PAUSE: Duration = Duration::from_secs(1);

impl Decider {
    pub(super) fn process_started(&mut self, name: String, pid: u32) {
        self.starting = self.starting.saturating_sub(1);
        self.unborn.remove(&name);
        self.living.insert(pid, name);
        if matches!(self.phase, Phase::Killing | Phase::ClearingAway(_)) {
            // It was ordered before the end.
            self.actions.push(Action::Kill(vec![pid]));
        }
    }

    /// What the system refuses now it may grant later: a member that cannot be started again counts as another death.
    pub(super) fn process_not_started(&mut self, name: String, failure: Failure, now: Instant) {
        self.starting = self.starting.saturating_sub(1);
        if matches!(self.phase, Phase::Killing | Phase::ClearingAway(_)) {
            return;
        }
        if name == COORDINATOR || self.unborn.contains(&name) {
            return self.fail_itself(failure, now);
        }
        self.warn(failure.to_string());
        if self.is_over {
            return;
        }
        match self.supervisor.died(&name) {
            Verdict::Again(pause) => self.supervisor.schedule(name, now + pause),
            Verdict::GiveUp => {
                let ended =
                    Ended { name, pid: 0, status: ProcessStatus::from_raw(0x100), lived: Duration::ZERO };
                self.death = Some(Death { ended, due: now });
            }
        }
    }

    pub(super) fn exited(&mut self, exit: Exit, now: Instant) {
        self.living.remove(&exit.ended.pid);
        let is_coordinator = exit.ended.is_coordinator();
        match &self.phase {
            Phase::Opening { .. } if is_coordinator => {
                self.ended_before_listening(exit.ended, exit.announcement, now);
            }
            Phase::AwaitingCoordinatorsEnd { .. } if is_coordinator => {
                self.note_exit(exit, now);
                self.coordinator_gone(now);
            }
            Phase::Opening { .. }
            | Phase::Pausing { .. }
            | Phase::AwaitingCoordinatorsEnd { .. }
            | Phase::Connecting
            | Phase::Following => self.note_exit(exit, now),
            Phase::FindingCause { .. } => self.explained_by(exit.ended, now),
            Phase::Killing | Phase::Recording { .. } | Phase::ClearingAway(_) | Phase::Ended => {}
        }
    }

    fn note_exit(&mut self, exit: Exit, now: Instant) {
        let ended = &exit.ended;
        // One that this launch has ended with the run says nothing about why the run ended.
        let is_sent_away = self.unstarted_until.is_some() && !self.started_pids.contains(&ended.pid);
        if !ended.status.success() && !is_sent_away {
            self.ends.push(ended.clone());
        }
        if self.is_over || self.death.is_some() {
            return;
        }
        let is_quiet = ended.status.success() && !ended.is_coordinator();
        if self.goes_on() {
            return self.start_again(exit, is_quiet, now);
        }
        if !is_quiet {
            self.say(ended.sentence());
            self.death = Some(Death { ended: exit.ended, due: now + REPORT_PATIENCE });
        }
    }

    /// Sees to it that a process that died before the run was over is started again.
    fn start_again(&mut self, exit: Exit, is_quiet: bool, now: Instant) {
        self.say(exit.ended.sentence());
        if exit.ended.is_coordinator() {
            // The end of its watch follows, and with it the next one.
            return;
        }
        let verdict = self.supervisor.died(&exit.ended.name);
        if self.is_hopeless(&exit) {
            self.say(format!("{} ends like this at every start: it is not started again", exit.ended.name));
            self.death = Some(Death { ended: exit.ended, due: now });
            return;
        }
        match verdict {
            Verdict::Again(pause) => {
                let pause = if is_quiet { pause.max(QUIET_PAUSE) } else { pause };
                self.supervisor.schedule(exit.ended.name, now + pause);
            }
            Verdict::GiveUp => self.death = Some(Death { ended: exit.ended, due: now }),
        }
    }

    /// Whether a process that ended would do so again: it ends by itself before it joins, at every start, for one reason.
    fn is_hopeless(&mut self, exit: &Exit) -> bool {
        let ended = &exit.ended;
        let failed_by_itself = ended.status.code().is_some_and(|code| code != 0);
        let is_early = ended.lived < AT_ONCE && !self.joined.contains(&ended.pid);
        failed_by_itself && is_early && self.supervisor.ended_at_once(&ended.name, &exit.last_line)
    }

    /// Starts those again whose pause is over.
    pub(super) fn restart_due(&mut self, now: Instant) {
        while let Some(name) = self.supervisor.take_due(now) {
            self.starting += 1;
            self.actions.push(Action::Start(name));
        }
    }

    /// Members that live and did not come back in time hang somewhere: they are killed, and started again.
    pub(super) fn kill_absent(&mut self, now: Instant) {
        let Some(loss) = &mut self.loss else { return };
        // A coordinator that was started again waits for members as if they were new.
        let is_waiting = |status: &&RunStatus| status.reason == Reason::WaitingForMembers;
        let Some(status) = self.status.as_deref().filter(is_waiting) else {
            loss.missed_since = None;
            return;
        };
        let since = *loss.missed_since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.setup.detection {
            return;
        }
        loss.missed_since = None;
        let is_back = |pid: u32| status.members.iter().any(|member| member.pid == pid);
        let absent: Vec<(u32, String)> = self
            .living
            .iter()
            .filter(|(pid, name)| *name != COORDINATOR && !is_back(**pid))
            .map(|(pid, name)| (*pid, name.clone()))
            .collect();
        for (pid, name) in absent {
            self.actions.push(Action::Kill(vec![pid]));
            self.say(format!("killed {name} (pid {pid}), which did not come back"));
        }
    }

    /// Kills members that had not started when the run was over, and are still there after their time.
    pub(super) fn kill_unstarted(&mut self, now: Instant) {
        if self.unstarted_until.is_some_and(|until| until <= now) {
            let unstarted = self.unstarted();
            if !unstarted.is_empty() {
                self.actions.push(Action::Kill(unstarted));
            }
        }
    }

    /// What becomes of a death that nobody has explained in time.
    pub(super) fn death_due(&mut self, now: Instant) {
        let Some(death) = self.death.as_mut().filter(|death| death.due <= now) else { return };
        if self.asked_to_abort {
            return self.end(None, now);
        }
        // One that dies before it has joined is nobody to the coordinator: it is told, and has the last word.
        self.asked_to_abort = true;
        death.due = now + REPORT_PATIENCE;
        let reason = death.ended.sentence();
        self.actions.push(Action::RequestStop { mode: StopMode::Abort, reason });
    }
}
