//! `polygram ckpt reshard`: a checkpoint written as another topology would have written it.

use std::time::{SystemTime, UNIX_EPOCH};

use polygram_checkpoint::{
    CheckpointError, Committed, Manifest, ManifestHeader, Placement, ReshardTarget, RunStore,
};
use polygram_domain::{RunFile, RunSpec, Step};
use serde::Serialize;

use crate::args::CkptReshardArgs;
use crate::byte_progress::ByteProgress;
use crate::commands::{block_on, status};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::units;

#[derive(Debug, Serialize)]
struct Document {
    run: String,
    root: String,
    step: u64,
    digest: String,
    objects: usize,
    bytes: u64,
    /// Whether the very same checkpoint was there before.
    was_there: bool,
}

pub(crate) fn run(args: &CkptReshardArgs, printer: &mut Printer) -> Outcome {
    let from = RunPlace::resolve(&args.checkpoint.run)?;
    let to = from.other(args.to_run.as_deref(), ("--to-root", args.to_root.as_deref()))?;
    let is_same = from.name == to.name && from.root == to.root;
    let resharded = block_on(async {
        let source = stored::open(&from).await?.store;
        let manifest = stored::checkpoint(&source, &from, args.checkpoint.step, printer).await?;
        refuse_if_led(&to).await?;
        to.root.check_writable(&to.name)?;
        if !is_same {
            refuse_if_there(&to, manifest.step).await?;
        }
        let target = RunStore::create(&to.root.address(), &to.name)
            .map_err(|error| stored::refused(&to.root, error))?;
        let placement = if is_same { Placement::InPlace } else { Placement::Beside };
        let failed = |error| stored::refused(&from.root, error);
        let config = source.read_config(&manifest.config).await.map_err(failed)?;
        let (spec, toml) = target_configuration(&config, args, &to)?;
        // Every byte is read to be copied, then both checkpoints are read for their digests.
        let what = format!("resharding step {}", manifest.step);
        let progress = ByteProgress::new(what, manifest.bytes().saturating_mul(3), &source).and(&target);
        let work = write(&source, &manifest, Place { store: &target, placement, spec: &spec, toml: &toml });
        progress.follow(printer, work).await.map_err(failed)
    })?;
    let document = Document {
        run: to.name.to_string(),
        root: to.root.to_string(),
        step: resharded.manifest.step.0,
        digest: resharded.digest.digest,
        objects: resharded.manifest.objects.len(),
        bytes: resharded.manifest.bytes(),
        was_there: resharded.committed == Committed::Before,
    };
    printer.result(&document, || {
        let Document { run, root, step, digest, .. } = &document;
        let objects = units::counted(document.objects as u64, "object");
        let size = units::bytes(document.bytes);
        format!("{run} in {root} has step {step} in {objects}, {size}\nits state is the original's: {digest}")
    })?;
    Ok(ExitStatus::Success)
}

/// Where the checkpoint goes.
struct Place<'a> {
    store: &'a RunStore,
    placement: Placement,
    spec: &'a RunSpec,
    /// The run file of `spec`.
    toml: &'a str,
}

async fn write(
    source: &RunStore,
    manifest: &Manifest,
    Place { store, placement, spec, toml }: Place<'_>,
) -> Result<polygram_checkpoint::Resharded, CheckpointError> {
    store.root().probe_conditional_create().await?;
    let config = store.put_config(toml).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let header = ManifestHeader {
        step: manifest.step,
        kind: manifest.kind,
        config,
        ledger: manifest.ledger,
        policy: manifest.policy.clone(),
        created_unix_ms: now.as_millis() as u64,
    };
    source.reshard(manifest, ReshardTarget { store, placement, spec, header }).await
}

/// The checkpoint's configuration with the target's name and topology.
fn target_configuration(config: &str, args: &CkptReshardArgs, to: &RunPlace) -> Outcome<(RunSpec, String)> {
    let overrides = [
        format!("run.name=\"{}\"", to.name),
        format!("topology.workers={}", args.workers),
        format!("topology.expert_parallel={}", args.expert_parallel),
        format!("topology.shards={}", args.shards),
    ];
    let refused = |error: polygram_domain::ConfigError| Failure::usage(error.to_string());
    let file = RunFile::parse(config, "the checkpoint's configuration", &overrides).map_err(refused)?;
    let spec = file.resolve().map_err(refused)?;
    Ok((spec, file.to_toml().map_err(refused)?))
}

/// A checkpoint is never written over that of another run, and this is said before anything is copied.
async fn refuse_if_there(place: &RunPlace, step: Step) -> Outcome<()> {
    // Where there is no root yet, there is no checkpoint.
    let Ok(store) = RunStore::open(&place.root.address(), &place.name) else { return Ok(()) };
    let there = store.committed_steps().await.map_err(|error| stored::refused(&place.root, error))?;
    if !there.contains(&step) {
        return Ok(());
    }
    let RunPlace { name, root } = place;
    Err(Failure::usage(format!("run {name} in {root} has a checkpoint of step {step} already"))
        .hint("write to another run with --to-run NAME"))
}

/// Whoever leads a run also removes what no checkpoint of it needs.
async fn refuse_if_led(place: &RunPlace) -> Outcome<()> {
    // A run that does not exist yet is led by nobody.
    match status::find(place).await {
        Ok(found) if found.is_led() => Err(Failure::usage(format!("run {} is being trained", place.name))
            .hint("stop it first, or write to another run with --to-run")),
        _ => Ok(()),
    }
}
