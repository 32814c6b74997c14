//! Metrics of a run: one record a step, written in attempts, read as one history.
//!
//! Each attempt (a process that began or resumed the run) begins with an [`AttemptRecord`]. A later attempt that
//! resumed from step `r` makes void what earlier attempts recorded beyond `r`: those updates were rolled back.
//!
//! Finite floats are written so that they read back to the same bits; the others as `"NaN"`, `"inf"`, `"-inf"` (JSON
//! has no such numbers), and a `null` reads as NaN.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use polygram_domain::{HeldOutSets, float};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::events::open_lines;
use crate::keys::{self, METRICS_ROLE};
use crate::segments::{Segment, SegmentId, StepSpan};
use crate::store::RunStore;

/// One line of a metrics segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricsLine {
    /// An attempt begins. The first line of its segment 0, and of no other.
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
    /// Steps between or before these that nothing is recorded of any more, both ends included.
    pub gaps: Vec<(u64, u64)>,
}

/// Lines of metrics, taken in their order.
#[derive(Clone, Debug)]
pub struct MetricsHistory {
    wanted: RangeInclusive<u64>,
    attempts: Vec<AttemptRecord>,
    steps: BTreeMap<u64, MetricsRecord>,
    /// By step and set.
    evaluations: BTreeMap<(u64, String), EvaluationRecord>,
    newest: u64,
}

impl MetricsHistory {
    /// Nothing yet of the steps `wanted`.
    pub fn of(wanted: RangeInclusive<u64>) -> MetricsHistory {
        let (steps, evaluations) = (BTreeMap::new(), BTreeMap::new());
        MetricsHistory { wanted, attempts: Vec::new(), steps, evaluations, newest: 0 }
    }

    /// Takes the next line. A line that was taken before changes nothing if those behind it follow again.
    pub fn take(&mut self, line: MetricsLine) {
        match line {
            MetricsLine::Attempt(record) => {
                self.go_back(record.resumed_from);
                self.attempts.retain(|known| known.attempt != record.attempt);
                self.attempts.push(record);
            }
            MetricsLine::WentBack(record) => self.go_back(record.step),
            MetricsLine::Step(record) => {
                self.newest = record.step;
                self.steps.insert(record.step, record);
            }
            MetricsLine::Evaluation(record) => {
                self.newest = self.newest.max(record.step);
                self.evaluations.insert((record.step, record.set.clone()), record);
            }
        }
    }

    /// What was recorded of later steps is done again.
    fn go_back(&mut self, step: u64) {
        self.newest = step;
        self.steps.split_off(&step.saturating_add(1));
        self.evaluations.split_off(&(step.saturating_add(1), String::new()));
    }

    /// The newest step that the last line speaks of.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// What counts.
    pub fn finish(mut self) -> Metrics {
        let wanted = self.wanted;
        self.steps.retain(|step, _| wanted.contains(step));
        self.evaluations.retain(|(step, _), _| wanted.contains(step));
        // A run may begin from another one's checkpoint.
        let first = self.attempts.first().filter(|first| first.attempt == 1);
        let first = first.map_or(1, |first| first.resumed_from.saturating_add(1));
        let (mut gaps, mut next) = (Vec::new(), first.max(*wanted.start()));
        for step in self.steps.keys() {
            if *step > next {
                gaps.push((next, step - 1));
            }
            next = step.saturating_add(1);
        }
        Metrics {
            attempts: self.attempts,
            steps: self.steps.into_values().collect(),
            evaluations: self.evaluations.into_values().collect(),
            gaps,
        }
    }
}

/// The steps that `lines` speak of. A line that makes later steps void speaks of all of them.
fn span_of(lines: &[MetricsLine]) -> StepSpan {
    let spans = lines.iter().map(|line| match line {
        MetricsLine::Attempt(record) => (record.resumed_from.saturating_add(1), u64::MAX),
        MetricsLine::WentBack(record) => (record.step.saturating_add(1), u64::MAX),
        MetricsLine::Step(record) => (record.step, record.step),
        MetricsLine::Evaluation(record) => (record.step, record.step),
    });
    let span = spans.reduce(|span, line| (span.0.min(line.0), span.1.max(line.1)));
    span.map_or(StepSpan::ALL, |(first, last)| StepSpan { first, last })
}

impl RunStore {
    /// Writes a segment of `attempt` and answers its name. Segment 0 begins with the attempt's record, no other has one.
    pub async fn append_metrics(
        &self,
        attempt: u64,
        id: impl Into<SegmentId>,
        lines: &[MetricsLine],
    ) -> Result<String, CheckpointError> {
        let segment = Segment { attempt, id: id.into(), span: span_of(lines) };
        for (at, line) in lines.iter().enumerate() {
            let begins = matches!(line, MetricsLine::Attempt(record) if record.attempt == attempt);
            if (segment.id.seq == 0 && at == 0) != begins || matches!(line, MetricsLine::Attempt(_)) != begins
            {
                let reason = "segment 0 of an attempt, and it alone, begins with the attempt's record";
                return Err(CheckpointError::input(segment.key(&keys::events(METRICS_ROLE)), reason));
            }
        }
        self.append_json(METRICS_ROLE, &segment, lines).await
    }

    /// The run's history: of every step the record of the attempt that counts.
    pub async fn read_metrics(&self) -> Result<Metrics, CheckpointError> {
        self.read_metrics_of(0..=u64::MAX).await.map(MetricsHistory::finish)
    }

    /// The history of these steps. No more is read than may speak of them.
    pub async fn read_metrics_of(
        &self,
        wanted: RangeInclusive<u64>,
    ) -> Result<MetricsHistory, CheckpointError> {
        let mut history = MetricsHistory::of(wanted.clone());
        let (mut attempt, mut next) = (None, 0);
        for object in self.read_events(METRICS_ROLE, wanted).await? {
            let Segment { attempt: of, id, .. } = object.segment;
            // Steps that the attempt did again are told in a segment that is gone, or was not read.
            let follows = attempt == Some(of) && id.seq == next;
            let first = object.lines.iter().find_map(|line| match line {
                MetricsLine::Step(record) => Some(record.step),
                _ => None,
            });
            if !follows && let Some(first) = first {
                history.go_back(first.saturating_sub(1));
            }
            (attempt, next) = (Some(of), id.seq.saturating_add(1));
            for (at, line) in object.lines.into_iter().enumerate() {
                if (id.seq == 0 && at == 0) != matches!(line, MetricsLine::Attempt(_)) {
                    let reason = format!("line {}: the attempt's record is not where it belongs", at + 1);
                    return Err(CheckpointError::damaged(&object.key, reason));
                }
                history.take(line);
            }
        }
        Ok(history)
    }

    /// The newest step that anything is recorded of; 0 where nothing is. One segment is read.
    pub async fn newest_metrics_step(&self) -> Result<u64, CheckpointError> {
        let folder = keys::events(METRICS_ROLE);
        let Some(newest) = self.segments(&folder).await?.pop() else { return Ok(0) };
        let is_newest =
            |segment: &Segment| (segment.attempt, segment.id.seq) >= (newest.attempt, newest.id.seq);
        let look = |key: &str, bytes: bytes::Bytes| open_lines(key, &bytes);
        let mut history = MetricsHistory::of(0..=u64::MAX);
        for (segment, text) in self.read_segments(&folder, is_newest, look).await? {
            for (at, line) in text?.lines().enumerate() {
                let damaged = |error: serde_json::Error| {
                    CheckpointError::damaged(&segment.key(&folder), format!("line {}: {error}", at + 1))
                };
                history.take(serde_json::from_str(line).map_err(damaged)?);
            }
        }
        Ok(history.newest())
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
