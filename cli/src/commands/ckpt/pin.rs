//! `polygram ckpt pin` and `unpin`: what retention leaves alone.

use polygram_checkpoint::{CheckpointError, RunStore};
use polygram_domain::Step;
use serde::Serialize;

use crate::args::CkptPinArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;

#[derive(Debug, Serialize)]
struct Document {
    run: String,
    step: u64,
    pinned: bool,
}

pub(crate) fn pin(args: &CkptPinArgs, printer: &mut Printer) -> Outcome {
    set(args, true, printer, async |store, step| store.pin(step).await)
}

pub(crate) fn unpin(args: &CkptPinArgs, printer: &mut Printer) -> Outcome {
    set(args, false, printer, async |store, step| store.unpin(step).await)
}

fn set(
    args: &CkptPinArgs,
    pinned: bool,
    printer: &mut Printer,
    change: impl AsyncFn(&RunStore, Step) -> Result<(), CheckpointError>,
) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    block_on(async {
        let run = stored::open(&place).await?;
        // A step that has no checkpoint is said as every command says it.
        stored::checkpoint(&run.store, &place, Some(args.step), printer).await?;
        change(&run.store, Step(args.step)).await.map_err(|error| stored::refused(&place.root, error))
    })?;
    let document = Document { run: place.name.to_string(), step: args.step, pinned };
    let word = if pinned { "pinned: it stays" } else { "not pinned: retention may take it" };
    printer
        .result(&document, || format!("the checkpoint of step {} of {} is {word}", args.step, place.name))?;
    Ok(ExitStatus::Success)
}
