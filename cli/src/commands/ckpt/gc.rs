//! `polygram ckpt gc`: objects that no checkpoint needs.

use serde::Serialize;

use crate::args::CkptGcArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

#[derive(Debug, Serialize)]
struct Document {
    run: String,
    /// Whether the objects were removed.
    removed: bool,
    objects: Vec<Unneeded>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Unneeded {
    key: String,
    bytes: u64,
}

pub(crate) fn run(args: &CkptGcArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    let failed = |error| stored::refused(&place.root, error);
    let garbage = block_on(async {
        let run = stored::open(&place).await?;
        let garbage = run.store.garbage().await.map_err(failed)?;
        if args.yes {
            run.store.remove_garbage(&garbage).await.map_err(failed)?;
        }
        Ok(garbage)
    })?;
    let document = Document {
        run: place.name.to_string(),
        removed: args.yes,
        bytes: garbage.iter().map(|object| object.bytes).sum(),
        objects: garbage.into_iter().map(|o| Unneeded { key: o.key, bytes: o.bytes }).collect(),
    };
    printer.result(&document, || human(&document))?;
    Ok(ExitStatus::Success)
}

fn human(document: &Document) -> String {
    let count = document.objects.len();
    let objects = units::counted(count as u64, "object");
    if count == 0 {
        return format!("every data object of {} belongs to a checkpoint, or may yet", document.run);
    }
    let size = units::bytes(document.bytes);
    if document.removed {
        return format!("removed {objects}, {size}");
    }
    let lines: String =
        document.objects.iter().map(|o| format!("  {} ({})\n", o.key, units::bytes(o.bytes))).collect();
    format!("{objects}, {size}, of no checkpoint:\n{lines}nothing is removed without --yes")
}
