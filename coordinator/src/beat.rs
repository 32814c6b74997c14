//! The beat of a driver: when time next passes for what it owns.
//!
//! What has arrived when the beat is due counts before the clock does, so that a heartbeat in the inbox is not taken for
//! silence. What arrives later waits for the next round: a sender that floods the inbox never keeps time from passing.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

/// When time next passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beat {
    period: Duration,
    due: Instant,
}

impl Beat {
    /// A beat of this period, which is due at once.
    pub(crate) fn every(period: Duration) -> Beat {
        Beat { period, due: Instant::now() }
    }

    /// When it is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is due.
    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// It has passed; the next one is a period away.
    pub(crate) fn passed(&mut self) {
        self.due = Instant::now() + self.period;
    }
}

/// What waits in an inbox now, at most; what arrives meanwhile is not among it.
pub(crate) fn arrived<T>(inbox: &mut mpsc::Receiver<T>) -> impl Iterator<Item = T> {
    (0..inbox.len()).map_while(|_| inbox.try_recv().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_meanwhile_waits_for_the_next_round() {
        let (sender, mut inbox) = mpsc::channel(16);
        for number in 0..3 {
            sender.send(number).await.unwrap();
        }
        let mut seen = Vec::new();
        for number in arrived(&mut inbox) {
            seen.push(number);
            sender.send(number + 10).await.unwrap();
        }
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(arrived(&mut inbox).collect::<Vec<_>>(), [10, 11, 12]);
    }

    #[test]
    fn a_beat_that_is_late_is_made_once() {
        let hour = Duration::from_secs(3600);
        let mut beat = Beat { period: hour, due: Instant::now() };
        assert!(beat.is_due());
        beat.passed();
        assert!(!beat.is_due() && beat.due() <= Instant::now() + hour);
    }
}
