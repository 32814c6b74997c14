//! A checkpoint that is not what was written costs the steps behind it and nothing else: whether it is found when a run is
//! resumed or when one that trains goes back to it, the run goes on from the one before, by itself, and ends with the bits
//! of a run that never had it. Without another one it fails, and says so.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Contents, Engine, Finished, Undisturbed, wait_until};
use rustix::process::Signal;

/// A short run with several commits, two of everything.
const RUN: [&str; 6] = [
    "training.steps=40",
    "checkpoint.every_steps=10",
    "checkpoint.keep=4",
    "evaluation.every_steps=20",
    "topology.workers=2",
    "topology.shards=2",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);
/// A disturbed run ends long before this, on a busy machine too.
const END_LIMIT: Duration = Duration::from_secs(120);

fn tiny(engine: Engine) -> Result<Cluster> {
    Ok(Cluster::tiny(engine)?.with(&RUN))
}

/// A run that was stopped at step 30 in good order, with commits at 10, 20 and 30.
fn stopped(engine: Engine) -> Result<Cluster> {
    static DRILL: OnceLock<Cluster> = OnceLock::new();
    let train = || {
        let cluster = tiny(engine).unwrap();
        cluster.train(&["training.stop_at_step=30"]).unwrap().success().unwrap();
        cluster
    };
    match engine {
        Engine::Drill => tiny(engine)?.with_root_of(DRILL.get_or_init(train)),
        Engine::Torch => Ok(train()),
    }
}

/// What is done to an object.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip,
    Cut,
    Drop,
}

/// Harms the object of `step` whose name ends with `end` and is written by `member`; says its key.
fn harm(cluster: &Cluster, step: u64, (member, end): (&str, &str), harm: Harm) -> Result<String> {
    let shown = cluster.ckpt_json("show", &["--step", &step.to_string()])?;
    let objects = shown["objects"].as_array().context("no objects")?;
    let mut keys = objects.iter().filter_map(|object| object["key"].as_str());
    let key = keys
        .rfind(|key| key.contains(member) && key.ends_with(end))
        .with_context(|| format!("no {end} of {member} in {shown}"))?;
    let place: PathBuf = cluster.root().join("runs/tiny").join(key);
    let mut bytes = std::fs::read(&place)?;
    let middle = bytes.len() / 2;
    match harm {
        Harm::Flip => bytes[middle] ^= 16,
        Harm::Cut => bytes.truncate(middle),
        Harm::Drop => return std::fs::remove_file(&place).map(|()| key.to_owned()).map_err(Into::into),
    }
    std::fs::write(&place, bytes)?;
    Ok(key.to_owned())
}

const TENSORS: (&str, &str) = ("worker-", ".safetensors");
const ROWS: (&str, &str) = ("shard-", ".rows");

/// The run is over as if nothing had happened, the object was named, and its checkpoint was set aside.
fn went_past(cluster: &Cluster, engine: Engine, (finished, step): (Finished, u64), key: &str) -> Result<()> {
    let finished = finished.success()?;
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(engine),
        "other bits, or other steps\n{}",
        finished.said()
    );
    let warned = finished.stderr.lines().any(|line| line.starts_with("warning: ") && line.contains(key));
    ensure!(warned, "{key} is not named\n{}", finished.said());
    let aside = Contents::of(&cluster.root().join("runs/tiny/ckpt/damaged"))?;
    ensure!(aside.len() == 1, "{aside:?}");
    let why = cluster.polygram(&["why", "tiny", "--root", cluster.root_url()])?.success()?.stdout;
    let told = format!("the checkpoint of step {step} is damaged and was set aside");
    ensure!(why.contains(&told) && why.contains(key), "{why}");
    cluster.ckpt("verify", &["--all"])?.success()?;
    Ok(())
}

fn resumes_past(engine: Engine, object: (&str, &str), how: Harm) -> Result<()> {
    let cluster = stopped(engine)?;
    let key = harm(&cluster, 30, object, how)?;
    went_past(&cluster, engine, (cluster.train(&[])?, 30), &key).with_context(|| format!("{how:?} {key}"))
}

#[test]
fn a_run_is_resumed_past_a_damaged_checkpoint() {
    for object in [TENSORS, ROWS] {
        for how in [Harm::Flip, Harm::Cut, Harm::Drop] {
            resumes_past(Engine::Drill, object, how).unwrap();
        }
    }
}

#[test]
fn the_real_model_is_resumed_past_a_damaged_checkpoint() {
    resumes_past(Engine::Torch, TENSORS, Harm::Flip).unwrap();
}

/// Worker 1 stands still in step 27, behind the commit of step 20; that is harmed, and the worker killed.
fn goes_on_past(object: (&str, &str), how: Harm) -> Result<()> {
    let cluster = tiny(Engine::Drill)?.with(&["run.failure_detection_seconds=60"]);
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let freeze = format!("1 27 reducing freeze {}", marks.display());
    let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &freeze)])?;
    let status = cluster.await_step(&mut running, 27)?;
    wait_until("the commit of step 20", END_LIMIT, || Ok(cluster.commits()?.contains(&20).then_some(())))?;
    let key = harm(&cluster, 20, object, how)?;
    running.signal(status.member("worker", 1)?.pid, Signal::KILL)?;
    let finished = running.wait(END_LIMIT)?;
    running.wait_for_silence(END_LIMIT)?;
    went_past(&cluster, Engine::Drill, (finished, 20), &key).with_context(|| format!("{how:?} {key}"))
}

#[test]
fn a_run_that_trains_goes_back_past_a_damaged_checkpoint() {
    for (object, how) in [(TENSORS, Harm::Flip), (ROWS, Harm::Flip), (TENSORS, Harm::Cut), (ROWS, Harm::Drop)]
    {
        goes_on_past(object, how).unwrap();
    }
}

/// The coordinator dies between finding the damage and saying so: the next one finds the checkpoint set aside, or hears of
/// it again.
#[test]
fn a_coordinator_may_die_over_a_damaged_checkpoint() {
    for point in ["coordinator.damage_found", "coordinator.set_aside"] {
        let cluster = stopped(Engine::Drill).unwrap();
        let marks = cluster.folder().join("marks");
        std::fs::create_dir(&marks).unwrap();
        harm(&cluster, 30, ROWS, Harm::Flip).unwrap();
        let order = format!("{point} 1 kill {}", marks.display());
        let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)]).unwrap();
        let finished = running.wait(END_LIMIT).unwrap().success().unwrap();
        running.wait_for_silence(END_LIMIT).unwrap();
        assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 1, "{order}:\n{}", finished.said());
        assert_eq!(
            cluster.trace().unwrap(),
            *UNDISTURBED.trace(Engine::Drill),
            "{order}:\n{}",
            finished.said()
        );
        let aside = Contents::of(&cluster.root().join("runs/tiny/ckpt/damaged")).unwrap();
        assert_eq!(aside.len(), 1, "{order}");
    }
}

#[test]
fn a_run_without_a_sound_checkpoint_fails_and_nothing_begins_afresh() {
    let cluster = stopped(Engine::Drill).unwrap();
    let keys = [10, 20, 30].map(|step| harm(&cluster, step, ROWS, Harm::Flip).unwrap());
    // The metrics of steps whose checkpoints are set aside go with them; nothing comes in their place.
    let (mut metrics, ledger) = (cluster.metrics().unwrap(), cluster.ledger().unwrap());
    metrics.split_off(&11);
    for attempt in 0..2 {
        let message = cluster.train(&[]).unwrap().refusal().unwrap();
        for words in ["none of them verifies", keys[0].as_str(), "train under another run name"] {
            assert!(message.contains(words), "attempt {attempt}: {words:?} is not said:\n{message}");
        }
        // The last one stays in its place: whoever comes next finds a run that has something to lose.
        assert_eq!(cluster.commits().unwrap(), [10]);
        assert_eq!(cluster.metrics().unwrap(), metrics, "steps were done");
        assert_eq!(cluster.ledger().unwrap(), ledger, "steps were done");
    }
    // Set aside by hand, it is missed all the same.
    let report = cluster.ckpt_json("verify", &["--set-aside"]).unwrap();
    assert_eq!(report[0]["set_aside"], true);
    let message = cluster.train(&[]).unwrap().refusal().unwrap();
    assert!(message.contains("none of them verifies"), "{message}");
    assert_eq!(cluster.metrics().unwrap(), metrics, "steps were done");
}
