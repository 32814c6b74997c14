//! Gathering and updating many rows, and what a store says of itself.

use polygram_domain::embedding::{RowDecay, RowOptimizer, RowType};
use polygram_domain::{RowId, RowRef, TableIndex};

use super::{Contributions, Random, bits, config, is_bf16, read, store};
use crate::config::{ShardConfig, rows_of_buckets};
use crate::rows::{RowStore, RowsOut};

const TABLE: TableIndex = TableIndex(2);
const WIDTH: usize = 21;
/// Rows of the table that are used; more than one batch.
const ROWS: u32 = 600;

fn stored_as(storage: RowType, decay: RowDecay) -> ShardConfig {
    config(WIDTH as u32, |embedding| {
        (embedding.storage, embedding.decay) = (storage, decay);
        (embedding.optimizer, embedding.weight_decay) = (RowOptimizer::Adam, 0.5);
    })
}

/// A store whose every third row, about, is written.
fn partly_written(config: &ShardConfig, random: &mut Random) -> RowStore {
    let mut store = store(config);
    for step in 0..3 {
        let rows = random.rows(80, ROWS);
        let rates = random.rates(step, 1e-2);
        let gradients = rows.iter().map(|_| random.values(WIDTH, 1.0)).collect();
        store.update(TABLE, &rows, &Contributions::one_each(gradients), rates).unwrap();
        store.finish_step(rates.lr);
    }
    store
}

#[test]
fn gathering_equals_reading_row_by_row() {
    for storage in [RowType::F32, RowType::Bf16] {
        for decay in [RowDecay::Touched, RowDecay::All] {
            let mut random = Random::new(80);
            let store = partly_written(&stored_as(storage, decay), &mut random);
            // The last is more than a mebibyte of bf16: rows that a store may write past the caches.
            for count in [0, 1, 3, 4, 5, 255, 256, 257, 1500, 26_000] {
                // Any order, and above 600 with duplicates for certain.
                let rows: Vec<u32> = (0..count).map(|_| random.below(ROWS)).collect();
                let case = format!("seed 80, {storage:?}, {decay:?}, {count} rows");
                let mut narrow = vec![0u16; count * WIDTH];
                store.gather(TABLE, &rows, RowsOut::Bf16(&mut narrow));
                let mut wide = vec![f32::NAN; count * WIDTH];
                store.gather(TABLE, &rows, RowsOut::F32(&mut wide));
                // Backwards, with a row left free in between.
                let places: Vec<u32> = (0..count as u32).rev().map(|place| 2 * place).collect();
                let mut apart = vec![f32::NAN; 2 * count * WIDTH];
                store.scatter(TABLE, &rows, |row| &places[row..=row], &mut apart);
                for (pair, wide) in apart.chunks(2 * WIDTH).rev().zip(wide.chunks(WIDTH)) {
                    assert_eq!(bits(&pair[..WIDTH]), bits(wide), "{case}");
                    assert!(pair[WIDTH..].iter().all(|value| value.is_nan()), "{case}");
                }
                for ((wide, narrow), &row) in wide.chunks(WIDTH).zip(narrow.chunks(WIDTH)).zip(&rows) {
                    let expected = read(&store, TABLE, row, WIDTH);
                    assert_eq!(bits(wide), bits(&expected), "{case}: row {row}");
                    let nearest = |value: &f32| half::bf16::from_f32(*value).to_bits();
                    let nearest: Vec<u16> = expected.iter().map(nearest).collect();
                    assert_eq!(narrow, nearest, "{case}: row {row} as bf16");
                    assert!(decay == RowDecay::All || is_bf16(storage, wide), "{case}: row {row}");
                }
                let unwritten = rows
                    .iter()
                    .filter(|&&row| store.record(RowRef { table: TABLE, row: RowId(row) }).is_none())
                    .count();
                assert_eq!(store.count_virtual(TABLE, &rows), unwritten as u64, "{case}");
                assert!(count < 255 || (unwritten > 50 && unwritten < count - 50), "{case}: {unwritten}");
            }
        }
    }
}

#[test]
fn updates_of_many_rows_are_noted_once_each() {
    for storage in [RowType::F32, RowType::Bf16] {
        let config = stored_as(storage, RowDecay::Touched);
        let mut random = Random::new(81);
        let mut store = partly_written(&config, &mut random);
        let rows: Vec<u32> = (0..ROWS).filter(|row| row % 7 != 3).collect();
        assert!(rows.len() > 512);
        // One to three contributions a row; halves, so that every order has the same sum.
        let contributions: Vec<Vec<Vec<f32>>> = (0..rows.len())
            .map(|place| {
                let mut values = || (0..WIDTH).map(|_| random.below(64) as f32 / 2.0 - 16.0).collect();
                (0..=place % 3).map(|_| values()).collect()
            })
            .collect();
        let sums = contributions.iter().map(|of_row| {
            (0..WIDTH).map(|c| of_row.iter().map(|values| values[c]).sum()).collect::<Vec<f32>>()
        });
        let sums: Vec<Vec<f32>> = sums.collect();
        let counts = |store: &RowStore| -> Vec<u32> {
            let updates = |row| {
                store.record(RowRef { table: TABLE, row: RowId(row) }).map_or(0, |(updates, _)| updates)
            };
            (0..ROWS).map(updates).collect()
        };
        let before = counts(&store);
        let unwritten = store.count_virtual(TABLE, &rows);
        let (written, rates) = (store.written(), random.rates(3, 1e-2));

        // The same rows one by one, in another order, with the sums.
        let mut single = partly_written(&config, &mut Random::new(81));
        for (&row, sum) in rows.iter().zip(&sums).rev() {
            single.update(TABLE, &[row], &Contributions::one_each(vec![sum.clone()]), rates).unwrap();
        }
        let mut noted = Vec::new();
        let gradients = Contributions(contributions);
        store
            .update_noting(TABLE, &rows, &gradients, rates, |row| {
                noted.push((row.row.0, row.updates, row.stored.to_vec()));
            })
            .unwrap();

        let case = format!("seed 81, {storage:?}");
        assert_eq!(store.written(), written + unwritten, "{case}");
        assert_eq!(noted.iter().map(|(row, ..)| *row).collect::<Vec<_>>(), rows, "{case}: rows noted");
        for (row, updates, stored) in &noted {
            assert_eq!(*updates, before[*row as usize] + 1, "{case}: row {row}");
            let weights = read(&store, TABLE, *row, WIDTH);
            let expected: Vec<u8> = match storage {
                RowType::F32 => weights.iter().flat_map(|weight| weight.to_ne_bytes()).collect(),
                RowType::Bf16 => {
                    weights.iter().flat_map(|w| half::bf16::from_f32(*w).to_ne_bytes()).collect()
                }
            };
            assert_eq!(*stored, expected, "{case}: stored bytes of row {row}");
        }
        for row in 0..ROWS {
            assert_eq!(
                store.record(RowRef { table: TABLE, row: RowId(row) }),
                single.record(RowRef { table: TABLE, row: RowId(row) }),
                "{case}, row {row}"
            );
        }
        let after = counts(&store);
        for row in (0..ROWS).filter(|row| row % 7 == 3).map(|row| row as usize) {
            assert_eq!(after[row], before[row], "{case}: row {row} was not updated");
        }
    }
}

#[test]
fn nothing_is_asked_of_no_rows() {
    let mut store = store(&stored_as(RowType::Bf16, RowDecay::All));
    store.gather(TABLE, &[], RowsOut::F32(&mut []));
    store.gather(TABLE, &[], RowsOut::Bf16(&mut []));
    assert_eq!(store.count_virtual(TABLE, &[]), 0);
    let rates = Random::new(0).rates(0, 1.0);
    store.update_noting(TABLE, &[], &Contributions(Vec::new()), rates, |row| panic!("{row:?}")).unwrap();
    assert_eq!(store.written(), 0);
}

#[test]
fn written_rows_are_counted_and_found() {
    let config = stored_as(RowType::F32, RowDecay::Touched);
    let buckets = 1000..3000;
    let mut store = RowStore::new(&config, &buckets).unwrap();
    let owned = store.rows_of(TABLE);
    assert_eq!(owned, rows_of_buckets(config.tables.get(TABLE).unwrap(), &buckets));
    assert!(owned.start > 0 && owned.len() > 300);
    let mut random = Random::new(82);
    let mut written = std::collections::BTreeSet::new();
    for step in 0..4 {
        for table in [TABLE, TableIndex(0)] {
            let first = store.rows_of(table).start;
            let rows: Vec<u32> = random.rows(20, 300).into_iter().map(|row| first + row).collect();
            let gradients = Contributions::one_each(vec![vec![1.0; WIDTH]; rows.len()]);
            store.update(table, &rows, &gradients, random.rates(step, 1e-3)).unwrap();
            written.extend(rows.into_iter().map(|row| (table.0, row)));
            assert_eq!(store.written(), written.len() as u64, "seed 82, step {step}");
        }
    }
    for table in [TABLE, TableIndex(0), TableIndex(1)] {
        let rows = store.rows_of(table);
        let expected: Vec<u32> = written.iter().filter(|(t, _)| *t == table.0).map(|(_, row)| *row).collect();
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some(row) = store.next_written(table, from, u32::MAX) {
            found.push(row.0);
            from = row.0 + 1;
        }
        assert_eq!(found, expected, "seed 82, {table}");
        for row in rows.clone() {
            assert_eq!(
                store.is_written(RowRef { table, row: RowId(row) }),
                written.contains(&(table.0, row)),
                "row {row}"
            );
        }
        for row in expected {
            assert_eq!(store.next_written(table, row, row + 1), Some(RowId(row)));
            assert_eq!(store.next_written(table, row, row), None, "an empty range");
        }
    }
}
