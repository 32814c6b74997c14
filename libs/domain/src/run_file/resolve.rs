//! From a run file to a [`RunSpec`]: every rule, each refusal naming its key, its value and the cure.

use super::sections::RecoveryPointsSection;
use super::{ConfigError, RunFile};
use crate::checkpoint::{CheckpointSpec, RecoveryPointSpec};
use crate::embedding::{AdamBias, EmbeddingSpec, RowOptimizer, WireSpec};
use crate::ids::RunName;
use crate::model::{AttentionSpec, ModelSpec, MoeSpec, NgramSpec};
use crate::run_spec::{
    AdamWSpec, BalanceSpec, DataSpec, Determinism, DeviceKind, DeviceSpec, ElasticitySpec, EvaluationSpec,
    RecoverySpec, RunSpec, TrainingSpec,
};
use crate::schedule::Schedule;
use crate::spikes::{SpikeAction, SpikeSpec};
use crate::topology::Topology;

impl RunFile {
    /// Checks every rule and resolves the run.
    pub fn resolve(&self) -> Result<RunSpec, ConfigError> {
        let model = self.model_spec().map_err(ConfigError::Invalid)?;
        self.check_counts()?;
        self.check_run()?;
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
            training: self.training_spec(&model)?,
            embedding: self.embedding_spec(&model)?,
            topology,
            checkpoint: CheckpointSpec {
                every_steps: self.checkpoint.every_steps,
                keep: self.checkpoint.keep,
            },
            recovery_points: self.recovery_point_spec()?,
            recovery: self.recovery_spec()?,
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
                memory_bytes: self.device_memory_bytes()?,
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
    fn device_memory_bytes(&self) -> Result<Option<u64>, ConfigError> {
        const MOST_GIB: f64 = (1u64 << 20) as f64;
        let usual = (self.device.kind == DeviceKind::Cuda).then_some(crate::plan::DEVICE_MEMORY_GIB);
        let Some(gib) = self.device.memory_gib.or(usual) else { return Ok(None) };
        if !(gib > 0.0 && gib <= MOST_GIB) {
            return invalid(format!(
                "device.memory_gib is {gib}; it must be a positive number, at most {MOST_GIB}"
            ));
        }
        Ok(Some((gib * f64::from(1 << 30)) as u64))
    }

    /// Counts that must not be 0, and optional ones that are left out rather than 0.
    fn check_counts(&self) -> Result<(), ConfigError> {
        let t = &self.training;
        let counts = [
            ("training.steps", t.steps),
            ("training.seq_len", t.seq_len.into()),
            ("training.micro_batch_size", t.micro_batch_size.into()),
            ("embedding.lanes", self.embedding.lanes.into()),
            ("embedding.connections", self.embedding.connections.into()),
            ("device.threads", self.device.threads.into()),
            ("evaluation.cells", self.evaluation.cells.into()),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return invalid(format!("{key} is 0; it must be at least 1"));
        }
        let optional = [
            ("training.stop_at_step", t.stop_at_step, "run to training.steps"),
            ("checkpoint.every_steps", self.checkpoint.every_steps, "switch it off"),
            ("recovery_points.every_steps", self.recovery_points.every_steps, "switch it off"),
            ("evaluation.every_steps", self.evaluation.every_steps, "switch it off"),
        ];
        match optional.iter().find(|(_, value, _)| *value == Some(0)) {
            Some((key, _, effect)) => invalid(format!("{key} is 0; leave it out to {effect}")),
            None => Ok(()),
        }
    }

    fn check_run(&self) -> Result<(), ConfigError> {
        let seconds = self.run.failure_detection_seconds;
        positive(&[("run.failure_detection_seconds", seconds)])?;
        if let Some(grace) = self.run.stop_grace_seconds {
            positive(&[("run.stop_grace_seconds", grace)])?;
        }
        if seconds < 1.0 {
            return invalid(format!(
                "run.failure_detection_seconds is {seconds}; below 1 second a busy machine looks dead"
            ));
        }
        if self.checkpoint.keep < 2 {
            return invalid(format!(
                "checkpoint.keep is {}; keep at least 2, so that a damaged newest checkpoint is not the only one",
                self.checkpoint.keep
            ));
        }
        Ok(())
    }

    fn recovery_point_spec(&self) -> Result<Option<RecoveryPointSpec>, ConfigError> {
        let RecoveryPointsSection { every_steps, root, changes_below } = self.recovery_points.clone();
        if !(0.0..=1.0).contains(&changes_below) {
            return invalid(format!(
                "recovery_points.changes_below is {changes_below}; it is a part of the written rows, from 0 to 1"
            ));
        }
        if root.as_deref() == Some("") {
            return invalid("recovery_points.root is empty; leave it out to keep them beside the run".into());
        }
        Ok(every_steps.map(|every_steps| RecoveryPointSpec { every_steps, root, changes_below }))
    }

    fn recovery_spec(&self) -> Result<RecoverySpec, ConfigError> {
        let r = &self.recovery;
        for (key, value) in [
            ("recovery.max_fruitless_restarts", r.max_fruitless_restarts),
            ("recovery.quarantine_after", r.quarantine_after),
        ] {
            if value == 0 {
                return invalid(format!(
                    "{key} is 0; it must be at least 1 (recovery.max_restarts = 0 switches recovery off)"
                ));
            }
        }
        not_negative(&[
            ("recovery.backoff_seconds", r.backoff_seconds),
            ("recovery.quarantine_seconds", r.quarantine_seconds),
        ])?;
        Ok(RecoverySpec {
            max_restarts: r.max_restarts,
            max_fruitless_restarts: r.max_fruitless_restarts,
            backoff_seconds: r.backoff_seconds,
            quarantine_after: r.quarantine_after,
            quarantine_seconds: r.quarantine_seconds,
        })
    }

    fn elasticity_spec(&self, topology: &Topology) -> Result<ElasticitySpec, ConfigError> {
        let r = &self.recovery;
        not_negative(&[
            ("recovery.wait_for_members_seconds", r.wait_for_members_seconds),
            ("recovery.resize_seconds", r.resize_seconds),
        ])?;
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
        const LONGEST_HISTORY: u32 = 1024;
        let s = &self.spikes;
        for (key, value, most) in [
            ("spikes.history_steps", u64::from(s.history_steps), u64::from(LONGEST_HISTORY)),
            ("spikes.roll_back_steps", s.roll_back_steps.into(), u64::from(u32::MAX)),
            ("spikes.skip_steps", s.skip_steps.into(), u64::from(u32::MAX)),
            ("spikes.max_actions", s.max_actions.into(), u64::from(u32::MAX)),
            ("spikes.window_steps", s.window_steps, u64::MAX),
        ] {
            if !(1..=most).contains(&value) {
                return invalid(format!("{key} is {value}; it must be 1 to {most}"));
            }
        }
        for (key, value) in
            [("spikes.loss_deviations", s.loss_deviations), ("spikes.norm_factor", s.norm_factor)]
        {
            positive(&[(key, value.unwrap_or(1.0))])?;
        }
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
        positive(&[
            ("training.lr", t.lr),
            ("training.optimizer.eps", o.eps),
            ("training.clip.norm", t.clip.norm),
        ])?;
        not_negative(&[
            ("training.min_lr_ratio", t.min_lr_ratio),
            ("training.optimizer.weight_decay", o.weight_decay),
            ("training.optimizer.word_embedding_lr_multiplier", o.word_embedding_lr_multiplier),
            ("training.optimizer.word_embedding_weight_decay", word_embedding_weight_decay),
        ])?;
        betas(&[("training.optimizer.beta1", o.beta1), ("training.optimizer.beta2", o.beta2)])?;
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
        not_negative(&[
            ("training.balance.bias_rate", b.bias_rate),
            ("training.balance.bias_rate_min", b.bias_rate_min),
            ("training.balance.loss_coefficient", b.loss_coefficient),
            ("training.balance.router_z_coefficient", b.router_z_coefficient),
            ("training.balance.hidden_z_coefficient", b.hidden_z_coefficient),
        ])?;
        let target_top_k = b.target_top_k.unwrap_or_else(|| default_target_top_k(model));
        if target_top_k == 0 || target_top_k > model.moe.top_k {
            return invalid(format!(
                "training.balance.target_top_k is {target_top_k}; it must be 1 to model.moe_topk = {}",
                model.moe.top_k
            ));
        }
        let loss_groups = b.loss_groups.unwrap_or(model.moe.experts);
        if loss_groups == 0 || !model.moe.experts.is_multiple_of(loss_groups) {
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
        positive(&[("embedding.eps", e.eps), ("embedding.memory_limit_gib", e.memory_limit_gib)])?;
        not_negative(&[
            ("embedding.lr_multiplier", e.lr_multiplier),
            ("embedding.weight_decay", e.weight_decay),
            ("embedding.init_std", init_std),
        ])?;
        betas(&[("embedding.beta1", e.beta1), ("embedding.beta2", e.beta2)])?;
        if let Some(norm) = e.max_row_norm {
            positive(&[("embedding.max_row_norm", norm)])?;
        }
        for (key, value, most) in [
            ("embedding.prefetch_steps", e.prefetch_steps, 64),
            ("embedding.lanes", e.lanes, 256),
            ("embedding.connections", e.connections, 64),
        ] {
            if value > most {
                return invalid(format!("{key} is {value}, at most {most} is allowed"));
            }
        }
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
                Ok(DataSpec::Segments { train: train.clone(), held_out: self.data.held_out.clone() })
            }
            (None, Some(tokens)) if tokens > 0 => {
                Ok(DataSpec::Synthetic { tokens, held_out_tokens: self.data.synthetic_held_out_tokens })
            }
            _ => Err(ConfigError::Invalid(
                "data needs exactly one source: data.train (the path of a .bin/.idx pair without extension) or \
                 data.synthetic_tokens (a positive number)"
                    .into(),
            )),
        }
    }

    fn model_spec(&self) -> Result<ModelSpec, String> {
        let m = &self.model;
        let n = &self.ngram;
        let hash_vocab_size = n.hash_vocab_size.unwrap_or(m.vocab_size);
        let ratio = match (n.ratio, n.base_rows) {
            (Some(ratio), None) => ratio,
            (None, Some(base)) if base > 0 => ratio_of_base(base, hash_vocab_size),
            _ => {
                return Err(
                    "ngram needs exactly one of ngram.ratio and ngram.base_rows (a positive number)".into()
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

fn positive(values: &[(&str, f64)]) -> Result<(), ConfigError> {
    match values.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
        Some((key, value)) => invalid(format!("{key} is {value}; it must be a positive number")),
        None => Ok(()),
    }
}

fn not_negative(values: &[(&str, f64)]) -> Result<(), ConfigError> {
    match values.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
        Some((key, value)) => invalid(format!("{key} is {value}; it must be 0 or a positive number")),
        None => Ok(()),
    }
}

fn betas(values: &[(&str, f64)]) -> Result<(), ConfigError> {
    match values.iter().find(|(_, value)| !(0.0..1.0).contains(value)) {
        Some((key, value)) => invalid(format!("{key} is {value}; it must be at least 0 and below 1")),
        None => Ok(()),
    }
}
