//! A digest of the logical training state: the same for the same state, whatever topology, members and objects hold
//! it.
//!
//! All hashes are BLAKE3; `‖` joins bytes; `u32(x)`, `u64(x)`, `f32(x)` are little-endian; `text(s)` is
//! `u64(bytes of s) ‖ s`; `hash` is the 32 raw bytes.
//!
//! * A tensor: `hash(f32 of every element, row-major)`.
//! * Parts `dense` (trained parameters), `optimizer` (names beginning with `optimizer.`) and `router_bias` (names
//!   ending with `.e_score_correction_bias`): `hash(text("polygram <part> 1") ‖ for each tensor of the part, names
//!   ascending by bytes: text(name) ‖ u64(dims) ‖ u64 of every dim ‖ its hash)`.
//! * A table: `hash(for each written row, ascending: u32(row) ‖ u32(updates) ‖ f32 of its weights ‖ f32 of its
//!   optimizer values)`.
//! * Part `tables`: `hash(text("polygram tables 1") ‖ for each table, by number: u32(table) ‖ u32(rows it could have) ‖
//!   u32(width) ‖ u32(optimizer values per row) ‖ u64(written rows) ‖ its hash)`.
//! * Part `data`: `hash(text("polygram data 1") ‖ u64(seed) ‖ u64(samples) ‖ u64(tokens) ‖ for each range of samples left
//!   out, ascending: u64(its first) ‖ u64(its last + 1))`.
//! * The whole: `hash(text("polygram state 1") ‖ u64(step) ‖ for each part, names ascending: text(name) ‖ its hash)`.

use std::collections::{BTreeMap, BTreeSet};

use blake3::{Hash, Hasher};
use polygram_domain::spikes::LeftOut;
use polygram_domain::tables::BUCKETS;
use polygram_domain::{Step, TableIndex};
use serde::{Deserialize, Serialize};

use crate::cover::TensorClass;
use crate::cursor::Cursor;
use crate::distance::{Distance, RowDistance};
use crate::error::CheckpointError;
use crate::manifest::Manifest;
use crate::object::{Content, element_count, extend_f32};
use crate::rows::{RowRecord, TableShape};
use crate::store::RunStore;
use crate::tensors::TensorSlice;

/// Digest of a state and of its parts, as 64 hex digits each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The whole.
    pub digest: String,
    /// `data`, `dense`, `optimizer`, `router_bias`, `tables`.
    pub parts: BTreeMap<String, String>,
    /// State version.
    pub step: Step,
}

fn text(hasher: &mut Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

fn part(name: &str) -> Hasher {
    let mut hasher = Hasher::new();
    text(&mut hasher, &format!("polygram {name} 1"));
    hasher
}

/// Hash of one tensor's values, given in row-major order in any number of runs.
#[derive(Clone, Debug, Default)]
pub struct TensorDigest {
    hasher: Hasher,
    elements: u64,
    scratch: Vec<u8>,
}

impl TensorDigest {
    /// Adds the next values.
    pub fn update(&mut self, values: &[f32]) {
        self.scratch.clear();
        extend_f32(&mut self.scratch, values);
        self.hasher.update(&self.scratch);
        self.elements += values.len() as u64;
    }
}

/// Hash of one table's written rows, given ascending.
#[derive(Clone, Debug)]
pub struct TableDigest {
    shape: TableShape,
    hasher: Hasher,
    rows: u64,
    scratch: Vec<u8>,
}

impl TableDigest {
    /// Begins a table.
    pub fn new(shape: TableShape) -> TableDigest {
        TableDigest { shape, hasher: Hasher::new(), rows: 0, scratch: Vec::new() }
    }

    /// Adds the next row.
    pub fn update(&mut self, record: RowRecord<'_>) {
        self.scratch.extend(record.row.0.to_le_bytes());
        self.scratch.extend(record.updates.to_le_bytes());
        extend_f32(&mut self.scratch, record.values);
        self.rows += 1;
        if self.scratch.len() >= 1 << 16 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.scratch);
        self.scratch.clear();
    }
}

/// Puts a state's digest together from its tensors and tables, in any order. Without I/O.
#[derive(Debug, Default)]
pub struct StateDigest {
    tensors: BTreeMap<String, (Vec<u64>, Hash)>,
    tables: BTreeMap<u32, (TableShape, u64, Hash)>,
}

impl StateDigest {
    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, shape: &[u64], values: TensorDigest) {
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values.hasher.finalize()));
    }

    /// Adds a table.
    pub fn table(&mut self, mut table: TableDigest) {
        table.flush();
        self.tables.insert(table.shape.table.0, (table.shape, table.rows, table.hasher.finalize()));
    }

    /// The digest of the state at `step` of a run with this `seed`, which has consumed so much data and leaves some out.
    pub fn finish(&self, step: Step, seed: u64, cursor: Cursor, left_out: &LeftOut) -> Digest {
        let mut parts: BTreeMap<String, Hash> = BTreeMap::new();
        for (name, class) in [
            ("dense", TensorClass::Dense),
            ("optimizer", TensorClass::Optimizer),
            ("router_bias", TensorClass::RouterBias),
        ] {
            let mut hasher = part(name);
            for (name, (shape, hash)) in self.tensors.iter().filter(|(n, _)| TensorClass::of(n) == class) {
                text(&mut hasher, name);
                hasher.update(&(shape.len() as u64).to_le_bytes());
                for dim in shape {
                    hasher.update(&dim.to_le_bytes());
                }
                hasher.update(hash.as_bytes());
            }
            parts.insert(name.into(), hasher.finalize());
        }
        let mut hasher = part("tables");
        for (shape, rows, hash) in self.tables.values() {
            for field in [shape.table.0, shape.rows, shape.width, shape.state_values] {
                hasher.update(&field.to_le_bytes());
            }
            hasher.update(&rows.to_le_bytes());
            hasher.update(hash.as_bytes());
        }
        parts.insert("tables".into(), hasher.finalize());
        let mut hasher = part("data");
        for field in [seed, cursor.samples, cursor.tokens].iter().chain(left_out.ranges().as_flattened()) {
            hasher.update(&field.to_le_bytes());
        }
        parts.insert("data".into(), hasher.finalize());

        let mut hasher = part("state");
        hasher.update(&step.0.to_le_bytes());
        for (name, hash) in &parts {
            text(&mut hasher, name);
            hasher.update(hash.as_bytes());
        }
        Digest {
            digest: hasher.finalize().to_hex().to_string(),
            parts: parts.into_iter().map(|(name, hash)| (name, hash.to_hex().to_string())).collect(),
            step,
        }
    }
}

/// A tensor or table that two states do not have alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Name of the tensor, or `table <number>`.
    pub name: String,
    /// What differs, in words.
    pub what: String,
    /// Of the tensor's values, or of the table's weights; `None` until [`measure`](crate::compare::measure) finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<Distance>,
    /// What is compared of a table's rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowDistance>,
    /// Where the values lie.
    #[serde(skip)]
    pub(crate) place: Place,
}

/// What can be compared value by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing: one state does not have it, or in another shape.
    Nowhere,
    /// A tensor of so many elements.
    Tensor { elements: u64 },
    /// A table of rows of this width.
    Table { table: TableIndex, width: usize },
}

impl StateDigest {
    /// Every tensor and table in which two states differ, tensors first, by name.
    pub fn differences(&self, other: &StateDigest) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut note = |name: String, what: String, place: Place| {
            found.push(Difference { name, what, distance: None, rows: None, place });
        };
        for name in union(&self.tensors, &other.tensors) {
            let place = |shape: &[u64]| Place::Tensor { elements: shape.iter().product() };
            match (self.tensors.get(name), other.tensors.get(name)) {
                (Some((a, _)), Some((b, _))) if a != b => {
                    note(name.clone(), format!("shape {a:?} and {b:?}"), Place::Nowhere)
                }
                (Some((shape, a)), Some((_, b))) if a != b => {
                    note(name.clone(), "other values".into(), place(shape))
                }
                (Some(_), Some(_)) => {}
                (Some(_), None) => note(name.clone(), "only in the first".into(), Place::Nowhere),
                (None, _) => note(name.clone(), "only in the second".into(), Place::Nowhere),
            }
        }
        for number in union(&self.tables, &other.tables) {
            let name = format!("table {number}");
            let place = |shape: &TableShape| Place::Table { table: shape.table, width: shape.width as usize };
            match (self.tables.get(number), other.tables.get(number)) {
                (Some((a, ..)), Some((b, ..))) if a != b => {
                    note(name, format!("{a:?} and {b:?}"), Place::Nowhere)
                }
                (Some((shape, a, _)), Some((_, b, _))) if a != b => {
                    note(name, format!("{a} and {b} written rows"), place(shape));
                }
                (Some((shape, _, a)), Some((.., b))) if a != b => {
                    note(name, "other values".into(), place(shape))
                }
                (Some(_), Some(_)) => {}
                (Some(_), None) => note(name, "only in the first".into(), Place::Nowhere),
                (None, _) => note(name, "only in the second".into(), Place::Nowhere),
            }
        }
        found
    }

    /// How many tensors and tables two states have together: those of both count once.
    pub fn compared(&self, other: &StateDigest) -> usize {
        union(&self.tensors, &other.tensors).len() + union(&self.tables, &other.tables).len()
    }

    /// How many tensors and tables the state has.
    pub fn len(&self) -> usize {
        self.tensors.len() + self.tables.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The keys of two maps, each once, in order.
fn union<'a, K: Ord, V>(a: &'a BTreeMap<K, V>, b: &'a BTreeMap<K, V>) -> BTreeSet<&'a K> {
    a.keys().chain(b.keys()).collect()
}

impl RunStore {
    /// The digest of a checkpoint. Every object is read and verified; memory holds one at a time.
    ///
    /// Errors: damage; [`CheckpointError::NoTensor`] or [`CheckpointError::NoBuckets`] if the manifest has holes.
    pub async fn digest(&self, manifest: &Manifest) -> Result<Digest, CheckpointError> {
        let state = self.state_digest(manifest).await?;
        Ok(state.finish(manifest.step, manifest.seed, manifest.cursor, &manifest.policy.left_out))
    }

    /// The same by tensor and table.
    pub async fn state_digest(&self, manifest: &Manifest) -> Result<StateDigest, CheckpointError> {
        let mut state = StateDigest::default();
        self.digest_tensors(manifest, &mut state).await?;
        let mut tables: BTreeMap<u32, TableShape> = BTreeMap::new();
        for object in &manifest.objects {
            if let Content::Rows { table, table_rows, width, state_values, .. } = object.content {
                let (index, rows) = (TableIndex(table), table_rows);
                tables.insert(table, TableShape { table: index, rows, width, state_values });
            }
        }
        for shape in tables.into_values() {
            let mut table = TableDigest::new(shape);
            self.read_rows::<CheckpointError>(manifest, shape.table, 0..BUCKETS, |record| {
                table.update(record);
                Ok(())
            })
            .await?;
            state.table(table);
        }
        Ok(state)
    }

    /// Slices of a tensor may lie in several objects and out of order: an object with a slice that cannot be added
    /// yet is read again in the next round. A round that adds nothing has met a hole.
    async fn digest_tensors(
        &self,
        manifest: &Manifest,
        state: &mut StateDigest,
    ) -> Result<(), CheckpointError> {
        let mut progress = TensorProgress::default();
        loop {
            let before = progress.added;
            for entry in &manifest.objects {
                let Content::Tensors { tensors } = &entry.content else { continue };
                if tensors.iter().any(|tensor| progress.is_next(&tensor.name, tensor.elements.start)) {
                    let object = self.read_tensor_object(entry).await?;
                    object.slices(|_| true, |slice| progress.add(&slice, state))?;
                }
            }
            let Some(name) = progress.open.keys().next() else { return Ok(()) };
            if progress.added == before {
                return Err(CheckpointError::NoTensor { step: manifest.step, name: name.clone() });
            }
        }
    }
}

/// Tensors of which some, but not all elements were added, and those that are complete.
#[derive(Default)]
struct TensorProgress {
    open: BTreeMap<String, TensorDigest>,
    done: BTreeSet<String>,
    added: u64,
}

impl TensorProgress {
    fn is_next(&self, name: &str, start: u64) -> bool {
        !self.done.contains(name) && self.open.get(name).map_or(0, |tensor| tensor.elements) == start
    }

    fn add(&mut self, slice: &TensorSlice<'_>, state: &mut StateDigest) {
        // Listed as open although nothing was added: a tensor whose first elements are never found is a hole.
        if !self.done.contains(slice.name) {
            self.open.entry(slice.name.to_owned()).or_default();
        }
        if !self.is_next(slice.name, slice.elements.start) {
            return;
        }
        let mut tensor = self.open.remove(slice.name).unwrap_or_default();
        tensor.update(slice.data);
        self.added += slice.data.len() as u64;
        if element_count(slice.shape) == Some(tensor.elements) {
            state.tensor(slice.name, slice.shape, tensor);
            self.done.insert(slice.name.to_owned());
        } else {
            self.open.insert(slice.name.to_owned(), tensor);
        }
    }
}
