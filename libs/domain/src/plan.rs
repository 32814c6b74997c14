//! What a configuration costs, before anything starts: parameters by part, activated range, bytes per role.

use serde::Serialize;

use crate::layout::{Part, dense_parameters};
use crate::model::ModelSpec;
use crate::run_spec::{ComputeType, RunSpec};
use crate::tables::TableSet;

/// Parameters by part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParameterCounts {
    /// All parameters.
    pub total: u64,
    /// N-gram tables.
    pub ngram_tables: u64,
    /// Projections of the tables.
    pub ngram_projections: u64,
    /// Word embeddings.
    pub embedding: u64,
    /// Output head.
    pub lm_head: u64,
    /// Attention, latent norms included.
    pub attention: u64,
    /// Dense FFNs.
    pub dense_ffn: u64,
    /// FFN experts.
    pub experts: u64,
    /// Router classifiers.
    pub routers: u64,
    /// Norm weights of the residual stream.
    pub norms: u64,
    /// Activated per token with no FFN expert chosen: attention, dense FFN, router, norms, head.
    pub activated_min: u64,
    /// Activated per token with all choices on FFN experts.
    pub activated_max: u64,
}

/// Counts the parameters of `model`.
pub fn count_parameters(model: &ModelSpec) -> ParameterCounts {
    let parameters = dense_parameters(model);
    let sum = |part: Part| parameters.iter().filter(|p| p.part == part).map(|p| p.elements()).sum::<u64>();
    let ngram_tables = TableSet::of(model).parameters();
    let (attention, dense_ffn, experts) = (sum(Part::Attention), sum(Part::DenseFfn), sum(Part::Expert));
    let (routers, norms, lm_head) = (sum(Part::Router), sum(Part::Norm), sum(Part::LmHead));
    let (embedding, ngram_projections) = (sum(Part::WordEmbedding), sum(Part::NgramProjection));
    let activated_min = attention + dense_ffn + routers + norms + lm_head;
    let expert = experts / u64::from(model.moe.experts);
    let chosen = u64::from(model.moe.top_k.min(model.moe.experts));
    ParameterCounts {
        total: ngram_tables
            + ngram_projections
            + embedding
            + lm_head
            + attention
            + dense_ffn
            + experts
            + routers
            + norms,
        ngram_tables,
        ngram_projections,
        embedding,
        lm_head,
        attention,
        dense_ffn,
        experts,
        routers,
        norms,
        activated_min,
        activated_max: activated_min + expert * chosen,
    }
}

/// Bytes that one process of each role needs for state; activations are not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights of one worker, its own experts only: f32 masters, and the bf16 copies where matrix products use them.
    pub worker_weights_bytes: u64,
    /// Gradients of one worker (f32): the sum and one cell's, of its own experts for each rank of the expert group.
    pub worker_gradients_bytes: u64,
    /// Adam moments of one worker (f32), divided over the workers.
    pub worker_optimizer_bytes: u64,
    /// What a worker copies its part of the state into for a checkpoint, weights and moments (f32).
    pub worker_snapshot_bytes: u64,
    /// Row index of one shard: 4 bytes a row.
    pub shard_index_bytes: u64,
    /// Bytes of one written row of each width: weights, optimizer state, update count.
    pub row_record_bytes: u64,
    /// Records of one shard if every row were written.
    pub shard_all_rows_bytes: u64,
    /// Records of one shard after one step at most: every n-gram new.
    pub shard_first_step_bytes: u64,
    /// The ceiling of one shard's records.
    pub shard_limit_bytes: u64,
}

/// What a run costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Parameters by part.
    pub parameters: ParameterCounts,
    /// Bytes per role.
    pub memory: MemoryPlan,
    /// N-gram tables.
    pub tables: u64,
    /// Rows of all tables.
    pub table_rows: u64,
    /// Bytes of all table weights in f32, were they all stored.
    pub table_bytes: u64,
    /// Tokens of one update.
    pub tokens_per_step: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Row lookups of one update, duplicates included.
    pub lookups_per_step: u64,
}

/// Bytes of one written row in a shard's memory.
pub fn row_record_bytes(spec: &RunSpec, width: u32) -> u64 {
    spec.embedding.record_bytes(width as usize) as u64
}

/// Plans `spec`.
pub fn plan(spec: &RunSpec) -> Plan {
    let parameters = count_parameters(&spec.model);
    let (workers, expert_parallel) =
        (u64::from(spec.topology.workers), u64::from(spec.topology.expert_parallel));
    let tables = spec.tables();
    let shards = u64::from(spec.topology.shards);
    let dense: u64 = parameters.total - parameters.ngram_tables;
    let weight_bytes = match spec.training.compute {
        ComputeType::F32 => 4,
        ComputeType::Bf16 => 6,
    };
    let record = |width: u32| row_record_bytes(spec, width);
    let all_rows: u64 = tables.iter().map(|t| u64::from(t.rows) * record(t.width)).sum();
    let first_step: u64 =
        tables.iter().map(|t| spec.tokens_per_step().min(u64::from(t.rows)) * record(t.width)).sum();
    Plan {
        memory: MemoryPlan {
            worker_weights_bytes: (dense - parameters.experts + parameters.experts / expert_parallel)
                * weight_bytes,
            worker_gradients_bytes: dense * 8,
            worker_optimizer_bytes: (dense * 8).div_ceil(workers),
            worker_snapshot_bytes: (dense * 12).div_ceil(workers),
            shard_index_bytes: (tables.rows() * 4).div_ceil(shards),
            row_record_bytes: tables.iter().next().map_or(0, |t| record(t.width)),
            shard_all_rows_bytes: all_rows.div_ceil(shards),
            shard_first_step_bytes: first_step.div_ceil(shards),
            shard_limit_bytes: spec.embedding.memory_limit_bytes,
        },
        tables: tables.len() as u64,
        table_rows: tables.rows(),
        table_bytes: parameters.ngram_tables * 4,
        tokens_per_step: spec.tokens_per_step(),
        tokens: spec.tokens_per_step() * spec.training.steps,
        lookups_per_step: spec.tokens_per_step() * tables.len() as u64,
        parameters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_file::RunFile;

    /// LongCat-Flash-Lite's published sizes (arXiv 2601.21204 and its model card).
    #[test]
    fn longcat_flash_lite_has_its_published_size() {
        let text = include_str!("../../../configs/longcat-flash-lite.toml");
        let spec = RunFile::parse(text, "lite", &[]).and_then(|file| file.resolve()).unwrap();
        let counts = count_parameters(&spec.model);
        assert_eq!(counts.total, 68_562_459_648);
        assert_eq!(counts.ngram_tables, 31_406_985_216);
        assert_eq!(counts.ngram_projections, 9_437_184);
        assert_eq!(counts.attention, 915_726_336);
        assert_eq!(counts.dense_ffn, 1_585_446_912);
        assert_eq!(counts.experts, 33_822_867_456);
        assert_eq!(counts.routers, 16_515_072);
        assert_eq!(counts.norms, 175_104);
        assert_eq!(counts.activated_min / 1_000_000, 2_920);
        assert_eq!(counts.activated_max / 1_000_000, 4_505);
        assert_eq!(plan(&spec).table_rows, 122_683_536);
    }
}
