//! The named dense parameters of a model: names, shapes, kinds. Names are global and rank-free (Hugging Face's,
//! docs/model.md); checkpoints are checked against this list, so that nothing is missing or doubled.

use std::ops::Range;

use crate::model::{ModelSpec, Placement};

/// What the name of a parameter's first moment begins with.
pub const EXP_AVG: &str = "optimizer.exp_avg.";
/// What the name of its second moment begins with.
pub const EXP_AVG_SQ: &str = "optimizer.exp_avg_sq.";

/// What a tensor of the training state holds of its parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePart {
    /// Its values.
    Weight,
    /// Its first moment.
    ExpAvg,
    /// Its second moment.
    ExpAvgSq,
}

/// What the state tensor called `name` holds, and the parameter's name.
pub fn state_part(name: &str) -> (StatePart, &str) {
    if let Some(parameter) = name.strip_prefix(EXP_AVG_SQ) {
        (StatePart::ExpAvgSq, parameter)
    } else if let Some(parameter) = name.strip_prefix(EXP_AVG) {
        (StatePart::ExpAvg, parameter)
    } else {
        (StatePart::Weight, name)
    }
}

/// One tensor of the training state, or a run of its elements, where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct StateView<'a> {
    /// Global name, with the prefix of a moment where it is one.
    pub name: String,
    /// Shape of the whole tensor.
    pub shape: &'a [u64],
    /// Which of its elements these are, row-major.
    pub elements: Range<usize>,
    /// Their values.
    pub values: &'a [f32],
}

/// The part of the model that a parameter belongs to, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Word embeddings `E0`, at the input or per layer.
    WordEmbedding,
    /// Projections of the n-gram tables.
    NgramProjection,
    /// Latent attention, its latent norms excepted.
    Attention,
    /// Dense FFNs.
    DenseFfn,
    /// FFN experts.
    Expert,
    /// Router classifiers.
    Router,
    /// Selection biases: state that no gradient moves, and no parameter.
    RouterBias,
    /// RMSNorm weights of the residual stream.
    Norm,
    /// Output head.
    LmHead,
}

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal of mean 0 and this standard deviation.
    Normal(f64),
    /// All ones (norm weights).
    Ones,
    /// All zeros (selection biases).
    Zeros,
}

/// One dense tensor of the training state. Linear weights are `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Global name.
    pub name: String,
    /// Shape.
    pub shape: Vec<u64>,
    /// Part of the model.
    pub part: Part,
    /// The layer that it is in; `None` for embedding and head.
    pub layer: Option<u32>,
    /// The FFN expert that it is of.
    pub expert: Option<u32>,
    /// Initial values.
    pub init: Init,
}

impl ParameterSpec {
    /// Number of values.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether the optimizer moves it. Selection biases follow the routing counts instead.
    pub fn is_trained(&self) -> bool {
        self.part != Part::RouterBias
    }

    /// Whether weight decay applies: 2-D weights, norms not.
    pub fn is_decayed(&self) -> bool {
        self.is_trained() && self.shape.len() >= 2
    }
}

/// Every dense tensor of `model`, in canonical order. Sums of squares, checkpoints and digests follow it.
pub fn dense_parameters(model: &ModelSpec) -> Vec<ParameterSpec> {
    let d = u64::from(model.hidden_size);
    let v = u64::from(model.vocab_size);
    let inner = u64::from(model.ffn_hidden_size);
    let sigma = model.initializer_range;
    let mut list = List::default();

    list.add("model.embed_tokens.weight", &[v, d], Part::WordEmbedding, Init::Normal(sigma));
    if model.placement == Placement::Input {
        list.projections("model.ngram_embeddings", model, d);
    }
    for layer in 0..model.num_layers {
        let prefix = format!("model.layers.{layer}");
        list.layer = Some(layer);
        for sub in 0..2 {
            list.norm(&format!("{prefix}.input_layernorm.{sub}"), d);
            list.attention(&format!("{prefix}.self_attn.{sub}"), model);
            list.norm(&format!("{prefix}.post_attention_layernorm.{sub}"), d);
            let mlp = format!("{prefix}.mlps.{sub}");
            let linear = Init::Normal(sigma);
            list.add(&format!("{mlp}.gate_proj.weight"), &[inner, d], Part::DenseFfn, linear);
            match model.placement {
                Placement::Input => {
                    list.add(&format!("{mlp}.up_proj.weight"), &[inner, d], Part::DenseFfn, linear)
                }
                Placement::PerLayer | Placement::PerLayerNgram => {
                    let name = format!("{mlp}.embed_tokens.weight");
                    list.add(&name, &[v, inner], Part::WordEmbedding, Init::Normal(sigma));
                }
            }
            if model.placement == Placement::PerLayerNgram {
                list.projections(&format!("{mlp}.ngram_embeddings"), model, inner);
            }
            list.add(&format!("{mlp}.down_proj.weight"), &[d, inner], Part::DenseFfn, linear);
        }
        let expert_inner = u64::from(model.moe.expert_hidden_size);
        for expert in 0..model.moe.experts {
            let prefix = format!("{prefix}.mlp.experts.{expert}");
            list.expert = Some(expert);
            for (name, shape) in [
                ("gate_proj", [expert_inner, d]),
                ("up_proj", [expert_inner, d]),
                ("down_proj", [d, expert_inner]),
            ] {
                list.add(&format!("{prefix}.{name}.weight"), &shape, Part::Expert, Init::Normal(sigma));
            }
        }
        list.expert = None;
        let routed = u64::from(model.routed_experts());
        let router = format!("{prefix}.mlp.router");
        list.add(&format!("{router}.classifier.weight"), &[routed, d], Part::Router, Init::Normal(sigma));
        list.add(&format!("{router}.e_score_correction_bias"), &[routed], Part::RouterBias, Init::Zeros);
    }
    list.layer = None;
    list.norm("model.norm", d);
    list.add("lm_head.weight", &[v, d], Part::LmHead, Init::Normal(sigma));
    list.parameters
}

#[derive(Default)]
struct List {
    parameters: Vec<ParameterSpec>,
    layer: Option<u32>,
    expert: Option<u32>,
}

impl List {
    fn add(&mut self, name: &str, shape: &[u64], part: Part, init: Init) {
        let (layer, expert) = (self.layer, self.expert);
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.parameters.push(ParameterSpec { name, shape, part, layer, expert, init });
    }

    fn norm(&mut self, name: &str, width: u64) {
        self.add(&format!("{name}.weight"), &[width], Part::Norm, Init::Ones);
    }

    /// `post_projs` of one site of width `width`: standard deviation (width/C)^-1/2, so that a projected row
    /// has the variance of the row.
    fn projections(&mut self, site: &str, model: &ModelSpec, width: u64) {
        let tables = u64::from(model.ngram.tables_per_site());
        let row = width / tables;
        for table in 0..tables {
            let name = format!("{site}.post_projs.{table}.weight");
            self.add(&name, &[width, row], Part::NgramProjection, Init::Normal((row as f64).powf(-0.5)));
        }
    }

    fn attention(&mut self, prefix: &str, model: &ModelSpec) {
        let a = &model.attention;
        let d = u64::from(model.hidden_size);
        let heads = u64::from(a.heads);
        let (q_rank, kv_rank) = (u64::from(a.q_lora_rank), u64::from(a.kv_lora_rank));
        let linear = Init::Normal(model.initializer_range);
        let qk = u64::from(model.qk_head_dim());
        let nope_v = u64::from(a.qk_nope_head_dim + a.v_head_dim);
        self.add(&format!("{prefix}.q_a_proj.weight"), &[q_rank, d], Part::Attention, linear);
        self.add(&format!("{prefix}.q_a_layernorm.weight"), &[q_rank], Part::Attention, Init::Ones);
        self.add(&format!("{prefix}.q_b_proj.weight"), &[heads * qk, q_rank], Part::Attention, linear);
        let latent = kv_rank + u64::from(a.qk_rope_head_dim);
        self.add(&format!("{prefix}.kv_a_proj_with_mqa.weight"), &[latent, d], Part::Attention, linear);
        self.add(&format!("{prefix}.kv_a_layernorm.weight"), &[kv_rank], Part::Attention, Init::Ones);
        self.add(&format!("{prefix}.kv_b_proj.weight"), &[heads * nope_v, kv_rank], Part::Attention, linear);
        let value = heads * u64::from(a.v_head_dim);
        self.add(&format!("{prefix}.o_proj.weight"), &[d, value], Part::Attention, linear);
    }
}
