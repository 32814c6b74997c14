//! Gradients as plain buffers, one for each bucket, and the fold of cells along the fixed tree.

use std::ops::Range;

use polygram_domain::RankLayout;
use polygram_domain::rank_layout::Bucket;
use polygram_domain::run_spec::Determinism;
use polygram_domain::sum_tree::SumTree;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::parameters::Leaf;

/// Takes the finished sum of a bucket: its index and its values.
pub type TakeBucket<'a> = dyn FnMut(usize, Vec<f32>) + 'a;

/// Folds the cells' gradients of every bucket, and keeps the buffers of those that were added for the next ones.
///
/// A bucket of experts has one sum for each rank whose tokens they compute; these are joined in the order of ranks, as
/// the tree over all cells does.
#[derive(Debug)]
pub(crate) struct GradientFold {
    buckets: Vec<BucketFold>,
}

#[derive(Debug)]
struct BucketFold {
    range: Range<usize>,
    /// Elements of it that no gradient reaches: the selection biases.
    untrained: Vec<Range<usize>>,
    sums: Vec<CellSum>,
    free: Vec<Vec<f32>>,
}

/// The sum over cells so far.
#[derive(Debug)]
enum CellSum {
    /// Along the fixed tree.
    Tree(SumTree<Vec<f32>>),
    /// One cell after another: one buffer, whatever the number of cells.
    Running(Option<Vec<f32>>),
}

impl CellSum {
    fn new(determinism: Determinism) -> CellSum {
        match determinism {
            Determinism::Elastic => CellSum::Tree(SumTree::default()),
            Determinism::Topology => CellSum::Running(None),
        }
    }

    fn push(&mut self, values: Vec<f32>, free: &mut Vec<Vec<f32>>) {
        match self {
            CellSum::Tree(tree) => tree.push(values, |left, right| add(left, right, free)),
            CellSum::Running(sum) => {
                *sum = Some(match sum.take() {
                    Some(sum) => add(sum, values, free),
                    None => values,
                });
            }
        }
    }

    fn take(&mut self, free: &mut Vec<Vec<f32>>) -> Option<Vec<f32>> {
        match self {
            CellSum::Tree(tree) => std::mem::take(tree).finish(|left, right| add(left, right, free)),
            CellSum::Running(sum) => sum.take(),
        }
    }
}

/// One cell's gradient of one bucket, in the making.
#[derive(Debug)]
pub(crate) struct BucketGradient {
    index: usize,
    /// Where the bucket begins in the flat buffer.
    start: usize,
    values: Vec<f32>,
}

impl GradientFold {
    /// For `sources` ranks whose tokens meet this rank's experts.
    pub(crate) fn new(layout: &RankLayout, sources: usize, determinism: Determinism) -> GradientFold {
        let fold = |bucket: &Bucket| {
            let range = bucket.range.clone();
            let entries = layout.within(range.clone()).filter(|(entry, _)| !entry.spec.is_trained());
            let untrained =
                entries.map(|(entry, _)| entry.range.start - range.start..entry.range.end - range.start);
            let sums = (0..sources).map(|_| CellSum::new(determinism)).collect();
            BucketFold { untrained: untrained.collect(), sums, free: Vec::new(), range }
        };
        GradientFold { buckets: layout.buckets().iter().map(fold).collect() }
    }

    /// A buffer for a cell's gradient of bucket `index`: whoever takes it writes every element that is trained.
    pub(crate) fn begin(&mut self, index: usize) -> BucketGradient {
        let bucket = &mut self.buckets[index];
        let mut values = bucket.free.pop().unwrap_or_else(|| vec![0.0; bucket.range.len()]);
        for range in &bucket.untrained {
            values[range.clone()].fill(0.0);
        }
        BucketGradient { index, start: bucket.range.start, values }
    }

    /// Adds the next cell of `source`, 0 for a bucket that all ranks have.
    pub(crate) fn push(&mut self, gradient: BucketGradient, source: usize) {
        let BucketFold { sums, free, .. } = &mut self.buckets[gradient.index];
        sums[source].push(gradient.values, free);
    }

    /// The sum of bucket `index` over the cells pushed since the last call; zeros where there were none.
    pub(crate) fn take(&mut self, index: usize) -> Vec<f32> {
        let BucketFold { sums, free, range, .. } = &mut self.buckets[index];
        let mut all = SumTree::default();
        for sum in sums {
            if let Some(root) = sum.take(free) {
                all.push(root, |left, right| add(left, right, free));
            }
        }
        all.finish(|left, right| add(left, right, free)).unwrap_or_else(|| {
            let mut zeros = free.pop().unwrap_or_else(|| vec![0.0; range.len()]);
            zeros.fill(0.0);
            zeros
        })
    }

    /// Takes a buffer back that [`GradientFold::take`] gave.
    pub(crate) fn recycle(&mut self, index: usize, values: Vec<f32>) {
        if let Some(bucket) = self.buckets.get_mut(index)
            && bucket.range.len() == values.len()
        {
            bucket.free.push(values);
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

impl BucketGradient {
    /// The elements `range` of the flat buffer.
    pub(crate) fn part(&mut self, range: &Range<usize>) -> &mut [f32] {
        &mut self.values[range.start - self.start..range.end - self.start]
    }

    /// Writes the gradients of `leaves` to their places. A leaf that took no part has zeros.
    pub(crate) fn store(
        &mut self,
        leaves: &[Leaf],
        gradients: &mut impl Iterator<Item = Tensor>,
    ) -> Result<()> {
        for (leaf, gradient) in leaves.iter().zip(gradients) {
            let target = self.part(&leaf.range);
            if gradient.defined() {
                gradient.f_to_kind(Kind::Float)?.f_copy_data(target, leaf.range.len())?;
            } else {
                target.fill(0.0);
            }
        }
        Ok(())
    }

    /// All elements that are trained are zero.
    pub(crate) fn zero(mut self) -> BucketGradient {
        self.values.fill(0.0);
        self
    }
}

/// One cell's gradients on their way into the fold.
pub(crate) struct CellGradients<'a, 'b> {
    pub(crate) fold: &'a mut GradientFold,
    /// `[S, U, w]`: by the unique rows.
    pub(crate) rows_suw: Vec<f32>,
    /// Takes the sums of buckets, where this is the last cell.
    pub(crate) take: Option<&'a mut TakeBucket<'b>>,
}

impl CellGradients<'_, '_> {
    /// A bucket that all ranks have has this cell's gradients: they join the sum, and with the last cell it goes out.
    pub(crate) fn finish(&mut self, gradient: BucketGradient) {
        let index = gradient.index;
        self.fold.push(gradient, 0);
        self.finished(index);
    }

    /// As [`CellGradients::finish`], of a rank that has no cell.
    pub(crate) fn finish_empty(&mut self, index: usize) {
        let gradient = self.fold.begin(index).zero();
        self.finish(gradient);
    }

    /// Bucket `index` has this cell's gradients of every source: with the last cell the sum goes out.
    pub(crate) fn finished(&mut self, index: usize) {
        if let Some(take) = &mut self.take {
            take(index, self.fold.take(index));
        }
    }
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
