//! What is where in a record: weights, optimizer state, update count, row id, and where all rows decay how far the row
//! has decayed; zeros up to a whole number of cache lines.

use polygram_domain::RowId;
use polygram_domain::embedding::{EmbeddingSpec, RowType};

use super::decay::DecayLog;
use super::region::prefetch;

/// Words at the beginning of a part that are asked for ahead: four cache lines.
const NEAR_WORDS: usize = 64;

/// Places in a record of 4-byte words.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordLayout {
    /// Weights of a row.
    pub(super) width: usize,
    /// How weights are stored.
    pub(super) storage: RowType,
    /// Words of the weights: optimizer state comes after them.
    pub(super) weight_words: usize,
    /// Optimizer values.
    pub(super) state_values: usize,
    /// Whether the record says how far the row has decayed.
    pub(super) decays: bool,
    /// Values of a record in a checkpoint.
    pub(super) saved_values: usize,
    /// Words of a record.
    pub(super) words: usize,
}

impl RecordLayout {
    pub(super) fn of(spec: &EmbeddingSpec, width: usize) -> RecordLayout {
        RecordLayout {
            width,
            storage: spec.storage,
            weight_words: (spec.storage.bytes() * width).div_ceil(4),
            state_values: spec.optimizer.state_values(width),
            decays: spec.all_rows_decay(),
            saved_values: width + spec.state_values(width),
            words: spec.record_bytes(width) / 4,
        }
    }

    /// First word after the values: update count, row id, decay.
    #[inline(always)]
    fn head_at(&self) -> usize {
        self.weight_words + self.state_values
    }

    /// Weights of a record stored in f32.
    #[inline(always)]
    pub(super) fn f32s<'a>(&self, record: &'a [u32]) -> &'a [f32] {
        bytemuck::cast_slice(&record[..self.width])
    }

    /// Weights of a record stored in bf16, as bits.
    #[inline(always)]
    pub(super) fn bf16s<'a>(&self, record: &'a [u32]) -> &'a [u16] {
        &bytemuck::cast_slice(&record[..self.weight_words])[..self.width]
    }

    /// Brings the beginnings of a record's parts near, and its head; the processor's own prefetching follows from there,
    /// and asking for every line was measured to be slower.
    #[inline(always)]
    pub(super) fn prefetch_record(&self, record: &[u32]) {
        prefetch(&record[..NEAR_WORDS.min(self.weight_words)]);
        let (start, end) = (self.weight_words, self.head_at());
        for part in record[start..end].chunks(self.width.max(1)) {
            prefetch(&part[..NEAR_WORDS.min(part.len())]);
        }
        prefetch(&record[end..end + 1]);
    }

    /// Optimizer values.
    pub(super) fn state<'a>(&self, record: &'a [u32]) -> &'a [f32] {
        bytemuck::cast_slice(&record[self.weight_words..self.head_at()])
    }

    /// Weight words, optimizer values and head, apart.
    #[inline(always)]
    pub(super) fn split_mut<'a>(&self, record: &'a mut [u32]) -> (&'a mut [u32], &'a mut [f32], Head<'a>) {
        let (values, head) = record.split_at_mut(self.head_at());
        let (weights, state) = values.split_at_mut(self.weight_words);
        (weights, bytemuck::cast_slice_mut(state), Head { words: head, decays: self.decays })
    }

    /// Updates that the row has had.
    pub(super) fn updates(&self, record: &[u32]) -> u32 {
        record[self.head_at()]
    }

    /// How far the row had decayed when it was updated last.
    #[inline(always)]
    pub(super) fn decayed(&self, record: &[u32]) -> DecayLog {
        match self.decays {
            true => {
                let at = self.head_at() + 2;
                DecayLog::from_halves([record[at], record[at + 1]])
            }
            false => DecayLog::default(),
        }
    }
}

/// What a record says of its row.
pub(super) struct Head<'a> {
    words: &'a mut [u32],
    decays: bool,
}

impl Head<'_> {
    /// Counts one more update and returns the count.
    #[inline(always)]
    pub(super) fn count(&mut self) -> u32 {
        self.words[0] = self.words[0].saturating_add(1);
        self.words[0]
    }

    pub(super) fn set(&mut self, row: RowId, updates: u32) {
        (self.words[0], self.words[1]) = (updates, row.0);
    }

    pub(super) fn set_decayed(&mut self, log: DecayLog) {
        if self.decays {
            self.words[2..4].copy_from_slice(&log.halves());
        }
    }
}
