//! The order of samples: a keyed permutation of each epoch, computed where it is needed.
//!
//! A balanced Feistel network on the smallest even number of bits that covers n, with Philox as its round function
//! (keyed by seed, epoch and round), walked along its cycles until it lands below n (Black and Rogaway, "Ciphers with
//! arbitrary finite domains", CT-RSA 2002). No index is built: any sample of any epoch costs under a microsecond, so
//! resuming is free and the order does not depend on who reads.

use std::num::NonZeroU64;

use polygram_domain::philox::{Purpose, Stream};

const ROUNDS: u64 = 8;

/// The order in which `samples` are visited, epoch after epoch.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    stream: Stream,
    samples: NonZeroU64,
    /// Bits of half a Feistel block.
    half_bits: u32,
}

impl Sampler {
    /// The order for `seed` over `samples` samples.
    pub fn new(seed: u64, samples: NonZeroU64) -> Sampler {
        let bits = 64 - (samples.get() - 1).leading_zeros();
        Sampler {
            stream: Stream::new(seed, Purpose::SampleOrder),
            samples,
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// Samples of one epoch.
    pub fn samples(&self) -> u64 {
        self.samples.get()
    }

    /// The epoch and the sample that are number `global` of the whole run, from 0.
    pub fn sample(&self, global: u64) -> (u64, u64) {
        let epoch = global / self.samples;
        (epoch, self.permuted(epoch, global % self.samples))
    }

    /// Sample number `index` of `epoch`; a permutation of `0..samples` for every epoch.
    ///
    /// # Panics
    /// If `index` is not below the number of samples.
    pub fn permuted(&self, epoch: u64, index: u64) -> u64 {
        assert!(index < self.samples.get(), "sample {index} of {}", self.samples);
        let mut value = index;
        loop {
            value = self.encrypted(epoch, value);
            if value < self.samples.get() {
                return value;
            }
        }
    }

    fn encrypted(&self, epoch: u64, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            // Epochs stay below 2^60: the high half of the counter never repeats for another (epoch, round).
            let [word, ..] = self.stream.words(epoch.wrapping_mul(ROUNDS).wrapping_add(round), right);
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(seed: u64, samples: u64) -> Sampler {
        Sampler::new(seed, NonZeroU64::new(samples).unwrap())
    }

    #[test]
    fn permutes_every_small_number() {
        for n in 1..2000 {
            let sampler = sampler(n * 31, n);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let sample = sampler.permuted(1, i) as usize;
                assert!(!std::mem::replace(&mut seen[sample], true), "{sample} twice of {n}");
            }
        }
    }

    #[test]
    fn permutes_a_million() {
        let n = 1_000_003;
        let sampler = sampler(9, n);
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let (epoch, sample) = sampler.sample(n + i);
            assert_eq!(epoch, 1);
            assert!(!std::mem::replace(&mut seen[sample as usize], true));
        }
    }

    #[test]
    fn huge_spaces_stay_in_range_and_apart() {
        for n in [u64::MAX, (1 << 63) + 1, 1 << 62, (1 << 40) - 1] {
            let sampler = sampler(3, n);
            let mut found: Vec<u64> = (0..2000).chain(n - 2000..n).map(|i| sampler.permuted(0, i)).collect();
            assert!(found.iter().all(|&sample| sample < n));
            found.sort_unstable();
            found.dedup();
            assert_eq!(found.len(), 4000);
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_mix() {
        let n = 1000;
        let order = |seed, epoch| (0..n).map(|i| sampler(seed, n).permuted(epoch, i)).collect::<Vec<_>>();
        let base = order(1, 0);
        for other in [order(1, 1), order(2, 0)] {
            let equal = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(equal < 10, "{equal} of {n} places agree");
        }
        // Neighbours are no longer neighbours: the mean distance of a random permutation is n/3.
        let distance: u64 = base.windows(2).map(|w| w[0].abs_diff(w[1])).sum();
        assert!((distance as f64 / 999.0 - 333.0).abs() < 40.0, "mean distance {}", distance as f64 / 999.0);
    }
}
