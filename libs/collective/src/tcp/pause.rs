//! How a rank passes the time in which nothing moves.
//!
//! Another core may be about to write the next byte, so a rank first looks again without rest. Then it yields between its
//! looks, for the rank that it waits for may have to run on the same core. At last it sleeps until it is woken.
//!
//! To yield is wrong where the core is shared with programs that compute without end: the kernel gives them a whole time
//! slice, milliseconds in which the wait would have been over a thousand times. A rank that sleeps instead runs again as
//! soon as it is woken, and keeps its share of the core. So after a yield that came back late there is none for a while.

use std::time::{Duration, Instant};

/// After the last byte a rank looks for more without rest for so long,
const SPIN: Duration = Duration::from_micros(3);
/// then yields between its looks, and after so long sleeps.
const YIELD: Duration = Duration::from_micros(60);
/// A yield that took as long went to a program that computes, not to ranks that move some pieces: it is the shortest time
/// slice that the kernel gives.
const LATE: Duration = Duration::from_micros(700);
/// After a late yield there is none for so many times what it took: late yields cost about this part of the time at most.
const ABSTINENCE: u32 = 64;
/// The longest time without yields: a process that was stopped tries again soon after it goes on.
const LONGEST_ABSTINENCE: Duration = Duration::from_secs(1);

/// What to do until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing.
    Spin,
    /// Let others run on this core.
    Yield,
    /// Wait to be woken.
    Sleep,
}

/// What a rank has learnt about its core.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pauses {
    /// No yield before.
    no_yield_until: Option<Instant>,
}

impl Pauses {
    /// What to do at `now`, when nothing has moved for `waited`.
    pub(super) fn next(&self, waited: Duration, now: Instant) -> Pause {
        let may_yield = self.no_yield_until.is_none_or(|until| until <= now);
        match waited {
            _ if waited < SPIN => Pause::Spin,
            _ if waited < YIELD && may_yield => Pause::Yield,
            _ => Pause::Sleep,
        }
    }

    /// A yield took `took` and ended at `now`.
    pub(super) fn yielded(&mut self, took: Duration, now: Instant) {
        if took >= LATE {
            self.no_yield_until = Some(now + took.saturating_mul(ABSTINENCE).min(LONGEST_ABSTINENCE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(pauses: &Pauses, now: Instant) -> Vec<Pause> {
        [0, 2, 3, 59, 60, 1_000_000].map(|us| pauses.next(Duration::from_micros(us), now)).to_vec()
    }

    #[test]
    fn a_rank_spins_then_yields_then_sleeps() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        let usual = [Pause::Spin, Pause::Spin, Pause::Yield, Pause::Yield, Pause::Sleep, Pause::Sleep];
        assert_eq!(kinds(&pauses, now), usual);
        // A rank on the same core that moves a piece takes no longer than this.
        pauses.yielded(Duration::from_micros(699), now);
        assert_eq!(kinds(&pauses, now), usual);
    }

    #[test]
    fn after_a_late_yield_it_sleeps_at_once_for_a_while() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        pauses.yielded(Duration::from_millis(3), now);
        let sober = [Pause::Spin, Pause::Spin, Pause::Sleep, Pause::Sleep, Pause::Sleep, Pause::Sleep];
        assert_eq!(kinds(&pauses, now), sober);
        // A punctual yield of another wait that was under way says nothing about the core.
        pauses.yielded(Duration::from_micros(1), now);
        assert_eq!(kinds(&pauses, now + Duration::from_millis(191)), sober);
        assert_eq!(pauses.next(SPIN, now + Duration::from_millis(192)), Pause::Yield, "it tries again");
    }

    #[test]
    fn after_a_stop_of_any_length_it_tries_again_soon() {
        let now = Instant::now();
        for took in [Duration::from_secs(86_400), Duration::MAX] {
            let mut pauses = Pauses::default();
            pauses.yielded(took, now);
            assert_eq!(pauses.next(SPIN, now), Pause::Sleep);
            assert_eq!(pauses.next(SPIN, now + Duration::from_secs(1)), Pause::Yield);
        }
    }
}
