//! A cheap number that says which rows were updated to what, in any order and over any number of lanes and shards.
//!
//! ```text
//! S_s     = Σ row_hash(table, row, updates, weights)   over the rows that step s updated, wrapping
//! F_{s+1} = F_s·K + S_s                                K odd, wrapping
//! ```
//! Both are linear, so lanes chain for themselves and readers add: the sum of the lanes' F at one version is the
//! shard's, the sum of the shards' is the run's. Two runs that agree bit for bit have equal S at every step, and equal
//! F when they began at the same one; runs that differ anywhere agree by accident once in about 2^32 at worst.

use polygram_domain::RowRef;
use polygram_domain::control::Mark;
use polygram_domain::word_hash::{CHAIN, mix, word_hash};

/// Hash of one row after an update: `weights` are its weights as stored, bit for bit.
///
/// The hash of the weights is [`word_hash`]. Not against an adversary.
#[inline]
pub fn row_hash(at: RowRef, updates: u32, weights: &[u8]) -> u64 {
    let name = u64::from(at.table.0) << 32 | u64::from(at.row.0);
    mix(word_hash(weights, mix(name ^ u64::from(updates).wrapping_mul(CHAIN))))
}

/// One table's fingerprint on one lane, or the sum over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// S of the step that made the present version.
    pub step: u64,
    /// F at the present version.
    pub chain: u64,
}

impl Fingerprint {
    /// Takes the sum of the hashes of a step's updated rows.
    pub fn close(&mut self, step_sum: u64) {
        self.step = step_sum;
        self.chain = self.chain.wrapping_mul(CHAIN).wrapping_add(step_sum);
    }

    /// That of both parts, which must be of one version.
    pub fn and(self, other: Fingerprint) -> Fingerprint {
        Fingerprint { step: self.step.wrapping_add(other.step), chain: self.chain.wrapping_add(other.chain) }
    }
}

/// Levels of [`Marks`].
const LEVELS: u32 = 11;

/// F at the newest version, and at the newest versions that are multiples of 2, 4, … 1024: whoever is a few steps
/// behind has some of them in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks([Option<Mark>; LEVELS as usize]);

impl Marks {
    /// Notes the newest version.
    pub fn note(&mut self, mark: Mark) {
        let levels = mark.version.0.trailing_zeros().min(LEVELS - 1);
        self.0[..=levels as usize].fill(Some(mark));
    }

    /// The marks, versions falling, each once.
    pub fn list(&self) -> Vec<Mark> {
        let mut marks: Vec<Mark> = self.0.iter().copied().flatten().collect();
        marks.sort_by_key(|mark| std::cmp::Reverse(mark.version));
        marks.dedup();
        marks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use polygram_domain::control;
    use polygram_domain::control::common_marks;
    use polygram_domain::word_hash::{KEYS, SPAN};
    use polygram_domain::{RowId, Step, TableIndex};

    use super::*;

    /// The definition, one word at a time.
    fn plain(table: u32, row: u32, updates: u32, weights: &[u8]) -> u64 {
        let name = u64::from(table) << 32 | u64::from(row);
        let mut sum = mix(name ^ u64::from(updates).wrapping_mul(CHAIN));
        for span in weights.chunks(512) {
            let byte = |at: usize| span.get(at).copied().unwrap_or(0);
            let word = |i: usize| {
                let word =
                    u32::from_le_bytes([byte(4 * i), byte(4 * i + 1), byte(4 * i + 2), byte(4 * i + 3)]);
                u64::from(word ^ (KEYS[i / 2] >> (32 * (i % 2))) as u32)
            };
            let mut total = span.len() as u64;
            for i in 0..span.len().div_ceil(8) {
                total = total.wrapping_add(word(2 * i) * word(2 * i + 1));
            }
            sum = sum.wrapping_mul(SPAN).wrapping_add(total);
        }
        mix(sum)
    }

    fn at(table: u32, row: u32) -> RowRef {
        RowRef { table: TableIndex(table), row: RowId(row) }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u64).map(|i| (mix(i + 99) >> 56) as u8).collect()
    }

    #[test]
    fn every_processor_computes_the_definition() {
        for count in [0, 1, 2, 4, 7, 8, 9, 16, 128, 130, 256, 384, 512, 514, 520, 1024, 1500] {
            let bytes = bytes(count);
            assert_eq!(row_hash(at(3, 9), 2, &bytes), plain(3, 9, 2, &bytes), "{count} bytes");
        }
        // Pinned: the number must not change between builds or machines.
        let ones = [1f32.to_le_bytes(); 4].concat();
        assert_eq!(row_hash(at(0, 0), 1, &ones), PINNED);
    }

    const PINNED: u64 = 3_336_215_763_964_880_726;

    #[test]
    fn everything_counts() {
        let base = bytes(1024);
        let mut seen = BTreeSet::new();
        seen.insert(row_hash(at(0, 0), 1, &base));
        for (table, row, updates) in [(1, 0, 1), (0, 1, 1), (0, 0, 2)] {
            assert!(seen.insert(row_hash(at(table, row), updates, &base)));
        }
        for byte in 0..base.len() {
            for bit in [0, 7] {
                let mut other = base.clone();
                other[byte] ^= 1 << bit;
                assert!(seen.insert(row_hash(at(0, 0), 1, &other)), "byte {byte}, bit {bit}");
            }
        }
        let mut swapped = base.clone();
        swapped.rotate_left(512);
        assert!(seen.insert(row_hash(at(0, 0), 1, &swapped)));
        assert!(seen.insert(row_hash(at(0, 0), 1, &base[..1020])));
    }

    #[test]
    fn lanes_chain_for_themselves() {
        let hashes = [[3u64, 1 << 60, 7], [u64::MAX, 5, 11], [0, 0, 0], [2, 4, 8]];
        let mut all = Fingerprint::default();
        let mut lanes = [Fingerprint::default(); 3];
        for step in hashes {
            all.close(step.iter().fold(0, |sum, &hash| sum.wrapping_add(hash)));
            for (lane, hash) in lanes.iter_mut().zip(step) {
                lane.close(hash);
            }
            assert_eq!(lanes.into_iter().reduce(Fingerprint::and), Some(all));
        }
    }

    #[test]
    fn lanes_and_shards_meet_at_marks() {
        let marks_at = |from: u64, to: u64, factor: u64| {
            let mut marks = Marks::default();
            let mark = |v| Mark { version: Step(v), fingerprint: control::Fingerprint(v * factor) };
            (from + 1..=to).for_each(|v| marks.note(mark(v)));
            marks.list()
        };
        let (ahead, behind) = (marks_at(0, 1029, 1), marks_at(0, 1027, 10));
        assert_eq!(ahead.iter().map(|m| m.version.0).collect::<Vec<_>>(), [1029, 1028, 1024]);
        assert_eq!(behind.iter().map(|m| m.version.0).collect::<Vec<_>>(), [1027, 1026, 1024]);
        for lag in 0..300 {
            let common = common_marks([&marks_at(0, 2000, 1)[..], &marks_at(0, 2000 - lag, 1)]);
            assert!(!common.is_empty(), "{lag} steps behind");
        }
    }
}
