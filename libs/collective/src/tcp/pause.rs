//! How a rank passes the time in which nothing moves.
//!
//! Another core may be about to write the next byte, so a rank first looks again without rest. Then it lets others run
//! between its looks, for one of them may be the rank that it waits for, on the same core. At last it sleeps until it is
//! woken.
//!
//! To let others run is wrong where those others are strangers with work without end: the kernel gives them a whole time
//! slice of milliseconds, a thousand times what the wait would have taken. A rank that sleeps instead comes back as soon as
//! it is woken, and has not spent its share of the core. So a yield that comes back late is the last for a while.

use std::time::{Duration, Instant};

/// After the last byte a rank looks for more without rest for so long,
const SPIN: Duration = Duration::from_micros(3);
/// then lets others run between its looks, and after so long sleeps.
const YIELD: Duration = Duration::from_micros(60);
/// A yield that takes longer went to somebody who computes, and not to a rank that hands over a piece.
const LATE: Duration = Duration::from_micros(300);
/// After a late yield there is none for so many times what it took: yields to strangers cost at most that part of the time.
const ABSTENTION: u32 = 64;

/// What to do until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Nothing.
    Spin,
    /// Let others run.
    Yield,
    /// Wait to be woken.
    Sleep,
}

/// What a rank has learnt about its core.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pauses {
    /// Until then the core counts as shared with strangers.
    shared_until: Option<Instant>,
}

impl Pauses {
    /// What to do at `now`, when nothing has moved for `waited`.
    pub(super) fn next(&self, waited: Duration, now: Instant) -> Pause {
        let is_shared = self.shared_until.is_some_and(|until| now < until);
        let (mode, spin, yields) = knobs();
        match mode {
            0 => { if waited < SPIN { Pause::Spin } else if waited < YIELD { Pause::Yield } else { Pause::Sleep } }
            1 => { if waited < spin { Pause::Spin } else if waited < yields { Pause::Yield } else { Pause::Sleep } }
            _ => {
                if is_shared { if waited < spin { Pause::Spin } else { Pause::Sleep } }
                else if waited < SPIN { Pause::Spin } else if waited < YIELD { Pause::Yield } else { Pause::Sleep }
            }
        }
    }

    /// A yield took so long, until `now`.
    pub(super) fn yielded(&mut self, took: Duration, now: Instant) {
        if took >= LATE {
            self.shared_until = now.checked_add(took * ABSTENTION);
        }
    }
}

fn knobs() -> (u32, Duration, Duration) {
    static K: std::sync::OnceLock<(u32, Duration, Duration)> = std::sync::OnceLock::new();
    *K.get_or_init(|| {
        let t = std::env::var("PAUSE").unwrap_or("0:3:60".into());
        let mut p = t.split(':').map(|x| x.parse::<u64>().unwrap());
        let mut n = || p.next().unwrap();
        (n() as u32, Duration::from_micros(n()), Duration::from_micros(n()))
    })
}
