//! The ledger of a run has each step once, byte for byte the same whatever died and in whatever topology; replays agree
//! with it, or name the first step that does not.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Engine};
use serde_json::Value;

const RUN: [&str; 6] = [
    "training.steps=30",
    "checkpoint.every_steps=10",
    "checkpoint.keep=3",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
];
/// A disturbed run ends long before this, on a busy machine too.
const END_LIMIT: Duration = Duration::from_secs(120);

fn run(engine: Engine, sets: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::tiny(engine)?.with(&RUN).with(sets);
    cluster.train(&[])?.success()?;
    Ok(cluster)
}

/// A run that nobody disturbs.
fn reference() -> &'static (Cluster, Vec<String>) {
    static REFERENCE: OnceLock<(Cluster, Vec<String>)> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let cluster = run(Engine::Drill, &[]).unwrap();
        let ledger = cluster.ledger().unwrap();
        (cluster, ledger)
    })
}

fn same_lines(found: &[String], wanted: &[String]) -> Result<()> {
    for (ours, theirs) in found.iter().zip(wanted) {
        ensure!(ours == theirs, "another line:\n{ours}\ninstead of\n{theirs}");
    }
    ensure!(found.len() == wanted.len(), "{} lines instead of {}", found.len(), wanted.len());
    Ok(())
}

#[test]
fn a_ledger_says_every_step_once() {
    let (cluster, lines) = reference();
    assert_eq!(lines.len(), 30);
    for (at, line) in lines.iter().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["step"], at + 1);
        assert_eq!(line["outcome"], "applied");
        let samples = line["samples"][1].as_u64().unwrap();
        assert_eq!(line["samples"][0], at as u64 * samples);
        assert_ne!(line["rows"], "0000000000000000");
    }
    let verified = cluster.ckpt_json("verify", &["--all"]).unwrap();
    let ledger = &verified.as_array().unwrap().last().unwrap()["ledger"];
    assert_eq!((&ledger["sound"], &ledger["steps"]), (&Value::from(true), &Value::from(30)));
    let some =
        cluster.polygram(&["ledger", "tiny", "--root", cluster.root_url(), "--from", "7", "--to", "9"]);
    let some = some.unwrap().success().unwrap().stdout;
    assert_eq!(some.lines().count(), 4, "{some}");
}

/// Each role, killed in the middle of a step, between two commits and while committing.
#[test]
fn whoever_dies_the_ledger_is_the_same() {
    for order in [
        "worker.agreed 1:17 kill",
        "worker.applied 0:14 kill",
        "worker.snapshot_taken 0:2 kill",
        "shard.before_apply 1:16 kill",
        "shard.after_apply 0:13 kill",
        "coordinator.before_flush 2 kill",
        "coordinator.ledger_written 2 kill",
        "coordinator.after_manifest 2 kill",
    ] {
        let struck = || -> Result<()> {
            let cluster = Cluster::tiny(Engine::Drill)?.with(&RUN);
            let marks = cluster.folder().join("marks");
            std::fs::create_dir(&marks)?;
            let ordered = format!("{order} {}", marks.display());
            let mut running = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &ordered)])?;
            let finished = running.wait(END_LIMIT)?.success()?;
            ensure!(std::fs::read_dir(&marks)?.count() == 1, "it was not carried out\n{}", finished.said());
            same_lines(&cluster.ledger()?, &reference().1)
        };
        struck().with_context(|| order.to_owned()).unwrap();
    }
}

#[test]
fn sessions_continue_one_chain() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&["training.stop_at_step=7"]).unwrap().success().unwrap();
    cluster.train(&["training.stop_at_step=13", "topology.shards=1"]).unwrap().success().unwrap();
    cluster.train(&["topology.workers=1"]).unwrap().success().unwrap();
    same_lines(&cluster.ledger().unwrap(), &reference().1).unwrap();
}

#[test]
fn every_topology_has_the_same_ledger() {
    for sets in [
        ["topology.workers=1", "topology.expert_parallel=1", "topology.shards=1"],
        ["topology.workers=2", "topology.expert_parallel=2", "topology.shards=3"],
        ["topology.workers=4", "topology.expert_parallel=2", "topology.shards=2"],
    ] {
        let found = run(Engine::Drill, &sets).unwrap().ledger().unwrap();
        same_lines(&found, &reference().1).with_context(|| format!("{sets:?}")).unwrap();
    }
}

/// The same with the model: its experts, router biases and all.
#[test]
fn every_topology_of_the_model_has_the_same_ledger() {
    let short = ["training.steps=8", "checkpoint.every_steps=4"];
    let run = |sets: [&str; 3]| run(Engine::Torch, &[&short[..], &sets[..]].concat()).unwrap();
    let wanted = run(["topology.workers=1", "topology.expert_parallel=1", "topology.shards=1"]);
    let found = run(["topology.workers=2", "topology.expert_parallel=2", "topology.shards=2"]);
    same_lines(&found.ledger().unwrap(), &wanted.ledger().unwrap()).unwrap();
    let sets = ["--from", "3", "--to", "7", "--workers", "4", "--shards", "1"];
    wanted.verify_replay(&sets).unwrap().success().unwrap();
}

/// The verdict of a replay, and its exit status.
fn replay(cluster: &Cluster, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let finished = cluster.verify_replay(&[more, &["-o", "json"]].concat())?;
    let value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
    Ok((finished.status.code(), value))
}

#[test]
fn a_replay_of_a_sound_run_agrees() {
    let (cluster, lines) = reference();
    let before = files(cluster);
    for (steps, more, began_at) in [
        (["--from", "13", "--to", "21"], &[][..], 10),
        (["--from", "1", "--to", "5"], &["--workers", "1", "--shards", "3"], 0),
        (["--from", "21", "--to", "30"], &["--workers", "4", "--expert-parallel", "2"], 20),
    ] {
        let (code, verdict) = replay(cluster, &[&steps[..], more].concat()).unwrap();
        assert_eq!(code, Some(0), "{verdict}");
        assert_eq!(verdict["agrees"], true);
        assert_eq!(verdict["began_at"], began_at);
    }
    // Past a commit the digests are compared too.
    let (_, verdict) = replay(cluster, &["--from", "9", "--to", "12"]).unwrap();
    assert_eq!(verdict["checkpoints"][0]["step"], 10, "{verdict}");
    assert_eq!(verdict["checkpoints"][0]["recorded"], verdict["checkpoints"][0]["replayed"]);
    assert_eq!(files(cluster), before, "a replay writes nothing into the run");
    assert_eq!(&cluster.ledger().unwrap(), lines);
    for (wrong, word) in [
        (&["--from", "30", "--to", "31"][..], "31"),
        (&["--from", "9", "--to", "3"], "behind"),
        (&["--from", "2", "--to", "3", "--scratch", cluster.root_url()], "own root"),
        (&["--from", "2", "--to", "3", "--set", "training.nonsense=1"], "nonsense"),
    ] {
        let finished = cluster.verify_replay(wrong).unwrap();
        assert_eq!(finished.status.code(), Some(2), "{wrong:?}\n{}", finished.said());
        assert!(finished.refusal().unwrap().contains(word), "{wrong:?}");
    }
}

fn files(cluster: &Cluster) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![cluster.root()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.push((entry.path(), entry.metadata().unwrap().len()));
            }
        }
    }
    found.sort();
    found
}

/// A change that is made in secret, with every checksum right: the replay says where the run came out differently.
#[test]
fn a_replay_names_the_first_step_that_differs() {
    let copy = || Cluster::tiny(Engine::Drill).unwrap().with(&RUN).with_root_of(&reference().0).unwrap();
    // Another rate from step 1 on.
    let (code, verdict) =
        replay(&copy(), &["--from", "2", "--to", "4", "--set", "training.lr=0.002"]).unwrap();
    assert_eq!((code, &verdict["first_difference"]["step"]), (Some(1), &Value::from(1)), "{verdict}");
    assert_eq!(verdict["first_difference"]["field"], "learning rate");
    // One line of the ledger, its chain mended behind it.
    let cluster = copy();
    forge_line(&cluster, 14);
    let (code, verdict) = replay(&cluster, &["--from", "12", "--to", "16"]).unwrap();
    assert_eq!((code, &verdict["first_difference"]["step"]), (Some(1), &Value::from(14)), "{verdict}");
    assert_eq!(verdict["first_difference"]["field"], "loss");
    let verified = cluster.ckpt("verify", &["--all"]).unwrap();
    assert_eq!(verified.status.code(), Some(1), "the checkpoints behind it know the chain that was");
    assert!(verified.stdout.contains("ckpt/commit/000000000020.json"), "{}", verified.said());
}

/// Changes the loss of a line and every hash after it, so that the ledger alone looks sound.
fn forge_line(cluster: &Cluster, step: u64) {
    let folder = cluster.root().join("runs/tiny/ledger/000001");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let mut head: Option<String> = None;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.pop();
        for line in &mut lines {
            let value: Value = serde_json::from_str(line).unwrap();
            if let Some(head) = &head {
                let field = if value.get("prev").is_some() { "prev" } else { "head" };
                let old = value[field].as_str().unwrap();
                *line = line.replace(old, head);
            }
            if value["step"] == step {
                let loss = value["loss"].as_str().unwrap();
                let other = format!("{:016x}", u64::from_str_radix(loss, 16).unwrap() ^ 1);
                *line = line.replace(&format!("\"loss\":\"{loss}\""), &format!("\"loss\":\"{other}\""));
            }
            if value.get("prev").is_some() {
                head = Some(blake3::hash(line.as_bytes()).to_hex().to_string());
            }
        }
        let text = lines.join("\n") + "\n";
        let hash = blake3::hash(text.as_bytes()).to_hex();
        std::fs::write(&path, format!("{text}{{\"blake3\":\"{hash}\"}}\n")).unwrap();
    }
}

/// One bit of an object of the ledger.
#[test]
fn verify_names_a_damaged_ledger_and_training_goes_on() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&["training.stop_at_step=20"]).unwrap().success().unwrap();
    let run = cluster.root().join("runs/tiny");
    let mut segments = std::fs::read_dir(run.join("ledger/000001")).unwrap();
    let path = segments.next().unwrap().unwrap().path();
    let key = path.strip_prefix(&run).unwrap().to_str().unwrap();
    let sound = std::fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let verified = cluster.ckpt("verify", &[]).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{}", verified.said());
    assert!(verified.stdout.contains(key), "{}", verified.said());
    cluster.train(&[]).unwrap().success().unwrap();
    std::fs::write(&path, sound).unwrap();
    same_lines(&cluster.ledger().unwrap(), &reference().1).unwrap();
}
