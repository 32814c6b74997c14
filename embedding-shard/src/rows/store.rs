//! One lane's rows of all tables: a direct index from row to record, and the records.
//!
//! A row's index entry is its record's number, 0 while the row is virtual. Rows are worked on in batches: first all
//! index entries of a batch, which miss the caches together, then the records, of which the next few are on their way
//! from memory while one is worked on.

use std::ops::Range;

use polygram_domain::bf16::{round_to_nearest, widen};
use polygram_domain::embedding::RowType;
use polygram_domain::{RowId, RowRef, TableIndex};

use super::arena::Arena;
use super::changed::ChangedRows;
use super::decay::DecayLog;
use super::layout::RecordLayout;
use super::optimizer::{Rates, RowRule, RowState};
use super::region::{Region, copy_streaming, finish_streams, prefetch};
use super::rounding::Rounding;
use super::virtual_rows::VirtualRows;
use crate::config::{ShardConfig, rows_of_buckets};
use crate::error::ShardError;
use crate::numa::Node;

/// Rows whose index entries are read before the first of their records is.
const BATCH_ROWS: usize = 256;
/// Rows between a record being asked for and being read.
const READS_AHEAD: usize = 16;
/// Words of a record that are asked for before it is read: eight cache lines. The processor's own prefetching follows.
const READ_WORDS: usize = 128;
/// Rows between a record being asked for and being updated.
const UPDATES_AHEAD: usize = 4;
/// Rows gathered into more memory than this are written past the caches.
const STREAMED_BYTES: usize = 1 << 20;

/// Rows of one table within the lane's index.
#[derive(Clone, Debug)]
struct TableRows {
    /// Rows of the table that this lane owns.
    rows: Range<u32>,
    /// Index entry of the first of them.
    first: usize,
}

/// An owned row and the number of its record, 0 while it is virtual.
#[derive(Clone, Copy, Debug)]
struct StoredRow {
    at: RowRef,
    slot: u32,
}

/// What an update does to a row.
#[derive(Clone, Copy, Debug)]
struct RowUpdate<'a> {
    gradient: &'a [f32],
    rates: Rates,
    /// How far rows will have decayed after the step.
    decayed: DecayLog,
}

/// Where gathered weights go, row after row.
#[derive(Debug)]
pub enum RowsOut<'a> {
    /// As f32, `[n, w]`.
    F32(&'a mut [f32]),
    /// As bf16 bits, `[n, w]`; f32 weights are rounded to nearest.
    Bf16(&'a mut [u16]),
}

/// A row right after an update.
#[derive(Clone, Copy, Debug)]
pub struct Updated<'a> {
    /// The row.
    pub row: RowId,
    /// Updates that it has had.
    pub updates: u32,
    /// Its weights as they are stored.
    pub stored: &'a [u8],
    /// Its weights before they were rounded for storage.
    pub weights: &'a [f32],
}

/// Gradients of the rows of one update.
pub trait Gradients {
    /// Values of scratch memory that [`Gradients::sum`] needs for rows of `width`.
    fn scratch_values(&self, width: usize) -> usize;

    /// The summed gradient of place `place`: borrowed where there is one contribution, made in `scratch` otherwise.
    fn sum<'a>(&'a self, place: usize, scratch: &'a mut [f32]) -> &'a [f32];

    /// Brings the contributions of `place` near.
    fn prefetch(&self, place: usize);
}

/// The rows of one run of buckets.
#[derive(Debug)]
pub struct RowStore {
    tables: Vec<TableRows>,
    index: Region,
    node: Option<Node>,
    pub(super) arena: Arena,
    pub(super) layout: RecordLayout,
    virtual_rows: VirtualRows,
    rounding: Rounding,
    rule: RowRule,
    weight_decay: f64,
    /// How far rows have decayed by now.
    decayed: DecayLog,
    /// Rows that changed since [`RowStore::begin_changes`], where the run makes recovery points of them.
    changed: Option<ChangedRows>,
}

impl RowStore {
    /// The rows of `buckets`, all virtual. The index is mapped and not touched: it costs memory as rows are written.
    ///
    /// # Errors
    /// [`ShardError::Memory`] when the system gives no memory for the index.
    pub fn new(config: &ShardConfig, buckets: &Range<u32>) -> Result<RowStore, ShardError> {
        RowStore::on_node(config, buckets, None)
    }

    /// As [`RowStore::new`], with index and records on one memory node.
    ///
    /// # Errors
    /// As [`RowStore::new`].
    pub fn on_node(
        config: &ShardConfig,
        buckets: &Range<u32>,
        node: Option<Node>,
    ) -> Result<RowStore, ShardError> {
        let mut entries = 0;
        let mut tables = Vec::with_capacity(config.tables.len());
        for spec in config.tables.iter() {
            let rows = rows_of_buckets(spec, buckets);
            let length = rows.len();
            tables.push(TableRows { rows, first: entries });
            entries += length;
        }
        let number = node.as_ref().map(|node| node.number);
        let index = Region::map(entries, number).map_err(|error| {
            ShardError::Memory(format!("the system gives no memory for an index of {entries} rows: {error}"))
        })?;
        let layout = RecordLayout::of(&config.embedding, config.width());
        Ok(RowStore {
            tables,
            index,
            arena: Arena::new(layout.words, number),
            node,
            virtual_rows: VirtualRows::new(config.seed, config.embedding.init_std, layout.width),
            rounding: Rounding::new(config.seed),
            rule: RowRule::of(&config.embedding),
            weight_decay: config.embedding.weight_decay,
            decayed: DecayLog::default(),
            changed: config.tracks_changes.then(|| ChangedRows::none_of(entries)),
            layout,
        })
    }

    /// The memory node that index and records are on, where there are several.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Written rows.
    pub fn written(&self) -> u64 {
        u64::from(self.arena.records())
    }

    /// Rows that changed since the last [`RowStore::begin_changes`]; 0 where nobody needs to know.
    pub fn changed(&self) -> u64 {
        self.changed.as_ref().map_or(0, ChangedRows::count)
    }

    /// From now on rows count as changed that change from now on.
    pub(crate) fn begin_changes(&mut self) {
        if let Some(changed) = &mut self.changed {
            changed.take();
        }
    }

    /// Which rows have changed by now.
    pub(crate) fn changes(&self) -> Option<ChangedRows> {
        self.changed.clone()
    }

    /// Whether an owned row is among `changes`.
    pub(crate) fn is_among(&self, changes: &ChangedRows, at: RowRef) -> bool {
        changes.has(self.entry(at))
    }

    /// The first row of `changes` among the owned rows `range` of `table`.
    pub(crate) fn next_among(
        &self,
        changes: &ChangedRows,
        table: TableIndex,
        range: Range<u32>,
    ) -> Option<RowId> {
        let TableRows { rows, first } = &self.tables[table.index()];
        let entry = |row: u32| first + (row - rows.start) as usize;
        let found = changes.next(entry(range.start), entry(range.end))?;
        Some(RowId(rows.start + (found - first) as u32))
    }

    /// Counts an owned row as changed.
    pub(crate) fn mark_changed(&mut self, at: RowRef) {
        let entry = self.entry(at);
        if let Some(changed) = &mut self.changed {
            changed.mark(entry);
        }
    }

    /// Rows of `table` that belong to this store.
    pub fn rows_of(&self, table: TableIndex) -> Range<u32> {
        self.tables[table.index()].rows.clone()
    }

    /// Tables that this store has rows of.
    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Index entries of the owned rows of `table`, in row order.
    pub(super) fn entries(&self, table: TableIndex) -> &[u32] {
        let TableRows { rows, first } = &self.tables[table.index()];
        &self.index[*first..first + rows.len()]
    }

    #[inline(always)]
    fn entry(&self, at: RowRef) -> usize {
        let table = &self.tables[at.table.index()];
        table.first + (at.row.0 - table.rows.start) as usize
    }

    /// Record number of an owned row; 0: virtual.
    #[inline(always)]
    pub(super) fn slot(&self, at: RowRef) -> u32 {
        self.index[self.entry(at)]
    }

    /// Whether an owned row has a record.
    pub fn is_written(&self, at: RowRef) -> bool {
        self.slot(at) != 0
    }

    /// How far rows that no step touches have decayed.
    pub fn decayed(&self) -> DecayLog {
        self.decayed
    }

    /// Says how far rows have decayed, after a restore.
    pub fn set_decayed(&mut self, log: DecayLog) {
        self.decayed = log;
    }

    /// Reads the record numbers of `rows` (owned, of one table, [`BATCH_ROWS`] at most).
    #[inline(always)]
    fn read_slots(&self, table: TableIndex, rows: &[u32], slots: &mut [u32; BATCH_ROWS]) {
        let entries = self.entries(table);
        let start = self.tables[table.index()].rows.start;
        for &row in rows {
            prefetch(&entries[(row - start) as usize..][..1]);
        }
        for (slot, &row) in slots.iter_mut().zip(rows) {
            *slot = entries[(row - start) as usize];
        }
    }

    /// Calls `visit` with each place of `rows` and the record number of its row.
    #[inline(always)]
    fn visit(&self, table: TableIndex, rows: &[u32], mut visit: impl FnMut(usize, u32)) {
        let near = |slot: u32| {
            if slot != 0 {
                let record = self.arena.get(slot);
                record.first_chunk::<READ_WORDS>().map_or_else(|| prefetch(record), |near| prefetch(near));
            }
        };
        let mut slots = [0; BATCH_ROWS];
        for (batch, rows) in rows.chunks(BATCH_ROWS).enumerate() {
            self.read_slots(table, rows, &mut slots);
            let slots = &slots[..rows.len()];
            slots.iter().take(READS_AHEAD).for_each(|&slot| near(slot));
            for (place, &slot) in slots.iter().enumerate() {
                if let Some(&next) = slots.get(place + READS_AHEAD) {
                    near(next);
                }
                visit(batch * BATCH_ROWS + place, slot);
            }
        }
    }

    /// Rows among `rows` (owned, of one table) that are virtual.
    pub fn count_virtual(&self, table: TableIndex, rows: &[u32]) -> u64 {
        let mut slots = [0; BATCH_ROWS];
        let mut count = 0;
        for rows in rows.chunks(BATCH_ROWS) {
            self.read_slots(table, rows, &mut slots);
            count += slots[..rows.len()].iter().filter(|&&slot| slot == 0).count();
        }
        count as u64
    }

    /// The weights of owned rows of one table, in the order asked; a row may be asked for more than once.
    ///
    /// # Panics
    /// When `out` is not `rows.len()` rows long, or a row is not owned.
    pub fn gather(&self, table: TableIndex, rows: &[u32], out: RowsOut<'_>) {
        let (layout, width) = (self.layout, self.layout.width);
        match out {
            RowsOut::F32(out) => {
                assert_eq!(out.len(), rows.len() * width, "gathered rows must fit their memory");
                let streams = self.streams_f32(out);
                self.visit(table, rows, |place, slot| {
                    let target = &mut out[place * width..][..width];
                    let at = RowRef { table, row: RowId(rows[place]) };
                    self.copy_f32(StoredRow { at, slot }, target, streams);
                });
            }
            RowsOut::Bf16(out) => {
                assert_eq!(out.len(), rows.len() * width, "gathered rows must fit their memory");
                let is_exact = layout.storage == RowType::Bf16 && !layout.decays;
                let streams = is_streamed(out);
                let mut wide = vec![0.0; width];
                self.visit(table, rows, |place, slot| {
                    let target = &mut out[place * width..][..width];
                    if is_exact && slot != 0 {
                        let bits = layout.bf16s(self.arena.get(slot));
                        match streams {
                            true => {
                                copy_streaming(bytemuck::cast_slice(bits), bytemuck::cast_slice_mut(target))
                            }
                            false => target.copy_from_slice(bits),
                        }
                    } else {
                        let at = RowRef { table, row: RowId(rows[place]) };
                        self.read_at(StoredRow { at, slot }, &mut wide);
                        round_to_nearest(&wide, target);
                    }
                });
            }
        }
        finish_streams();
    }

    /// As [`RowStore::gather`] in f32, with row i at each of `places(i)` of `out` `[places, w]`.
    ///
    /// # Panics
    /// When a place is beyond `out`, or a row is not owned.
    pub fn scatter<'a>(
        &self,
        table: TableIndex,
        rows: &[u32],
        places: impl Fn(usize) -> &'a [u32],
        out: &mut [f32],
    ) {
        let (width, streams) = (self.layout.width, self.streams_f32(out));
        self.visit(table, rows, |index, slot| {
            let at = RowRef { table, row: RowId(rows[index]) };
            for &place in places(index) {
                let target = &mut out[place as usize * width..][..width];
                self.copy_f32(StoredRow { at, slot }, target, streams);
            }
        });
        finish_streams();
    }

    /// Whether rows gathered into `out` are plain copies of records that are written past the caches.
    fn streams_f32(&self, out: &[f32]) -> bool {
        self.layout.storage == RowType::F32 && !self.layout.decays && is_streamed(out)
    }

    /// Copies a row's weights, past the caches where `streams` and the row is written.
    #[inline(always)]
    fn copy_f32(&self, stored: StoredRow, target: &mut [f32], streams: bool) {
        if streams && stored.slot != 0 {
            let weights = self.layout.f32s(self.arena.get(stored.slot));
            copy_streaming(bytemuck::cast_slice(weights), bytemuck::cast_slice_mut(target));
        } else {
            self.read_at(stored, target);
        }
    }

    /// Copies the weights of an owned row.
    pub fn read(&self, at: RowRef, weights: &mut [f32]) {
        self.read_at(StoredRow { at, slot: self.slot(at) }, weights);
    }

    /// Copies the weights of a row whose record number is known.
    #[inline(always)]
    fn read_at(&self, StoredRow { at, slot }: StoredRow, weights: &mut [f32]) {
        let decayed = match slot {
            0 => {
                self.virtual_weights(at, weights);
                DecayLog::default()
            }
            slot => {
                let record = self.arena.get(slot);
                match self.layout.storage {
                    RowType::F32 => weights.copy_from_slice(self.layout.f32s(record)),
                    RowType::Bf16 => widen(self.layout.bf16s(record), weights),
                }
                self.layout.decayed(record)
            }
        };
        self.decay(weights, decayed);
    }

    /// Initial weights; what bf16 cannot hold is rounded as update 0 of the row.
    fn virtual_weights(&self, at: RowRef, weights: &mut [f32]) {
        self.virtual_rows.fill(at, weights);
        if self.layout.storage == RowType::Bf16 {
            let mut rounded = vec![0; weights.len()];
            self.rounding.round(at, 0, weights, &mut rounded);
            widen(&rounded, weights);
        }
    }

    /// Makes up for the decay since `earlier`.
    #[inline(always)]
    fn decay(&self, weights: &mut [f32], earlier: DecayLog) {
        if self.layout.decays && earlier != self.decayed {
            let left = self.decayed.left_since(earlier);
            weights.iter_mut().for_each(|weight| *weight *= left);
        }
    }

    /// Applies one update to each of `rows` (owned, ascending, of one table); virtual ones are written first. Place i's
    /// gradient comes from `gradients`.
    ///
    /// # Errors
    /// [`ShardError::Memory`] when more than 2³² − 1 rows of one lane would be written, or the system has no memory.
    pub fn update(
        &mut self,
        table: TableIndex,
        rows: &[u32],
        gradients: &impl Gradients,
        rates: Rates,
    ) -> Result<(), ShardError> {
        self.update_noting(table, rows, gradients, rates, |_| {})
    }

    /// As [`RowStore::update`]; `note` is told of every row right after its update.
    ///
    /// # Errors
    /// As [`RowStore::update`].
    pub fn update_noting(
        &mut self,
        table: TableIndex,
        rows: &[u32],
        gradients: &impl Gradients,
        rates: Rates,
        mut note: impl FnMut(Updated<'_>),
    ) -> Result<(), ShardError> {
        let width = self.layout.width;
        let mut scratch = vec![0.0; gradients.scratch_values(width)];
        let mut wide = vec![0.0; width];
        let decayed = self.decayed_after(rates.lr);
        let mut slots = [0; BATCH_ROWS];
        for (batch, rows) in rows.chunks(BATCH_ROWS).enumerate() {
            self.read_slots(table, rows, &mut slots);
            if let Some(changed) = &mut self.changed {
                let TableRows { rows: owned, first } = &self.tables[table.index()];
                rows.iter().for_each(|&row| changed.mark(first + (row - owned.start) as usize));
            }
            for (slot, &row) in slots.iter_mut().zip(rows).filter(|(slot, _)| **slot == 0) {
                *slot = self.write_first(RowRef { table, row: RowId(row) }, &mut wide)?;
            }
            let slots = &slots[..rows.len()];
            for (place, (&slot, &row)) in slots.iter().zip(rows).enumerate() {
                if let Some(&next) = slots.get(place + UPDATES_AHEAD) {
                    self.layout.prefetch_record(self.arena.get(next));
                    gradients.prefetch(batch * BATCH_ROWS + place + UPDATES_AHEAD);
                }
                let gradient = gradients.sum(batch * BATCH_ROWS + place, &mut scratch);
                let stored = StoredRow { at: RowRef { table, row: RowId(row) }, slot };
                note(self.update_record(stored, RowUpdate { gradient, rates, decayed }, &mut wide));
            }
        }
        Ok(())
    }

    /// Updates one record.
    #[inline(always)]
    fn update_record<'a>(
        &'a mut self,
        StoredRow { at, slot }: StoredRow,
        RowUpdate { gradient, rates, decayed }: RowUpdate<'_>,
        wide: &'a mut [f32],
    ) -> Updated<'a> {
        let (layout, rule) = (self.layout, self.rule);
        let missed = match layout.decays {
            true => self.decayed.left_since(layout.decayed(self.arena.get(slot))),
            false => 1.0,
        };
        let (words, state, mut head) = layout.split_mut(self.arena.get_mut(slot));
        let updates = head.count();
        head.set_decayed(decayed);
        match layout.storage {
            RowType::F32 => {
                let weights: &mut [f32] = bytemuck::cast_slice_mut(words);
                apply(&rule, RowState { updates, weights, state }, missed, gradient, rates);
                Updated { row: at.row, updates, stored: bytemuck::cast_slice(weights), weights }
            }
            RowType::Bf16 => {
                let bits = &mut bytemuck::cast_slice_mut(words)[..layout.width];
                widen(bits, wide);
                apply(&rule, RowState { updates, weights: wide, state }, missed, gradient, rates);
                self.rounding.round(at, updates, wide, bits);
                Updated { row: at.row, updates, stored: bytemuck::cast_slice(bits), weights: wide }
            }
        }
    }

    /// Notes that a step of learning rate `lr` was applied, to this store's rows or to none of them.
    pub fn finish_step(&mut self, lr: f32) {
        self.decayed = self.decayed_after(lr);
    }

    fn decayed_after(&self, lr: f32) -> DecayLog {
        match self.layout.decays {
            true => self.decayed.after(lr, self.weight_decay),
            false => self.decayed,
        }
    }

    /// Gives a virtual row its record, with its initial weights and no update; `weights` is memory for a row.
    fn write_first(&mut self, at: RowRef, weights: &mut [f32]) -> Result<u32, ShardError> {
        self.virtual_weights(at, weights);
        let slot = self.allocate(at, 0)?;
        self.put_weights(slot, weights);
        Ok(slot)
    }

    /// Stores weights that need no rounding.
    pub(super) fn put_weights(&mut self, slot: u32, weights: &[f32]) {
        let layout = self.layout;
        let (words, ..) = layout.split_mut(self.arena.get_mut(slot));
        match layout.storage {
            RowType::F32 => bytemuck::cast_slice_mut(words).copy_from_slice(weights),
            RowType::Bf16 => {
                round_to_nearest(weights, &mut bytemuck::cast_slice_mut(words)[..layout.width]);
            }
        }
    }

    /// A record for a virtual row.
    pub(super) fn allocate(&mut self, at: RowRef, updates: u32) -> Result<u32, ShardError> {
        let full =
            || ShardError::Memory("a lane has written 4294967295 rows; use more lanes or shards".into());
        let refused = |error| ShardError::Memory(format!("the system gives no memory for rows: {error}"));
        let slot = self.arena.allocate().map_err(refused)?.ok_or_else(full)?;
        let entry = self.entry(at);
        self.index[entry] = slot;
        let layout = self.layout;
        layout.split_mut(self.arena.get_mut(slot)).2.set(at.row, updates);
        Ok(slot)
    }
}

/// Whether gathered rows are too many to be found in a cache when they are read.
fn is_streamed<T>(out: &[T]) -> bool {
    size_of_val(out) >= STREAMED_BYTES
}

/// Makes up for decay, of which the factor `missed` is missing, then updates.
#[inline(always)]
fn apply(rule: &RowRule, row: RowState<'_>, missed: f32, gradient: &[f32], rates: Rates) {
    if missed != 1.0 {
        row.weights.iter_mut().for_each(|weight| *weight *= missed);
    }
    rule.update(row, gradient, rates);
}
