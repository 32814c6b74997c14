//! Losses on held-out sets: evaluated on the same tokens in any topology, recorded by set, and shown until the end.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Engine, segment};
use serde_json::Value;

const RUN: [&str; 4] =
    ["training.steps=24", "checkpoint.every_steps=8", "evaluation.every_steps=5", "evaluation.cells=3"];
/// Targets of one cell of the tiny run: 2 samples of 32 positions.
const CELL: u64 = 64;

/// A run on token files with a large and a small held-out set: the small one has two whole cells, fewer than are
/// evaluated.
fn cluster(engine: Engine) -> Result<Cluster> {
    let cluster = Cluster::tiny(engine)?;
    let prefix = |name: &str| cluster.folder().join(name);
    let documents = segment::documents(128);
    segment::write(&prefix("train"), &documents)?;
    segment::write(&prefix("wiki"), &documents[..20])?;
    segment::write(&prefix("code"), &documents[7..10])?;
    let path = |name: &str| prefix(name).display().to_string();
    let sets = format!("data.held_out={{ wiki = {:?}, code = {:?} }}", path("wiki"), path("code"));
    let train = prefix("train");
    Ok(cluster.on_segments(&train)?.with(&RUN).with(&[&sets]))
}

/// `polygram <command> tiny … -o json`.
fn ask(cluster: &Cluster, command: &str) -> Result<Value> {
    let said = cluster.polygram(&[command, "tiny", "--root", cluster.root_url(), "-o", "json"])?.success()?;
    serde_json::from_str(&said.stdout).with_context(|| said.said())
}

/// (step, set, bits of the loss, tokens) of every evaluation in the metrics.
fn evaluations(cluster: &Cluster) -> Result<Vec<(u64, String, u64, u64)>> {
    let mut found = Vec::new();
    for line in ask(cluster, "metrics")?.as_array().context("no list")? {
        let step = line["step"].as_u64().context("no step")?;
        for (set, of) in line["held_out"].as_object().into_iter().flatten() {
            let loss = of["loss"].as_f64().context("no loss")?.to_bits();
            found.push((step, set.clone(), loss, of["tokens"].as_u64().context("no tokens")?));
        }
    }
    Ok(found)
}

#[test]
fn every_set_is_evaluated_on_the_same_tokens_in_any_topology() {
    for engine in [Engine::Drill, Engine::Torch] {
        let mut runs = Vec::new();
        for topology in [
            &["topology.workers=1", "topology.shards=1"][..],
            &["topology.workers=2", "topology.shards=3"],
            &["topology.workers=4", "topology.expert_parallel=2", "topology.shards=2"],
        ] {
            let cluster = cluster(engine).unwrap();
            cluster.train(topology).unwrap().success().unwrap();
            runs.push((topology, evaluations(&cluster).unwrap()));
        }
        let (_, first) = &runs[0];
        let what: Vec<(u64, &str, u64)> =
            first.iter().map(|(step, set, _, n)| (*step, set.as_str(), *n)).collect();
        let wanted: Vec<(u64, &str, u64)> = [5, 10, 15, 20, 24]
            .into_iter()
            .flat_map(|step| [(step, "code", 2 * CELL), (step, "wiki", 3 * CELL)])
            .collect();
        assert_eq!(what, wanted, "{engine:?}");
        for (topology, found) in &runs {
            assert_eq!(found, first, "{engine:?} {topology:?}");
        }
    }
}

#[test]
fn held_out_losses_are_shown_by_every_session_and_every_question() {
    let cluster = cluster(Engine::Drill).unwrap();
    // Stopped between two evaluations: the session ends with one of its own.
    let first = cluster.train(&["training.stop_at_step=12"]).unwrap().success().unwrap();
    for words in
        ["held-out loss of code", "held-out loss of wiki", "at step 12, over 192 tokens", "on average"]
    {
        assert!(first.stdout.contains(words), "{words:?} is not in\n{}", first.said());
    }
    // One that has no evaluation of its own shows the newest before it.
    let second = cluster.train(&["training.stop_at_step=13", "evaluation.every_steps=1000"]).unwrap();
    assert!(second.success().unwrap().stdout.contains("at step 13, over"));
    cluster.train(&[]).unwrap().success().unwrap();

    let status = ask(&cluster, "status").unwrap();
    let newest = |status: &Value| -> Vec<(u64, String)> {
        let of = |e: &Value| (e["step"].as_u64().unwrap(), e["set"].as_str().unwrap().to_owned());
        status["evaluations"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(newest(&status), [(24, "code".to_owned()), (24, "wiki".to_owned())]);
    let text =
        cluster.polygram(&["status", "tiny", "--root", cluster.root_url()]).unwrap().success().unwrap();
    for words in ["held-out loss of wiki", "ended ", " ago, ", "committed step 24"] {
        assert!(text.stdout.contains(words), "{words:?} is not in\n{}", text.said());
    }
    for words in ["heard", "snapshotting"] {
        assert!(!text.stdout.contains(words), "{words:?} is of a process that is gone\n{}", text.said());
    }
    let table =
        cluster.polygram(&["metrics", "tiny", "--root", cluster.root_url()]).unwrap().success().unwrap();
    assert!(table.stdout.lines().next().unwrap().ends_with("code      wiki"), "{}", table.said());

    // A complete run that is started again does nothing, and forgets nothing.
    let before = evaluations(&cluster).unwrap();
    let again = cluster.train(&[]).unwrap().success().unwrap();
    assert!(
        again.stdout.contains("held-out loss of wiki") && again.stdout.contains("in step 24"),
        "{}",
        again.said()
    );
    assert_eq!(newest(&ask(&cluster, "status").unwrap()), newest(&status));
    assert_eq!(evaluations(&cluster).unwrap(), before);

    // A purge of small old files does not leave a run without a state.
    std::fs::remove_file(cluster.root().join("runs/tiny/status.json")).unwrap();
    let bare = ask(&cluster, "status").unwrap();
    assert_eq!(
        (bare["state"].as_str(), bare["last_commit"].as_u64()),
        (Some("completed"), Some(24)),
        "{bare}"
    );
    assert!(bare["message"].as_str().unwrap().contains("its status was lost"), "{bare}");
}

/// An attempt that goes back shows no evaluation of a state that it has not reached again.
#[test]
fn evaluations_of_steps_that_are_done_again_do_not_count_twice() {
    let cluster = cluster(Engine::Drill).unwrap();
    let marks = cluster.folder().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let order = format!("0 11 computing kill {}", marks.display());
    let mut run = cluster.start_with(&[], &[(polygram_faults::VARIABLE, &order)]).unwrap();
    run.wait(std::time::Duration::from_secs(120)).unwrap().success().unwrap();
    let steps: Vec<u64> = evaluations(&cluster).unwrap().into_iter().map(|(step, ..)| step).collect();
    assert_eq!(steps, [5, 5, 10, 10, 15, 15, 20, 20, 24, 24]);
}

#[test]
fn a_set_that_is_not_there_is_refused_by_its_name() {
    fn refused(set: &str) -> Result<String> {
        let said = cluster(Engine::Drill)?.train(&[set])?;
        ensure!(said.status.code() == Some(2), "{}", said.said());
        said.refusal()
    }
    let message = refused("data.held_out.news=\"nowhere/news\"").unwrap();
    assert!(message.contains("data.held_out.news") && message.contains("nowhere/news.idx"), "{message}");
    let message = refused("data.held_out.News=\"x\"").unwrap();
    assert!(message.contains("\"News\" is not a name of a held-out set"), "{message}");
}
