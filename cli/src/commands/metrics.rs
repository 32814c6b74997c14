//! `polygram metrics`: the history of a run, one record a step. Floats read back to the same bits.

use polygram_checkpoint::MetricsRecord;
use polygram_domain::OutputFormat;

use crate::args::RunArgs;
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::units::{columns, count, grouped};

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let metrics = block_on(async {
        let run = stored::open(&place).await?;
        run.store.read_metrics().await.map_err(|error| stored::refused(&place.root, error))
    })?;
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&metrics.steps)?,
        OutputFormat::Json => printer.result(&metrics.steps, String::new)?,
        OutputFormat::Human => printer.text(&human(&metrics.steps))?,
    }
    if metrics.steps.is_empty() {
        printer.warn(format!("run {} has no finished step yet", place.name));
    }
    Ok(ExitStatus::Success)
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
