//! Token files, sampling order and batches; corpus preparation and tokenizer training.
//!
//! [`loader::Loader`] answers "the tokens of cell c of step s" as a pure function of (seed, step, cell): it reads a
//! [`source::TokenSource`] (a Megatron [`segment`] or [`synthetic`] documents) at the samples that [`sampler`]
//! chooses. [`prepare()`] makes such files out of text, [`inspect()`] says what is in one.
//!
//! Legend: B sequences of a cell (micro-batch), T positions per sequence, G cells per step, n samples of a source.

pub mod error;
mod guard;
pub mod identity;
pub mod inspect;
pub mod loader;
pub mod local_path;
pub mod prepare;
pub mod sampler;
pub mod segment;
pub mod source;
pub mod synthetic;

pub use error::DataError;
pub use identity::DataIdentity;
pub use inspect::{Inspection, inspect};
pub use loader::Loader;
pub use prepare::{PrepareOptions, PrepareReport, prepare, prepare_with};
pub use sampler::Sampler;
pub use segment::{Dtype, Segment, SegmentWriter};
pub use source::{TokenSource, Vocabulary};
pub use synthetic::Synthetic;
