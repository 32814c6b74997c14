//! Reading safetensors files and comparing numbers.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors};

/// A safetensors file in memory.
pub struct TensorFile {
    bytes: Vec<u8>,
    name: String,
}

impl TensorFile {
    /// Reads `path`.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(TensorFile { bytes, name: path.display().to_string() })
    }

    /// Shape and little-endian bytes of tensor `name`, which must be of type `dtype`.
    fn raw(&self, name: &str, dtype: Dtype) -> Result<(Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.bytes).with_context(|| self.name.clone())?;
        let tensor = file.tensor(name).with_context(|| format!("{} has no {name}", self.name))?;
        ensure!(tensor.dtype() == dtype, "{} holds {name} as {:?}, not {dtype:?}", self.name, tensor.dtype());
        Ok((tensor.shape().to_vec(), tensor.data().to_vec()))
    }

    /// Tensor `name` of f32 values, with its shape.
    pub fn f32s(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.raw(name, Dtype::F32)?;
        Ok((shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }

    /// Tensor `name` of i64 values, with its shape.
    pub fn i64s(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let (shape, bytes) = self.raw(name, Dtype::I64)?;
        let value = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Ok((shape, bytes.chunks_exact(8).map(value).collect()))
    }
}

/// The largest absolute difference; an error where lengths differ or a value is not a number.
pub fn largest_difference(left: &[f32], right: &[f32]) -> Result<f32> {
    ensure!(left.len() == right.len(), "{} values against {}", left.len(), right.len());
    let mut largest = 0f32;
    for (index, (l, r)) in left.iter().zip(right).enumerate() {
        let difference = (l - r).abs();
        ensure!(!difference.is_nan(), "value {index}: {l} against {r}");
        largest = largest.max(difference);
    }
    Ok(largest)
}
