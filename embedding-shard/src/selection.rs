//! Which rows a snapshot hands out, and how many there are.

/// Rows of a shard, as of its last closed step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Written.
    pub written: u64,
    /// Of which changed since a snapshot of [`Selection::AllAnew`].
    pub changed: u64,
}

/// Which rows a snapshot hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All written ones.
    All,
    /// The same, and changes are counted from here on.
    AllAnew,
    /// Those that changed since.
    Changed,
}
