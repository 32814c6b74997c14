//! One cell's tokens: plain buffers, row-major, legal by construction.

/// Target of a position that has no next token; it takes no part in the loss.
pub const IGNORED_TARGET: i64 = -100;

/// The tokens of one cell: `batch` sequences of `seq_len` positions.
///
/// Legend: B = batch, T = seq_len.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellBatch {
    batch: usize,
    seq_len: usize,
    tokens_bt: Vec<u32>,
    targets_bt: Vec<i64>,
}

impl CellBatch {
    /// From samples of T+1 tokens each: position t is trained to predict token t+1.
    ///
    /// `samples` is `[B, T+1]`, row-major. The error names the two numbers that do not fit.
    pub fn from_samples(samples: &[u32], batch: usize, seq_len: usize) -> Result<CellBatch, String> {
        if samples.len() != batch * (seq_len + 1) {
            return Err(format!(
                "{} tokens do not make {batch} samples of {} tokens",
                samples.len(),
                seq_len + 1
            ));
        }
        let rows = || samples.chunks_exact(seq_len + 1);
        Ok(CellBatch {
            batch,
            seq_len,
            tokens_bt: rows().flat_map(|row| &row[..seq_len]).copied().collect(),
            targets_bt: rows().flat_map(|row| &row[1..]).map(|&t| i64::from(t)).collect(),
        })
    }

    /// From whole sequences `[B, T]` trained on themselves: the last position of each row has no target
    /// (the loss of Hugging Face's causal language models with labels equal to the inputs).
    pub fn from_sequences(tokens_bt: Vec<u32>, batch: usize, seq_len: usize) -> Result<CellBatch, String> {
        if tokens_bt.len() != batch * seq_len {
            return Err(format!("{} tokens do not make {batch} sequences of {seq_len}", tokens_bt.len()));
        }
        let mut targets_bt = Vec::with_capacity(tokens_bt.len());
        for row in tokens_bt.chunks_exact(seq_len.max(1)) {
            targets_bt.extend(row[1..].iter().map(|&t| i64::from(t)));
            targets_bt.push(IGNORED_TARGET);
        }
        Ok(CellBatch { batch, seq_len, tokens_bt, targets_bt })
    }

    /// Sequences in the cell.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Positions per sequence.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Input tokens `[B, T]`, row-major.
    pub fn tokens_bt(&self) -> &[u32] {
        &self.tokens_bt
    }

    /// Next tokens `[B, T]`, row-major; [`IGNORED_TARGET`] where there is none.
    pub fn targets_bt(&self) -> &[i64] {
        &self.targets_bt
    }

    /// Positions that take part in the loss.
    pub fn target_count(&self) -> u64 {
        self.targets_bt.iter().filter(|&&t| t != IGNORED_TARGET).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_shift_by_one() {
        let cell = CellBatch::from_samples(&[1, 2, 3, 4, 5, 6], 2, 2).unwrap();
        assert_eq!(cell.tokens_bt(), [1, 2, 4, 5]);
        assert_eq!(cell.targets_bt(), [2, 3, 5, 6]);
        assert_eq!(cell.target_count(), 4);
        assert!(CellBatch::from_samples(&[1, 2, 3], 2, 2).is_err());
    }

    #[test]
    fn sequences_drop_their_last_target() {
        let cell = CellBatch::from_sequences(vec![1, 2, 3, 4, 5, 6], 2, 3).unwrap();
        assert_eq!(cell.targets_bt(), [2, 3, IGNORED_TARGET, 5, 6, IGNORED_TARGET]);
        assert_eq!(cell.target_count(), 4);
    }
}
