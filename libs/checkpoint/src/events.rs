//! Segments of JSON lines, and the status object.
//!
//! An events object is what its writer gave (whole lines of JSON) and one more line, `{"blake3":"<64 hex>"}`, the hash
//! of all bytes before it.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CheckpointError;
use crate::keys;
use crate::segments::Segment;
use crate::store::RunStore;
use crate::word::check_word;

const TRAILER_HEAD: &str = "{\"blake3\":\"";
const TRAILER_TAIL: &str = "\"}\n";
const TRAILER_BYTES: usize = TRAILER_HEAD.len() + 64 + TRAILER_TAIL.len();

/// One segment of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventsObject<L> {
    /// Its name.
    pub(crate) key: String,
    /// Which it is.
    pub(crate) segment: Segment,
    /// Its lines.
    pub(crate) lines: Vec<L>,
}

impl RunStore {
    /// Writes a segment of `role`'s events and answers its name. Writing the same again is no error; writing another is.
    async fn append_events(
        &self,
        role: &str,
        segment: &Segment,
        lines: &str,
    ) -> Result<String, CheckpointError> {
        check_word("role", role)?;
        let key = segment.key(&keys::events(role));
        if !lines.ends_with('\n') {
            return Err(CheckpointError::input(key, "events are whole lines"));
        }
        self.put_once(&key, Bytes::from(seal_lines(lines))).await?;
        Ok(key)
    }

    /// Writes a segment of lines that are JSON.
    pub(crate) async fn append_json<L: Serialize>(
        &self,
        role: &str,
        segment: &Segment,
        lines: &[L],
    ) -> Result<String, CheckpointError> {
        let mut text = String::new();
        for line in lines {
            let line = serde_json::to_string(line).map_err(|error| {
                CheckpointError::input(segment.key(&keys::events(role)), error.to_string())
            })?;
            text.push_str(&line);
            text.push('\n');
        }
        self.append_events(role, segment, &text).await
    }

    /// Reads the events of `role` that speak of one of `steps`, by attempt and number, each verified.
    pub(crate) async fn read_events<L: DeserializeOwned>(
        &self,
        role: &str,
        steps: RangeInclusive<u64>,
    ) -> Result<Vec<EventsObject<L>>, CheckpointError> {
        check_word("role", role)?;
        let folder = keys::events(role);
        let look = |key: &str, bytes: Bytes| {
            let text = open_lines(key, &bytes)?;
            let line = |(at, line)| {
                serde_json::from_str(line)
                    .map_err(|error| CheckpointError::damaged(key, format!("line {}: {error}", at + 1)))
            };
            text.lines().enumerate().map(line).collect::<Result<Vec<L>, _>>()
        };
        let found = self.read_segments(&folder, |segment| segment.span.meets(&steps), look).await?;
        let object = |(segment, lines): (Segment, Result<Vec<L>, CheckpointError>)| {
            Ok(EventsObject { key: segment.key(&folder), segment, lines: lines? })
        };
        found.into_iter().map(object).collect()
    }

    /// Replaces `status.json`.
    pub async fn put_status<T: Serialize>(&self, status: &T) -> Result<(), CheckpointError> {
        let bytes = serde_json::to_vec_pretty(status)
            .map_err(|e| CheckpointError::input(keys::STATUS, e.to_string()))?;
        self.put(keys::STATUS, bytes.into()).await
    }

    /// Reads `status.json`, or `None` if there is none.
    pub async fn read_status<T: DeserializeOwned>(&self) -> Result<Option<T>, CheckpointError> {
        let bytes = match self.get(keys::STATUS).await {
            Err(CheckpointError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        let status = serde_json::from_slice(&bytes);
        status.map(Some).map_err(|e| CheckpointError::damaged(keys::STATUS, e.to_string()))
    }
}

/// Whole lines, with their hash in one more.
pub(crate) fn seal_lines(lines: &str) -> String {
    let hash = blake3::hash(lines.as_bytes()).to_hex();
    format!("{lines}{TRAILER_HEAD}{hash}{TRAILER_TAIL}")
}

/// The lines of what [`seal_lines`] made.
pub(crate) fn open_lines(key: &str, bytes: &[u8]) -> Result<String, CheckpointError> {
    let damaged = |reason: &str| CheckpointError::damaged(key, reason);
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not UTF-8"))?;
    let split = text.len().checked_sub(TRAILER_BYTES).and_then(|at| text.split_at_checked(at));
    let hash = split.and_then(|(_, trailer)| trailer.strip_prefix(TRAILER_HEAD)?.strip_suffix(TRAILER_TAIL));
    let ((lines, _), hash) = split.zip(hash).ok_or_else(|| damaged("cut short, or without its last line"))?;
    if blake3::hash(lines.as_bytes()).to_hex().as_str() != hash {
        return Err(damaged("BLAKE3 of its lines is not the one in its last line"));
    }
    Ok(lines.to_owned())
}
