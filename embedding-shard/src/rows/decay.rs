//! Decay of rows that no step touches: exact, and paid for when a row is read or updated next.
//!
//! Decoupled decay multiplies every weight by 1 − lr·wd at every applied step. A shard keeps the running sum of
//! −log(1 − lr·wd); a row keeps what the sum was at its last update; the difference says what the row has missed. The
//! sum is fixed-point, so that differences are exact whatever was in between. Logarithm and exponential are libm's own,
//! the same on every machine.

/// Fractional bits of the sum.
const FRACTION_BITS: i32 = 48;
/// Bits of a digit that an f32 holds exactly.
const DIGIT_BITS: u32 = 24;

/// The sum of −log(1 − lr·wd) over applied steps, in units of 2⁻⁴⁸.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecayLog(u64);

impl DecayLog {
    /// The sum after one more step of learning rate `lr` and decay `weight_decay`; lr·wd must be below 1 (the run file
    /// sees to that). At 65,536 the sum saturates: nothing is left of a row long before.
    pub fn after(self, lr: f32, weight_decay: f64) -> DecayLog {
        let lost = -libm::log1p(-(f64::from(lr) * weight_decay));
        let units = libm::rint(libm::scalbn(lost, FRACTION_BITS));
        DecayLog(self.0.saturating_add(units as u64))
    }

    /// What is left of a weight that was exact at `earlier`.
    #[inline(always)]
    pub fn left_since(self, earlier: DecayLog) -> f32 {
        match self.0.saturating_sub(earlier.0) {
            0 => 1.0,
            missed => libm::exp(-libm::scalbn(missed as f64, -FRACTION_BITS)) as f32,
        }
    }

    /// Three digits of 24 bits, lowest first: f32 values that say it exactly, for checkpoints.
    pub fn digits(self) -> [f32; 3] {
        let digit = |index: u32| ((self.0 >> (DIGIT_BITS * index)) & ((1 << DIGIT_BITS) - 1)) as f32;
        [digit(0), digit(1), digit(2)]
    }

    /// The sum of three digits; `None` where they are not ones.
    pub fn from_digits(digits: [f32; 3]) -> Option<DecayLog> {
        let limits = [1u64 << DIGIT_BITS, 1 << DIGIT_BITS, 1 << (64 - 2 * DIGIT_BITS)];
        let mut sum = 0;
        for ((index, digit), limit) in digits.into_iter().enumerate().zip(limits) {
            let whole = digit as u64;
            if whole as f32 != digit || whole >= limit || digit.is_sign_negative() {
                return None;
            }
            sum |= whole << (DIGIT_BITS * index as u32);
        }
        Some(DecayLog(sum))
    }

    /// As two words, low first.
    pub fn halves(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    /// From two words, low first.
    pub fn from_halves([low, high]: [u32; 2]) -> DecayLog {
        DecayLog(u64::from(low) | u64::from(high) << 32)
    }

    /// The raw sum.
    pub fn units(self) -> u64 {
        self.0
    }

    /// From a raw sum.
    pub fn from_units(units: u64) -> DecayLog {
        DecayLog(units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_multiply() {
        let mut log = DecayLog::default();
        let mut logs = vec![log];
        let mut product = vec![1.0f64];
        for step in 0..2000 {
            let lr = 1e-3 * (1.0 + (step % 7) as f32);
            log = log.after(lr, 0.1);
            logs.push(log);
            product.push(product[step] * (1.0 - f64::from(lr) * 0.1));
        }
        for (from, to) in [(0, 2000), (3, 4), (17, 1500), (5, 5)] {
            let expected = product[to] / product[from];
            let left = f64::from(logs[to].left_since(logs[from]));
            assert!((left / expected - 1.0).abs() < 1e-7, "{from}..{to}: {left} against {expected}");
        }
    }

    #[test]
    fn digits_say_it_exactly() {
        for units in [0u64, 1, (1 << 24) - 1, 1 << 24, 0x0123_4567_89ab_cdef, u64::MAX] {
            let log = DecayLog::from_units(units);
            assert_eq!(DecayLog::from_digits(log.digits()), Some(log));
            assert_eq!(DecayLog::from_halves(log.halves()), log);
        }
        for bad in [[0.5, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 16_777_216.0, 0.0], [0.0, 0.0, 65_536.0]] {
            assert_eq!(DecayLog::from_digits(bad), None);
        }
        assert_eq!(DecayLog::from_digits([f32::NAN, 0.0, 0.0]), None);
    }
}
