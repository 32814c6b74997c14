//! `polygram ledger`: the lines of a run's ledger, each step once, and what is wrong with it.

use polygram_checkpoint::Entry;
use polygram_domain::{OutputFormat, Step};

use crate::args::LedgerArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units::columns;

pub(crate) fn run(args: &LedgerArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from > to
    {
        return Err(Failure::usage(format!("--from {from} is behind --to {to}")));
    }
    let (chain, faults) = block_on(async {
        let run = stored::open(&place).await?;
        run.store.verify_ledger().await.map_err(|error| stored::refused(&place.root, error))
    })?;
    let wanted = args.from.unwrap_or(0)..=args.to.unwrap_or(u64::MAX);
    let entries: Vec<Entry> = chain.entries().filter(|entry| wanted.contains(&entry.step)).copied().collect();
    match printer.format() {
        OutputFormat::Jsonl => printer.json_lines(&entries)?,
        OutputFormat::Json => printer.result(&entries, String::new)?,
        OutputFormat::Human => printer.text(&human(&entries))?,
    }
    for fault in &faults.0 {
        printer.warn(format!("{}: {}", fault.key, fault.reason));
    }
    let (first, last) = (chain.entries().next().map(|entry| entry.step), chain.last());
    if let Some(first) = first.filter(|_| entries.is_empty()) {
        printer.warn(format!("the ledger of run {} has no such step: it has {first} to {last}", place.name));
    }
    if first.is_none() && faults.0.is_empty() {
        let behind = match last {
            Step(0) => String::new(),
            step => format!(": it begins behind the checkpoint of step {step}, which another run has made"),
        };
        return Err(Failure::failed(format!("the ledger of run {} has no step yet{behind}", place.name)));
    }
    Ok(if faults.0.is_empty() { ExitStatus::Success } else { ExitStatus::Failed })
}

fn human(entries: &[Entry]) -> String {
    let head = ["step", "samples", "loss", "grad norm", "lr", "outcome", "rows", "dense", "line"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let [first, count] = entry.samples;
        let mut hash = entry.hash().to_string();
        hash.truncate(12);
        vec![
            entry.step.to_string(),
            format!("{first}..{}", first.saturating_add(count)),
            format!("{:.6}", f64::from_bits(entry.loss)),
            format!("{:.4}", f64::from_bits(entry.norm)),
            format!("{:.3e}", f64::from_bits(entry.lr)),
            entry.outcome.to_string(),
            format!("{:016x}", entry.rows),
            format!("{:016x}", entry.dense),
            hash,
        ]
    }));
    columns(&rows)
}
