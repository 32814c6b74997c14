//! The rules that a [`ModelSpec`] keeps, checked once. They stand above [`crate::plan`], which counts parameters.

use crate::model::{MAX_HEADS, MAX_ORDER, ModelSpec, Placement};
use crate::plan::check_model;

impl ModelSpec {
    /// The spec itself if every rule holds; otherwise a sentence naming the key, the two numbers and the cure.
    pub fn validated(self) -> Result<ModelSpec, String> {
        let positive = [
            ("model.vocab_size", self.vocab_size),
            ("model.hidden_size", self.hidden_size),
            ("model.num_layers", self.num_layers),
            ("model.num_attention_heads", self.attention.heads),
            ("model.q_lora_rank", self.attention.q_lora_rank),
            ("model.kv_lora_rank", self.attention.kv_lora_rank),
            ("model.qk_nope_head_dim", self.attention.qk_nope_head_dim),
            ("model.qk_rope_head_dim", self.attention.qk_rope_head_dim),
            ("model.v_head_dim", self.attention.v_head_dim),
            ("model.ffn_hidden_size", self.ffn_hidden_size),
            ("model.n_routed_experts", self.moe.experts),
            ("model.moe_topk", self.moe.top_k),
            ("model.expert_ffn_hidden_size", self.moe.expert_hidden_size),
            ("ngram.heads", self.ngram.heads),
            ("ngram.hash_vocab_size", self.ngram.hash_vocab_size),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{key} is 0; it must be at least 1"));
        }
        if !self.attention.qk_rope_head_dim.is_multiple_of(2) {
            return Err(format!(
                "model.qk_rope_head_dim is {}; it must be even, since rotation works on pairs",
                self.attention.qk_rope_head_dim
            ));
        }
        let routed = u64::from(self.moe.experts) + u64::from(self.moe.zero_experts);
        if u64::from(self.moe.top_k) > routed {
            return Err(format!(
                "model.moe_topk is {}, but there are only {routed} experts (n_routed_experts + zero_expert_num)",
                self.moe.top_k
            ));
        }
        for (key, token) in
            [("model.eos_token_id", self.eos_token_id), ("model.bos_token_id", self.bos_token_id)]
        {
            if token >= self.vocab_size {
                return Err(format!(
                    "{key} is {token}, outside the vocabulary of {} tokens",
                    self.vocab_size
                ));
            }
        }
        for (key, value) in [
            ("model.rms_norm_eps", self.rms_norm_eps),
            ("model.initializer_range", self.initializer_range),
            ("model.rope_theta", self.attention.rope_theta),
            ("model.routed_scaling_factor", self.moe.routed_scaling_factor),
            ("ngram.ratio", self.ngram.ratio),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{key} is {value}; it must be a positive number"));
            }
        }
        if let Some(yarn) = &self.attention.yarn {
            yarn.check(self.attention.rope_theta)?;
        }
        let ngram = &self.ngram;
        if !(2..=MAX_ORDER).contains(&ngram.max_order) {
            return Err(format!("ngram.max_order is {}; it must be 2 to {MAX_ORDER}", ngram.max_order));
        }
        if ngram.heads > MAX_HEADS {
            return Err(format!("ngram.heads is {}; it must be at most {MAX_HEADS}", ngram.heads));
        }
        if let Some(token) = ngram.ignored_tokens.iter().find(|&&token| token >= self.vocab_size) {
            return Err(format!(
                "ngram.ignored_tokens has {token}, outside the vocabulary of {} tokens",
                self.vocab_size
            ));
        }
        let tables = ngram.tables_per_site();
        let (key, width) = match self.placement {
            Placement::PerLayerNgram => ("model.ffn_hidden_size", self.ffn_hidden_size),
            Placement::Input | Placement::PerLayer => ("model.hidden_size", self.hidden_size),
        };
        if self.placement != Placement::PerLayer && width % tables != 0 {
            return Err(format!(
                "{tables} tables ((ngram.max_order − 1)·ngram.heads) do not divide {key} = {width}; choose orders and \
                 heads whose product divides it"
            ));
        }
        let largest = ngram.rows_of(tables - 1);
        if largest >= u64::from(u32::MAX) {
            return Err(format!(
                "ngram.ratio {} makes a table of {largest} rows; row ids are 32 bits, so stay below {}",
                ngram.ratio,
                u32::MAX
            ));
        }
        check_model(&self)?;
        Ok(self)
    }
}
