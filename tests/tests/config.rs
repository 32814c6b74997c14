//! Settings and data that are wrong are found before anything starts and told once, with exit status 2; what
//! a resumed run does otherwise than before is shown.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use polygram_tests::{ByHand, Cluster, Contents, Engine, Finished, segment};

const SHORT: [&str; 2] = ["training.steps=8", "evaluation.every_steps=8"];
const END_LIMIT: Duration = Duration::from_secs(120);

fn short() -> Cluster {
    Cluster::tiny(Engine::Drill).unwrap().with(&SHORT)
}

/// Status 2, one error, no process started.
fn refused(finished: Finished, words: &[&str]) -> Result<String> {
    ensure!(finished.status.code() == Some(2), "{}", finished.said());
    let said = finished.refusal()?;
    for word in words {
        ensure!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
    ensure!(said.matches("error: ").count() == 1, "told more than once:\n{said}");
    ensure!(!said.contains("logs in"), "something was started:\n{said}");
    Ok(said)
}

/// A run on token files of its own, and their prefix.
fn on_segments() -> (Cluster, PathBuf) {
    let cluster = short();
    let prefix = cluster.folder().join("tokens");
    segment::write(&prefix, &segment::documents(128)).unwrap();
    (cluster.on_segments(&prefix).unwrap(), prefix)
}

#[test]
fn numbers_out_of_range_start_nothing() {
    let cluster = short();
    for set in [
        "run.failure_detection_seconds=1e300",
        "run.stop_grace_seconds=1e18",
        "recovery.backoff_seconds=inf",
        "recovery.quarantine_seconds=9223372036854775807",
        "training.lr=1e308",
        "training.steps=9223372036854775807",
        "embedding.memory_limit_gib=1e300",
        "device.threads=4294967295",
    ] {
        let (key, _) = set.split_once('=').unwrap();
        refused(cluster.train(&[set]).unwrap(), &[&format!("--set {set}"), key, "it must be"]).unwrap();
    }
    assert!(Contents::of(&cluster.root()).unwrap().is_empty());
}

#[test]
fn a_setting_that_changed_is_shown_or_refused() {
    let cluster = short();
    cluster.train(&["training.stop_at_step=6"]).unwrap().success().unwrap();
    let before = cluster.digest().unwrap();
    let sets = ["model.hidden_size=96", "run.seed=8", "training.lr=1e-3"];
    let words = [
        "step 6",
        "model.hidden_size was 48 and is 96",
        "run.seed was 7",
        "--set 'run.seed=7'",
        "--run NAME",
    ];
    refused(cluster.train(&sets).unwrap(), &words).unwrap();
    assert_eq!(cluster.digest().unwrap(), before);

    let finished = cluster.train(&["training.lr=1e-3", "topology.shards=1"]).unwrap().success().unwrap();
    for line in ["training.lr 0.003 → 0.001", "topology.shards 2 → 1", "training.stop_at_step 6 → not set"]
    {
        let line = format!("changed since the checkpoint of step 6: {line}\n");
        assert!(finished.stderr.contains(&line), "{line} is missing in:\n{}", finished.said());
    }
    assert_eq!(cluster.digest().unwrap().step, 8);
}

/// The advice of a complete run is followed to the letter.
#[test]
fn a_complete_run_goes_on_without_a_higher_rate() {
    let cluster = short();
    let first = cluster.train(&[]).unwrap().success().unwrap();
    let again = cluster.train(&[]).unwrap().success().unwrap();
    for said in [&first.stdout, &again.stdout] {
        assert!(said.contains("has decayed to 3e-4") && said.contains("would raise it"), "{said}");
    }
    let line = again.stdout.lines().find(|line| line.contains("the same command with --set")).unwrap();
    let sets: Vec<&str> = line.split("--set ").skip(1).map(str::trim).collect();
    let on = cluster.train(&sets).unwrap().success().unwrap();
    assert!(!on.stderr.contains("learning rate rises"), "{}", on.said());
    let rates: Vec<f64> = cluster.metrics().unwrap().values().map(|[_, _, lr]| f64::from_bits(*lr)).collect();
    assert_eq!(rates.len(), 16);
    // The advice is written with the digits that people read.
    assert!(rates[8..].iter().all(|rate| (*rate / rates[7] - 1.0).abs() < 1e-12), "{rates:?}");
    // The other way is warned of.
    let warned = cluster.train(&["training.steps=40"]).unwrap().success().unwrap();
    assert!(warned.stderr.contains("the learning rate rises from 3e-4 at step 16"), "{}", warned.said());
}

#[test]
fn other_data_is_refused_unless_it_is_allowed() {
    let (cluster, prefix) = on_segments();
    cluster.train(&["training.stop_at_step=2"]).unwrap().success().unwrap();
    // The same content under another path is the same data.
    let copy = cluster.folder().join("copy");
    for extension in ["bin", "idx"] {
        fs::copy(prefix.with_extension(extension), copy.with_extension(extension)).unwrap();
    }
    let path = format!("data.train={:?}", copy.display().to_string());
    let finished = cluster.train(&[&path, "training.stop_at_step=3"]).unwrap().success().unwrap();
    assert!(finished.stderr.contains("data.train "), "{}", finished.said());
    // One token is another: in the middle, in a file of the same length.
    let mut documents = segment::documents(128);
    documents[100][7] ^= 1;
    segment::write(&prefix, &documents).unwrap();
    let words = ["data.train_identity", "data.allow_change=true", "16384 tokens in 256 documents"];
    let said = refused(cluster.train(&[]).unwrap(), &words).unwrap();
    assert!(!said.contains("--set"), "its files bring data back, no setting: {said}");
    let finished = cluster.train(&["data.allow_change=true"]).unwrap().success().unwrap();
    assert!(finished.stderr.contains("data.train_identity"), "{}", finished.said());
    assert_eq!(cluster.digest().unwrap().step, 8);
}

/// Other held-out data changes no training: it is said once, and kept as what the run has from then on.
#[test]
fn other_held_out_data_is_said_where_a_run_is_resumed() {
    let (cluster, _) = on_segments();
    let [held_out, copy] = ["held_out", "copy"].map(|name| cluster.folder().join(name));
    let set = |prefix: &PathBuf| format!("data.held_out={:?}", prefix.display().to_string());
    segment::write(&held_out, &segment::documents(90)).unwrap();
    segment::write(&copy, &segment::documents(90)).unwrap();
    let says = |sets: &[&str]| cluster.train(sets).unwrap().success().unwrap().stderr;
    let words = "held-out data changed";
    assert!(!says(&[&set(&held_out), "training.stop_at_step=2"]).contains(words));
    let stderr = says(&[&set(&copy), "training.stop_at_step=3"]);
    assert!(!stderr.contains(words), "equal content under another path: {stderr}");
    segment::write(&copy, &segment::documents(91)).unwrap();
    let stderr = says(&[&set(&copy), "training.stop_at_step=4"]);
    assert_eq!(stderr.matches(words).count(), 1, "{stderr}");
    for words in ["data.held_out was ", "not comparable with those up to step 3"] {
        assert!(stderr.contains(words), "{words:?} is missing in:\n{stderr}");
    }
    let stderr = says(&[&set(&copy)]);
    assert!(!stderr.contains(words), "it is the run's data by now: {stderr}");
    // Held-out data that is trained on is another matter, which every session says.
    let stderr = says(&["training.steps=10"]);
    assert!(stderr.contains(words) && stderr.contains("is the same data as data.train"), "{stderr}");
}

/// A worker whose host has other files under the path says so with its rank.
#[test]
fn a_worker_with_other_files_names_itself() {
    let (cluster, prefix) = on_segments();
    let cluster = cluster.with(&["data.train_identity=\"other data\"", "recovery.max_restarts=0"]);
    // The launcher finds it first.
    refused(cluster.train(&[]).unwrap(), &["data.train_identity", "other data"]).unwrap();
    let finished = ByHand::start(&cluster, (1, 2)).unwrap().ends().unwrap();
    let said = finished.refusal().unwrap();
    let path = prefix.display().to_string();
    assert!(said.contains("rank 0") && said.contains(&path) && said.contains("other data"), "{said}");
    assert!(cluster.commits().unwrap().is_empty());
}

#[test]
fn a_file_that_is_cut_under_a_run_is_named() {
    let (cluster, prefix) = on_segments();
    let endless = ["training.steps=10000000", "evaluation.every_steps=10000000"];
    let mut run = cluster.start(&endless).unwrap();
    cluster.await_step(&mut run, 3).unwrap();
    let tokens = prefix.with_extension("bin");
    fs::File::options().write(true).open(&tokens).unwrap().set_len(1000).unwrap();
    let finished = run.wait(END_LIMIT).unwrap();
    let said = finished.refusal().unwrap();
    assert!(said.contains("tokens.bin") && !said.contains("signal"), "{said}");
}

#[test]
fn data_that_does_not_fit_starts_nothing() {
    let (cluster, prefix) = on_segments();
    let train = |sets: &[&str]| cluster.train(sets).unwrap();
    refused(train(&["model.vocab_size=100"]), &["outside the vocabulary of 100", "set model.vocab_size=128"])
        .unwrap();
    refused(train(&["training.seq_len=20000"]), &["16384 tokens", "20001 are needed"]).unwrap();
    refused(train(&["training.cells=512"]), &["511 samples", "one step takes 1,024"]).unwrap();
    refused(train(&["evaluation.cells=5000"]), &["evaluation.cells=255"]).unwrap();
    fs::write(prefix.with_extension("idx"), b"MMIDIDX").unwrap();
    refused(train(&[]), &["tokens.idx"]).unwrap();
    assert!(Contents::of(&cluster.root()).unwrap().is_empty());
}

#[test]
fn a_device_without_its_libraries_starts_nothing() {
    let cluster = Cluster::tiny(Engine::Torch).unwrap();
    let finished = cluster.train(&["device.kind=cuda"]).unwrap();
    // On a machine with CUDA this trains.
    if finished.status.code() != Some(0) {
        refused(finished, &["device.kind", "cuda", "cpu"]).unwrap();
        assert!(Contents::of(&cluster.root()).unwrap().is_empty());
    }
}

#[test]
fn an_error_in_the_file_is_not_blamed_on_an_assignment() {
    let (cluster, _) = on_segments();
    let run_file = cluster.folder().join("run.toml");
    let text = fs::read_to_string(&run_file).unwrap();
    let broken = text.replacen("[topology]", "[topology]\nworkerz = 2", 1);
    let line = broken.lines().position(|line| line == "workerz = 2").unwrap() + 1;
    fs::write(&run_file, broken).unwrap();
    let said = refused(cluster.train(&[]).unwrap(), &["workerz", &format!("line {line}")]).unwrap();
    assert!(!said.contains("--set"), "{said}");
    fs::write(&run_file, text.replacen("workers = 1", "workers = 3", 1)).unwrap();
    let line = text.lines().position(|line| line == "workers = 1").unwrap() + 1;
    refused(cluster.train(&[]).unwrap(), &["topology.workers is 3", &format!("line {line}")]).unwrap();
    refused(cluster.train(&["topology.workers=5"]).unwrap(), &["--set topology.workers=5: "]).unwrap();
}
