//! Bad input ends with one clear message and a status other than 0. Nothing panics, nothing is overwritten.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Contents, Engine, Running, program, repository, segment};

/// Few steps, for runs that are expected to fail before or within them.
const SHORT: [&str; 2] = ["training.steps=6", "evaluation.every_steps=6"];

/// A program that only has to refuse does so long before this.
const LIMIT: Duration = Duration::from_secs(60);

fn short() -> Result<Cluster> {
    Ok(Cluster::tiny(Engine::Drill)?.with(&SHORT))
}

/// A session with `sets` is refused with a message that has all of `words`; what was committed before stays.
fn refused(cluster: &Cluster, sets: &[&str], words: &[&str]) -> Result<String> {
    let before = Contents::of(&cluster.root())?;
    let message = cluster.train(sets)?.refusal()?;
    let lower = message.to_lowercase();
    for word in words {
        ensure!(lower.contains(&word.to_lowercase()), "{word:?} is missing in:\n{message}");
    }
    let after = Contents::of(&cluster.root())?;
    for folder in ["ckpt", "config"] {
        let kept = before.under(folder);
        let lost = kept.lost_in(&after);
        ensure!(lost.is_empty(), "overwritten: {lost:?}");
    }
    Ok(message)
}

/// Refused before anything starts: no file is made.
fn refused_at_once(sets: &[&str], words: &[&str]) -> Result<()> {
    let cluster = short()?;
    refused(&cluster, sets, words)?;
    ensure!(Contents::of(&cluster.root())?.is_empty(), "a refused configuration left files");
    Ok(())
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    refused_at_once(&["training.stepz=7"], &["stepz", "did you mean", "steps"]).unwrap();
    refused_at_once(&["trianing.steps=7"], &["trianing", "did you mean", "training"]).unwrap();
}

#[test]
fn values_that_do_not_fit_are_refused() {
    refused_at_once(&["training.lr=fast"], &["lr"]).unwrap();
    refused_at_once(&["training.cells=3"], &["training.cells", "power of two"]).unwrap();
    refused_at_once(&["topology.workers=8"], &["topology.workers", "8"]).unwrap();
    refused_at_once(&["topology.shards=0"], &["topology.shards"]).unwrap();
    // Sizes that do not divide each other are named, both of them.
    let experts = "topology.expert_parallel";
    refused_at_once(&["topology.workers=2", "topology.expert_parallel=4"], &[experts, "4", "2"]).unwrap();
    let uneven = ["topology.workers=4", "topology.expert_parallel=4", "model.n_routed_experts=6"];
    refused_at_once(&uneven, &[experts, "4", "n_routed_experts", "6"]).unwrap();
}

/// C, the number of tables, must divide the hidden size D.
#[test]
fn tables_that_do_not_divide_the_hidden_size_are_refused() {
    refused_at_once(&["ngram.heads=7"], &["14 tables", "48"]).unwrap();
}

#[test]
fn a_missing_run_file_is_refused() {
    let cluster = short().unwrap();
    let message = cluster.polygram(&["train", "no/such.toml"]).unwrap().refusal().unwrap();
    assert!(message.contains("no/such.toml"), "{message}");
}

#[test]
fn missing_data_is_refused() {
    let cluster = short().unwrap();
    let prefix = cluster.folder().join("nowhere");
    let cluster = cluster.on_segments(&prefix).unwrap();
    refused(&cluster, &[], &["nowhere"]).unwrap();
    assert!(cluster.commits().unwrap().is_empty());
}

/// The same files, unharmed, do train: the refusals below are about the harm.
#[test]
fn whole_segments_train() {
    let cluster = short().unwrap();
    let prefix = cluster.folder().join("tokens");
    segment::write(&prefix, &segment::documents(128)).unwrap();
    let cluster = cluster.on_segments(&prefix).unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap().step, 6);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let cluster = short().unwrap();
    let prefix = cluster.folder().join("tokens");
    let mut documents = segment::documents(128);
    // Token 128 of a vocabulary of 128, everywhere: whichever samples come first, one of them has it.
    documents.iter_mut().for_each(|document| document[5] = 128);
    segment::write(&prefix, &documents).unwrap();
    let cluster = cluster.on_segments(&prefix).unwrap();
    refused(&cluster, &[], &["128", "tokens"]).unwrap();
    assert!(cluster.commits().unwrap().is_empty());
}

#[test]
fn a_truncated_index_is_refused() {
    let cluster = short().unwrap();
    let prefix = cluster.folder().join("tokens");
    segment::write(&prefix, &segment::documents(128)).unwrap();
    let index = prefix.with_extension("idx");
    let bytes = fs::read(&index).unwrap();
    let cluster = cluster.on_segments(&prefix).unwrap();
    for length in [0, 8, 9, 33, 34, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&index, &bytes[..length]).unwrap();
        refused(&cluster, &[], &["tokens.idx"]).with_context(|| format!("cut to {length} bytes")).unwrap();
    }
    assert!(cluster.commits().unwrap().is_empty());
    let inspected = cluster.polygram(&["data", "inspect", prefix.to_str().unwrap()]).unwrap();
    assert!(inspected.refusal().unwrap().contains("tokens.idx"));
}

#[test]
fn truncated_tokens_are_refused() {
    let cluster = short().unwrap();
    let prefix = cluster.folder().join("tokens");
    segment::write(&prefix, &segment::documents(128)).unwrap();
    let tokens = prefix.with_extension("bin");
    let bytes = fs::read(&tokens).unwrap();
    fs::write(&tokens, &bytes[..bytes.len() - 2]).unwrap();
    let cluster = cluster.on_segments(&prefix).unwrap();
    refused(&cluster, &[], &["tokens"]).unwrap();
}

/// Changing what a run trains on or how, halfway, is refused: it would be another run under the same name.
#[test]
fn another_model_under_the_same_name_is_refused() {
    let cluster = short().unwrap();
    cluster.train(&["training.stop_at_step=2"]).unwrap().success().unwrap();
    let before = cluster.digest().unwrap();
    refused(&cluster, &["model.hidden_size=96"], &["hidden_size"]).unwrap();
    refused(&cluster, &["run.seed=99"], &["seed"]).unwrap();
    // The status says that it is the configuration.
    assert_eq!(cluster.train(&["run.seed=99"]).unwrap().status.code(), Some(2));
    assert_eq!(cluster.digest().unwrap(), before);
    cluster.train(&[]).unwrap().success().unwrap();
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_commits_nothing() {
    for engine in [Engine::Drill, Engine::Torch] {
        let cluster =
            Cluster::tiny(engine).unwrap().with(&["training.steps=40", "evaluation.every_steps=40"]);
        // Each step multiplies every weight by −999,999: f32 overflows within seven.
        let sets = ["training.lr=1000", "training.optimizer.weight_decay=1000", "training.warmup_steps=0"];
        refused(&cluster, &sets, &["finite", "step"]).unwrap();
        assert!(cluster.commits().unwrap().is_empty(), "{engine:?}");
    }
}

#[test]
fn a_port_in_use_is_refused() {
    let cluster = short().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let token = cluster.folder().join("token");
    fs::write(&token, "0123456789abcdef").unwrap();
    let mut command = Command::new(program("polygram-coordinator").unwrap());
    command.arg("--config").arg(repository().join("configs/tiny.toml")).arg("--root").arg(cluster.root());
    command.arg("--listen").arg(&address).arg("--token-file").arg(&token);
    let finished = Running::start(command, cluster.folder()).unwrap().wait(LIMIT).unwrap();
    let message = finished.refusal().unwrap();
    assert!(message.contains(&address) && message.contains("cannot listen"), "{message}");
    assert!(Contents::of(&cluster.root()).unwrap().is_empty(), "a coordinator that cannot listen left files");
}

/// Two launches of one run would write over each other: the second is refused, the first goes on.
#[test]
fn a_run_that_is_being_trained_is_not_started_twice() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap();
    let endless = ["training.steps=10000000", "evaluation.every_steps=10000000"];
    let mut first = cluster.start(&endless).unwrap();
    cluster.await_step(&mut first, 3).unwrap();
    let launches = || {
        let names = |folder| fs::read_dir(cluster.root().join("runs/tiny").join(folder)).unwrap();
        let names = |folder| names(folder).map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        ["launch", "logs", "coord"].map(names)
    };
    let before = launches();
    let refused = cluster.train(&endless).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
    let message = refused.refusal().unwrap();
    assert!(message.contains("tiny is led by") && message.contains("--take-over"), "{message}");
    assert!(message.starts_with("error: "), "nothing is said before the refusal: {message}");
    assert_eq!(launches(), before, "a refused launch made files");
    let reached = cluster.status().unwrap().step;
    cluster.await_step(&mut first, reached + 1).unwrap();
}

/// A run is not called complete without a word because its last step was moved before what it has done.
#[test]
fn fewer_steps_than_are_done_are_told() {
    let cluster = short().unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    for (set, key) in
        [("training.steps=5", "training.steps"), ("training.stop_at_step=3", "training.stop_at_step")]
    {
        let sets = [set, "evaluation.every_steps=5"];
        let finished = cluster.train(&sets).unwrap().success().unwrap();
        let words = format!("nothing is trained, for {key} is {}", set.split_once('=').unwrap().1);
        assert!(finished.said().contains(&words), "{words:?}: {}", finished.said());
    }
    assert_eq!(cluster.digest().unwrap().step, 6);
}

/// What is recorded of a run may be damaged while its checkpoint is sound.
#[test]
fn a_damaged_record_does_not_hide_the_checkpoint() {
    let cluster = short().unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    let status = cluster.root().join("runs/tiny/status.json");
    let whole = fs::read(&status).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"", b"{}", b"\xff\xfe"] {
        fs::write(&status, bytes).unwrap();
        let said = cluster.polygram(&["status", "tiny", "--root", cluster.root_url()]).unwrap();
        let said = said.success().unwrap();
        for words in ["status.json", "committed step 6", "run tiny: completed, step 6/6"] {
            assert!(said.stdout.contains(words), "{words:?}: {}", said.said());
        }
        let runs = cluster.polygram(&["runs", "--root", cluster.root_url()]).unwrap().success().unwrap();
        assert!(runs.stdout.contains("6/6"), "{}", runs.said());
    }
}

#[test]
fn steps_that_a_run_does_not_have_are_told() {
    let cluster = short().unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    let metrics = |more: &[&str]| {
        let arguments = [&["metrics", "tiny", "--root", cluster.root_url()], more].concat();
        cluster.polygram(&arguments).unwrap()
    };
    for (more, words) in [
        (&["--from", "100"][..], "has no step from --from 100 on: its newest is step 6"),
        (&["--from", "100", "--to", "200"], "has no step from --from 100 on: its newest is step 6"),
        (&["--to", "100"], "has not come to --to 100 yet: its newest is step 6"),
        (&["--to", "0"], "has no step 0: its steps are counted from 1"),
    ] {
        let said = metrics(more).success().unwrap();
        assert!(said.stderr.contains(words), "{more:?}: {}", said.said());
    }
    for command in ["metrics", "ledger"] {
        let arguments = [command, "tiny", "--root", cluster.root_url(), "--from", "5", "--to", "4"];
        let refused = cluster.polygram(&arguments).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
        assert!(refused.stderr.contains("--from 5 is behind --to 4"), "{}", refused.said());
    }
    assert!(metrics(&["--from", "2", "--to", "6"]).success().unwrap().stderr.is_empty());
}

#[test]
fn an_unknown_run_is_named() {
    let cluster = short().unwrap();
    let root = cluster.root();
    fs::create_dir(&root).unwrap();
    for command in ["digest", "metrics", "status"] {
        let arguments = [command, "nobody", "--root", root.to_str().unwrap()];
        let message = cluster.polygram(&arguments).unwrap().refusal().unwrap();
        assert!(message.contains("nobody"), "{command}: {message}");
    }
    assert!(Contents::of(&root).unwrap().is_empty(), "a question made files");
}

fn copied_model(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    for file in ["config.json", "model.safetensors"] {
        fs::copy(repository().join("tests/golden/A").join(file), folder.join(file))?;
    }
    Ok(())
}

#[test]
fn corrupt_weights_are_refused_and_no_output_is_touched() {
    let cluster = short().unwrap();
    let model = cluster.folder().join("model");
    copied_model(&model).unwrap();
    let weights = model.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let input = repository().join("tests/golden/A/forward.safetensors");
    let output = cluster.folder().join("out.safetensors");
    let mut huge_header = whole.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut not_json = whole.clone();
    not_json[9] = b'!';
    let cut = whole[..whole.len() - 100].to_vec();
    for bytes in [cut, huge_header, not_json, whole[..4].to_vec(), Vec::new()] {
        fs::write(&weights, &bytes).unwrap();
        fs::write(&output, "precious").unwrap();
        let paths = [&model, &input, &output].map(|path| path.to_str().unwrap().to_owned());
        let arguments = ["logits", "--model", &paths[0], "--input", &paths[1], "--output", &paths[2]];
        let message = cluster.polygram(&arguments).unwrap().refusal().unwrap();
        assert!(message.contains("model.safetensors"), "{message}");
        assert_eq!(fs::read(&output).unwrap(), b"precious");
    }
}

#[test]
fn tokens_outside_a_models_vocabulary_are_refused_by_name() {
    let cluster = short().unwrap();
    let tokens = cluster.folder().join("tokens.json");
    let config = repository().join("tests/golden/A/config.json");
    for (text, word) in [("[[1, 2, 113]]", "113"), ("[[1, -2]]", "tokens.json"), ("[1, 2", "tokens.json")] {
        fs::write(&tokens, text).unwrap();
        let arguments =
            ["ngram", "ids", "--config", config.to_str().unwrap(), "--tokens", tokens.to_str().unwrap()];
        let message = cluster.polygram(&arguments).unwrap().refusal().unwrap();
        assert!(message.contains(word), "{text}: {message}");
    }
}
