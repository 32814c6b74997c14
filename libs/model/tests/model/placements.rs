//! Every placement and variant against the f64 reference: losses directly, and each tensor's gradient by central
//! differences of the reference along a random direction.

use polygram_domain::model::{
    Amplification, AttentionSpec, ModelSpec, MoeSpec, NgramSpec, Normalizer, Placement, YarnSpec,
};
use polygram_domain::run_spec::BalanceSpec;
use polygram_model::{Model, Options};

use crate::fixture::{TestCell, options, random};
use crate::reference::{Parameters, Reference};

/// A model whose every dimension differs from every other.
pub(crate) fn small(placement: Placement) -> ModelSpec {
    ModelSpec {
        vocab_size: 13,
        hidden_size: 16,
        num_layers: 2,
        attention: AttentionSpec {
            heads: 3,
            q_lora_rank: 7,
            kv_lora_rank: 5,
            qk_nope_head_dim: 3,
            qk_rope_head_dim: 4,
            v_head_dim: 6,
            rope_theta: 100.0,
            yarn: None,
        },
        ffn_hidden_size: 20,
        moe: MoeSpec {
            experts: 4,
            zero_experts: 2,
            top_k: 3,
            expert_hidden_size: 9,
            routed_scaling_factor: 1.7,
        },
        ngram: NgramSpec {
            max_order: 3,
            heads: 2,
            ratio: 3.0,
            hash_vocab_size: 13,
            ignored_tokens: Vec::new(),
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        },
        placement,
        rms_norm_eps: 1e-5,
        initializer_range: 0.4,
        bos_token_id: 0,
        eos_token_id: 1,
        max_position_embeddings: 64,
    }
}

pub(crate) fn sites(spec: &ModelSpec) -> usize {
    match spec.placement {
        Placement::Input => 1,
        Placement::PerLayer => 0,
        Placement::PerLayerNgram => 2 * spec.num_layers as usize,
    }
}

fn balance() -> BalanceSpec {
    BalanceSpec {
        loss_coefficient: 0.3,
        loss_groups: 2,
        router_z_coefficient: 0.02,
        hidden_z_coefficient: 0.05,
        ..options(2).balance
    }
}

/// A model with random norms and biases too, so that no weight is a neutral one.
fn model_of(spec: &ModelSpec) -> Model {
    let mut model = Model::new(spec, Options { balance: balance(), ..options(2) }).unwrap();
    model.init(5).unwrap();
    let values: Vec<f32> = model.weights().to_vec();
    let layout = model.layout().clone();
    model
        .load_weights(|name, shape, target| {
            let range = layout.get(name).unwrap().range.clone();
            // Keyed by the tensor's place in the model: of a choice of experts that flips within a difference's step the
            // difference knows, and the gradient does not.
            let noise = random(9, layout.get(name).unwrap().number as u64, range.len());
            for ((target, value), noise) in target.iter_mut().zip(&values[range]).zip(noise) {
                let spread = if shape.len() == 1 { 0.1 } else { 0.0 };
                *target = value + spread * noise;
            }
            Ok::<_, polygram_model::ModelError>(())
        })
        .unwrap();
    model
}

fn check(spec: &ModelSpec) {
    check_tensors(spec, (2, 7), |_| true);
}

/// Compares losses of a cell of `shape` (B, T), and the gradients of the rows and of the tensors that `wanted` names.
fn check_tensors(spec: &ModelSpec, shape: (usize, usize), wanted: impl Fn(&str) -> bool) {
    let mut model = model_of(spec);
    let cell = TestCell::new(spec, sites(spec), 3, shape);
    let global = 3 * (shape.0 * shape.1) as u64;
    let output = model.forward_backward(&cell.input(global), None).unwrap();
    let gradient = model.take_gradient();
    let balance = balance();
    let reference = Reference { spec, balance: &balance, cell: &cell, global_targets: global as f64 };
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let parameters = Parameters {
        dense: model
            .layout()
            .entries()
            .iter()
            .map(|entry| (entry.spec.name.clone(), wide(&model.weights()[entry.range.clone()])))
            .collect(),
        rows_suw: wide(&cell.rows_suw),
    };
    let (sum, objective) = reference.loss(&parameters);
    assert!((output.loss_sum / sum - 1.0).abs() < 1e-6, "{} against {sum}", output.loss_sum);
    assert!((output.objective / objective - 1.0).abs() < 1e-6, "{} against {objective}", output.objective);
    let inspected = model.inspect(&cell.input(global)).unwrap();
    assert!((inspected.loss - output.loss_sum / output.targets as f64).abs() < 1e-9);

    let step = 1e-5;
    let close = |name: &str, found: &[f32], change: &dyn Fn(&mut Parameters, &[f32], f64)| {
        let direction = random(21, found.len() as u64, found.len());
        let at = |by: f64| {
            let mut moved = parameters.clone();
            change(&mut moved, &direction, by);
            reference.loss(&moved).1
        };
        let wanted = (at(step) - at(-step)) / (2.0 * step);
        let found_slope: f64 = found.iter().zip(&direction).map(|(g, u)| f64::from(g * u)).sum();
        let size: f64 = found.iter().map(|&g| f64::from(g * g)).sum::<f64>().sqrt();
        assert!(
            (found_slope - wanted).abs() <= 2e-4 * size.max(1e-4),
            "{name}: {found_slope} against {wanted}"
        );
    };
    for entry in
        model.layout().entries().iter().filter(|entry| entry.spec.is_trained() && wanted(&entry.spec.name))
    {
        let name = &entry.spec.name;
        close(name, &gradient[entry.range.clone()], &|moved, direction, by| {
            let values = moved.dense.get_mut(name).unwrap();
            values.iter_mut().zip(direction).for_each(|(v, u)| *v += by * f64::from(*u));
        });
    }
    assert_eq!(output.row_grads_suw.len(), cell.rows_suw.len());
    close("rows", &output.row_grads_suw, &|moved, direction, by| {
        moved.rows_suw.iter_mut().zip(direction).for_each(|(v, u)| *v += by * f64::from(*u));
    });
}

#[test]
fn ngram_embedding_in_every_variant() {
    for normalizer in [Normalizer::Mean, Normalizer::Sqrt] {
        for amplification in [Amplification::None, Amplification::SqrtD, Amplification::LayerNorm] {
            let mut spec = small(Placement::Input);
            spec.ngram.normalizer = normalizer;
            spec.ngram.amplification = amplification;
            check(&spec);
        }
    }
}

#[test]
fn ignored_tokens_keep_their_plain_word_embedding() {
    for placement in [Placement::Input, Placement::PerLayerNgram] {
        let mut spec = small(placement);
        spec.ngram.ignored_tokens = vec![2, 5, 6];
        check(&spec);
    }
}

#[test]
fn per_layer_embedding() {
    let mut spec = small(Placement::PerLayer);
    check(&spec);
    spec.ngram.amplification = Amplification::SqrtD;
    check(&spec);
}

#[test]
fn per_layer_ngram_embedding() {
    let mut spec = small(Placement::PerLayerNgram);
    check(&spec);
    spec.ngram.normalizer = Normalizer::Sqrt;
    check(&spec);
}

#[test]
fn narrow_values_yarn_and_no_zero_experts() {
    let mut spec = small(Placement::Input);
    spec.attention.v_head_dim = 9;
    check(&spec);
    spec.attention.qk_nope_head_dim = 5;
    spec.attention.yarn = Some(YarnSpec {
        factor: 4.0,
        original_max_position_embeddings: 16,
        beta_fast: 2.0,
        beta_slow: 0.5,
        mscale: 0.8,
        mscale_all_dim: 0.5,
        attention_factor: None,
        truncate: true,
    });
    check(&spec);
    spec.moe.zero_experts = 0;
    spec.moe.experts = 6;
    check(&spec);
}

/// More positions than one chunk of logits holds.
#[test]
fn logits_in_several_chunks() {
    check_tensors(&small(Placement::Input), (320, 7), |name| {
        ["lm_head.weight", "model.norm.weight"].contains(&name)
    });
}
