//! What a shard says about its rows: counters of each lane, and the shard as the sum of its lanes.
//!
//! Each lane owns its counters alone ([`LaneObserver`]) and publishes them when it closes a step; whoever wants to know
//! something ([`ShardView`]) adds the lanes up at that moment. Nothing here is asked for by the work itself.

pub mod fingerprint;
pub mod histogram;
pub mod hot;
pub mod lane_stats;
mod report;
mod source;
mod view;

pub use fingerprint::{Fingerprint, Marks, row_hash};
pub use histogram::LogHistogram;
pub use hot::HotRows;
pub use lane_stats::{LaneObserver, LaneStats, StepTotals, TableCounts, UpdatedRow, norm_is_sampled};
pub use report::{Addresses, shard_report};
pub use source::ShardSource;
pub use view::{ShardStats, ShardView, TableStats};
