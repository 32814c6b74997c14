//! Recovery points between commits: a loss costs the steps since the last one, whatever is wrong with them costs nothing more,
//! and the bits are those of a run that has none.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, times are told

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Engine, Finished, Undisturbed, manifests, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// One commit in the middle and one at the end.
const RUN: [&str; 6] = [
    "training.steps=200",
    "checkpoint.every_steps=100",
    "topology.workers=2",
    "topology.shards=2",
    "embedding.lanes=2",
    "run.failure_detection_seconds=3",
];
/// A recovery point at every second step between.
const POINTS: [&str; 2] = ["recovery_points.every_steps=2", "recovery_points.changes_below=0.9"];
static PLAIN: Undisturbed = Undisturbed::of(&RUN);
const END_LIMIT: Duration = Duration::from_secs(120);

fn cluster() -> Cluster {
    cluster_of(Engine::Drill)
}

fn cluster_of(engine: Engine) -> Cluster {
    Cluster::tiny(engine).unwrap().with(&RUN).with(&POINTS)
}

fn ends_as_plain(cluster: &Cluster, finished: Finished) -> Result<Finished> {
    let finished = finished.success()?;
    ensure!(
        cluster.trace()? == *PLAIN.trace(Engine::Drill),
        "other bits, or other steps\n{}",
        finished.said()
    );
    Ok(finished)
}

fn points_root(cluster: &Cluster) -> PathBuf {
    cluster.root().join("recovery-points")
}

/// Steps of the recovery points under `root`, ascending, with their manifests.
fn points(root: &Path) -> Vec<(u64, String)> {
    let found = manifests(&root.join("runs/tiny")).unwrap();
    // One may be removed meanwhile, when a newer one takes its place.
    found.into_iter().filter_map(|(step, path)| Some((step, std::fs::read_to_string(path).ok()?))).collect()
}

/// The step that each loss was gone back to, as the story tells it.
fn went_back_to(cluster: &Cluster) -> Vec<u64> {
    let told = cluster.polygram(&["why", "tiny", "--root", cluster.root_url(), "-o", "jsonl"]).unwrap();
    let told = told.success().unwrap().stdout;
    let attempts = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses = attempts.flat_map(|attempt| attempt["losses"].as_array().cloned().unwrap_or_default());
    losses.filter_map(|loss| loss["resumed_from"].as_u64()).collect()
}

/// Trains with a fault that strikes once.
fn struck(cluster: &Cluster, order: &str) -> Result<Finished> {
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks)?;
    let order = format!("{order} {}", marks.display());
    let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)])?;
    let finished = running.wait(END_LIMIT)?;
    running.wait_for_silence(END_LIMIT)?;
    ensure!(std::fs::read_dir(&marks)?.count() == 1, "{order} was not carried out:\n{}", finished.said());
    ends_as_plain(cluster, finished).context(order)
}

#[test]
fn a_loss_costs_the_steps_since_the_last_point() {
    for (role, index, how) in
        [("worker", 1, Signal::KILL), ("shard", 0, Signal::KILL), ("worker", 0, Signal::STOP)]
    {
        let cluster = cluster();
        let mut running = cluster.start(&[]).unwrap();
        let newest = await_point(&cluster).unwrap();
        let status = cluster.status().unwrap();
        running.signal(status.member(role, index).unwrap().pid, how).unwrap();
        let finished = running.wait(END_LIMIT).unwrap();
        running.wait_for_silence(END_LIMIT).unwrap();
        ends_as_plain(&cluster, finished).unwrap();
        let steps = went_back_to(&cluster);
        assert!(steps.len() == 1 && steps[0] >= newest, "{role}: back to {steps:?}, there was {newest}");
        println!("{role} {index}: back to {steps:?}");
    }
}

#[test]
fn every_process_may_die_over_a_recovery_point() {
    for order in [
        "worker.snapshot_taken 1:3 kill",
        "worker.uploaded 0:2 kill",
        "worker.reported 1:2 kill",
        "worker.committed 0:2 kill",
        "worker.restored 1:1 kill",
        "shard.snapshot_begun 1:3 kill",
        "shard.uploaded 0:2 kill",
        "shard.reported 1:2 kill",
        "coordinator.parts_complete 3 kill",
        "coordinator.ledger_written 3 kill",
        "coordinator.before_manifest 3 kill",
        "coordinator.after_manifest 3 kill",
        "coordinator.part_noted 9 kill",
    ] {
        struck(&cluster(), order).unwrap();
    }
}

#[test]
fn the_next_session_goes_on_from_a_point_in_another_topology() {
    for sets in
        [&["topology.shards=3"][..], &["topology.workers=4"], &["topology.shards=1", "topology.workers=1"]]
    {
        let cluster = cluster();
        let mut running = cluster.start(&[]).unwrap();
        wait_until("a recovery point of changes", END_LIMIT, || {
            let is_of_changes = |(_, manifest): &(u64, String)| manifest.contains("\"changed\"");
            Ok(points(&points_root(&cluster)).iter().any(is_of_changes).then_some(()))
        })
        .unwrap();
        running.signal(running.pid(), Signal::KILL).unwrap();
        running.wait(END_LIMIT).unwrap();
        running.wait_for_silence(END_LIMIT).unwrap();
        let newest = points(&points_root(&cluster)).last().unwrap().0;
        let committed = cluster.commits().unwrap().last().copied();
        let from = committed.unwrap_or(0).max(newest);
        let finished = cluster.train(sets).unwrap();
        let told = finished.said().contains(&format!("step {from}"));
        assert!(told, "from {from}: {}\n{}", finished.said(), logged(&cluster));
        ends_as_plain(&cluster, finished).unwrap();
        // They read as any checkpoint does.
        let root = format!("file://{}", points_root(&cluster).display());
        let step = points(&points_root(&cluster)).last().unwrap().0;
        cluster.polygram(&["ckpt", "verify", "tiny", "--root", &root]).unwrap().success().unwrap();
        let shown = cluster.polygram(&["ckpt", "show", "tiny", "--root", &root]).unwrap().success().unwrap();
        assert!(shown.stdout.contains(&format!("at step {step}")), "{}", shown.said());
    }
}

/// A coordinator that dies while it writes a manifest leaves a file that is none: the run goes on from the point before.
#[test]
fn a_point_that_was_being_written_is_not_gone_on_from() {
    let cluster = cluster();
    let newest = interrupted(&cluster, &[]);
    let newest = newest.max(cluster.commits().unwrap().last().copied().unwrap_or(0));
    let (_, manifest) = points(&points_root(&cluster)).pop().unwrap();
    let folder = points_root(&cluster).join("runs/tiny/ckpt/commit");
    // As an object store of files writes: under a name of its own first, which is then linked.
    for (step, text) in [(newest + 1, &manifest[..]), (newest + 2, &manifest[..manifest.len() / 2])] {
        std::fs::write(folder.join(format!("{step:012}.json#1")), text).unwrap();
    }
    let finished = cluster.train(&[]).unwrap();
    let resumed = finished.said().contains(&format!("resuming run tiny from step {newest}"));
    assert!(resumed, "from {newest}: {}\n{}", finished.said(), logged(&cluster));
    ends_as_plain(&cluster, finished).unwrap();
}

/// Waits for a point behind the first few steps, and gives its step.
fn await_point(cluster: &Cluster) -> Result<u64> {
    wait_until("a recovery point", END_LIMIT, || {
        let newest = points(&points_root(cluster)).last().map(|(step, _)| *step);
        Ok(newest.filter(|step| *step >= 4))
    })
}

/// Everything that the coordinators of a run have logged.
fn logged(cluster: &Cluster) -> String {
    let logs = objects(&cluster.root().join("runs/tiny/logs"));
    let of_coordinator = logs.iter().filter(|path| path.to_string_lossy().contains("coordinator"));
    of_coordinator.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// Kills the launcher once there is a point, and gives the newest one's step.
fn interrupted(cluster: &Cluster, sets: &[&str]) -> u64 {
    let mut running = cluster.start(sets).unwrap();
    let newest = await_point(cluster);
    running.signal(running.pid(), Signal::KILL).unwrap();
    running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    newest.unwrap();
    points(&points_root(cluster)).last().unwrap().0
}

/// All objects under `folder`, by file name.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// What may befall an object.
type Harm = fn(&Path);

#[test]
fn damaged_points_are_passed_over_loudly() {
    let data = |cluster: &Cluster| points_root(cluster).join("runs/tiny/ckpt/data");
    let harms: [(&str, Harm); 3] = [
        ("flip", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }),
        ("cut", |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("remove", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (name, harm) in harms {
        let cluster = cluster();
        // No commit before the points: without them the run begins anew, which is what it would have done.
        interrupted(&cluster, &["checkpoint.every_steps=1000"]);
        objects(&data(&cluster)).iter().for_each(|path| harm(path));
        let finished = cluster.train(&[]).unwrap();
        let log = logged(&cluster);
        let is_told = log.contains("recovery point quarantined") || log.contains("is not resumed from again");
        assert!(is_told, "{name}: {log}");
        ends_as_plain(&cluster, finished).context(name).unwrap();
    }
}

#[test]
fn points_of_another_past_are_not_gone_on_from() {
    let other = cluster().with(&["run.seed=99"]);
    interrupted(&other, &[]);
    let cluster = cluster();
    cluster.train(&["training.stop_at_step=1"]).unwrap().success().unwrap();
    let mine = points_root(&cluster);
    std::fs::remove_dir_all(&mine).ok();
    std::fs::rename(points_root(&other), &mine).unwrap();
    let stale = points(&mine).last().unwrap().0;
    let finished = cluster.train(&[]).unwrap();
    let told = logged(&cluster).contains("not of this run's past");
    assert!(told && finished.said().contains("step 1"), "stale {stale}: {}", finished.said());
    ends_as_plain(&cluster, finished).unwrap();
}

/// A run file that has lost the section, or names another place, goes on from the commit and says what it leaves.
#[test]
fn forgotten_points_are_told() {
    let cluster = cluster();
    let newest = interrupted(&cluster, &["checkpoint.every_steps=1000"]);
    let place = format!("recovery_points.root=\"{}\"", cluster.folder().join("elsewhere").display());
    for more in [&[][..], &[POINTS[0], POINTS[1], &place]] {
        let forgetful = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).with(more);
        let forgetful = forgetful.with_root_of(&cluster).unwrap();
        let finished = forgetful.train(&[]).unwrap();
        let log = logged(&forgetful);
        let mut told = log.lines().filter(|line| line.contains("recovery points are not gone on from"));
        assert!(
            told.next().is_some_and(|line| line.contains(&format!("newest={newest} "))),
            "{newest}: {log}"
        );
        assert_eq!(told.next(), None);
        ends_as_plain(&forgetful, finished).unwrap();
    }
}

#[test]
fn a_root_that_cannot_be_used_costs_nothing_else() {
    let cluster = cluster();
    // A file where a folder should be.
    let place = cluster.folder().join("occupied");
    std::fs::write(&place, "").unwrap();
    let root = format!("recovery_points.root=\"{}\"", place.join("points").display());
    let finished = cluster.train(&[&root]).unwrap();
    assert!(logged(&cluster).contains("recovery points cannot be used"), "{}", finished.said());
    ends_as_plain(&cluster, finished).unwrap();
    assert_eq!(cluster.commits().unwrap(), [100, 200]);
}

#[test]
fn the_real_model_goes_on_from_a_point() {
    let short = || cluster_of(Engine::Torch).with(&["training.steps=12"]);
    let calm = short();
    calm.train(&[]).unwrap().success().unwrap();
    let cluster = short();
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let order = format!("worker.before_push 1:19 kill {}", marks.display());
    let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)]).unwrap();
    let finished = running.wait(END_LIMIT).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), calm.digest().unwrap(), "{}", finished.said());
    assert!(went_back_to(&cluster)[0] > 0);
}
