//! Parameters of a model by part, from its dimensions alone: nothing is listed, so that absurd sizes cost nothing.
//!
//! All arithmetic is u128 over u32 dimensions, so that it cannot overflow. [`check_model`] refuses what is too large
//! before anything makes a list of the tensors; after it all numbers fit u64.

use serde::Serialize;

use crate::model::{ModelSpec, Placement};

/// Most parameters of a model, tables included.
pub const MAX_PARAMETERS: u64 = 1 << 50;
/// Most experts of a layer, FFN and zero, and of all layers: each has a count in every step.
const MAX_ROUTED: u64 = 1 << 20;
const MAX_ROUTED_OF_ALL: u64 = 1 << 24;
/// Widest query, key or value of all heads together.
const MAX_HEADS_WIDTH: u64 = 1 << 24;
/// Most dense tensors and tables of a model: each has a name and a place in every checkpoint.
pub const MAX_TENSORS: u64 = 1 << 22;

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

/// The same before it is known to fit u64, and what lists would have.
struct Sizes {
    ngram_tables: u128,
    ngram_projections: u128,
    embedding: u128,
    lm_head: u128,
    attention: u128,
    dense_ffn: u128,
    experts: u128,
    routers: u128,
    norms: u128,
    tensors: u128,
}

impl Sizes {
    fn of(model: &ModelSpec) -> Sizes {
        let wide = |size: u32| u128::from(size);
        let (d, v, layers) = (wide(model.hidden_size), wide(model.vocab_size), wide(model.num_layers));
        let inner = wide(model.ffn_hidden_size);
        let per_site = (wide(model.ngram.max_order) - 1) * wide(model.ngram.heads);
        // Sites of tables, their width, and sites of word embeddings in FFNs.
        let (sites, width, words) = match model.placement {
            Placement::Input => (1, d, 0),
            Placement::PerLayer => (0, 0, 2 * layers),
            Placement::PerLayerNgram => (2 * layers, inner, 2 * layers),
        };
        let rows: u128 = (0..model.ngram.tables_per_site()).map(|i| u128::from(model.ngram.rows_of(i))).sum();
        let row = width / per_site;
        let up = if words == 0 { inner * d } else { 0 };
        let a = &model.attention;
        let (heads, q_rank, kv_rank) = (wide(a.heads), wide(a.q_lora_rank), wide(a.kv_lora_rank));
        let (nope, rope, value) = (wide(a.qk_nope_head_dim), wide(a.qk_rope_head_dim), wide(a.v_head_dim));
        let attention = q_rank * d
            + q_rank
            + heads * (nope + rope) * q_rank
            + (kv_rank + rope) * d
            + kv_rank
            + heads * (nope + value) * kv_rank
            + d * heads * value;
        let moe = &model.moe;
        let routed = wide(moe.experts) + wide(moe.zero_experts);
        // Of each layer: two halves with 2 norms, 7 tensors of attention and 3 of the FFN, then router and experts.
        let layer_tensors = 2 * (2 + 7 + 3) + 2 + 3 * wide(moe.experts);
        Sizes {
            ngram_tables: sites * rows * row,
            ngram_projections: sites * per_site * width * row,
            embedding: v * d + words * v * inner,
            lm_head: v * d,
            attention: 2 * layers * attention,
            dense_ffn: 2 * layers * (2 * inner * d + up),
            experts: layers * wide(moe.experts) * 3 * wide(moe.expert_hidden_size) * d,
            routers: layers * routed * d,
            norms: (4 * layers + 1) * d,
            // Embedding, final norm and head; a projection and a table for each table.
            tensors: 3 + layers * layer_tensors + 2 * sites * per_site,
        }
    }

    /// Every part with its name and the keys that decide its size.
    fn parts(&self) -> [(&'static str, u128, &'static str); 9] {
        [
            (
                "n-gram tables",
                self.ngram_tables,
                "ngram.base_rows (or ngram.ratio), ngram.max_order, ngram.heads",
            ),
            ("n-gram projections", self.ngram_projections, "model.hidden_size, model.ffn_hidden_size"),
            ("word embeddings", self.embedding, "model.vocab_size, model.hidden_size, model.ffn_hidden_size"),
            ("the output head", self.lm_head, "model.vocab_size, model.hidden_size"),
            (
                "attention",
                self.attention,
                "model.num_layers, model.num_attention_heads, model.q_lora_rank, model.kv_lora_rank, \
                 model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim",
            ),
            ("dense FFNs", self.dense_ffn, "model.num_layers, model.ffn_hidden_size, model.hidden_size"),
            (
                "experts",
                self.experts,
                "model.num_layers, model.n_routed_experts, model.expert_ffn_hidden_size",
            ),
            ("routers", self.routers, "model.num_layers, model.n_routed_experts, model.zero_expert_num"),
            ("norms", self.norms, "model.num_layers, model.hidden_size"),
        ]
    }

    fn total(&self) -> u128 {
        self.parts().iter().map(|(_, size, _)| size).sum()
    }
}

/// Refuses a model of more parameters or tensors than are supported; the message has the sum, the largest part and the
/// keys that decide its size.
pub fn check_model(model: &ModelSpec) -> Result<(), String> {
    let wide = |size: u32| u64::from(size);
    let routed = wide(model.moe.experts) + wide(model.moe.zero_experts);
    let experts = format!(
        "model.n_routed_experts = {} and model.zero_expert_num = {} are {routed} experts",
        model.moe.experts, model.moe.zero_experts
    );
    if routed > MAX_ROUTED {
        return Err(format!("{experts}, more than the {MAX_ROUTED} that are supported"));
    }
    let of_all = wide(model.num_layers) * routed;
    if of_all > MAX_ROUTED_OF_ALL {
        return Err(format!(
            "{experts} in each of model.num_layers = {} layers, {of_all} in all, more than the {MAX_ROUTED_OF_ALL} that are \
             supported",
            model.num_layers
        ));
    }
    let a = &model.attention;
    for (keys, width) in [
        (
            format!(
                "(model.qk_nope_head_dim = {} + model.qk_rope_head_dim = {})",
                a.qk_nope_head_dim, a.qk_rope_head_dim
            ),
            wide(a.qk_nope_head_dim) + wide(a.qk_rope_head_dim),
        ),
        (
            format!(
                "(model.qk_nope_head_dim = {} + model.v_head_dim = {})",
                a.qk_nope_head_dim, a.v_head_dim
            ),
            wide(a.qk_nope_head_dim) + wide(a.v_head_dim),
        ),
    ] {
        let all = u128::from(width) * u128::from(a.heads);
        if all > u128::from(MAX_HEADS_WIDTH) {
            return Err(format!(
                "model.num_attention_heads = {} times {keys} is {all}, more than the {MAX_HEADS_WIDTH} that are \
                 supported",
                a.heads
            ));
        }
    }
    let sizes = Sizes::of(model);
    let total = sizes.total();
    if total > u128::from(MAX_PARAMETERS) {
        let parts = sizes.parts();
        let (name, size, keys) =
            parts.iter().max_by_key(|(_, size, _)| *size).copied().unwrap_or(("", 0, ""));
        return Err(format!(
            "the model has {total} parameters, more than the {MAX_PARAMETERS} (2^50) that are supported; {size} of them \
             are of {name}: lower {keys}"
        ));
    }
    if sizes.tensors > u128::from(MAX_TENSORS) {
        return Err(format!(
            "the model has {} tensors, more than the {MAX_TENSORS} (2^22) that are supported: lower model.num_layers \
             ({}) or model.n_routed_experts ({})",
            sizes.tensors, model.num_layers, model.moe.experts
        ));
    }
    Ok(())
}

/// Counts the parameters of `model`, which [`check_model`] has accepted.
pub fn count_parameters(model: &ModelSpec) -> ParameterCounts {
    let sizes = Sizes::of(model);
    let fits = |size: u128| u64::try_from(size).unwrap_or(u64::MAX);
    let activated_min = sizes.attention + sizes.dense_ffn + sizes.routers + sizes.norms + sizes.lm_head;
    let expert = sizes.experts / u128::from(model.moe.experts.max(1));
    let chosen = u128::from(model.moe.top_k.min(model.moe.experts));
    ParameterCounts {
        total: fits(sizes.total()),
        ngram_tables: fits(sizes.ngram_tables),
        ngram_projections: fits(sizes.ngram_projections),
        embedding: fits(sizes.embedding),
        lm_head: fits(sizes.lm_head),
        attention: fits(sizes.attention),
        dense_ffn: fits(sizes.dense_ffn),
        experts: fits(sizes.experts),
        routers: fits(sizes.routers),
        norms: fits(sizes.norms),
        activated_min: fits(activated_min),
        activated_max: fits(activated_min + expert * chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Part, dense_parameters};
    use crate::run_file::RunFile;
    use crate::tables::TableSet;

    fn model(sets: &[&str]) -> Result<ModelSpec, String> {
        let text = include_str!("../../../../configs/tiny.toml");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let resolved = RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve());
        resolved.map(|spec| spec.model).map_err(|error| error.to_string())
    }

    /// The formulas against the list of tensors and the tables, for every placement and with dimensions that all differ.
    #[test]
    fn formulas_count_what_the_layout_lists() {
        for placement in ["input", "per_layer", "per_layer_ngram"] {
            for (zero, head) in [("0", "11"), ("3", "40")] {
                let sets = [
                    &format!("model.placement={placement}"),
                    &format!("model.zero_expert_num={zero}"),
                    &format!("model.v_head_dim={head}"),
                    &"ngram.max_order=4".to_owned(),
                    &"model.ffn_hidden_size=60".to_owned(),
                    &"model.num_layers=3".to_owned(),
                ];
                let model = model(&sets.map(String::as_str)).unwrap();
                let list = dense_parameters(&model);
                let sum =
                    |part: Part| list.iter().filter(|p| p.part == part).map(|p| p.elements()).sum::<u64>();
                let counts = count_parameters(&model);
                for (found, part) in [
                    (counts.ngram_projections, Part::NgramProjection),
                    (counts.embedding, Part::WordEmbedding),
                    (counts.lm_head, Part::LmHead),
                    (counts.attention, Part::Attention),
                    (counts.dense_ffn, Part::DenseFfn),
                    (counts.experts, Part::Expert),
                    (counts.routers, Part::Router),
                    (counts.norms, Part::Norm),
                ] {
                    assert_eq!(found, sum(part), "{placement} {part:?}");
                }
                let tables = TableSet::of(&model);
                assert_eq!(counts.ngram_tables, tables.parameters(), "{placement}");
                let trained = list.iter().filter(|p| p.is_trained()).map(|p| p.elements()).sum::<u64>();
                assert_eq!(counts.total, trained + tables.parameters(), "{placement}");
                assert_eq!(Sizes::of(&model).tensors, (list.len() + tables.len()) as u128, "{placement}");
            }
        }
    }

    #[test]
    fn absurd_models_are_refused_with_the_sum() {
        let over = [
            "model.hidden_size=1048576",
            "model.n_routed_experts=16384",
            "model.expert_ffn_hidden_size=1048576",
        ];
        let message = model(&over).unwrap_err();
        assert!(
            message.contains("108086391056891904 of them are of experts")
                && message.contains("model.n_routed_experts"),
            "{message}"
        );
        for sets in [
            &["model.num_layers=4294967295"][..],
            &["model.n_routed_experts=4000000000"],
            &["model.qk_nope_head_dim=4294967295", "model.q_lora_rank=4294967295"],
            &["model.num_layers=100000", "model.placement=per_layer_ngram"],
            &["model.zero_expert_num=4294967295"],
            &["model.zero_expert_num=1000000", "model.num_layers=100000"],
            &["model.v_head_dim=4294967295"],
            &["model.num_attention_heads=1000000000"],
        ] {
            let message = model(sets).unwrap_err();
            assert!(message.contains("model."), "{sets:?}: {message}");
        }
    }
}
