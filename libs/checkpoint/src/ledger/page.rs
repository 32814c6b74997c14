//! An object of the ledger: a heading, lines, and the hash of all of it in the last line, as events have it.

use polygram_domain::Step;
use serde::{Deserialize, Serialize};

use super::{ChainHash, Entry};
use crate::config::ConfigHash;
use crate::error::CheckpointError;
use crate::events::open_lines;

/// The first line of an object: what its lines continue from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heading {
    /// State version before its first line.
    pub after: Step,
    /// Hash of that version's line.
    pub head: ChainHash,
    /// The frozen configuration that its steps were done with.
    pub config: ConfigHash,
    /// That line is not in this run's ledger: the run began from another run's checkpoint.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imported: bool,
}

/// An object as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) key: String,
    pub(super) heading: Heading,
    pub(super) entries: Vec<Entry>,
}

impl Page {
    pub(super) fn read(key: &str, bytes: &[u8]) -> Result<Page, CheckpointError> {
        let text = open_lines(key, bytes)?;
        let damaged =
            |at: usize, reason: String| CheckpointError::damaged(key, format!("line {}: {reason}", at + 1));
        let mut lines = text.lines().enumerate();
        let heading = lines.next().map(|(_, line)| serde_json::from_str(line));
        let heading = heading
            .unwrap_or_else(|| serde_json::from_str(""))
            .map_err(|error| damaged(0, format!("it is no heading: {error}")))?;
        let entries = lines
            .map(|(at, line)| Entry::read(line).map_err(|reason| damaged(at, reason)))
            .collect::<Result<_, _>>()?;
        Ok(Page { key: key.to_owned(), heading, entries })
    }
}
