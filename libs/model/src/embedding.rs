//! Embedding sites: a word embedding, with the rows of C hashed n-gram tables projected onto it.
//!
//! ```text
//! e_p = ( E0[t_p] + Σ_i W_i · E_i[id_i] ) / (C + 1)        or / √(C + 1)
//! ```
//! The sum over tables is one product of the concatenated rows `[P, C·w]` with `[C·w, width]`. Rows and words are
//! gathered before the graph begins: they are its leaves, and their gradients are summed over duplicates by plain code
//! in position order.

use std::ops::Range;

use polygram_domain::ModelSpec;
use polygram_domain::model::{Amplification, Normalizer, Placement};
use tch::{Kind, Tensor, no_grad};

use crate::context::CellContext;
use crate::error::Result;
use crate::gradient::{BucketGradient, scatter_rows};
use crate::parameters::{Leaves, Precision};

/// Epsilon of the amplifying LayerNorm.
const LAYER_NORM_EPS: f64 = 1e-5;

/// One place where embeddings enter.
#[derive(Debug)]
pub(crate) struct Site {
    /// Number of this site's block in the row buffers.
    index: usize,
    width: i64,
    words: Words,
    tables: Option<Tables>,
    amplification: Amplification,
}

/// The word embedding `[V, width]`: its values without gradient, and where its gradient belongs.
#[derive(Debug)]
struct Words {
    values: Tensor,
    range: Range<usize>,
}

#[derive(Debug)]
struct Tables {
    /// `[C, width, w]`: the stacked projections.
    projections: Tensor,
    divisor: f64,
}

/// The leaves of one site for one cell.
#[derive(Debug)]
pub(crate) struct Gathered {
    site: usize,
    words_range: Range<usize>,
    /// `[P, width]` f32.
    words: Tensor,
    /// `[P, C·w]` f32.
    rows: Option<Tensor>,
}

impl Site {
    /// The input site: with tables for [`Placement::Input`], plain otherwise. Amplification applies here, where the
    /// embedding joins the residual stream.
    pub(crate) fn input(leaves: &mut Leaves<'_>, model: &ModelSpec) -> Result<Site> {
        let tables = (model.placement == Placement::Input).then_some("model.ngram_embeddings");
        let width = model.hidden_size;
        Site::new(leaves, model, SitePlan { words: "model.embed_tokens.weight", tables, width, index: 0 })
            .map(|site| Site { amplification: model.ngram.amplification, ..site })
    }

    /// The site inside the dense FFN called `prefix`.
    pub(crate) fn per_layer(
        leaves: &mut Leaves<'_>,
        model: &ModelSpec,
        prefix: &str,
        index: u32,
    ) -> Result<Site> {
        let ngram = format!("{prefix}.ngram_embeddings");
        let tables = (model.placement == Placement::PerLayerNgram).then_some(ngram.as_str());
        let words = format!("{prefix}.embed_tokens.weight");
        let plan = SitePlan { words: &words, tables, width: model.ffn_hidden_size, index: index as usize };
        Site::new(leaves, model, plan)
    }

    fn new(leaves: &mut Leaves<'_>, model: &ModelSpec, plan: SitePlan<'_>) -> Result<Site> {
        let width = i64::from(plan.width);
        let range = leaves.weights.entry(plan.words)?.range.clone();
        let values = leaves.weights.view(&range, &[i64::from(model.vocab_size), width], Precision::Single)?;
        let count = model.ngram.tables_per_site();
        let tables = match plan.tables {
            None => None,
            Some(prefix) => Some(Tables {
                projections: leaves.joined(
                    &format!("{prefix}.post_projs.0.weight"),
                    &format!("{prefix}.post_projs.{}.weight", count - 1),
                    &[i64::from(count), width, width / i64::from(count)],
                )?,
                divisor: match model.ngram.normalizer {
                    Normalizer::Mean => f64::from(count + 1),
                    Normalizer::Sqrt => f64::from(count + 1).sqrt(),
                },
            }),
        };
        Ok(Site {
            index: plan.index,
            width,
            words: Words { values, range },
            tables,
            amplification: Amplification::None,
        })
    }

    /// Copies the words' and tables' rows of every position into leaves.
    pub(crate) fn gather(&self, cell: &CellContext<'_>) -> Result<Gathered> {
        let leaf = |x: Tensor| x.f_detach()?.f_set_requires_grad(true);
        let words = no_grad(|| self.words.values.f_index_select(0, &cell.tokens))?;
        let rows = match (&self.tables, &cell.rows) {
            (Some(_), Some(rows)) => {
                let picked =
                    no_grad(|| rows.values.f_select(0, self.index as i64)?.f_index_select(0, &rows.inverse))?;
                Some(leaf(picked.f_view([cell.positions(), self.width])?)?)
            }
            _ => None,
        };
        Ok(Gathered { site: self.index, words_range: self.words.range.clone(), words: leaf(words)?, rows })
    }

    /// The site's output `[P, width]` in f32.
    pub(crate) fn combine(&self, gathered: &Gathered, cell: &CellContext<'_>) -> Result<Tensor> {
        let words = &gathered.words;
        let combined = match (&self.tables, &gathered.rows) {
            (Some(tables), Some(rows)) => {
                let stacked = tables.projections.f_permute([0, 2, 1])?.f_reshape([-1, self.width])?;
                let operand = cell.products.operand_in_graph(rows)?;
                let projected = operand.f_mm(&stacked)?.f_to_kind(Kind::Float)?;
                let mean = words.f_add(&projected)?.f_div_scalar(tables.divisor)?;
                match &cell.plain_words {
                    Some(mask) => words.f_where_self(mask, &mean)?,
                    None => mean,
                }
            }
            _ => words.shallow_clone(),
        };
        Ok(match self.amplification {
            Amplification::None => combined,
            Amplification::SqrtD => combined.f_mul_scalar((self.width as f64).sqrt())?,
            Amplification::LayerNorm => combined.f_layer_norm(
                [self.width],
                None::<&Tensor>,
                None::<&Tensor>,
                LAYER_NORM_EPS,
                false,
            )?,
        })
    }
}

struct SitePlan<'a> {
    words: &'a str,
    tables: Option<&'a str>,
    width: u32,
    index: usize,
}

impl Gathered {
    /// The leaves, words first.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.words).chain(&self.rows)
    }

    /// Sums the leaves' gradients, in the order of [`Gathered::leaves`], into the bucket's words and the row gradients.
    pub(crate) fn scatter(
        &self,
        gradients: &mut impl Iterator<Item = Tensor>,
        cell: &CellContext<'_>,
        dense: &mut BucketGradient,
        rows_suw: &mut [f32],
    ) -> Result<()> {
        let words = dense.part(&self.words_range);
        words.fill(0.0);
        if let Some(gradient) = gradients.next() {
            scatter_rows(&gradient, cell.token_rows, words)?;
        }
        if let (Some(_), Some(rows)) = (&self.rows, &cell.rows)
            && let Some(gradient) = gradients.next()
        {
            let block = rows.unique * rows.width;
            let sums = &mut rows_suw[self.site * block..(self.site + 1) * block];
            scatter_rows(&gradient, rows.inverse_rows, sums)?;
        }
        Ok(())
    }
}
