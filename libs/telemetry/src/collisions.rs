//! How well a table's hash spreads n-grams, judged by how many rows they touch.

/// A table after some distinct n-grams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collisions {
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
        let m = rows as f64;
        // One row takes everything, and ln(1 − 1/1) is not a number to go on with.
        let ideal_rows = match rows {
            0 => 0.0,
            1 => distinct_ngrams.min(1.0),
            _ => -m * (distinct_ngrams * (-1.0 / m).ln_1p()).exp_m1(),
        };
        Collisions { distinct_ngrams, ideal_rows, touched_rows }
    }

    /// Share of the ideal hash's rows that this one did not reach. About 0 for a good hash, within the estimate's
    /// error of 1 % and therefore also a little below; `None` before anything was seen.
    pub fn excess_ratio(&self) -> Option<f64> {
        (self.ideal_rows > 0.0).then(|| 1.0 - self.touched_rows as f64 / self.ideal_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
