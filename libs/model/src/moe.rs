//! Mixture of FFN experts and zero (identity) experts.
//!
//! ```text
//! p = softmax(x·Wcls) in f32              n FFN experts, then z zero experts
//! sel = top_k(p + b)                      b chooses only; ties go to the lower index
//! y = Σ_{FFN i} s·p_i·SwiGLU_i(x) + (Σ_{zero i} s·p_i)·x        s = routed_scaling_factor
//! ```
//! Choices are counting-sorted by expert, tokens in order within each; every expert multiplies its contiguous segment
//! once. An expert without tokens takes no part, and its weights get no gradient.

use polygram_domain::ModelSpec;
use tch::{Kind, Tensor};

use crate::balance::{BalanceAim, loss_coefficients};
use crate::context::CellContext;
use crate::error::Result;
use crate::ffn::swiglu;
use crate::parameters::{Leaves, Precision};

/// The weights of one mixture.
#[derive(Debug)]
pub(crate) struct Moe {
    classifier: Tensor,
    bias: Tensor,
    experts: Vec<Expert>,
    spec: polygram_domain::model::MoeSpec,
    aim: BalanceAim,
}

#[derive(Debug)]
struct Expert {
    /// `[gate; up]`, `[2·inner, D]`.
    gate_up: Tensor,
    /// `[D, inner]`.
    down: Tensor,
}

/// What one mixture did with one cell.
pub(crate) struct MoePass {
    /// `[P, D]` f32.
    pub(crate) output: Tensor,
    /// Scalar, in the graph.
    pub(crate) balance: Tensor,
    /// Scalar, in the graph.
    pub(crate) router_z: Tensor,
    pub(crate) routing: Routing,
}

/// Which experts a cell's tokens chose.
#[derive(Debug)]
pub(crate) struct Routing {
    /// `[P, k]`, best first.
    pub(crate) chosen_pk: Vec<u32>,
    /// `[n + z]`.
    pub(crate) counts: Vec<u64>,
    /// `[P, n + z]`: probabilities, kept for traces only.
    pub(crate) probabilities: Tensor,
}

impl Moe {
    /// The mixture of `layer`.
    pub(crate) fn new(
        leaves: &mut Leaves<'_>,
        model: &ModelSpec,
        layer: u32,
        aim: BalanceAim,
    ) -> Result<Moe> {
        let prefix = format!("model.layers.{layer}.mlp");
        let (d, inner) = (i64::from(model.hidden_size), i64::from(model.moe.expert_hidden_size));
        let expert = |leaves: &mut Leaves<'_>, index: u32| {
            let name = |part: &str| format!("{prefix}.experts.{index}.{part}.weight");
            let gate_up = leaves.joined(&name("gate_proj"), &name("up_proj"), &[2 * inner, d])?;
            Ok(Expert { gate_up, down: leaves.weight(&name("down_proj"), Precision::Compute)? })
        };
        let experts = (0..model.moe.experts).map(|index| expert(leaves, index)).collect::<Result<_>>()?;
        let bias = leaves.weights.layout.get(&format!("{prefix}.router.e_score_correction_bias"))?;
        let width = [bias.range.len() as i64];
        Ok(Moe {
            bias: leaves.weights.view(&bias.range, &width, Precision::Single)?,
            classifier: leaves.weight(&format!("{prefix}.router.classifier.weight"), Precision::Single)?,
            experts,
            spec: model.moe.clone(),
            aim,
        })
    }

    /// `[P, D]` (normed, compute type) → `[P, D]`.
    pub(crate) fn forward(&self, x_pd: &Tensor, cell: &CellContext<'_>) -> Result<MoePass> {
        let logits = x_pd.f_to_kind(Kind::Float)?.f_linear(&self.classifier, None::<&Tensor>)?;
        let probabilities = logits.f_softmax(-1, None::<Kind>)?;
        let routing = self.route(&probabilities)?;
        let dispatch = Dispatch::new(&routing, &self.spec, cell.positions() as usize);

        let coefficients =
            loss_coefficients(&routing.counts, &self.spec, self.aim, cell.positions() as usize);
        let coefficients = Tensor::f_from_slice(&coefficients)?.f_to_device(cell.device)?;
        let mean = probabilities.f_mean_dim(&[0i64][..], false, None::<Kind>)?;
        let balance = mean.f_dot(&coefficients)?;
        let router_z = logits.f_logsumexp(&[-1i64][..], false)?.f_square()?.f_mean(None::<Kind>)?;

        let gates = probabilities.f_mul_scalar(self.spec.routed_scaling_factor)?;
        let mut output = self.zero_experts(x_pd, &gates, &dispatch, cell)?;
        if !dispatch.tokens.is_empty() {
            let tokens = Tensor::f_from_slice(&dispatch.tokens)?.f_to_device(cell.device)?;
            let mixed = self.ffn_experts(x_pd, &tokens, (&gates, &dispatch), cell)?;
            output = output.f_index_add(0, &tokens, &mixed)?;
        }
        Ok(MoePass { output, balance, router_z, routing })
    }

    /// Chooses on the host: integers decide everything behind it.
    fn route(&self, probabilities: &Tensor) -> Result<Routing> {
        let scores = probabilities.f_detach()?.f_add(&self.bias)?;
        let mut scores_host = vec![0.0f32; scores.numel()];
        scores.f_copy_data(&mut scores_host, scores.numel())?;
        let experts = (self.spec.experts + self.spec.zero_experts) as usize;
        let chosen_pk = select_top_k(&scores_host, experts, self.spec.top_k as usize);
        let mut counts = vec![0u64; experts];
        for &expert in &chosen_pk {
            counts[expert as usize] += 1;
        }
        Ok(Routing { chosen_pk, counts, probabilities: probabilities.f_detach()? })
    }

    /// `(Σ of the chosen zero experts' gates) · x`, or zeros.
    fn zero_experts(
        &self,
        x_pd: &Tensor,
        gates: &Tensor,
        dispatch: &Dispatch,
        cell: &CellContext<'_>,
    ) -> Result<Tensor> {
        let zero = i64::from(self.spec.zero_experts);
        if zero == 0 {
            return Ok(Tensor::f_zeros(x_pd.size(), (Kind::Float, cell.device))?);
        }
        let mask = Tensor::f_from_slice(&dispatch.zero_mask)?
            .f_to_device(cell.device)?
            .f_view([cell.positions(), zero])?;
        let gates = gates.f_narrow(1, i64::from(self.spec.experts), zero)?.f_mul(&mask)?;
        Ok(gates.f_sum_dim_intlist(&[-1i64][..], true, None::<Kind>)?.f_mul(x_pd)?)
    }

    /// The gated outputs of the FFN experts, `[choices, D]` f32, in the dispatch's order.
    fn ffn_experts(
        &self,
        x_pd: &Tensor,
        tokens: &Tensor,
        (gates, dispatch): (&Tensor, &Dispatch),
        cell: &CellContext<'_>,
    ) -> Result<Tensor> {
        let gate_index = Tensor::f_from_slice(&dispatch.gates)?.f_to_device(cell.device)?;
        let gates = gates.f_reshape([-1])?.f_index_select(0, &gate_index)?.f_unsqueeze(-1)?;
        let sorted = x_pd.f_index_select(0, tokens)?;
        let inner = self.products(&sorted, dispatch, |expert| &expert.gate_up)?;
        let gated = swiglu(&inner)?.f_mul(&gates)?.f_to_kind(cell.kind)?;
        let mixed = self.products(&gated, dispatch, |expert| &expert.down)?;
        Ok(mixed.f_to_kind(Kind::Float)?)
    }

    /// One product per expert that has tokens, over contiguous segments of `x`.
    fn products<'a>(
        &'a self,
        x: &Tensor,
        dispatch: &Dispatch,
        weight: impl Fn(&'a Expert) -> &'a Tensor,
    ) -> Result<Tensor> {
        let sizes: Vec<i64> = dispatch.segments.iter().map(|&(_, size)| size).collect();
        let parts = x.f_split_with_sizes(&sizes, 0)?;
        let products = dispatch
            .segments
            .iter()
            .zip(&parts)
            .map(|(&(expert, _), part)| Ok(part.f_linear(weight(&self.experts[expert]), None::<&Tensor>)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&products, 0)?)
    }
}

/// Choices sorted by expert.
struct Dispatch {
    /// (expert, choices) of the FFN experts that have any, in order.
    segments: Vec<(usize, i64)>,
    /// Token of each FFN choice, sorted by expert, then token.
    tokens: Vec<i64>,
    /// Place of each FFN choice's gate in the flattened `[P, n + z]` gates.
    gates: Vec<i64>,
    /// `[P, z]`: 1 where a zero expert was chosen.
    zero_mask: Vec<f32>,
}

impl Dispatch {
    fn new(routing: &Routing, spec: &polygram_domain::model::MoeSpec, positions: usize) -> Dispatch {
        let (ffn, zero) = (spec.experts as usize, spec.zero_experts as usize);
        let mut starts = Vec::with_capacity(ffn);
        let mut choices = 0usize;
        for &count in &routing.counts[..ffn] {
            starts.push(choices);
            choices += count as usize;
        }
        let mut dispatch = Dispatch {
            segments: (0..ffn)
                .filter(|&expert| routing.counts[expert] > 0)
                .map(|expert| (expert, routing.counts[expert] as i64))
                .collect(),
            tokens: vec![0; choices],
            gates: vec![0; choices],
            zero_mask: vec![0.0; positions * zero],
        };
        for (token, chosen) in routing.chosen_pk.chunks_exact(spec.top_k as usize).enumerate() {
            for &expert in chosen {
                let expert = expert as usize;
                if expert < ffn {
                    let place = starts[expert];
                    starts[expert] += 1;
                    dispatch.tokens[place] = token as i64;
                    dispatch.gates[place] = (token * (ffn + zero) + expert) as i64;
                } else {
                    dispatch.zero_mask[token * zero + expert - ffn] = 1.0;
                }
            }
        }
        dispatch
    }
}

/// For each row of `experts` scores the indices of the `k` largest, best first; of equal scores the lower index is the
/// better one, and NaN is worse than every number.
pub(crate) fn select_top_k(scores: &[f32], experts: usize, k: usize) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(scores.len() / experts.max(1) * k);
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
    for row in scores.chunks_exact(experts.max(1)) {
        best.clear();
        for (expert, &score) in row.iter().enumerate() {
            let score = if score.is_nan() { f32::NEG_INFINITY } else { score };
            if best.len() == k && best.last().is_none_or(|&(worst, _)| score <= worst) {
                continue;
            }
            let place = best.iter().rposition(|&(other, _)| other >= score).map_or(0, |place| place + 1);
            best.insert(place, (score, expert as u32));
            best.truncate(k);
        }
        chosen.extend(best.iter().map(|&(_, expert)| expert));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(select_top_k(&[0.5, 0.5, 0.5, 0.5], 4, 2), [0, 1]);
        assert_eq!(select_top_k(&[0.1, 0.5, 0.5, 0.7, 0.5], 5, 3), [3, 1, 2]);
        assert_eq!(select_top_k(&[-0.0, 0.0], 2, 1), [0]);
        assert_eq!(select_top_k(&[1.0, 2.0, 4.0, 3.0], 2, 2), [1, 0, 0, 1]);
    }

    #[test]
    fn nan_is_chosen_last_and_never_lost() {
        assert_eq!(select_top_k(&[f32::NAN, 0.1, f32::NAN, 0.2], 4, 3), [3, 1, 0]);
        assert_eq!(select_top_k(&[f32::NAN; 3], 3, 2), [0, 1]);
    }
}
