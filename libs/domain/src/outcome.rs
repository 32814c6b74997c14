//! What became of a step's update.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Applied everywhere, or skipped everywhere and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// The update was applied.
    #[default]
    Applied,
    /// Its loss or a gradient was not finite.
    SkippedNonfinite,
    /// Its loss was a spike.
    SkippedLossSpike,
    /// Its gradient norm was a spike.
    SkippedNormSpike,
}

impl StepOutcome {
    /// Every outcome.
    pub const ALL: [StepOutcome; 4] = [
        StepOutcome::Applied,
        StepOutcome::SkippedNonfinite,
        StepOutcome::SkippedLossSpike,
        StepOutcome::SkippedNormSpike,
    ];

    /// Its word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            StepOutcome::Applied => "applied",
            StepOutcome::SkippedNonfinite => "skipped_nonfinite",
            StepOutcome::SkippedLossSpike => "skipped_loss_spike",
            StepOutcome::SkippedNormSpike => "skipped_norm_spike",
        }
    }

    /// Why the update was skipped, in words; nothing where it was applied.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            StepOutcome::Applied => None,
            StepOutcome::SkippedNonfinite => Some("it was not finite"),
            StepOutcome::SkippedLossSpike => Some("its loss was a spike"),
            StepOutcome::SkippedNormSpike => Some("its gradient norm was a spike"),
        }
    }
}

impl fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_what_json_says() {
        for outcome in StepOutcome::ALL {
            let json = serde_json::to_string(&outcome).unwrap();
            assert_eq!(json, format!("{:?}", outcome.as_str()));
            assert_eq!(serde_json::from_str::<StepOutcome>(&json).unwrap(), outcome);
        }
    }
}
