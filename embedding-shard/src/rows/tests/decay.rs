//! Decay of all rows: what a dense optimizer does to a whole table, paid for at reads and updates.

use std::collections::BTreeMap;

use polygram_checkpoint::RowRecord;
use polygram_domain::embedding::{RowDecay, RowOptimizer, RowType};
use polygram_domain::{RowId, RowRef, TableIndex};

use super::{Contributions, Exact, RULES, Random, bits, config, read, store};
use crate::config::ShardConfig;
use crate::rows::{DecayLog, RowStore};

const WIDTH: usize = 13;
const TABLES: u32 = 2;
/// Rows of each table that are followed; the last ten are never hit.
const FOLLOWED: u32 = 40;
const HIT: u32 = 30;

fn decaying(optimizer: RowOptimizer, storage: RowType) -> ShardConfig {
    config(WIDTH as u32, |embedding| {
        (embedding.optimizer, embedding.storage) = (optimizer, storage);
        (embedding.decay, embedding.weight_decay) = (RowDecay::All, 1.5);
        (embedding.max_row_norm, embedding.init_std) = (None, 0.1);
    })
}

/// A new store that was given all that `from` would save.
fn saved_and_restored(from: &RowStore, config: &ShardConfig) -> RowStore {
    let mut to = store(config);
    for table in (0..config.tables.len() as u32).map(TableIndex) {
        for row in from.rows_of(table).map(RowId) {
            if let Some((updates, values)) = from.record(RowRef { table, row }) {
                assert_eq!(values.len(), config.state_values() + WIDTH);
                to.restore(table, RowRecord { row, updates, values: &values }).unwrap();
            }
        }
    }
    let log = from.decayed();
    to.set_decayed(DecayLog::from_digits(log.digits()).unwrap());
    assert_eq!((to.written(), to.decayed()), (from.written(), log));
    to
}

fn rows() -> impl Iterator<Item = (TableIndex, u32)> {
    (0..TABLES).flat_map(|table| (0..FOLLOWED).map(move |row| (TableIndex(table), row)))
}

/// Runs 80 steps against a dense f64 reference where there is one, and with a save and restore before step 33.
fn run(config: &ShardConfig, seed: u64) {
    let spec = &config.embedding;
    let case = format!("seed {seed}, {:?}, {:?}", spec.optimizer, spec.storage);
    let mut random = Random::new(seed);
    let mut through = store(config);
    let mut restored = None;
    let mut dense: BTreeMap<_, _> =
        rows().map(|(table, row)| ((table.0, row), Exact::of(&read(&through, table, row, WIDTH)))).collect();
    let (mut skipped, mut looks) = (0, 0);
    for step in 0..80 {
        if step == 33 {
            restored = Some(saved_and_restored(&through, config));
        }
        let rates = random.rates(step, 1e-3);
        // A skipped step changes nothing anywhere: no row is updated, none decays.
        if random.below(5) == 0 {
            skipped += 1;
        } else {
            dense.values_mut().for_each(|row| row.decay(spec, rates.lr));
            for table in 0..TABLES {
                let hit = random.rows(4, HIT);
                let gradients: Vec<_> = hit.iter().map(|_| random.values(WIDTH, 1.0)).collect();
                for (row, gradient) in hit.iter().zip(&gradients) {
                    dense.get_mut(&(table, *row)).unwrap().update(spec, gradient, rates);
                }
                let gradients = Contributions::one_each(gradients);
                for store in [Some(&mut through), restored.as_mut()].into_iter().flatten() {
                    store.update(TableIndex(table), &hit, &gradients, rates).unwrap();
                }
            }
            for store in [Some(&mut through), restored.as_mut()].into_iter().flatten() {
                store.finish_step(rates.lr);
            }
        }
        if random.below(4) > 0 && step != 79 {
            continue;
        }
        looks += 1;
        for (table, row) in rows() {
            let weights = read(&through, table, row, WIDTH);
            if spec.storage == RowType::F32 {
                let distance = dense[&(table.0, row)].distance(&weights);
                assert!(distance <= 1e-6, "{case}, step {step}, row {row}: off by {distance:e}");
            }
            if let Some(restored) = &restored {
                let again = read(restored, table, row, WIDTH);
                assert_eq!(bits(&again), bits(&weights), "{case}, step {step}, row {row}: after a restore");
                assert_eq!(
                    restored.record(RowRef { table, row: RowId(row) }),
                    through.record(RowRef { table, row: RowId(row) }),
                    "{case}"
                );
            }
        }
    }
    assert!(skipped > 5 && looks > 10, "{case}: {skipped} steps were skipped, {looks} looked at");
    assert!(
        through.written() > 20
            && !through.is_written(RowRef { table: TableIndex(0), row: RowId(FOLLOWED - 1) })
    );
    let never_hit = (TableIndex(1), FOLLOWED - 1);
    let (now, first) = (read(&through, never_hit.0, never_hit.1, WIDTH), store(config));
    let first = read(&first, never_hit.0, never_hit.1, WIDTH);
    let left = f64::from(now[0]) / f64::from(first[0]);
    assert!((0.5..0.9).contains(&left), "{case}: {left} is left of a virtual row");
}

#[test]
fn rows_equal_a_dense_table_that_decays() {
    for (seed, optimizer) in (40..).zip(RULES) {
        run(&decaying(optimizer, RowType::F32), seed);
    }
}

#[test]
fn decaying_bf16_rows_come_back_to_the_bit() {
    run(&decaying(RowOptimizer::Adam, RowType::Bf16), 50);
    run(&decaying(RowOptimizer::RowwiseAdagrad, RowType::Bf16), 51);
}

#[test]
fn without_all_rows_decaying_a_step_leaves_others_alone() {
    let config = config(WIDTH as u32, |embedding| {
        (embedding.decay, embedding.weight_decay) = (RowDecay::Touched, 1.5);
    });
    let mut store = store(&config);
    let hit = [3, 5];
    let others: Vec<_> = [4, 6].map(|row| read(&store, TableIndex(0), row, WIDTH)).into();
    let rates = Random::new(52).rates(0, 1e-2);
    let gradients = Contributions::one_each(vec![vec![1.0; WIDTH]; 2]);
    store.update(TableIndex(0), &hit, &gradients, rates).unwrap();
    let updated = read(&store, TableIndex(0), 3, WIDTH);
    store.finish_step(rates.lr);
    assert_eq!(store.decayed(), DecayLog::default());
    assert_eq!(bits(&read(&store, TableIndex(0), 3, WIDTH)), bits(&updated));
    for (row, before) in [4, 6].into_iter().zip(others) {
        assert_eq!(bits(&read(&store, TableIndex(0), row, WIDTH)), bits(&before), "row {row}");
    }
}
