//! Whether steps still come, and what is said where they do not. Pure; the caller tells the time.

use std::time::{Duration, Instant};

use polygram_domain::control::Stall;

/// Between two questions to the coordinator.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Steps may always take so long.
const SHORTEST: Duration = Duration::from_secs(1);

/// Watches for the next step.
#[derive(Debug)]
pub(super) struct StallWatch {
    /// After so long without a step the coordinator is asked what the run waits for.
    patience: Duration,
    /// When the last step came, or steps began; none while the run does no steps.
    since: Option<Instant>,
    asked_at: Option<Instant>,
    /// Whether an answer is outstanding.
    is_asking: bool,
    waiting_for: Option<String>,
    /// What was said, without its numbers.
    said: String,
}

impl StallWatch {
    /// For a run whose members count as lost after `detection`; most stalls end with that.
    pub(super) fn new(detection: Duration) -> StallWatch {
        StallWatch {
            patience: (detection / 2).max(SHORTEST),
            since: None,
            asked_at: None,
            is_asking: false,
            waiting_for: None,
            said: String::new(),
        }
    }

    /// A step came.
    pub(super) fn stepped(&mut self, now: Instant) {
        self.stop();
        self.since = Some(now);
    }

    /// The run does steps.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The run does no steps, or is not watched.
    pub(super) fn stop(&mut self) {
        (self.since, self.asked_at, self.is_asking, self.waiting_for) = (None, None, false, None);
        self.said.clear();
    }

    /// Whether the coordinator is to be asked now what the run waits for.
    pub(super) fn asks(&mut self, now: Instant) -> bool {
        let passed = |since: Instant, time: Duration| now.saturating_duration_since(since) >= time;
        let is_late = self.since.is_some_and(|since| passed(since, self.patience));
        let asks =
            is_late && !self.is_asking && self.asked_at.is_none_or(|asked| passed(asked, ASK_INTERVAL));
        if asks {
            (self.is_asking, self.asked_at) = (true, Some(now));
        }
        asks
    }

    /// The coordinator's answer: none where it does not answer, or steps are as fast as they were. Returns what is new.
    pub(super) fn answered(&mut self, stall: Option<Stall>, now: Instant) -> Option<String> {
        if !std::mem::take(&mut self.is_asking) {
            // A step came meanwhile.
            return None;
        }
        self.waiting_for = stall.map(|stall| stall.waiting_for);
        let words: String =
            self.waiting_for.iter().flat_map(|text| text.chars()).filter(|c| !c.is_ascii_digit()).collect();
        if words.is_empty() || words == self.said {
            return None;
        }
        self.said = words;
        self.line(now)
    }

    /// That no step comes and why, while it is so.
    pub(super) fn line(&self, now: Instant) -> Option<String> {
        let waiting_for = self.waiting_for.clone()?;
        let no_step_ms = now.saturating_duration_since(self.since?).as_millis() as u64;
        Some(Stall { no_step_ms, waiting_for }.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_asked_about_and_said_once_for_each_reason() {
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        let stall = |text: &str| Some(Stall { no_step_ms: 9, waiting_for: text.into() });
        let mut watch = StallWatch::new(Duration::from_secs(8));
        assert!(!watch.asks(after(60_000)), "no steps are due");
        watch.begin(start);
        watch.begin(after(3_000));
        assert!(!watch.asks(after(3_999)));
        assert!(watch.asks(after(4_000)) && !watch.asks(after(9_000)), "one question at a time");
        let said = watch.answered(stall("worker 1, silent for 2.0 s"), after(9_000));
        assert_eq!(said.as_deref(), Some("no step for 9.0 s, waiting for worker 1, silent for 2.0 s"));
        assert!(!watch.asks(after(4_900)) && watch.asks(after(9_100)));
        assert_eq!(
            watch.answered(stall("worker 1, silent for 2.9 s"), after(9_200)),
            None,
            "the same reason"
        );
        let line = watch.line(after(10_000));
        assert_eq!(line.as_deref(), Some("no step for 10.0 s, waiting for worker 1, silent for 2.9 s"));
        assert!(watch.asks(after(11_000)));
        assert!(watch.answered(stall("the store"), after(11_000)).is_some(), "another reason");
        assert!(watch.asks(after(12_000)));
        watch.stepped(after(12_100));
        assert_eq!(watch.answered(stall("the store"), after(12_200)), None, "a step came meanwhile");
        assert_eq!(watch.line(after(12_300)), None);
        assert!(watch.asks(after(16_100)));
        assert_eq!(watch.answered(None, after(16_200)), None, "the coordinator finds it usual");
        assert_eq!(watch.line(after(16_300)), None);
        watch.stop();
        assert!(!watch.asks(after(99_000)));
    }
}
