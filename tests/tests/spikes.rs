//! Spikes made real by a poisoned sample: the step is skipped everywhere, or the run goes back and leaves the sample out,
//! with the same bits in every topology and whoever dies on the way.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_faults::VARIABLE;
use polygram_tests::{Cluster, Digest, Engine};
use serde_json::Value;

/// Eight samples a step: sample 140 is step 18's.
const POISON: &str = "sample 140 1000";
const SPIKE_STEP: usize = 18;
const RUN: [&str; 9] = [
    "training.steps=30",
    "checkpoint.every_steps=5",
    "checkpoint.keep=3",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
    "spikes.history_steps=8",
    "spikes.loss_deviations=30.0",
    "spikes.norm_factor=20.0",
];
const END_LIMIT: Duration = Duration::from_secs(120);

/// What a run leaves: its digest and its ledger.
#[derive(Debug, PartialEq)]
struct Trace {
    digest: Digest,
    ledger: Vec<String>,
}

fn cluster(sets: &[&str]) -> Result<Cluster> {
    Ok(Cluster::tiny(Engine::Drill)?.with(&RUN).with(sets))
}

fn trace(cluster: &Cluster) -> Result<Trace> {
    Ok(Trace { digest: cluster.digest()?, ledger: cluster.ledger()? })
}

/// A run under `faults`, to its end in good order.
fn run(faults: &str, sets: &[&str]) -> Result<(Cluster, Trace)> {
    let cluster = cluster(sets)?;
    let finished = cluster.start_with(&[], &[(VARIABLE, faults)])?.wait(END_LIMIT)?;
    finished.success().with_context(|| format!("{faults}, {sets:?}"))?;
    let trace = trace(&cluster)?;
    Ok((cluster, trace))
}

fn outcomes(trace: &Trace) -> Vec<String> {
    let outcome =
        |line: &String| serde_json::from_str::<Value>(line).unwrap()["outcome"].as_str().unwrap().to_owned();
    trace.ledger.iter().map(outcome).collect()
}

/// The first sample of each step.
fn samples(trace: &Trace) -> Vec<u64> {
    let first = |line: &String| serde_json::from_str::<Value>(line).unwrap()["samples"][0].as_u64().unwrap();
    trace.ledger.iter().map(first).collect()
}

/// The same trace in other topologies, and when somebody dies beside the spike or behind it.
fn holds_for_all(wanted: &Trace, action: &str, faults: &[&str]) -> Result<()> {
    for sets in [["topology.workers=1", "topology.shards=1"], ["topology.workers=4", "topology.shards=3"]] {
        let (_, found) = run(POISON, &[&[action][..], &sets].concat())?;
        ensure!(found == *wanted, "{sets:?}: {found:#?} instead of {wanted:#?}");
    }
    for order in faults {
        let cluster = cluster(&[action])?;
        let marks = cluster.folder().join("marks");
        std::fs::create_dir(&marks)?;
        let faults = format!("{POISON}; {order} {}", marks.display());
        let finished = cluster.start_with(&[], &[(VARIABLE, &faults)])?.wait(END_LIMIT)?;
        let said = finished.said();
        finished.success().with_context(|| (*order).to_owned())?;
        ensure!(std::fs::read_dir(&marks)?.count() == 1, "{order} was not carried out\n{said}");
        let found = trace(&cluster)?;
        ensure!(found == *wanted, "{order}: {found:#?} instead of {wanted:#?}\n{said}");
    }
    Ok(())
}

#[test]
fn a_spike_is_skipped_by_all_and_told() {
    let action = "spikes.action=\"skip\"";
    let (cluster, wanted) = run(POISON, &[action]).unwrap();
    let outcomes = outcomes(&wanted);
    assert_eq!(outcomes[SPIKE_STEP - 1], "skipped_loss_spike");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome != "applied").count(), 1, "{outcomes:?}");
    let line: Value = serde_json::from_str(&wanted.ledger[SPIKE_STEP - 1]).unwrap();
    assert_eq!(line["rows"], "0000000000000000", "no row was updated");
    let why = cluster.polygram(&["why", "tiny", "--root", cluster.root_url()]).unwrap().success().unwrap();
    assert!(why.stdout.contains("step 17 was skipped"), "{}", why.said());
    let faults =
        ["worker.agreed 1:18 kill", "worker.after_commit 0:18 kill", "coordinator.after_manifest 3 kill"];
    holds_for_all(&wanted, action, &faults).unwrap();
}

#[test]
fn a_run_goes_back_and_leaves_the_samples_out() {
    let action = "spikes.action=\"roll_back\"";
    let (cluster, wanted) = run(POISON, &[action]).unwrap();
    assert!(outcomes(&wanted).iter().all(|outcome| outcome == "applied"));
    let samples = samples(&wanted);
    let expected: Vec<u64> = (0..17).chain(18..31).map(|step| 8 * step).collect();
    assert_eq!(samples, expected, "the spike's samples are left out, all others come in order");
    let why = cluster.polygram(&["why", "tiny", "--root", cluster.root_url()]).unwrap().success().unwrap();
    // Which commit is the newest when the spike comes is a matter of time; what is left out is not.
    let back = |commit: u64| format!("back to step {commit}; samples 136..144 are left out");
    assert!([5, 10, 15].into_iter().any(|commit| why.stdout.contains(&back(commit))), "{}", why.said());
    // The same as never having had them: an unpoisoned run differs, and differs first at that step.
    let (_, plain) = run("sample 100000000 1", &[action]).unwrap();
    assert_ne!(plain.digest, wanted.digest);
    assert_eq!(plain.ledger[..17], wanted.ledger[..17]);
    let faults = [
        "worker.agreed 1:18 kill",
        "coordinator.roll_back_decided 1 kill",
        "coordinator.after_manifest 4 kill",
        "shard.before_apply 1:20 kill",
    ];
    holds_for_all(&wanted, action, &faults).unwrap();
    // Sessions go on from what is left out, and replays know it too.
    let finished = cluster.verify_replay(&["--from", "16", "--to", "22", "--workers", "1"]).unwrap();
    finished.success().unwrap();
}

/// What is done about spikes is done about steps that are not finite too.
#[test]
fn a_step_that_is_not_finite_is_skipped_or_gone_back_from() {
    let poison = "sample 140 nan";
    let looked_for = "spikes.action=\"stop\"";
    let (_, skipped) = run(poison, &["training.on_nonfinite=\"skip\"", looked_for]).unwrap();
    assert_eq!(outcomes(&skipped)[SPIKE_STEP - 1], "skipped_nonfinite");
    let (_, back) = run(poison, &["training.on_nonfinite=\"roll_back\"", looked_for]).unwrap();
    assert!(outcomes(&back).iter().all(|outcome| outcome == "applied"));
    assert_eq!(samples(&back)[17], 8 * 18);
}

#[test]
fn a_run_stops_at_a_spike_or_at_too_many() {
    let stopped = |faults: &str, sets: &[&str]| -> Result<String> {
        let finished = cluster(sets)?.start_with(&[], &[(VARIABLE, faults)])?.wait(END_LIMIT)?;
        ensure!(finished.status.code() == Some(1), "{}", finished.said());
        finished.refusal()
    };
    let said = stopped(POISON, &["spikes.action=\"stop\""]).unwrap();
    assert!(said.contains("loss") && said.contains("is a spike"), "{said}");
    // Three bad steps, two of them allowed.
    let three = "sample 140 1000; sample 150 1000; sample 164 1000";
    for action in ["skip", "roll_back"] {
        let action = format!("spikes.action={action:?}");
        let said = stopped(three, &[&action, "spikes.max_actions=2"]).unwrap();
        assert!(said.contains("spikes.max_actions"), "{said}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    for (sets, key) in [
        (&["spikes.action=\"skip\"", "spikes.history_steps=0"][..], "spikes.history_steps"),
        (&["spikes.action=\"roll_back\"", "spikes.skip_steps=2"], "spikes.skip_steps"),
        (&["spikes.loss_deviations=-1.0"], "spikes.loss_deviations"),
        (&["spikes.action=\"jump\""], "jump"),
        (&["spikes.max_actions=0"], "spikes.max_actions"),
        (&["training.on_nonfinite=\"ignore\""], "ignore"),
    ] {
        let finished = cluster(sets).unwrap().train(&[]).unwrap();
        assert_eq!(finished.status.code(), Some(2), "{sets:?}\n{}", finished.said());
        assert!(finished.refusal().unwrap().contains(key), "{sets:?}");
    }
}
