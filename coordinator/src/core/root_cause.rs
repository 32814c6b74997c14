//! Who is to blame for the end of a generation, and who failed in its wake. Written here alone.
//!
//! A dead process, or a cut link, is often noticed first by others: a member that fails because of a peer names it. Such
//! reports are collected for a moment. A member that fails for a reason of its own meanwhile, or whose process ends, is to
//! blame; otherwise the report that is closest to the cause counts.

use polygram_domain::FailureKind;
use polygram_domain::control::{Culprit, Failure, MemberRef, Reason};

use super::event::Time;

/// Secondary failures kept word by word.
const SECONDARY_FAILURES: usize = 64;

/// What is known of the failure of a generation.
#[derive(Clone, Debug, Default)]
pub(super) struct RootCause {
    /// Failures that blame a peer, in the order of their arrival.
    reports: Vec<PeerReport>,
    /// When the reports are judged.
    until: Time,
    /// The same, while the member that is blamed for a broken connection has not reported yet why it broke.
    latest: Time,
    culprit: Option<Culprit>,
    secondary: Vec<String>,
}

/// A failure that blames a peer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PeerReport {
    pub(super) reporter: MemberRef,
    pub(super) suspect: MemberRef,
    pub(super) failure: Failure,
}

/// A lost member, and why it counts as lost.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) reason: Reason,
    pub(super) culprit: Culprit,
    pub(super) host: Option<String>,
    /// What the member reported; `None` where it reported nothing.
    pub(super) kind: Option<FailureKind>,
    /// The peer that it blamed.
    pub(super) suspect: Option<MemberRef>,
}

/// How close to the cause a failure of this kind is among those that blame a peer; the highest counts.
///
/// A member that hears nothing over a link sees the cut itself. What a program says of its peer comes before the connections
/// that the peer then closes, and those before connections that are not made any more. The other kinds are a member's own.
fn precedence(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Connect => 0,
        FailureKind::Reset => 1,
        FailureKind::Program => 2,
        FailureKind::Timeout => 3,
        FailureKind::Store | FailureKind::StoreUnusable | FailureKind::Signal => 4,
    }
}

/// Which of `reports` is closest to the cause: by kind, then one whose reporter is blamed itself, then the first.
fn root_of(reports: &[PeerReport]) -> Option<usize> {
    let is_blamed = |who: MemberRef| reports.iter().any(|report| report.suspect == who);
    let rank = |report: &PeerReport| (precedence(report.failure.kind), is_blamed(report.reporter));
    let (at, _) = reports.iter().enumerate().rev().max_by_key(|(_, report)| rank(report))?;
    Some(at)
}

/// What kind of loss a member's own failure is. `restores_point`: whether it was restoring a recovery point.
pub(super) fn reason_of(kind: FailureKind, restores_point: bool) -> Reason {
    match kind {
        // Recovery points may lie in a root of their own, and the run does not need them.
        FailureKind::StoreUnusable if restores_point => Reason::MemberFailed,
        FailureKind::StoreUnusable => Reason::StoreFailed,
        kind if kind.is_environment() => Reason::EnvironmentFailed,
        _ => Reason::MemberFailed,
    }
}

impl Loss {
    /// Whether the loss says that what was restored cannot be: the member failed for a reason of its own, and neither for
    /// its environment nor for a peer.
    pub(super) fn is_own_failure(&self) -> bool {
        self.reason == Reason::MemberFailed && self.suspect.is_none()
    }
}

impl RootCause {
    /// Keeps a report. The first one sets the times when they are judged: `until`, or `latest` while the root cause is a
    /// broken connection and the member that it blames has not reported. A member that ends its part closes its
    /// connections first, and may need a while until it reports.
    pub(super) fn collect(&mut self, report: PeerReport, (until, latest): (Time, Time)) {
        if self.reports.is_empty() {
            (self.until, self.latest) = (until, latest);
        }
        self.reports.push(report);
    }

    /// Takes all reports, in the order of their arrival: somebody else is to blame.
    pub(super) fn take_reports(&mut self) -> Vec<PeerReport> {
        std::mem::take(&mut self.reports)
    }

    /// The report that is closest to the cause, of those that are not judged yet.
    pub(super) fn best_report(&self) -> Option<&PeerReport> {
        Some(&self.reports[root_of(&self.reports)?])
    }

    /// The report that is closest to the cause and the others, once it is time to judge them.
    pub(super) fn take_due(&mut self, now: Time) -> Option<(PeerReport, Vec<PeerReport>)> {
        let root = root_of(&self.reports)?;
        let PeerReport { suspect, failure, .. } = &self.reports[root];
        let is_broken = matches!(failure.kind, FailureKind::Connect | FailureKind::Reset);
        let is_explained = !is_broken || self.reports.iter().any(|report| report.reporter == *suspect);
        if now < if is_explained { self.until } else { self.latest } {
            return None;
        }
        let mut reports = self.take_reports();
        let root = reports.remove(root);
        Some((root, reports))
    }

    /// Who is to blame.
    pub(super) fn culprit(&self) -> Option<&Culprit> {
        self.culprit.as_ref()
    }

    pub(super) fn set_culprit(&mut self, culprit: Option<Culprit>) {
        self.culprit = culprit;
    }

    /// Keeps a secondary failure. False where there are too many.
    pub(super) fn note_secondary(&mut self, who: MemberRef, message: &str) -> bool {
        let has_room = self.secondary.len() < SECONDARY_FAILURES;
        if has_room {
            self.secondary.push(format!("{who}: {message}"));
        }
        has_room
    }

    pub(super) fn secondary(&self) -> &[String] {
        &self.secondary
    }

    /// The generation ends; its culprit is shown until the next one starts.
    pub(super) fn end_generation(&mut self) {
        self.reports.clear();
        self.secondary.clear();
    }

    /// What ended the generation before is history.
    pub(super) fn clear_culprit(&mut self) {
        self.culprit = None;
        self.secondary.clear();
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;
    use polygram_domain::control::{Phase, Role};

    use super::*;

    const W0: MemberRef = MemberRef { role: Role::Worker, index: 0 };
    const W1: MemberRef = MemberRef { role: Role::Worker, index: 1 };
    const W2: MemberRef = MemberRef { role: Role::Worker, index: 2 };
    const S0: MemberRef = MemberRef { role: Role::Shard, index: 0 };

    /// Reporter, suspect and kind of each report, and what follows from them.
    type Case<T> = (&'static [(MemberRef, MemberRef, FailureKind)], T);

    fn report((reporter, suspect): (MemberRef, MemberRef), kind: FailureKind) -> PeerReport {
        let message = format!("{reporter} blames {suspect}: {kind:?}");
        let failure = Failure {
            message,
            step: Step(1),
            phase: Phase::Computing,
            suspect: Some(suspect),
            roll_back: false,
            damaged: None,
            kind,
        };
        PeerReport { reporter, suspect, failure }
    }

    #[test]
    fn the_report_closest_to_the_cause_counts() {
        use FailureKind::{Connect, Program, Reset, Timeout};
        // Reports in the order of their arrival, and which of them is the root.
        let cases: &[Case<usize>] = &[
            (&[(W0, W1, Reset)], 0),
            // Worker 1 is cut off from shard 0 and closes its connections; worker 0 reports that first.
            (&[(W0, W1, Reset), (W1, S0, Timeout)], 1),
            (&[(W1, S0, Timeout), (W0, W1, Reset)], 0),
            (&[(W0, W1, Connect), (W2, W1, Reset), (W1, S0, Timeout)], 2),
            // Both ends of a link see the cut: the first one counts.
            (&[(W1, W0, Timeout), (W0, W1, Timeout)], 0),
            (&[(W2, W0, Reset), (W0, W1, Timeout), (W1, W0, Timeout)], 1),
            // A connection that was closed comes before one that is not made any more.
            (&[(W0, W1, Connect), (W2, W1, Reset)], 1),
            // What a program says of a peer comes before the connections that it closes, and behind a cut link.
            (&[(W0, W1, Reset), (W1, W0, Program)], 1),
            (&[(W0, W1, Program), (W1, S0, Timeout)], 1),
            // Of two broken connections, the one of the member that the other blames.
            (&[(W0, W1, Reset), (W1, S0, Reset)], 1),
            (&[(W2, W0, Reset), (W0, W1, Reset), (W1, S0, Reset)], 1),
            // Of two alike, the first.
            (&[(W0, S0, Reset), (W1, S0, Reset)], 0),
        ];
        for (reports, root) in cases {
            let reports: Vec<PeerReport> = reports
                .iter()
                .map(|(reporter, suspect, kind)| report((*reporter, *suspect), *kind))
                .collect();
            assert_eq!(root_of(&reports), Some(*root), "{reports:?}");
        }
        assert_eq!(root_of(&[]), None);
    }

    #[test]
    fn the_order_of_kinds_is_total_and_a_cut_link_comes_before_what_it_causes() {
        let order = [FailureKind::Connect, FailureKind::Reset, FailureKind::Program, FailureKind::Timeout];
        assert!(order.windows(2).all(|pair| precedence(pair[0]) < precedence(pair[1])));
        let others = FailureKind::ALL.into_iter().filter(|kind| !order.contains(kind));
        assert!(others.into_iter().all(|kind| precedence(kind) > precedence(FailureKind::Timeout)));
    }

    #[test]
    fn reports_are_judged_when_their_time_is_up() {
        let mut cause = RootCause::default();
        assert_eq!(cause.take_due(Time(1_000)), None, "there are none");
        cause.collect(report((W1, S0), FailureKind::Timeout), (Time(100), Time(500)));
        cause.collect(report((W0, W1), FailureKind::Reset), (Time(150), Time(550)));
        assert_eq!(cause.take_due(Time(99)), None);
        let (root, others) = cause.take_due(Time(100)).unwrap();
        assert_eq!((root.reporter, others.len(), others[0].reporter), (W1, 1, W0));
        assert_eq!(cause.take_due(Time(1_000)), None, "once");
        // The next reports have times of their own.
        cause.collect(report((W0, W1), FailureKind::Program), (Time(2_000), Time(2_500)));
        assert_eq!(cause.take_due(Time(1_999)), None);
        assert_eq!(cause.take_reports().len(), 1);
    }

    #[test]
    fn whoever_closed_a_connection_is_given_time_to_report_why() {
        use FailureKind::{Connect, Program, Reset, Timeout};
        // Reports, and whether the later time counts.
        let cases: &[Case<bool>] = &[
            (&[(W0, W1, Reset)], true),
            (&[(W0, W1, Connect)], true),
            (&[(W2, W0, Reset), (W0, W1, Reset)], true),
            // The cut itself is seen, or both ends of the link have reported.
            (&[(W0, W1, Timeout)], false),
            (&[(W0, W1, Reset), (W1, S0, Timeout)], false),
            (&[(W0, W1, Reset), (W1, W0, Reset)], false),
            (&[(W0, W1, Program)], false),
        ];
        for (reports, is_later) in cases {
            let mut cause = RootCause::default();
            for (reporter, suspect, kind) in *reports {
                cause.collect(report((*reporter, *suspect), *kind), (Time(100), Time(500)));
            }
            assert_eq!(cause.clone().take_due(Time(100)).is_none(), *is_later, "{reports:?}");
            assert!(cause.take_due(Time(500)).is_some(), "{reports:?}");
        }
    }

    #[test]
    fn failures_are_told_apart_by_type() {
        for kind in FailureKind::ALL {
            for restores_point in [false, true] {
                let reason = match (kind, restores_point) {
                    (FailureKind::Program, _) | (FailureKind::StoreUnusable, true) => Reason::MemberFailed,
                    (FailureKind::StoreUnusable, false) => Reason::StoreFailed,
                    _ => Reason::EnvironmentFailed,
                };
                assert_eq!(reason_of(kind, restores_point), reason, "{kind:?}, {restores_point}");
            }
        }
    }

    #[test]
    fn secondary_failures_are_bounded() {
        let mut cause = RootCause::default();
        for number in 0..2 * SECONDARY_FAILURES {
            assert_eq!(cause.note_secondary(W0, "x"), number < SECONDARY_FAILURES);
        }
        assert_eq!(cause.secondary().len(), SECONDARY_FAILURES);
    }
}
