//! Rows that were never written: functions of (seed, table, row), computed when they are read.

use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::{RowId, TableIndex};

/// Values of rows not written yet: uniform, of mean 0 and standard deviation `init_std`.
#[derive(Clone, Copy, Debug)]
pub struct VirtualRows {
    stream: Stream,
    init_std: f32,
    blocks_per_row: u64,
}

impl VirtualRows {
    /// The rows of width `width` under `seed`.
    pub fn new(seed: u64, init_std: f64, width: usize) -> VirtualRows {
        VirtualRows {
            stream: Stream::new(seed, Purpose::RowInit),
            init_std: init_std as f32,
            blocks_per_row: width.div_ceil(4) as u64,
        }
    }

    /// Writes the row's weights. Column c is word c mod 4 of the Philox block (table, row·⌈w/4⌉ + ⌊c/4⌋), mapped
    /// to unit variance and multiplied by `init_std` in f32.
    pub fn fill(&self, table: TableIndex, row: RowId, weights: &mut [f32]) {
        let first = u64::from(row.0) * self.blocks_per_row;
        for (block, columns) in weights.chunks_mut(4).enumerate() {
            let words = self.stream.words(u64::from(table.0), first + block as u64);
            for (weight, word) in columns.iter_mut().zip(words) {
                *weight = unit_variance_uniform(word) * self.init_std;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_follow_the_formula() {
        for width in [1usize, 3, 4, 7, 8] {
            let rows = VirtualRows::new(11, 0.5, width);
            let mut weights = vec![0.0; width];
            rows.fill(TableIndex(3), RowId(9), &mut weights);
            for (column, weight) in weights.iter().enumerate() {
                let low = 9 * (width as u64).div_ceil(4) + column as u64 / 4;
                let word = Stream::new(11, Purpose::RowInit).words(3, low)[column % 4];
                assert_eq!(*weight, unit_variance_uniform(word) * 0.5);
            }
        }
    }
}
