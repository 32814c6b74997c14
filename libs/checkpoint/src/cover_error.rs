//! Why parts are no checkpoint.

use polygram_domain::Step;

use crate::cursor::Cursor;

/// Why parts are no checkpoint. Every message names the member and the tensor, or the table and its buckets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the fields are named for what they hold, and the messages spell them out
pub enum CoverError {
    /// A part of another step.
    #[error("{member} reported step {found}, the checkpoint is of step {expected}")]
    AnotherStep { member: String, found: Step, expected: Step },
    /// Two parts of one member.
    #[error("{member} reported twice")]
    MemberTwice { member: String },
    /// One object in two places.
    #[error("object {key} is reported twice, by {first} and {second}")]
    ObjectTwice { key: String, first: String, second: String },
    /// An object that holds nothing or contradicts itself.
    #[error("{member}: object {key} is illegal: {reason}")]
    IllegalObject { member: String, key: String, reason: String },
    /// A tensor that the model does not have.
    #[error("{member} wrote tensor {name:?}, which the model does not have")]
    UnknownTensor { member: String, name: String },
    /// Optimizer state of something that is not a trained parameter.
    #[error(
        "{member} wrote optimizer state {name:?}, but {parameter:?} is no trained parameter of the model"
    )]
    StateWithoutParameter { member: String, name: String, parameter: String },
    /// A tensor of another shape than the model's.
    #[error("{member} wrote tensor {name:?} of shape {found:?}, the model's has {expected:?}")]
    TensorShape { member: String, name: String, found: Vec<u64>, expected: Vec<u64> },
    /// Nobody wrote a tensor.
    #[error("nobody wrote tensor {name:?}")]
    MissingTensor { name: String },
    /// Nobody wrote a moment of a parameter that is there.
    #[error("parameter {parameter:?} is there, its optimizer state {name:?} is not")]
    ParameterWithoutState { parameter: String, name: String },
    /// A hole in a tensor.
    #[error("nobody wrote elements {start}..{end} of tensor {name:?}")]
    MissingElements { name: String, start: u64, end: u64 },
    /// Elements written twice.
    #[error("elements {start}..{end} of tensor {name:?} were written twice, by {first} and {second}")]
    ElementsTwice { name: String, start: u64, end: u64, first: String, second: String },
    /// A table that the model does not have.
    #[error("{member} wrote rows of table {table}, the model has {tables} tables")]
    UnknownTable { member: String, table: u32, tables: usize },
    /// A table of another shape than the model's.
    #[error("{member} wrote table {table} as {found}, the run's is {expected}")]
    TableShape { member: String, table: u32, found: String, expected: String },
    /// A hole in a table.
    #[error("nobody wrote buckets {start}..{end} of table {table}")]
    MissingBuckets { table: u32, start: u32, end: u32 },
    /// Buckets written twice.
    #[error("buckets {start}..{end} of table {table} were written twice, by {first} and {second}")]
    BucketsTwice { table: u32, start: u32, end: u32, first: String, second: String },
    /// Rows of an earlier step, without what has changed since.
    #[error(
        "buckets {start}..{end} of table {table} were written at step {written}, and nobody wrote what changed since"
    )]
    MissingChanges { table: u32, start: u32, end: u32, written: Step },
    /// Changed rows of another step.
    #[error("{member}: object {key} holds rows that changed until another step than {step}")]
    StaleChanges { member: String, key: String, step: Step },
    /// No part carries a position in the data.
    #[error("nobody reported the position in the data")]
    MissingCursor,
    /// Parts at different positions in the data.
    #[error(
        "{first} and {second} reported different positions in the data: {first_cursor:?} and {second_cursor:?}"
    )]
    CursorsDiffer { first: String, second: String, first_cursor: Cursor, second_cursor: Cursor },
    /// No shard said how far rows have decayed.
    #[error("rows of this run decay untouched (embedding.decay = \"all\"), but nobody wrote how far")]
    MissingDecay,
    /// Shards say different decays.
    #[error("{first} wrote a row decay of {first_decay}, {second} one of {second_decay}")]
    DecaysDiffer { first: String, second: String, first_decay: u64, second_decay: u64 },
}
