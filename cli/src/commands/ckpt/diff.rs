//! `polygram ckpt diff`: in which tensors and tables two checkpoints differ, and how far they lie apart there.

use polygram_checkpoint::compare::measure;
use polygram_checkpoint::{Cursor, Difference, Distance, Manifest, RowDistance, RunStore};
use serde::Serialize;

use crate::args::CkptDiffArgs;
use crate::byte_progress::ByteProgress;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units::{self, counted};

#[derive(Debug, Serialize)]
struct Document {
    first: String,
    second: String,
    /// Tensors and tables that one of the two has at least.
    compared: usize,
    differences: Vec<Difference>,
    /// Both seeds and cursors, where they are not the same.
    position: Option<String>,
}

impl Document {
    fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.position.is_none()
    }
}

pub(crate) fn run(args: &CkptDiffArgs, printer: &mut Printer) -> Outcome {
    let first = RunPlace::resolve(&args.run)?;
    let second = first.other(args.other_run.as_deref(), ("--other-root", args.other_root.as_deref()))?;
    let name = |place: &RunPlace, step| format!("{} at step {step}", place.name);
    let names = [name(&first, args.first), name(&second, args.second)];
    let document = block_on(async {
        let a = open(&first, args.first, printer).await?;
        let b = open(&second, args.second, printer).await?;
        compare((&first, &a), (&second, &b), (names, printer)).await
    })?;
    printer.result(&document, || human(&document))?;
    Ok(if document.is_equal() { ExitStatus::Success } else { ExitStatus::Failed })
}

async fn open(place: &RunPlace, step: u64, printer: &mut Printer) -> Outcome<(RunStore, Manifest)> {
    let store = stored::open(place).await?.store;
    let manifest = stored::checkpoint(&store, place, Some(step), printer).await?;
    Ok((store, manifest))
}

async fn compare(
    (first, (store_a, a)): (&RunPlace, &(RunStore, Manifest)),
    (second, (store_b, b)): (&RunPlace, &(RunStore, Manifest)),
    (names, printer): ([String; 2], &mut Printer),
) -> Outcome<Document> {
    let mut digests = Vec::new();
    for ((place, store, manifest), name) in
        [(first, store_a, a), (second, store_b, b)].into_iter().zip(&names)
    {
        let progress = ByteProgress::new(format!("reading {name}"), manifest.bytes(), store);
        let digest = progress.follow(printer, store.state_digest(manifest)).await;
        digests.push(digest.map_err(|error| stored::refused(&place.root, error))?);
    }
    let (digest_a, digest_b) = (&digests[0], &digests[1]);
    let mut differences = digest_a.differences(digest_b);
    if !differences.is_empty() {
        // What differs is read again, value by value; where everything does, that is all of it.
        let progress = ByteProgress::new("measuring distances", a.bytes(), store_a);
        let measured = progress.follow(printer, measure((store_a, a), (store_b, b), &mut differences)).await;
        measured.map_err(|error| stored::refused(&first.root, error))?;
    }
    let at = |manifest: &Manifest| (manifest.seed, manifest.cursor);
    let position = (at(a) != at(b)).then(|| format!("{} and {}", words(&at(a)), words(&at(b))));
    let [first, second] = names;
    Ok(Document { first, second, compared: digest_a.compared(digest_b), differences, position })
}

fn words((seed, cursor): &(u64, Cursor)) -> String {
    let (samples, tokens) = (counted(cursor.samples, "sample"), counted(cursor.tokens, "token"));
    format!("seed {seed}, {samples}, {tokens}")
}

fn human(document: &Document) -> String {
    let Document { first, second, compared, differences, position } = document;
    let what = |count: usize| counted(count as u64, "tensor and table").replace("tensor and", "tensors and");
    let mut text = match differences.len() {
        0 => format!("{first} and {second}: all {} are equal, bit for bit\n", what(*compared)),
        count => format!("{first} and {second} differ in {count} of {}:\n", what(*compared)),
    };
    for difference in differences {
        text += &line(difference);
    }
    if let Some(position) = position {
        text += &format!("place in the data: {position}\n");
    }
    text
}

fn line(difference: &Difference) -> String {
    let Difference { name, what, distance, rows, .. } = difference;
    let mut text = format!("  {name}: {what}");
    match (distance, rows) {
        (Some(distance), None) => text += &format!(", {}", apart(distance)),
        (Some(distance), Some(rows)) => {
            let RowDistance { rows, only_first, only_second, optimizer } = rows;
            let rows = counted(*rows, "row");
            text += &format!(
                "; of {rows} that both have written: weights {}, optimizer {}",
                apart(distance),
                apart(optimizer)
            );
            if only_first + only_second > 0 {
                let [first, second] = [*only_first, *only_second].map(units::grouped);
                text += &format!("; {first} written in the first alone, {second} in the second alone");
            }
        }
        (None, _) => {}
    }
    text + "\n"
}

fn apart(Distance { max_abs, relative_l2 }: &Distance) -> String {
    format!("max |b-a| {max_abs:.3e}, relative L2 {relative_l2:.3e}")
}
