//! `polygram ckpt ls`: the checkpoints of a run.

use std::collections::BTreeMap;

use polygram_checkpoint::{CheckpointError, RunStore, keys};
use polygram_domain::Step;
use serde::Serialize;

use crate::args::RunArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

#[derive(Debug, Serialize)]
struct CheckpointLine {
    step: u64,
    /// Milliseconds since 1970; none if the manifest cannot be read.
    created_unix_ms: Option<u64>,
    bytes: Option<u64>,
    objects: Option<usize>,
    pinned: bool,
    /// What is wrong with its manifest or with the lengths of its objects; contents are not read.
    damage: Option<String>,
    /// Why this build cannot read it although it is sound.
    other_build: Option<String>,
}

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let lines = block_on(async {
        let run = stored::open(&place).await?;
        list(&run.store).await.map_err(|error| stored::refused(&place.root, error))
    })?;
    printer.result(&lines, || human(&lines))?;
    Ok(ExitStatus::Success)
}

async fn list(store: &RunStore) -> Result<Vec<CheckpointLine>, CheckpointError> {
    let sizes: BTreeMap<String, u64> =
        store.list(keys::DATA).await?.into_iter().map(|object| (object.key, object.bytes)).collect();
    let pinned = store.pinned_steps().await?;
    let mut lines = Vec::new();
    for step in store.committed_steps().await? {
        lines.push(line(store, step, &sizes).await?);
        if let Some(line) = lines.last_mut() {
            line.pinned = pinned.contains(&step);
        }
    }
    Ok(lines)
}

async fn line(
    store: &RunStore,
    step: Step,
    sizes: &BTreeMap<String, u64>,
) -> Result<CheckpointLine, CheckpointError> {
    let unread = |damage| CheckpointLine {
        step: step.0,
        created_unix_ms: None,
        bytes: None,
        objects: None,
        pinned: false,
        damage,
        other_build: None,
    };
    let manifest = match store.read_manifest(step).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_damage() => return Ok(unread(Some(error.to_string()))),
        Err(error) if error.is_of_another_build() => {
            return Ok(CheckpointLine { other_build: Some(error.to_string()), ..unread(None) });
        }
        Err(error) => return Err(error),
    };
    let damage = manifest.objects.iter().find_map(|object| match sizes.get(&object.key) {
        None => Some(format!("{} does not exist", object.key)),
        Some(found) if *found == object.bytes => None,
        Some(found) => Some(format!("{} is {found} bytes long, {} were written", object.key, object.bytes)),
    });
    Ok(CheckpointLine {
        created_unix_ms: Some(manifest.created_unix_ms),
        bytes: Some(manifest.bytes()),
        objects: Some(manifest.objects.len()),
        ..unread(damage)
    })
}

fn human(lines: &[CheckpointLine]) -> String {
    let mut rows =
        vec![["step", "committed (UTC)", "size", "objects", "pinned", "looks"].map(str::to_owned).to_vec()];
    rows.extend(lines.iter().map(|line| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            line.step.to_string(),
            or_dash(line.created_unix_ms.map(units::moment)),
            or_dash(line.bytes.map(units::bytes)),
            or_dash(line.objects.map(|objects| objects.to_string())),
            if line.pinned { "yes" } else { "-" }.to_owned(),
            match (&line.damage, &line.other_build) {
                (Some(_), _) => "damaged",
                (None, Some(_)) => "other build's",
                (None, None) => "whole",
            }
            .to_owned(),
        ]
    }));
    let damage = lines
        .iter()
        .filter_map(|line| Some((line.step, line.damage.as_ref().or(line.other_build.as_ref())?)))
        .map(|(step, why)| format!("step {step}: {why}\n"));
    units::columns(&rows) + &damage.collect::<String>()
}
