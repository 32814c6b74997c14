//! What several tests need: unique rows, golden directories, random cells, comparisons.

use std::collections::HashMap;
use std::path::PathBuf;

use polygram_domain::philox::{Purpose, Stream, unit_variance_uniform};
use polygram_domain::run_spec::{AdamWSpec, BalanceSpec};
use polygram_domain::square_sum::tensor_square_sum;
use polygram_domain::{CellBatch, ModelSpec};
use polygram_model::hf::HfDirectory;
use polygram_model::{CellInput, Options};
use safetensors::{Dtype, SafeTensors};

/// Unique rows per table, ascending, one table after another.
#[derive(Clone, Debug)]
pub(crate) struct UniqueRows {
    pub(crate) offsets: Vec<usize>,
    pub(crate) rows: Vec<u32>,
    pub(crate) inverse_pc: Vec<u32>,
}

impl UniqueRows {
    pub(crate) fn of(ids_pc: &[u32], tables: usize) -> UniqueRows {
        let mut unique = UniqueRows { offsets: vec![0], rows: Vec::new(), inverse_pc: vec![0; ids_pc.len()] };
        for table in 0..tables {
            let mut rows: Vec<u32> = ids_pc.iter().skip(table).step_by(tables).copied().collect();
            rows.sort_unstable();
            rows.dedup();
            for (inverse, id) in unique.inverse_pc.iter_mut().zip(ids_pc).skip(table).step_by(tables) {
                *inverse = (unique.rows.len() + rows.binary_search(id).unwrap()) as u32;
            }
            unique.rows.extend(rows);
            unique.offsets.push(unique.rows.len());
        }
        unique
    }
}

/// One of the golden directories (`tests/golden/README.md` says where they come from).
pub(crate) struct Golden {
    pub(crate) path: PathBuf,
    pub(crate) directory: HfDirectory,
    pub(crate) batch: CellBatch,
    pub(crate) unique: UniqueRows,
    pub(crate) rows_suw: Vec<f32>,
}

pub(crate) fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

impl Golden {
    pub(crate) fn open(name: &str) -> Golden {
        let path = golden_path(name);
        let directory = HfDirectory::open(&path).unwrap();
        let forward = std::fs::read(path.join("forward.safetensors")).unwrap();
        let (shape, ids) = integers(&forward, "input_ids");
        let (_, ngram_ids) = integers(&forward, "ngram_ids");
        let batch = CellBatch::from_sequences(ids, shape[0], shape[1]).unwrap();
        let unique = UniqueRows::of(&ngram_ids, directory.spec().ngram.tables_per_site() as usize);
        let rows_suw = directory.rows(&unique.offsets, &unique.rows).unwrap();
        Golden { path, directory, batch, unique, rows_suw }
    }

    pub(crate) fn input(&self) -> CellInput<'_> {
        CellInput {
            batch: &self.batch,
            inverse_pc: &self.unique.inverse_pc,
            rows_suw: &self.rows_suw,
            unique: self.unique.rows.len(),
            global_targets: self.batch.target_count(),
        }
    }

    /// Each sequence as a cell of its own, with the rows of all.
    pub(crate) fn sequences(&self) -> Vec<TestCell> {
        let (batch, seq_len) = (self.batch.batch(), self.batch.seq_len());
        let ids = self.unique.inverse_pc.len() / batch;
        (0..batch)
            .map(|row| {
                let tokens = self.batch.tokens_bt()[row * seq_len..(row + 1) * seq_len].to_vec();
                let inverse_pc = self.unique.inverse_pc[row * ids..(row + 1) * ids].to_vec();
                TestCell {
                    batch: CellBatch::from_sequences(tokens, 1, seq_len).unwrap(),
                    unique: UniqueRows { inverse_pc, ..self.unique.clone() },
                    rows_suw: self.rows_suw.clone(),
                }
            })
            .collect()
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path.join(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&self.file(name)).unwrap()
    }

    /// Row gradients `[U, w]` as the dense gradient of one table, `[rows, w]`.
    pub(crate) fn dense_row_gradient(&self, table: usize, row_grads: &[f32]) -> Vec<f32> {
        let spec = self.directory.spec();
        let width = (spec.hidden_size / spec.ngram.tables_per_site()) as usize;
        let mut dense = vec![0.0; spec.ngram.rows_of(table as u32) as usize * width];
        for index in self.unique.offsets[table]..self.unique.offsets[table + 1] {
            let row = self.unique.rows[index] as usize;
            dense[row * width..(row + 1) * width]
                .copy_from_slice(&row_grads[index * width..(index + 1) * width]);
        }
        dense
    }
}

/// An f32 tensor of a safetensors file.
pub(crate) fn floats(file: &[u8], name: &str) -> Vec<f32> {
    let parsed = SafeTensors::deserialize(file).unwrap();
    let view = parsed.tensor(name).unwrap();
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Shape and values of an i64 tensor.
pub(crate) fn integers(file: &[u8], name: &str) -> (Vec<usize>, Vec<u32>) {
    let parsed = SafeTensors::deserialize(file).unwrap();
    let view = parsed.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::I64);
    let values = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    (view.shape().to_vec(), values)
}

pub(crate) fn names(file: &[u8]) -> Vec<String> {
    SafeTensors::deserialize(file).unwrap().names().into_iter().map(str::to_owned).collect()
}

pub(crate) fn largest_difference(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// ‖found − wanted‖ / ‖wanted‖.
pub(crate) fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(a, b)| f64::from(a - b)));
    let size = norm(&mut wanted.iter().map(|&v| f64::from(v)));
    if size == 0.0 { difference } else { difference / size }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

pub(crate) fn adamw() -> AdamWSpec {
    AdamWSpec {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-16,
        weight_decay: 0.1,
        word_embedding_lr_multiplier: 1.0,
        word_embedding_weight_decay: 0.1,
    }
}

/// Options for training with every auxiliary loss switched off.
pub(crate) fn options(target_top_k: u32) -> Options {
    let evaluation = Options::evaluation();
    Options {
        balance: BalanceSpec { target_top_k, ..evaluation.balance.clone() },
        adamw: Some(adamw()),
        ..evaluation
    }
}

/// Random numbers of unit variance, by seed.
pub(crate) fn random(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    let words = Stream::new(seed, Purpose::SyntheticData);
    (0..len).map(|i| unit_variance_uniform(words.words(stream, i as u64)[0])).collect()
}

/// A cell of a model, random unless it is golden: tokens, ids and rows.
#[derive(Clone, Debug)]
pub(crate) struct TestCell {
    pub(crate) batch: CellBatch,
    pub(crate) unique: UniqueRows,
    pub(crate) rows_suw: Vec<f32>,
}

impl TestCell {
    pub(crate) fn new(
        spec: &ModelSpec,
        sites: usize,
        seed: u64,
        (batch, seq_len): (usize, usize),
    ) -> TestCell {
        let stream = Stream::new(seed, Purpose::SyntheticData);
        let draw = |high: u64, index: usize, bound: u64| stream.below(high, index as u64, bound) as u32;
        let vocab = u64::from(spec.vocab_size);
        let samples: Vec<u32> = (0..batch * (seq_len + 1)).map(|i| draw(1, i, vocab)).collect();
        let tables = if sites == 0 { 0 } else { spec.ngram.tables_per_site() as usize };
        // Few distinct rows, so that positions share them.
        let ids: Vec<u32> = (0..batch * seq_len * tables).map(|i| draw(2, i, 5)).collect();
        let unique = UniqueRows::of(&ids, tables);
        let width = match sites {
            0 => 0,
            1 => spec.hidden_size as usize / tables,
            _ => spec.ffn_hidden_size as usize / tables,
        };
        let rows_suw = random(seed, 3, sites * unique.rows.len() * width);
        TestCell { batch: CellBatch::from_samples(&samples, batch, seq_len).unwrap(), unique, rows_suw }
    }

    pub(crate) fn input(&self, global_targets: u64) -> CellInput<'_> {
        CellInput {
            batch: &self.batch,
            inverse_pc: &self.unique.inverse_pc,
            rows_suw: &self.rows_suw,
            unique: self.unique.rows.len(),
            global_targets,
        }
    }
}

/// A model's dense state by name.
pub(crate) fn state_of(model: &polygram_model::Model) -> HashMap<String, Vec<f32>> {
    model.state().into_iter().map(|view| (view.name, view.values.to_vec())).collect()
}

/// Sum of squares of a flat gradient: tensors in canonical order.
pub(crate) fn square_sum(model: &polygram_model::Model, gradient: &[f32]) -> f64 {
    let mut entries: Vec<_> = model.layout().entries().iter().collect();
    entries.sort_by_key(|entry| entry.number);
    entries.iter().map(|entry| tensor_square_sum(&gradient[entry.range.clone()])).sum()
}
