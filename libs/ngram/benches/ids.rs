//! Ids per second on one core, hashed, and made distinct with their inverse and divided among shards: `cargo bench -p
//! polygram-ngram --bench ids`. The best of several rounds.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use polygram_domain::model::{Amplification, NgramSpec, Normalizer};
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::run_file::ratio_of_base;
use polygram_domain::{ShardIndex, TableIndex, TableSpec};
use polygram_ngram::{Hasher, NgramError, UniqueRows};

const ROUNDS: usize = 15;
const SHARDS: u32 = 16;

fn main() -> Result<(), NgramError> {
    let mut out = std::io::stdout().lock();
    let stream = Stream::new(1, Purpose::SyntheticData);
    for (name, orders, heads) in [("N=4 K=4", 4, 4), ("N=3 K=2", 3, 2), ("N=7 K=2", 7, 2)] {
        let vocab = 131_072;
        let spec = NgramSpec {
            max_order: orders,
            heads,
            ratio: ratio_of_base(10_232_743, vocab),
            hash_vocab_size: vocab,
            ignored_tokens: Vec::new(),
            normalizer: Normalizer::Mean,
            amplification: Amplification::None,
        };
        let hasher = Hasher::new(&spec, 2)?;
        // Zipf-like: the square of a uniform rank, so that rows repeat as in text.
        let tokens: Vec<u32> = (0..8192u64)
            .map(|i| {
                let rank = stream.below(0, i, u64::from(vocab)) as f64 / f64::from(vocab);
                (rank.powi(4) * f64::from(vocab)) as u32
            })
            .collect();
        let table = |(index, &rows): (u32, &u32)| TableSpec {
            index: TableIndex(index),
            name: String::new(),
            site_table: index,
            order: 2 + index / heads,
            rows,
            width: 256,
        };
        let tables: Vec<TableSpec> = (0u32..).zip(hasher.rows()).map(table).collect();
        let mut ids = vec![0; tokens.len() * hasher.tables()];
        let (mut hashing, mut uniting) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..20 {
                hasher.ids_into(black_box(&tokens), black_box(&mut ids))?;
            }
            hashing = hashing.min(start.elapsed().as_secs_f64() / 20.0);
            let start = Instant::now();
            let unique = UniqueRows::of(black_box(&ids), hasher.tables());
            for table in &tables {
                for shard in 0..SHARDS {
                    black_box(unique.shard_range(table, ShardIndex(shard), SHARDS));
                }
            }
            black_box(&unique);
            uniting = uniting.min(start.elapsed().as_secs_f64());
        }
        let rate = |seconds: f64| ids.len() as f64 / seconds / 1e6;
        // A closed pipe is no reason to fail.
        let _ = writeln!(
            out,
            "{name}: {:.0} M ids/s hashed, {:.0} M ids/s made distinct and divided",
            rate(hashing),
            rate(uniting)
        );
    }
    Ok(())
}
