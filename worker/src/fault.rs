//! Faults on order, for tests: this rank dies or freezes at a step and phase.
//!
//! `POLYGRAM_FAULT` in the environment of a worker says where, in four words: rank, step, phase, and `kill` or `freeze`
//! (`"1 25 exchanging freeze"`). The rank first stays in that phase for a moment, as one that hangs there would, so that
//! its heartbeats have shown it.

use std::time::Duration;

use polygram_domain::{Rank, Step};
use polygram_proto::control::Phase;

use crate::error::WorkerError;

/// The variable that orders a fault.
pub const VARIABLE: &str = "POLYGRAM_FAULT";
/// Time in the phase before the fault.
const STAY: Duration = Duration::from_millis(1500);

/// A fault at a place of this rank's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    step: Step,
    phase: Phase,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kill,
    Freeze,
}

impl Fault {
    /// The fault that the environment orders for `rank`, if any.
    ///
    /// # Errors
    /// Where the variable is set to something else than a fault.
    pub fn ordered(rank: Rank) -> Result<Option<Fault>, WorkerError> {
        match std::env::var(VARIABLE) {
            Ok(text) => Fault::parse(&text, rank).ok_or_else(|| WorkerError::Io {
                what: format!("{VARIABLE} is {text:?}; it must be rank, step, phase, and kill or freeze"),
                source: std::io::ErrorKind::InvalidInput.into(),
            }),
            Err(_) => Ok(None),
        }
    }

    /// `None` where `text` is no fault; `Some(None)` where it is another rank's.
    fn parse(text: &str, rank: Rank) -> Option<Option<Fault>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[at, step, phase, kind] = words.as_slice() else { return None };
        let step = Step(step.parse().ok()?);
        let phase = *Phase::ALL.iter().find(|known| known.as_str() == phase)?;
        let kind = match kind {
            "kill" => Kind::Kill,
            "freeze" => Kind::Freeze,
            _ => return None,
        };
        Some((at.parse() == Ok(rank.0)).then_some(Fault { step, phase, kind }))
    }

    /// Strikes if this is the place.
    pub fn strike(self, step: Step, phase: Phase) {
        if (step, phase) != (self.step, self.phase) {
            return;
        }
        tracing::warn!(step = step.0, %phase, kind = ?self.kind, "a fault is ordered here");
        std::thread::sleep(STAY);
        let signal = match self.kind {
            Kind::Kill => libc::SIGKILL,
            Kind::Freeze => libc::SIGSTOP,
        };
        // SAFETY: `raise` has no memory to get wrong.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_for_one_rank() {
        let order = "1 25 exchanging freeze";
        let fault = Fault { step: Step(25), phase: Phase::Exchanging, kind: Kind::Freeze };
        assert_eq!(Fault::parse(order, Rank(1)), Some(Some(fault)));
        assert_eq!(Fault::parse(order, Rank(0)), Some(None));
        for wrong in
            ["", "1 25 exchanging", "1 x exchanging kill", "1 25 sleeping kill", "1 25 computing stop"]
        {
            assert_eq!(Fault::parse(wrong, Rank(1)), None, "{wrong}");
        }
        // Elsewhere nothing happens.
        fault.strike(Step(24), Phase::Exchanging);
        fault.strike(Step(25), Phase::Computing);
    }
}
