//! One cell's gradients as plain buffers, and the fold of cells along the fixed tree.

use polygram_domain::sum_tree::SumTree;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::parameters::Leaf;

/// What backward of one cell fills: the flat dense gradient, and the gradient by unique rows.
#[derive(Debug)]
pub(crate) struct CellGradient {
    pub(crate) flat: Vec<f32>,
    pub(crate) rows_suw: Vec<f32>,
}

/// Folds the cells' flat gradients, and keeps the buffers of those that were added for the next ones.
#[derive(Debug)]
pub(crate) struct GradientFold {
    len: usize,
    tree: SumTree<Vec<f32>>,
    free: Vec<Vec<f32>>,
}

impl GradientFold {
    pub(crate) fn new(len: usize) -> GradientFold {
        GradientFold { len, tree: SumTree::default(), free: Vec::new() }
    }

    /// A buffer of any values: whoever takes it writes every element.
    pub(crate) fn buffer(&mut self) -> Vec<f32> {
        self.free.pop().unwrap_or_else(|| vec![0.0; self.len])
    }

    /// Adds the next cell's gradient.
    pub(crate) fn push(&mut self, gradient: Vec<f32>) {
        let free = &mut self.free;
        self.tree.push(gradient, |left, right| add(left, right, free));
    }

    /// The sum over the cells pushed since the last call; zeros where there were none.
    pub(crate) fn take(&mut self) -> Vec<f32> {
        let free = &mut self.free;
        let sum = std::mem::take(&mut self.tree).finish(|left, right| add(left, right, free));
        sum.unwrap_or_else(|| {
            let mut zeros = self.buffer();
            zeros.fill(0.0);
            zeros
        })
    }

    /// Takes a buffer back that [`GradientFold::take`] gave.
    pub(crate) fn recycle(&mut self, buffer: Vec<f32>) {
        if buffer.len() == self.len {
            self.free.push(buffer);
        }
    }
}

fn add(mut left: Vec<f32>, right: Vec<f32>, free: &mut Vec<Vec<f32>>) -> Vec<f32> {
    for (sum, value) in left.iter_mut().zip(&right) {
        *sum += value;
    }
    free.push(right);
    left
}

/// Writes the gradients of `leaves` to their places in the flat gradient. A leaf that took no part has zeros.
pub(crate) fn store(
    leaves: &[Leaf],
    gradients: &mut impl Iterator<Item = Tensor>,
    flat: &mut [f32],
) -> Result<()> {
    for (leaf, gradient) in leaves.iter().zip(gradients) {
        let target = &mut flat[leaf.range.clone()];
        if gradient.defined() {
            gradient.f_to_kind(Kind::Float)?.f_copy_data(target, leaf.range.len())?;
        } else {
            target.fill(0.0);
        }
    }
    Ok(())
}

/// Adds the rows of `gradient` (any shape of `targets.len()` rows) to `sums`: row i to row `targets[i]`, in order of i,
/// in f32.
pub(crate) fn scatter_rows(gradient: &Tensor, targets: &[u32], sums: &mut [f32]) -> Result<()> {
    if !gradient.defined() || targets.is_empty() {
        return Ok(());
    }
    let mut values = vec![0.0f32; gradient.numel()];
    gradient.f_to_kind(Kind::Float)?.f_copy_data(&mut values, gradient.numel())?;
    let width = values.len() / targets.len();
    for (row, &target) in values.chunks_exact(width.max(1)).zip(targets) {
        let start = target as usize * width;
        let sum = sums.get_mut(start..start + width).ok_or_else(|| {
            ModelError::input("row gradient", format!("row {target}"), "a row of the buffer")
        })?;
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    Ok(())
}
