//! Table sizes that collide little, and the checks of those a run asks for.

use polygram_domain::model::{MAX_ORDER, NgramSpec};
use polygram_domain::run_file::ratio_of_base;

use crate::error::NgramError;
use crate::hasher::legal_rows;
use crate::merit::merit;

/// Tables of less merit than this are warned about.
pub const LOW_MERIT: f64 = 0.3;

/// Candidates lie within this share of the wanted rows.
const REACH: f64 = 0.005;

/// What tables are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeQuery {
    /// Hash vocabulary V.
    pub vocab: u32,
    /// Rows that the first table should have, about.
    pub rows: u64,
    /// Longest n-gram N, 2 to 16.
    pub orders: u32,
    /// Heads per order K, 1 to 64.
    pub heads: u32,
}

/// The sizes found: table i has `base + 2·i` rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizing {
    /// Rows of the first table, `ngram.base_rows`.
    pub base: u64,
    /// Rows of each of the (N − 1)·K tables.
    pub rows: Vec<u64>,
    /// Bigram merit of each table's size.
    pub merits: Vec<f64>,
    /// The `ngram.ratio` that gives these sizes: (base − 0.5)/V, which truncates back for every table.
    pub ratio: f64,
}

impl Sizing {
    /// Least merit of the K bigram tables, which is what was maximised.
    pub fn bigram_merit(&self, heads: u32) -> f64 {
        least(&self.merits[..self.merits.len().min(heads as usize)])
    }
}

/// Picks the base M_0 within ±0.5 % of the wanted rows.
///
/// Objective: among odd bases, the greatest least merit over the K bigram tables M_0, M_0 + 2, … M_0 + 2(K − 1); of
/// equals the greatest least merit over all (N − 1)·K tables; of equals the nearest to the wanted rows; of equals the
/// smaller. The bigram tables come first because the merit counts bigram collisions, and only there does every
/// position pay for them; higher orders, whose keys differ in more tokens, stay above 0.9 in practice anyway. Odd
/// sizes, as in the released models, share no factor 2 with a vocabulary padded to a power of two, so every power of V
/// reaches every row.
///
/// Small tables have few candidates: the range is widened to at least ±16 rows. Cost: one merit per odd number of the
/// range, 50 000 of them (tens of milliseconds) for ten million rows.
pub fn size_tables(query: SizeQuery) -> Result<Sizing, NgramError> {
    let illegal = |what, value: u64, wanted| Err(NgramError::IllegalNumber { what, value, wanted });
    if query.vocab == 0 {
        return illegal("the vocabulary", 0, "at least 1");
    }
    if !(2..=MAX_ORDER).contains(&query.orders) {
        return illegal("the longest n-gram", query.orders.into(), "2 to 16");
    }
    if !(1..=64).contains(&query.heads) {
        return illegal("the number of heads", query.heads.into(), "1 to 64");
    }
    let (heads, tables) = (query.heads as usize, ((query.orders - 1) * query.heads) as usize);
    // The largest base whose last table still has 32-bit row ids, with the ratio's f64 rounding in mind.
    let limit = u64::from(u32::MAX) - 2 - 2 * tables as u64;
    if !(1..=limit).contains(&query.rows) {
        return illegal("the number of rows", query.rows, "at least 1 and below 2^32");
    }
    let reach = ((query.rows as f64 * REACH) as u64).max(16);
    let first = query.rows.saturating_sub(reach).max(1) | 1;
    let last = query.rows.saturating_add(reach).min(limit);
    let candidates = ((last - first) / 2 + 1) as usize;
    let merits: Vec<f64> =
        (0..candidates + tables).map(|i| merit(first + 2 * i as u64, query.vocab.into())).collect();

    let mut best: Option<(f64, f64, u64, usize)> = None;
    for i in 0..candidates {
        let bigram = least(&merits[i..i + heads]);
        if best.is_some_and(|(least_bigram, ..)| bigram < least_bigram) {
            continue;
        }
        let base = first + 2 * i as u64;
        let found = (bigram, least(&merits[i..i + tables]), base.abs_diff(query.rows), i);
        let better = best.is_none_or(|best| {
            (found.0, found.1, best.2).partial_cmp(&(best.0, best.1, found.2))
                == Some(std::cmp::Ordering::Greater)
        });
        if better {
            best = Some(found);
        }
    }
    let start = best.map_or(0, |(.., i)| i);
    let base = first + 2 * start as u64;
    Ok(Sizing {
        base,
        rows: (0..tables as u64).map(|i| base + 2 * i).collect(),
        merits: merits[start..start + tables].to_vec(),
        ratio: ratio_of_base(base, query.vocab),
    })
}

fn least(merits: &[f64]) -> f64 {
    merits.iter().copied().fold(f64::INFINITY, f64::min)
}

/// A size that works but costs quality.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Warning {
    /// Some tables make frequent bigrams collide.
    #[error(
        "{count} of {tables} n-gram tables collide badly: table {worst} of {rows} rows has merit {merit:.3} (above \
         {LOW_MERIT} is sound); ngram.base_rows = {} (ngram.ratio = {}) gives {:.3} or more to every bigram table",
        better.base, better.ratio, better.bigram_merit(*heads)
    )]
    LowMerit {
        /// Tables below [`LOW_MERIT`].
        count: u32,
        /// Tables of a site.
        tables: u32,
        /// Heads per order.
        heads: u32,
        /// Site number of the worst table.
        worst: u32,
        /// Its rows.
        rows: u32,
        /// Its merit.
        merit: f64,
        /// Sizes nearby that do not collide so.
        better: Sizing,
    },
}

/// The checks before a run: sizes must be legal and pairwise distinct; tables of low merit give a warning that says
/// the better size.
pub fn check_tables(spec: &NgramSpec) -> Result<Vec<Warning>, NgramError> {
    let rows = legal_rows(spec)?;
    let vocab = spec.hash_vocab_size;
    let low: Vec<(f64, u32)> = (0u32..)
        .zip(&rows)
        .map(|(table, &rows)| (merit(rows.into(), vocab.into()), table))
        .filter(|(merit, _)| *merit <= LOW_MERIT)
        .collect();
    let Some(&(merit, worst)) = low.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return Ok(Vec::new());
    };
    let query = SizeQuery { vocab, rows: u64::from(rows[0]), orders: spec.max_order, heads: spec.heads };
    Ok(vec![Warning::LowMerit {
        count: low.len() as u32,
        tables: rows.len() as u32,
        heads: spec.heads,
        worst,
        rows: rows[worst as usize],
        merit,
        better: size_tables(query)?,
    }])
}

#[cfg(test)]
mod tests {
    use polygram_domain::model::{Amplification, Normalizer};
    use proptest::prelude::*;

    use super::*;

    fn spec(vocab: u32, ratio: f64) -> NgramSpec {
        NgramSpec {
            max_order: 4,
            heads: 4,
            ratio,
            hash_vocab_size: vocab,
            ignored_tokens: Vec::new(),
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        }
    }

    /// Sizes that an independent search over the same range found.
    #[test]
    fn finds_the_known_bases() {
        for (vocab, base) in
            [(131_072u32, 10_232_743u64), (163_840, 12_739_503), (50_257, 3_905_163), (32_000, 2_502_069)]
        {
            let found =
                size_tables(SizeQuery { vocab, rows: 78 * u64::from(vocab), orders: 4, heads: 4 }).unwrap();
            assert_eq!(found.base, base, "V = {vocab}");
            assert!(found.bigram_merit(4) > 0.98 && least(&found.merits) > 0.85, "{found:?}");
            assert!(check_tables(&spec(vocab, found.ratio)).unwrap().is_empty());
            let made: Vec<u64> = (0..12).map(|i| spec(vocab, found.ratio).rows_of(i)).collect();
            assert_eq!(made, found.rows);
        }
    }

    #[test]
    fn warns_about_integer_multiples() {
        let warnings = check_tables(&spec(131_072, 78.0)).unwrap();
        let [Warning::LowMerit { count, worst, merit, better, .. }] = &warnings[..] else {
            panic!("one warning, not {warnings:?}");
        };
        assert_eq!((*count, *worst, better.base), (12, 0, 10_232_743));
        assert!((merit - 0.0227).abs() < 1e-4);
        assert!(warnings[0].to_string().contains("ngram.base_rows = 10232743"), "{}", warnings[0]);
    }

    #[test]
    fn refuses_clones_and_illegal_sizes() {
        // Beyond 2^53 neighbours would round to one size, but such tables are too large already.
        assert!(matches!(check_tables(&spec(131_072, 1e15)), Err(NgramError::IllegalSize { table: 0, .. })));
        assert!(matches!(check_tables(&spec(131_072, f64::NAN)), Err(NgramError::IllegalSize { .. })));
        let mut heads = spec(100, 3.0);
        heads.heads = 0;
        assert!(matches!(check_tables(&heads), Err(NgramError::IllegalNumber { .. })));
        for rows in [0, u64::from(u32::MAX), u64::MAX] {
            assert!(size_tables(SizeQuery { vocab: 10, rows, orders: 2, heads: 1 }).is_err());
        }
        assert!(size_tables(SizeQuery { vocab: 0, rows: 5, orders: 2, heads: 1 }).is_err());
        assert!(size_tables(SizeQuery { vocab: 5, rows: 5, orders: 17, heads: 1 }).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_answer_is_legal(vocab in 1u32..300_000, rows in 1u64..400_000, orders in 2u32..6, heads in 1u32..5) {
            let found = size_tables(SizeQuery { vocab, rows, orders, heads }).unwrap();
            prop_assert!(found.base.abs_diff(rows) <= (rows / 200).max(16) + 1);
            let mut spec = spec(vocab, found.ratio);
            (spec.max_order, spec.heads) = (orders, heads);
            let made: Vec<u64> = (0..spec.tables_per_site()).map(|i| spec.rows_of(i)).collect();
            prop_assert_eq!(&made, &found.rows);
            prop_assert!(legal_rows(&spec).is_ok());
        }
    }

    #[test]
    fn the_largest_tables_can_be_sized() {
        let rows = u64::from(u32::MAX) - 3000;
        let found =
            size_tables(SizeQuery { vocab: 131_072, rows: rows / 100 * 90, orders: 3, heads: 2 }).unwrap();
        assert!(found.bigram_merit(2) > 0.9);
    }
}
