//! `polygram ckpt show`: a manifest in words.

use std::collections::BTreeMap;

use polygram_checkpoint::{Content, Manifest, TensorClass, keys};
use serde::Serialize;

use crate::args::CheckpointArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

#[derive(Debug, Serialize)]
struct Document<'a> {
    run: &'a str,
    step: u64,
    created_unix_ms: u64,
    config: &'a str,
    seed: u64,
    samples: u64,
    tokens: u64,
    bytes: u64,
    pinned: bool,
    /// Who wrote what.
    members: BTreeMap<String, Share>,
    /// Tensors by what they are for.
    tensors: BTreeMap<&'static str, Tensors>,
    tables: BTreeMap<u32, Table>,
    objects: &'a [polygram_checkpoint::ObjectEntry],
}

#[derive(Debug, Default, Serialize)]
struct Share {
    objects: usize,
    bytes: u64,
}

#[derive(Debug, Default, Serialize)]
struct Tensors {
    names: usize,
    elements: u64,
}

#[derive(Debug, Default, Serialize)]
struct Table {
    rows: u32,
    written_rows: u64,
    width: u32,
    optimizer_values: u32,
    objects: usize,
    bytes: u64,
}

pub(crate) fn run(args: &CheckpointArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    let (manifest, pinned) = block_on(async {
        let run = stored::open(&place).await?;
        let manifest = stored::checkpoint(&run.store, &place, args.step, printer).await?;
        let pinned = run.store.pinned_steps().await.map_err(|error| stored::refused(&place.root, error))?;
        let is_pinned = pinned.contains(&manifest.step);
        Ok((manifest, is_pinned))
    })?;
    let document = document(&manifest, pinned);
    let is_verbose = printer.is_verbose();
    printer.result(&document, || human(&document, is_verbose))?;
    Ok(ExitStatus::Success)
}

fn document(manifest: &Manifest, pinned: bool) -> Document<'_> {
    let mut members: BTreeMap<String, Share> = BTreeMap::new();
    let mut tables: BTreeMap<u32, Table> = BTreeMap::new();
    let mut elements: BTreeMap<&str, u64> = BTreeMap::new();
    for object in &manifest.objects {
        let share =
            members.entry(keys::member_of_data(&object.key).unwrap_or("unknown").to_owned()).or_default();
        share.objects += 1;
        share.bytes = share.bytes.saturating_add(object.bytes);
        match &object.content {
            Content::Tensors { tensors } => {
                for tensor in tensors {
                    let count = tensor.elements.end.saturating_sub(tensor.elements.start);
                    *elements.entry(&tensor.name).or_default() += count;
                }
            }
            Content::Rows { table, table_rows, width, state_values, rows, .. } => {
                let entry = tables.entry(*table).or_default();
                (entry.rows, entry.width, entry.optimizer_values) = (*table_rows, *width, *state_values);
                entry.written_rows = entry.written_rows.saturating_add(*rows);
                entry.objects += 1;
                entry.bytes = entry.bytes.saturating_add(object.bytes);
            }
        }
    }
    let mut tensors: BTreeMap<&'static str, Tensors> = BTreeMap::new();
    for (name, count) in elements {
        let class = match TensorClass::of(name) {
            TensorClass::Dense => "dense",
            TensorClass::RouterBias => "router_bias",
            TensorClass::Optimizer => "optimizer",
        };
        let class = tensors.entry(class).or_default();
        class.names += 1;
        class.elements = class.elements.saturating_add(count);
    }
    Document {
        run: &manifest.run,
        step: manifest.step.0,
        created_unix_ms: manifest.created_unix_ms,
        config: &manifest.config.0,
        seed: manifest.seed,
        samples: manifest.cursor.samples,
        tokens: manifest.cursor.tokens,
        bytes: manifest.bytes(),
        pinned,
        members,
        tensors,
        tables,
        objects: &manifest.objects,
    }
}

fn human(document: &Document<'_>, is_verbose: bool) -> String {
    let Document { run, step, seed, config, .. } = document;
    let mut text = format!(
        "{run} at step {step}, committed {} UTC{}\n{} in {}; {} and {} consumed; seed {seed}\n\
         configuration {config}\n\n",
        units::moment(document.created_unix_ms),
        if document.pinned { ", pinned" } else { "" },
        units::bytes(document.bytes),
        units::counted(document.objects.len() as u64, "object"),
        units::counted(document.samples, "sample"),
        units::counted(document.tokens, "token"),
    );
    let head = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut rows = vec![head(&["tensors", "names", "elements"])];
    rows.extend(document.tensors.iter().map(|(class, tensors)| {
        vec![(*class).to_owned(), tensors.names.to_string(), units::grouped(tensors.elements)]
    }));
    text += &units::columns(&rows);
    if !document.tables.is_empty() {
        let mut rows = vec![head(&["table", "written rows", "of", "width", "optimizer", "objects", "size"])];
        rows.extend(document.tables.iter().map(|(number, table)| {
            vec![
                number.to_string(),
                units::grouped(table.written_rows),
                units::grouped(table.rows.into()),
                table.width.to_string(),
                table.optimizer_values.to_string(),
                table.objects.to_string(),
                units::bytes(table.bytes),
            ]
        }));
        text += &format!("\n{}", units::columns(&rows));
    }
    let mut rows = vec![head(&["written by", "objects", "size"])];
    rows.extend(
        document.members.iter().map(|(member, share)| {
            vec![member.clone(), share.objects.to_string(), units::bytes(share.bytes)]
        }),
    );
    text += &format!("\n{}", units::columns(&rows));
    if is_verbose {
        let mut rows = vec![head(&["object", "size", "CRC-32C"])];
        rows.extend(document.objects.iter().map(|object| {
            vec![object.key.clone(), units::bytes(object.bytes), format!("{:08x}", object.crc32c)]
        }));
        text += &format!("\n{}", units::columns(&rows));
    }
    text
}
