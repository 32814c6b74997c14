//! A Hugging Face directory: `config.json` beside `model.safetensors`, or `model.safetensors.index.json` and its shards.
//!
//! Files are mapped, not read: table rows are picked from the map one by one, so that tables larger than memory can be
//! used. Values may be f32, bf16 or f16 and come out as f32.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use polygram_domain::hf_config::HfConfig;
use polygram_domain::{ModelSpec, TableSet};
use safetensors::{Dtype, SafeTensors};

use crate::decoder::Model;
use crate::error::{ModelError, Result};
use crate::options::Options;

/// An opened and checked directory.
#[derive(Debug)]
pub struct HfDirectory {
    path: PathBuf,
    spec: ModelSpec,
    tables: TableSet,
    files: Vec<(PathBuf, Mmap)>,
    tensors: HashMap<String, Located>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Located {
    file: usize,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Range<usize>,
}

impl HfDirectory {
    /// Opens `path` and checks everything at once: the configuration, every file's header and length, and that every
    /// tensor of the model is there in its shape. Tensors that the model does not have are ignored.
    pub fn open(path: &Path) -> Result<HfDirectory> {
        let config = path.join("config.json");
        let spec = HfConfig::parse(&read_text(&config)?)
            .and_then(|config| config.to_model())
            .map_err(|problem| ModelError::File { path: config, problem })?;
        let mut directory = HfDirectory {
            path: path.to_owned(),
            tables: TableSet::of(&spec),
            spec,
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for file in weight_files(path)? {
            directory.add_file(file)?;
        }
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

    /// The rows of a cell from the mapped tables: `rows` are each table's unique row ids, one table after another,
    /// `offsets` (C + 1 numbers) where each begins. Gives `[U, w]`, row-major.
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
                let start = located.bytes.start + row as usize * row_bytes;
                let filled = values.len();
                values.resize(filled + width, 0.0);
                let bytes = &self.files[located.file].1[start..start + row_bytes];
                decode(located.dtype, bytes, &mut values[filled..]);
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
        decode(located.dtype, &self.files[located.file].1[located.bytes.clone()], values);
        Ok(())
    }

    /// Maps one file and adds its tensors.
    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let io = |source| ModelError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process; as with every mapped model file, nobody may shorten
        // the file while it is open.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let corrupt = |problem: String| ModelError::File { path: path.clone(), problem };
        let index = self.files.len();
        let parsed = SafeTensors::deserialize(&map)
            .map_err(|error| corrupt(format!("not a whole safetensors file: {error}")))?;
        let base = map.as_ptr() as usize;
        for (name, view) in parsed.iter() {
            let start = view.data().as_ptr() as usize - base;
            let located = Located {
                file: index,
                dtype: view.dtype(),
                shape: view.shape().iter().map(|&size| size as u64).collect(),
                bytes: start..start + view.data().len(),
            };
            if let Some(other) = self.tensors.insert(name.to_owned(), located) {
                let (first, _) = &self.files[other.file];
                return Err(corrupt(format!("tensor {name} is also in {}", first.display())));
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Every tensor of the model must be there, in its shape and in a type that can be read.
    fn check_names(&self) -> Result<()> {
        let dense = polygram_domain::layout::dense_parameters(&self.spec);
        let dense = dense.into_iter().map(|parameter| (parameter.name, parameter.shape));
        let tables =
            self.tables.iter().map(|t| (t.name.clone(), vec![u64::from(t.rows), u64::from(t.width)]));
        for (name, shape) in dense.chain(tables) {
            let located = self.located(&name)?;
            let wrong = |problem| ModelError::File { path: self.files[located.file].0.clone(), problem };
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
        }
        Ok(())
    }
}

/// The weight files of a directory, in order of name.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let index = directory.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![directory.join("model.safetensors")]);
    }
    let wrong = |problem: String| ModelError::File { path: index.clone(), problem };
    let parsed: serde_json::Value =
        serde_json::from_str(&read_text(&index)?).map_err(|error| wrong(error.to_string()))?;
    let map = parsed
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| wrong("has no object \"weight_map\"".into()))?;
    let mut names = Vec::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let name = name.ok_or_else(|| {
            wrong(format!("weight_map names {file} for {tensor}; it must be a file of the same directory"))
        })?;
        names.push(directory.join(name));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })
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
