//! Remainders without division.

/// A modulus with its reciprocal.
///
/// Barrett reduction with a 64-bit reciprocal: with `inverse = floor(2^64 / m)` the estimate
/// `q = floor(x·inverse / 2^64)` is the true quotient or one less for every 64-bit `x`, so one conditional
/// subtraction finishes (Barrett, CRYPTO '86; the error bound: `x·(2^64/m − inverse)/2^64 < 1`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modulus {
    m: u64,
    inverse: u64,
}

impl Modulus {
    /// For `m` ≥ 1.
    pub(crate) fn new(m: u32) -> Modulus {
        let m = u64::from(m.max(1));
        // floor(2^64 / m); for m = 1 it would not fit, and 2^64 − 1 gives the same estimates to within the one.
        let inverse = ((1u128 << 64) / u128::from(m)).min(u128::from(u64::MAX)) as u64;
        Modulus { m, inverse }
    }

    /// `x mod m`.
    #[inline(always)]
    pub(crate) fn reduce(self, x: u64) -> u32 {
        let quotient = ((u128::from(x) * u128::from(self.inverse)) >> 64) as u64;
        let remainder = x - quotient * self.m;
        // The wrapped difference is huge when nothing is to be subtracted.
        remainder.min(remainder.wrapping_sub(self.m)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_division(x: u64, m in 1u32..) {
            prop_assert_eq!(u64::from(Modulus::new(m).reduce(x)), x % u64::from(m));
        }

        #[test]
        fn equals_division_at_multiples(m in 1u32.., quotient: u64, offset in 0u64..3) {
            let multiple = (quotient % (u64::MAX / u64::from(m)).max(1)) * u64::from(m);
            for x in [multiple.wrapping_add(offset), multiple.wrapping_sub(offset)] {
                prop_assert_eq!(u64::from(Modulus::new(m).reduce(x)), x % u64::from(m));
            }
        }
    }

    #[test]
    fn equals_division_at_the_edges() {
        for m in [1, 2, 3, u32::MAX, u32::MAX - 1, 1 << 31, (1 << 31) + 1] {
            for x in [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, u64::from(m), u64::from(m) - 1] {
                assert_eq!(u64::from(Modulus::new(m).reduce(x)), x % u64::from(m), "{x} mod {m}");
            }
        }
    }
}
