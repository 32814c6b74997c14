//! From a run file to a [`RunSpec`]: every rule, each refusal naming its key, its value and the cure.

use super::sections::RecoveryPointsSection;
use super::{ConfigError, RunFile, bounds, consistency};
use crate::checkpoint::{CheckpointSpec, RecoveryPointSpec};
use crate::embedding::{AdamBias, EmbeddingSpec, RowOptimizer, WireSpec};
use crate::ids::RunName;
use crate::model::{AttentionSpec, ModelSpec, MoeSpec, NgramSpec, Placement};
use crate::run_spec::{
    AdamWSpec, BalanceSpec, DataSpec, Determinism, DeviceKind, DeviceSpec, ElasticitySpec, EvaluationSpec,
    RecoverySpec, RunSpec, TrainingSpec,
};
use crate::schedule::Schedule;
use crate::spikes::{SpikeAction, SpikeSpec};
use crate::store_address::check_store_address;
use crate::topology::Topology;

impl RunFile {
    /// Checks every rule and resolves the run.
    pub fn resolve(&self) -> Result<RunSpec, ConfigError> {
        self.check_bounds()?;
        let model = self.model_spec().map_err(ConfigError::Invalid)?;
        self.check_sizes(&model)?;
        consistency::check(self)?;
        let topology = Topology {
            workers: self.topology.workers,
            expert_parallel: self.topology.expert_parallel,
            shards: self.topology.shards,
        }
        .validated(self.training.cells, model.moe.experts)
        .map_err(ConfigError::Invalid)?;
        let elasticity = self.elasticity_spec(&topology)?;
        let spec = RunSpec {
            name: RunName::new(&*self.run.name).map_err(ConfigError::Invalid)?,
            seed: self.run.seed,
            data: self.data_spec()?,
            train_identity: self.data.train_identity.clone(),
            training: self.training_spec(&model)?,
            embedding: self.embedding_spec(&model)?,
            topology,
            checkpoint: CheckpointSpec {
                every_steps: self.checkpoint.every_steps,
                keep: self.checkpoint.keep,
            },
            recovery_points: self.recovery_point_spec()?,
            recovery: self.recovery_spec(),
            elasticity,
            spikes: self.spike_spec()?,
            evaluation: self
                .evaluation
                .every_steps
                .map(|every_steps| EvaluationSpec { every_steps, cells: self.evaluation.cells }),
            device: DeviceSpec {
                engine: self.device.engine,
                kind: self.device.kind,
                threads: self.device.threads,
                memory_bytes: self.device_memory_bytes(),
            },
            failure_detection_seconds: self.run.failure_detection_seconds,
            stop_grace_seconds: self.run.stop_grace_seconds,
            model,
        };
        crate::plan::check_tokens(&spec).map_err(ConfigError::Invalid)?;
        crate::plan::check_synthetic_tokens(&spec).map_err(ConfigError::Invalid)?;
        Ok(spec)
    }

    /// `device.memory_gib` in bytes; a CUDA device has 80 GiB unless told otherwise.
    fn device_memory_bytes(&self) -> Option<u64> {
        let usual = (self.device.kind == DeviceKind::Cuda).then_some(crate::plan::DEVICE_MEMORY_GIB);
        let gib = self.device.memory_gib.or(usual)?;
        Some((gib * f64::from(1 << 30)) as u64)
    }

    /// What was read is in its bounds; this holds for what a program made too.
    fn check_bounds(&self) -> Result<(), ConfigError> {
        let tree = toml::Table::try_from(self)
            .map_err(|error| ConfigError::Invalid(format!("cannot write the configuration: {error}")))?;
        bounds::check(&tree).map_err(|found| ConfigError::Invalid(found.message))
    }

    /// Sizes that are legal alone and together more than can be counted or listed.
    fn check_sizes(&self, model: &ModelSpec) -> Result<(), ConfigError> {
        const MOST_EXPERTS: u64 = 1 << 18;
        const MOST_TABLES: u64 = 1 << 14;
        let layers = u64::from(model.num_layers);
        let experts = layers * u64::from(model.moe.experts);
        if experts > MOST_EXPERTS {
            return invalid(format!(
                "model.num_layers = {layers} with model.n_routed_experts = {} make {experts} experts; at most \
                 {MOST_EXPERTS} are supported",
                model.moe.experts
            ));
        }
        let sites = if model.placement == Placement::PerLayerNgram { 2 * layers } else { 1 };
        let tables = sites * u64::from(model.ngram.tables_per_site());
        if tables > MOST_TABLES {
            return invalid(format!(
                "ngram.max_order = {} and ngram.heads = {} make {tables} tables at {sites} places; at most {MOST_TABLES} \
                 are supported",
                model.ngram.max_order, model.ngram.heads
            ));
        }
        let t = &self.training;
        let per_step = u128::from(t.cells) * u128::from(t.micro_batch_size) * u128::from(t.seq_len);
        let tokens = per_step * u128::from(t.steps);
        // Positions in the data are counted over all epochs.
        if tokens > u128::from(i64::MAX.unsigned_abs()) {
            return invalid(format!(
                "training.steps = {} with {per_step} tokens a step make {tokens} tokens; at most {} can be counted",
                t.steps,
                i64::MAX
            ));
        }
        Ok(())
    }

    fn recovery_point_spec(&self) -> Result<Option<RecoveryPointSpec>, ConfigError> {
        let RecoveryPointsSection { every_steps, root, changes_below } = self.recovery_points.clone();
        if root.as_deref() == Some("") {
            return invalid("recovery_points.root is empty; leave it out to keep them beside the run".into());
        }
        let checked = root.as_deref().map_or(Ok(()), check_store_address);
        checked.map_err(|reason| ConfigError::Invalid(format!("recovery_points.root {reason}")))?;
        Ok(every_steps.map(|every_steps| RecoveryPointSpec { every_steps, root, changes_below }))
    }

    fn recovery_spec(&self) -> RecoverySpec {
        let r = &self.recovery;
        RecoverySpec {
            max_restarts: r.max_restarts,
            max_fruitless_restarts: r.max_fruitless_restarts,
            backoff_seconds: r.backoff_seconds,
            quarantine_after: r.quarantine_after,
            quarantine_seconds: r.quarantine_seconds,
        }
    }

    fn elasticity_spec(&self, topology: &Topology) -> Result<ElasticitySpec, ConfigError> {
        let r = &self.recovery;
        let Topology { workers, expert_parallel, .. } = *topology;
        let min_workers = self.topology.min_workers.unwrap_or(workers);
        if !min_workers.is_power_of_two() || min_workers > workers {
            return invalid(format!(
                "topology.min_workers is {min_workers}; it must be a power of two, at most topology.workers = {workers}"
            ));
        }
        if !min_workers.is_multiple_of(expert_parallel) {
            return invalid(format!(
                "topology.min_workers is {min_workers}; topology.expert_parallel = {expert_parallel} must divide it"
            ));
        }
        if min_workers < workers && self.training.determinism != Determinism::Elastic {
            return invalid(format!(
                "topology.min_workers is {min_workers}, fewer than topology.workers = {workers}; the bits stay the same \
                 with fewer workers only with training.determinism = \"elastic\""
            ));
        }
        Ok(ElasticitySpec {
            min_workers,
            wait_for_members_seconds: r.wait_for_members_seconds,
            resize_seconds: r.resize_seconds,
        })
    }

    fn spike_spec(&self) -> Result<SpikeSpec, ConfigError> {
        let s = &self.spikes;
        if s.action != SpikeAction::Off && s.loss_deviations.is_none() && s.norm_factor.is_none() {
            return invalid(
                "spikes.action asks for something to look for: set spikes.loss_deviations, spikes.norm_factor or both"
                    .into(),
            );
        }
        if s.skip_steps > s.roll_back_steps {
            return invalid(format!(
                "spikes.skip_steps is {}, more than spikes.roll_back_steps = {}: samples are left out behind the commit \
                 that the run goes back to",
                s.skip_steps, s.roll_back_steps
            ));
        }
        Ok(SpikeSpec {
            action: s.action,
            history_steps: s.history_steps,
            loss_deviations: s.loss_deviations,
            norm_factor: s.norm_factor,
            roll_back_steps: s.roll_back_steps,
            skip_steps: s.skip_steps,
            max_actions: s.max_actions,
            window_steps: s.window_steps,
        })
    }

    fn training_spec(&self, model: &ModelSpec) -> Result<TrainingSpec, ConfigError> {
        let t = &self.training;
        let o = &t.optimizer;
        let word_embedding_weight_decay = o.word_embedding_weight_decay.unwrap_or(o.weight_decay);
        Ok(TrainingSpec {
            steps: t.steps,
            stop_at_step: t.stop_at_step,
            seq_len: t.seq_len,
            micro_batch_size: t.micro_batch_size,
            cells: t.cells,
            schedule: Schedule {
                kind: t.schedule,
                peak: t.lr,
                min_ratio: t.min_lr_ratio,
                warmup_steps: t.warmup_steps,
                decay_steps: t.decay_steps,
                steps: t.steps,
            },
            adamw: AdamWSpec {
                beta1: o.beta1,
                beta2: o.beta2,
                eps: o.eps,
                weight_decay: o.weight_decay,
                word_embedding_lr_multiplier: o.word_embedding_lr_multiplier,
                word_embedding_weight_decay,
            },
            clip: t.clip.enabled.then_some(t.clip.norm),
            clip_tables: t.clip.tables,
            balance: self.balance_spec(model)?,
            compute: t.compute,
            recompute: t.recompute,
            determinism: t.determinism,
            on_nonfinite: t.on_nonfinite,
        })
    }

    fn balance_spec(&self, model: &ModelSpec) -> Result<BalanceSpec, ConfigError> {
        let b = &self.training.balance;
        let target_top_k = b.target_top_k.unwrap_or_else(|| default_target_top_k(model));
        if target_top_k > model.moe.top_k {
            return invalid(format!(
                "training.balance.target_top_k is {target_top_k}; it must be 1 to model.moe_topk = {}",
                model.moe.top_k
            ));
        }
        let loss_groups = b.loss_groups.unwrap_or(model.moe.experts);
        if !model.moe.experts.is_multiple_of(loss_groups) {
            return invalid(format!(
                "training.balance.loss_groups is {loss_groups}; it must divide model.n_routed_experts = {}",
                model.moe.experts
            ));
        }
        Ok(BalanceSpec {
            bias_rate: b.bias_rate,
            bias_rate_halving_steps: b.bias_rate_halving_steps,
            bias_rate_min: b.bias_rate_min,
            target_top_k,
            loss_coefficient: b.loss_coefficient,
            loss_groups,
            router_z_coefficient: b.router_z_coefficient,
            hidden_z_coefficient: b.hidden_z_coefficient,
        })
    }

    fn embedding_spec(&self, model: &ModelSpec) -> Result<EmbeddingSpec, ConfigError> {
        let e = &self.embedding;
        let init_std = e.init_std.unwrap_or(model.initializer_range);
        let most_decay = self.training.lr * e.lr_multiplier * e.weight_decay;
        if most_decay >= 1.0 {
            return invalid(format!(
                "training.lr · embedding.lr_multiplier · embedding.weight_decay is {most_decay}; a row would lose more \
                 than it has at one step, it must be below 1"
            ));
        }
        let is_adam = matches!(e.optimizer, RowOptimizer::Adam | RowOptimizer::PartialRowwiseAdam);
        if e.bias == AdamBias::Global && !is_adam {
            return invalid(
                "embedding.bias is for embedding.optimizer = \"adam\" or \"partial_rowwise_adam\"".into(),
            );
        }
        Ok(EmbeddingSpec {
            optimizer: e.optimizer,
            bias: e.bias,
            lr_multiplier: e.lr_multiplier,
            beta1: e.beta1,
            beta2: e.beta2,
            eps: e.eps,
            weight_decay: e.weight_decay,
            decay: e.decay,
            max_row_norm: e.max_row_norm,
            init_std,
            storage: e.storage,
            wire: WireSpec { rows: e.wire_rows, gradients: e.wire_gradients },
            prefetch_steps: e.prefetch_steps,
            lanes: e.lanes,
            numa: e.numa,
            connections: e.connections,
            same_host: e.same_host,
            memory_limit_bytes: (e.memory_limit_gib * 1024.0 * 1024.0 * 1024.0) as u64,
        })
    }

    fn data_spec(&self) -> Result<DataSpec, ConfigError> {
        match (&self.data.train, self.data.synthetic_tokens) {
            (Some(train), None) => {
                let held_out = self.data.held_out.clone().unwrap_or_default();
                Ok(DataSpec::Segments { train: train.clone(), held_out })
            }
            (None, Some(tokens)) => {
                Ok(DataSpec::Synthetic { tokens, held_out_tokens: self.data.synthetic_held_out_tokens })
            }
            (Some(_), Some(_)) => invalid(both_set("data.train", "data.synthetic_tokens")),
            (None, None) => invalid(
                "neither data.train nor data.synthetic_tokens is set: give the path of a .bin/.idx pair without \
                 extension, or a number of made-up tokens"
                    .into(),
            ),
        }
    }

    fn model_spec(&self) -> Result<ModelSpec, String> {
        let m = &self.model;
        let n = &self.ngram;
        let hash_vocab_size = n.hash_vocab_size.unwrap_or(m.vocab_size);
        let ratio = match (n.ratio, n.base_rows) {
            (Some(ratio), None) => ratio,
            (None, Some(base)) => ratio_of_base(base, hash_vocab_size),
            (Some(_), Some(_)) => return Err(both_set("ngram.ratio", "ngram.base_rows")),
            (None, None) => {
                return Err(
                    "neither ngram.ratio nor ngram.base_rows is set: give one of them, a positive number"
                        .into(),
                );
            }
        };
        let spec = ModelSpec {
            vocab_size: m.vocab_size,
            hidden_size: m.hidden_size,
            num_layers: m.num_layers,
            attention: AttentionSpec {
                heads: m.num_attention_heads,
                q_lora_rank: m.q_lora_rank,
                kv_lora_rank: m.kv_lora_rank,
                qk_nope_head_dim: m.qk_nope_head_dim,
                qk_rope_head_dim: m.qk_rope_head_dim,
                v_head_dim: m.v_head_dim,
                rope_theta: m.rope_theta,
                yarn: m.rope_scaling.clone(),
            },
            ffn_hidden_size: m.ffn_hidden_size,
            moe: MoeSpec {
                experts: m.n_routed_experts,
                zero_experts: m.zero_expert_num,
                top_k: m.moe_topk,
                expert_hidden_size: m.expert_ffn_hidden_size,
                routed_scaling_factor: m.routed_scaling_factor,
            },
            ngram: NgramSpec {
                max_order: n.max_order,
                heads: n.heads,
                ratio,
                hash_vocab_size,
                ignored_tokens: n.ignored_tokens.clone(),
                normalizer: n.normalizer,
                amplification: n.amplification,
            },
            placement: m.placement,
            rms_norm_eps: m.rms_norm_eps,
            initializer_range: m.initializer_range,
            bos_token_id: m.bos_token_id,
            eos_token_id: m.eos_token_id,
            max_position_embeddings: m.max_position_embeddings.unwrap_or(self.training.seq_len),
        }
        .validated()?;
        if let Some(base) = n.base_rows {
            let made = spec.ngram.rows_of(0);
            if made != base {
                return Err(format!(
                    "ngram.base_rows {base} cannot be written as a ratio of {hash_vocab_size}; got {made}"
                ));
            }
        }
        Ok(spec)
    }
}

/// Refuses both keys of a pair of which exactly one may be set.
fn both_set(first: &str, second: &str) -> String {
    format!(
        "{first} and {second} are both set, and a run has exactly one of them: leave one out (--set {second}= or \
         --set {first}= unsets what the run file has)"
    )
}

/// The ratio whose tables have `base`, `base + 2`, … rows: (base − 0.5)/V, which truncates back for every table.
pub fn ratio_of_base(base: u64, hash_vocab_size: u32) -> f64 {
    (base as f64 - 0.5) / f64::from(hash_vocab_size.max(1))
}

/// FFN experts wanted per token when nothing is said: k · n/(n + z), rounded, at least 1 (8 of 12 for 256 + 128).
fn default_target_top_k(model: &ModelSpec) -> u32 {
    let (k, n) = (u64::from(model.moe.top_k), u64::from(model.moe.experts));
    let routed = u64::from(model.routed_experts());
    (((2 * k * n + routed) / (2 * routed)).max(1)) as u32
}

fn invalid<T>(message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(message))
}
