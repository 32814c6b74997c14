//! A shard's counts as the coordinator hears them.

use std::net::SocketAddr;

use polygram_domain::control::{ShardReport, TableRows};

use crate::observe::view::ShardStats;

/// Where else a shard can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where it answers reads.
    pub query: Option<SocketAddr>,
    /// Where it tells its metrics.
    pub metrics: Option<SocketAddr>,
}

/// The report of `stats`.
pub fn shard_report(stats: &ShardStats, addresses: Addresses) -> ShardReport {
    let tables = stats.tables.iter();
    ShardReport {
        version: stats.version,
        since: stats.since,
        record_bytes: stats.record_bytes,
        tables: tables
            .map(|table| TableRows { owned_rows: table.owned_rows, touched_rows: table.touched_rows })
            .collect(),
        declared_rows: stats.declared_rows,
        step_rows: stats.step_rows,
        parked_lookups: stats.park.count(),
        parked_seconds: stats.park.sum(),
        lane_skew_ratio: stats.lane_skew_ratio(),
        marks: stats.marks.clone(),
        query_address: addresses.query,
        metrics_address: addresses.metrics,
    }
}
