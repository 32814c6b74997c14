//! Which documents are held out, and which teach the tokenizer: hashes of their numbers.

use polygram_domain::philox::{Purpose, Stream};

use super::corpus::boundary_below;

/// Counters of the stream.
const HELD_OUT: u64 = 0;
const SAMPLE: u64 = 1;

/// Divides documents, in the order they are read, into training and held-out ones.
///
/// A document is held out when its hash is below the share. If that holds out none although a share was asked for, the
/// one of least hash is held out, provided that another remains.
#[derive(Debug)]
pub(crate) struct Split {
    stream: Stream,
    /// Hashes below this are held out.
    threshold: u64,
    share: f64,
    /// The least hash of the surveyed documents.
    least: u64,
    documents: u64,
    next: u64,
}

impl Split {
    pub(crate) fn new(seed: u64, share: f64) -> Split {
        let threshold = (share * (1u64 << 32) as f64) as u64;
        let stream = Stream::new(seed, Purpose::HeldOut);
        Split { stream, threshold, share, least: u64::MAX, documents: 0, next: 0 }
    }

    fn hash(&self, document: u64) -> u64 {
        self.stream.words(HELD_OUT, document)[0].into()
    }

    /// Counts a document of the first pass; whether it is (surely) held out.
    pub(crate) fn survey(&mut self) -> bool {
        let hash = self.hash(self.documents);
        self.documents += 1;
        self.least = self.least.min(hash);
        hash < self.threshold
    }

    /// Ends the first pass.
    pub(crate) fn settle(&mut self) {
        if self.share > 0.0 && self.documents >= 2 && self.least >= self.threshold {
            self.threshold = self.least + 1;
        }
        // A single document is trained on.
        if self.documents < 2 {
            self.threshold = 0;
        }
    }

    /// Documents of the first pass.
    pub(crate) fn documents(&self) -> u64 {
        self.documents
    }

    /// Whether any surveyed document is held out.
    pub(crate) fn holds_out(&self) -> bool {
        self.least < self.threshold
    }

    /// Whether the next document of the second pass is held out.
    pub(crate) fn next_is_held_out(&mut self) -> bool {
        let document = self.next;
        self.next += 1;
        self.hash(document) < self.threshold
    }
}

/// A uniform sample of documents of at most so many bytes: those of the least hashes.
///
/// A document is kept when its hash is below a bound; whenever the kept ones outgrow the limit the bound is halved.
#[derive(Debug)]
pub(crate) struct Sample {
    stream: Stream,
    limit: u64,
    bound: u64,
    kept: Vec<(u64, String)>,
    bytes: u64,
    offered: u64,
}

impl Sample {
    pub(crate) fn new(seed: u64, limit: u64) -> Sample {
        let stream = Stream::new(seed, Purpose::HeldOut);
        Sample { stream, limit, bound: 1 << 32, kept: Vec::new(), bytes: 0, offered: 0 }
    }

    pub(crate) fn offer(&mut self, text: String) {
        let hash = self.stream.words(SAMPLE, self.offered)[0].into();
        self.offered += 1;
        if hash >= self.bound || self.limit == 0 {
            return;
        }
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
        let mut texts: Vec<String> = self.kept.into_iter().map(|(_, text)| text).collect();
        for text in &mut texts {
            text.truncate(boundary_below(text, self.limit));
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(seed: u64, share: f64, documents: u64) -> Vec<bool> {
        let mut split = Split::new(seed, share);
        for _ in 0..documents {
            split.survey();
        }
        split.settle();
        let held_out: Vec<bool> = (0..documents).map(|_| split.next_is_held_out()).collect();
        assert_eq!(held_out.contains(&true), split.holds_out());
        held_out
    }

    #[test]
    fn holds_out_the_share() {
        let count = split(3, 0.1, 10_000).iter().filter(|&&h| h).count();
        assert!((900..1100).contains(&count), "{count}");
        assert!(split(3, 0.0, 1000).iter().all(|&h| !h));
        for documents in 2..50 {
            let held_out = split(3, 1e-9, documents).iter().filter(|&&h| h).count();
            assert_eq!(held_out, 1, "{documents} documents");
        }
        assert_eq!(split(3, 0.99, 1), [false]);
    }

    #[test]
    fn the_sample_is_bounded_and_spread() {
        let mut sample = Sample::new(7, 1000);
        for i in 0..1000 {
            sample.offer(format!("{i:>10}"));
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
        sample.offer("aéé".into());
        assert_eq!(sample.into_texts(), ["aé"]);
    }
}
