//! The n-gram tables of a model, and the fixed division of each into buckets.
//!
//! Nothing here depends on the number of shards: a row belongs to a bucket for good, and only the bucket's
//! owner changes with the topology.

use std::ops::Range;

use crate::ids::{BucketIndex, RowId, ShardIndex, TableIndex};
use crate::model::{ModelSpec, Placement};

/// Buckets per table. A table of fewer rows has empty buckets.
pub const BUCKETS: u32 = 4096;

/// One hashed n-gram table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Its number among all tables of the model.
    pub index: TableIndex,
    /// The Hugging Face name of its weight, `[rows, width]`.
    pub name: String,
    /// Its number at its site: `(order − 2)·heads + head`. Tables of equal site number share row ids.
    pub site_table: u32,
    /// N-gram order, 2..=N.
    pub order: u32,
    /// Rows.
    pub rows: u32,
    /// Values per row.
    pub width: u32,
}

impl TableSpec {
    /// The bucket of a row: `row·4096 / rows`, rounded down.
    pub fn bucket_of(&self, row: RowId) -> BucketIndex {
        BucketIndex((u64::from(row.0) * u64::from(BUCKETS) / u64::from(self.rows)) as u32)
    }

    /// The contiguous rows of a bucket; empty for some buckets of a table of fewer than 4096 rows.
    pub fn rows_of(&self, bucket: BucketIndex) -> Range<u32> {
        let start = |b: u64| (b * u64::from(self.rows)).div_ceil(u64::from(BUCKETS)) as u32;
        start(u64::from(bucket.0))..start(u64::from(bucket.0) + 1)
    }
}

/// All tables of a model, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSet {
    tables: Vec<TableSpec>,
    tables_per_site: u32,
}

impl TableSet {
    /// The tables that `model` needs: C at the input (NE), C per dense FFN (PLNE), or none (PLE).
    pub fn of(model: &ModelSpec) -> TableSet {
        let per_site = model.ngram.tables_per_site();
        let sites: Vec<(String, u32)> = match model.placement {
            Placement::Input => vec![("model.ngram_embeddings".into(), model.hidden_size / per_site)],
            Placement::PerLayer => Vec::new(),
            Placement::PerLayerNgram => (0..model.num_layers)
                .flat_map(|layer| {
                    (0..2).map(move |ffn| format!("model.layers.{layer}.mlps.{ffn}.ngram_embeddings"))
                })
                .map(|prefix| (prefix, model.ffn_hidden_size / per_site))
                .collect(),
        };
        let mut tables = Vec::new();
        for (prefix, width) in sites {
            for site_table in 0..per_site {
                tables.push(TableSpec {
                    index: TableIndex(tables.len() as u32),
                    name: format!("{prefix}.embedders.{site_table}.weight"),
                    site_table,
                    order: model.ngram.order_of(site_table),
                    rows: model.ngram.rows_of(site_table) as u32,
                    width,
                });
            }
        }
        let tables_per_site = if tables.is_empty() { 0 } else { per_site };
        TableSet { tables, tables_per_site }
    }

    /// The tables, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &TableSpec> {
        self.tables.iter()
    }

    /// Number of tables.
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Whether the model has no tables.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// One table.
    pub fn get(&self, index: TableIndex) -> Option<&TableSpec> {
        self.tables.get(index.index())
    }

    /// Tables that share one set of row ids (C); 0 for a model without tables.
    pub fn tables_per_site(&self) -> u32 {
        self.tables_per_site
    }

    /// Sites: how many tables share one set of row ids. 0 for a model without tables.
    pub fn sites(&self) -> usize {
        self.tables.len().checked_div(self.tables_per_site as usize).unwrap_or(0)
    }

    /// Weights per row (w), the same in all tables. 0 for a model without tables.
    pub fn width(&self) -> usize {
        self.tables.first().map_or(0, |table| table.width as usize)
    }

    /// Parameters in all tables.
    pub fn parameters(&self) -> u64 {
        self.tables.iter().map(|t| u64::from(t.rows) * u64::from(t.width)).sum()
    }

    /// Rows in all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|t| u64::from(t.rows)).sum()
    }
}

/// The shard that owns a bucket among `shards`: contiguous runs of buckets, sizes differing by at most one.
pub fn owner_of(bucket: BucketIndex, shards: u32) -> ShardIndex {
    ShardIndex((u64::from(bucket.0) * u64::from(shards) / u64::from(BUCKETS)) as u32)
}

/// The buckets that `shard` of `shards` owns.
pub fn buckets_of(shard: ShardIndex, shards: u32) -> Range<u32> {
    let start = |s: u64| (s * u64::from(BUCKETS)).div_ceil(u64::from(shards)) as u32;
    start(u64::from(shard.0))..start(u64::from(shard.0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_partition_rows() {
        for rows in [1u32, 7, 656, 4095, 4096, 4097, 10_223_617] {
            let table =
                TableSpec { index: TableIndex(0), name: "t".into(), site_table: 0, order: 2, rows, width: 4 };
            let mut next = 0;
            for bucket in 0..BUCKETS {
                let range = table.rows_of(BucketIndex(bucket));
                assert_eq!(range.start, next, "{rows} rows, bucket {bucket}");
                next = range.end;
                for row in range.clone().take(2).chain(range.last()) {
                    assert_eq!(table.bucket_of(RowId(row)), BucketIndex(bucket));
                }
            }
            assert_eq!(next, rows);
        }
    }

    /// What is derived from a table set agrees with it for every placement, also where there are no tables.
    #[test]
    fn sites_times_tables_per_site_is_the_number_of_tables() {
        let text = include_str!("../../../configs/tiny.toml");
        for (placement, sites, per_site, width) in
            [("input", 1, 4, 12), ("per_layer", 0, 0, 0), ("per_layer_ngram", 4, 4, 16)]
        {
            let sets = [format!("model.placement={placement}")];
            let spec = crate::RunFile::parse(text, "tiny", &sets).and_then(|file| file.resolve()).unwrap();
            let tables = spec.tables();
            let found = (tables.sites(), tables.tables_per_site(), tables.width());
            assert_eq!(found, (sites, per_site, width), "{placement}");
            assert_eq!(tables.len(), sites * per_site as usize, "{placement}");
            assert_eq!(tables.is_empty(), tables.rows() == 0 && tables.parameters() == 0, "{placement}");
        }
    }

    #[test]
    fn shards_partition_buckets() {
        for shards in [1u32, 2, 3, 7, 4096] {
            let mut next = 0;
            for shard in 0..shards {
                let range = buckets_of(ShardIndex(shard), shards);
                assert_eq!(range.start, next);
                next = range.end;
                for bucket in range {
                    assert_eq!(owner_of(BucketIndex(bucket), shards), ShardIndex(shard));
                }
            }
            assert_eq!(next, BUCKETS);
        }
    }
}
