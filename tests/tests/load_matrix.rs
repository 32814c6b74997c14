//! Saved by one topology, loaded by another, and continued: the bits of never stopping.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Digest, Engine};

/// Workers, ranks that hold all experts together, shards.
type Topology = (u32, u32, u32);

const RUN: [&str; 3] = ["training.steps=20", "checkpoint.every_steps=100", "evaluation.every_steps=100"];

/// Four ways to save, each loaded in four ways; all different from the saving one, up and down in every number.
const SAVED: [Topology; 4] = [(1, 1, 1), (2, 2, 3), (4, 1, 2), (4, 4, 1)];
const LOADED: [Topology; 5] = [(1, 1, 2), (2, 1, 1), (4, 2, 3), (2, 2, 3), (4, 4, 1)];

fn sets((workers, experts, shards): Topology) -> [String; 3] {
    [
        format!("topology.workers={workers}"),
        format!("topology.expert_parallel={experts}"),
        format!("topology.shards={shards}"),
    ]
}

fn train(cluster: &Cluster, topology: Topology, more: &[&str]) -> Result<()> {
    let sets = sets(topology);
    let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
    cluster.train(&sets)?.success().map(drop)
}

fn never_stopped(engine: Engine) -> Digest {
    static TORCH: OnceLock<Digest> = OnceLock::new();
    static DRILL: OnceLock<Digest> = OnceLock::new();
    let slot = if engine == Engine::Torch { &TORCH } else { &DRILL };
    let run = || -> Result<Digest> {
        let cluster = Cluster::tiny(engine)?.with(&RUN);
        train(&cluster, (1, 1, 1), &[])?;
        cluster.digest()
    };
    slot.get_or_init(|| run().expect("the run that is compared with must succeed")).clone()
}

fn saved_at_ten(engine: Engine, topology: Topology) -> Result<Cluster> {
    let cluster = Cluster::tiny(engine)?.with(&RUN);
    train(&cluster, topology, &["training.stop_at_step=10"])?;
    ensure!(cluster.commits()? == [10]);
    Ok(cluster)
}

fn continues(saved: &Cluster, engine: Engine, (from, to): (Topology, Topology)) -> Result<()> {
    let cluster = Cluster::tiny(engine)?.with(&RUN).with_root_of(saved)?;
    train(&cluster, to, &[])?;
    let found = cluster.digest()?;
    ensure!(found == never_stopped(engine), "saved at {from:?}, continued at {to:?}: {found:?}");
    Ok(())
}

#[test]
fn any_topology_continues_what_any_other_saved() {
    let mut pairs = 0;
    for from in SAVED {
        let saved = saved_at_ten(Engine::Drill, from).unwrap();
        for to in LOADED.into_iter().filter(|to| *to != from) {
            continues(&saved, Engine::Drill, (from, to)).unwrap();
            pairs += 1;
        }
    }
    assert!(pairs >= 12, "{pairs}");
}

#[test]
fn so_does_the_real_model() {
    for (from, to) in [((2, 2, 3), (4, 1, 2)), ((4, 1, 2), (1, 1, 1)), ((1, 1, 1), (4, 4, 2))] {
        let saved = saved_at_ten(Engine::Torch, from).unwrap();
        continues(&saved, Engine::Torch, (from, to)).unwrap();
    }
}

/// Written again for the topology that will load it, beside the original and over it.
#[test]
fn a_resharded_checkpoint_continues_the_same_way() {
    let saved = saved_at_ten(Engine::Drill, (4, 1, 2)).unwrap();
    let before = saved.digest().unwrap();
    let division = ["--workers", "2", "--expert-parallel", "2", "--shards", "3"];
    let elsewhere = saved.folder().join("elsewhere").display().to_string();
    let beside = [&division[..], &["--to-run", "copy", "--to-root", &elsewhere]].concat();
    saved.ckpt("reshard", &beside).unwrap().success().unwrap();
    let other = ["10", "10", "--other-run", "copy", "--other-root", &elsewhere];
    saved.ckpt("diff", &other).unwrap().success().unwrap();

    let said = saved.ckpt_json("reshard", &division).unwrap();
    assert_eq!(said["digest"], before.digest);
    assert_eq!(saved.digest().unwrap(), before);
    let shown = saved.ckpt_json("show", &[]).unwrap();
    let members: Vec<&String> = shown["members"].as_object().unwrap().keys().collect();
    assert_eq!(members, ["shard-0", "shard-1", "shard-2", "worker-0", "worker-1"]);
    assert!(!saved.ckpt_json("gc", &["--yes"]).unwrap()["objects"].as_array().unwrap().is_empty());
    train(&saved, (2, 2, 3), &[]).unwrap();
    assert_eq!(saved.digest().unwrap(), never_stopped(Engine::Drill));
}
