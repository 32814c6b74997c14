//! Names of metrics: base units, `_total` for counters, `_ratio` for values from 0 to 1. Labels are `run`, `role` and
//! `rank`, never the step.

/// Mean negative log-likelihood of the latest update, nats per token.
pub const LOSS_NATS: &str = "polygram_loss_nats";
/// Mean negative log-likelihood on held-out data, nats per token.
pub const HELD_OUT_LOSS_NATS: &str = "polygram_held_out_loss_nats";
/// Global gradient norm of the latest update, before clipping.
pub const GRADIENT_NORM: &str = "polygram_gradient_norm";
/// Learning rate of the dense parameters.
pub const LEARNING_RATE: &str = "polygram_learning_rate";
/// Updates applied.
pub const UPDATES_TOTAL: &str = "polygram_updates_total";
/// Updates skipped because something was not finite.
pub const SKIPPED_UPDATES_TOTAL: &str = "polygram_skipped_updates_total";
/// Tokens trained on.
pub const TOKENS_TOTAL: &str = "polygram_tokens_total";
/// Wall time of an update.
pub const UPDATE_SECONDS: &str = "polygram_update_seconds";
/// Of an update's wall time, waiting for data.
pub const DATA_WAIT_SECONDS: &str = "polygram_data_wait_seconds";
/// Of an update's wall time, waiting for rows.
pub const EMBEDDING_WAIT_SECONDS: &str = "polygram_embedding_wait_seconds";
/// Of an update's wall time, inside collectives.
pub const COLLECTIVE_SECONDS: &str = "polygram_collective_seconds";
/// Rows of a shard that have been written.
pub const TOUCHED_ROWS: &str = "polygram_touched_rows";
/// Bytes of a shard's records.
pub const ROW_BYTES: &str = "polygram_row_bytes";
/// Rows asked for, duplicates removed.
pub const LOOKED_UP_ROWS_TOTAL: &str = "polygram_looked_up_rows_total";
/// Unique rows among those a step needs.
pub const UNIQUE_ROWS_RATIO: &str = "polygram_unique_rows_ratio";
/// Time that lookups were held back for a pending update.
pub const PARKED_SECONDS_TOTAL: &str = "polygram_parked_seconds_total";
/// Wall time of a checkpoint, from its first snapshot to its manifest.
pub const CHECKPOINT_SECONDS: &str = "polygram_checkpoint_seconds";
/// Bytes of a checkpoint.
pub const CHECKPOINT_BYTES: &str = "polygram_checkpoint_bytes";
/// Members of a run that answer.
pub const LIVE_MEMBERS: &str = "polygram_live_members";

/// Every name, for a listing.
pub const ALL: [&str; 19] = [
    LOSS_NATS,
    HELD_OUT_LOSS_NATS,
    GRADIENT_NORM,
    LEARNING_RATE,
    UPDATES_TOTAL,
    SKIPPED_UPDATES_TOTAL,
    TOKENS_TOTAL,
    UPDATE_SECONDS,
    DATA_WAIT_SECONDS,
    EMBEDDING_WAIT_SECONDS,
    COLLECTIVE_SECONDS,
    TOUCHED_ROWS,
    ROW_BYTES,
    LOOKED_UP_ROWS_TOTAL,
    UNIQUE_ROWS_RATIO,
    PARKED_SECONDS_TOTAL,
    CHECKPOINT_SECONDS,
    CHECKPOINT_BYTES,
    LIVE_MEMBERS,
];

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn names_are_unique_and_well_formed() {
        for (at, name) in ALL.iter().enumerate() {
            assert!(name.starts_with("polygram_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!ALL[..at].contains(name), "{name}");
        }
    }
}
