//! How often a run is restarted after losses, and how fast: restarts without progress, back-off, quarantine of hosts, and
//! when the run gives up. Pure, and written here alone.

use std::collections::{BTreeMap, BTreeSet};

use polygram_domain::control::{Culprit, Reason, Role};
use polygram_domain::run_spec::RecoverySpec;
use polygram_domain::{Step, words};

use super::event::Time;

/// No back-off is longer.
const LONGEST_BACKOFF_MS: u64 = 60_000;

/// What is left of a run's restarts.
#[derive(Clone, Debug)]
pub(super) struct RestartBudget {
    policy: RecoverySpec,
    /// Losses after which the run was restarted.
    restarts: u32,
    has_lost: bool,
    /// The furthest state version that was ever reported.
    furthest: Step,
    /// The same at the last loss.
    furthest_at_loss: Step,
    /// Losses in a row between which the run came no further.
    without_progress: u32,
    /// Those of them that the environment caused. They cost time, and one of the run's restarts each, but they are no sign
    /// that the program fails again.
    outages: u32,
    /// Failures that members reported themselves since the run last came further.
    failures: BTreeSet<FailureSignature>,
    hosts: BTreeMap<String, Host>,
    hosts_seen: BTreeSet<String>,
}

/// A failure by which it is known again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FailureSignature {
    role: Role,
    /// Its message without the numbers: ports and ranks differ from one time to the next.
    message: String,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Losses by its members since the run last came further.
    losses: u32,
    quarantined_until: Option<Time>,
}

impl FailureSignature {
    /// Deaths and silence look alike whatever caused them; only what a member reports is known again.
    fn of(reason: Reason, culprit: &Culprit) -> Option<FailureSignature> {
        let is_reported = matches!(reason, Reason::MemberFailed | Reason::ProtocolBroken);
        is_reported.then(|| FailureSignature {
            role: culprit.member.role,
            message: culprit.message.chars().filter(|c| !c.is_ascii_digit()).collect(),
            step: culprit.step,
        })
    }
}

impl RestartBudget {
    pub(super) fn new(policy: RecoverySpec) -> RestartBudget {
        RestartBudget {
            policy,
            restarts: 0,
            has_lost: false,
            furthest: Step(0),
            furthest_at_loss: Step(0),
            without_progress: 0,
            outages: 0,
            failures: BTreeSet::new(),
            hosts: BTreeMap::new(),
            hosts_seen: BTreeSet::new(),
        }
    }

    /// Whether the run is restarted after a loss at all.
    pub(super) fn allows_restarts(&self) -> bool {
        self.policy.max_restarts > 0
    }

    pub(super) fn restarts(&self) -> u32 {
        self.restarts
    }

    pub(super) fn max_restarts(&self) -> u32 {
        self.policy.max_restarts
    }

    /// Losses in a row between which the run came no further, whatever caused them.
    pub(super) fn losses_without_progress(&self) -> u32 {
        self.without_progress + self.outages
    }

    /// Whether the environment has failed more often in a row than a program may.
    pub(super) fn is_long_outage(&self) -> bool {
        self.outages > self.policy.max_fruitless_restarts
    }

    /// The run has reached `step`. False where it was further before.
    pub(super) fn reach(&mut self, step: Step) -> bool {
        let is_furthest = step >= self.furthest;
        self.furthest = self.furthest.max(step);
        is_furthest
    }

    /// Takes note of a host, and says why its members have to wait, if so. A run that has one host alone keeps it.
    pub(super) fn admit_host(&mut self, host: &str, now: Time) -> Option<String> {
        if !self.hosts_seen.contains(host) {
            self.hosts_seen.insert(host.to_owned());
        }
        let Host { losses, quarantined_until } = *self.hosts.get(host)?;
        let until = quarantined_until.filter(|until| now < *until && self.hosts_seen.len() > 1)?;
        let seconds = until.since(now) as f64 / 1000.0;
        Some(format!(
            "host {host} is kept out for {seconds:.0} s: {} in a row of its members",
            words::counted(losses.into(), "loss")
        ))
    }

    /// Takes note of a loss, and says why the run cannot be restarted after it, if so.
    pub(super) fn lose(
        &mut self,
        (reason, culprit): (Reason, &Culprit),
        host: Option<&str>,
        now: Time,
    ) -> Option<String> {
        self.count(reason, host, now);
        let why = self.gives_up(reason, culprit);
        self.failures.extend(FailureSignature::of(reason, culprit));
        why
    }

    /// The run is restarted. Answers when the next generation may be assigned, if not at once.
    pub(super) fn restart(&mut self, now: Time) -> Option<Time> {
        self.restarts += 1;
        let doubled = self.without_progress.checked_sub(2).max(self.outages.checked_sub(1))?;
        let pause = (self.policy.backoff_seconds * 1000.0 * f64::from(doubled.min(16)).exp2()) as u64;
        Some(now.after(pause.min(LONGEST_BACKOFF_MS)))
    }

    fn count(&mut self, reason: Reason, host: Option<&str>, now: Time) {
        let is_outage = reason == Reason::EnvironmentFailed;
        let is_first = !std::mem::replace(&mut self.has_lost, true);
        if is_first || self.furthest > self.furthest_at_loss {
            self.furthest_at_loss = self.furthest;
            (self.without_progress, self.outages) = (0, 0);
            self.failures.clear();
            self.hosts.clear();
        } else if is_outage {
            self.outages += 1;
        } else {
            self.without_progress += 1;
        }
        // A link has two ends: who reports that it is cut is not to blame.
        let Some(host) = host.filter(|_| !is_outage) else { return };
        let host = self.hosts.entry(host.to_owned()).or_default();
        host.losses += 1;
        if host.losses >= self.policy.quarantine_after {
            host.quarantined_until = Some(now.after((self.policy.quarantine_seconds * 1000.0) as u64));
        }
    }

    fn gives_up(&self, reason: Reason, culprit: &Culprit) -> Option<String> {
        if reason == Reason::StoreFailed {
            let why =
                "starting members again does not mend the store; mend it, and the same command continues";
            return Some(why.into());
        }
        if FailureSignature::of(reason, culprit).is_some_and(|failure| self.failures.contains(&failure)) {
            return Some(format!(
                "this failure came at step {} before, so it would come again; mend its cause, and the same command \
                 continues",
                culprit.step
            ));
        }
        if self.restarts >= self.policy.max_restarts {
            return Some(format!("recovery.max_restarts = {} is used up", self.policy.max_restarts));
        }
        if self.without_progress > self.policy.max_fruitless_restarts {
            return Some(format!(
                "{} in a row came no further than step {} (recovery.max_fruitless_restarts)",
                words::counted(self.policy.max_fruitless_restarts.into(), "restart"),
                self.furthest_at_loss
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::control::{MemberRef, Phase};

    use super::*;

    const POLICY: RecoverySpec = RecoverySpec {
        max_restarts: 10,
        max_fruitless_restarts: 2,
        backoff_seconds: 1.0,
        quarantine_after: 2,
        quarantine_seconds: 60.0,
    };

    fn culprit(message: &str, step: u64) -> Culprit {
        Culprit {
            member: MemberRef { role: Role::Worker, index: 0 },
            pid: 1,
            phase: Phase::Computing,
            step: Step(step),
            message: message.into(),
        }
    }

    /// What happens before a restart, or instead of one.
    #[derive(Clone, Copy, Debug)]
    enum Did {
        Reach(u64),
        /// A death, which waits so many milliseconds until the next generation.
        Die(u64),
        /// A failing environment, likewise.
        Outage(u64),
        /// A failure of the program's own at a step, likewise.
        Fail(&'static str, u64, u64),
        /// The same, and the run gives up, in these words.
        GiveUp(Reason, &'static str, u64, &'static str),
    }

    #[test]
    fn losses_are_counted_between_progress() {
        use Did::*;
        let cases: &[&[Did]] = &[
            // The first loss, and each one after progress, costs no pause.
            &[Die(0), Reach(3), Die(0), Reach(4), Die(0)],
            // Without progress they slow down, and end.
            &[Die(0), Die(0), Die(1000), GiveUp(Reason::MemberLost, "x", 0, "no further than step 0")],
            &[Reach(7), Die(0), Die(0), Reach(7), Die(1000), Reach(8), Die(0), Die(0)],
            // An outage slows the run down at once, up to a minute, and ends it only by the number of restarts.
            &[
                Outage(0),
                Outage(1000),
                Outage(2000),
                Outage(4000),
                Outage(8000),
                Outage(16000),
                Outage(32000),
                Outage(60000),
                Outage(60000),
                Outage(60000),
                GiveUp(Reason::EnvironmentFailed, "x", 0, "max_restarts = 10 is used up"),
            ],
            // Outages and deaths have counts of their own.
            &[
                Outage(0),
                Die(0),
                Outage(1000),
                Die(1000),
                GiveUp(Reason::MemberLost, "x", 0, "2 restarts in a row"),
            ],
            // The same failure at the same step is one of the program.
            &[
                Fail("port 4711: not finite", 7, 0),
                Fail("port 4711: not finite", 8, 0),
                GiveUp(Reason::MemberFailed, "port 42: not finite", 7, "this failure came at step 7 before"),
            ],
            &[Fail("x", 7, 0), Reach(8), Fail("x", 7, 0)],
            &[Outage(0), Outage(1000), GiveUp(Reason::StoreFailed, "full", 3, "mend it")],
            &[Fail("x", 7, 0), GiveUp(Reason::ProtocolBroken, "x", 7, "came at step 7 before")],
        ];
        for (number, case) in cases.iter().enumerate() {
            let (mut budget, now) = (RestartBudget::new(POLICY), Time(1_000));
            for (at, did) in case.iter().enumerate() {
                let name = format!("case {number}, {at}: {did:?}");
                let (reason, culprit, pause) = match *did {
                    Reach(step) => {
                        budget.reach(Step(step));
                        continue;
                    }
                    Die(pause) => (Reason::MemberLost, culprit("gone", 0), pause),
                    Outage(pause) => (Reason::EnvironmentFailed, culprit("hears nothing", 0), pause),
                    Fail(message, step, pause) => (Reason::MemberFailed, culprit(message, step), pause),
                    GiveUp(reason, message, step, words) => {
                        let why = budget.lose((reason, &culprit(message, step)), None, now);
                        assert!(why.as_ref().is_some_and(|why| why.contains(words)), "{name}: {why:?}");
                        continue;
                    }
                };
                assert_eq!(budget.lose((reason, &culprit), None, now), None, "{name}");
                let until = budget.restart(now).unwrap_or(now);
                assert_eq!(until.since(now), pause, "{name}");
            }
        }
    }

    #[test]
    fn progress_is_reaching_as_far_as_before() {
        let mut budget = RestartBudget::new(POLICY);
        for (step, is_furthest) in [(3, true), (2, false), (3, true), (4, true)] {
            assert_eq!(budget.reach(Step(step)), is_furthest, "{step}");
        }
    }

    #[test]
    fn a_host_is_quarantined_for_losses_in_a_row_where_there_is_another() {
        let death = (Reason::MemberLost, &culprit("gone", 0));
        let outage = (Reason::EnvironmentFailed, &culprit("hears nothing", 0));
        // Hosts seen, losses, and whether the host called bad waits.
        for (seen, losses, is_out) in [
            (&["bad", "good"][..], &[death, death][..], true),
            (&["bad"], &[death, death], false),
            (&["bad", "good"], &[death], false),
            (&["bad", "good"], &[outage, outage, outage], false),
        ] {
            let mut budget = RestartBudget::new(POLICY);
            for host in seen {
                assert_eq!(budget.admit_host(host, Time(0)), None);
            }
            for (reason, culprit) in losses {
                budget.lose((*reason, culprit), Some("bad"), Time(0));
            }
            let why = budget.admit_host("bad", Time(1_000));
            assert_eq!(why.is_some_and(|why| why.contains("kept out for 59 s: 2 losses")), is_out);
            assert_eq!(budget.admit_host("good", Time(1_000)), None);
            assert_eq!(budget.admit_host("bad", Time(60_000)), None, "not for ever");
            budget.reach(Step(1));
            budget.lose(death, Some("good"), Time(2_000));
            assert_eq!(budget.admit_host("bad", Time(2_000)), None, "progress clears it");
        }
    }

    #[test]
    fn a_long_outage_is_longer_than_a_program_may_fail() {
        let mut budget = RestartBudget::new(POLICY);
        for outage in 0..5 {
            assert_eq!(budget.is_long_outage(), outage > 3, "{outage}");
            budget.lose((Reason::EnvironmentFailed, &culprit("x", 0)), None, Time(0));
        }
    }
}
