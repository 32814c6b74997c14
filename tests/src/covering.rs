//! Rows of settings in which every legal pair of values occurs: a 2-wise covering array, made greedily.
//!
//! Faults of configurations are nearly always those of one value or of two together, and pairs need few rows: about the
//! product of the two longest lists (Cohen, Dalal, Fredman and Patton, "The AETG System", 1997).

use std::collections::BTreeSet;

/// A setting: how many values it has.
pub type Values = usize;
/// The value of a factor: (factor, value), both by index.
pub type Choice = (usize, usize);

/// Candidates of which the row that covers most is taken.
const CANDIDATES: usize = 40;

/// Numbers that look random and are the same on every machine (SplitMix64; Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((word ^ (word >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Every pair of values of two factors that `is_legal`, the lower factor first.
pub fn pairs(factors: &[Values], is_legal: impl Fn(Choice, Choice) -> bool) -> BTreeSet<(Choice, Choice)> {
    let mut found = BTreeSet::new();
    for (first, &values) in factors.iter().enumerate() {
        for (second, &others) in factors.iter().enumerate().skip(first + 1) {
            let all = (0..values).flat_map(|value| (0..others).map(move |other| (value, other)));
            let pairs = all.map(|(value, other)| ((first, value), (second, other)));
            found.extend(pairs.filter(|(a, b)| is_legal(*a, *b)));
        }
    }
    found
}

/// Rows of one value for each factor, in which every pair that `is_legal` occurs and no other. The same `seed` gives the
/// same rows. A pair that no row can have, since third values exclude it, is left out and returned.
pub fn covering_rows(
    factors: &[Values],
    is_legal: impl Fn(Choice, Choice) -> bool,
    seed: u64,
) -> (Vec<Vec<usize>>, BTreeSet<(Choice, Choice)>) {
    let mut random = Random(seed);
    let mut open = pairs(factors, &is_legal);
    let (mut rows, mut impossible) = (Vec::new(), BTreeSet::new());
    while let Some(&pair) = open.iter().nth(random.below(open.len())) {
        let candidates = (0..CANDIDATES).filter_map(|_| row(factors, &is_legal, pair, (&open, &mut random)));
        let best = candidates.max_by_key(|row| covered(row, &open).count());
        match best {
            Some(row) => {
                for pair in covered(&row, &open.clone()) {
                    open.remove(&pair);
                }
                rows.push(row);
            }
            None => {
                open.remove(&pair);
                impossible.insert(pair);
            }
        }
    }
    (rows, impossible)
}

/// The pairs of `open` that `row` has.
fn covered<'a>(
    row: &'a [usize],
    open: &'a BTreeSet<(Choice, Choice)>,
) -> impl Iterator<Item = (Choice, Choice)> + 'a {
    let of = |factor: usize| (factor, row[factor]);
    let all = (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| (of(a), of(b))));
    all.filter(|pair| open.contains(pair))
}

/// A legal row with `pair`, each further factor in some order with the value that covers most; `None` where a factor has
/// no legal value left.
fn row(
    factors: &[Values],
    is_legal: &impl Fn(Choice, Choice) -> bool,
    (first, second): (Choice, Choice),
    (open, random): (&BTreeSet<(Choice, Choice)>, &mut Random),
) -> Option<Vec<usize>> {
    let mut chosen: Vec<Choice> = vec![first, second];
    let mut left: Vec<usize> =
        (0..factors.len()).filter(|factor| ![first.0, second.0].contains(factor)).collect();
    while !left.is_empty() {
        let factor = left.swap_remove(random.below(left.len()));
        let start = random.below(factors[factor]);
        let values = (0..factors[factor]).map(|value| (factor, (value + start) % factors[factor]));
        let ordered = |a: Choice, b: Choice| if a.0 < b.0 { (a, b) } else { (b, a) };
        let legal = values.filter(|&value| {
            chosen.iter().all(|&other| {
                let (a, b) = ordered(value, other);
                is_legal(a, b)
            })
        });
        let best = legal.max_by_key(|&value| {
            chosen.iter().filter(|&&other| open.contains(&ordered(value, other))).count()
        })?;
        chosen.push(best);
    }
    chosen.sort_unstable();
    Some(chosen.into_iter().map(|(_, value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_every_legal_pair_and_no_other() {
        let factors = [5, 4, 3, 3, 2, 2, 2, 2, 2, 2];
        let is_legal = |a: Choice, b: Choice| !(a == (0, 4) && b.1 == 1) && (a, b) != ((1, 0), (2, 0));
        for seed in 0..5 {
            let (rows, impossible) = covering_rows(&factors, is_legal, seed);
            assert!(impossible.is_empty(), "{impossible:?}");
            let wanted = pairs(&factors, is_legal);
            let mut found = BTreeSet::new();
            for row in &rows {
                for b in 1..row.len() {
                    found.extend((0..b).map(|a| ((a, row[a]), (b, row[b]))));
                }
            }
            assert_eq!(found, wanted, "seed {seed}");
            assert!((20..=40).contains(&rows.len()), "{} rows", rows.len());
            assert_eq!(rows, covering_rows(&factors, is_legal, seed).0);
        }
    }

    /// A pair that is legal by itself, but not with any value of a third factor.
    #[test]
    fn pairs_that_no_row_can_have_are_told() {
        let is_legal = |a: Choice, b: Choice| !matches!((a, b), ((0, 0), (2, 0)) | ((1, 0), (2, 1)));
        let (rows, impossible) = covering_rows(&[2, 2, 2], is_legal, 1);
        assert_eq!(impossible.into_iter().collect::<Vec<_>>(), [((0, 0), (1, 0))]);
        assert!(!rows.is_empty());
    }
}
