//! The tokens of every cell of a run: a pure function of (seed, step, cell).
//!
//! Sample k of a source covers tokens k·T to k·T + T inclusive: T inputs and the T tokens after them, so
//! neighbouring samples share one token and every token but the first is predicted once an epoch. Cell c of
//! step s takes the samples number (s·G + c)·B to (s·G + c)·B + B − 1 of the run, counted over epochs, in the
//! order of [`Sampler`].

use std::num::NonZeroU64;

use polygram_domain::CellBatch;
use polygram_domain::ids::{Cell, Step};
use polygram_domain::run_spec::{DataSpec, RunSpec, TrainingSpec};

use crate::error::DataError;
use crate::sampler::Sampler;
use crate::segment::Segment;
use crate::source::{TokenSource, Vocabulary};
use crate::synthetic::{Part, Synthetic};

/// Segments of up to so many tokens are checked against the vocabulary when opened (well under a second);
/// larger ones only as they are read.
const CHECKED_AT_OPEN: u64 = 1 << 28;

/// Training and held-out data of a run.
pub struct Loader {
    train: Box<dyn TokenSource>,
    held_out: Option<Box<dyn TokenSource>>,
    sampler: Sampler,
    vocab: u32,
    seq_len: u32,
    micro_batch: u32,
    cells: u32,
}

impl Loader {
    /// Opens the data of a run.
    pub fn of_run(spec: &RunSpec) -> Result<Loader, DataError> {
        Loader::open(&spec.data, spec.seed, &spec.training, Vocabulary::of(&spec.model))
    }

    /// Opens `data` and checks that it has at least one sample, that held-out data has at least one cell, and
    /// that segments of moderate size stay within the vocabulary. Relative paths are relative to the current
    /// directory.
    pub fn open(
        data: &DataSpec,
        seed: u64,
        training: &TrainingSpec,
        vocab: Vocabulary,
    ) -> Result<Loader, DataError> {
        let (train, held_out) = match data {
            DataSpec::Segments { train, held_out } => {
                let train = segment(train, vocab)?;
                let held_out = held_out.as_deref().map(|path| segment(path, vocab)).transpose()?;
                // Both are of one set: what the first had held out must not be trained on by way of the
                // second.
                train.check_current()?;
                (boxed(train), held_out.map(boxed))
            }
            DataSpec::Synthetic { tokens, held_out_tokens } => {
                let source = |part, tokens| -> Result<Box<dyn TokenSource>, DataError> {
                    Ok(Box::new(Synthetic::new(seed, part, tokens, vocab)?))
                };
                let held_out =
                    (*held_out_tokens > 0).then(|| source(Part::HeldOut, *held_out_tokens)).transpose()?;
                (source(Part::Train, *tokens)?, held_out)
            }
        };
        let (seq_len, micro_batch) = (training.seq_len, training.micro_batch_size);
        let Some(samples) = NonZeroU64::new(samples_of(train.as_ref(), seq_len)) else {
            return Err(DataError::TooShort {
                source_name: train.name().to_owned(),
                tokens: train.token_count(),
                needed: u64::from(seq_len) + 1,
                purpose: "one sample of training.seq_len + 1 tokens",
                hint: "use more data or a smaller training.seq_len",
            });
        };
        let loader = Loader {
            train,
            held_out,
            sampler: Sampler::new(seed, samples),
            vocab: vocab.size,
            seq_len,
            micro_batch,
            cells: training.cells,
        };
        if let Some(held_out) = &loader.held_out
            && loader.held_out_cells() == 0
        {
            return Err(DataError::TooShort {
                source_name: held_out.name().to_owned(),
                tokens: held_out.token_count(),
                needed: u64::from(seq_len) * u64::from(micro_batch) + 1,
                purpose: "one cell of training.micro_batch_size samples",
                hint: "use more held-out data, leave out data.held_out, or make the cell smaller",
            });
        }
        Ok(loader)
    }

    /// Tokens of the training source.
    pub fn train_tokens(&self) -> u64 {
        self.train.token_count()
    }

    /// Samples of one epoch.
    pub fn samples(&self) -> u64 {
        self.sampler.samples()
    }

    /// Whole cells of held-out data; 0 when there is none.
    pub fn held_out_cells(&self) -> u64 {
        let samples = self.held_out.as_ref().map_or(0, |source| samples_of(source.as_ref(), self.seq_len));
        samples.checked_div(self.micro_batch.into()).unwrap_or(0)
    }

    /// The training tokens of a cell.
    pub fn cell(&self, step: Step, cell: Cell) -> Result<CellBatch, DataError> {
        let first = step
            .0
            .checked_mul(self.cells.into())
            .and_then(|cells| cells.checked_add(cell.0.into()))
            .and_then(|cells| cells.checked_mul(self.micro_batch.into()))
            .filter(|first| cell.0 < self.cells && first.checked_add(self.micro_batch.into()).is_some())
            .ok_or(DataError::NoSuchCell { step: step.0, cell: cell.0, cells: self.cells })?;
        let samples =
            (first..first + u64::from(self.micro_batch)).map(|global| self.sampler.sample(global).1);
        self.batch(self.train.as_ref(), samples)
    }

    /// Held-out cell `index`, in the order of the source; `None` past the last whole cell.
    pub fn held_out_cell(&self, index: u64) -> Result<Option<CellBatch>, DataError> {
        match &self.held_out {
            Some(source) if index < self.held_out_cells() => {
                let first = index * u64::from(self.micro_batch);
                self.batch(source.as_ref(), first..first + u64::from(self.micro_batch)).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn batch(
        &self,
        source: &dyn TokenSource,
        samples: impl Iterator<Item = u64>,
    ) -> Result<CellBatch, DataError> {
        let (seq_len, batch) = (self.seq_len as usize, self.micro_batch as usize);
        let mut tokens = Vec::with_capacity(batch * (seq_len + 1));
        for sample in samples {
            let start = sample * u64::from(self.seq_len);
            let read = source.read(start..start + u64::from(self.seq_len) + 1)?;
            self.check(source, start, &read)?;
            tokens.extend_from_slice(&read);
        }
        CellBatch::from_samples(&tokens, batch, seq_len)
            .map_err(|problem| DataError::Corpus { place: source.name().to_owned(), problem })
    }

    fn check(&self, source: &dyn TokenSource, start: u64, tokens: &[u32]) -> Result<(), DataError> {
        match (start..).zip(tokens).find(|&(_, &token)| token >= self.vocab) {
            None => Ok(()),
            Some((position, &token)) => Err(DataError::TokenRange {
                source_name: source.name().to_owned(),
                document: source.document_of(position),
                position,
                token: token.into(),
                vocab: self.vocab,
            }),
        }
    }
}

/// Samples of T inputs and T targets: each needs one token more than it advances.
fn samples_of(source: &dyn TokenSource, seq_len: u32) -> u64 {
    source.token_count().saturating_sub(1).checked_div(seq_len.into()).unwrap_or(0)
}

fn boxed(segment: Segment) -> Box<dyn TokenSource> {
    Box::new(segment)
}

fn segment(path: &str, vocab: Vocabulary) -> Result<Segment, DataError> {
    let segment = Segment::open(path)?;
    if segment.token_count() <= CHECKED_AT_OPEN {
        segment.check_tokens(vocab.size)?;
    }
    Ok(segment)
}
