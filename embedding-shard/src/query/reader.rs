//! [`ShardReader`]: a handle through which others see rows of a shard that serves.

use std::ops::Range;
use std::sync::Arc;

use polygram_domain::{Step, TableIndex};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::config::{ShardConfig, rows_of_buckets};

/// Questions that wait for the shard.
const QUEUE: usize = 16;
/// A read whose lanes answered at different versions is asked again so often.
const ATTEMPTS: usize = 8;

/// A question to one lane, to be answered between two of its commands.
#[derive(Debug)]
pub struct Peek {
    /// The lane.
    pub lane: usize,
    /// Table of the rows, one of the model's.
    pub table: TableIndex,
    /// Rows that the lane owns, in any order.
    pub rows: Vec<u32>,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Peeked>,
}

/// A lane's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Peeked {
    /// Updates in the rows.
    pub version: Step,
    /// `[rows, width]`, in the order asked for.
    pub values_rw: Vec<f32>,
}

/// Why rows were not read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeekError {
    /// The model has no such table.
    #[error("table {table} of a model with {tables}; tables count from 0")]
    Table {
        /// As asked.
        table: TableIndex,
        /// How many there are.
        tables: usize,
    },
    /// Another shard owns the row, or nobody.
    #[error("row {row} of table {table}, of which this shard owns rows {} to before {}", owned.start, owned.end)]
    Row {
        /// As asked.
        row: u32,
        /// As asked.
        table: TableIndex,
        /// What there is.
        owned: Range<u32>,
    },
    /// Nobody serves the rows: the shard ends, or has failed.
    #[error("the shard serves no more")]
    Ended,
    /// Steps were closed too fast for one answer by all lanes.
    #[error("the rows changed while they were read, {ATTEMPTS} times; ask again, or for fewer rows")]
    Busy,
}

/// Sees rows of one shard. Clones share the way there.
#[derive(Clone, Debug)]
pub struct ShardReader {
    config: Arc<ShardConfig>,
    lanes: Arc<Vec<Range<u32>>>,
    questions: mpsc::Sender<Peek>,
}

impl ShardReader {
    /// A reader, and where its questions come out: whoever serves passes each on to its lane.
    pub fn new(config: Arc<ShardConfig>) -> (ShardReader, mpsc::Receiver<Peek>) {
        let (questions, queue) = mpsc::channel(QUEUE);
        let lanes = Arc::new(config.lane_buckets());
        (ShardReader { config, lanes, questions }, queue)
    }

    /// Weights of `rows` of `table`, written or virtual, all of one version, in the order asked for.
    ///
    /// # Errors
    /// See [`PeekError`].
    pub async fn peek(&self, table: TableIndex, rows: &[u32]) -> Result<Peeked, PeekError> {
        let parts = self.parts(table, rows)?;
        for _attempt in 0..ATTEMPTS {
            let mut answers = Vec::with_capacity(parts.len());
            for Part { lane, places } in &parts {
                let (reply, answer) = oneshot::channel();
                let rows = places.iter().map(|&place| rows[place]).collect();
                let peek = Peek { lane: *lane, table, rows, reply };
                self.questions.send(peek).await.map_err(|_gone| PeekError::Ended)?;
                answers.push(answer);
            }
            let mut looked = Vec::with_capacity(parts.len());
            for answer in answers {
                looked.push(answer.await.map_err(|_gone| PeekError::Ended)?);
            }
            let first = looked.first().map(|peeked| peeked.version);
            if looked.iter().all(|peeked| Some(peeked.version) == first) {
                return Ok(self.joined(&parts, &looked, rows.len()));
            }
        }
        Err(PeekError::Busy)
    }

    /// Which lane owns which of the rows.
    fn parts(&self, table: TableIndex, rows: &[u32]) -> Result<Vec<Part>, PeekError> {
        let tables = self.config.tables.len();
        let spec = self.config.tables.get(table).ok_or(PeekError::Table { table, tables })?;
        let owned: Vec<Range<u32>> =
            self.lanes.iter().map(|buckets| rows_of_buckets(spec, buckets)).collect();
        let mut parts: Vec<Part> = Vec::new();
        for (place, &row) in rows.iter().enumerate() {
            let lane = owned.iter().position(|owned| owned.contains(&row)).ok_or_else(|| {
                let owned = rows_of_buckets(spec, &self.config.buckets());
                PeekError::Row { row, table, owned }
            })?;
            match parts.iter_mut().find(|part| part.lane == lane) {
                Some(part) => part.places.push(place),
                None => parts.push(Part { lane, places: vec![place] }),
            }
        }
        if parts.is_empty() {
            // Nothing was asked for, but the version.
            parts.push(Part { lane: 0, places: Vec::new() });
        }
        Ok(parts)
    }

    fn joined(&self, parts: &[Part], looked: &[Peeked], rows: usize) -> Peeked {
        let width = self.config.width();
        let mut values_rw = vec![0.0; rows * width];
        for (part, peeked) in parts.iter().zip(looked) {
            for (&place, row) in part.places.iter().zip(peeked.values_rw.chunks_exact(width.max(1))) {
                values_rw[place * width..][..width].copy_from_slice(row);
            }
        }
        Peeked { version: looked.first().map_or(Step(0), |peeked| peeked.version), values_rw }
    }
}

/// Rows of one lane, by their place in the question.
#[derive(Debug)]
struct Part {
    lane: usize,
    places: Vec<usize>,
}
