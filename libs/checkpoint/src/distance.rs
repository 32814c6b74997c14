//! How far apart two states are.

use polygram_domain::float;
use serde::Serialize;

/// How far values b lie from values a.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// max |b − a|.
    #[serde(with = "float")]
    pub max_abs: f64,
    /// √(Σ (b − a)² / Σ a²); infinite where all a are 0 and some b is not.
    #[serde(with = "float")]
    pub relative_l2: f64,
}

/// How far the rows of a table lie apart. Rows that one checkpoint alone has written are counted, not compared: the
/// other's are still their initial values, which no checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RowDistance {
    /// Rows that both have written.
    pub rows: u64,
    /// Rows that only the first has written.
    pub only_first: u64,
    /// Rows that only the second has written.
    pub only_second: u64,
    /// Of the optimizer's values of the rows that both have written.
    pub optimizer: Distance,
}
