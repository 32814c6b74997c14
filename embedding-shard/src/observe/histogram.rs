//! How often values fell between powers of two.

use polygram_telemetry::Histogram;

/// Exponent of the lowest bound: values up to 2^−20 share a bucket.
const LOWEST: i32 = -20;
/// Buckets; the last but one ends at 2^10, the last has no end.
const BUCKETS: usize = 32;

/// Counts of values by their power of two: for seconds from a microsecond to a quarter of an hour, and for norms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogHistogram {
    counts: [u64; BUCKETS],
    sum: f64,
}

impl LogHistogram {
    /// Counts a value; what is not finite counts as too large and does not enter the sum.
    #[inline]
    pub fn add(&mut self, value: f32) {
        let bits = value.to_bits();
        let exponent = (bits >> 23 & 0xff) as i32 - 127 + i32::from(bits & 0x7f_ffff != 0);
        let bucket = (exponent - LOWEST).clamp(0, BUCKETS as i32 - 1);
        self.counts[bucket as usize] += 1;
        if value.is_finite() {
            self.sum += f64::from(value);
        }
    }

    /// Adds all of another's values.
    pub fn merge(&mut self, other: &LogHistogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of the finite values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// (upper bound, values up to it and above the bound before).
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = (f64, u64)> + '_ {
        self.counts.iter().enumerate().map(|(bucket, &count)| {
            let is_last = bucket == BUCKETS - 1;
            (if is_last { f64::INFINITY } else { f64::from(LOWEST + bucket as i32).exp2() }, count)
        })
    }

    /// The histogram as a metric.
    pub fn to_metric(&self) -> Histogram {
        Histogram { sum: self.sum, buckets: self.buckets().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_powers_of_two_and_belong_below() {
        let mut histogram = LogHistogram::default();
        let values = [0.0, 1e-30, 0.75, 1.0, 1.0000001, 2.0, 1024.0, 1025.0, f32::INFINITY, f32::NAN];
        values.into_iter().for_each(|value| histogram.add(value));
        let filled: Vec<_> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        let lowest = (-20f64).exp2();
        assert_eq!(filled, [(lowest, 2), (1.0, 2), (2.0, 2), (1024.0, 1), (f64::INFINITY, 3)]);
        assert_eq!(histogram.count(), values.len() as u64);
        assert!((histogram.sum() - 2053.75).abs() < 1e-4);
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!(twice.count(), 2 * histogram.count());
        assert_eq!(twice.to_metric().buckets.len(), 32);
    }
}
