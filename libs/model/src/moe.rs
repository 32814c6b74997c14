//! Mixture of FFN experts and zero (identity) experts.
//!
//! ```text
//! p = softmax(x·Wcls) in f32              n FFN experts, then z zero experts
//! sel = top_k(p + b)                      b chooses only; ties go to the lower index
//! y = Σ_{FFN i} s·p_i·SwiGLU_i(x) + (Σ_{zero i} s·p_i)·x        s = routed_scaling_factor
//! ```
//! Choices are counting-sorted by expert, tokens in order within each, so that the choices of one rank's experts lie side
//! by side; every expert multiplies its contiguous segment of one rank's tokens at once. An expert without tokens takes
//! no part, and its weights get no gradient. Zero experts never travel.

use polygram_domain::ModelSpec;
use polygram_domain::model::MoeSpec;
use polygram_domain::run_spec::Determinism;
use tch::{Kind, Tensor};

use crate::balance::{BalanceAim, loss_coefficients};
use crate::context::CellContext;
use crate::error::{ModelError, Result};
use crate::experts::Message;
use crate::ffn::swiglu;
use crate::parameters::{Leaf, Leaves, Precision, Weights};
use crate::segment::leaf_of;

/// Chooses experts.
#[derive(Debug)]
pub(crate) struct Router {
    classifier: Tensor,
    bias: Tensor,
    spec: MoeSpec,
    aim: BalanceAim,
}

/// This rank's FFN experts of one layer.
#[derive(Debug)]
pub(crate) struct Experts {
    list: Vec<Expert>,
    /// One product for the tokens of all ranks, or one for each rank's.
    merges: bool,
    /// Their weights.
    pub(crate) leaves: Vec<Leaf>,
}

#[derive(Debug)]
struct Expert {
    /// `[gate; up]`, `[2·inner, D]`.
    gate_up: Tensor,
    /// `[D, inner]`.
    down: Tensor,
}

/// Rows for this rank's experts.
#[derive(Debug)]
pub(crate) struct Work {
    /// `[c, D]` in the compute type, sorted by expert.
    pub(crate) rows: Tensor,
    /// `[c]` f32.
    pub(crate) gates: Tensor,
    /// Rows of each expert.
    counts: Vec<u32>,
    /// Where they are those of several ranks.
    merge: Option<Merge>,
}

/// How the rows of several ranks, one rank after another, lie sorted by expert.
#[derive(Debug)]
struct Merge {
    /// Rows of each rank.
    sizes: Vec<i64>,
    /// `[c]` i64: which row comes at each place.
    order: Tensor,
    /// `[c]` i64: at which place each row is.
    places: Tensor,
}

/// What the router made of one cell; tensors are in the graph.
pub(crate) struct Routed {
    /// `[choices, D]`: the tokens of the FFN choices, in the dispatch's order.
    pub(crate) rows: Tensor,
    /// `[choices]` f32.
    pub(crate) gates: Tensor,
    /// `[P, D]` f32: what the zero experts give; `None` where the model has none.
    pub(crate) zero: Option<Tensor>,
    /// Scalar.
    pub(crate) balance: Tensor,
    /// Scalar.
    pub(crate) router_z: Tensor,
    pub(crate) dispatch: Dispatch,
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

impl Router {
    /// The router of `layer`.
    pub(crate) fn new(
        leaves: &mut Leaves<'_>,
        model: &ModelSpec,
        layer: u32,
        aim: BalanceAim,
    ) -> Result<Router> {
        let prefix = format!("model.layers.{layer}.mlp.router");
        let bias = leaves.weights.entry(&format!("{prefix}.e_score_correction_bias"))?;
        let width = [bias.range.len() as i64];
        Ok(Router {
            bias: leaves.weights.view(&bias.range, &width, Precision::Single)?,
            classifier: leaves.weight(&format!("{prefix}.classifier.weight"), Precision::Single)?,
            spec: model.moe.clone(),
            aim,
        })
    }

    /// `[P, D]` (normed, compute type) → choices.
    pub(crate) fn forward(&self, x_pd: &Tensor, cell: &CellContext<'_>) -> Result<(Routed, Routing)> {
        let logits = x_pd.f_to_kind(Kind::Float)?.f_linear(&self.classifier, None::<&Tensor>)?;
        let probabilities = logits.f_softmax(-1, None::<Kind>)?;
        let routing = self.route(&probabilities)?;
        let dispatch = Dispatch::new(&routing, &self.spec, cell)?;

        let coefficients =
            loss_coefficients(&routing.counts, &self.spec, self.aim, cell.positions() as usize);
        let coefficients = Tensor::f_from_slice(&coefficients)?.f_to_device(cell.device)?;
        let mean = probabilities.f_mean_dim(&[0i64][..], false, None::<Kind>)?;
        let gates = probabilities.f_mul_scalar(self.spec.routed_scaling_factor)?;
        let routed = Routed {
            rows: x_pd.f_index_select(0, &dispatch.tokens)?,
            gates: gates.f_reshape([-1])?.f_index_select(0, &dispatch.gates)?,
            zero: self.zero_experts(x_pd, &gates, &dispatch)?,
            balance: mean.f_dot(&coefficients)?,
            router_z: logits.f_logsumexp(&[-1i64][..], false)?.f_square()?.f_mean(None::<Kind>)?,
            dispatch,
        };
        Ok((routed, routing))
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

    /// `(Σ of the chosen zero experts' gates) · x`.
    fn zero_experts(&self, x_pd: &Tensor, gates: &Tensor, dispatch: &Dispatch) -> Result<Option<Tensor>> {
        let Some(mask) = &dispatch.zero_mask else { return Ok(None) };
        let zero = i64::from(self.spec.zero_experts);
        let gates = gates.f_narrow(1, i64::from(self.spec.experts), zero)?.f_mul(mask)?;
        Ok(Some(gates.f_sum_dim_intlist(&[-1i64][..], true, None::<Kind>)?.f_mul(x_pd)?))
    }
}

impl Experts {
    /// The experts of `layer` that this rank holds.
    pub(crate) fn new(
        weights: &Weights,
        model: &ModelSpec,
        layer: u32,
        determinism: Determinism,
    ) -> Result<Experts> {
        let held = weights.layout.experts();
        let mut leaves = Leaves::new(weights);
        let (d, inner) = (i64::from(model.hidden_size), i64::from(model.moe.expert_hidden_size));
        let mut list = Vec::with_capacity(held.len());
        for index in held {
            let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{index}.{part}.weight");
            let gate_up = leaves.joined(&name("gate_proj"), &name("up_proj"), &[2 * inner, d])?;
            list.push(Expert { gate_up, down: leaves.weight(&name("down_proj"), Precision::Compute)? });
        }
        Ok(Experts { list, merges: determinism == Determinism::Topology, leaves: leaves.finish() })
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// What to compute for the messages of all ranks, in the order of ranks.
    pub(crate) fn work(&self, received: Vec<Message>) -> Result<Vec<Work>> {
        let of_one = |Message { counts, rows, gates }: Message| {
            if counts.len() != self.list.len() {
                return Err(ModelError::input(
                    "counts of expert rows",
                    format!("{} numbers", counts.len()),
                    format!("one for each of {} experts", self.list.len()),
                ));
            }
            let gates = gates.ok_or_else(|| {
                ModelError::input("expert exchange", "rows without gates", "a gate for each row")
            })?;
            Ok(Work { rows, gates, counts, merge: None })
        };
        let each = received.into_iter().map(of_one).collect::<Result<Vec<_>>>()?;
        if self.merges && each.len() > 1 { Ok(vec![Work::merged(&each)?]) } else { Ok(each) }
    }

    /// The gated outputs `[c, D]` (compute type).
    pub(crate) fn forward(&self, work: &Work) -> Result<Tensor> {
        let Work { rows, gates, counts, .. } = work;
        if work.is_empty() {
            return Ok(rows.f_zeros_like()?);
        }
        let kind = rows.f_kind()?;
        let inner = self.products(rows, counts, |expert| &expert.gate_up)?;
        let gated = swiglu(&inner)?.f_mul(&gates.f_unsqueeze(-1)?)?.f_to_kind(kind)?;
        self.products(&gated, counts, |expert| &expert.down)
    }

    /// One product per expert that has rows, over contiguous segments of `x`.
    fn products<'a>(
        &'a self,
        x: &Tensor,
        counts: &[u32],
        weight: impl Fn(&'a Expert) -> &'a Tensor,
    ) -> Result<Tensor> {
        let chosen = || counts.iter().zip(&self.list).filter(|(count, _)| **count > 0);
        let sizes: Vec<i64> = chosen().map(|(&count, _)| i64::from(count)).collect();
        let parts = x.f_split_with_sizes(&sizes, 0)?;
        let products = chosen()
            .zip(&parts)
            .map(|((_, expert), part)| Ok(part.f_linear(weight(expert), None::<&Tensor>)?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&products, 0)?)
    }
}

impl Work {
    /// That of several ranks at once: sorted by expert, then by rank.
    fn merged(each: &[Work]) -> Result<Work> {
        let experts = each.first().map_or(0, |work| work.counts.len());
        let sizes: Vec<i64> = each.iter().map(|work| work.rows.size()[0]).collect();
        let mut next: Vec<i64> =
            sizes.iter().scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
        let mut order: Vec<i64> = Vec::new();
        let mut counts = vec![0u32; experts];
        for (expert, total) in counts.iter_mut().enumerate() {
            for (work, next) in each.iter().zip(&mut next) {
                let count = work.counts[expert];
                order.extend(*next..*next + i64::from(count));
                *next += i64::from(count);
                *total += count;
            }
        }
        let mut places = vec![0i64; order.len()];
        for (place, &row) in (0..).zip(&order) {
            places[row as usize] = place;
        }
        let device = each[0].rows.device();
        let order = Tensor::f_from_slice(&order)?.f_to_device(device)?;
        let places = Tensor::f_from_slice(&places)?.f_to_device(device)?;
        let all = |part: fn(&Work) -> &Tensor| -> Result<Tensor> {
            let parts: Vec<&Tensor> = each.iter().map(part).collect();
            Ok(Tensor::f_cat(&parts, 0)?.f_index_select(0, &order)?)
        };
        let (rows, gates) = (all(|work| &work.rows)?, all(|work| &work.gates)?);
        Ok(Work { rows, gates, counts, merge: Some(Merge { sizes, order, places }) })
    }

    /// The same, cut off from what made it.
    pub(crate) fn on_leaves(self) -> Result<Work> {
        Ok(Work { rows: leaf_of(&self.rows)?, gates: leaf_of(&self.gates)?, ..self })
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.iter().all(|&count| count == 0)
    }

    /// The rows of the ranks' messages as these rows lie; takes as many messages as ranks are in them.
    pub(crate) fn arranged(&self, messages: &mut dyn Iterator<Item = Message>) -> Result<Tensor> {
        let ranks = self.merge.as_ref().map_or(1, |merge| merge.sizes.len());
        let parts: Vec<Tensor> = messages.take(ranks).map(|message| message.rows).collect();
        let joined = match parts.as_slice() {
            [only] => only.shallow_clone(),
            parts => Tensor::f_cat(parts, 0)?,
        };
        match &self.merge {
            Some(merge) if joined.size()[0] == merge.order.size()[0] => {
                Ok(joined.f_index_select(0, &merge.order)?)
            }
            _ => Ok(joined),
        }
    }

    /// Messages that answer each rank whose rows these are: values `[c, D]` and gates `[c]` as the rows lie.
    pub(crate) fn answers(&self, rows: &Tensor, gates: Option<&Tensor>) -> Result<Vec<Message>> {
        let Some(Merge { sizes, places, .. }) = &self.merge else {
            let (rows, gates) = (rows.shallow_clone(), gates.map(Tensor::shallow_clone));
            return Ok(vec![Message { counts: Vec::new(), rows, gates }]);
        };
        let split =
            |values: &Tensor| values.f_index_select(0, places)?.f_split_with_sizes(sizes.as_slice(), 0);
        let mut gates = gates.map(split).transpose()?.into_iter().flatten();
        let rows = split(rows)?.into_iter();
        Ok(rows.map(|rows| Message { counts: Vec::new(), rows, gates: gates.next() }).collect())
    }
}

/// A cell's FFN choices sorted by expert, then by token.
#[derive(Debug)]
pub(crate) struct Dispatch {
    /// Choices of each FFN expert.
    counts: Vec<u32>,
    /// `[choices]` i64: token of each.
    pub(crate) tokens: Tensor,
    /// `[choices]` i64: place of each one's gate in the flattened `[P, n + z]` gates.
    gates: Tensor,
    /// `[P, z]` f32: 1 where a zero expert was chosen; `None` where the model has none.
    zero_mask: Option<Tensor>,
}

impl Dispatch {
    fn new(routing: &Routing, spec: &MoeSpec, cell: &CellContext<'_>) -> Result<Dispatch> {
        let (ffn, zero) = (spec.experts as usize, spec.zero_experts as usize);
        let positions = cell.positions() as usize;
        let counts: Vec<u32> = routing.counts[..ffn].iter().map(|&count| count as u32).collect();
        let mut starts = Vec::with_capacity(ffn);
        let mut choices = 0usize;
        for &count in &counts {
            starts.push(choices);
            choices += count as usize;
        }
        let mut tokens = vec![0i64; choices];
        let mut gates = vec![0i64; choices];
        let mut zero_mask = vec![0.0f32; positions * zero];
        for (token, chosen) in routing.chosen_pk.chunks_exact(spec.top_k as usize).enumerate() {
            for &expert in chosen {
                let expert = expert as usize;
                if expert < ffn {
                    let place = starts[expert];
                    starts[expert] += 1;
                    tokens[place] = token as i64;
                    gates[place] = (token * (ffn + zero) + expert) as i64;
                } else {
                    zero_mask[token * zero + expert - ffn] = 1.0;
                }
            }
        }
        let zero_mask = match zero {
            0 => None,
            zero => Some(
                Tensor::f_from_slice(&zero_mask)?
                    .f_to_device(cell.device)?
                    .f_view([positions as i64, zero as i64])?,
            ),
        };
        Ok(Dispatch {
            counts,
            tokens: Tensor::f_from_slice(&tokens)?.f_to_device(cell.device)?,
            gates: Tensor::f_from_slice(&gates)?.f_to_device(cell.device)?,
            zero_mask,
        })
    }

    /// Choices of the experts of each of `ranks` ranks.
    fn sizes(&self, ranks: usize) -> Vec<i64> {
        let sum = |counts: &[u32]| counts.iter().map(|&count| i64::from(count)).sum();
        self.counts.chunks_exact(self.counts.len() / ranks).map(sum).collect()
    }

    /// A message to each of `ranks` ranks: their part of `rows` and `gates`, with counts where the receiver needs them.
    pub(crate) fn messages(
        &self,
        ranks: usize,
        rows: &Tensor,
        gates: Option<&Tensor>,
    ) -> Result<Vec<Message>> {
        let sizes = self.sizes(ranks);
        let rows = rows.f_split_with_sizes(&sizes, 0)?;
        let gates = gates.map(|gates| gates.f_split_with_sizes(&sizes, 0)).transpose()?;
        let each = self.counts.len() / ranks;
        Ok(rows
            .into_iter()
            .enumerate()
            .map(|(rank, rows)| Message {
                counts: self.counts[rank * each..(rank + 1) * each].to_vec(),
                rows,
                gates: gates.as_ref().map(|gates| gates[rank].shallow_clone()),
            })
            .collect())
    }

    /// The other way: the ranks' answers in the dispatch's order.
    ///
    /// # Errors
    /// Where a rank answers with another number of rows than it was sent.
    pub(crate) fn joined(&self, answers: &[Message]) -> Result<(Tensor, Option<Tensor>)> {
        for (rank, (answer, size)) in answers.iter().zip(self.sizes(answers.len())).enumerate() {
            let found = answer.rows.size()[0];
            if found != size {
                return Err(ModelError::input(
                    "expert exchange",
                    format!("{found} rows from expert rank {rank}"),
                    format!("the {size} rows that it was sent"),
                ));
            }
        }
        if let [only] = answers {
            return Ok((only.rows.shallow_clone(), only.gates.as_ref().map(Tensor::shallow_clone)));
        }
        let rows: Vec<&Tensor> = answers.iter().map(|answer| &answer.rows).collect();
        let gates: Vec<&Tensor> = answers.iter().filter_map(|answer| answer.gates.as_ref()).collect();
        let gates = (!gates.is_empty()).then(|| Tensor::f_cat(&gates, 0)).transpose()?;
        Ok((Tensor::f_cat(&rows, 0)?, gates))
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
