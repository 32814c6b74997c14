//! Numbered, immutable objects of JSON lines, and the status object.
//!
//! An events object is what its writer gave (whole lines of JSON) and one more line, `{"blake3":"<64 hex>"}`, the hash
//! of all bytes before it.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;

const TRAILER_HEAD: &str = "{\"blake3\":\"";
const TRAILER_TAIL: &str = "\"}\n";
const TRAILER_BYTES: usize = TRAILER_HEAD.len() + 64 + TRAILER_TAIL.len();

/// One object of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsObject {
    /// Attempt that wrote it.
    pub attempt: u64,
    /// Its number within the attempt, from 0 without gaps.
    pub seq: u64,
    /// The lines, newlines included.
    pub lines: String,
}

impl RunStore {
    /// Writes object `seq` of `role`'s `attempt`. Writing the same again is no error; writing another is.
    pub async fn append_events(
        &self,
        role: &str,
        attempt: u64,
        seq: u64,
        lines: &str,
    ) -> Result<(), CheckpointError> {
        keys::check_word("role", role)?;
        let key = keys::events(role, attempt, seq);
        if !lines.ends_with('\n') {
            return Err(CheckpointError::input(key, "events are whole lines"));
        }
        self.put_once(&key, Bytes::from(seal_lines(lines))).await
    }

    /// Reads all events of `role`, by attempt and number, each verified. A gap in the numbers is damage.
    pub async fn read_events(&self, role: &str) -> Result<Vec<EventsObject>, CheckpointError> {
        keys::check_word("role", role)?;
        let folder = format!("events/{role}");
        let listed = self.list(&folder).await?;
        let mut found: Vec<((u64, u64), &str)> =
            listed.iter().filter_map(|o| Some((keys::events_of(role, &o.key)?, o.key.as_str()))).collect();
        found.sort();
        let mut objects = Vec::with_capacity(found.len());
        let mut expected = (0, 0);
        for ((attempt, seq), key) in found {
            let wanted = if attempt == expected.0 { expected.1 } else { 0 };
            if seq != wanted {
                let missing = keys::events(role, attempt, wanted);
                return Err(CheckpointError::damaged(
                    &missing,
                    format!("it is missing, though {key} is there"),
                ));
            }
            expected = (attempt, seq.saturating_add(1));
            objects.push(EventsObject { attempt, seq, lines: open_lines(key, &self.get(key).await?)? });
        }
        Ok(objects)
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
