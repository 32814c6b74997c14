//! Metrics of a run: one record a step, written in attempts, read as one history.
//!
//! Each attempt (a process that began or resumed the run) begins with an [`AttemptRecord`]. A later attempt that
//! resumed from step `r` makes void what earlier attempts recorded beyond `r`: those updates were rolled back.
//!
//! Finite floats are written so that they read back to the same bits; the others as `"NaN"`, `"inf"`, `"-inf"` (JSON
//! has no such numbers), and a `null` reads as NaN.

use std::collections::BTreeMap;

use polygram_domain::{HeldOutSets, float};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;

/// Role under which metrics lie among the events.
pub const METRICS_ROLE: &str = "metrics";

/// One line of a metrics object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricsLine {
    /// An attempt begins. The first line of its object 0, and of no other.
    Attempt(AttemptRecord),
    /// The attempt went back to a state version: what was recorded of later ones is done again.
    WentBack(WentBackRecord),
    /// An update.
    Step(MetricsRecord),
    /// An evaluation.
    Evaluation(EvaluationRecord),
}

/// An attempt begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// Its number; later attempts have higher ones.
    pub attempt: u64,
    /// State version it started from; 0 for a fresh run.
    pub resumed_from: u64,
}

/// The attempt went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WentBackRecord {
    /// State version it goes on from; 0: from the beginning.
    pub step: u64,
}

/// One update. What lies in stores has its own form: a report of the wire counts steps otherwise, has more fields, and
/// may change with any release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsRecord {
    /// Updates applied after it: the state version it reached, from 1.
    pub step: u64,
    /// Mean negative log-likelihood of the update's tokens, nats.
    #[serde(with = "float")]
    pub loss: f64,
    /// Global gradient norm before clipping.
    #[serde(with = "float")]
    pub grad_norm: f64,
    /// Learning rate of the dense parameters.
    #[serde(with = "float")]
    pub lr: f64,
    /// Tokens of the update.
    pub tokens: u64,
    /// Wall time of the update.
    #[serde(with = "float")]
    pub seconds: f64,
    /// Of which waiting for data.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_float")]
    pub data_wait_seconds: Option<f64>,
    /// Of which waiting for rows.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_float")]
    pub embedding_wait_seconds: Option<f64>,
}

/// One evaluation of one held-out set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// State version evaluated.
    pub step: u64,
    /// Name of the held-out set.
    #[serde(default = "unnamed_set")]
    pub set: String,
    /// Mean negative log-likelihood, nats per token.
    #[serde(with = "float")]
    pub loss: f64,
    /// Held-out tokens.
    pub tokens: u64,
}

/// The set of records that were made when a run had one set without a name.
fn unnamed_set() -> String {
    HeldOutSets::UNNAMED.to_owned()
}

/// The history of a run as it counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Attempts, in order.
    pub attempts: Vec<AttemptRecord>,
    /// Updates, by step.
    pub steps: Vec<MetricsRecord>,
    /// Evaluations, by step and set.
    pub evaluations: Vec<EvaluationRecord>,
}

impl RunStore {
    /// Writes object `seq` of `attempt`. Object 0 begins with the attempt's record, no other has one.
    pub async fn append_metrics(
        &self,
        attempt: u64,
        seq: u64,
        lines: &[MetricsLine],
    ) -> Result<(), CheckpointError> {
        let refuse =
            |reason: String| CheckpointError::input(keys::events(METRICS_ROLE, attempt, seq), reason);
        for (at, line) in lines.iter().enumerate() {
            let begins = matches!(line, MetricsLine::Attempt(record) if record.attempt == attempt);
            if (seq == 0 && at == 0) != begins || matches!(line, MetricsLine::Attempt(_)) != begins {
                let reason = "object 0 of an attempt, and it alone, begins with the attempt's record";
                return Err(refuse(reason.into()));
            }
        }
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(line).map_err(|e| refuse(e.to_string()))?);
            text.push('\n');
        }
        self.append_events(METRICS_ROLE, attempt, seq, &text).await
    }

    /// The run's history: of every step the record of the attempt that counts.
    pub async fn read_metrics(&self) -> Result<Metrics, CheckpointError> {
        let (mut attempts, mut steps, mut evaluations) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for object in self.read_events(METRICS_ROLE).await? {
            let key = keys::events(METRICS_ROLE, object.attempt, object.seq);
            for (at, line) in object.lines.lines().enumerate() {
                let damaged = |reason: String| CheckpointError::damaged(&key, reason);
                let line: MetricsLine =
                    serde_json::from_str(line).map_err(|e| damaged(format!("line {}: {e}", at + 1)))?;
                if (object.seq == 0 && at == 0) != matches!(line, MetricsLine::Attempt(_)) {
                    return Err(damaged(format!(
                        "line {}: the attempt's record is not where it belongs",
                        at + 1
                    )));
                }
                let goes_on_from = match &line {
                    MetricsLine::Attempt(record) => Some(record.resumed_from),
                    MetricsLine::WentBack(record) => Some(record.step),
                    MetricsLine::Step(_) | MetricsLine::Evaluation(_) => None,
                };
                if let Some(step) = goes_on_from {
                    steps.split_off(&step.saturating_add(1));
                    evaluations.split_off(&(step.saturating_add(1), String::new()));
                }
                match line {
                    MetricsLine::Attempt(record) => attempts.push(record),
                    MetricsLine::WentBack(_) => {}
                    MetricsLine::Step(record) => drop(steps.insert(record.step, record)),
                    MetricsLine::Evaluation(record) => {
                        evaluations.insert((record.step, record.set.clone()), record);
                    }
                }
            }
        }
        let (steps, evaluations) = (steps.into_values().collect(), evaluations.into_values().collect());
        Ok(Metrics { attempts, steps, evaluations })
    }
}

mod optional_float {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Float(#[serde(with = "polygram_domain::float")] f64);

    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Float).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<Float>::deserialize(deserializer)?.map(|Float(value)| value))
    }
}
