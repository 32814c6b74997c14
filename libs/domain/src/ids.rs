//! What identifies or counts, as types of their own, so that a step is never passed for a rank.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The value as an index into a slice.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

newtype! {
    /// A worker's global rank, from 0.
    Rank(u32)
}
newtype! {
    /// Updates applied so far, from 0. Step `s` reads state version `s` and produces version `s + 1`.
    Step(u64)
}
newtype! {
    /// A row inside one table.
    RowId(u32)
}
newtype! {
    /// An embedding shard, from 0.
    ShardIndex(u32)
}
newtype! {
    /// Fencing number of a run's membership: it only grows, and messages of an older one are refused.
    Generation(u64)
}
newtype! {
    /// A micro-batch of the step's fixed grid, from 0.
    Cell(u32)
}
newtype! {
    /// A table among all tables of the model, from 0 (site-major, then order, then head).
    TableIndex(u32)
}
newtype! {
    /// One of a table's contiguous row ranges; see [`crate::tables::BUCKETS`].
    BucketIndex(u32)
}

impl Step {
    /// The step after this one.
    pub fn next(self) -> Step {
        Step(self.0 + 1)
    }
}

/// A run's name: 1 to 63 characters of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit,
/// so that it is legal as an object-store prefix and as a Kubernetes name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunName(String);

impl RunName {
    /// Checks `name` and wraps it. The error is a sentence that says what is allowed.
    pub fn new(name: impl Into<String>) -> Result<RunName, String> {
        let name = name.into();
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let legal = name.len() <= 63
            && edge(name.chars().next())
            && edge(name.chars().last())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if legal {
            Ok(RunName(name))
        } else {
            Err(format!(
                "run name {name:?} is not legal: use 1 to 63 characters of a-z, 0-9 and '-', beginning and \
                 ending with a letter or digit"
            ))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_names_are_checked() {
        for good in ["a", "demo", "lite-2", "0x"] {
            assert!(RunName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a..b", &"x".repeat(64)] {
            assert!(RunName::new(bad).is_err(), "{bad}");
        }
    }
}
