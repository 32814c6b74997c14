//! Which documents are held out, and which teach the tokenizer.
//!
//! A document is held out when a hash of its text and the seed falls below the share. Nothing else counts:
//! not its place, not the other documents. So a document that was held out once stays so when others are
//! added, moved or removed, and copies of a document are never divided between training and evaluation.

use polygram_domain::philox::{Purpose, Stream};

use super::text::boundary_below;

/// Bytes of a document's start that are hashed: all of most documents, and known before a long one is read to
/// its end.
pub(crate) const PREFIX_BYTES: usize = 64 << 10;

/// The key of the hash; another one would divide every corpus anew.
const CONTEXT: &str = "polygram 2026-11-29 held-out documents";

/// Where a document goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It is trained on.
    Train,
    /// It is held out.
    HeldOut,
}

/// Divides documents into training and held-out ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    seed: u64,
    /// Hashes below this are held out.
    threshold: u128,
}

impl Split {
    /// Holds out `share` of the documents, 0 to below 1.
    pub(crate) fn new(seed: u64, share: f64) -> Split {
        Split { seed, threshold: (share * 2f64.powi(64)) as u128 }
    }

    /// Where the document that begins with `text` goes; at least 64 KiB of it where it is as long.
    pub(crate) fn side_of(&self, text: &str) -> Side {
        let prefix = &text.as_bytes()[..text.len().min(PREFIX_BYTES)];
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(prefix);
        let hash = hasher.finalize();
        let low = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if u128::from(low) < self.threshold { Side::HeldOut } else { Side::Train }
    }
}

/// A uniform sample of documents of at most so many bytes: those of the least hashes of their numbers.
///
/// A document is kept when its hash is below a bound; whenever the kept ones outgrow the limit the bound is
/// halved.
#[derive(Debug)]
pub(crate) struct Sample {
    stream: Stream,
    limit: u64,
    bound: u64,
    kept: Vec<(u64, String)>,
    bytes: u64,
    offered: u64,
}

/// Counter of the stream.
const SAMPLE: u64 = 1;

impl Sample {
    pub(crate) fn new(seed: u64, limit: u64) -> Sample {
        let stream = Stream::new(seed, Purpose::HeldOut);
        Sample { stream, limit, bound: 1 << 32, kept: Vec::new(), bytes: 0, offered: 0 }
    }

    /// Counts a document; its hash where its text is wanted.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let hash = self.stream.words(SAMPLE, self.offered)[0].into();
        self.offered += 1;
        (hash < self.bound && self.limit > 0).then_some(hash)
    }

    /// Bytes of a document that are wanted at most.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Keeps the text that [`Sample::next`] wanted.
    pub(crate) fn keep(&mut self, hash: u64, mut text: String) {
        text.truncate(boundary_below(&text, self.limit));
        self.bytes += text.len() as u64;
        self.kept.push((hash, text));
        while self.bytes > self.limit && self.kept.len() > 1 {
            self.bound /= 2;
            let bound = self.bound;
            self.kept.retain(|(hash, _)| *hash < bound);
            self.bytes = self.kept.iter().map(|(_, text)| text.len() as u64).sum();
        }
    }

    /// The kept documents, in the order they were read. One document larger than the limit is cut to it.
    pub(crate) fn into_texts(self) -> Vec<String> {
        self.kept.into_iter().map(|(_, text)| text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Split {
        fn holds_out(&self, text: &str) -> bool {
            self.side_of(text) == Side::HeldOut
        }
    }

    fn text(i: u64) -> String {
        format!("document {i}")
    }

    #[test]
    fn holds_out_the_share() {
        let split = Split::new(3, 0.1);
        let count = (0..10_000).filter(|&i| split.holds_out(&text(i))).count();
        assert!((900..1100).contains(&count), "{count}");
        let none = Split::new(3, 0.0);
        assert!((0..1000).all(|i| !none.holds_out(&text(i))));
        let nearly_all = Split::new(3, 1.0 - f64::EPSILON);
        assert!((0..1000).all(|i| nearly_all.holds_out(&text(i))));
    }

    #[test]
    fn only_the_text_and_the_seed_decide() {
        let decide = |seed| (0..500).map(|i| Split::new(seed, 0.5).holds_out(&text(i))).collect::<Vec<_>>();
        assert_eq!(decide(1), decide(1));
        let equal = decide(1).iter().zip(decide(2)).filter(|(a, b)| **a == *b).count();
        assert!((150..350).contains(&equal), "{equal} of 500 decisions agree for two seeds");
        // A larger share keeps what a smaller one holds out.
        let (small, large) = (Split::new(1, 0.1), Split::new(1, 0.3));
        assert!((0..1000).all(|i| !small.holds_out(&text(i)) || large.holds_out(&text(i))));
        // The start decides where a document is long; a character may be cut in two.
        let long = "é".repeat(PREFIX_BYTES);
        let split = Split::new(1, 0.5);
        assert_eq!(split.holds_out(&long), split.holds_out(&format!("{long} and more")));
        // Found once: the promise is that these never change.
        let held: Vec<u64> = (0..40).filter(|&i| Split::new(0, 0.1).holds_out(&text(i))).collect();
        assert_eq!(held, HELD_AT_A_TENTH);
    }

    /// Of documents 0 to 39, seed 0, share 0.1; made by the Python package blake3 1.0 (`derive_key_context`),
    /// 2026-11-29.
    const HELD_AT_A_TENTH: [u64; 3] = [0, 11, 25];

    fn offer(sample: &mut Sample, text: String) {
        if let Some(hash) = sample.next() {
            sample.keep(hash, text);
        }
    }

    #[test]
    fn the_sample_is_bounded_and_spread() {
        let mut sample = Sample::new(7, 1000);
        for i in 0..1000 {
            offer(&mut sample, format!("{i:>10}"));
        }
        let texts = sample.into_texts();
        assert!((30..=100).contains(&texts.len()), "{}", texts.len());
        assert!(texts.is_sorted());
        let late = texts.iter().filter(|text| text.as_str() > "       500").count();
        assert!(late * 4 > texts.len() && late * 4 < texts.len() * 3, "{late} of {}", texts.len());
    }

    #[test]
    fn one_large_document_is_cut() {
        let mut sample = Sample::new(7, 3);
        offer(&mut sample, "aéé".into());
        assert_eq!(sample.into_texts(), ["aé"]);
    }
}
