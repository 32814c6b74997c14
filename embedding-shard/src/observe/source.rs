//! A shard's numbers as metrics.

use std::fmt;

use polygram_telemetry::{Page, Sample, Source, names};

use crate::observe::view::ShardView;

/// Low bits of a fingerprint that a metric's f64 holds exactly, with room to add 32 shards up.
const FINGERPRINT_BITS: u32 = 48;

/// Tells a shard's numbers at every scrape.
#[derive(Debug)]
pub struct ShardSource(pub ShardView);

impl Source for ShardSource {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let by_table = |of: fn(&super::TableStats) -> u64| {
            stats.tables.iter().map(move |table| Sample::of("table", table.table, of(table) as f64))
        };
        page.counter(names::UPDATES_TOTAL, [Sample::plain(stats.version.0 as f64)])?;
        page.gauge(names::TOUCHED_ROWS, by_table(|table| table.touched_rows))?;
        page.gauge(names::VIRTUAL_ROWS, by_table(|table| table.owned_rows - table.touched_rows))?;
        let bytes = stats.touched_rows() * stats.record_bytes;
        page.gauge(names::ROW_BYTES, [Sample::plain(bytes as f64)])?;
        page.counter(names::ROW_UPDATES_TOTAL, by_table(|table| table.updates))?;
        page.counter(names::DECLARED_ROWS_TOTAL, [Sample::plain(stats.declared_rows as f64)])?;
        page.counter(names::STEP_ROWS_TOTAL, [Sample::plain(stats.step_rows as f64)])?;
        page.gauge(names::CHANGED_ROWS, [Sample::plain(stats.changed_rows as f64)])?;
        page.gauge(names::OVERLAP_RATIO, stats.overlap_ratio().map(Sample::plain))?;
        page.histogram(names::PARK_SECONDS, [Sample::plain(stats.park.to_metric())])?;
        let busy = stats.lane_busy.iter().enumerate();
        page.counter(
            names::LANE_BUSY_SECONDS_TOTAL,
            busy.map(|(lane, busy)| Sample::of("lane", lane, busy.as_secs_f64())),
        )?;
        page.gauge(names::LANE_SKEW_RATIO, stats.lane_skew_ratio().map(Sample::plain))?;
        page.histogram(names::ROW_NORM, [Sample::plain(stats.norms.to_metric())])?;
        let hot = stats.hot.iter();
        page.gauge(
            names::HOT_ROW_UPDATES,
            hot.map(|hot| Sample::of("table", hot.table, f64::from(hot.updates)).and("row", hot.row)),
        )?;
        let low = |chain: u64| (chain & ((1 << FINGERPRINT_BITS) - 1)) as f64;
        let told = stats.tables.iter().filter_map(|table| Some((table.table, table.fingerprint?)));
        page.gauge(
            names::FINGERPRINT,
            told.map(|(table, fingerprint)| Sample::of("table", table, low(fingerprint.chain))),
        )
    }
}
