//! What can be wrong with tables, tokens and buffers.

/// A refusal by this crate; each names the numbers and the cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NgramError {
    /// A token that the polynomial's base does not cover.
    #[error(
        "token {token} at position {position} is outside the hash vocabulary of {vocab} tokens; use data of this \
         vocabulary, raise ngram.hash_vocab_size, or list the token in ngram.ignored_tokens"
    )]
    TokenOutOfRange {
        /// Index into the tokens given.
        position: usize,
        /// The token.
        token: u32,
        /// V.
        vocab: u32,
    },
    /// A buffer that does not fit the tokens.
    #[error("{what} holds {actual} values, but {expected} are needed")]
    Shape {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        actual: usize,
        /// The length it must have.
        expected: usize,
    },
    /// Segment starts that do not rise, or lie past the end.
    #[error(
        "segment start {start} is out of order or past the {tokens} tokens; give rising positions below that number"
    )]
    SegmentStart {
        /// The offending start.
        start: usize,
        /// Tokens given.
        tokens: usize,
    },
    /// Two tables of equal size are one table twice.
    #[error(
        "tables {first} and {second} both have {rows} rows; heads of equal size are clones of each other, so choose \
         another ngram.ratio or set ngram.base_rows"
    )]
    EqualSizes {
        /// Site number of the one.
        first: u32,
        /// Site number of the other.
        second: u32,
        /// Their rows.
        rows: u64,
    },
    /// A table that 32-bit row ids cannot number, or that has no rows.
    #[error("table {table} would have {rows} rows; choose ngram.ratio or ngram.base_rows so that it has 1 to {}", u32::MAX - 1)]
    IllegalSize {
        /// Site number of the table.
        table: u32,
        /// Its rows.
        rows: u64,
    },
    /// Orders, heads or a vocabulary that no table can be made of.
    #[error("{what} is {value}; it must be {wanted}")]
    IllegalNumber {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        wanted: &'static str,
    },
}
