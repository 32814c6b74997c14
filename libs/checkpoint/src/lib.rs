//! Checkpoints: where they lie, when they exist, and what they contain.
//!
//! Everything of a run lies under `<root>/runs/<run>/` in an object store ([`RunStore`]):
//!
//! ```text
//! config/<blake3>.toml                              frozen configuration, named by its content
//! ckpt/data/<xx>/<step>-<member>-<n>-<hash>.<kind>  data objects: `safetensors` (tensors.rs) or `rows` (rows.rs)
//! ckpt/commit/<step>.json                           manifest, written last with Create: THE commit point
//! ckpt/pin/<step>                                   the checkpoint of this step is never removed
//! ckpt/damaged/<step>-<hash>.json                   quarantined manifests
//! coord/<term>.json                                 coordinators' terms, claimed with Create
//! coord/leader.json                                 who leads the run; overwritten every few seconds
//! events/<role>/<attempt>/<segment>.jsonl           metrics, and the failure log (segments.rs)
//! ledger/<attempt>/<segment>.jsonl                  one hash-chained line a step (segments.rs)
//! roll_back/<number>.json                           a rollback from a spike: made once, it decides
//! status.json                                       the run's present state; overwritten at will
//! ```
//!
//! What always holds: a checkpoint exists exactly when its manifest does; a manifest is committed only after every
//! object it names is in the store and the cover check ([`Manifest::assemble`]) has found every tensor element, every
//! bucket and every optimizer state exactly once; nothing is used before it was verified: an object that is read whole
//! by length, CRC-32C and BLAKE3, a part of one by length and the CRC-32C of every MiB that was read; bytes that do not
//! verify give an error that names the object, never a panic.
//!
//! Every request has a deadline and is made again while that can help ([`Patience`]); the error that counts says how
//! often and how long. Uploads have no more than 64 MiB under way at once, and long objects go to cloud stores in parts.
//!
//! Names of tensors are global and free of ranks, so that any topology can load what another wrote.

pub mod blocks;
mod cloud;
pub mod commit;
pub mod compare;
pub mod config;
mod copy;
pub mod cover;
mod cover_error;
mod cursor;
mod data_io;
pub mod digest;
mod disk;
mod distance;
pub mod error;
pub mod events;
pub mod failure_log;
mod fault;
mod garbage;
pub mod keys;
pub mod lease;
pub mod ledger;
pub mod manifest;
pub mod metrics;
pub mod object;
pub mod patience;
mod pin;
mod probe;
pub mod problem;
pub mod quarantine;
pub mod removal;
pub mod renewal;
pub mod reshard;
pub mod rollback;
pub mod root;
pub mod row_io;
pub mod rows;
mod sealed;
pub mod segments;
pub mod store;
mod tensor_io;
pub mod tensors;
pub mod term;
mod threads;
mod transfer;
pub mod values;
pub mod verify;
pub mod waits;
mod word;

pub use cloud::Variables;
pub use commit::{Committed, Damaged, Latest, Retained};
pub use config::ConfigHash;
pub use cover::{ExpectedTensor, TensorClass, expected_tensors};
pub use cover_error::CoverError;
pub use cursor::Cursor;
pub use digest::{Difference, Digest};
pub use distance::{Distance, RowDistance};
pub use error::{CheckpointError, FailedRequest};
pub use failure_log::{AttemptLog, CulpritRecord, FailureLine, LossRecord, RollbackCause};
pub use fault::Fault;
pub use lease::{Leadership, Lease};
pub use ledger::{Chain, ChainHash, Entry, Heading};
pub use manifest::{Manifest, ManifestHeader};
pub use metrics::{
    AttemptRecord, EvaluationRecord, Metrics, MetricsHistory, MetricsLine, MetricsRecord, WentBackRecord,
};
pub use object::{Content, DType, ObjectEntry, Part, PartRef, RowScope, TensorEntry};
pub use patience::Patience;
pub use problem::StoreProblem;
pub use quarantine::QuarantineReason;
pub use reshard::{Placement, ReshardTarget, Resharded};
pub use rollback::RollbackRecord;
pub use root::{Root, create_root, list_runs, open_root, open_root_with};
pub use row_io::{OwnedRow, RowWriter};
pub use rows::{RowObject, RowRecord, RowSet, TableShape};
pub use segments::SegmentId;
pub use store::{Listed, RunStore};
pub use tensor_io::Tensor;
pub use tensors::{NamedTensor, TensorObject, TensorSlice};
pub use term::{CoordinatorAddress, CoordinatorRecord, Term};
pub use values::Values;
pub use verify::Verified;
pub use waits::{Wait, Waits};
