//! Whether a run's workers fit into their memory, and which settings would make them fit.

use serde::Serialize;

use super::memory::{MemoryPlan, memory_plan};
use super::operands::Operands;
use crate::run_spec::{Determinism, DeviceKind, RunSpec};

/// Memory of a device where `device.memory_gib` says nothing.
pub const DEVICE_MEMORY_GIB: f64 = 80.0;

/// A worker that needs more than it may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// Bytes that it needs where its tensors live.
    pub needed_bytes: u64,
    /// Bytes that it may take there.
    pub limit_bytes: u64,
    /// Changes of the run file that make it fit, as `--set` has them; empty where none are known.
    pub cure: Vec<String>,
    /// Bytes that it needs with them.
    pub cured_bytes: u64,
}

/// Bytes that a worker takes where its tensors live.
fn taken(spec: &RunSpec, plan: &MemoryPlan) -> u64 {
    match spec.device.kind {
        DeviceKind::Cpu => plan.worker_host_bytes,
        DeviceKind::Cuda => plan.worker_device_bytes,
    }
}

/// `None` where a worker of `spec` fits, or where no limit is known.
pub fn misfit(spec: &RunSpec, operands: Operands) -> Option<Misfit> {
    let limit_bytes = spec.device.memory_bytes?;
    let needed_bytes = taken(spec, &memory_plan(spec, operands));
    if needed_bytes <= limit_bytes {
        return None;
    }
    let (cure, cured_bytes) = cure(spec, operands, limit_bytes).unwrap_or((Vec::new(), needed_bytes));
    Some(Misfit { needed_bytes, limit_bytes, cure, cured_bytes })
}

/// Another value of one setting, as `--set` has it, and the run with it.
struct Change {
    set: Vec<String>,
    spec: RunSpec,
}

/// The fewest changes that make a worker fit into `limit`, the mildest values first, and what it takes with them.
fn cure(spec: &RunSpec, operands: Operands, limit: u64) -> Option<(Vec<String>, u64)> {
    // Each combination is built in the order of the list, so that none comes twice.
    let mut open = vec![(0, Change { set: Vec::new(), spec: spec.clone() })];
    while !open.is_empty() {
        let mut next = Vec::new();
        for (first, Change { set, spec }) in &open {
            for (index, changes) in SETTINGS.iter().enumerate().skip(*first) {
                for change in changes(spec) {
                    let bytes = taken(&change.spec, &memory_plan(&change.spec, operands));
                    let set = [set.as_slice(), &change.set].concat();
                    if bytes <= limit {
                        return Some((set, bytes));
                    }
                    next.push((index + 1, Change { set, spec: change.spec }));
                }
            }
        }
        open = next;
    }
    None
}

/// The other values of each setting that costs memory, the mildest first; settings that cost least to change first.
const SETTINGS: [fn(&RunSpec) -> Vec<Change>; 5] =
    [recompute, expert_parallel, micro_batch_size, determinism, workers];

fn recompute(spec: &RunSpec) -> Vec<Change> {
    if spec.training.recompute {
        return Vec::new();
    }
    let mut spec = spec.clone();
    spec.training.recompute = true;
    vec![Change { set: vec!["training.recompute=true".into()], spec }]
}

fn expert_parallel(spec: &RunSpec) -> Vec<Change> {
    let least = spec.elasticity.min_workers.max(1);
    let mut found = Vec::new();
    let mut size = spec.topology.expert_parallel;
    while let Some(doubled) = size.checked_mul(2).filter(|size| *size <= spec.topology.workers) {
        size = doubled;
        let divides = |number: u32| number.is_multiple_of(size);
        if divides(spec.topology.workers) && divides(least) && divides(spec.model.moe.experts) {
            let mut spec = spec.clone();
            spec.topology.expert_parallel = size;
            found.push(Change { set: vec![format!("topology.expert_parallel={size}")], spec });
        }
    }
    found
}

/// Fewer samples at a time, in more micro-batches: the same step.
fn micro_batch_size(spec: &RunSpec) -> Vec<Change> {
    let mut found = Vec::new();
    let (mut size, mut cells) = (spec.training.micro_batch_size, spec.training.cells);
    while size.is_multiple_of(2) && size > 0 {
        let Some(doubled) = cells.checked_mul(2) else { break };
        (size, cells) = (size / 2, doubled);
        let mut spec = spec.clone();
        (spec.training.micro_batch_size, spec.training.cells) = (size, cells);
        let set = vec![format!("training.micro_batch_size={size}"), format!("training.cells={cells}")];
        found.push(Change { set, spec });
    }
    found
}

fn determinism(spec: &RunSpec) -> Vec<Change> {
    let is_resizable = spec.elasticity.min_workers < spec.topology.workers;
    if spec.training.determinism == Determinism::Topology || is_resizable {
        return Vec::new();
    }
    let mut spec = spec.clone();
    spec.training.determinism = Determinism::Topology;
    vec![Change { set: vec!["training.determinism=topology".into()], spec }]
}

fn workers(spec: &RunSpec) -> Vec<Change> {
    let mut found = Vec::new();
    let mut workers = spec.topology.workers;
    while let Some(doubled) = workers.checked_mul(2).filter(|workers| *workers <= spec.training.cells) {
        workers = doubled;
        let mut spec = spec.clone();
        if spec.elasticity.min_workers == spec.topology.workers {
            spec.elasticity.min_workers = workers;
        }
        spec.topology.workers = workers;
        found.push(Change { set: vec![format!("topology.workers={workers}")], spec });
    }
    found
}
