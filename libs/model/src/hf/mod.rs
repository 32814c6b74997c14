//! A Hugging Face directory: `config.json` beside `model.safetensors`, or `model.safetensors.index.json` and
//! its shards.
//!
//! Files are mapped, not read: table rows are picked from the map one by one, so that tables larger than
//! memory can be used. Values may be f32, bf16 or f16 and come out as f32. A value that is not finite is an
//! error when it is read.

mod tensors;

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use polygram_domain::hf_config::HfConfig;
use polygram_domain::{ModelSpec, TableSet};
use safetensors::Dtype;

use crate::decoder::Model;
use crate::error::{ModelError, Result};
use crate::options::Options;
use tensors::{Located, Tensors, read_text};

/// The word embedding, and a second name of it: the published class has the module under both names, so that
/// `save_pretrained` may write either.
const WORD_EMBEDDING: &str = "model.embed_tokens.weight";
const WORD_EMBEDDING_ALIAS: &str = "model.ngram_embeddings.word_embeddings.weight";

/// An opened and checked directory.
#[derive(Debug)]
pub struct HfDirectory {
    path: PathBuf,
    spec: ModelSpec,
    tables: TableSet,
    tensors: Tensors,
}

impl HfDirectory {
    /// Opens `path` and checks everything at once: the configuration, every file's header and length, that
    /// every tensor of the model is there in its shape, and that there is no other tensor that the model
    /// should have used.
    pub fn open(path: &Path) -> Result<HfDirectory> {
        let config = path.join("config.json");
        let spec = HfConfig::parse(&read_text(&config)?)
            .and_then(|config| config.to_model())
            .map_err(|problem| ModelError::File { path: config, problem })?;
        let mut tensors = Tensors::open(path)?;
        tensors.name_experts(&spec)?;
        let mut directory = HfDirectory { path: path.to_owned(), tables: TableSet::of(&spec), spec, tensors };
        directory.take_alias()?;
        directory.check_names()?;
        Ok(directory)
    }

    /// The model that `config.json` describes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// A model with the directory's dense weights.
    pub fn load(&self, options: Options) -> Result<Model> {
        let mut model = Model::new(&self.spec, options)?;
        model.load_weights(|name, _, values| self.read(name, values))?;
        Ok(model)
    }

    /// The rows of a cell from the mapped tables: `rows` are each table's unique row ids, one table after
    /// another, `offsets` (C + 1 numbers) where each begins. Gives `[U, w]`, row-major.
    pub fn rows(&self, offsets: &[usize], rows: &[u32]) -> Result<Vec<f32>> {
        let count = self.tables.len();
        let ordered = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if offsets.len() != count + 1 || !ordered || offsets.last() != Some(&rows.len()) {
            return Err(ModelError::input(
                "row offsets",
                format!("{offsets:?}"),
                format!("{} rising numbers ending with {}", count + 1, rows.len()),
            ));
        }
        let mut values = Vec::new();
        for (table, range) in self.tables.iter().zip(offsets.windows(2)) {
            let located = self.located(&table.name)?;
            let width = table.width as usize;
            let row_bytes = located.bytes.len() / table.rows as usize;
            for &row in &rows[range[0]..range[1]] {
                if row >= table.rows {
                    return Err(ModelError::input(
                        "row id",
                        format!("{row} of {}", table.name),
                        format!("less than {} rows", table.rows),
                    ));
                }
                let first = row as usize * width;
                let start = located.bytes.start + row as usize * row_bytes;
                let filled = values.len();
                values.resize(filled + width, 0.0);
                let bytes = start..start + row_bytes;
                self.decode(&table.name, (located, bytes, first), &mut values[filled..])?;
            }
        }
        Ok(values)
    }

    /// One whole table, `[rows, w]` row-major.
    pub fn table(&self, index: usize) -> Result<Vec<f32>> {
        let table = self.tables.iter().nth(index).ok_or_else(|| {
            ModelError::input("table", index, format!("less than {} tables", self.tables.len()))
        })?;
        let mut values = vec![0.0; table.rows as usize * table.width as usize];
        self.read(&table.name, &mut values)?;
        Ok(values)
    }

    fn located(&self, name: &str) -> Result<&Located> {
        self.tensors.get(name).ok_or_else(|| ModelError::File {
            path: self.path.clone(),
            problem: format!("tensor {name} is in none of its safetensors files"),
        })
    }

    fn read(&self, name: &str, values: &mut [f32]) -> Result<()> {
        let located = self.located(name)?;
        self.decode(name, (located, located.bytes.clone(), 0), values)
    }

    /// Decodes bytes of the tensor called `name`, whose element number `first` they begin with.
    fn decode(
        &self,
        name: &str,
        (located, bytes, first): (&Located, Range<usize>, usize),
        values: &mut [f32],
    ) -> Result<()> {
        decode(located.dtype, &self.tensors.map(located)[bytes], values);
        let Some(at) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let (mut element, mut place) = (first + at, Vec::new());
        for &size in located.shape.iter().rev() {
            place.insert(0, element % size as usize);
            element /= size as usize;
        }
        Err(ModelError::File {
            path: self.tensors.file(located).to_owned(),
            problem: format!("tensor {name} is not finite: {} at {place:?}", values[at]),
        })
    }

    /// Takes the word embedding from its second name where the first is missing. Both must be the same.
    fn take_alias(&mut self) -> Result<()> {
        let Some(alias) = self.tensors.remove(WORD_EMBEDDING_ALIAS) else { return Ok(()) };
        let Some(located) = self.tensors.get(WORD_EMBEDDING) else {
            self.tensors.insert(WORD_EMBEDDING.to_owned(), alias);
            return Ok(());
        };
        let bytes = |located: &Located| &self.tensors.map(located)[located.bytes.clone()];
        if located.dtype != alias.dtype || located.shape != alias.shape || bytes(located) != bytes(&alias) {
            return Err(ModelError::File {
                path: self.tensors.file(&alias).to_owned(),
                problem: format!(
                    "{WORD_EMBEDDING_ALIAS} and {WORD_EMBEDDING} are two names of one tensor, but differ"
                ),
            });
        }
        Ok(())
    }

    /// Every tensor of the model must be there, in its shape and in a type that can be read; no other tensor
    /// may be.
    fn check_names(&self) -> Result<()> {
        let dense = polygram_domain::layout::dense_parameters(&self.spec);
        let dense = dense.into_iter().map(|parameter| (parameter.name, parameter.shape));
        let tables =
            self.tables.iter().map(|t| (t.name.clone(), vec![u64::from(t.rows), u64::from(t.width)]));
        let mut known = HashSet::new();
        for (name, shape) in dense.chain(tables) {
            let located = self.located(&name)?;
            let wrong = |problem| ModelError::File { path: self.tensors.file(located).to_owned(), problem };
            if located.shape != shape {
                return Err(wrong(format!(
                    "tensor {name} has shape {:?}, but config.json asks for {shape:?}",
                    located.shape
                )));
            }
            if !matches!(located.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(wrong(format!(
                    "tensor {name} has type {:?}; only F32, BF16 and F16 can be read",
                    located.dtype
                )));
            }
            known.insert(name);
        }
        let others = self.tensors.names().filter(|name| !known.contains(*name) && !self.is_unused(name));
        let Some(name) = others.min() else { return Ok(()) };
        let path = self.tensors.get(name).map_or(&*self.path, |located| self.tensors.file(located));
        Err(ModelError::File {
            path: path.to_owned(),
            problem: format!(
                "tensor {name} is not one of the model that config.json describes; if it is not needed, remove it"
            ),
        })
    }

    /// Tensors that the model does not use: those of the multi-token-prediction block, rotary frequencies
    /// that old tools stored, and what transformers 5 writes for zero experts.
    fn is_unused(&self, name: &str) -> bool {
        let zero_expert = || {
            let (layer, rest) = name.strip_prefix("model.layers.")?.split_once(".mlp.experts.")?;
            let (expert, part) = rest.split_once('.')?;
            let is_part = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"].contains(&part);
            let (layer, expert): (u32, u32) = (layer.parse().ok()?, expert.parse().ok()?);
            let zero = self.spec.moe.experts..self.spec.routed_experts();
            Some(is_part && layer < self.spec.num_layers && zero.contains(&expert))
        };
        name.starts_with("model.mtp.")
            || name.ends_with(".rotary_emb.inv_freq")
            || zero_expert().unwrap_or(false)
    }
}

/// Little-endian values as f32; the caller has checked type and length.
fn decode(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::BF16 => {
            for (value, bytes) in values.iter_mut().zip(pairs()) {
                *value = half::bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        Dtype::F16 => {
            for (value, bytes) in values.iter_mut().zip(pairs()) {
                *value = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
    }
}
