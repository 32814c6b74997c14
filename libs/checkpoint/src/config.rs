//! Frozen configurations: named by their content, never changed.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::keys;
use crate::store::RunStore;

/// BLAKE3 of a configuration's text, 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigHash(pub String);

impl ConfigHash {
    /// The hash of `toml`.
    pub fn of(toml: &str) -> ConfigHash {
        ConfigHash(blake3::hash(toml.as_bytes()).to_hex().to_string())
    }
}

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl RunStore {
    /// Freezes an effective configuration; the same text again is the same object.
    pub async fn put_config(&self, toml: &str) -> Result<ConfigHash, CheckpointError> {
        let hash = ConfigHash::of(toml);
        self.put_once(&keys::config(&hash.0), Bytes::from(toml.to_owned())).await?;
        Ok(hash)
    }

    /// Reads a frozen configuration and verifies it.
    pub async fn read_config(&self, hash: &ConfigHash) -> Result<String, CheckpointError> {
        let key = keys::config(&hash.0);
        let bytes = self.get(&key).await?;
        if blake3::hash(&bytes).to_hex().as_str() != hash.0 {
            return Err(CheckpointError::damaged(&key, "its content does not have the hash of its name"));
        }
        String::from_utf8(bytes.into()).map_err(|_| CheckpointError::damaged(&key, "not UTF-8"))
    }

    /// Every configuration that was ever frozen for the run, by hash.
    pub async fn configs(&self) -> Result<Vec<ConfigHash>, CheckpointError> {
        let listed = self.list("config").await?;
        let hash = |key: &str| Some(key.strip_prefix("config/")?.strip_suffix(".toml")?.to_owned());
        Ok(listed.iter().filter_map(|object| hash(&object.key)).map(ConfigHash).collect())
    }
}
