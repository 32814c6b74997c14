//! `polygram digest`: BLAKE3 of a committed training state, the same in any topology.

use crate::args::CheckpointArgs;
use crate::byte_progress::ByteProgress;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;

pub(crate) fn run(args: &CheckpointArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    let digest = block_on(async {
        let run = stored::open(&place).await?;
        let manifest = stored::checkpoint(&run.store, &place, args.step, printer).await?;
        let what = format!("reading step {}", manifest.step);
        let progress = ByteProgress::new(what, manifest.bytes(), &run.store);
        let digest = progress.follow(printer, run.store.digest(&manifest)).await;
        digest.map_err(|error| stored::refused(&place.root, error))
    })?;
    printer.result(&digest, || {
        let parts: String =
            digest.parts.iter().map(|(part, hash)| format!("  {part:<12} {hash}\n")).collect();
        format!("{} at step {}\n  {:<12} {}\n{parts}", place.name, digest.step, "state", digest.digest)
    })?;
    Ok(ExitStatus::Success)
}
