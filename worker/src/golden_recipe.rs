//! Golden B's eight recipe steps (tests/golden/train_steps_B.json) with the tables on real embedding shards.
//!
//! The losses are those of the published model's own training; reference and tolerance are described in
//! tests/golden/README.md.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polygram_checkpoint::{NamedTensor, RowRecord};
use polygram_collective::Solo;
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{Cell, CellBatch, Generation, Rank, RankLayout, RowId, RunFile, ShardIndex, Step};
use polygram_embedding_shard::{Shard, ShardConfig};
use polygram_ngram::{Hasher, UniqueRows, batch_ids};
use polygram_proto::bulk::{Commit, Hello, RowClient, UniqueIds};
use safetensors::SafeTensors;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::compute::torch::Torch;
use crate::compute::{CellWork, Compute, DenseUpdate};
use crate::gradients::{GradientSums, SumRanks};
use crate::norm::{self, SquareSums};

const SHARDS: u32 = 2;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(std::array::from_fn(|i| word[i]))).collect()
}

/// A run of golden B's model with the recipe's settings; its config.json says the rest.
fn recipe() -> RunSpec {
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
    RunFile::parse(text, "recipe", &[]).and_then(|file| file.resolve()).unwrap()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipe_through_real_shards() {
    let spec = recipe();
    let tables = Arc::new(spec.tables());
    let weights = std::fs::read(golden("B/model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let forward = std::fs::read(golden("B/forward.safetensors")).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let wanted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("train_steps_B.json")).unwrap()).unwrap();
    let wanted = &wanted["recipe_adamw"];

    let mut serving = JoinSet::new();
    let (mut addresses, mut stops) = (Vec::new(), Vec::new());
    for index in 0..SHARDS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        stops.push(stop);
        let shard = shard(&spec, index, &weights);
        serving.spawn(shard.serve(listener, async { stopped.await.unwrap_or(()) }));
    }
    let hello = Hello { run: spec.name.clone(), generation: Generation(1), rank: Rank(0), workers: 1 };
    let deadline = std::time::Duration::from_secs(60);
    let client = RowClient::connect(&addresses, hello, Arc::clone(&tables), deadline).await.unwrap();

    let tokens: Vec<u32> = forward
        .tensor("input_ids")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|word| i64::from_le_bytes(std::array::from_fn(|i| word[i])) as u32)
        .collect();
    let hasher = Hasher::new(&spec.model.ngram, spec.model.eos_token_id).unwrap();
    let unique = Arc::new(UniqueRows::of(&batch_ids(&hasher, &tokens, 32).unwrap(), hasher.tables()));
    let ids = Arc::new(UniqueIds { offsets: unique.offsets.clone(), rows: unique.rows.clone() });
    let batch = CellBatch::from_sequences(tokens, 3, 32).unwrap();

    let layout = RankLayout::of(&spec.model, &spec.topology, Rank(0)).unwrap();
    let mut compute = Torch::new(&spec, layout.clone()).unwrap();
    let mut alone = Solo::new("golden");
    let ranks = SumRanks { workers: Box::new(Solo::new("golden")), same_experts: None };
    let mut gradients = GradientSums::start(Arc::new(layout), ranks).unwrap();
    let square_sums = SquareSums::of(&spec).unwrap();
    let state: Vec<NamedTensor> = spec
        .dense_parameters()
        .iter()
        .map(|p| NamedTensor::whole(&*p.name, &p.shape, floats(weights.tensor(&p.name).unwrap().data())))
        .collect();
    compute.restore(&mut state.into_iter()).unwrap();

    let targets = batch.target_count();
    for number in 0..8u64 {
        let step = Step(number);
        let rows_suw = client.lookup(step, Cell(0), Arc::clone(&ids)).await.unwrap();
        let work =
            CellWork { batch: batch.clone(), unique: Arc::clone(&unique), rows_suw, global_targets: targets };
        gradients.begin().unwrap();
        let result =
            compute.forward_backward(&work, Some(&mut |index, sum| gradients.sum(index, sum))).unwrap();
        let summed = gradients.finish().unwrap();
        client.push(step, Cell(0), result.row_gradients_suw).await.unwrap();
        let prepared = client.prepare(step).await.unwrap();
        let dense = square_sums.total(step, &summed.square_sums, &mut alone).unwrap();
        let gradient = norm::clip(&spec.training, dense, &prepared);
        assert!(gradient.finite);
        let lr = spec.training.schedule.lr(number);
        let commit = Commit {
            scale: gradient.table_scale,
            lr: (lr * spec.embedding.lr_multiplier) as f32,
            snapshot: false,
        };
        client.commit(step, commit).await.unwrap();
        let update = DenseUpdate {
            update: number + 1,
            lr,
            scale: gradient.dense_scale,
            routing_counts: &result.routing_counts,
            bias_rate: spec.training.balance.bias_rate_at(number),
        };
        compute.apply(&update, &summed).unwrap();
        compute.applied(&update).unwrap();
        compute.recycle(summed);
        let loss = result.loss_sum / targets as f64;
        let wanted_loss = wanted["losses"][number as usize].as_f64().unwrap();
        assert!((loss - wanted_loss).abs() <= 1e-4, "step {number}: loss {loss}, wanted {wanted_loss}");
        let wanted_norm = wanted["grad_norms_before_clip"][number as usize].as_f64().unwrap();
        assert!(
            (gradient.norm / wanted_norm - 1.0).abs() <= 1e-4,
            "step {number}: norm {}, wanted {wanted_norm}",
            gradient.norm
        );
    }

    client.close().await.unwrap();
    drop(stops);
    while let Some(served) = serving.join_next().await {
        let shard = served.unwrap().unwrap();
        assert_eq!(shard.version(), Step(8));
    }
}
