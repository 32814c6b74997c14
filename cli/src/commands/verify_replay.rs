//! `polygram verify-replay`: steps of a run done again beside it, and compared line by line.
//!
//! The replay has a root of its own; nothing is written into the run. It begins from the newest sound checkpoint before
//! the first step, or from nothing at step 0, with the configuration that the steps were done with.

use polygram_checkpoint::{Chain, Entry, Manifest, RunStore};
use polygram_domain::run_spec::Determinism;
use polygram_domain::{RunFile, RunName, Step};
use polygram_faults::FaultInjection;
use serde::Serialize;

use crate::args::VerifyReplayArgs;
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::{self, Claim, Plan};
use crate::printer::Printer;
use crate::settings::{Configuration, Root, RunPlace};
use crate::stored;
use crate::{data_check, device_check};

/// What came out.
#[derive(Debug, Serialize)]
struct Replay {
    run: String,
    from: u64,
    to: u64,
    /// State version that the replay began from.
    began_at: u64,
    /// Steps done again, those before `from` included.
    steps: u64,
    agrees: bool,
    first_difference: Option<Difference>,
    /// Checkpoints of both with their digests.
    checkpoints: Vec<Compared>,
}

/// Two lines that are not the same.
#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    step: u64,
    field: String,
    recorded: String,
    replayed: String,
}

/// A checkpoint that the run has and the replay made again.
#[derive(Debug, Serialize)]
struct Compared {
    step: u64,
    recorded: String,
    replayed: String,
}

/// What is to be done again.
struct Task {
    store: RunStore,
    chain: Chain,
    /// What it begins from; `None` at step 0.
    checkpoint: Option<Manifest>,
    configuration: Configuration,
}

impl Task {
    fn began_at(&self) -> Step {
        self.checkpoint.as_ref().map_or(Step(0), |manifest| manifest.step)
    }
}

pub(crate) fn run(args: &VerifyReplayArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(&args.run)?;
    if args.from > args.to {
        return Err(Failure::usage(format!("--from {} is behind --to {}", args.from, args.to)));
    }
    let programs = launcher::Programs::find()?;
    let folder = tempfile::Builder::new().prefix("polygram-replay-").tempdir();
    let folder = folder.map_err(|error| Failure::failed("cannot make a temporary folder").because(error))?;
    let scratch = match &args.scratch {
        Some(url) => Root::of_option("--scratch", Some(url))?,
        None => Root::Folder(folder.path().to_owned()),
    };
    if scratch == place.root {
        return Err(Failure::usage("--scratch is the run's own root; a replay is never written into it"));
    }
    scratch.check_writable(&place.name)?;
    let task = block_on(prepare(args, &place, (&scratch, &programs), printer))?;
    let began_at = task.began_at();
    printer.say(format!("doing steps {} to {} again", began_at.0 + 1, args.to));
    let (configuration, claim) = (&task.configuration, Claim::IfVacant);
    let faults = FaultInjection::Disabled;
    let plan = Plan { configuration, kept_steps: 0, root: &scratch, claim, faults };
    block_on(async { launcher::launch(&programs, plan, printer).await.map(drop) })?;
    let replay = block_on(judge(args, &place, &scratch, &task))?;
    printer.result(&replay, || human(&replay))?;
    Ok(if replay.agrees { ExitStatus::Success } else { ExitStatus::Failed })
}

/// Finds what the steps need, and copies it to the scratch root.
async fn prepare(
    args: &VerifyReplayArgs,
    place: &RunPlace,
    (scratch, programs): (&Root, &launcher::Programs),
    printer: &mut Printer,
) -> Outcome<Task> {
    let failed = |error| stored::refused(&place.root, error);
    let run = stored::open(place).await?;
    let (chain, faults) = run.store.read_ledger().await.map_err(failed)?;
    for fault in &faults.0 {
        printer.warn(format!("the ledger is damaged: {}: {}", fault.key, fault.reason));
    }
    if let Some(missing) = (args.from..=args.to).find(|step| chain.at(Step(*step)).is_none()) {
        let last = chain.last();
        return Err(Failure::usage(format!("the ledger of run {} has no step {missing}", place.name)).hint(
            format!(
                "its last is {last}; `polygram ledger {}{}` shows it",
                place.name,
                place.root.as_option()
            ),
        ));
    }
    let checkpoint = newest_before(&run.store, args.from, (place, printer)).await?;
    let began_at = checkpoint.as_ref().map_or(Step(0), |manifest| manifest.step);
    let mut configuration = configuration(args, &run.store, (&chain, began_at, place)).await?;
    data_check::check(&mut configuration)?;
    device_check::check(&configuration.spec, programs)?;
    polygram_checkpoint::create_root(&scratch.address()).map_err(|error| stored::refused(scratch, error))?;
    let target =
        RunStore::create(&scratch.address(), &place.name).map_err(|e| stored::refused(scratch, e))?;
    let there = target.committed_steps().await.map_err(|error| stored::refused(scratch, error))?;
    if !there.is_empty() || !target.has_no_ledger().await.map_err(|error| stored::refused(scratch, error))? {
        return Err(Failure::usage(format!("there is a run {} in {scratch} already", place.name))
            .hint("give an empty --scratch, or leave it out"));
    }
    if let Some(manifest) = &checkpoint {
        run.store.copy_checkpoint(manifest, &target).await.map_err(failed)?;
    }
    run.store.copy_rollbacks(&target).await.map_err(failed)?;
    Ok(Task { store: run.store, chain, checkpoint, configuration })
}

/// The newest checkpoint of a step before `from` whose every byte is what was written.
async fn newest_before(
    store: &RunStore,
    from: u64,
    (place, printer): (&RunPlace, &mut Printer),
) -> Outcome<Option<Manifest>> {
    let failed = |error| stored::refused(&place.root, error);
    let steps = store.committed_steps().await.map_err(failed)?;
    for step in steps.into_iter().rev().filter(|step| step.0 < from) {
        let manifest = match store.read_manifest(step).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_damage() => {
                printer.warn(format!("the checkpoint of step {step} is passed over: {error}"));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let found = store.verify(&manifest).await.map_err(failed)?;
        match found.faults.first() {
            None => return Ok(Some(manifest)),
            Some(fault) => {
                printer.warn(format!("the checkpoint of step {step} is passed over: {}", fault.reason));
            }
        }
    }
    printer.say(format!(
        "no sound checkpoint of a step before {from} is left: beginning from step 0 (`polygram ckpt pin {} STEP` keeps \
         one for later replays)",
        place.name
    ));
    Ok(None)
}

/// The frozen configuration of the steps, ended with the last of them.
async fn configuration(
    args: &VerifyReplayArgs,
    store: &RunStore,
    (chain, began_at, place): (&Chain, Step, &RunPlace),
) -> Outcome<Configuration> {
    let first = chain.config_at(began_at.next());
    let config = first.ok_or_else(|| {
        Failure::usage(format!("the ledger of run {} has no step {}", place.name, began_at.next()))
            .hint("the replay begins from the newest checkpoint before --from, or from step 0")
    })?;
    let toml = store.read_config(config).await.map_err(|error| stored::refused(&place.root, error))?;
    let refused = |error: polygram_domain::ConfigError| Failure::usage(error.to_string());
    let frozen = RunFile::parse(&toml, "the frozen configuration", &[]).map_err(refused)?;
    for step in began_at.0 + 1..=args.to {
        let Some(other) = chain.config_at(Step(step)).filter(|other| *other != config) else { continue };
        let text = store.read_config(other).await.map_err(|error| stored::refused(&place.root, error))?;
        let other = RunFile::parse(&text, "the frozen configuration", &[]).map_err(refused)?;
        if let Some(key) = changed(&frozen, &other).map_err(refused)? {
            let message =
                format!("{key} changed between steps {} and {step} of run {}", step - 1, place.name);
            return Err(Failure::usage(message).hint(format!(
                "replay up to step {} and from a checkpoint of step {} on",
                step - 1,
                step - 1
            )));
        }
    }
    let mut overrides = args.overrides.clone();
    let topology =
        [("workers", args.workers), ("expert_parallel", args.expert_parallel), ("shards", args.shards)];
    let given = topology.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    overrides.extend(given.map(|(key, value)| format!("topology.{key}={value}")));
    overrides.push(format!("training.stop_at_step={}", args.to));
    overrides.push(format!("checkpoint.keep={}", u32::MAX));
    let file = RunFile::parse(&toml, "the frozen configuration", &overrides).map_err(refused)?;
    let configuration = Configuration::of(file, &toml, &overrides).map_err(refused)?;
    let Configuration { file, spec, .. } = &configuration;
    let other_ranks = (file.topology.workers, file.topology.expert_parallel)
        != (frozen.topology.workers, frozen.topology.expert_parallel);
    if other_ranks && spec.training.determinism == Determinism::Topology {
        return Err(Failure::usage(
            "training.determinism is \"topology\": other workers give other bits, so the replay must have the run's own",
        ));
    }
    Ok(configuration)
}

/// A key, topology, session length and retention aside, in which two configurations differ.
fn changed(before: &RunFile, after: &RunFile) -> Result<Option<String>, polygram_domain::ConfigError> {
    const FREE: [&str; 7] = [
        "topology.",
        "checkpoint.",
        "recovery.",
        "evaluation.",
        "device.threads",
        "training.stop_at_step",
        "run.failure_",
    ];
    let values = |file: &RunFile| file.origins(&file.to_toml()?, &[]);
    let (old, new) = (values(before)?, values(after)?);
    let keys = old.keys().chain(new.keys()).filter(|key| !FREE.iter().any(|free| key.starts_with(free)));
    let mut keys = keys.filter(|key| old.get(*key).map(|(v, _)| v) != new.get(*key).map(|(v, _)| v));
    Ok(keys.next().cloned())
}

/// Compares what the replay left with what the run has.
async fn judge(args: &VerifyReplayArgs, place: &RunPlace, scratch: &Root, task: &Task) -> Outcome<Replay> {
    let there = |error| stored::refused(scratch, error);
    let name: &RunName = &place.name;
    let replayed = RunStore::open(&scratch.address(), name).map_err(there)?;
    let (again, faults) = replayed.read_ledger().await.map_err(there)?;
    if let Some(fault) = faults.0.first() {
        return Err(Failure::failed(format!("the replay's own ledger: {}: {}", fault.key, fault.reason)));
    }
    let began_at = task.began_at();
    if again.last().0 < args.to {
        return Err(Failure::failed(format!(
            "the replay ended at step {} of {}; nothing can be said of the rest",
            again.last(),
            args.to
        )));
    }
    let first_difference = first_difference(&task.chain, &again, began_at.0 + 1..=args.to);
    let mut checkpoints = Vec::new();
    let recorded = task.store.committed_steps().await.map_err(|error| stored::refused(&place.root, error))?;
    for step in replayed.committed_steps().await.map_err(there)? {
        if step <= began_at || !recorded.contains(&step) {
            continue;
        }
        let ours = task.store.read_manifest(step).await.map_err(|e| stored::refused(&place.root, e))?;
        let ours = task.store.digest(&ours).await.map_err(|e| stored::refused(&place.root, e))?;
        let theirs = replayed.read_manifest(step).await.map_err(there)?;
        let theirs = replayed.digest(&theirs).await.map_err(there)?;
        checkpoints.push(Compared { step: step.0, recorded: ours.digest, replayed: theirs.digest });
    }
    let agrees = first_difference.is_none() && checkpoints.iter().all(|pair| pair.recorded == pair.replayed);
    Ok(Replay {
        run: name.to_string(),
        from: args.from,
        to: args.to,
        began_at: began_at.0,
        steps: args.to - began_at.0,
        agrees,
        first_difference,
        checkpoints,
    })
}

/// The first step, in order, whose two lines differ. Lines of steps before `--from` count too: what comes after them
/// follows from them.
fn first_difference(
    recorded: &Chain,
    replayed: &Chain,
    steps: std::ops::RangeInclusive<u64>,
) -> Option<Difference> {
    let missing = |entry: Option<&Entry>| if entry.is_some() { "is there" } else { "is missing" }.to_owned();
    steps.into_iter().find_map(|step| match (recorded.at(Step(step)), replayed.at(Step(step))) {
        (Some(ours), Some(theirs)) => {
            let different =
                ours.difference(theirs).map(|(field, ours, theirs)| (field.to_owned(), ours, theirs));
            let (field, recorded, replayed) = different.or_else(|| {
                let chained = ours.prev != theirs.prev;
                chained.then(|| {
                    ("hash of the line before".into(), ours.prev.to_string(), theirs.prev.to_string())
                })
            })?;
            Some(Difference { step, field, recorded, replayed })
        }
        (ours, theirs) => Some(Difference {
            step,
            field: "line".into(),
            recorded: missing(ours),
            replayed: missing(theirs),
        }),
    })
}

fn human(replay: &Replay) -> String {
    let Replay { run, began_at, to, .. } = replay;
    let mut text = match &replay.first_difference {
        None => format!("run {run}: steps {} to {to} came out the same, every bit\n", began_at + 1),
        Some(Difference { step, field, recorded, replayed }) => format!(
            "run {run}: step {step} is the first that came out differently, in its {field}\n  recorded {recorded}\n  \
             replayed {replayed}\n"
        ),
    };
    for Compared { step, recorded, replayed } in &replay.checkpoints {
        let verdict = if recorded == replayed { "same state" } else { "ANOTHER STATE" };
        text.push_str(&format!("  checkpoint of step {step}: {verdict} ({recorded})\n"));
    }
    text
}
