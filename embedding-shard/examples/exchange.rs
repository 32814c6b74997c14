//! How fast one worker and its shards exchange rows on this machine: time and bandwidth of each part of a step.
//!
//! `cargo run --release -p polygram-embedding-shard --example exchange -- [shards] [lanes] [rows per table and cell]`

use std::io::{Write, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::{Cell, Generation, Rank, RunFile, ShardIndex, Step};
use polygram_embedding_shard::memory::keep_freed_memory;
use polygram_embedding_shard::{Shard, ShardConfig};
use polygram_proto::bulk::{Commit, Hello, RowClient, UniqueIds};
use tokio::net::TcpListener;

/// New rows in the first half of the steps, the same rows again in the second.
const STEPS: u64 = 8;

fn main() -> anyhow::Result<()> {
    keep_freed_memory();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (shards, lanes, rows) = (next(2)?, next(1)?, next(2000)?);
    let overrides = [
        "model.hidden_size=3072".to_owned(),
        "ngram.max_order=4".to_owned(),
        "ngram.heads=4".to_owned(),
        "ngram.base_rows=400009".to_owned(),
        format!("topology.shards={shards}"),
        format!("embedding.lanes={lanes}"),
    ];
    let text = include_str!("../../configs/tiny.toml");
    let spec = RunFile::parse(text, "configs/tiny.toml", &overrides)?.resolve()?;
    let tables = Arc::new(spec.tables());
    let mut addresses = Vec::new();
    for index in 0..shards {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?);
        let shard = Shard::new(ShardConfig::of(&spec, ShardIndex(index), Generation(1)))?;
        tokio::spawn(shard.serve(listener, std::future::pending()));
    }
    let hello = Hello { run: spec.name.clone(), generation: Generation(1), rank: Rank(0), workers: 1 };
    let client = RowClient::connect(&addresses, hello, Arc::clone(&tables), Duration::from_secs(60)).await?;
    let random = Stream::new(1, Purpose::SyntheticData);
    let ids = |step: u64, cell: u32| {
        let mut ids = UniqueIds { offsets: vec![0], rows: Vec::new() };
        for table in tables.iter() {
            let draw =
                |i| random.words(step << 32 | u64::from(cell << 8 | table.site_table), i)[0] % table.rows;
            let mut drawn: Vec<u32> = (0..u64::from(rows)).map(draw).collect();
            drawn.sort_unstable();
            drawn.dedup();
            ids.rows.extend(drawn);
            ids.offsets.push(ids.rows.len());
        }
        Arc::new(ids)
    };
    let mut out = stdout();
    for step in 0..STEPS {
        let cells: Vec<_> =
            (0..spec.training.cells).map(|cell| (Cell(cell), ids(step % (STEPS / 2), cell))).collect();
        let started = Instant::now();
        let lookups: Vec<_> = cells
            .iter()
            .map(|(cell, ids)| tokio::spawn(client.lookup(Step(step), *cell, ids.clone())))
            .collect();
        let mut values = Vec::new();
        for lookup in lookups {
            values.push(lookup.await??);
        }
        let looked_up = Instant::now();
        let bytes = 4 * values.iter().map(Vec::len).sum::<usize>();
        for ((cell, _), values) in cells.iter().zip(values) {
            client.push(Step(step), *cell, values).await?;
        }
        let prepared = client.prepare(Step(step)).await?;
        let pushed = Instant::now();
        client.commit(Step(step), Commit { scale: 1.0, lr: 1e-3, snapshot: false }).await?;
        let committed = Instant::now();
        let rate = |from: Instant, to: Instant| bytes as f64 / 1e9 / (to - from).as_secs_f64();
        writeln!(
            out,
            "step {step}: {:.0} MB, lookup {:.2} GB/s, push and prepare {:.2} GB/s, apply {:.2} GB/s, {} buckets",
            bytes as f64 / 1e6,
            rate(started, looked_up),
            rate(looked_up, pushed),
            rate(pushed, committed),
            prepared.sums.len()
        )
        .context("cannot print")?;
    }
    client.close().await?;
    Ok(())
}
