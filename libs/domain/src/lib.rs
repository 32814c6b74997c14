//! The nouns of a run, valid by construction.
//!
//! Everything that two parts of Polygram must agree on lives here, without sockets, clocks, files or tensors:
//! identifiers, the model's dimensions and its named parameters, the tables and their buckets, the topology,
//! the schedule, and the two forms of a configuration: [`run_file::RunFile`] as written, [`run_spec::RunSpec`]
//! as resolved. After a `RunSpec` exists nobody checks it again.

pub mod batch;
pub mod bf16;
pub mod checkpoint;
pub mod control;
pub mod embedding;
pub mod failure;
pub mod float;
pub mod held_out;
pub mod hf_config;
pub mod ids;
pub mod layout;
pub mod model;
mod model_check;
pub mod outcome;
pub mod output_format;
pub mod philox;
pub mod plan;
pub mod processor;
pub mod rank_layout;
pub mod refs;
pub mod run_file;
pub mod run_spec;
pub mod schedule;
pub mod spikes;
pub mod square_sum;
pub mod store_address;
pub mod sum_tree;
pub mod tables;
pub mod topology;
pub mod word_hash;
pub mod words;
pub mod yarn;

pub use batch::CellBatch;
pub use checkpoint::CheckpointKind;
pub use failure::FailureKind;
pub use held_out::{HeldOutIdentities, HeldOutSets};
pub use ids::{BucketIndex, Cell, Generation, Rank, RowId, RunName, ShardIndex, Step, TableIndex};
pub use model::ModelSpec;
pub use outcome::StepOutcome;
pub use output_format::OutputFormat;
pub use rank_layout::RankLayout;
pub use refs::{CheckpointRef, MicroBatchRef, RowRef};
pub use run_file::{ConfigError, RunFile};
pub use run_spec::RunSpec;
pub use tables::{TableSet, TableSpec};
pub use topology::Topology;

/// Version of every wire message and stored object. Members of another version are refused at the door.
pub const SCHEMA_VERSION: u32 = 4;
