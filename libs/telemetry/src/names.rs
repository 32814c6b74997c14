//! Every metric: its name and its help. Base units, `_total` for counters, `_ratio` for values from 0 to 1. Labels are
//! `run`, `role` and `rank`, and those that a metric names; never the step.

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
    /// Mean negative log-likelihood on a held-out set (set), nats per token.
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
    /// Time between the latest update and the one before it: reports, evaluation, checkpoints.
    BOUNDARY_SECONDS = "polygram_boundary_seconds";
    /// Of the latest update's wall time, by phase.
    PHASE_SECONDS = "polygram_phase_seconds";
    /// Wall time of the latest update.
    UPDATE_SECONDS = "polygram_update_seconds";
    /// Of the latest update's wall time, waiting for data.
    DATA_WAIT_SECONDS = "polygram_data_wait_seconds";
    /// Of the latest update's wall time, waiting for rows.
    EMBEDDING_WAIT_SECONDS = "polygram_embedding_wait_seconds";
    /// Time that steps have waited for a checkpoint to be committed.
    COMMIT_WAIT_SECONDS_TOTAL = "polygram_commit_wait_seconds_total";
    /// Bytes of rows received from shards and of their gradients sent to them, by direction; frames aside.
    ROW_EXCHANGE_BYTES_TOTAL = "polygram_row_exchange_bytes_total";
    /// Bytes that this rank brought to calls with other ranks, by group.
    COLLECTIVE_BYTES_TOTAL = "polygram_collective_bytes_total";
    /// Memory of the process that is resident.
    RESIDENT_BYTES = "polygram_resident_bytes";
    /// The most that it ever was.
    PEAK_RESIDENT_BYTES = "polygram_peak_resident_bytes";
    /// Optimizer state of the rank.
    OPTIMIZER_BYTES = "polygram_optimizer_bytes";
    /// Memory that the rank keeps for snapshots.
    SNAPSHOT_BYTES = "polygram_snapshot_bytes";
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
    /// Distinct n-grams for each touched row on average, by table.
    NGRAMS_PER_ROW = "polygram_ngrams_per_row";
    /// Expected share of lookups whose row another n-gram uses too, by table.
    SHARED_LOOKUPS_RATIO = "polygram_shared_lookups_ratio";
    /// Members that offer themselves to a pool, by what they can be (member) and where they are (place).
    POOL_MEMBERS = "polygram_pool_members";
    /// Jobs that a pool ever had, by state.
    POOL_JOBS = "polygram_pool_jobs";
    /// Time from a job's submission to its first members.
    POOL_QUEUE_WAIT_SECONDS = "polygram_pool_queue_wait_seconds";
    /// Time for which a job has been waiting for its first members: the longest of all.
    POOL_LONGEST_WAIT_SECONDS = "polygram_pool_longest_wait_seconds";
    /// Times that runs of the pool were opened.
    POOL_SESSIONS_TOTAL = "polygram_pool_sessions_total";
    /// Times that a job was asked to make way for another, since the pool's coordinator began.
    POOL_PREEMPTIONS_TOTAL = "polygram_pool_preemptions_total";
    /// Times that runs went back to a commit because a member was lost, since the pool's coordinator began.
    POOL_RESTARTS_TOTAL = "polygram_pool_restarts_total";
    /// Members that the pool lost out of a seat, since its coordinator began.
    POOL_MEMBERS_LOST_TOTAL = "polygram_pool_members_lost_total";
    /// Seats that the pool took back from members that did not join their runs, since its coordinator began.
    POOL_SEATS_TAKEN_BACK_TOTAL = "polygram_pool_seats_taken_back_total";
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
