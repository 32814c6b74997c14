//! The identity of a segment: whether two `.bin/.idx` pairs hold the same data.
//!
//! A run keeps the identity of its data and compares it when it resumes, so that other data under the same
//! path, or a different path, is noticed. The identity reads the whole index and a bounded sample of the
//! tokens: it is cheap for segments of any size. It cannot notice a change of single tokens between the
//! sampled pieces.

use std::fmt;

use polygram_domain::words::{grouped, of_many};
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::segment::Segment;
use crate::source::TokenSource;

/// What identifies the data of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// Tokens.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// BLAKE3 of the whole `.idx`: 64 hexadecimal digits.
    pub index_hash: String,
    /// BLAKE3 of the length of the `.bin` and of 256 pieces of 4 KiB, spread evenly from its first byte to
    /// its last; of the whole `.bin` where it is not longer than that. 64 hexadecimal digits.
    pub sample_hash: String,
}

impl DataIdentity {
    /// The identity of an open segment.
    pub fn of(segment: &Segment) -> Result<DataIdentity, DataError> {
        Ok(DataIdentity {
            tokens: segment.token_count(),
            documents: segment.documents() as u64,
            index_hash: segment.index_hash()?,
            sample_hash: segment.sample_hash().to_owned(),
        })
    }

    /// Opens the segment at `path` (without extension, or with `.bin` or `.idx`) and takes its identity.
    pub fn of_path(path: &str) -> Result<DataIdentity, DataError> {
        DataIdentity::of(&Segment::open(path)?)
    }

    /// What `now` has that `self` has not, as a clause for a message; `None` when both are the same data.
    pub fn difference(&self, now: &DataIdentity) -> Option<String> {
        let DataIdentity { tokens, documents, index_hash, sample_hash } = self;
        if (now.tokens, now.documents) != (*tokens, *documents) {
            let amount = |tokens, documents| {
                let count = |number, noun| of_many(number, grouped(number), noun);
                format!("{} in {}", count(tokens, "token"), count(documents, "document"))
            };
            Some(format!(
                "it had {} and has {} now",
                amount(*tokens, *documents),
                amount(now.tokens, now.documents)
            ))
        } else if now.index_hash != *index_hash {
            Some("its tokens are divided into other documents, or stored as another type".into())
        } else if now.sample_hash != *sample_hash {
            Some("it has as many tokens as before, but other ones".into())
        } else {
            None
        }
    }
}

/// As run files and messages name it: counts, and the first 16 digits of each hash.
impl fmt::Display for DataIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DataIdentity { tokens, documents, index_hash, sample_hash } = self;
        let short = |hash: &String| hash.get(..16).unwrap_or(hash).to_owned();
        let (index, sample) = (short(index_hash), short(sample_hash));
        write!(f, "{tokens} tokens in {documents} documents, index {index}, sample {sample}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::token_file::{self, PIECE_BYTES, SAMPLE_BYTES};
    use crate::segment::{Dtype, Existing, SegmentWriter};

    fn sample_hash(bytes: &[u8]) -> String {
        let read = |start: u64, piece: &mut [u8]| {
            piece.copy_from_slice(&bytes[start as usize..][..piece.len()]);
            Ok(())
        };
        token_file::sample_hash(bytes.len() as u64, read).unwrap()
    }

    fn identity(documents: &[&[u32]], dtype: Dtype) -> DataIdentity {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let path = path.to_str().unwrap();
        let mut writer = SegmentWriter::create(path, dtype, Existing::Refuse).unwrap();
        for document in documents {
            writer.push(document).unwrap();
        }
        writer.finish().unwrap();
        DataIdentity::of_path(path).unwrap()
    }

    #[test]
    fn every_kind_of_change_is_named() {
        let base = identity(&[&[1, 2, 3], &[4, 5]], Dtype::U16);
        assert_eq!((base.tokens, base.documents), (5, 2));
        assert_eq!(base.difference(&identity(&[&[1, 2, 3], &[4, 5]], Dtype::U16)), None);
        for (other, words) in [
            (identity(&[&[1, 2, 3], &[4, 5, 6]], Dtype::U16), "6 tokens in 2 documents now"),
            (identity(&[&[1, 2, 3, 4, 5]], Dtype::U16), "5 tokens in 1 document now"),
            (identity(&[&[1, 2], &[3, 4, 5]], Dtype::U16), "divided into other documents"),
            (identity(&[&[1, 2, 3], &[4, 5]], Dtype::I32), "another type"),
            (identity(&[&[1, 2, 3], &[4, 6]], Dtype::U16), "but other ones"),
        ] {
            let difference = base.difference(&other).unwrap_or_else(|| panic!("{words}: not noticed"));
            assert!(difference.contains(words), "{difference}");
        }
        let text = base.to_string();
        assert!(text.starts_with("5 tokens in 2 documents, index ") && text.len() < 90, "{text}");
        assert!(text.contains(&base.sample_hash[..16]), "{text}");
        let json = serde_json::to_string(&base).unwrap();
        assert_eq!(serde_json::from_str::<DataIdentity>(&json).unwrap(), base);
    }

    #[test]
    fn the_sample_spans_the_file_and_stays_bounded() {
        let bytes: Vec<u8> = (0..SAMPLE_BYTES * 3 + 7).map(|i| (i % 251) as u8).collect();
        let base = sample_hash(&bytes);
        let with = |at: usize| {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            sample_hash(&changed)
        };
        for at in [0, PIECE_BYTES - 1, bytes.len() - PIECE_BYTES, bytes.len() - 1] {
            assert_ne!(with(at), base, "byte {at}");
        }
        let noticed = (0..200).filter(|i| with(i * bytes.len() / 200 + 1) != base).count();
        assert!(
            (40..=100).contains(&noticed),
            "a third of the bytes is sampled, {noticed} of 200 were noticed"
        );
        assert_ne!(sample_hash(&bytes[..bytes.len() - 1]), base);
        assert_ne!(sample_hash(b""), sample_hash(b"\0"));
    }
}
