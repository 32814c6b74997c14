//! Every legal pair of values of the run file starts, commits, stops and resumes, and ends with the bits of a run that
//! nothing interrupts. What is not legal is refused before anything starts, by `plan` and by `train`, with one message.
//!
//! A value of an enum cannot be forgotten: the lists are made from the types (a new variant does not compile here), and a
//! key of the run file that holds a word or a switch must be a factor.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, the seed is told

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use polygram_domain::RunFile;
use polygram_domain::embedding::{AdamBias, Numa, RowDecay, RowOptimizer, RowType, SameHost};
use polygram_domain::model::{Amplification, Normalizer, Placement};
use polygram_domain::run_spec::{ComputeType, Determinism, DeviceKind, Engine as RunEngine, OnNonfinite};
use polygram_domain::schedule::ScheduleKind;
use polygram_domain::spikes::SpikeAction;
use polygram_tests::covering::{Choice, covering_rows, pairs};
use polygram_tests::{Cluster, Contents, Engine, Moto, repository, segment};

/// Any seed gives a covering array; this one is not special.
const SEED: u64 = 14;
/// Runs at a time: each has up to seven processes, most of which wait.
const LANES: usize = 3;
/// Settings of every row: a few tiny steps, stopped in the middle of the schedule.
const BASE: [&str; 4] = [
    "training.steps=5",
    "training.seq_len=16",
    "training.warmup_steps=1",
    "run.failure_detection_seconds=60",
];
const STOP: &str = "training.stop_at_step=3";

/// A key of the run file, or another choice, and its values: a word and the settings that it stands for.
struct Factor {
    key: &'static str,
    values: Vec<(String, Vec<String>)>,
}

impl Factor {
    /// Values of a key as they are written.
    fn of(key: &'static str, values: &[&str]) -> Factor {
        let value = |word: &&str| ((*word).to_owned(), vec![format!("{key}={word}")]);
        Factor { key, values: values.iter().map(value).collect() }
    }

    /// Values that need several settings.
    fn with(key: &'static str, values: &[(&str, &[&str])]) -> Factor {
        let value = |(word, sets): &(&str, &[&str])| {
            ((*word).to_owned(), sets.iter().map(|set| (*set).to_owned()).collect())
        };
        Factor { key, values: values.iter().map(value).collect() }
    }

    /// Adds a setting to one of the values.
    fn and(mut self, word: &str, set: &str) -> Factor {
        let value = self.values.iter_mut().find(|(known, _)| known == word).unwrap();
        value.1.push(set.to_owned());
        self
    }
}

/// The factor of an enum's key. All variants are listed: the match does not compile otherwise.
macro_rules! every {
    ($key:literal, $type:ty { $($variant:ident),+ }) => {{
        let exhaustive = |value: &$type| match value {
            $(<$type>::$variant => serde_json::to_value(value).unwrap().as_str().unwrap().to_owned(),)+
        };
        let words = [$(exhaustive(&<$type>::$variant)),+];
        Factor::of($key, &words.each_ref().map(String::as_str))
    }};
}

/// Every word and switch of the run file, and the numbers and absences that take another path through the programs.
fn factors() -> Vec<Factor> {
    let spikes = every!("spikes.action", SpikeAction { Off, Stop, Skip, RollBack });
    let spikes = ["stop", "skip", "roll_back"]
        .into_iter()
        .fold(spikes, |factor, action| factor.and(action, "spikes.norm_factor=1000.0"));
    vec![
        every!("model.placement", Placement { Input, PerLayer, PerLayerNgram }),
        every!("ngram.normalizer", Normalizer { Mean, Sqrt }),
        every!("ngram.amplification", Amplification { None, SqrtD, LayerNorm }),
        every!("training.schedule", ScheduleKind { Constant, Cosine, Wsd })
            .and("wsd", "training.decay_steps=2"),
        every!("training.compute", ComputeType { F32, Bf16 }),
        every!("training.determinism", Determinism { Elastic, Topology }),
        every!("training.on_nonfinite", OnNonfinite { Stop, Skip, RollBack }),
        every!(
            "embedding.optimizer",
            RowOptimizer { Adam, PartialRowwiseAdam, Adagrad, RowwiseAdagrad, Sgd }
        ),
        every!("embedding.bias", AdamBias { Row, Global }),
        every!("embedding.decay", RowDecay { Touched, All }),
        every!("embedding.storage", RowType { F32, Bf16 }),
        every!("embedding.wire_rows", RowType { F32, Bf16 }),
        every!("embedding.wire_gradients", RowType { F32, Bf16 }),
        every!("embedding.numa", Numa { Auto, Off }),
        every!("embedding.same_host", SameHost { Auto, Tcp }),
        spikes,
        every!("device.engine", RunEngine { Torch, Drill }),
        // Runs of a device need one: scripts/gpu-check.sh.
        device_kinds(),
        Factor::of("training.recompute", &["false", "true"]),
        Factor::of("training.clip.enabled", &["true", "false"]),
        Factor::of("training.clip.tables", &["true", "false"]),
        Factor::of("embedding.weight_decay", &["0.0", "0.01"]),
        Factor::of("embedding.lanes", &["1", "2"]),
        Factor::of("embedding.prefetch_steps", &["0", "2"]),
        Factor::of("embedding.connections", &["1", "2"]),
        Factor::with("embedding.max_row_norm", &[("none", &[]), ("some", &["embedding.max_row_norm=0.1"])]),
        Factor::of("topology.workers", &["1", "2", "4"]),
        Factor::of("topology.expert_parallel", &["1", "2"]),
        Factor::of("topology.shards", &["1", "3"]),
        Factor::with(
            "experts",
            &[
                ("zero", &["model.n_routed_experts=4", "model.zero_expert_num=2"]),
                ("plain", &["model.n_routed_experts=2", "model.zero_expert_num=0"]),
            ],
        ),
        Factor::with(
            "losses",
            &[
                (
                    "none",
                    &[
                        "training.balance.loss_coefficient=0.0",
                        "training.balance.router_z_coefficient=0.0",
                        "training.balance.hidden_z_coefficient=0.0",
                        "training.balance.bias_rate=0.0",
                    ],
                ),
                ("all", &["training.balance.loss_groups=2"]),
            ],
        ),
        Factor::of("training.micro_batch_size", &["1", "2"]),
        Factor::of("training.cells", &["4", "8"]),
        Factor::with("checkpoint.every_steps", &[("at the end", &[]), ("2", &["checkpoint.every_steps=2"])]),
        Factor::with(
            "recovery_points",
            &[
                ("none", &[]),
                ("all", &["recovery_points.every_steps=1", "recovery_points.changes_below=0.0"]),
                ("changes", &["recovery_points.every_steps=1", "recovery_points.changes_below=1.0"]),
            ],
        ),
        Factor::with("evaluation", &[("none", &[]), ("2", &["evaluation.every_steps=2"])]),
        Factor::with(
            "rotation",
            &[
                ("plain", &[]),
                ("yarn", &["model.rope_scaling={factor=4.0, original_max_position_embeddings=8}"]),
            ],
        ),
        Factor::with(
            "hashing",
            &[("plain", &[]), ("own", &["ngram.hash_vocab_size=131", "ngram.ignored_tokens=[5, 9]"])],
        ),
        Factor::with("orders", &[("several", &[]), ("one", &["ngram.max_order=2", "ngram.heads=1"])]),
        Factor::with("embedding.init_std", &[("none", &[]), ("some", &["embedding.init_std=0.1"])]),
        Factor::with(
            "word embeddings",
            &[
                ("as the rest", &[]),
                (
                    "own",
                    &[
                        "training.optimizer.word_embedding_lr_multiplier=2.0",
                        "training.optimizer.word_embedding_weight_decay=0.0",
                    ],
                ),
            ],
        ),
        Factor::with("store", &[("folder", &[]), ("s3", &[])]),
        Factor::with("data", &[("synthetic", &[]), ("segments", &[])]),
        Factor::of("data.allow_change", &["false", "true"]),
    ]
}

/// Both kinds of device are known here, one is run.
fn device_kinds() -> Factor {
    let mut kinds = every!("device.kind", DeviceKind { Cpu, Cuda });
    kinds.values.retain(|(word, _)| word != "cuda");
    kinds
}

/// Two values that exclude each other: (key, value, key, value, key that the refusal names).
const ILLEGAL: [(&str, &str, &str, &str, &str); 6] = [
    ("embedding.bias", "global", "embedding.optimizer", "adagrad", "embedding.bias"),
    ("embedding.bias", "global", "embedding.optimizer", "rowwise_adagrad", "embedding.bias"),
    ("embedding.bias", "global", "embedding.optimizer", "sgd", "embedding.bias"),
    ("topology.workers", "1", "topology.expert_parallel", "2", "topology.expert_parallel"),
    ("embedding.decay", "all", "embedding.weight_decay", "0.0", "embedding.decay"),
    ("data.allow_change", "true", "data", "synthetic", "data.allow_change"),
];

/// Further settings that are refused, alone or together, and a key that the message names.
const REFUSED: [(&[&str], &str); 22] = [
    (&["spikes.action=skip"], "spikes.action"),
    (&["spikes.action=stop", "spikes.loss_deviations=5.0", "spikes.skip_steps=2"], "spikes.skip_steps"),
    (
        &["topology.workers=4", "topology.min_workers=2", "training.determinism=topology"],
        "topology.min_workers",
    ),
    (&["topology.workers=2", "topology.expert_parallel=2", "topology.min_workers=1"], "topology.min_workers"),
    (&["topology.workers=8"], "topology.workers"),
    (&["topology.workers=3"], "topology.workers"),
    (&["topology.workers=2", "topology.expert_parallel=2", "model.n_routed_experts=3"], "n_routed_experts"),
    (&["model.moe_topk=7"], "model.moe_topk"),
    (&["training.balance.target_top_k=3"], "training.balance.target_top_k"),
    (&["training.balance.loss_groups=3"], "training.balance.loss_groups"),
    (&["model.placement=per_layer_ngram", "model.ffn_hidden_size=66"], "model.ffn_hidden_size"),
    (&["model.qk_rope_head_dim=7"], "model.qk_rope_head_dim"),
    (&["ngram.ratio=2.0"], "ngram.base_rows"),
    (&["ngram.ignored_tokens=[128]"], "ngram.ignored_tokens"),
    (&["ngram.hash_vocab_size=97"], "ngram.hash_vocab_size"),
    (&["data.train=somewhere"], "data.train"),
    (&["embedding.weight_decay=1.0", "embedding.lr_multiplier=1000.0"], "embedding.weight_decay"),
    (
        &["recovery_points.every_steps=1", "recovery_points.changes_below=2.0"],
        "recovery_points.changes_below",
    ),
    (&["checkpoint.keep=1"], "checkpoint.keep"),
    (&["device.memory_gib=0.0001"], "device.memory_gib"),
    (&["model.num_layers=4000000000"], "model.num_layers"),
    (&["training.steps=9223372036854775807"], "training.steps"),
];

/// Whether two choices may stand in one run.
fn is_legal(factors: &[Factor], a: Choice, b: Choice) -> bool {
    let word = |(factor, value): Choice| (factors[factor].key, factors[factor].values[value].0.as_str());
    let (a, b) = (word(a), word(b));
    !ILLEGAL.iter().any(|(key, value, other, of_other, _)| {
        let (first, second) = ((*key, *value), (*other, *of_other));
        (a, b) == (first, second) || (a, b) == (second, first)
    })
}

/// One row: the word of every factor, and its settings.
struct Row<'a> {
    words: BTreeMap<&'static str, &'a str>,
    sets: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn of(factors: &'a [Factor], row: &[usize]) -> Row<'a> {
        let chosen = || factors.iter().zip(row).map(|(factor, &value)| (factor.key, &factor.values[value]));
        Row {
            words: chosen().map(|(key, (word, _))| (key, word.as_str())).collect(),
            sets: chosen().flat_map(|(_, (_, sets))| sets.iter().map(String::as_str)).collect(),
        }
    }

    fn cluster(&self) -> Result<Cluster> {
        // The engine is one of the row's own settings, which come last.
        let cluster = Cluster::tiny(Engine::Drill)?.with(&BASE).with(&self.sets);
        let cluster = match self.words["data"] {
            "segments" => {
                let prefix = cluster.folder().join("tokens");
                segment::write(&prefix, &segment::documents(128))?;
                let held_out = self.words["evaluation"] != "none";
                let cluster = cluster.on_segments(&prefix)?;
                let set = format!("data.held_out={:?}", prefix.display().to_string());
                if held_out { cluster.with(&[&set]) } else { cluster }
            }
            _ => cluster,
        };
        if self.words["store"] == "s3" { cluster.on_s3(Moto::shared()?) } else { Ok(cluster) }
    }

    /// Starts, commits, stops, resumes and ends; a run that nothing interrupts leaves the same.
    fn check(&self) -> Result<()> {
        let whole = self.cluster()?;
        whole.train(&[])?.success().context("without a stop")?;
        let stopped = self.cluster()?;
        let refused = stopped.train(&[STOP])?;
        ensure!(refused.status.success(), "until the stop: {}\n{}", refused.status, refused.said());
        ensure!(stopped.digest()?.step == 3, "the commit of the stop is of step {}", stopped.digest()?.step);
        stopped.train(&[])?.success().context("after the stop")?;
        let (found, wanted) = (stopped.trace()?, whole.trace()?);
        ensure!(wanted.metrics.len() == 5, "{} steps are recorded", wanted.metrics.len());
        ensure!(
            found.metrics == wanted.metrics,
            "other losses: {:?} and {:?}",
            found.metrics,
            wanted.metrics
        );
        ensure!(found.digest == wanted.digest, "other bits: {:?} and {:?}", found.digest, wanted.digest);
        ensure!(found.ledger == wanted.ledger, "another ledger: {:?} and {:?}", found.ledger, wanted.ledger);
        Ok(())
    }
}

#[test]
fn every_legal_pair_of_values_starts_commits_and_resumes() {
    let begun = Instant::now();
    let factors = factors();
    let sizes: Vec<usize> = factors.iter().map(|factor| factor.values.len()).collect();
    let (rows, impossible) = covering_rows(&sizes, |a, b| is_legal(&factors, a, b), SEED);
    assert!(impossible.is_empty(), "{impossible:?}");
    let covered = pairs(&sizes, |a, b| is_legal(&factors, a, b)).len();
    println!("seed {SEED}: {} factors, {covered} pairs in {} rows", factors.len(), rows.len());
    let queue = Mutex::new(rows.iter().enumerate());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _lane in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some((number, row)) = queue.lock().unwrap().next() else { break };
                    let row = Row::of(&factors, row);
                    let started = Instant::now();
                    if let Err(error) = row.check() {
                        failures.lock().unwrap().push(format!("row {number}: {error:#}\n{:?}", row.words));
                    }
                    println!("row {number}: {:.1} s", started.elapsed().as_secs_f64());
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} rows failed:\n{}", failures.len(), failures.join("\n\n"));
    println!("{:.0} s", begun.elapsed().as_secs_f64());
}

/// Words and switches of the run file that are no choices.
const NO_FACTORS: [&str; 1] = ["run.name"];

#[test]
fn every_word_and_switch_of_the_run_file_is_a_factor() {
    let text = std::fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let effective = RunFile::parse(&text, "tiny", &[]).unwrap();
    let value = serde_json::to_value(&effective).unwrap();
    let mut found = BTreeSet::new();
    let mut open = vec![(String::new(), &value)];
    while let Some((key, value)) = open.pop() {
        match value {
            serde_json::Value::Object(members) => {
                let join =
                    |name: &String| if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                open.extend(members.iter().map(|(name, value)| (join(name), value)));
            }
            serde_json::Value::String(_) | serde_json::Value::Bool(_) => {
                found.insert(key);
            }
            _ => {}
        }
    }
    let factors = factors();
    let known: BTreeSet<String> =
        factors.iter().map(|factor| factor.key).chain(NO_FACTORS).map(str::to_owned).collect();
    let missing: Vec<&String> = found.difference(&known).collect();
    assert!(missing.is_empty(), "keys of the run file without a factor here: {missing:?}");
}

#[test]
fn what_is_illegal_is_refused_by_plan_and_train() {
    let run_file = repository().join("configs/tiny.toml");
    let factors = factors();
    let settings = |key: &str, value: &str| {
        let factor = factors.iter().find(|factor| factor.key == key).unwrap();
        factor.values.iter().find(|(word, _)| word == value).unwrap().1.clone()
    };
    let pairs = ILLEGAL.map(|(key, value, other, of_other, named)| {
        ([settings(key, value), settings(other, of_other)].concat(), named)
    });
    let others =
        REFUSED.map(|(sets, named)| (sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>(), named));
    for (sets, named) in pairs.into_iter().chain(others) {
        let cluster = Cluster::tiny(Engine::Torch).unwrap();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let run_file = run_file.to_str().unwrap();
        let arguments = sets.iter().flat_map(|set| ["--set", set]);
        let planned = cluster.polygram(&["plan", run_file].into_iter().chain(arguments).collect::<Vec<_>>());
        for (command, finished) in [("plan", planned.unwrap()), ("train", cluster.train(&sets).unwrap())] {
            let said = finished.said();
            assert_eq!(finished.status.code(), Some(2), "{command} {sets:?}: {said}");
            assert_eq!(finished.stderr.matches("error: ").count(), 1, "{command} {sets:?}: {said}");
            assert!(finished.stderr.contains(named), "{command} {sets:?} does not name {named}: {said}");
        }
        assert!(Contents::of(&cluster.root()).unwrap().is_empty(), "{sets:?} left files");
    }
}
