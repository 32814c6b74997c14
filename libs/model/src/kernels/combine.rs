//! What experts give back to their tokens.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::elementary::sum;
use super::parallel::{for_blocks, rows_per_block};
use super::rows::Rows;
use super::{are_plain, vectorized};
use crate::error::Result;

/// Which rows belong to which token, both ways.
#[derive(Debug)]
pub(crate) struct Owners {
    /// `[c]` i64, on the device: the token of each row.
    pub(crate) tokens: Tensor,
    /// Where each token's rows begin in `rows`, and the end.
    pub(crate) starts: Vec<u32>,
    /// Each token's rows, ascending.
    pub(crate) rows: Vec<u32>,
}

/// `target += gate·x + Σ rows of the token`, for `target` and `x` `[P, D]`, `gate` `[P, 1]` f32 and `rows` `[c, D]`; a token's rows
/// are added in order.
pub(crate) fn combine(
    target: &mut Tensor,
    scaled: Option<(&Tensor, &Tensor)>,
    rows: &Tensor,
    owners: &Owners,
) -> Result<()> {
    let gate_and_x = scaled.into_iter().flat_map(|(gate, x)| [gate, x]);
    let all: Vec<&Tensor> = gate_and_x.chain([&*target, rows]).collect();
    if !are_plain(&all) {
        if let Some((gate, x)) = scaled {
            drop(target.f_add_(&gate.f_mul(&x.f_to_kind(Kind::Float)?)?)?);
        }
        drop(target.f_index_add_(0, &owners.tokens, &rows.f_to_kind(Kind::Float)?)?);
        return Ok(());
    }
    let task = Task {
        target: Rows::of(target)?,
        scaled: match scaled {
            Some((gate, x)) => Some((Rows::of(gate)?, Rows::of(x)?)),
            None => None,
        },
        rows: Rows::of(rows)?,
        starts: &owners.starts,
        of_tokens: &owners.rows,
    };
    for_blocks(task.target.count(), rows_per_block(task.target.width()), |block| combine_block(block, &task));
    Ok(())
}

/// The target is written here alone, and every row is in one block.
struct Task<'a> {
    target: Rows<'a>,
    scaled: Option<(Rows<'a>, Rows<'a>)>,
    rows: Rows<'a>,
    /// As in [`Owners`].
    starts: &'a [u32],
    of_tokens: &'a [u32],
}

vectorized! {
    fn combine_block(block: Range<usize>, task: &Task<'_>) {
        for token in block {
            // SAFETY: as the task says.
            let target = unsafe { task.target.row_mut(token) };
            if let Some((gate, x)) = task.scaled {
                let gate = gate.row(token)[0];
                for (target, &x) in target.iter_mut().zip(x.row(token)) {
                    *target += gate * x;
                }
            }
            let own = task.starts[token] as usize..task.starts[token + 1] as usize;
            for &row in &task.of_tokens[own] {
                for (target, &value) in target.iter_mut().zip(task.rows.row(row as usize)) {
                    *target += value;
                }
            }
        }
    }
}

/// Inner products of the rows of `x` and `y`, `[P, D]` → `[P, 1]` f32.
pub(crate) fn row_products(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !are_plain(&[x, y]) {
        let product = x.f_to_kind(Kind::Float)?.f_mul(&y.f_to_kind(Kind::Float)?)?;
        return Ok(product.f_sum_dim_intlist(&[-1i64][..], true, None::<Kind>)?);
    }
    let result = Tensor::f_empty([x.size()[0], 1], (Kind::Float, x.device()))?;
    let (x, y, to) = (Rows::of(x)?, Rows::of(y)?, Rows::of(&result)?);
    for_blocks(x.count(), rows_per_block(x.width()), |block| products_block(block, x, y, to));
    Ok(result)
}

vectorized! {
    /// `to` is new, and every row is in one block.
    fn products_block(block: Range<usize>, x: Rows<'_>, y: Rows<'_>, to: Rows<'_>) {
        let width = x.width();
        for index in block {
            let (x, y) = (&x.row(index)[..width], &y.row(index)[..width]);
            // SAFETY: as above.
            let to = unsafe { to.row_mut(index) };
            to[0] = sum(width, |i| x[i] * y[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn both_forms_agree() {
        tch::manual_seed(8);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let tokens = [2i64, 0, 2, 1, 2, 0];
        let (starts, rows) = (vec![0, 2, 3, 6, 6], vec![1, 5, 3, 0, 2, 4]);
        let owners = Owners { tokens: Tensor::from_slice(&tokens), starts, rows };
        let (target, gate, x, values) =
            (random(&[4, 19]), random(&[4, 1]), random(&[4, 19]), random(&[6, 19]));
        let wanted = (&target + &gate * &x).index_add(0, &owners.tokens, &values);
        let mut found = target.copy();
        combine(&mut found, Some((&gate, &x)), &values, &owners).unwrap();
        assert!((&found - &wanted).abs().max().double_value(&[]) < 1e-5);
        let mut other = target.copy();
        combine(&mut other, Some((&gate, &x)), &values.to_kind(Kind::BFloat16), &owners).unwrap();
        assert!((&other - &wanted).abs().max().double_value(&[]) < 0.1);
        let products = row_products(&target, &x).unwrap();
        let wanted = (&target * &x).sum_dim_intlist(&[-1i64][..], true, None::<Kind>);
        assert!((products - wanted).abs().max().double_value(&[]) < 1e-5);
    }
}
