//! Row ids one token at a time, for decoding: the state is the last N − 1 tokens.

use crate::error::NgramError;
use crate::hasher::{Context, Hasher};

/// A sequence being read token by token. Its ids equal those of [`Hasher::ids_into`] over the whole sequence.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    hasher: &'a Hasher,
    context: Context,
}

impl<'a> Stream<'a> {
    /// A sequence of which nothing has been read.
    pub fn new(hasher: &'a Hasher) -> Stream<'a> {
        Stream { hasher, context: Context::default() }
    }

    /// Row ids `[C]` of the next token. A refused token leaves the stream as it was.
    pub fn push(&mut self, token: u32) -> Result<Vec<u32>, NgramError> {
        let mut ids = vec![0; self.hasher.tables()];
        self.push_all(&[token], &mut ids)?;
        Ok(ids)
    }

    /// Row ids `[tokens, C]` of the next tokens (a prompt). Refused tokens leave the stream as it was; an error's
    /// position counts from the first of `tokens`.
    pub fn push_all(&mut self, tokens: &[u32], out: &mut [u32]) -> Result<(), NgramError> {
        self.hasher.continue_into(tokens, &mut self.context, out)
    }

    /// Begins a segment at the next token, as an EOS would.
    pub fn cut(&mut self) {
        self.context = Context::default();
    }
}
