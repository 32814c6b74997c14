//! What was prepared: `meta.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::identity::DataIdentity;
use crate::segment::pair_of;

/// Version of `meta.json`.
pub(crate) const VERSION: u32 = 1;

/// What a preparation made; also the contents of `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrepareReport {
    /// Version of this record.
    pub version: u32,
    /// Training data.
    pub train: PartReport,
    /// Held-out data; absent when no document was held out.
    pub held_out: Option<PartReport>,
    /// The `tokenizer.json`.
    pub tokenizer: String,
    /// BLAKE3 of the bytes of that file, 64 hexadecimal digits; absent in files of older versions.
    #[serde(default)]
    pub tokenizer_hash: Option<String>,
    /// Tokens of the vocabulary: the largest id plus one. A model needs at least so many.
    pub vocab_size: u32,
    /// Token that begins a document; EOS where the tokenizer has none. The data does not contain it.
    pub bos_token_id: u32,
    /// Token that closes every document.
    pub eos_token_id: u32,
    /// Type of the stored tokens.
    pub dtype: String,
    /// Seed of the division into training and held-out documents.
    pub seed: u64,
    /// Share of documents asked to be held out.
    pub held_out_share: f64,
    /// What was read, per extension.
    pub sources: BTreeMap<String, SourceCount>,
    /// What was left out, by kind: an extension such as `.png`, or a reason such as `hidden`.
    #[serde(default)]
    pub left_out: BTreeMap<String, LeftOutCount>,
    /// What the user may not expect: settings of a given tokenizer that were not obeyed, text that was
    /// repaired.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What `meta.json` says about the segment that it lies beside.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The `meta.json`.
    pub path: PathBuf,
    /// All of it.
    pub report: PrepareReport,
    /// The segment.
    pub part: PartReport,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// Path without extension: what `data.train` or `data.held_out` names.
    pub path: String,
    /// Documents.
    pub documents: u64,
    /// Tokens, EOS included.
    pub tokens: u64,
    /// Entropy of the segment's own token distribution, in nats: the loss of the best model without context.
    pub unigram_entropy_nats: f64,
    /// Nats a token under the training segment's distribution, one added to every count.
    pub train_unigram_cross_entropy_nats: f64,
    /// Identity of the segment; absent in files of older versions.
    #[serde(default)]
    pub identity: Option<DataIdentity>,
}

/// What was read of one kind of file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCount {
    /// Files with text.
    pub files: u64,
    /// Files without: not UTF-8, binary or empty.
    pub skipped_files: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Documents with something that is not Unicode (half a surrogate pair, bytes that are not UTF-8),
    /// replaced by U+FFFD.
    #[serde(default)]
    pub repaired_documents: u64,
    /// JSON lines and rows whose text is null; no documents.
    #[serde(default)]
    pub null_texts: u64,
    /// JSON lines and rows whose text is empty or white space; no documents.
    #[serde(default)]
    pub empty_texts: u64,
}

impl SourceCount {
    /// Adds the counts of more files.
    pub(crate) fn add(&mut self, more: &SourceCount) {
        self.files += more.files;
        self.skipped_files += more.skipped_files;
        self.documents += more.documents;
        self.bytes += more.bytes;
        self.repaired_documents += more.repaired_documents;
        self.null_texts += more.null_texts;
        self.empty_texts += more.empty_texts;
    }
}

/// Files, or folders, that were left out for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOutCount {
    /// How many.
    pub files: u64,
    /// The first of them.
    pub example: String,
}

impl LeftOutCount {
    pub(crate) fn add(&mut self, path: &Path) {
        if self.files == 0 {
            self.example = path.display().to_string();
        }
        self.files += 1;
    }
}

/// Larger files are no `meta.json`.
const MOST_BYTES: u64 = 16 << 20;

impl PrepareReport {
    /// Reads a `meta.json`; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<PrepareReport>, DataError> {
        let corpus = |problem| DataError::Corpus { place: path.display().to_string(), problem };
        let bytes = match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() || metadata.len() > MOST_BYTES => {
                return Err(corpus("it is not the meta.json of a preparation".into()));
            }
            Ok(_) => fs::read(path).map_err(DataError::io("read", path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io("look at", path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| corpus(format!("it is not the meta.json of a preparation: {error}")))
    }

    /// Reads the `meta.json` beside the segment at `prefix`; `None` where there is none, or it is about other
    /// files.
    pub fn beside(prefix: &str) -> Result<Option<Prepared>, DataError> {
        let (bin, _) = pair_of(prefix);
        let path = bin.with_file_name("meta.json");
        let Some(report) = PrepareReport::read(&path)? else { return Ok(None) };
        let name = bin.file_stem();
        let mut parts = std::iter::once(&report.train).chain(&report.held_out);
        let part = parts.find(|part| Path::new(&part.path).file_name() == name).cloned();
        Ok(part.map(|part| Prepared { path, report, part }))
    }

    /// As `meta.json`.
    pub(crate) fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// Counts of one segment's tokens.
#[derive(Clone, Debug)]
pub(crate) struct PartCount {
    counts: Vec<u64>,
    tokens: u64,
    documents: u64,
}

impl PartCount {
    pub(crate) fn new(vocab: u32) -> PartCount {
        PartCount { counts: vec![0; vocab as usize], tokens: 0, documents: 0 }
    }

    /// Adds a document, or its last part. Tokens come from the tokenizer whose vocabulary this is; others
    /// would not be counted.
    pub(crate) fn add(&mut self, document: &[u32]) {
        self.add_part(document);
        self.documents += 1;
    }

    /// Adds a part of a document that goes on.
    pub(crate) fn add_part(&mut self, tokens: &[u32]) {
        for &token in tokens {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        self.tokens += tokens.len() as u64;
    }

    /// Documents so far.
    pub(crate) fn documents(&self) -> u64 {
        self.documents
    }

    /// How often `token` was met.
    pub(crate) fn count_of(&self, token: u32) -> u64 {
        self.counts.get(token as usize).copied().unwrap_or(0)
    }

    /// H = −Σ p·ln p.
    fn entropy(&self) -> f64 {
        let total = self.tokens.max(1) as f64;
        let terms = self.counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total);
        terms.map(|p| -p * p.ln()).sum()
    }

    /// −Σ p·ln q, q the distribution of `train` with one added to every count.
    fn cross_entropy(&self, train: &PartCount) -> f64 {
        let total = self.tokens.max(1) as f64;
        let smoothed = (train.tokens + train.counts.len() as u64).max(1) as f64;
        let pairs = self.counts.iter().zip(&train.counts).filter(|(own, _)| **own > 0);
        pairs.map(|(&own, &other)| -(own as f64 / total) * ((other + 1) as f64 / smoothed).ln()).sum()
    }

    pub(crate) fn report(&self, path: String, train: &PartCount) -> PartReport {
        PartReport {
            path,
            documents: self.documents,
            tokens: self.tokens,
            unigram_entropy_nats: self.entropy(),
            train_unigram_cross_entropy_nats: self.cross_entropy(train),
            identity: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_by_hand() {
        let mut train = PartCount::new(4);
        train.add(&[0, 1, 2, 3]);
        train.add(&[0, 1, 2, 3]);
        assert!((train.entropy() - 4f64.ln()).abs() < 1e-12);
        assert!((train.cross_entropy(&train) - 4f64.ln()).abs() < 1e-12);
        let mut skewed = PartCount::new(4);
        skewed.add(&[0, 0, 0, 1]);
        assert!((skewed.entropy() - (-0.75 * 0.75f64.ln() - 0.25 * 0.25f64.ln())).abs() < 1e-12);
        assert!((skewed.cross_entropy(&train) - 4f64.ln()).abs() < 1e-12);
        // Unseen tokens cost ln(total + vocabulary), not infinity.
        let mut unseen = PartCount::new(4);
        unseen.add(&[3]);
        let mut seen = PartCount::new(4);
        seen.add(&[0; 6]);
        assert!((unseen.cross_entropy(&seen) - 10f64.ln()).abs() < 1e-12);
        assert_eq!(PartCount::new(4).entropy(), 0.0);
    }
}
