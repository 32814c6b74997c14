//! When a progress line is printed where a line cannot be rewritten. Pure; the caller tells the time.

use std::time::{Duration, Instant};

/// Between progress lines.
const QUIET_INTERVAL: Duration = Duration::from_secs(5);
/// A reason to wait is worth a line of its own when it has lasted so long.
const WAITING_INTERVAL: Duration = Duration::from_millis(900);

/// What was printed, and when.
#[derive(Debug)]
pub(super) struct Display {
    /// The step that the session ends at.
    last_step: u64,
    /// The newest line and since when it has been so.
    shown: (String, Instant),
    said: String,
    said_step: Option<u64>,
    said_at: Instant,
}

impl Display {
    /// Nothing was printed yet.
    pub(super) fn new(last_step: u64, now: Instant) -> Display {
        Display { last_step, shown: (String::new(), now), said: String::new(), said_step: None, said_at: now }
    }

    /// Notes that `line` was printed for its own sake.
    pub(super) fn note(&mut self, line: &str) {
        self.said = line.to_owned();
    }

    /// Whether `line` is to be printed now, after so many steps.
    pub(super) fn is_due(&mut self, line: &str, steps_done: Option<u64>, now: Instant) -> bool {
        if line != self.shown.0 {
            self.shown = (line.to_owned(), now);
        }
        let lasts = |since: Instant, interval: Duration| now.saturating_duration_since(since) >= interval;
        let is_due = match steps_done {
            // While waiting, a reason that stays is said once.
            None => line != self.said && lasts(self.shown.1, WAITING_INTERVAL),
            Some(_) if steps_done == self.said_step => false,
            Some(step) => {
                self.said_step.is_none() || step == self.last_step || lasts(self.said_at, QUIET_INTERVAL)
            }
        };
        if is_due {
            (self.said, self.said_step, self.said_at) = (line.to_owned(), steps_done, now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_printed_now_and_then() {
        let start = Instant::now();
        let mut display = Display::new(60, start);
        for (millis, line, done, is_due) in [
            (0, "pending", None, false),
            (899, "pending", None, false),
            (900, "pending", None, true),
            (5_000, "pending", None, false),
            (5_100, "restoring", None, false),
            (6_100, "restoring", None, true),
            (6_200, "step 1", Some(1), true),
            (6_300, "step 1 once more", Some(1), false),
            (6_400, "step 2", Some(2), false),
            (11_200, "step 9", Some(9), true),
            (11_300, "step 60", Some(60), true),
            (99_000, "step 60", Some(60), false),
        ] {
            let now = start + Duration::from_millis(millis);
            assert_eq!(display.is_due(line, done, now), is_due, "{line} after {millis} ms");
        }
    }

    #[test]
    fn what_was_printed_for_its_own_sake_is_not_printed_again() {
        let start = Instant::now();
        let mut display = Display::new(60, start);
        display.note("recovering");
        assert!(!display.is_due("recovering", None, start));
        assert!(!display.is_due("recovering", None, start + Duration::from_secs(9)));
    }
}
