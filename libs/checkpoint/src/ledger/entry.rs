//! One line of the ledger, and the hash that the next one names.

use std::fmt;

use polygram_domain::StepOutcome;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// BLAKE3 of a line without its newline; of the first line's predecessor, of the ledger's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// What the line of step 1 names.
    pub fn genesis() -> ChainHash {
        ChainHash(*blake3::hash(b"polygram ledger 1").as_bytes())
    }

    fn of(line: &str) -> ChainHash {
        ChainHash(*blake3::hash(line.as_bytes()).as_bytes())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChainHash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_plain = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let hash = blake3::Hash::from_hex(&text).ok().filter(|_| is_plain);
        let wrong = || serde::de::Error::custom("a hash is 64 hexadecimal digits");
        Ok(ChainHash(*hash.ok_or_else(wrong)?.as_bytes()))
    }
}

/// A step, as it is kept. Lines are this in JSON, the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// State version that the step made, from 1.
    pub step: u64,
    /// Number of its first sample counted over epochs, and how many.
    pub samples: [u64; 2],
    /// Tokens trained on.
    pub tokens: u64,
    /// Learning rate of the dense parameters: bits of an f64.
    #[serde(with = "hex")]
    pub lr: u64,
    /// Loss over the global batch, nats per token: bits of an f64.
    #[serde(with = "hex")]
    pub loss: u64,
    /// Global gradient norm before clipping: bits of an f64.
    #[serde(with = "hex")]
    pub norm: u64,
    /// What became of the update.
    pub outcome: StepOutcome,
    /// Sum of the hashes of the rows updated.
    #[serde(with = "hex")]
    pub rows: u64,
    /// Sum of the hashes of all blocks of dense weights after it.
    #[serde(with = "hex")]
    pub dense: u64,
    /// Hash of the line before.
    pub prev: ChainHash,
}

impl Entry {
    /// Bits of a number as they are kept: NaN is NaN, whatever its payload, since sums do not promise that.
    pub fn bits(value: f64) -> u64 {
        if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }
    }

    /// The line, without a newline.
    pub fn line(&self) -> String {
        // Nothing in it can fail to be written: numbers, words and digits.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The hash that the next line names.
    pub fn hash(&self) -> ChainHash {
        ChainHash::of(&self.line())
    }

    /// Reads a line, which must be the bytes that [`Entry::line`] gives.
    pub(crate) fn read(line: &str) -> Result<Entry, String> {
        let entry: Entry = serde_json::from_str(line).map_err(|e| e.to_string())?;
        if entry.line() != line {
            return Err(format!("the line of step {} is not written as lines are", entry.step));
        }
        Ok(entry)
    }

    /// The first field in which two entries of one step differ: its name and both values. Hashes of the lines before
    /// are not compared.
    pub fn difference(&self, other: &Entry) -> Option<(&'static str, String, String)> {
        let float = |bits: u64| format!("{} ({bits:016x})", f64::from_bits(bits));
        let fields = [
            ("step", self.step.to_string(), other.step.to_string()),
            ("samples", format!("{:?}", self.samples), format!("{:?}", other.samples)),
            ("tokens", self.tokens.to_string(), other.tokens.to_string()),
            ("learning rate", float(self.lr), float(other.lr)),
            ("loss", float(self.loss), float(other.loss)),
            ("gradient norm", float(self.norm), float(other.norm)),
            ("outcome", self.outcome.to_string(), other.outcome.to_string()),
            ("rows' fingerprint", format!("{:016x}", self.rows), format!("{:016x}", other.rows)),
            ("dense weights' fingerprint", format!("{:016x}", self.dense), format!("{:016x}", other.dense)),
        ];
        fields.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

/// Sixteen digits, for `#[serde(with = …)]`.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = (text.len() == 16).then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        value.ok_or_else(|| serde::de::Error::custom("a number here is sixteen hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            step: 7,
            samples: [96, 16],
            tokens: 512,
            lr: 1e-3f64.to_bits(),
            loss: Entry::bits(0.1),
            norm: Entry::bits(f64::INFINITY),
            outcome: StepOutcome::Applied,
            rows: 0xfeed,
            dense: u64::MAX,
            prev: ChainHash::genesis(),
        }
    }

    #[test]
    fn a_line_reads_back_and_only_as_it_is_written() {
        let line = entry().line();
        assert_eq!(Entry::read(&line).unwrap(), entry());
        assert!(Entry::read(&line.replace("\"tokens\":512", "\"tokens\": 512")).is_err());
        assert!(Entry::read(&line.replace("feed", "FEED")).is_err());
        assert!(Entry::read(&line.replace("\"step\"", "\"stop\"")).is_err());
    }

    #[test]
    fn nan_is_nan() {
        assert_eq!(Entry::bits(f64::from_bits(f64::NAN.to_bits() | 1)), Entry::bits(-f64::NAN));
        assert_ne!(Entry::bits(0.0), Entry::bits(-0.0));
    }

    #[test]
    fn every_field_counts() {
        let changes: [fn(&mut Entry); 9] = [
            |e| e.step += 1,
            |e| e.samples[1] += 1,
            |e| e.tokens += 1,
            |e| e.lr ^= 1,
            |e| e.loss ^= 1,
            |e| e.norm ^= 1,
            |e| e.outcome = StepOutcome::SkippedNonfinite,
            |e| e.rows ^= 1,
            |e| e.dense ^= 1,
        ];
        let mut names = std::collections::BTreeSet::new();
        for change in changes {
            let mut other = entry();
            change(&mut other);
            assert_ne!(other.hash(), entry().hash());
            let (name, ours, theirs) = entry().difference(&other).unwrap();
            assert!(names.insert(name) && ours != theirs, "{name}: {ours} and {theirs}");
        }
        assert_eq!(entry().difference(&Entry { prev: entry().hash(), ..entry() }), None);
    }
}
