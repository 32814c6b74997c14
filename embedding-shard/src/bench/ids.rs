//! Row ids to measure with: uniform, or Zipf as n-grams of text are. A function of (seed, step, table, position): any
//! step can be made again, by any process.

use std::path::Path;

use clap::ValueEnum;
use polygram_domain::TableSet;
use polygram_domain::philox::{Purpose, Stream};
use serde::Serialize;

use super::error::BenchError;

/// How often which row is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// The k-th most frequent row with probability ∝ 1/k^s, frequent rows scattered over the table.
    Zipf,
    /// Every row alike.
    Uniform,
}

impl Distribution {
    /// Its name in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Distribution::Zipf => "zipf",
            Distribution::Uniform => "uniform",
        }
    }
}

/// A source of ids for the tables of one site.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    stream: Stream,
    tables: Vec<Table>,
    distribution: Distribution,
}

#[derive(Clone, Debug)]
struct Table {
    rows: u32,
    zipf: Zipf,
    multiplier: u64,
    addend: u64,
}

impl Ids {
    /// Ids for the first site of `tables`; `exponent` is Zipf's s.
    pub(super) fn new(seed: u64, tables: &TableSet, distribution: Distribution, exponent: f64) -> Ids {
        let stream = Stream::new(seed, Purpose::SyntheticData);
        let site = tables.iter().take(tables.tables_per_site() as usize);
        let table = |(index, rows): (u64, u32)| {
            let n = u64::from(rows);
            let mut multiplier = 1 + stream.below(u64::MAX, 2 * index, n);
            while gcd(multiplier, n) != 1 {
                multiplier += 1;
            }
            let addend = stream.below(u64::MAX, 2 * index + 1, n);
            Table { rows, zipf: Zipf::new(n, exponent), multiplier: multiplier % n.max(2), addend }
        };
        let tables = (0u64..).zip(site.map(|table| table.rows)).map(table).collect();
        Ids { stream, tables, distribution }
    }

    /// Tables.
    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Ids of one table at one step, in the order of `tokens` positions.
    pub(super) fn column(&self, step: u64, table: usize, tokens: usize) -> Vec<u32> {
        (0..tokens as u64).map(|position| self.id(step, table, position)).collect()
    }

    fn id(&self, step: u64, table: usize, position: u64) -> u32 {
        let high = step << 16 | table as u64;
        let table = &self.tables[table];
        match self.distribution {
            Distribution::Uniform => self.stream.below(high, position, u64::from(table.rows)) as u32,
            Distribution::Zipf => {
                let draw = |attempt: u64| {
                    let [a, b, ..] = self.stream.words(high, attempt << 32 | position);
                    // 53 bits, in (0, 1].
                    let bits = u64::from(a) << 21 | u64::from(b) >> 11;
                    (bits + 1) as f64 / (1u64 << 53) as f64
                };
                let rank = (0..).find_map(|attempt| table.zipf.accept(draw(attempt))).unwrap_or(0);
                let n = u64::from(table.rows);
                ((rank * table.multiplier + table.addend) % n) as u32
            }
        }
    }
}

/// Ids of several steps: `[steps][tables][tokens]`.
pub(super) type Steps = Vec<Vec<Vec<u32>>>;

/// Reads a file of little-endian u32, `[steps, tables, tokens]`, whose ids must lie in `tables`.
pub(super) fn read(path: &Path, tables: &TableSet, tokens: usize) -> Result<Steps, BenchError> {
    let refuse = |rule: String| BenchError::Ids { path: path.to_owned(), rule };
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let (words, rest) = bytes.as_chunks::<4>();
    let columns = tables.tables_per_site() as usize;
    if !rest.is_empty() || words.is_empty() || !words.len().is_multiple_of((columns * tokens).max(1)) {
        return Err(refuse(format!("{} bytes are not [steps, {columns}, {tokens}] u32", bytes.len())));
    }
    let ids: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    for (at, column) in ids.chunks(tokens).enumerate() {
        let rows = tables.iter().nth(at % columns).map_or(0, |table| table.rows);
        if let Some(id) = column.iter().find(|id| **id >= rows) {
            return Err(refuse(format!("row {id} is not in table {} of {rows} rows", at % columns)));
        }
    }
    let step = |step: &[u32]| step.chunks(tokens).map(<[u32]>::to_vec).collect();
    Ok(ids.chunks(columns * tokens).map(step).collect())
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Zipf's law over ranks 1..=n by rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate
/// variates from monotone discrete distributions", ACM TOMACS 6(3), 1996).
#[derive(Clone, Copy, Debug)]
struct Zipf {
    n: f64,
    s: f64,
    h_first: f64,
    h_last: f64,
    shift: f64,
}

impl Zipf {
    fn new(n: u64, s: f64) -> Zipf {
        let mut zipf = Zipf { n: n as f64, s, h_first: 0.0, h_last: 0.0, shift: 0.0 };
        zipf.h_first = zipf.h(1.5) - 1.0;
        zipf.h_last = zipf.h(zipf.n + 0.5);
        zipf.shift = 2.0 - zipf.h_inverse(zipf.h(2.5) - (-s * 2f64.ln()).exp());
        zipf
    }

    /// The integral of x^-s, which is ln x for s = 1.
    fn h(&self, x: f64) -> f64 {
        let (log, t) = (x.ln(), (1.0 - self.s) * x.ln());
        if t.abs() < 1e-8 { log * (1.0 + t / 2.0) } else { log * t.exp_m1() / t }
    }

    fn h_inverse(&self, y: f64) -> f64 {
        let t = (y * (1.0 - self.s)).max(-1.0);
        if t.abs() < 1e-8 { (y * (1.0 - t / 2.0)).exp() } else { (y * t.ln_1p() / t).exp() }
    }

    /// The rank less one that `u` in (0, 1] gives, or `None` where another `u` must be drawn.
    fn accept(&self, u: f64) -> Option<u64> {
        let y = self.h_last + u * (self.h_first - self.h_last);
        let x = self.h_inverse(y);
        let k = (x + 0.5).floor().clamp(1.0, self.n);
        let accepted = k - x <= self.shift || y >= self.h(k + 0.5) - (-self.s * k.ln()).exp();
        accepted.then_some(k as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn tables(rows: u32) -> TableSet {
        let text = include_str!("../../../configs/tiny.toml");
        let overrides = [format!("ngram.base_rows={rows}")];
        RunFile::parse(text, "tiny", &overrides).and_then(|file| file.resolve()).unwrap().tables()
    }

    /// Frequencies of the first ranks against 1/k^s over the harmonic sum.
    #[test]
    fn zipf_has_its_frequencies() {
        let rows = 1009;
        let draws = 200_000;
        for s in [0.8, 1.0, 1.2] {
            let ids = Ids::new(3, &tables(rows), Distribution::Zipf, s);
            let mut counts = vec![0u32; rows as usize];
            for id in ids.column(0, 0, draws) {
                counts[id as usize] += 1;
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let total: f64 = (1..=rows).map(|k| f64::from(k).powf(-s)).sum();
            for k in [1usize, 2, 3, 5, 10] {
                let expected = (k as f64).powf(-s) / total;
                let found = f64::from(counts[k - 1]) / draws as f64;
                assert!((found / expected - 1.0).abs() < 0.1, "s {s}, rank {k}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn ids_are_a_function_of_their_place() {
        let tables = tables(1003);
        for distribution in [Distribution::Zipf, Distribution::Uniform] {
            let ids = Ids::new(1, &tables, distribution, 1.0);
            assert_eq!(ids.tables(), 4);
            let long = ids.column(5, 2, 300);
            assert_eq!(ids.column(5, 2, 100), long[..100]);
            assert_ne!(ids.column(6, 2, 300), long);
            assert!(long.iter().all(|id| *id < 1007));
        }
    }

    #[test]
    fn a_file_of_ids_is_read_strictly() {
        let tables = tables(1003);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids");
        let ids: Vec<u32> = (0..2 * 4 * 5).collect();
        std::fs::write(&path, bytemuck::cast_slice(&ids)).unwrap();
        let steps = read(&path, &tables, 5).unwrap();
        assert_eq!((steps.len(), steps[1].len()), (2, 4));
        assert_eq!(steps[1][0], [20, 21, 22, 23, 24]);
        assert!(read(&path, &tables, 7).unwrap_err().to_string().contains("160 bytes"));
        std::fs::write(&path, [255u8; 80]).unwrap();
        assert!(read(&path, &tables, 5).unwrap_err().to_string().contains("table 0 of 1003"));
    }
}
