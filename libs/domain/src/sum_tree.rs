//! The fixed binary tree over cells that every sum of a step follows (elastic determinism).
//!
//! Leaves are cells 0..G, G a power of two; a node is `left + right`. Cells arrive in order, so partial sums
//! are kept like the digits of a binary counter: at most log2(G) + 1 of them live at once. A rank that owns an
//! aligned run of cells sums its own subtree, and ranks combine the subtrees' roots in the same tree.

/// Folds values, given in cell order, along the binary tree.
#[derive(Debug)]
pub struct SumTree<T> {
    /// (leaves below, partial sum), leaf counts strictly falling.
    partials: Vec<(usize, T)>,
}

impl<T> Default for SumTree<T> {
    fn default() -> Self {
        SumTree { partials: Vec::new() }
    }
}

impl<T> SumTree<T> {
    /// Adds the next cell's value; `add(left, right)` returns their sum.
    pub fn push(&mut self, value: T, mut add: impl FnMut(T, T) -> T) {
        let (mut leaves, mut sum) = (1, value);
        while let Some((_, left)) = self.partials.pop_if(|(count, _)| *count == leaves) {
            sum = add(left, sum);
            leaves *= 2;
        }
        self.partials.push((leaves, sum));
    }

    /// The tree's root once all leaves are in; `None` when there were none. Where the number of leaves is not
    /// a power of two the remaining partial sums are joined from the right, which is just as fixed.
    pub fn finish(mut self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        let (_, mut sum) = self.partials.pop()?;
        while let Some((_, left)) = self.partials.pop() {
            sum = add(left, sum);
        }
        Some(sum)
    }
}

/// The tree sum of f64 values in cell order; 0 for none.
pub fn tree_sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut tree = SumTree::default();
    for value in values {
        tree.push(value, |a, b| a + b);
    }
    tree.finish(|a, b| a + b).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_tree() {
        let mut tree = SumTree::default();
        for leaf in 0..8 {
            tree.push(leaf.to_string(), |a, b| format!("({a}+{b})"));
        }
        assert_eq!(tree.finish(|a, b| format!("({a}+{b})")).unwrap(), "(((0+1)+(2+3))+((4+5)+(6+7)))");
    }

    #[test]
    fn subtrees_compose() {
        let values: Vec<f64> = (0..16).map(|i| 0.1 * f64::from(i) + 1e-9).collect();
        let whole = tree_sum(values.iter().copied());
        for ranks in [1, 2, 4, 8, 16] {
            let roots = values.chunks(16 / ranks).map(|cells| tree_sum(cells.iter().copied()));
            assert_eq!(tree_sum(roots).to_bits(), whole.to_bits(), "{ranks} ranks");
        }
        assert_eq!(tree_sum([]), 0.0);
    }
}
