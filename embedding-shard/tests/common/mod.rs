//! What the cluster tests share: a made-up training whose gradients depend on the rows it reads, a single-map
//! reference of it, and workers that run it against real shards.
#![allow(dead_code, reason = "every test file uses its own part")]

pub(crate) mod cluster;
pub(crate) mod greeting;
pub(crate) mod reference;

use std::sync::Arc;

use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::{Cell, RunFile, RunSpec, Step};
use polygram_row_exchange::{Commit, SnapshotOrder, UniqueIds};

/// The tiny run with overrides.
pub(crate) fn spec(overrides: &[String]) -> RunSpec {
    let text = include_str!("../../../configs/tiny.toml");
    RunFile::parse(text, "tiny", overrides).and_then(|file| file.resolve()).unwrap()
}

/// Ways of storing, updating and sending rows, as overrides.
pub(crate) const RULES: &[&[&str]] = &[
    &[],
    &["embedding.optimizer=\"sgd\"", "embedding.weight_decay=0.1"],
    &["embedding.optimizer=\"adagrad\"", "embedding.max_row_norm=0.2"],
    &["embedding.optimizer=\"rowwise_adagrad\"", "embedding.wire_gradients=\"bf16\""],
    &["embedding.optimizer=\"partial_rowwise_adam\"", "embedding.bias=\"global\""],
    &["embedding.weight_decay=0.5", "embedding.decay=\"all\""],
    &["embedding.storage=\"bf16\"", "embedding.wire_rows=\"bf16\""],
    &[
        "embedding.optimizer=\"rowwise_adagrad\"",
        "embedding.storage=\"bf16\"",
        "embedding.weight_decay=0.5",
        "embedding.decay=\"all\"",
        "embedding.same_host=\"tcp\"",
        "embedding.connections=3",
    ],
];

/// Overrides from text, one per item.
pub(crate) fn overrides(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// A made-up training: which rows each cell uses, and what gradient it sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) seed: u64,
    /// A step whose gradients are not finite, and which is skipped.
    pub(crate) poisoned: Option<u64>,
}

impl Workload {
    fn random(&self) -> Stream {
        Stream::new(self.seed, Purpose::SyntheticData)
    }

    /// Rows of a cell: about half of them from a few hot ones, so that steps and cells overlap.
    pub(crate) fn ids(&self, spec: &RunSpec, step: Step, cell: Cell) -> Arc<UniqueIds> {
        let mut ids = UniqueIds { offsets: vec![0], rows: Vec::new() };
        let tables = spec.tables();
        for table in tables.iter().take(tables.tables_per_site() as usize) {
            let draw = |i: u64| {
                let high = (step.0 << 16) | (u64::from(cell.0) << 8) | u64::from(table.site_table);
                let [a, b, ..] = self.random().words(high, i);
                if a % 2 == 0 { (b % 17) * (table.rows / 17) } else { b % table.rows }
            };
            // Some cells have no row in some table.
            let count = draw(1 << 40) % 4 * 13;
            let mut rows: Vec<u32> = (0..u64::from(count)).map(draw).collect();
            rows.sort_unstable();
            rows.dedup();
            ids.rows.extend(rows);
            ids.offsets.push(ids.rows.len());
        }
        Arc::new(ids)
    }

    /// Gradients of a cell from its rows `[sites, U, w]`.
    pub(crate) fn gradients(&self, step: Step, cell: Cell, rows_suw: &[f32]) -> Vec<f32> {
        let noise = |i: usize| {
            let high = (1 << 48) | (step.0 << 16) | u64::from(cell.0);
            unit_variance_uniform(self.random().words(high, i as u64 / 4)[i % 4])
        };
        let mut grads: Vec<f32> =
            rows_suw.iter().enumerate().map(|(i, row)| 0.1 * row + 0.01 * noise(i)).collect();
        if self.poisoned == Some(step.0) && cell.0 == 1 && !grads.is_empty() {
            let at = grads.len() / 2;
            grads[at] = if step.0.is_multiple_of(2) { f32::NAN } else { f32::INFINITY };
        }
        grads
    }

    /// How a step is committed.
    pub(crate) fn commit(&self, step: Step) -> Commit {
        let word = self.random().words(1 << 50, step.0)[0];
        Commit {
            scale: 0.5 + (word % 100) as f32 / 200.0,
            lr: 1e-3 * (1 + step.0) as f32,
            snapshot: SnapshotOrder::None,
        }
    }
}
