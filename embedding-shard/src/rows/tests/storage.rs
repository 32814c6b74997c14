//! bf16 storage, and rows out to checkpoints and back.

use polygram_checkpoint::RowRecord;
use polygram_domain::embedding::{RowDecay, RowOptimizer, RowType};
use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::tables::BUCKETS;
use polygram_domain::{RowId, RowRef, TableIndex};

use super::{Contributions, RULES, Random, bits, config, read, rounded, store, wide};
use crate::config::ShardConfig;
use crate::rows::{RowRule, RowState, RowStore, RowsOut};

const TABLE: TableIndex = TableIndex(1);

fn stored_as(storage: RowType, optimizer: RowOptimizer, width: u32) -> ShardConfig {
    config(width, |embedding| {
        (embedding.storage, embedding.optimizer) = (storage, optimizer);
        embedding.weight_decay = 0.01;
    })
}

/// Gives `rows` of `store` one update from `random`.
fn step(store: &mut RowStore, rows: &[u32], (random, step, width): (&mut Random, u64, usize)) {
    let rates = random.rates(step, 1e-3);
    let gradients = Contributions::one_each(rows.iter().map(|_| random.values(width, 1.0)).collect());
    store.update(TABLE, rows, &gradients, rates).unwrap();
}

#[test]
fn virtual_bf16_rows_are_rounded_as_update_0() {
    for width in [13usize, 72] {
        let config = stored_as(RowType::Bf16, RowOptimizer::Adam, width as u32);
        let store = store(&config);
        let stream = Stream::new(config.seed, Purpose::RowInit);
        for row in [0, 1, 600] {
            let initial = |column: usize| {
                let low = u64::from(row) * width.div_ceil(4) as u64 + column as u64 / 4;
                let word = stream.words(u64::from(TABLE.0), low)[column % 4];
                unit_variance_uniform(word) * config.embedding.init_std as f32
            };
            let initial: Vec<f32> = (0..width).map(initial).collect();
            let expected = rounded(config.seed, RowRef { table: TABLE, row: RowId(row) }, 0, &initial);
            assert_eq!(bits(&read(&store, TABLE, row, width)), bits(&wide(&expected)), "{width}, row {row}");
        }
    }
}

#[test]
fn bf16_updates_are_rounded_by_the_documented_counters() {
    let (rows, width) = ([2, 3, 900], 77);
    for optimizer in RULES {
        let config = stored_as(RowType::Bf16, optimizer, width as u32);
        let (mut store, mut random) = (store(&config), Random::new(60));
        let rule = RowRule::of(&config.embedding);
        for updates in 1..=6 {
            let rates = random.rates(u64::from(updates), 1e-3);
            let gradients: Vec<_> = rows.iter().map(|_| random.values(width, 1.0)).collect();
            let mut expected = Vec::new();
            for (&row, gradient) in rows.iter().zip(&gradients) {
                // The first update starts from exactly what the virtual row was read as.
                let mut weights = read(&store, TABLE, row, width);
                let (count, mut state) = match store.record(RowRef { table: TABLE, row: RowId(row) }) {
                    Some((count, values)) => (count, values[width..].to_vec()),
                    None => (0, vec![0.0; optimizer.state_values(width)]),
                };
                assert_eq!(count, updates - 1);
                let row_state = RowState { updates, weights: &mut weights, state: &mut state };
                rule.update(row_state, gradient, rates);
                let stored =
                    rounded(config.seed, RowRef { table: TABLE, row: RowId(row) }, updates, &weights);
                expected.push((row, weights, stored, state));
            }
            let gradients = Contributions::one_each(gradients);
            let mut noted = Vec::new();
            let note = |row: crate::rows::Updated<'_>| noted.push((row.row.0, bits(row.weights)));
            store.update_noting(TABLE, &rows, &gradients, rates, note).unwrap();
            for ((row, weights, stored, state), noted) in expected.into_iter().zip(noted) {
                let case = format!("seed 60, {optimizer:?}, row {row}, update {updates}");
                assert_eq!(noted, (row, bits(&weights)), "{case}: unrounded");
                let (count, values) = store.record(RowRef { table: TABLE, row: RowId(row) }).unwrap();
                assert_eq!(count, updates, "{case}");
                assert_eq!(bits(&values[..width]), bits(&wide(&stored)), "{case}: weights");
                assert_eq!(bits(&values[width..]), bits(&state), "{case}: state");
                assert_eq!(bits(&read(&store, TABLE, row, width)), bits(&wide(&stored)), "{case}: read");
                let mut gathered = vec![0; width];
                store.gather(TABLE, &[row], RowsOut::Bf16(&mut gathered));
                assert_eq!(gathered, stored, "{case}: gathered");
            }
        }
    }
}

#[test]
fn rows_come_back_to_the_bit_and_have_the_same_future() {
    for (seed, optimizer) in (70..).zip(RULES) {
        for storage in [RowType::F32, RowType::Bf16] {
            let (config, width) = (stored_as(storage, optimizer, 13), 13);
            let (mut random, mut through) = (Random::new(seed), store(&config));
            let mut again = store(&config);
            for at in 0..5 {
                let rows = random.rows(30, 200);
                step(&mut through, &rows, (&mut random, at, width));
            }
            for row in (0..200).map(RowId) {
                if let Some((updates, values)) = through.record(RowRef { table: TABLE, row }) {
                    again.restore(TABLE, RowRecord { row, updates, values: &values }).unwrap();
                }
            }
            let case = format!("seed {seed}, {optimizer:?}, {storage:?}");
            let same = |a: &RowStore, b: &RowStore| {
                assert!(a.written() > 50 && a.written() == b.written(), "{case}");
                for row in 0..200 {
                    assert_eq!(
                        a.record(RowRef { table: TABLE, row: RowId(row) }),
                        b.record(RowRef { table: TABLE, row: RowId(row) }),
                        "{case}, row {row}"
                    );
                    let (a, b) = (read(a, TABLE, row, width), read(b, TABLE, row, width));
                    assert_eq!(bits(&a), bits(&b), "{case}, row {row}");
                }
            };
            same(&through, &again);
            for at in 5..10 {
                let (rows, next) = (random.rows(30, 200), random.next);
                step(&mut through, &rows, (&mut random, at, width));
                random.next = next;
                step(&mut again, &rows, (&mut random, at, width));
            }
            same(&through, &again);
        }
    }
}

#[test]
fn a_row_of_another_shape_is_refused() {
    let config = stored_as(RowType::Bf16, RowOptimizer::Adam, 13);
    let mut store = RowStore::new(&config, &(0..BUCKETS / 2)).unwrap();
    let (end, tables) = (store.rows_of(TABLE).end, config.tables.len() as u32);
    let good = vec![0.5f32; 3 * 13];
    let mut fine = good.clone();
    fine[7] = 1.0 + f32::EPSILON;
    let attempts = [
        (TABLE, end, &good[..], "it is not among rows"),
        (TableIndex(tables), 0, &good, "there are 4 tables"),
        (TABLE, 1, &good[1..], "it has 38 values, a record has 39"),
        (TABLE, 1, &[], "it has 0 values"),
        (TABLE, 1, &fine, "its weight 1.0000001 in column 7 is not a bf16 value"),
    ];
    for (table, row, values, words) in attempts {
        let before = read(&store, TABLE, 1, 13);
        let saved = RowRecord { row: RowId(row), updates: 3, values };
        let error = store.restore(table, saved).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&format!("row {row} of table {table}")), "{error}");
        assert_eq!(store.written(), 0, "{error}");
        assert_eq!(bits(&read(&store, TABLE, 1, 13)), bits(&before), "{error}");
    }
    // Optimizer values are f32 whatever weights are.
    let mut saved = good.clone();
    saved[13] = 1.0 + f32::EPSILON;
    store.restore(TABLE, RowRecord { row: RowId(1), updates: 3, values: &saved }).unwrap();
    let twice = store.restore(TABLE, RowRecord { row: RowId(1), updates: 4, values: &good }).unwrap_err();
    assert!(twice.to_string().contains("it was restored already"), "{twice}");
    assert_eq!(store.record(RowRef { table: TABLE, row: RowId(1) }), Some((3, saved)));
    assert_eq!(store.written(), 1);
}

#[test]
fn what_is_no_decay_is_refused() {
    let config = config(4, |embedding| {
        (embedding.optimizer, embedding.weight_decay) = (RowOptimizer::Sgd, 0.1);
        embedding.decay = RowDecay::All;
    });
    let mut store = store(&config);
    for digits in [[0.5, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, f32::NAN]] {
        let values = [&[1.0f32; 4][..], &digits].concat();
        let error = store.restore(TABLE, RowRecord { row: RowId(0), updates: 1, values: &values });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("are not the digits of a decay"), "{error}");
        assert_eq!(store.written(), 0);
    }
}
