//! A `config.json` as it is read: a JSON object.

use serde_json::{Map, Value};

use super::keys::{Keys, shown};

/// A `config.json`: a JSON object whose keys [`HfConfig::to_model`] reads.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    object: Map<String, Value>,
}

impl HfConfig {
    /// Reads the JSON. The error names line and column.
    pub fn parse(text: &str) -> Result<HfConfig, String> {
        match serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))? {
            Value::Object(object) => Ok(HfConfig { object }),
            other => Err(format!("is {}; it must be a JSON object", shown(&other))),
        }
    }

    pub(super) fn keys(&self) -> Keys<'_> {
        Keys::new("", &self.object)
    }
}
