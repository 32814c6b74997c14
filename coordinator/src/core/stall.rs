//! What a run waits for, where its next step takes longer than its steps do.

use polygram_domain::control::{MemberRef, Phase, Reason, RunState, Stall};

use super::event::Time;
use super::membership::{Member, Stream};
use super::state::State;

/// A step that takes so many times as long as the one before is a stall.
const STALLED_STEPS: f64 = 3.0;
/// A shorter wait is none: what members last said of themselves may be older.
const STALLED_HEARTBEATS: u64 = 3;
/// Members named before the rest is only counted.
const NAMED: usize = 4;

impl State {
    /// How long no step came, and what is waited for, where that is longer than steps take.
    pub(super) fn stall(&self, now: Time) -> Option<Stall> {
        let no_step_ms = now.since(self.reported.stepped()?);
        let metrics = self.reported.metrics().or(self.settings.earlier.metrics);
        let usual_ms = metrics.map_or(0.0, |metrics| metrics.seconds * 1000.0 * STALLED_STEPS) as u64;
        let shortest_ms = self.settings.timeouts.heartbeat_ms * STALLED_HEARTBEATS;
        let is_stalled = !self.is_over() && no_step_ms >= usual_ms.max(shortest_ms);
        is_stalled.then(|| Stall { no_step_ms, waiting_for: self.waited_for(now) })
    }

    /// What the run waits for, the end of a sentence.
    fn waited_for(&self, now: Time) -> String {
        let last_loss = || self.rollback.last().map_or(String::new(), |last| format!(": {}", last.culprit));
        match (self.lifecycle.reason(), self.run_state()) {
            (Reason::StoreTrouble, _) => format!("the store: {}", self.message()),
            (Reason::BackingOff, _) => format!("the pause after the last loss{}", last_loss()),
            (Reason::WaitingForCommit, _) => "the checkpoint that is being written".to_owned(),
            (Reason::Examining, _) => "the check of a checkpoint that may be damaged".to_owned(),
            (_, RunState::Running) => self.waited_for_in_step(now),
            (_, RunState::Restoring) => self.named("to be ready", |member| member.ready),
            (_, RunState::Rendezvous) => {
                self.named("to open a stream", |member| member.stream == Stream::Open)
            }
            _ => self.named("to join", |_| true),
        }
    }

    /// The slots that have no member, or one that is not `done`.
    fn named(&self, verb: &str, done: impl Fn(&Member) -> bool) -> String {
        let missing: Vec<MemberRef> =
            self.slots().filter(|slot| !self.membership.get(*slot).is_some_and(&done)).collect();
        let names: Vec<String> = missing.iter().take(NAMED).map(MemberRef::to_string).collect();
        let rest = missing.len().saturating_sub(NAMED);
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        format!("{}{rest} {verb}", names.join(", "))
    }

    /// The member that holds up a step: one that a peer reports or that is silent; else the last one of those that do not
    /// wait for others themselves.
    fn waited_for_in_step(&self, now: Time) -> String {
        if let Some(report) = self.root_cause.best_report() {
            return format!(
                "{}, reported by {}: {}",
                report.suspect, report.reporter, report.failure.message
            );
        }
        let doing = |member: &Member| format!("{} ({} at step {})", member.who, member.phase, member.step);
        let silence_ms = self.settings.timeouts.heartbeat_ms * STALLED_HEARTBEATS;
        let silent = self.membership.iter().filter(|member| now.since(member.heard) >= silence_ms);
        if let Some(member) = silent.min_by_key(|member| (member.heard, member.who)) {
            let seconds = now.since(member.heard) as f64 / 1000.0;
            return format!("{}, silent for {seconds:.1} s", doing(member));
        }
        let slowest =
            self.membership.workers().min_by_key(|member| (member.step, waits(member.phase), member.who));
        slowest.map_or("its workers".to_owned(), doing)
    }
}

/// Whether a worker in this phase waits for others.
fn waits(phase: Phase) -> bool {
    matches!(phase, Phase::Lookup | Phase::Exchanging | Phase::Reducing | Phase::Pushing | Phase::Ready)
}
