//! `polygram metrics`: the history of a run, one record a step. Floats read back to the same bits.
//!
//! What the store does not have yet of a run that is led, its coordinator is asked for.

use std::ops::RangeInclusive;
use std::time::Duration;

use polygram_checkpoint::{CheckpointError, CoordinatorRecord, Metrics, MetricsLine, MetricsRecord};
use polygram_domain::OutputFormat;
use polygram_proto::control::OperatorClient;

use crate::args::MetricsArgs;
use crate::commands::stored::StoredRun;
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
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

pub(crate) fn run(args: &MetricsArgs, printer: &mut Printer) -> Outcome {
    let wanted = Wanted::of(args)?;
    let place = RunPlace::resolve(&args.run)?;
    let metrics = block_on(async {
        let run = stored::open(&place).await?;
        read(&run, &place, wanted).await.map_err(|error| stored::refused(&place.root, error))
    })?;
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&metrics.steps)?,
        OutputFormat::Json => printer.result(&metrics.steps, String::new)?,
        OutputFormat::Human => printer.text(&human(&metrics.steps))?,
    }
    for (first, last) in &metrics.gaps {
        let (first, last) = (grouped(*first), grouped(*last));
        printer.warn(format!("steps {first} to {last} are not in the store any more"));
    }
    if metrics.steps.is_empty() {
        let which = if args.from.or(args.to).is_some() { "such step" } else { "finished step yet" };
        printer.warn(format!("run {} has no {which}", place.name));
    }
    Ok(ExitStatus::Success)
}

async fn read(run: &StoredRun, place: &RunPlace, wanted: Wanted) -> Result<Metrics, CheckpointError> {
    // Asked before the store is read: what is written in between is in both, and counts once.
    let waiting = match &run.coordinator {
        Some(record) => ask(record, place).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let range = match wanted {
        Wanted::Range(range) => range,
        Wanted::Last(last) => {
            let stored = run.store.newest_metrics_step().await?;
            let newest = waiting.iter().fold(stored, |newest, line| match line {
                MetricsLine::Attempt(record) => record.resumed_from,
                MetricsLine::WentBack(record) => record.step,
                MetricsLine::Step(record) => newest.max(record.step),
                MetricsLine::Evaluation(_) => newest,
            });
            newest.saturating_add(1).saturating_sub(last)..=u64::MAX
        }
    };
    let mut history = run.store.read_metrics_of(range).await?;
    waiting.into_iter().for_each(|line| history.take(line));
    Ok(history.finish())
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

fn human(steps: &[MetricsRecord]) -> String {
    let mut rows =
        vec![["step", "loss", "grad norm", "lr", "tokens", "seconds", "tok/s"].map(str::to_owned).to_vec()];
    rows.extend(steps.iter().map(|m| {
        vec![
            m.step.to_string(),
            format!("{:.6}", m.loss),
            format!("{:.4}", m.grad_norm),
            format!("{:.3e}", m.lr),
            grouped(m.tokens),
            format!("{:.3}", m.seconds),
            count((m.tokens as f64 / m.seconds.max(f64::MIN_POSITIVE)).round()),
        ]
    }));
    columns(&rows)
}
