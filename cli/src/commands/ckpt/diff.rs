//! `polygram ckpt diff`: in which tensors and tables two checkpoints differ.

use polygram_checkpoint::{Cursor, Difference};
use serde::Serialize;

use crate::args::{CkptDiffArgs, RootArgs, RunArgs};
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;

#[derive(Debug, Serialize)]
struct Document {
    first: String,
    second: String,
    /// Tensors and tables compared.
    compared: usize,
    differences: Vec<Difference>,
}

pub(crate) fn run(args: &CkptDiffArgs, printer: &mut Printer) -> Outcome {
    let first = RunPlace::resolve(&args.run)?;
    let second = RunPlace::resolve(&RunArgs {
        run: args.other_run.clone().unwrap_or_else(|| args.run.run.clone()),
        root: RootArgs { root: args.other_root.clone().or_else(|| args.run.root.root.clone()) },
    })?;
    let document = block_on(async {
        let mut states = Vec::new();
        for (place, step) in [(&first, args.first), (&second, args.second)] {
            let run = stored::open(place).await?;
            let manifest = stored::checkpoint(&run.store, place, Some(step), printer).await?;
            let state = run.store.state_digest(&manifest).await;
            let position = (manifest.seed, manifest.cursor);
            states.push((state.map_err(|error| stored::refused(&place.root, error))?, position));
        }
        let ((a, at_a), (b, at_b)) = (&states[0], &states[1]);
        let mut differences = a.differences(b);
        if at_a != at_b {
            let what = format!("{} and {}", words(at_a), words(at_b));
            differences.push(Difference { name: "place in the data".into(), what });
        }
        let name = |place: &RunPlace, step| format!("{} at step {step}", place.name);
        Ok(Document {
            first: name(&first, args.first),
            second: name(&second, args.second),
            compared: a.len().max(b.len()),
            differences,
        })
    })?;
    printer.result(&document, || human(&document))?;
    Ok(if document.differences.is_empty() { ExitStatus::Success } else { ExitStatus::Failed })
}

fn words((seed, cursor): &(u64, Cursor)) -> String {
    format!("seed {seed}, {} samples, {} tokens", cursor.samples, cursor.tokens)
}

fn human(document: &Document) -> String {
    let Document { first, second, compared, differences } = document;
    if differences.is_empty() {
        return format!("{first} and {second}: all {compared} tensors and tables are equal, bit for bit");
    }
    let lines: String = differences.iter().map(|d| format!("  {}: {}\n", d.name, d.what)).collect();
    format!("{first} and {second} differ in {} of {compared} tensors and tables:\n{lines}", differences.len())
}
