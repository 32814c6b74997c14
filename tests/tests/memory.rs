//! `polygram plan` says what a worker takes: its sum is within a tenth of the measured peak, whatever is set that costs
//! memory.
//!
//! The peak is VmHWM of rank 0 in `polygram bench step`. The process itself (libtorch, its threads, network buffers) is
//! measured with the tiny model, whose own parts are subtracted, and is subtracted from every peak. The caches of kernels
//! that oneDNN fills for bf16 on a CPU (docs/model.md, "Memory") are of the process, not of the model, and depend on how many
//! sizes of expert products have come: they are switched off here.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, figures are told

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use polygram_tests::{Running, program, repository};
use serde_json::Value;

/// A run of a few steps ends long before this, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(300);
/// How often a peak is measured that is far from what is planned.
const TRIES: usize = 3;
/// Rows are planned as if no n-gram came twice; tables this small make that nearly true of none, and cheap.
const SETS: [&str; 6] = [
    "topology.shards=1",
    "ngram.base_rows=997",
    "embedding.prefetch_steps=0",
    "training.cells=1",
    "training.micro_batch_size=8",
    "training.seq_len=256",
];

/// The answer of `polygram` as JSON.
fn json(arguments: &[&str]) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(program("polygram")?);
    command.args(arguments).args(["-o", "json"]).current_dir(folder.path());
    command.env("LRU_CACHE_CAPACITY", "1").env("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1");
    let finished = Running::start(command, folder.path())?.wait(LIMIT)?.success()?;
    serde_json::from_str(&finished.stdout).with_context(|| finished.said())
}

/// Planned bytes of a worker, and the measured peak of one.
fn planned_and_measured(file: &str, sets: &[&str]) -> (f64, f64) {
    let file = repository().join(file);
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let with = |command: &[&str], more: &[&str]| {
        let arguments = [command, &[file.to_str().unwrap()], &sets, more].concat();
        json(&arguments).unwrap()
    };
    let plan = with(&["plan"], &[]);
    let bench = with(&["bench", "step"], &["--steps", "2", "--warmup", "1"]);
    println!("{}", plan["memory"]["worker"]);
    (plan["memory"]["worker_bytes"].as_f64().unwrap(), bench["peak_rss_bytes"].as_f64().unwrap())
}

/// What a process of this compute type takes beside the model.
fn base(compute: &str) -> f64 {
    let set = format!("training.compute={compute}");
    let (planned, measured) = planned_and_measured("configs/tiny.toml", &["topology.shards=1", &set]);
    measured - planned
}

/// Whether planned bytes are within a tenth of the measured ones.
fn is_near(ratio: f64) -> bool {
    (ratio - 1.0).abs() <= 0.1
}

#[test]
fn a_worker_takes_what_is_planned() {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let bases = [("f32", base("f32")), ("bf16", base("bf16"))];
    println!("the process itself: {:.0} MiB, with bf16 {:.0} MiB", mib(bases[0].1), mib(bases[1].1));
    let mut wrong = Vec::new();
    for sets in [
        &[][..],
        &["training.recompute=true"],
        &["training.micro_batch_size=16"],
        &["training.micro_batch_size=2", "training.cells=4"],
        &["training.micro_batch_size=2", "training.cells=4", "training.determinism=topology"],
        &["training.compute=bf16"],
        &["training.compute=bf16", "training.recompute=true"],
        &["topology.workers=2", "training.cells=2"],
        &[
            "topology.workers=2",
            "topology.expert_parallel=2",
            "training.cells=4",
            "training.micro_batch_size=4",
        ],
        &[
            "topology.workers=2",
            "topology.expert_parallel=2",
            "training.cells=4",
            "training.micro_batch_size=16",
            "training.determinism=topology",
        ],
        &["model.placement=per_layer"],
        &["model.placement=per_layer_ngram"],
    ] {
        let all = [&SETS[..], sets].concat();
        let is_half = sets.contains(&"training.compute=bf16");
        let mut ratios = Vec::new();
        // A peak is up to 7 % higher where threads of a busy machine come to overlap that do not overlap otherwise.
        while ratios.len() < TRIES && !ratios.last().is_some_and(|ratio| is_near(*ratio)) {
            let (planned, peak) = planned_and_measured("configs/bench-step.toml", &all);
            let measured = peak - bases[usize::from(is_half)].1;
            let ratio = planned / measured;
            println!("{sets:?}: {:.0} MiB planned, {:.0} measured: {ratio:.3}", mib(planned), mib(measured));
            ratios.push(ratio);
        }
        if !ratios.last().is_some_and(|ratio| is_near(*ratio)) {
            wrong.push(format!("{sets:?}: {ratios:.3?}"));
        }
    }
    assert!(wrong.is_empty(), "planned by measured bytes: {wrong:?}");
}
