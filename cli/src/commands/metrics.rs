//! `polygram metrics`: the history of a run, one record a step, with the losses on held-out sets where there was an
//! evaluation. Floats read back to the same bits.

use std::collections::BTreeMap;

use polygram_checkpoint::{EvaluationRecord, Metrics, MetricsRecord};
use polygram_domain::{HeldOutSets, OutputFormat, float};
use serde::Serialize;

use crate::args::RunArgs;
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::units::{columns, count, grouped};

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

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let metrics = block_on(async {
        let run = stored::open(&place).await?;
        run.store.read_metrics().await.map_err(|error| stored::refused(&place.root, error))
    })?;
    let lines = lines(&metrics);
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&lines)?,
        OutputFormat::Json => printer.result(&lines, String::new)?,
        OutputFormat::Human => printer.text(&human(&lines))?,
    }
    if lines.is_empty() {
        printer.warn(format!("run {} has no finished step yet", place.name));
    }
    Ok(ExitStatus::Success)
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
