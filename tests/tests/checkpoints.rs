//! `polygram ckpt` on a run's checkpoints, in a folder and over the S3 protocol.

use anyhow::{Error, Result};
use polygram_tests::{Cluster, Engine, Moto};
use serde_json::Value;

const RUN: [&str; 4] =
    ["training.steps=40", "checkpoint.every_steps=10", "checkpoint.keep=2", "topology.workers=2"];

fn clusters() -> Result<Vec<Cluster>> {
    let tiny = || Ok::<_, Error>(Cluster::tiny(Engine::Drill)?.with(&RUN));
    Ok(vec![tiny()?, tiny()?.on_s3(Moto::shared()?)?])
}

/// Step, and whether it is pinned.
fn steps(listed: &Value) -> Option<Vec<(u64, bool)>> {
    let step = |line: &Value| Some((line["step"].as_u64()?, line["pinned"].as_bool()?));
    listed.as_array()?.iter().map(step).collect()
}

#[test]
fn checkpoints_are_listed_shown_compared_and_pinned() {
    for cluster in clusters().unwrap() {
        cluster.train(&["training.stop_at_step=10"]).unwrap().success().unwrap();
        cluster.ckpt("pin", &["10"]).unwrap().success().unwrap();
        cluster.train(&[]).unwrap().success().unwrap();
        let listed = cluster.ckpt_json("ls", &[]).unwrap();
        assert_eq!(steps(&listed).unwrap(), [(10, true), (30, false), (40, false)], "{}", cluster.root_url());
        assert!(listed[0]["bytes"].as_u64().unwrap() > 10_000 && listed[0]["damage"].is_null());
        let text = cluster.ckpt("ls", &[]).unwrap().success().unwrap().stdout;
        assert_eq!(text.lines().count(), 4, "{text}");

        let shown = cluster.ckpt_json("show", &["--step", "30"]).unwrap();
        assert_eq!(shown["step"], 30);
        let members: Vec<&String> = shown["members"].as_object().unwrap().keys().collect();
        assert_eq!(members, ["shard-0", "shard-1", "worker-0", "worker-1"]);
        let names = |class: &str| shown["tensors"][class]["names"].as_u64().unwrap();
        assert_eq!(names("optimizer"), 2 * names("dense"));
        assert_eq!(shown["tables"].as_object().unwrap().len(), 4);
        let text = cluster.ckpt("show", &["-v"]).unwrap().success().unwrap().stdout;
        assert!(text.contains("tiny at step 40") && text.contains("ckpt/data/"), "{text}");

        cluster.ckpt("diff", &["30", "30"]).unwrap().success().unwrap();
        let differing = cluster.ckpt("diff", &["10", "40"]).unwrap();
        assert_eq!(differing.status.code(), Some(1), "{}", differing.said());
        assert!(
            differing.stdout.contains("lm_head.weight: other values, max |b-a| "),
            "{}",
            differing.said()
        );
        let differing = cluster.ckpt_json("diff", &["10", "40"]).unwrap();
        let differences = differing["differences"].as_array().unwrap();
        assert!(differences.len() as u64 <= differing["compared"].as_u64().unwrap(), "{differing}");
        assert!(differing["position"].as_str().unwrap().contains(" and seed "), "{differing}");
        for difference in differences {
            let of = &difference["distance"];
            assert!(
                of["max_abs"].as_f64().unwrap() > 0.0 && of["relative_l2"].as_f64().unwrap() > 0.0,
                "{difference}"
            );
        }
        let table = differences.iter().find(|difference| difference["name"] == "table 0").unwrap();
        assert!(table["rows"]["rows"].as_u64().unwrap() > 0, "{table}");

        let reshard =
            ["--workers", "1", "--expert-parallel", "1", "--shards", "3", "--step", "30", "--to-run", "copy"];
        cluster.ckpt("reshard", &reshard).unwrap().success().unwrap();
        let of_copy = |command: &[&str]| {
            let arguments = [command, &["--root", cluster.root_url(), "-o", "json"]].concat();
            let said = cluster.polygram(&arguments).unwrap().success().unwrap();
            serde_json::from_str::<Value>(&said.stdout).unwrap()
        };
        let status = of_copy(&["status", "copy"]);
        assert_eq!(
            (status["state"].as_str(), status["step"].as_u64()),
            (Some("stopped"), Some(30)),
            "{status}"
        );
        assert_eq!((status["total_steps"].as_u64(), status["last_commit"].as_u64()), (Some(40), Some(30)));
        assert!(status["message"].as_str().unwrap().contains("10 steps to go"), "{status}");
        let runs = of_copy(&["runs"]);
        let lines: Vec<_> =
            runs.as_array().unwrap().iter().map(|run| (run["run"].clone(), run["state"].clone())).collect();
        assert_eq!(lines, [("copy".into(), "stopped".into()), ("tiny".into(), "completed".into())]);

        cluster.ckpt("unpin", &["10"]).unwrap().success().unwrap();
        assert_eq!(steps(&cluster.ckpt_json("ls", &[]).unwrap()).unwrap()[0], (10, false));
        let message = cluster.ckpt("pin", &["11"]).unwrap().refusal().unwrap();
        assert!(message.contains("no checkpoint of step 11") && message.contains("10, 30, 40"), "{message}");
        assert_eq!(cluster.ckpt_json("gc", &[]).unwrap()["objects"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn verify_reads_everything_and_names_what_is_damaged() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&[]).unwrap().success().unwrap();
    cluster.ckpt("verify", &["--all"]).unwrap().success().unwrap();
    let shown = cluster.ckpt_json("show", &[]).unwrap();
    let keys: Vec<&str> =
        shown["objects"].as_array().unwrap().iter().map(|object| object["key"].as_str().unwrap()).collect();
    assert!(keys.len() >= 6, "{keys:?}");
    let place = |key: &str| cluster.root().join("runs/tiny").join(key);
    let last = keys.len() - 1;
    let mut bytes = std::fs::read(place(keys[0])).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    std::fs::write(place(keys[0]), &bytes).unwrap();
    std::fs::write(place(keys[1]), "short").unwrap();
    std::fs::remove_file(place(keys[last])).unwrap();

    let verified = cluster.ckpt("verify", &[]).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{}", verified.said());
    let report = &cluster.ckpt_json("verify", &[]).unwrap()[0];
    let damaged: Vec<&str> =
        report["damaged"].as_array().unwrap().iter().map(|object| object["key"].as_str().unwrap()).collect();
    assert_eq!(damaged, [keys[0], keys[1], keys[last]]);
    for key in damaged {
        assert!(verified.stdout.contains(key), "{key} is not named:\n{}", verified.said());
    }
    assert!(cluster.ckpt("ls", &[]).unwrap().stdout.contains("damaged"));

    // A run that goes on falls back to the checkpoint before, says so, and ends with the bits it had.
    let whole = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    whole.train(&[]).unwrap().success().unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), whole.digest().unwrap());
}

/// One flipped bit changes no length: the checkpoint looks whole until it is read. A person may look before a run does.
#[test]
fn a_flipped_bit_is_found_by_verify_and_set_aside() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&["training.stop_at_step=20"]).unwrap().success().unwrap();
    let shown = cluster.ckpt_json("show", &[]).unwrap();
    let mut objects =
        shown["objects"].as_array().unwrap().iter().map(|object| object["key"].as_str().unwrap());
    let key = objects.find(|key| key.ends_with(".rows")).unwrap();
    let place = cluster.root().join("runs/tiny").join(key);
    let mut bytes = std::fs::read(&place).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&place, &bytes).unwrap();
    assert!(!cluster.ckpt("ls", &[]).unwrap().stdout.contains("damaged"));
    let report = cluster.ckpt_json("verify", &["--set-aside"]).unwrap();
    assert_eq!(report[0]["damaged"][0]["key"], key);
    assert_eq!(report[0]["set_aside"], true);
    assert_eq!(cluster.commits().unwrap(), [10]);
    cluster.train(&[]).unwrap().success().unwrap();
    let whole = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    whole.train(&[]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), whole.digest().unwrap());
}
