//! Golden B's eight recipe steps (tests/golden/train_steps_B.json) with the tables on real embedding shards.
//!
//! The losses are those of the published model's own training; reference and tolerance are described in
//! tests/golden/README.md.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::{NamedTensor, RowRecord};
use polygram_collective::{Bound, Membership, Tcp};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Cell, CellBatch, Generation, Rank, RankLayout, RowId, RunFile, ShardIndex, Step};
use polygram_embedding_shard::{Shard, ShardConfig};
use polygram_ngram::{Hasher, UniqueRows, batch_ids};
use polygram_proto::bulk::{Commit, Hello, RowClient, UniqueIds};
use safetensors::SafeTensors;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::compute::torch::Torch;
use crate::compute::{CellWork, Compute, DenseUpdate};
use crate::gradients::GradientSums;
use crate::norm::{self, SquareSums};
use crate::ranks::{Meeting, Ranks};

const SHARDS: u32 = 2;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(std::array::from_fn(|i| word[i]))).collect()
}

/// A run of golden B's model with the recipe's settings on `workers` ranks that divide the experts among them, one cell
/// each; its config.json says the rest.
fn recipe(workers: u32) -> RunSpec {
    let text = r#"
        [run]
        name = "golden-b"
        [model]
        vocab_size = 131
        hidden_size = 96
        num_layers = 2
        num_attention_heads = 3
        ffn_hidden_size = 48
        q_lora_rank = 32
        kv_lora_rank = 24
        qk_nope_head_dim = 16
        qk_rope_head_dim = 8
        v_head_dim = 16
        n_routed_experts = 8
        zero_expert_num = 4
        moe_topk = 4
        expert_ffn_hidden_size = 24
        routed_scaling_factor = 6.0
        [ngram]
        max_order = 4
        heads = 4
        ratio = 5.0
        [data]
        synthetic_tokens = 1000
        [training]
        steps = 8
        seq_len = 32
        micro_batch_size = 3
        cells = 1
        lr = 1e-3
        schedule = "constant"
        [training.optimizer]
        word_embedding_lr_multiplier = 5.333333333333333
        word_embedding_weight_decay = 0.0
        [training.balance]
        target_top_k = 3
        [embedding]
        lr_multiplier = 5.333333333333333
        [topology]
        shards = 2
    "#;
    let sets = ["topology.workers", "topology.expert_parallel", "training.cells"];
    let sets = sets.map(|key| format!("{key}={workers}"));
    RunFile::parse(text, "recipe", &sets).and_then(|file| file.resolve()).unwrap()
}

/// A shard with golden B's rows, without optimizer state: version 0, as if they had been drawn so.
fn shard(spec: &RunSpec, index: u32, weights: &SafeTensors<'_>) -> Shard {
    let mut shard = Shard::new(ShardConfig::of(spec, ShardIndex(index), Generation(1))).unwrap();
    for table in spec.tables().iter() {
        let values = floats(weights.tensor(&table.name).unwrap().data());
        for (row, weights) in values.chunks_exact(table.width as usize).enumerate() {
            let row = RowId(row as u32);
            if shard.weights(table.index, row).is_none() {
                continue;
            }
            let mut record = weights.to_vec();
            record.resize(weights.len() + shard.config().state_values(), 0.0);
            shard.restore_row(table.index, RowRecord { row, updates: 0, values: &record }).unwrap();
        }
    }
    shard
}

/// What all ranks begin with.
struct Golden {
    spec: RunSpec,
    /// The weights' file.
    weights: Vec<u8>,
    /// `[3, 32]`.
    tokens: Vec<u32>,
    /// Addresses of the shards.
    shards: Vec<SocketAddr>,
    /// Addresses of the ranks.
    ranks: Vec<SocketAddr>,
    /// Losses and norms of the published model's steps.
    wanted: serde_json::Value,
}

/// The eight steps of one rank, whose cell are the sequences `own`. Blocks, but for the shards.
fn train(golden: &Golden, rank: Rank, listener: Bound, own: Range<usize>, runtime: &Handle) {
    let Golden { spec, wanted, .. } = golden;
    let time = Duration::from_secs(60);
    let membership = Membership::new(spec.name.as_str(), Generation(1), rank);
    let meeting =
        Meeting { membership: &membership, addresses: &golden.ranks, deadline: time, patience: time };
    let Ranks { mut workers, sums, experts } = Ranks::meet(spec, listener, &meeting).unwrap();
    let hello =
        Hello { run: spec.name.clone(), generation: Generation(1), rank, workers: spec.topology.workers };
    let tables = Arc::new(spec.tables());
    let client = runtime.block_on(RowClient::connect(&golden.shards, hello, tables, time)).unwrap();

    let hasher = Hasher::new(&spec.model.ngram, spec.model.eos_token_id).unwrap();
    let tokens = golden.tokens[own.start * 32..own.end * 32].to_vec();
    let unique = Arc::new(UniqueRows::of(&batch_ids(&hasher, &tokens, 32).unwrap(), hasher.tables()));
    let ids = Arc::new(UniqueIds { offsets: unique.offsets.clone(), rows: unique.rows.clone() });
    let batch = CellBatch::from_sequences(tokens, own.len(), 32).unwrap();
    let mut targets = [batch.target_count()];
    workers.all_reduce_u64(&mut targets).unwrap();
    let [global_targets] = targets;

    let layout = RankLayout::of(&spec.model, &spec.topology, rank).unwrap();
    let mut compute = Torch::new(spec, layout.clone()).unwrap();
    if let Some(experts) = experts {
        compute.join(experts, Box::new(|_| ())).unwrap();
    }
    let mut gradients = GradientSums::start(Arc::new(layout), sums).unwrap();
    let square_sums = SquareSums::of(spec).unwrap();
    let weights = SafeTensors::deserialize(&golden.weights).unwrap();
    let state: Vec<NamedTensor> = spec
        .dense_parameters()
        .iter()
        .map(|p| NamedTensor::whole(&*p.name, &p.shape, floats(weights.tensor(&p.name).unwrap().data())))
        .collect();
    compute.restore(&mut state.into_iter()).unwrap();

    let cell = Cell(rank.0);
    for number in 0..8u64 {
        let step = Step(number);
        let rows_suw = runtime.block_on(client.lookup(step, cell, Arc::clone(&ids))).unwrap();
        let work = CellWork { batch: batch.clone(), unique: Arc::clone(&unique), rows_suw, global_targets };
        gradients.begin().unwrap();
        let result =
            compute.forward_backward(&work, Some(&mut |index, sum| gradients.sum(index, sum))).unwrap();
        runtime.block_on(client.push(step, cell, result.row_gradients_suw)).unwrap();
        let prepared = runtime.block_on(client.prepare(step)).unwrap();
        let summed = gradients.finish().unwrap();
        let dense = square_sums.total(step, &summed.square_sums, workers.as_mut()).unwrap();
        let gradient = norm::clip(&spec.training, dense, &prepared);
        assert!(gradient.finite);
        let (mut loss, mut counts) = ([result.loss_sum], result.routing_counts);
        workers.all_reduce_f64(&mut loss).unwrap();
        workers.all_reduce_u64(&mut counts).unwrap();
        let lr = spec.training.schedule.lr(number);
        let commit = Commit {
            scale: gradient.table_scale,
            lr: (lr * spec.embedding.lr_multiplier) as f32,
            snapshot: false,
        };
        runtime.block_on(client.commit(step, commit)).unwrap();
        let update = DenseUpdate {
            update: number + 1,
            lr,
            scale: gradient.dense_scale,
            routing_counts: &counts,
            bias_rate: spec.training.balance.bias_rate_at(number),
        };
        gradients.spread(compute.apply(&update, &summed).unwrap()).unwrap();
        compute.applied(&update).unwrap();
        compute.recycle(summed);
        let loss = loss[0] / global_targets as f64;
        let wanted_loss = wanted["losses"][number as usize].as_f64().unwrap();
        assert!((loss - wanted_loss).abs() <= 1e-4, "step {number}: loss {loss}, wanted {wanted_loss}");
        let wanted_norm = wanted["grad_norms_before_clip"][number as usize].as_f64().unwrap();
        assert!(
            (gradient.norm / wanted_norm - 1.0).abs() <= 1e-4,
            "step {number}: norm {}, wanted {wanted_norm}",
            gradient.norm
        );
    }
    runtime.block_on(client.close()).unwrap();
}

/// Trains on ranks whose cells are these runs of golden B's three sequences.
async fn train_on(sequences: &[Range<usize>]) {
    let spec = recipe(sequences.len() as u32);
    let weights = std::fs::read(golden("B/model.safetensors")).unwrap();
    let forward = std::fs::read(golden("B/forward.safetensors")).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let tokens = forward.tensor("input_ids").unwrap().data().chunks_exact(8);
    let tokens = tokens.map(|word| i64::from_le_bytes(std::array::from_fn(|i| word[i])) as u32).collect();
    let wanted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("train_steps_B.json")).unwrap()).unwrap();

    let mut serving = JoinSet::new();
    let (mut shards, mut stops) = (Vec::new(), Vec::new());
    for index in 0..SHARDS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        shards.push(listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        stops.push(stop);
        let shard = shard(&spec, index, &SafeTensors::deserialize(&weights).unwrap());
        serving.spawn(shard.serve(listener, async { stopped.await.unwrap_or(()) }));
    }
    let bind = |_: &Range<usize>| Tcp::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let bound: Vec<Bound> = sequences.iter().map(bind).collect();
    let ranks = bound.iter().map(Bound::address).collect();
    let wanted = wanted["recipe_adamw"].clone();
    let golden = Arc::new(Golden { spec, weights, tokens, shards, ranks, wanted });
    let threads: Vec<_> = (0..)
        .map(Rank)
        .zip(bound)
        .zip(sequences.to_vec())
        .map(|((rank, listener), own)| {
            let (golden, runtime) = (Arc::clone(&golden), Handle::current());
            tokio::task::spawn_blocking(move || train(&golden, rank, listener, own, &runtime))
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    drop(stops);
    while let Some(served) = serving.join_next().await {
        let shard = served.unwrap().unwrap();
        assert_eq!(shard.version(), Step(8));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipe_through_real_shards() {
    train_on(std::slice::from_ref(&(0..3))).await;
}

/// Two ranks with half of the experts each, and cells of unequal size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipe_on_two_ranks_that_divide_the_experts() {
    train_on(&[0..2, 2..3]).await;
}
