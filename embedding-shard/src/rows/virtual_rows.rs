//! Rows that were never written: functions of (seed, table, row), computed when they are read.

use multiversion::multiversion;
use polygram_domain::RowRef;
use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};

use super::counter::Counter;

/// Philox blocks made side by side.
const LANES: usize = 16;

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
    pub fn fill(&self, at: RowRef, weights: &mut [f32]) {
        let first = u64::from(at.row.0) * self.blocks_per_row;
        fill(&self.stream, Counter { high: u64::from(at.table.0), low: first }, self.init_std, weights);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw+avx512dq", "x86_64+avx2"))]
fn fill(stream: &Stream, first: Counter, scale: f32, weights: &mut [f32]) {
    let Counter { high, low } = first;
    let mut groups = weights.chunks_exact_mut(4 * LANES);
    let mut next = low;
    for group in &mut groups {
        let words = stream.lanes::<LANES>(high, next);
        for (i, columns) in group.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (column, words) in columns.iter_mut().zip(&words) {
                *column = unit_variance_uniform(words[i]) * scale;
            }
        }
        next += LANES as u64;
    }
    for (i, columns) in groups.into_remainder().chunks_mut(4).enumerate() {
        for (weight, word) in columns.iter_mut().zip(stream.words(high, next + i as u64)) {
            *weight = unit_variance_uniform(word) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::{RowId, TableIndex};

    use super::*;

    #[test]
    fn columns_follow_the_formula() {
        for width in [1usize, 3, 4, 7, 8, 64, 67, 256] {
            let rows = VirtualRows::new(11, 0.5, width);
            let mut weights = vec![0.0; width];
            rows.fill(RowRef { table: TableIndex(3), row: RowId(9) }, &mut weights);
            for (column, weight) in weights.iter().enumerate() {
                let low = 9 * (width as u64).div_ceil(4) + column as u64 / 4;
                let word = Stream::new(11, Purpose::RowInit).words(3, low)[column % 4];
                assert_eq!(*weight, unit_variance_uniform(word) * 0.5);
            }
        }
    }
}
