//! `polygram digest`: BLAKE3 of a committed training state, the same in any topology.

use polygram_checkpoint::{CheckpointError, Manifest, RunStore};
use polygram_domain::Step;

use crate::args::DigestArgs;
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;

pub(crate) fn run(args: &DigestArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    let digest = block_on(async {
        let run = stored::open(&place).await?;
        let manifest = match args.step {
            Some(step) => at_step(&run.store, &place, Step(step)).await?,
            None => newest(&run.store, &place, printer).await?,
        };
        run.store.digest(&manifest).await.map_err(|error| stored::refused(&place.root, error))
    })?;
    printer.result(&digest, || {
        let parts: String =
            digest.parts.iter().map(|(part, hash)| format!("  {part:<12} {hash}\n")).collect();
        format!("{} at step {}\n  {:<12} {}\n{parts}", place.name, digest.step, "state", digest.digest)
    })?;
    Ok(ExitStatus::Success)
}

async fn at_step(store: &RunStore, place: &RunPlace, step: Step) -> Outcome<Manifest> {
    let failed = |error| stored::refused(&place.root, error);
    match store.read_manifest(step).await {
        Ok(manifest) => Ok(manifest),
        Err(CheckpointError::Missing { .. }) => {
            let steps = store.committed_steps().await.map_err(failed)?;
            let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
            let there = if steps.is_empty() { "none yet".to_owned() } else { steps.join(", ") };
            Err(Failure::usage(format!("run {} has no checkpoint of step {step}", place.name))
                .hint(format!("committed steps: {there}")))
        }
        Err(error) => Err(failed(error)),
    }
}

async fn newest(store: &RunStore, place: &RunPlace, printer: &mut Printer) -> Outcome<Manifest> {
    let latest = store.latest_manifest().await.map_err(|error| stored::refused(&place.root, error))?;
    for damaged in &latest.damaged {
        printer.warn(format!("the checkpoint of step {} is passed over: {}", damaged.step, damaged.reason));
    }
    latest.manifest.ok_or_else(|| Failure::failed(format!("run {} has no checkpoint yet", place.name)))
}
