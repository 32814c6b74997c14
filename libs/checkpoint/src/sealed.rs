//! Small JSON objects that prove themselves: `{"blake3":"<64 hex>","body":<JSON>}` and a newline, the hash being that
//! of the body's bytes as they stand. Any other byte, and any flipped or missing one, is found.

use polygram_domain::SCHEMA_VERSION;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;

const HEAD: &str = "{\"blake3\":\"";
const MIDDLE: &str = "\",\"body\":";
const TAIL: &str = "}\n";

/// Seals `body`, which must serialize with a field `schema`.
pub(crate) fn seal<T: Serialize>(key: &str, body: &T) -> Result<Vec<u8>, CheckpointError> {
    let body = serde_json::to_string(body).map_err(|e| CheckpointError::input(key, e.to_string()))?;
    let hash = blake3::hash(body.as_bytes()).to_hex();
    Ok(format!("{HEAD}{hash}{MIDDLE}{body}{TAIL}").into_bytes())
}

/// Opens what [`seal`] made; `key` names it in errors.
pub(crate) fn unseal<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, CheckpointError> {
    let damaged = |reason: &str| CheckpointError::damaged(key, reason);
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not UTF-8"))?;
    let (hash, body) = split(text).ok_or_else(|| damaged("not a sealed object, or cut short"))?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != hash {
        return Err(damaged("BLAKE3 of the body is not the one written in front of it"));
    }
    #[derive(Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let Versioned { schema } = serde_json::from_str(body).map_err(|e| damaged(&e.to_string()))?;
    if schema != SCHEMA_VERSION {
        return Err(CheckpointError::Schema { key: key.to_owned(), found: schema, expected: SCHEMA_VERSION });
    }
    serde_json::from_str(body).map_err(|e| damaged(&e.to_string()))
}

fn split(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(HEAD)?;
    let (hash, rest) = rest.split_at_checked(64)?;
    Some((hash, rest.strip_prefix(MIDDLE)?.strip_suffix(TAIL)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Body {
        schema: u32,
        text: String,
    }

    #[test]
    fn every_flip_and_every_cut_is_found() {
        let body = Body { schema: SCHEMA_VERSION, text: "größe".into() };
        let sealed = seal("k", &body).unwrap();
        assert_eq!(unseal::<Body>("k", &sealed).unwrap(), body);
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bytes = sealed.clone();
                bytes[at] ^= 1 << bit;
                assert!(unseal::<Body>("k", &bytes).unwrap_err().is_damage(), "byte {at} bit {bit}");
            }
            assert!(unseal::<Body>("k", &sealed[..at]).unwrap_err().is_damage(), "cut at {at}");
        }
    }

    #[test]
    fn another_schema_is_named() {
        let sealed = seal("k", &Body { schema: 99, text: String::new() }).unwrap();
        let error = unseal::<Body>("coord/1.json", &sealed).unwrap_err().to_string();
        assert!(error.contains("coord/1.json") && error.contains("99"), "{error}");
    }
}
