//! Counts of members become the run's tables.

use polygram_domain::control::{Fingerprint, InputReport, Mark, RowsStatus, ShardReport, TableRows};
use polygram_domain::{TableIndex, TableSpec};
use polygram_telemetry::HyperLogLog;

use super::*;

fn table(index: u32, order: u32, rows: u32) -> TableSpec {
    TableSpec {
        index: TableIndex(index),
        name: format!("t{index}"),
        site_table: index,
        order,
        rows,
        width: 4,
    }
}

fn run() -> Run {
    let mut run = Run::new(Settings { tables: vec![table(0, 2, 1000), table(1, 3, 1003)], ..settings() });
    run.start();
    run
}

fn shard(touched: [u64; 2], marks: &[(u64, u64)]) -> MemberReport {
    let tables = touched.map(|touched_rows| TableRows { owned_rows: 501, touched_rows });
    let marks = marks
        .iter()
        .map(|&(version, value)| Mark { version: Step(version), fingerprint: Fingerprint(value) });
    MemberReport::Shard(Box::new(ShardReport {
        version: Step(marks.len() as u64),
        since: Step(0),
        record_bytes: 64,
        tables: tables.to_vec(),
        declared_rows: 30,
        step_rows: 20,
        parked_lookups: 0,
        parked_seconds: 0.0,
        lane_skew_ratio: None,
        marks: marks.collect(),
        query_address: None,
        metrics_address: None,
    }))
}

/// Counts of n-grams `ngrams` of both orders, by number.
fn input(since: u64, ngrams: std::ops::Range<u64>) -> MemberReport {
    let mut sketch = HyperLogLog::default();
    for ngram in ngrams {
        // SplitMix64, so that numbers are spread as hashes are.
        let mut z = (ngram + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        sketch.insert(z ^ z >> 31);
    }
    let sketches = vec![sketch.as_bytes().to_vec(); 2];
    let (since, step) = (Step(since), Step(9));
    MemberReport::Input(Box::new(InputReport { since, step, row_ids: 100, unique_rows: 40, sketches }))
}

fn rows(run: &Run) -> RowsStatus {
    run.state.status(run.now).rows
}

#[test]
fn tables_are_judged_by_all_workers_n_grams_and_all_shards_rows() {
    let mut run = run();
    assert_eq!(rows(&run), RowsStatus::default());
    run.report(S0, shard([200, 100], &[]));
    assert!(rows(&run).tables.is_empty(), "half of the rows are no table");
    run.report(S1, shard([180, 90], &[]));
    let tables = rows(&run).tables;
    assert_eq!(
        tables.iter().map(|t| (t.rows, t.touched_rows)).collect::<Vec<_>>(),
        [(1000, 380), (1003, 190)]
    );
    assert!(tables.iter().all(|table| table.collisions.is_none()), "nobody has counted n-grams");

    // Both workers saw 300 n-grams, 100 of them alike: 500 in all, which the ideal hash puts on 394 rows.
    run.report(W0, input(0, 0..300));
    assert!(rows(&run).tables[0].collisions.is_none(), "half of the workers are no run");
    run.report(W1, input(0, 200..500));
    let status = rows(&run);
    let collisions: Vec<_> = status.tables.iter().map(|table| table.collisions.unwrap()).collect();
    assert!((collisions[0].distinct_ngrams - 500.0).abs() < 15.0, "{collisions:?}");
    assert!((collisions[0].ideal_rows - 393.6).abs() < 10.0, "{collisions:?}");
    assert!((collisions[0].excess_ratio.unwrap() - (1.0 - 380.0 / 393.6)).abs() < 0.03, "{collisions:?}");
    assert!(collisions[1].excess_ratio.unwrap() > 0.4, "{collisions:?}");
    let counted = status.input.unwrap();
    assert_eq!((counted.row_ids, counted.unique_ratio()), (200, Some(0.4)));

    // A worker that began later has not seen everything: then nothing is claimed.
    run.report(W1, input(20, 0..500));
    let status = rows(&run);
    assert_eq!(status.input.unwrap().since, Step(20));
    assert!(status.tables.iter().all(|table| table.collisions.is_none()));
}

#[test]
fn the_fingerprint_is_that_of_a_version_all_shards_have() {
    let mut run = run();
    run.report(S0, shard([1, 1], &[(9, 70), (8, u64::MAX), (4, 1)]));
    assert_eq!(rows(&run).fingerprint, None);
    run.report(S1, shard([1, 1], &[(10, 5), (8, 3), (4, 2)]));
    let found = rows(&run).fingerprint.unwrap();
    assert_eq!((found.since, found.mark.version, found.mark.fingerprint), (Step(0), Step(8), Fingerprint(2)));
    run.report(S1, shard([1, 1], &[(11, 5)]));
    assert_eq!(rows(&run).fingerprint, None);
    let members = run.state.status(run.now).members;
    let told: Vec<bool> = members.iter().map(|member| member.shard.is_some()).collect();
    assert_eq!(told, [false, false, true, true]);
}

#[test]
fn counts_that_fit_nobody_are_ignored() {
    let mut run = run();
    let warned =
        |actions: Vec<Action>| actions.iter().any(|a| matches!(a, Action::Log(super::super::Level::Warn, _)));
    assert!(warned(run.report(W0, shard([1, 1], &[]))));
    assert!(warned(run.report(S0, input(0, 0..3))));
    let MemberReport::Shard(mut report) = shard([1, 1], &[]) else { panic!() };
    report.tables.pop();
    assert!(warned(run.report(S0, MemberReport::Shard(report))));
    let MemberReport::Input(mut report) = input(0, 0..3) else { panic!() };
    report.sketches[1][0] = 60;
    assert!(warned(run.report(W0, MemberReport::Input(report))));
    assert_eq!(rows(&run), RowsStatus::default());
    assert_eq!(run.state.run_state(), RunState::Running);
}
