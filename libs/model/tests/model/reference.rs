//! The model in f64 and plain loops, written from docs/model.md alone: what the placement tests differentiate
//! numerically. Slow and simple on purpose.

use std::collections::HashMap;

use polygram_domain::ModelSpec;
use polygram_domain::batch::IGNORED_TARGET;
use polygram_domain::model::{Amplification, Normalizer, Placement};
use polygram_domain::run_spec::BalanceSpec;

type Matrix = Vec<Vec<f64>>;

/// One cell for the reference: all it needs beside the parameters.
pub(crate) struct Reference<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) balance: &'a BalanceSpec,
    pub(crate) cell: &'a crate::fixture::TestCell,
    pub(crate) global_targets: f64,
}

/// Dense parameters by name, and rows `[S, U, w]`.
#[derive(Clone)]
pub(crate) struct Parameters {
    pub(crate) dense: HashMap<String, Vec<f64>>,
    pub(crate) rows_suw: Vec<f64>,
}

impl Reference<'_> {
    /// (Σ nll, objective).
    pub(crate) fn loss(&self, parameters: &Parameters) -> (f64, f64) {
        let (spec, batch) = (self.spec, &self.cell.batch);
        let mut x = self.site(parameters, "model", None);
        let share = batch.target_count() as f64 / self.global_targets;
        let mut objective = 0.0;
        for layer in 0..spec.num_layers {
            let prefix = format!("model.layers.{layer}");
            let mut shortcut = Vec::new();
            for half in 0..2u32 {
                let normed =
                    self.norm(parameters, &format!("{prefix}.input_layernorm.{half}"), &x, spec.rms_norm_eps);
                add(&mut x, &self.attention(parameters, &format!("{prefix}.self_attn.{half}"), &normed));
                let name = format!("{prefix}.post_attention_layernorm.{half}");
                let h = self.norm(parameters, &name, &x, spec.rms_norm_eps);
                if half == 0 {
                    let (output, auxiliary) = self.mixture(parameters, &format!("{prefix}.mlp"), &h);
                    shortcut = output;
                    objective += share * auxiliary;
                }
                add(&mut x, &self.ffn(parameters, &format!("{prefix}.mlps.{half}"), &h, 2 * layer + half));
            }
            add(&mut x, &shortcut);
        }
        let hidden_z = mean(x.iter().map(|row| log_sum_exp(row.iter().map(|v| v.abs())).powi(2)));
        objective += share * self.balance.hidden_z_coefficient * hidden_z;
        let normed = self.norm(parameters, "model.norm", &x, spec.rms_norm_eps);
        let logits = product(&normed, &parameters.dense["lm_head.weight"]);
        let mut sum = 0.0;
        for (row, &target) in logits.iter().zip(batch.targets_bt()) {
            if target != IGNORED_TARGET {
                sum += log_sum_exp(row.iter().copied()) - row[target as usize];
            }
        }
        (sum, objective + sum / self.global_targets)
    }

    /// An embedding site: the input's, or FFN number `per_layer`'s.
    fn site(&self, parameters: &Parameters, prefix: &str, per_layer: Option<u32>) -> Matrix {
        let (spec, ngram) = (self.spec, &self.spec.ngram);
        let width = if per_layer.is_some() { spec.ffn_hidden_size } else { spec.hidden_size } as usize;
        let tables = ngram.tables_per_site() as usize;
        let has_tables = match spec.placement {
            Placement::Input => per_layer.is_none(),
            Placement::PerLayer => false,
            Placement::PerLayerNgram => per_layer.is_some(),
        };
        let words = &parameters.dense[&format!("{prefix}.embed_tokens.weight")];
        let unique = self.cell.unique.rows.len();
        let row_width = width / tables;
        let mut out = Vec::new();
        for (position, &token) in self.cell.batch.tokens_bt().iter().enumerate() {
            let mut e = words[token as usize * width..][..width].to_vec();
            if has_tables && !ngram.ignored_tokens.contains(&token) {
                for table in 0..tables {
                    let projection =
                        &parameters.dense[&format!("{prefix}.ngram_embeddings.post_projs.{table}.weight")];
                    let index = self.cell.unique.inverse_pc[position * tables + table] as usize;
                    let start = (per_layer.unwrap_or(0) as usize * unique + index) * row_width;
                    let row = &parameters.rows_suw[start..start + row_width];
                    for (value, weights) in e.iter_mut().zip(projection.chunks(row_width)) {
                        *value += dot(weights, row);
                    }
                }
                let count = tables as f64 + 1.0;
                let divisor = if ngram.normalizer == Normalizer::Mean { count } else { count.sqrt() };
                e.iter_mut().for_each(|value| *value /= divisor);
            }
            if per_layer.is_none() {
                match ngram.amplification {
                    Amplification::None => {}
                    Amplification::SqrtD => e.iter_mut().for_each(|value| *value *= (width as f64).sqrt()),
                    Amplification::LayerNorm => {
                        let centre = mean(e.iter().copied());
                        let variance = mean(e.iter().map(|value| (value - centre).powi(2)));
                        e.iter_mut().for_each(|value| *value = (*value - centre) / (variance + 1e-5).sqrt());
                    }
                }
            }
            out.push(e);
        }
        out
    }

    fn norm(&self, parameters: &Parameters, name: &str, x: &Matrix, eps: f64) -> Matrix {
        let weight = &parameters.dense[&format!("{name}.weight")];
        x.iter()
            .map(|row| {
                let root = (mean(row.iter().map(|v| v * v)) + eps).sqrt();
                row.iter().zip(weight).map(|(v, w)| v / root * w).collect()
            })
            .collect()
    }

    fn attention(&self, parameters: &Parameters, prefix: &str, x: &Matrix) -> Matrix {
        let a = &self.spec.attention;
        let weight = |name: &str| &parameters.dense[&format!("{prefix}.{name}.weight")];
        let (heads, nope, rope) =
            (a.heads as usize, a.qk_nope_head_dim as usize, a.qk_rope_head_dim as usize);
        let (value, rank) = (a.v_head_dim as usize, a.kv_lora_rank as usize);
        let d = f64::from(self.spec.hidden_size);
        let (frequencies, amplitude, softmax) = self.frequencies();
        let rotate = |values: &[f64], position: usize| -> Vec<f64> {
            let mut out = vec![0.0; rope];
            for (pair, frequency) in frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                let (cos, sin) = (angle.cos() * amplitude, angle.sin() * amplitude);
                let (even, odd) = (values[2 * pair], values[2 * pair + 1]);
                out[2 * pair] = even * cos - odd * sin;
                out[2 * pair + 1] = odd * cos + even * sin;
            }
            out
        };
        let latent_q = product(x, weight("q_a_proj"));
        let latent_q = self.norm(parameters, &format!("{prefix}.q_a_layernorm"), &latent_q, 1e-6);
        let mut q = product(&latent_q, weight("q_b_proj"));
        q.iter_mut().flatten().for_each(|v| *v *= (d / f64::from(a.q_lora_rank)).sqrt());
        let latent = product(x, weight("kv_a_proj_with_mqa"));
        let c: Matrix = latent.iter().map(|row| row[..rank].to_vec()).collect();
        let mut c = self.norm(parameters, &format!("{prefix}.kv_a_layernorm"), &c, 1e-6);
        c.iter_mut().flatten().for_each(|v| *v *= (d / f64::from(a.kv_lora_rank)).sqrt());
        let kv = product(&c, weight("kv_b_proj"));
        let scale = ((nope + rope) as f64).powf(-0.5) * softmax;
        let seq_len = self.cell.batch.seq_len();
        let mut mixed = Vec::new();
        for (at, queries) in q.iter().enumerate() {
            let (position, start) = (at % seq_len, at - at % seq_len);
            let mut row = Vec::new();
            for head in 0..heads {
                let query = &queries[head * (nope + rope)..][..nope + rope];
                let rotated = rotate(&query[nope..], position);
                let scores: Vec<f64> = (start..=at)
                    .map(|other| {
                        let key = &kv[other][head * (nope + value)..][..nope];
                        let shared = rotate(&latent[other][rank..], other - start);
                        (dot(&query[..nope], key) + dot(&rotated, &shared)) * scale
                    })
                    .collect();
                let total = log_sum_exp(scores.iter().copied());
                let mut sum = vec![0.0; value];
                for (other, score) in (start..).zip(scores) {
                    let values = &kv[other][head * (nope + value) + nope..][..value];
                    sum.iter_mut().zip(values).for_each(|(s, v)| *s += (score - total).exp() * v);
                }
                row.extend(sum);
            }
            mixed.push(row);
        }
        product(&mixed, weight("o_proj"))
    }

    /// (inverse frequencies, amplitude of cos and sin, softmax multiplier).
    fn frequencies(&self) -> (Vec<f64>, f64, f64) {
        let a = &self.spec.attention;
        let dim = f64::from(a.qk_rope_head_dim);
        let plain: Vec<f64> =
            (0..a.qk_rope_head_dim / 2).map(|j| a.rope_theta.powf(-2.0 * f64::from(j) / dim)).collect();
        let Some(yarn) = &a.yarn else { return (plain, 1.0, 1.0) };
        let original = f64::from(yarn.original_max_position_embeddings);
        let corrected =
            |r: f64| dim * (original / (2.0 * std::f64::consts::PI * r)).ln() / (2.0 * a.rope_theta.ln());
        let (low, high) = (corrected(yarn.beta_fast), corrected(yarn.beta_slow));
        let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let scaled = plain.iter().enumerate().map(|(j, inverse)| {
            let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
            inverse * (ramp / yarn.factor + 1.0 - ramp)
        });
        let m = |a: f64| 0.1 * a * yarn.factor.ln() + 1.0;
        let both = yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0;
        let ratio = if both { m(yarn.mscale) / m(yarn.mscale_all_dim) } else { m(1.0) };
        (scaled.collect(), yarn.attention_factor.unwrap_or(ratio), m(yarn.mscale_all_dim).powi(2))
    }

    fn ffn(&self, parameters: &Parameters, prefix: &str, x: &Matrix, site: u32) -> Matrix {
        let weight = |name: &str| &parameters.dense[&format!("{prefix}.{name}.weight")];
        let mut inner = product(x, weight("gate_proj"));
        let other = match self.spec.placement {
            Placement::Input => product(x, weight("up_proj")),
            _ => self.site(parameters, prefix, Some(site)),
        };
        gate(&mut inner, &other);
        product(&inner, weight("down_proj"))
    }

    /// (output, auxiliary losses times their coefficients).
    fn mixture(&self, parameters: &Parameters, prefix: &str, x: &Matrix) -> (Matrix, f64) {
        let moe = &self.spec.moe;
        let (n, z, k) = (moe.experts as usize, moe.zero_experts as usize, moe.top_k as usize);
        let weight = |name: String| &parameters.dense[&format!("{prefix}.{name}")];
        let logits = product(x, weight("router.classifier.weight".into()));
        let bias = weight("router.e_score_correction_bias".into());
        let (mut out, mut hits, mut mass) = (Vec::new(), vec![0.0; n + z], vec![0.0; n + z]);
        for (row, logits) in x.iter().zip(&logits) {
            let total = log_sum_exp(logits.iter().copied());
            let p: Vec<f64> = logits.iter().map(|l| (l - total).exp()).collect();
            let mut order: Vec<usize> = (0..n + z).collect();
            order.sort_by(|&i, &j| (p[j] + bias[j]).total_cmp(&(p[i] + bias[i])));
            let mut y = vec![0.0; row.len()];
            for &expert in &order[..k] {
                hits[expert] += 1.0;
                let mixed = if expert < n {
                    let one = vec![row.clone()];
                    let mut inner = product(&one, weight(format!("experts.{expert}.gate_proj.weight")));
                    gate(&mut inner, &product(&one, weight(format!("experts.{expert}.up_proj.weight"))));
                    product(&inner, weight(format!("experts.{expert}.down_proj.weight"))).remove(0)
                } else {
                    row.clone()
                };
                let g = p[expert] * moe.routed_scaling_factor;
                y.iter_mut().zip(mixed).for_each(|(y, m)| *y += g * m);
            }
            mass.iter_mut().zip(&p).for_each(|(m, p)| *m += p);
            out.push(y);
        }
        let positions = x.len() as f64;
        let groups = self.balance.loss_groups as usize;
        let target = f64::from(self.balance.target_top_k);
        let of =
            |range: std::ops::Range<usize>, values: &[f64]| values[range].iter().sum::<f64>() / positions;
        let mut balance = 0.0;
        for group in 0..groups {
            let range = group * n / groups..(group + 1) * n / groups;
            balance += groups as f64 / target * of(range.clone(), &hits) * of(range, &mass);
        }
        if z > 0 {
            balance += of(n..n + z, &hits) / (k as f64 - target) * of(n..n + z, &mass);
        }
        let router_z = mean(logits.iter().map(|row| log_sum_exp(row.iter().copied()).powi(2)));
        (out, self.balance.loss_coefficient * balance + self.balance.router_z_coefficient * router_z)
    }
}

/// x · Wᵀ for `[out, in]` weights.
fn product(x: &Matrix, weight: &[f64]) -> Matrix {
    x.iter().map(|row| weight.chunks(row.len()).map(|w| dot(w, row)).collect()).collect()
}

fn gate(inner: &mut Matrix, other: &Matrix) {
    for (g, u) in inner.iter_mut().flatten().zip(other.iter().flatten()) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

fn add(x: &mut Matrix, y: &Matrix) {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    values.for_each(|value| {
        sum += value;
        count += 1.0;
    });
    sum / count
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = values.clone().fold(f64::NEG_INFINITY, f64::max);
    top + values.map(|v| (v - top).exp()).sum::<f64>().ln()
}
