//! How badly a table's size collides (docs/model.md, "Table sizes and collisions").
//!
//! Two bigrams (t, c) and (t', c') share a row of a table of M rows exactly when (Δt, Δc) lies in the lattice
//! {(x, y): x + V·y ≡ 0 mod M} of determinant M. Tokens are roughly ranked by frequency, so short lattice vectors
//! make frequent bigrams collide. Hermite's bound says that no lattice of determinant M has a shortest vector longer
//! than √(2M/√3); the merit is the share of it that this one reaches.

/// Length of the shortest non-zero vector of {(x, y): x + V·y ≡ 0 mod M}, over √(2M/√3): 0 to 1, more is better.
/// A table without rows has merit 0.
///
/// Lagrange–Gauss reduction, exact for every 64-bit `rows` and `vocab`.
pub fn merit(rows: u64, vocab: u64) -> f64 {
    if rows == 0 {
        return 0.0;
    }
    (shortest_square(rows, vocab) as f64).sqrt() / hermite_bound(rows)
}

/// √(2M/√3).
fn hermite_bound(rows: u64) -> f64 {
    (2.0 * rows as f64 / 3f64.sqrt()).sqrt()
}

type Vector = (i128, i128);

fn dot(a: Vector, b: Vector) -> i128 {
    a.0 * b.0 + a.1 * b.1
}

fn square(a: Vector) -> u128 {
    a.0.unsigned_abs().pow(2) + a.1.unsigned_abs().pow(2)
}

/// Squared length of the shortest vector, for `rows` ≥ 1.
///
/// No product overflows: x < 2^64 always; while x may exceed 2^60, |y| < 16 (|y| ≤ M over the x before it).
fn shortest_square(rows: u64, vocab: u64) -> u128 {
    // A basis of the lattice: (M, 0) and (V mod M, −1). Euclid's steps keep it one.
    let mut long: Vector = (i128::from(rows), 0);
    let mut short: Vector = (i128::from(vocab % rows), -1);
    while short.0 > 1 << 60 {
        let quotient = long.0 / short.0;
        (long, short) = (short, (long.0 - quotient * short.0, long.1 - quotient * short.1));
    }
    loop {
        let shortest = square(short);
        let whole = shortest as i128;
        let quotient = (2 * dot(long, short) + whole).div_euclid(2 * whole);
        let reduced = (long.0 - quotient * short.0, long.1 - quotient * short.1);
        if square(reduced) >= shortest {
            return shortest;
        }
        (long, short) = (short, reduced);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every (x, y) of a box that holds the shortest vector.
    fn shortest_by_search(rows: u64, vocab: u64) -> u128 {
        let reach = hermite_bound(rows).ceil() as i128;
        let (m, v) = (i128::from(rows), i128::from(vocab));
        let mut best = (m * m) as u128;
        for y in -reach..=reach {
            let x = (-v * y).rem_euclid(m);
            for x in [x, x - m] {
                if (x, y) != (0, 0) {
                    best = best.min(square((x, y)));
                }
            }
        }
        best
    }

    proptest! {
        #[test]
        fn equals_a_search(rows in 1u64..20_000, vocab in 0u64..50_000) {
            prop_assert_eq!(shortest_square(rows, vocab), shortest_by_search(rows, vocab));
        }

        #[test]
        fn huge_numbers_stay_within_the_bound(rows in 1u64.., vocab: u64) {
            let merit = merit(rows, vocab);
            prop_assert!(merit > 0.0 && merit <= 1.0 + 1e-9, "{}", merit);
        }
    }

    #[test]
    fn edges() {
        assert_eq!(merit(0, 7), 0.0);
        assert_eq!(shortest_square(1, 7), 1);
        assert_eq!(shortest_square(7, 7), 1);
        assert_eq!(shortest_square(u64::MAX, 0), 1);
        assert_eq!(shortest_square(u64::MAX, u64::MAX - 1), 2);
        for rows in [u64::MAX, 1 << 63, (1 << 63) + 1, 1 << 60, (1 << 60) + 1] {
            for vocab in [1, 2, 3, 1 << 32, 1 << 60, 1 << 61, u64::MAX - 2, rows / 2, rows / 3 * 2] {
                let merit = merit(rows, vocab);
                assert!(merit > 0.0 && merit <= 1.0 + 1e-9, "{rows} {vocab}: {merit}");
            }
        }
    }

    /// The released model's ratio 78: (1, 78) is a lattice vector of its first table.
    #[test]
    fn flags_integer_multiples_and_their_neighbours() {
        let lite = merit(78 * 131_072 + 1, 131_072);
        assert!((lite - 0.0227).abs() < 1e-4, "{lite}");
        for ratio in [30.5, 30.25, 28.8] {
            let rows = (ratio * 131_072.0 + 1.0) as u64;
            assert!(merit(rows, 131_072) < 0.3, "ratio {ratio}: {}", merit(rows, 131_072));
        }
    }
}
