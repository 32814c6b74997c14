//! `polygram metrics`: the history of a run, one record a step, with the losses on held-out sets where there was an
//! evaluation. Floats read back to the same bits.
//!
//! What the store does not have yet of a run that is led, its coordinator is asked for.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use polygram_checkpoint::{
    CheckpointError, CoordinatorRecord, EvaluationRecord, Metrics, MetricsLine, MetricsRecord,
};
use polygram_domain::{HeldOutSets, OutputFormat, float};
use polygram_proto::control::OperatorClient;
use serde::Serialize;

use crate::args::MetricsArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::stored::StoredRun;
use crate::units::{columns, count, grouped};

/// How long a living coordinator may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Which steps are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Range(RangeInclusive<u64>),
    Last(u64),
}

impl Wanted {
    fn of(args: &MetricsArgs) -> Outcome<Wanted> {
        let MetricsArgs { from, to, last, .. } = *args;
        match (from, to, last) {
            (_, _, Some(last)) => Ok(Wanted::Last(last)),
            (Some(from), Some(to), None) if from > to => {
                Err(Failure::usage(format!("--from {from} is behind --to {to}")))
            }
            (from, to, None) => Ok(Wanted::Range(from.unwrap_or(0)..=to.unwrap_or(u64::MAX))),
        }
    }
}

/// A step, and the evaluations of the state that it made.
#[derive(Debug, Serialize)]
struct StepLine<'a> {
    #[serde(flatten)]
    step: &'a MetricsRecord,
    /// By set; left out where the state was not evaluated.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    held_out: BTreeMap<&'a str, HeldOut>,
}

/// The loss on a held-out set.
#[derive(Debug, Serialize)]
struct HeldOut {
    /// Nats per token.
    #[serde(with = "float")]
    loss: f64,
    tokens: u64,
}

pub(crate) fn run(args: &MetricsArgs, printer: &mut Printer) -> Outcome {
    let wanted = Wanted::of(args)?;
    let place = RunPlace::resolve(&args.run)?;
    let (metrics, newest) = block_on(async {
        let run = stored::open(&place).await?;
        read(&run, &place, wanted).await.map_err(|error| stored::refused(&place.root, error))
    })?;
    let lines = lines(&metrics);
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&lines)?,
        OutputFormat::Json => printer.result(&lines, String::new)?,
        OutputFormat::Human => printer.text(&human(&lines))?,
    }
    for (first, last) in &metrics.gaps {
        let (first, last) = (grouped(*first), grouped(*last));
        printer.warn(format!("steps {first} to {last} are not in the store any more"));
    }
    if newest == 0 {
        let behind = block_on(made_elsewhere(&place))?;
        return Err(Failure::failed(format!("run {} has no finished step yet{behind}", place.name)));
    }
    if let Some(words) = outside(args, newest, lines.len()) {
        printer.warn(format!("run {} {words}", place.name));
    }
    Ok(ExitStatus::Success)
}

/// What to say of the steps behind the first checkpoint of a run that has trained none.
async fn made_elsewhere(place: &RunPlace) -> Outcome<String> {
    let steps = stored::open(place).await?.store.committed_steps().await;
    Ok(match steps.map_err(|error| stored::refused(&place.root, error))?.last() {
        Some(step) => {
            format!(" of its own: it begins at step {step}, from a checkpoint that another run has made")
        }
        None => String::new(),
    })
}

/// What to say of wanted steps that a run with the newest step `newest` does not have; `shown` were found.
fn outside(args: &MetricsArgs, newest: u64, shown: usize) -> Option<String> {
    let newest_words = || format!("its newest is step {}", grouped(newest));
    match (args.from, args.to) {
        (Some(from), _) if from > newest => {
            Some(format!("has no step from --from {from} on: {}", newest_words()))
        }
        (_, Some(0)) => Some("has no step 0: its steps are counted from 1".to_owned()),
        (_, Some(to)) if to > newest => Some(format!("has not come to --to {to} yet: {}", newest_words())),
        _ if shown == 0 => Some(format!("has no such step in the store: {}", newest_words())),
        _ => None,
    }
}

/// The wanted steps, and the number of the newest step of the run.
async fn read(run: &StoredRun, place: &RunPlace, wanted: Wanted) -> Result<(Metrics, u64), CheckpointError> {
    // Asked before the store is read: what is written in between is in both, and counts once.
    let waiting = match &run.coordinator {
        Some(record) => ask(record, place).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let (range, newest) = match wanted {
        Wanted::Range(range) => (range, None),
        Wanted::Last(last) => {
            let newest = newest_step(run, &waiting).await?;
            (newest.saturating_add(1).saturating_sub(last)..=u64::MAX, Some(newest))
        }
    };
    let end = *range.end();
    let mut history = run.store.read_metrics_of(range).await?;
    waiting.iter().cloned().for_each(|line| history.take(line));
    let metrics = history.finish();
    let newest = match (newest, metrics.steps.last()) {
        (Some(newest), _) => newest,
        (None, Some(shown)) if end == u64::MAX || shown.step >= end => shown.step,
        // Others than the shown ones may have gone from the store.
        (None, _) => newest_step(run, &waiting).await?,
    };
    Ok((metrics, newest))
}

/// The newest step of a run whose coordinator still has `waiting` to write.
async fn newest_step(run: &StoredRun, waiting: &[MetricsLine]) -> Result<u64, CheckpointError> {
    let stored = run.store.newest_metrics_step().await?;
    Ok(waiting.iter().fold(stored, |newest, line| match line {
        MetricsLine::Attempt(record) => record.resumed_from,
        MetricsLine::WentBack(record) => record.step,
        MetricsLine::Step(record) => newest.max(record.step),
        MetricsLine::Evaluation(_) => newest,
    }))
}

/// What a living coordinator has not written yet.
async fn ask(record: &CoordinatorRecord, place: &RunPlace) -> Option<Vec<MetricsLine>> {
    let answer = async {
        let mut client = OperatorClient::connect(&record.address, None).await?;
        // Somebody else may listen there by now.
        let status = client.status().await?;
        let lines = client.waiting_metrics().await?;
        Ok::<_, polygram_proto::control::ControlError>((status.run, lines))
    };
    let (run, lines) = tokio::time::timeout(DEADLINE, answer).await.ok()?.ok()?;
    let parsed = lines.iter().map(|line| serde_json::from_str(line).ok()).collect();
    if run == place.name.as_str() { parsed } else { None }
}

/// Steps with their evaluations, in order.
fn lines(metrics: &Metrics) -> Vec<StepLine<'_>> {
    let mut evaluations = metrics.evaluations.iter().peekable();
    let steps = metrics.steps.iter().map(|step| {
        let mut held_out = BTreeMap::new();
        while let Some(evaluation) = evaluations.next_if(|evaluation| evaluation.step <= step.step) {
            let EvaluationRecord { step: at, set, loss, tokens } = evaluation;
            if *at == step.step {
                held_out.insert(set.as_str(), HeldOut { loss: *loss, tokens: *tokens });
            }
        }
        StepLine { step, held_out }
    });
    steps.collect()
}

fn human(lines: &[StepLine<'_>]) -> String {
    let mut sets: Vec<&str> = lines.iter().flat_map(|line| line.held_out.keys().copied()).collect();
    sets.sort_unstable();
    sets.dedup();
    let heads = ["step", "loss", "grad norm", "lr", "tokens", "seconds", "tok/s"].map(str::to_owned);
    let set_head =
        |set: &&str| if *set == HeldOutSets::UNNAMED { "held out".to_owned() } else { (*set).to_owned() };
    let mut rows = vec![heads.into_iter().chain(sets.iter().map(set_head)).collect::<Vec<_>>()];
    rows.extend(lines.iter().map(|line| {
        let m = line.step;
        let mut row = vec![
            m.step.to_string(),
            format!("{:.6}", m.loss),
            format!("{:.4}", m.grad_norm),
            format!("{:.3e}", m.lr),
            grouped(m.tokens),
            format!("{:.3}", m.seconds),
            count((m.tokens as f64 / m.seconds.max(f64::MIN_POSITIVE)).round()),
        ];
        row.extend(sets.iter().map(|set| {
            line.held_out.get(set).map_or("-".to_owned(), |held_out| format!("{:.6}", held_out.loss))
        }));
        row
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let step = |step| MetricsRecord {
            step,
            loss: 3.5,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: 2048,
            seconds: 0.5,
            data_wait_seconds: None,
            embedding_wait_seconds: None,
        };
        let of = |step, set: &str, loss| EvaluationRecord { step, set: set.into(), loss, tokens: 64 };
        Metrics {
            steps: vec![step(1), step(2), step(3)],
            // The first one's step is not recorded.
            evaluations: vec![
                of(0, "wiki", 9.0),
                of(2, "code", 2.0),
                of(2, "wiki", f64::NAN),
                of(3, "wiki", 2.25),
            ],
            ..Metrics::default()
        }
    }

    #[test]
    fn every_set_has_a_column() {
        let metrics = metrics();
        let text = human(&lines(&metrics));
        let table = "step      loss  grad norm        lr  tokens  seconds   tok/s      code      wiki\n\
                     1     3.500000     1.0000  1.000e-3   2,048    0.500  4.10 k         -         -\n\
                     2     3.500000     1.0000  1.000e-3   2,048    0.500  4.10 k  2.000000       NaN\n\
                     3     3.500000     1.0000  1.000e-3   2,048    0.500  4.10 k         -  2.250000\n";
        assert_eq!(text, table, "{text}");
        let none = Metrics { evaluations: Vec::new(), ..metrics };
        assert!(
            human(&lines(&none))
                .starts_with("step      loss  grad norm        lr  tokens  seconds   tok/s\n")
        );
    }

    #[test]
    fn json_holds_the_evaluations_of_a_step() {
        let metrics = metrics();
        let json = serde_json::to_value(lines(&metrics)).unwrap();
        assert!(json[0].get("held_out").is_none(), "{json}");
        assert_eq!(json[1]["held_out"]["code"], serde_json::json!({"loss": 2.0, "tokens": 64}));
        assert_eq!(
            (json[1]["held_out"]["wiki"]["loss"].as_str(), json[1]["step"].as_u64()),
            (Some("NaN"), Some(2))
        );
    }
}
