//! How well a table's hash spreads n-grams, judged by how many rows they touch.

/// A table after some distinct n-grams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collisions {
    /// Rows of the table (m).
    pub rows: u64,
    /// Distinct n-grams seen (D), an estimate.
    pub distinct_ngrams: f64,
    /// Rows that D n-grams touch on average when each falls on any row alike: m·(1 − (1 − 1/m)^D).
    pub ideal_rows: f64,
    /// Rows that they did touch (T).
    pub touched_rows: u64,
}

impl Collisions {
    /// A table of `rows` rows (m) of which `touched_rows` were touched by `distinct_ngrams`.
    pub fn of(rows: u64, distinct_ngrams: f64, touched_rows: u64) -> Collisions {
        let ideal_rows = if rows == 0 { 0.0 } else { ideal_rows(rows as f64, distinct_ngrams) };
        Collisions { rows, distinct_ngrams, ideal_rows, touched_rows }
    }

    /// Whether both counts can be of one moment: no more rows are touched than there are n-grams, but for the estimate's
    /// error of 1 %. They are reported apart, so that a run's first seconds may say otherwise.
    fn is_of_one_moment(&self) -> bool {
        self.touched_rows as f64 <= 1.05 * self.distinct_ngrams
    }

    /// Share of the ideal hash's rows that this one did not reach. About 0 for a good hash, within the estimate's
    /// error of 1 % and therefore also a little below; `None` before anything was seen, and while the counts do not fit.
    pub fn excess_ratio(&self) -> Option<f64> {
        let known = self.ideal_rows > 0.0 && self.is_of_one_moment();
        known.then(|| 1.0 - self.touched_rows as f64 / self.ideal_rows)
    }

    /// Distinct n-grams for each touched row, D/T, at least 1; `None` before a row was touched, and while the counts do not
    /// fit.
    pub fn ngrams_per_row(&self) -> Option<f64> {
        (self.touched_rows > 0 && self.is_of_one_moment())
            .then(|| (self.distinct_ngrams / self.touched_rows as f64).max(1.0))
    }

    /// Expected share of lookups whose row another n-gram uses too: 1 − (1 − 1/m′)^(D − 1). m′ is the number of rows
    /// (at most m) of which an ideal hash would have touched T, so that a hash that reaches only a part of its table is
    /// judged by this part. How often an n-gram occurs does not matter, as long as the hash does not depend on it.
    /// `None` before a row was touched, and while the counts do not fit.
    pub fn shared_lookups_ratio(&self) -> Option<f64> {
        if self.touched_rows == 0 || !self.is_of_one_moment() {
            return None;
        }
        let others = (self.distinct_ngrams - 1.0).max(0.0);
        if others == 0.0 {
            return Some(0.0);
        }
        let rows = self.effective_rows();
        Some(-(others * (-1.0 / rows).ln_1p()).exp_m1())
    }

    /// m′ above, by bisection: the ideal number of touched rows grows with the table.
    fn effective_rows(&self) -> f64 {
        let touched = self.touched_rows as f64;
        let (mut low, mut high) = (touched, (self.rows as f64).max(touched));
        if ideal_rows(high, self.distinct_ngrams) <= touched {
            return high;
        }
        for _ in 0..64 {
            let middle = 0.5 * (low + high);
            if ideal_rows(middle, self.distinct_ngrams) < touched { low = middle } else { high = middle }
        }
        high
    }
}

/// Rows that `distinct` n-grams touch on average under the ideal hash, of `rows` rows, at least one.
fn ideal_rows(rows: f64, distinct: f64) -> f64 {
    // One row takes everything, and ln(1 − 1/1) is not a number to go on with.
    if rows <= 1.0 { distinct.min(1.0) } else { -rows * (distinct * (-1.0 / rows).ln_1p()).exp_m1() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::tests::hash;

    #[test]
    fn the_ideal_hash_follows_the_formula() {
        // By hand: 10·(1 − 0.9^5) = 4.0951.
        let five = Collisions::of(10, 5.0, 4);
        assert!((five.ideal_rows - 4.0951).abs() < 1e-12, "{five:?}");
        assert!((five.excess_ratio().unwrap() - (1.0 - 4.0 / 4.0951)).abs() < 1e-12);
        // Few n-grams in a large table: nearly one row each. Many in a small one: all rows.
        assert!((Collisions::of(10_000_019, 1000.0, 1000).ideal_rows - 999.95).abs() < 0.01);
        assert!((Collisions::of(1009, 1e9, 1009).ideal_rows - 1009.0).abs() < 1e-9);
        assert_eq!(Collisions::of(1, 5.0, 1).ideal_rows, 1.0);
        assert_eq!(Collisions::of(7, 0.0, 0).excess_ratio(), None);
        assert_eq!(Collisions::of(0, 3.0, 0).excess_ratio(), None);
    }

    #[test]
    fn a_table_of_one_row_is_no_good_table() {
        let one = Collisions::of(1, 1000.0, 1);
        assert_eq!(one.excess_ratio(), Some(0.0), "no hash would do better");
        assert_eq!(one.ngrams_per_row(), Some(1000.0));
        assert_eq!(one.shared_lookups_ratio(), Some(1.0));
        let two = Collisions::of(2, 1000.0, 2);
        assert_eq!((two.ngrams_per_row(), two.shared_lookups_ratio()), (Some(500.0), Some(1.0)));
        // By hand: one other n-gram in ten rows.
        assert!((Collisions::of(10, 2.0, 2).shared_lookups_ratio().unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(Collisions::of(10, 1.0, 1).shared_lookups_ratio(), Some(0.0));
        assert_eq!(Collisions::of(10, 0.99, 1).ngrams_per_row(), Some(1.0), "an estimate may be low");
        // As seen in a run's first seconds: rows are reported before the n-grams that touched them.
        let early = Collisions::of(100_003, 115.0, 4614);
        assert_eq!(
            (early.excess_ratio(), early.ngrams_per_row(), early.shared_lookups_ratio()),
            (None, None, None)
        );
        for nothing in [Collisions::of(10, 0.0, 0), Collisions::of(0, 0.0, 0)] {
            assert_eq!((nothing.ngrams_per_row(), nothing.shared_lookups_ratio()), (None, None));
        }
    }

    /// Shares counted exactly, by keeping the n-grams of every row: lookups of n-gram i are about 1000/√i, and of the
    /// table's `rows` rows the hash reaches `reached`.
    #[test]
    fn the_share_of_shared_lookups_is_what_counting_gives() {
        let seed = 20_261_129u64;
        println!("seed {seed}");
        for (rows, reached, distinct) in [
            (10_007u64, 10_007u64, 500u64),
            (10_007, 10_007, 8_000),
            (10_007, 2_500, 8_000),
            (1_009, 1_009, 9_000),
        ] {
            let row_of = |ngram: u64| hash(seed ^ ngram << 20) % reached;
            let mut ngrams_of_row = vec![0u64; rows as usize];
            (0..distinct).for_each(|ngram| ngrams_of_row[row_of(ngram) as usize] += 1);
            let lookups = |ngram: u64| 1000.0 / ((ngram + 1) as f64).sqrt();
            let all: f64 = (0..distinct).map(lookups).sum();
            let shared: f64 =
                (0..distinct).filter(|n| ngrams_of_row[row_of(*n) as usize] > 1).map(lookups).sum();
            let touched = ngrams_of_row.iter().filter(|count| **count > 0).count() as u64;
            let found = Collisions::of(rows, distinct as f64, touched).shared_lookups_ratio().unwrap();
            let case = format!("{rows} rows, {reached} reached, {distinct} n-grams");
            assert!((found - shared / all).abs() < 0.05, "{case}: {found:.4} instead of {:.4}", shared / all);
        }
    }
}
