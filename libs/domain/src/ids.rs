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

/// Fencing number of a run's membership: it only grows, and messages of an older one are refused.
///
/// The upper half is the attempt that leads the membership, which is a term claimed in the store; the lower half counts
/// the attempt's rollbacks. So generations grow over restarts of coordinators without a word between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The first generation of an attempt.
    pub fn of_attempt(attempt: u32) -> Generation {
        Generation(u64::from(attempt) << 32)
    }

    /// The generation after this one, in the same attempt.
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }

    /// Rollbacks of its attempt before it.
    pub fn rollbacks(self) -> u32 {
        self.0 as u32
    }
}

/// Attempt and rollbacks, `3.1`; the rollbacks alone where there is no attempt.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 32 {
            0 => self.0.fmt(f),
            attempt => write!(f, "{attempt}.{}", self.rollbacks()),
        }
    }
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
    fn generations_grow_within_and_over_attempts() {
        let first = Generation::of_attempt(3);
        assert!(first < first.next() && first.next() < Generation::of_attempt(4));
        assert_eq!((first.next().to_string(), first.next().rollbacks()), ("3.1".to_owned(), 1));
    }

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
