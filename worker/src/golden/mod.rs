//! The published model's numbers (tests/golden/README.md) on ranks that divide the experts among them and real embedding
//! shards, in threads of one process.

mod gradients;
mod recipe;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::{NamedTensor, RowRecord};
use polygram_collective::{Bound, Collective, Membership, Tcp};
use polygram_domain::run_spec::RunSpec;
use polygram_domain::{
    Cell, CellBatch, Generation, MicroBatchRef, Rank, RankLayout, RowId, RowRef, RunFile, ShardIndex, Step,
};
use polygram_embedding_shard::{Door, Shard, ShardConfig};
use polygram_handshake::LinkKey;
use polygram_ngram::{Hasher, UniqueRows, batch_ids};
use polygram_row_exchange::{Hello, Prepared, RowClient, RowExchange, UniqueIds};
use safetensors::SafeTensors;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::compute::torch::Torch;
use crate::compute::{CellResult, CellWork, Compute};
use crate::gradients::{GradientSums, SummedGradient};
use crate::norm::SquareSums;
use crate::ranks::{Meeting, Ranks};

const SHARDS: u32 = 2;

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file)
}

fn json(file: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path(file)).unwrap()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(std::array::from_fn(|i| word[i]))).collect()
}

/// A run of golden `model` ("A", "B") on `workers` ranks that divide the experts among them, one cell each, and
/// [`SHARDS`] shards; `more` are settings of the run file.
fn run_of(model: &str, workers: u32, more: &[&str]) -> RunSpec {
    let config = json(&format!("{model}/config.json"));
    let number = |key: &str| config[key].as_f64().unwrap();
    let mut text = String::from("[run]\nname = \"golden\"\n[model]\n");
    for key in [
        "vocab_size",
        "hidden_size",
        "num_layers",
        "num_attention_heads",
        "ffn_hidden_size",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "zero_expert_num",
        "moe_topk",
        "expert_ffn_hidden_size",
    ] {
        text += &format!("{key} = {}\n", number(key));
    }
    text += &format!("routed_scaling_factor = {:?}\n[ngram]\n", number("routed_scaling_factor"));
    text += &format!("max_order = {}\nheads = {}\n", number("emb_neighbor_num"), number("emb_split_num"));
    text += &format!("ratio = {:?}\n", number("ngram_vocab_size_ratio"));
    text += "[data]\nsynthetic_tokens = 1000\n[training]\nsteps = 8\nseq_len = 32\nmicro_batch_size = 3\ncells = 1\n\
             lr = 1e-3\nschedule = \"constant\"\n";
    let mut sets: Vec<String> = more.iter().map(|set| (*set).to_owned()).collect();
    let counts = ["topology.workers", "topology.expert_parallel", "training.cells"];
    sets.extend(counts.map(|key| format!("{key}={workers}")));
    sets.push(format!("topology.shards={SHARDS}"));
    RunFile::parse(&text, "golden", &sets).and_then(|file| file.resolve()).unwrap()
}

/// A shard with the model's rows, without optimizer state: version 0, as if they had been drawn so.
fn shard(spec: &RunSpec, index: u32, weights: &SafeTensors<'_>) -> Shard {
    let mut shard = Shard::new(ShardConfig::of(spec, ShardIndex(index), Generation(1))).unwrap();
    for table in spec.tables().iter() {
        let values = floats(weights.tensor(&table.name).unwrap().data());
        for (row, weights) in values.chunks_exact(table.width as usize).enumerate() {
            let row = RowId(row as u32);
            if shard.weights(RowRef { table: table.index, row }).is_none() {
                continue;
            }
            let mut record = weights.to_vec();
            record.resize(weights.len() + shard.config().state_values(), 0.0);
            shard.restore_row(table.index, RowRecord { row, updates: 0, values: &record }).unwrap();
        }
    }
    shard
}

/// Of the token of these runs.
fn key() -> LinkKey {
    LinkKey::of_secret(b"golden")
}

/// What all ranks begin with.
struct Golden {
    spec: RunSpec,
    /// The weights' file.
    weights: Vec<u8>,
    /// The sequences, one after another.
    tokens: Vec<u32>,
    seq_len: usize,
    /// Addresses of the shards.
    shards: Vec<SocketAddr>,
    /// Addresses of the ranks.
    ranks: Vec<SocketAddr>,
    runtime: Handle,
}

/// Runs `work` on ranks whose cells are these runs of golden `model`'s sequences, and gives the shards as they are then.
async fn on_ranks(
    model: &str,
    spec: RunSpec,
    sequences: &[Range<usize>],
    work: impl Fn(Member, &Golden) + Send + Sync + 'static,
) -> Vec<Shard> {
    let weights = std::fs::read(path(&format!("{model}/model.safetensors"))).unwrap();
    let forward = std::fs::read(path(&format!("{model}/forward.safetensors"))).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let ids = forward.tensor("input_ids").unwrap();
    let tokens = ids.data().chunks_exact(8);
    let tokens = tokens.map(|word| i64::from_le_bytes(std::array::from_fn(|i| word[i])) as u32).collect();

    let mut serving = JoinSet::new();
    let (mut shards, mut stops) = (Vec::new(), Vec::new());
    for index in 0..SHARDS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        shards.push(listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        stops.push(stop);
        let shard = shard(&spec, index, &SafeTensors::deserialize(&weights).unwrap());
        let door = Door::open(listener, shard.config(), key());
        serving.spawn(shard.serve(door, async { stopped.await.unwrap_or(()) }));
    }
    let bind = |_: &Range<usize>| Tcp::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let bound: Vec<Bound> = sequences.iter().map(bind).collect();
    let ranks = bound.iter().map(Bound::address).collect();
    let (seq_len, runtime) = (ids.shape()[1], Handle::current());
    let golden = Arc::new(Golden { spec, weights, tokens, seq_len, shards, ranks, runtime });
    let work = Arc::new(work);
    let threads: Vec<_> = (0..)
        .map(Rank)
        .zip(bound)
        .zip(sequences.to_vec())
        .map(|((rank, listener), own)| {
            let (golden, work) = (Arc::clone(&golden), Arc::clone(&work));
            tokio::task::spawn_blocking(move || work(Member::join(&golden, rank, listener, own), &golden))
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    drop(stops);
    let mut served = Vec::new();
    while let Some(shard) = serving.join_next().await {
        served.push(shard.unwrap().unwrap());
    }
    served
}

/// A rank with the model's weights and its cell.
struct Member {
    workers: Box<dyn Collective>,
    layout: Arc<RankLayout>,
    compute: Torch,
    gradients: GradientSums,
    square_sums: SquareSums,
    client: RowClient,
    cell: Cell,
    batch: CellBatch,
    unique: Arc<UniqueRows>,
    global_targets: u64,
    runtime: Handle,
}

impl Member {
    /// Rank `rank`, whose cell are the sequences `own`. Blocks, but for the shards.
    fn join(golden: &Golden, rank: Rank, listener: Bound, own: Range<usize>) -> Member {
        let Golden { spec, runtime, seq_len, .. } = golden;
        let time = Duration::from_secs(60);
        let membership = Membership::new(spec.name.as_str(), Generation(1), rank, key());
        let meeting =
            Meeting { membership: &membership, addresses: &golden.ranks, deadline: time, patience: time };
        let Ranks { mut workers, sums, experts } = Ranks::meet(spec, listener, &meeting).unwrap();
        let hello = Hello {
            run: spec.name.clone(),
            generation: Generation(1),
            rank,
            workers: spec.topology.workers,
            key: key(),
        };
        let tables = Arc::new(spec.tables());
        let client = runtime.block_on(RowClient::connect(&golden.shards, hello, tables, time)).unwrap();

        let hasher = Hasher::new(&spec.model.ngram, spec.model.eos_token_id).unwrap();
        let tokens = golden.tokens[own.start * seq_len..own.end * seq_len].to_vec();
        let ids = batch_ids(&hasher, &tokens, *seq_len).unwrap();
        let unique = Arc::new(UniqueRows::of(&ids, hasher.tables()));
        let batch = CellBatch::from_sequences(tokens, own.len(), *seq_len).unwrap();
        let mut targets = [batch.target_count()];
        workers.all_reduce_u64(&mut targets).unwrap();
        let [global_targets] = targets;

        let layout = Arc::new(RankLayout::of(&spec.model, &spec.topology, rank).unwrap());
        let mut compute = Torch::new(spec, layout.as_ref().clone()).unwrap();
        if let Some(experts) = experts {
            compute.join(experts, Box::new(|_| ())).unwrap();
        }
        let weights = SafeTensors::deserialize(&golden.weights).unwrap();
        let state: Vec<NamedTensor> = spec
            .dense_parameters()
            .iter()
            .map(|p| NamedTensor::whole(&*p.name, &p.shape, floats(weights.tensor(&p.name).unwrap().data())))
            .collect();
        compute.restore(&mut state.into_iter()).unwrap();
        Member {
            workers,
            gradients: GradientSums::start(Arc::clone(&layout), sums).unwrap(),
            square_sums: SquareSums::of(spec).unwrap(),
            layout,
            compute,
            client,
            cell: Cell(rank.0),
            batch,
            unique,
            global_targets,
            runtime: runtime.clone(),
        }
    }

    /// Step `step` up to its commit: this cell's result, the shards' answer and the summed gradient.
    fn differentiate(&mut self, step: Step) -> (CellResult, Prepared, SummedGradient) {
        let Member { compute, gradients, client, cell, unique, runtime, .. } = self;
        let at = MicroBatchRef { step, index: *cell };
        let ids = UniqueIds { offsets: unique.offsets.clone(), rows: unique.rows.clone() };
        let rows_suw = runtime.block_on(client.lookup(at, Arc::new(ids))).unwrap();
        let (batch, unique) = (self.batch.clone(), Arc::clone(unique));
        let work = CellWork { samples: 0..0, batch, unique, rows_suw, global_targets: self.global_targets };
        gradients.begin().unwrap();
        let mut take = |index, sum| gradients.sum(index, sum);
        let mut result = compute.forward_backward(&work, Some(&mut take)).unwrap();
        let pushed = std::mem::take(&mut result.row_gradients_suw);
        runtime.block_on(client.push(at, pushed)).unwrap();
        let prepared = runtime.block_on(client.prepare(step)).unwrap();
        (result, prepared, gradients.finish().unwrap())
    }

    /// Mean nll over the targets of all ranks, in nats.
    fn mean_loss(&mut self, result: &CellResult) -> f64 {
        let mut loss = [result.loss_sum];
        self.workers.all_reduce_f64(&mut loss).unwrap();
        loss[0] / self.global_targets as f64
    }
}
