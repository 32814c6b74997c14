//! Documents to tokens, in parallel, in order.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::corpus::{Document, boundary_below};
use super::tokenizer::TextTokenizer;
use crate::error::DataError;

/// Longer documents are encoded in pieces of about this size, so that threads share them and memory stays bounded.
const PIECE_BYTES: usize = 128 << 10;

/// Encodes batches of documents on several threads.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a TextTokenizer,
    threads: NonZeroUsize,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a TextTokenizer, threads: NonZeroUsize) -> Encoder<'a> {
        Encoder { tokenizer, threads }
    }

    /// Tokens of each document, EOS at the end. The same for every number of threads.
    pub(crate) fn encode(&self, documents: &[Document]) -> Result<Vec<Vec<u32>>, DataError> {
        let pieces: Vec<(usize, &str)> = documents
            .iter()
            .enumerate()
            .flat_map(|(document, text)| pieces_of(&text.text).map(move |piece| (document, piece)))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Vec<u32>)>, DataError> {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((_, text)) = pieces.get(at) else { return Ok(done) };
                let mut tokens = Vec::with_capacity(text.len() / 3);
                self.tokenizer.encode(text, &mut tokens)?;
                done.push((at, tokens));
            }
        };
        let mut encoded: Vec<Vec<u32>> = vec![Vec::new(); pieces.len()];
        let threads = self.threads.get().min(pieces.len().max(1));
        let results = std::thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            spawned.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for result in results {
            let done = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (at, tokens) in done {
                encoded[at] = tokens;
            }
        }
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); documents.len()];
        for ((document, _), piece) in pieces.iter().zip(encoded) {
            tokens[*document].extend(piece);
        }
        for document in &mut tokens {
            document.push(self.tokenizer.vocab().eos);
        }
        Ok(tokens)
    }
}

/// `text` in pieces that end after a line where one ends in time, or else at a character.
fn pieces_of(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let limit = boundary_below(rest, PIECE_BYTES as u64);
        let end = if limit == rest.len() {
            limit
        } else {
            rest[..limit].rfind('\n').map_or(limit, |newline| newline + 1)
        };
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text() {
        let lines = "line of text\n".repeat(40_000);
        let unbroken = "é".repeat(300_000);
        for text in ["", "short", lines.as_str(), unbroken.as_str()] {
            let pieces: Vec<&str> = pieces_of(text).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES));
            assert_eq!(pieces.len(), text.len().div_ceil(PIECE_BYTES - 12));
        }
    }
}
