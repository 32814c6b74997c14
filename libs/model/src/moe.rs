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

use crate::balance::{AuxiliaryScale, BalanceAim, loss_coefficients};
use crate::context::CellContext;
use crate::error::{ModelError, Result};
use crate::experts::Message;
use crate::ffn::split;
use crate::gradient::BucketGradient;
use crate::kernels::{Gated, Owners, Products, combine, row_products, silu_gated, silu_gated_backward};
use crate::linear::Linear;
use crate::options::Options;
use crate::parameters::{Precision, Weights};
use crate::segment::{backward, leaf_of, required};

/// Chooses experts.
#[derive(Debug)]
pub(crate) struct Router {
    classifier: Linear,
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
    products: Products,
}

#[derive(Debug)]
struct Expert {
    /// `[gate; up]`, `[2·inner, D]`.
    gate_up: Linear,
    /// `[D, inner]`.
    down: Linear,
}

/// What backward needs of the experts' forward pass.
#[derive(Debug)]
pub(crate) struct ExpertsPass {
    /// `[c, 2·inner]`.
    gate_up: Tensor,
    /// `[c, inner]`, an operand of products.
    gated: Tensor,
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

/// What the router made of one cell: a small graph that begins at its logits.
pub(crate) struct Routed {
    /// `[P, n + z]`: the leaf.
    logits: Tensor,
    /// `[choices]` f32: gates of the FFN choices, in the dispatch's order.
    pub(crate) gates: Tensor,
    /// `[P, 1]` f32: what multiplies a token for its zero experts; `None` where the model has none.
    zero: Option<Tensor>,
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
    pub(crate) fn new(weights: &Weights, model: &ModelSpec, layer: u32, aim: BalanceAim) -> Result<Router> {
        let prefix = format!("model.layers.{layer}.mlp.router");
        let bias = weights.entry(&format!("{prefix}.e_score_correction_bias"))?;
        let width = [bias.range.len() as i64];
        Ok(Router {
            bias: weights.view(&bias.range, &width, Precision::Single)?,
            classifier: Linear::single(weights, &format!("{prefix}.classifier.weight"))?,
            spec: model.moe.clone(),
            aim,
        })
    }

    /// `[P, D]`, an operand of products → choices.
    pub(crate) fn forward(&self, x_pd: &Tensor, cell: &CellContext<'_>) -> Result<(Routed, Routing)> {
        let logits = leaf_of(&self.classifier.forward(&x_pd.f_to_kind(Kind::Float)?)?)?;
        let probabilities = logits.f_softmax(-1, None::<Kind>)?;
        let routing = self.route(&probabilities)?;
        let dispatch = Dispatch::new(&routing, &self.spec, cell)?;

        let coefficients =
            loss_coefficients(&routing.counts, &self.spec, self.aim, cell.positions() as usize);
        let coefficients = Tensor::f_from_slice(&coefficients)?.f_to_device(cell.device)?;
        let mean = probabilities.f_mean_dim(&[0i64][..], false, None::<Kind>)?;
        let gates = probabilities.f_mul_scalar(self.spec.routed_scaling_factor)?;
        let routed = Routed {
            gates: gates.f_reshape([-1])?.f_index_select(0, &dispatch.gates)?,
            zero: self.zero_gates(&gates, &dispatch)?,
            balance: mean.f_dot(&coefficients)?,
            router_z: logits.f_logsumexp(&[-1i64][..], false)?.f_square()?.f_mean(None::<Kind>)?,
            logits,
            dispatch,
        };
        Ok((routed, routing))
    }

    /// From the gradients by the layer's output `[P, D]` f32, and by the dispatched rows and their gates: adds what the
    /// router's input `x_pd` gets to `by_x`, `[P, D]` f32.
    pub(crate) fn backward(
        &self,
        (x_pd, routed): (&Tensor, &Routed),
        by_output: &Tensor,
        (by_rows, by_gates): (&Tensor, Option<Tensor>),
        scale: AuxiliaryScale,
        (by_x, dense): (&mut Tensor, &mut BucketGradient),
    ) -> Result<()> {
        let mut outputs = Vec::with_capacity(2);
        if let Some(by_gates) = by_gates {
            outputs.push((&routed.gates, by_gates));
        }
        let detached = routed.zero.as_ref().map(Tensor::f_detach).transpose()?;
        if let Some(zero) = &routed.zero {
            outputs.push((zero, row_products(by_output, x_pd)?));
        }
        let terms = [(&routed.balance, scale.balance), (&routed.router_z, scale.router_z)];
        let scaled = detached.as_ref().map(|zero| (zero, by_output));
        combine(by_x, scaled, by_rows, &routed.dispatch.owners)?;
        if outputs.is_empty() && terms.iter().all(|(_, coefficient)| *coefficient == 0.0) {
            self.classifier.no_gradient(dense);
            return Ok(());
        }
        let by_logits = required(backward(&outputs, &terms, (&[&routed.logits], &[], &[]))?.next())?;
        self.classifier.by_input_onto(by_x, &by_logits)?;
        self.classifier.by_weight(&by_logits, &x_pd.f_to_kind(Kind::Float)?, dense)
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

    /// Sums of the chosen zero experts' gates, `[P, 1]`.
    fn zero_gates(&self, gates: &Tensor, dispatch: &Dispatch) -> Result<Option<Tensor>> {
        let Some(mask) = &dispatch.zero_mask else { return Ok(None) };
        let zero = i64::from(self.spec.zero_experts);
        let gates = gates.f_narrow(1, i64::from(self.spec.experts), zero)?.f_mul(mask)?;
        Ok(Some(gates.f_sum_dim_intlist(&[-1i64][..], true, None::<Kind>)?))
    }
}

impl Routed {
    /// Adds to `output` `[P, D]` f32 what all experts give: `mixed` `[choices, D]` are the FFN experts' outputs, `x_pd` is
    /// the router's input, which zero experts give back.
    pub(crate) fn add_experts(&self, output: &mut Tensor, mixed: &Tensor, x_pd: &Tensor) -> Result<()> {
        let zero = self.zero.as_ref().map(Tensor::f_detach).transpose()?;
        combine(output, zero.as_ref().map(|zero| (zero, x_pd)), mixed, &self.dispatch.owners)
    }
}

impl Experts {
    /// The experts of `layer` that this rank holds.
    pub(crate) fn new(weights: &Weights, layer: u32, options: &Options) -> Result<Experts> {
        let held = weights.layout.experts();
        let mut list = Vec::with_capacity(held.len());
        for index in held {
            let name = |part: &str| format!("model.layers.{layer}.mlp.experts.{index}.{part}.weight");
            let gate_up = Linear::pair(weights, &name("gate_proj"), &name("up_proj"))?;
            list.push(Expert { gate_up, down: Linear::new(weights, &name("down_proj"))? });
        }
        let merges = options.determinism == Determinism::Topology;
        Ok(Experts { list, merges, products: options.products })
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

    /// The gated outputs `[c, D]`, of the operands' type.
    pub(crate) fn forward(&self, work: &Work) -> Result<(Tensor, ExpertsPass)> {
        let (width, inner) = (work.rows.size()[1], self.inner());
        let gate_up = work.empty(2 * inner)?;
        self.segments(work, |expert, own| expert.gate_up.forward_into(&own(&work.rows)?, &own(&gate_up)?))?;
        let (gate, up) = split(&gate_up)?;
        let gated = silu_gated(&Gated { gate: &gate, up: &up, scale: Some(&work.gates) }, self.products)?;
        let mixed = work.empty(width)?;
        self.segments(work, |expert, own| expert.down.forward_into(&own(&gated)?, &own(&mixed)?))?;
        Ok((mixed, ExpertsPass { gate_up, gated }))
    }

    /// From the gradient by the outputs, an operand of products: those by the rows `[c, D]` and by the gates `[c]`; those by
    /// the weights go to their places.
    pub(crate) fn backward(
        &self,
        work: &Work,
        pass: ExpertsPass,
        by: &Tensor,
        dense: &mut BucketGradient,
    ) -> Result<(Tensor, Tensor)> {
        let ExpertsPass { gate_up, gated } = pass;
        for (expert, _) in self.list.iter().zip(&work.counts).filter(|(_, count)| **count == 0) {
            expert.gate_up.no_gradient(dense);
            expert.down.no_gradient(dense);
        }
        let by_gated = gated.f_empty_like()?;
        self.segments(work, |expert, own| {
            let by = own(by)?;
            expert.down.by_weight(&by, &own(&gated)?, dense)?;
            expert.down.by_input_into(&by, &own(&by_gated)?)
        })?;
        drop(gated);
        let by_gate_up = gate_up.f_empty_like()?;
        let ((gate, up), (by_gate, by_up)) = (split(&gate_up)?, split(&by_gate_up)?);
        let gated = Gated { gate: &gate, up: &up, scale: Some(&work.gates) };
        let by_gates = silu_gated_backward(&gated, &by_gated, (&by_gate, &by_up), self.products)?;
        let by_rows = work.rows.f_empty_like()?;
        self.segments(work, |expert, own| {
            let by = own(&by_gate_up)?;
            expert.gate_up.by_weight(&by, &own(&work.rows)?, dense)?;
            expert.gate_up.by_input_into(&by, &own(&by_rows)?)
        })?;
        Ok((by_rows, required(by_gates)?))
    }

    fn inner(&self) -> i64 {
        self.list.first().map_or(0, |expert| expert.down.inputs())
    }

    /// Calls `product` for every expert that has rows, with what takes its own rows of a tensor.
    fn segments(
        &self,
        work: &Work,
        mut product: impl FnMut(&Expert, &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        for (expert, &count) in self.list.iter().zip(&work.counts) {
            let len = i64::from(count);
            if len > 0 {
                product(expert, &|x: &Tensor| Ok(x.f_narrow(0, start, len)?))?;
            }
            start += len;
        }
        Ok(())
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

    /// Room for a row of `width` values for each row, of the operands' type.
    fn empty(&self, width: i64) -> Result<Tensor> {
        Ok(Tensor::f_empty([self.rows.size()[0], width], (self.rows.f_kind()?, self.rows.device()))?)
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
    /// Which choice is whose.
    pub(crate) owners: Owners,
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
        let (mut first, mut rows) = (vec![0u32; positions + 1], vec![0u32; choices]);
        for &token in &tokens {
            first[token as usize + 1] += 1;
        }
        for token in 0..positions {
            first[token + 1] += first[token];
        }
        let mut next = first.clone();
        for (row, &token) in (0..).zip(&tokens) {
            rows[next[token as usize] as usize] = row;
            next[token as usize] += 1;
        }
        let tokens = Tensor::f_from_slice(&tokens)?.f_to_device(cell.device)?;
        Ok(Dispatch {
            counts,
            owners: Owners { tokens, starts: first, rows },
            gates: Tensor::f_from_slice(&gates)?.f_to_device(cell.device)?,
            zero_mask,
        })
    }

    /// The rows of `x` `[P, D]` that travel: `[choices, D]`.
    pub(crate) fn rows_of(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_index_select(0, &self.owners.tokens)?)
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
