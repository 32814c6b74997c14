//! Tensors of safetensors files by name, and where they lie. Files are mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use polygram_domain::ModelSpec;
use safetensors::{Dtype, SafeTensors};

use crate::error::{ModelError, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a directory's files.
#[derive(Debug)]
pub(super) struct Tensors {
    files: Vec<(PathBuf, Mmap)>,
    located: HashMap<String, Located>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Located {
    file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: Range<usize>,
}

impl Tensors {
    /// Maps the weight files of `directory`.
    pub(super) fn open(directory: &Path) -> Result<Tensors> {
        let mut tensors = Tensors { files: Vec::new(), located: HashMap::new() };
        for file in weight_files(directory)? {
            tensors.add_file(file)?;
        }
        Ok(tensors)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Located> {
        self.located.get(name)
    }

    pub(super) fn insert(&mut self, name: String, located: Located) -> Option<Located> {
        self.located.insert(name, located)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Located> {
        self.located.remove(name)
    }

    /// All names, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.located.keys().map(String::as_str)
    }

    /// The file that a tensor is in.
    pub(super) fn file(&self, located: &Located) -> &Path {
        &self.files[located.file].0
    }

    /// All bytes of the file that a tensor is in.
    pub(super) fn map(&self, located: &Located) -> &[u8] {
        &self.files[located.file].1
    }

    /// transformers 5 keeps all experts of a layer in two tensors, `gate_up_proj` `[n + z, 2·inner, D]` (zero
    /// experts have rows that nothing uses) and `down_proj` `[n, D, inner]`, and writes them so for a class
    /// that it does not know. Gives every part of them the name that it has in the published files.
    pub(super) fn name_experts(&mut self, spec: &ModelSpec) -> Result<()> {
        let (d, inner) = (u64::from(spec.hidden_size), u64::from(spec.moe.expert_hidden_size));
        let n = u64::from(spec.moe.experts);
        for layer in 0..spec.num_layers {
            let prefix = format!("model.layers.{layer}.mlp.experts");
            for (fused, rows, width) in [("gate_up_proj", 2 * inner, d), ("down_proj", d, inner)] {
                let name = format!("{prefix}.{fused}");
                let Some(whole) = self.remove(&name) else { continue };
                let count = whole.shape.first().copied().unwrap_or(0);
                let counts = [n, u64::from(spec.routed_experts())];
                if whole.shape != [count, rows, width] || !counts.contains(&count) {
                    return Err(ModelError::File {
                        path: self.file(&whole).to_owned(),
                        problem: format!(
                            "tensor {name} has shape {:?}, but config.json asks for [{n}, {rows}, {width}]",
                            whole.shape
                        ),
                    });
                }
                let bytes = whole.bytes.len() / count as usize;
                for expert in 0..n {
                    let start = whole.bytes.start + expert as usize * bytes;
                    let middle = start + bytes / 2;
                    let parts = match fused {
                        "gate_up_proj" => {
                            vec![
                                ("gate_proj", inner, start..middle),
                                ("up_proj", inner, middle..start + bytes),
                            ]
                        }
                        _ => vec![("down_proj", d, start..start + bytes)],
                    };
                    for (part, rows, bytes) in parts {
                        let name = format!("{prefix}.{expert}.{part}.weight");
                        let located = Located { shape: vec![rows, width], bytes, ..whole.clone() };
                        self.insert_new(name, located)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn insert_new(&mut self, name: String, located: Located) -> Result<()> {
        if let Some(other) = self.get(&name) {
            return Err(ModelError::File {
                path: self.file(&located).to_owned(),
                problem: format!("tensor {name} is also in {}", self.file(other).display()),
            });
        }
        self.insert(name, located);
        Ok(())
    }

    /// Maps one file and adds its tensors.
    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let io = |source| ModelError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process; as with every mapped model file, nobody
        // may shorten the file while it is open.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let parsed = SafeTensors::deserialize(&map).map_err(|error| ModelError::File {
            path: path.clone(),
            problem: format!("not a whole safetensors file: {error}"),
        })?;
        let base = map.as_ptr() as usize;
        let located: Vec<(String, Located)> = parsed
            .iter()
            .map(|(name, view)| {
                let start = view.data().as_ptr() as usize - base;
                let located = Located {
                    file: self.files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().iter().map(|&size| size as u64).collect(),
                    bytes: start..start + view.data().len(),
                };
                (name.to_owned(), located)
            })
            .collect();
        self.files.push((path, map));
        located.into_iter().try_for_each(|(name, located)| self.insert_new(name, located))
    }
}

/// The weight files of a directory, in order of name.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (single, index) = (directory.join(SINGLE), directory.join(INDEX));
    let folder = |problem: String| Err(ModelError::File { path: directory.to_owned(), problem });
    match (single.exists(), index.exists()) {
        (true, true) => {
            return folder(format!("has both {SINGLE} and {INDEX}; remove the one that is stale"));
        }
        (false, false) => return folder(format!("has neither {SINGLE} nor {INDEX}")),
        (true, false) => return Ok(vec![single]),
        (false, true) => {}
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

/// The text of a file, which must be UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| match source.kind() {
        ErrorKind::InvalidData => {
            ModelError::File { path: path.to_owned(), problem: "is not UTF-8 text".into() }
        }
        _ => ModelError::Io { path: path.to_owned(), source },
    })
}
