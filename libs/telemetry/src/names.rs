//! Every metric: its name and its help. Base units, `_total` for counters, `_ratio` for values from 0 to 1. Labels are
//! `run`, `role` and `rank`, and where it says so `table` or `lane`; never the step.

use crate::metrics::Metric;

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident = $text:literal;)*) => {
        $($(#[doc = $help])+ pub const $name: Metric = Metric { name: $text, help: concat!($($help),+) };)*

        /// Every metric, for a listing.
        pub const ALL: &[Metric] = &[$($name),*];
    };
}

metrics! {
    /// Mean negative log-likelihood of the latest update, nats per token.
    LOSS_NATS = "polygram_loss_nats";
    /// Mean negative log-likelihood on held-out data, nats per token.
    HELD_OUT_LOSS_NATS = "polygram_held_out_loss_nats";
    /// Global gradient norm of the latest update, before clipping.
    GRADIENT_NORM = "polygram_gradient_norm";
    /// Learning rate of the dense parameters.
    LEARNING_RATE = "polygram_learning_rate";
    /// Updates applied since the run began.
    UPDATES_TOTAL = "polygram_updates_total";
    /// Updates in the newest committed checkpoint.
    COMMITTED_UPDATES_TOTAL = "polygram_committed_updates_total";
    /// Tokens of the latest update.
    UPDATE_TOKENS = "polygram_update_tokens";
    /// Wall time of the latest update.
    UPDATE_SECONDS = "polygram_update_seconds";
    /// Of the latest update's wall time, waiting for data.
    DATA_WAIT_SECONDS = "polygram_data_wait_seconds";
    /// Of the latest update's wall time, waiting for rows.
    EMBEDDING_WAIT_SECONDS = "polygram_embedding_wait_seconds";
    /// Members of the run that take part.
    LIVE_MEMBERS = "polygram_live_members";
    /// Rows that have been written, by table.
    TOUCHED_ROWS = "polygram_touched_rows";
    /// Rows that changed since a shard last wrote all of its rows to a recovery point.
    CHANGED_ROWS = "polygram_changed_rows";
    /// Rows that are still the function of their number that they began as, by table.
    VIRTUAL_ROWS = "polygram_virtual_rows";
    /// Bytes of records of written rows.
    ROW_BYTES = "polygram_row_bytes";
    /// Row updates applied, by table.
    ROW_UPDATES_TOTAL = "polygram_row_updates_total";
    /// Rows that cells declared, counted once a cell.
    DECLARED_ROWS_TOTAL = "polygram_declared_rows_total";
    /// Rows that steps declared, counted once a step.
    STEP_ROWS_TOTAL = "polygram_step_rows_total";
    /// Share of declarations that another cell of the step had made already.
    OVERLAP_RATIO = "polygram_overlap_ratio";
    /// Unique rows among the row ids of a cell.
    UNIQUE_ROWS_RATIO = "polygram_unique_rows_ratio";
    /// Time that lookups were held back for a pending update.
    PARK_SECONDS = "polygram_park_seconds";
    /// Time that a lane worked, by lane.
    LANE_BUSY_SECONDS_TOTAL = "polygram_lane_busy_seconds_total";
    /// One minus the mean lane's work over the busiest lane's: 0 when all lanes work alike.
    LANE_SKEW_RATIO = "polygram_lane_skew_ratio";
    /// Norm of rows after an update, one row in eight.
    ROW_NORM = "polygram_row_norm";
    /// Updates of the most often updated rows, by table and row.
    HOT_ROW_UPDATES = "polygram_hot_row_updates";
    /// Low 48 bits of the fingerprint of all row updates since the process began, by table; sums over shards are taken
    /// modulo 2^48.
    FINGERPRINT = "polygram_table_fingerprint";
    /// Distinct n-grams seen, estimated, by n-gram order.
    DISTINCT_NGRAMS = "polygram_distinct_ngrams";
    /// Rows that as many distinct n-grams would touch under an ideal hash, by table.
    IDEAL_ROWS = "polygram_ideal_rows";
    /// Share of those rows that the table's hash did not reach, by table; about 0 for a good size.
    EXCESS_COLLISIONS_RATIO = "polygram_excess_collisions_ratio";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn names_are_unique_and_well_formed() {
        for (at, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            assert!(name.starts_with("polygram_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!ALL[..at].iter().any(|earlier| earlier.name == name), "{name}");
            assert!(metric.help.ends_with('.') && metric.help.starts_with(' '), "{name}: {:?}", metric.help);
        }
    }
}
