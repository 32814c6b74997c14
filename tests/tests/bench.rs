//! `polygram bench step` runs a run file's processes, says where their time went and leaves nothing behind.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{Finished, Running, program, repository};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Runs it on `configs/tiny.toml` with a temporary folder of its own, which is empty afterwards.
fn bench(arguments: &[&str]) -> Result<Finished> {
    let (outputs, temporary) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut command = Command::new(program("polygram")?);
    command.args(["bench", "step"]).arg(repository().join("configs/tiny.toml"));
    command.args(["--set", "device.engine=drill"]).args(arguments).env("TMPDIR", temporary.path());
    let mut running = Running::start(command, outputs.path())?;
    let finished = running.wait(LIMIT)?;
    let left = std::fs::read_dir(temporary.path())?.count();
    ensure!(left == 0, "{left} folders are left\n{}", finished.said());
    running.wait_for_silence(LIMIT)?;
    Ok(finished)
}

#[test]
fn steps_are_measured_and_explained() {
    let finished = bench(&["--steps", "5", "--warmup", "2", "-o", "json"]).unwrap().success().unwrap();
    let document: Value = serde_json::from_str(&finished.stdout).context(finished.said()).unwrap();
    let number = |key: &str| document[key].as_f64().with_context(|| format!("{key}: {document}")).unwrap();
    assert_eq!((number("steps"), number("warmup_steps"), number("tokens_per_step")), (5.0, 2.0, 256.0));
    assert_eq!((number("workers"), number("shards")), (1.0, 2.0));
    let mean = 256.0 / number("tokens_per_second");
    let spread = |key: &str| document["step_seconds"][key].as_f64().unwrap();
    assert!(spread("minimum") <= mean && mean <= spread("maximum"), "{document}");
    // Phases do not overlap, and little lies between them.
    let phases = document["seconds_by_phase"].as_object().unwrap();
    let sum: f64 = phases.values().map(|seconds| seconds.as_f64().unwrap()).sum();
    assert!(sum <= mean && sum > 0.5 * mean, "{document}");
    assert!(phases["computing"].as_f64().unwrap() > 0.0, "{document}");
    for ratio in ["embedding_wait_ratio", "data_wait_ratio"] {
        assert!((0.0..=1.0).contains(&number(ratio)), "{document}");
    }
    assert!(number("peak_rss_bytes") > 1e6, "{document}");
}

#[test]
fn more_steps_than_the_run_has_are_refused() {
    let message = bench(&["--steps", "50", "--warmup", "20"]).unwrap().refusal().unwrap();
    assert!(
        message.contains("training.steps is 60") && message.contains("--set training.steps=70"),
        "{message}"
    );
}
