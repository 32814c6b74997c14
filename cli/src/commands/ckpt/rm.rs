//! `polygram ckpt rm`: one checkpoint less. Needs no room in the store.

use polygram_checkpoint::removal::Removed;
use polygram_checkpoint::{CheckpointError, RunStore};
use polygram_domain::Step;
use serde::Serialize;

use crate::args::CkptRmArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

#[derive(Debug, Serialize)]
struct Document {
    run: String,
    step: u64,
    /// Data objects that are gone with it.
    objects: usize,
    bytes: u64,
}

/// What is lost with the newest sound checkpoint, which is that of `step`.
async fn loss(store: &RunStore, step: Step) -> Result<String, CheckpointError> {
    let mut before = None;
    for older in store.committed_steps().await?.into_iter().filter(|older| *older < step) {
        match store.read_manifest(older).await {
            Ok(_) => before = Some(older),
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match before {
        Some(before) => format!("--force removes it; the steps since the one of step {before} are lost then"),
        None => format!(
            "it is the only one: --force removes it, all {} are lost then, and the run begins anew",
            units::counted(step.0, "step")
        ),
    })
}

pub(crate) fn run(args: &CkptRmArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    let step = Step(args.step);
    let Removed { objects, bytes } = block_on(async {
        let failed = |error| stored::refused(&place.root, error);
        let run = stored::open(&place).await?;
        // A step that has no checkpoint is said as every command says it.
        if !run.store.committed_steps().await.map_err(failed)?.contains(&step) {
            stored::checkpoint(&run.store, &place, Some(args.step), printer).await?;
        }
        if !args.force {
            if run.store.pinned_steps().await.map_err(failed)?.contains(&step) {
                return Err(Failure::usage(format!("the checkpoint of step {step} is pinned"))
                    .hint("`polygram ckpt unpin` takes the pin away; --force removes it with its pin"));
            }
            let newest = run.store.latest_manifest().await.map_err(failed)?.manifest;
            if newest.is_some_and(|newest| newest.step == step) {
                return Err(Failure::usage(format!(
                    "the checkpoint of step {step} is the newest sound one: the run goes on from it"
                ))
                .hint(loss(&run.store, step).await.map_err(failed)?));
            }
        }
        run.store.remove_checkpoint(step).await.map_err(failed)
    })?;
    let document = Document { run: place.name.to_string(), step: step.0, objects, bytes };
    let human = || {
        let (objects, bytes) = (units::counted(objects as u64, "object"), units::bytes(bytes));
        format!("the checkpoint of step {step} of {} is removed: {objects}, {bytes}", place.name)
    };
    printer.result(&document, human)?;
    Ok(ExitStatus::Success)
}
