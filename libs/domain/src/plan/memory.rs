//! Bytes that one worker and one shard hold, by part, as the engine stands.
//!
//! A worker of `device.kind = "cpu"` holds everything in host memory. With `"cuda"` the device holds the weights that
//! products read and the activations; master weights, gradients, moments and staging are in host memory.

use serde::Serialize;

use super::activations::{activation_bytes, exchange_bytes};
use super::operands::Operands;
use super::parameters::{ParameterCounts, count_parameters};
use crate::run_spec::{Determinism, DeviceKind, Engine, RunSpec};

/// A part of a worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerPart {
    /// f32 master weights, and the copies that products read.
    Weights,
    /// Sums over micro-batches, f32.
    Gradients,
    /// Adam's moments of the weights that this worker updates, f32.
    Optimizer,
    /// The buffer that checkpoints are written from: weights and moments that this worker updates, f32.
    Staging,
    /// Activations of one micro-batch, at the peak of backward.
    Activations,
    /// Rows on their way to the ranks that hold the other experts, and back; always in host memory.
    Exchange,
    /// Rows of n-gram tables of the micro-batches in flight, if all their n-grams differ.
    Rows,
}

/// Bytes of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PartBytes {
    /// Which part.
    pub part: WorkerPart,
    /// In host memory.
    pub host_bytes: u64,
    /// In the device's memory.
    pub device_bytes: u64,
}

/// Bytes that one process of each role needs. The process itself and its libraries come on top (docs/model.md, "Memory").
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// A worker's memory, part by part.
    pub worker: Vec<PartBytes>,
    /// Weights of one worker, its own experts only, all copies.
    pub worker_weights_bytes: u64,
    /// Gradients of one worker (f32).
    pub worker_gradients_bytes: u64,
    /// Adam moments of one worker (f32), divided over the workers.
    pub worker_optimizer_bytes: u64,
    /// Staging: what a worker copies its part of the state into for a checkpoint, weights and moments (f32).
    pub worker_snapshot_bytes: u64,
    /// Activations of one worker.
    pub worker_activations_bytes: u64,
    /// Rows of tokens on their way between the ranks of an expert group.
    pub worker_exchange_bytes: u64,
    /// Rows in flight of one worker, at most.
    pub worker_rows_bytes: u64,
    /// All parts of one worker.
    pub worker_bytes: u64,
    /// Those of them in host memory.
    pub worker_host_bytes: u64,
    /// Those of them in the device's memory.
    pub worker_device_bytes: u64,
    /// What one worker may take where its tensors live (device.memory_gib); `None`: no limit is known.
    pub worker_limit_bytes: Option<u64>,
    /// Row index of one shard: 4 bytes a row.
    pub shard_index_bytes: u64,
    /// Bytes of one written row: weights, optimizer state, update count. 0 for a model without tables.
    pub row_record_bytes: u64,
    /// Records of one shard if every row were written.
    pub shard_all_rows_bytes: u64,
    /// Records of one shard after one step at most: every n-gram new.
    pub shard_first_step_bytes: u64,
    /// The ceiling of one shard's records.
    pub shard_limit_bytes: u64,
}

/// Bytes of one written row in a shard's memory.
pub fn row_record_bytes(spec: &RunSpec, width: u32) -> u64 {
    spec.embedding.record_bytes(width as usize) as u64
}

/// The memory of `spec`'s processes with `operands`.
pub fn memory_plan(spec: &RunSpec, operands: Operands) -> MemoryPlan {
    let counts = count_parameters(&spec.model);
    let worker = worker_parts(spec, &counts, operands);
    let sum = |of: fn(&PartBytes) -> u64| worker.iter().map(of).fold(0, u64::saturating_add);
    let (worker_host_bytes, worker_device_bytes) = (sum(|p| p.host_bytes), sum(|p| p.device_bytes));
    let of = |part: WorkerPart| {
        let bytes = |p: &PartBytes| p.host_bytes.saturating_add(p.device_bytes);
        worker.iter().find(|p| p.part == part).map_or(0, bytes)
    };
    let tables = spec.tables();
    let shards = u64::from(spec.topology.shards);
    let record = row_record_bytes(spec, tables.width() as u32);
    let rows_of_step: u64 = tables.iter().map(|t| spec.tokens_per_step().min(u64::from(t.rows))).sum();
    MemoryPlan {
        worker_weights_bytes: of(WorkerPart::Weights),
        worker_gradients_bytes: of(WorkerPart::Gradients),
        worker_optimizer_bytes: of(WorkerPart::Optimizer),
        worker_snapshot_bytes: of(WorkerPart::Staging),
        worker_activations_bytes: of(WorkerPart::Activations),
        worker_exchange_bytes: of(WorkerPart::Exchange),
        worker_rows_bytes: of(WorkerPart::Rows),
        worker_bytes: worker_host_bytes.saturating_add(worker_device_bytes),
        worker_host_bytes,
        worker_device_bytes,
        worker_limit_bytes: spec.device.memory_bytes,
        worker,
        shard_index_bytes: (tables.rows() * 4).div_ceil(shards),
        row_record_bytes: if tables.is_empty() { 0 } else { record },
        shard_all_rows_bytes: tables.rows().saturating_mul(record).div_ceil(shards),
        shard_first_step_bytes: rows_of_step.saturating_mul(record).div_ceil(shards),
        shard_limit_bytes: spec.embedding.memory_limit_bytes,
    }
}

fn worker_parts(spec: &RunSpec, counts: &ParameterCounts, operands: Operands) -> Vec<PartBytes> {
    let model = &spec.model;
    let workers = u128::from(spec.topology.workers);
    let expert_parallel = u128::from(spec.topology.expert_parallel);
    let is_torch = spec.device.engine == Engine::Torch;
    let on_device = is_torch && spec.device.kind == DeviceKind::Cuda;
    let biases = u128::from(model.num_layers) * u128::from(model.routed_experts());
    let trained = u128::from(counts.total - counts.ngram_tables);
    let dense = trained + biases;
    let all_experts = u128::from(counts.experts);
    let shared = dense - all_experts;
    let experts = all_experts / expert_parallel;
    let held = shared + experts;
    let copies = match operands {
        _ if !is_torch => 0,
        Operands::Single => 0,
        Operands::Bf16 | Operands::RoundedBf16 => operands.bytes(),
    };
    let (host_weights, device_weights) =
        if on_device { (4 * held, (4 + copies) * held) } else { ((4 + copies) * held, 0) };
    let (activations, exchange) = match is_torch {
        true => (activation_bytes(spec, operands), exchange_bytes(spec, operands)),
        false => (0, 0),
    };
    let rows = row_bytes(spec);
    let part = |part, host: u128, device: u128| {
        let fits = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        PartBytes { part, host_bytes: fits(host), device_bytes: fits(device) }
    };
    vec![
        part(WorkerPart::Weights, host_weights, device_weights),
        part(WorkerPart::Gradients, 4 * gradient_values(spec, shared, experts), 0),
        // Shared weights are divided over all workers, experts over those that hold the same ones; biases have no moments.
        part(WorkerPart::Optimizer, (8 * trained).div_ceil(workers), 0),
        part(WorkerPart::Staging, (12 * trained + 4 * biases).div_ceil(workers), 0),
        match on_device {
            true => part(WorkerPart::Activations, 0, activations),
            false => part(WorkerPart::Activations, activations, 0),
        },
        part(WorkerPart::Exchange, exchange, 0),
        match on_device {
            true => part(WorkerPart::Rows, rows.in_flight, rows.of_one_cell),
            false => part(WorkerPart::Rows, rows.in_flight + rows.of_one_cell, 0),
        },
    ]
}

/// Values of the gradient buffers that exist at one time.
///
/// The sum over micro-batches of `determinism = "elastic"` follows a binary tree, of which log2 + 1 nodes live at once;
/// experts have a tree for each rank of the expert group, since their sums go over micro-batches of the whole step
/// first. With `"topology"` there is one running sum, and the gradient that is added to it.
fn gradient_values(spec: &RunSpec, shared: u128, experts: u128) -> u128 {
    let cells = (spec.training.cells / spec.topology.workers.max(1)).max(1);
    let levels = u128::from(cells.ilog2());
    let group = u128::from(spec.topology.expert_parallel);
    match (spec.device.engine, spec.training.determinism) {
        // Of the stand-in all micro-batches' gradients are one buffer each, and the sum is copied out.
        (Engine::Drill, _) => (levels + 1).max(2) * (shared + experts),
        (Engine::Torch, Determinism::Topology) => u128::from(cells.min(2)) * (shared + experts),
        (Engine::Torch, Determinism::Elastic) => {
            (levels + 1) * shared + group.max(group * levels + 1) * experts
        }
    }
}

struct RowBytes {
    /// Of the micro-batches that are looked up ahead.
    in_flight: u128,
    /// Of the one that is computed: its rows as a tensor, and their gradient.
    of_one_cell: u128,
}

/// Rows of n-gram tables in a worker, if all n-grams of a micro-batch differ.
fn row_bytes(spec: &RunSpec) -> RowBytes {
    let tables = spec.tables();
    let positions = u128::from(spec.training.seq_len) * u128::from(spec.training.micro_batch_size);
    let per_site = tables.tables_per_site() as usize;
    let unique: u128 = tables.iter().take(per_site).map(|t| positions.min(u128::from(t.rows))).sum();
    let values = 4 * unique * (tables.sites() * tables.width()) as u128;
    let ids = 4 * (unique + positions * per_site as u128);
    let cells = u128::from(spec.training.cells / spec.topology.workers.max(1));
    // Those that are declared ahead, one that waits for compute, and one that is being computed.
    let ahead = cells * (u128::from(spec.embedding.prefetch_steps) + 1) + 2;
    RowBytes { in_flight: ahead * (values + ids), of_one_cell: 2 * values }
}
