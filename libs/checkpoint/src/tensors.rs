//! Tensor objects: safetensors files of f32 tensors or of slices of them, encoded and decoded without I/O.
//!
//! A whole tensor stands in the file under its own name and shape; a slice of consecutive elements stands as a vector
//! named `name[start..end]`. Weights go under their own names, AdamW's moments of a trained parameter under
//! `optimizer.exp_avg.<name>` and `optimizer.exp_avg_sq.<name>`.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::blocks::Span;
use crate::error::CheckpointError;
use crate::object::{Content, DType, ObjectEntry, TensorEntry, decode_f32, element_count};
use crate::values::Values;

/// Values are decoded and handed over in runs of at most so many (1 MiB): they stay in the cache.
const SLICE_ELEMENTS: usize = 1 << 18;

/// A tensor, or a run of its elements, to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Global name.
    pub name: String,
    /// Shape of the whole tensor.
    pub shape: Vec<u64>,
    /// Which elements `data` holds, in row-major order.
    pub elements: Range<u64>,
    /// Their values.
    pub data: Values,
}

impl NamedTensor {
    /// A whole tensor.
    pub fn whole(name: impl Into<String>, shape: &[u64], data: impl Into<Values>) -> NamedTensor {
        let data = data.into();
        NamedTensor { name: name.into(), shape: shape.to_vec(), elements: 0..data.len() as u64, data }
    }

    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        let NamedTensor { name, shape, elements, data } = self;
        let refuse = |reason: String| Err(CheckpointError::input(format!("tensor {name:?}"), reason));
        let Some(total) = element_count(shape) else {
            return refuse(format!("shape {shape:?} has more than 2^64 elements"));
        };
        if elements.is_empty() || elements.end > total {
            return refuse(format!("elements {elements:?} are not a part of the {total} of shape {shape:?}"));
        }
        if elements.end - elements.start != data.len() as u64 {
            return refuse(format!("{} values for elements {elements:?}", data.len()));
        }
        Ok(())
    }
}

/// Collects tensors into one file.
#[derive(Debug, Default)]
pub(crate) struct TensorEncoder {
    names: BTreeSet<String>,
    entries: Vec<TensorEntry>,
    data: Vec<Bytes>,
    data_bytes: usize,
}

impl TensorEncoder {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of values so far.
    pub(crate) fn bytes(&self) -> usize {
        self.data_bytes
    }

    /// Adds the elements `elements` of a tensor; `values` are theirs, little-endian. The same elements twice are refused.
    pub(crate) fn push(
        &mut self,
        name: &str,
        shape: &[u64],
        elements: Range<u64>,
        values: Bytes,
    ) -> Result<(), CheckpointError> {
        let entry = TensorEntry {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            elements,
            offset: self.data_bytes as u64,
        };
        if !self.names.insert(entry.name_in_file()) {
            return Err(CheckpointError::input(format!("tensor {name:?}"), "given twice"));
        }
        self.entries.push(entry);
        self.data_bytes += values.len();
        self.data.push(values);
        Ok(())
    }

    /// The file, as header and values, and what it holds.
    pub(crate) fn finish(self) -> (Vec<Bytes>, Content) {
        let TensorEncoder { mut entries, data, .. } = self;
        let mut header = Map::new();
        for entry in &entries {
            let whole = entry.name_in_file() == entry.name;
            let count = entry.elements.end - entry.elements.start;
            let shape = if whole { entry.shape.clone() } else { vec![count] };
            let offsets = [entry.offset, entry.offset + 4 * count];
            header.insert(
                entry.name_in_file(),
                json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}),
            );
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        while !text.len().is_multiple_of(8) {
            text.push(b' ');
        }
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.extend(text);
        for entry in &mut entries {
            entry.offset += head.len() as u64;
        }
        let chunks = [Bytes::from(head)].into_iter().chain(data).collect();
        (chunks, Content::Tensors { tensors: entries })
    }
}

/// A run of consecutive elements of one tensor, as read.
#[derive(Debug)]
pub struct TensorSlice<'a> {
    /// Global name.
    pub name: &'a str,
    /// Shape of the whole tensor.
    pub shape: &'a [u64],
    /// Which elements, in row-major order.
    pub elements: Range<u64>,
    /// Their values.
    pub data: &'a [f32],
}

/// A verified tensor object.
#[derive(Clone, Debug)]
pub struct TensorObject {
    key: String,
    tensors: Vec<TensorEntry>,
    bytes: Bytes,
}

impl TensorObject {
    /// Reads `bytes` as the file that `entry` describes. Header and entry must agree on every tensor.
    pub fn decode(entry: &ObjectEntry, bytes: Bytes) -> Result<TensorObject, CheckpointError> {
        let damaged = |reason: String| CheckpointError::damaged(&entry.key, reason);
        let Content::Tensors { tensors } = &entry.content else {
            return Err(damaged("its entry does not speak of tensors".into()));
        };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(format!("safetensors: {e}")))?;
        if file.len() != tensors.len() {
            return Err(damaged(format!(
                "{} tensors in the file, {} in its entry",
                file.len(),
                tensors.len()
            )));
        }
        for tensor in tensors {
            let name = tensor.name_in_file();
            let view = file.tensor(&name).map_err(|e| damaged(format!("tensor {name:?}: {e}")))?;
            let count = tensor.elements.end.checked_sub(tensor.elements.start);
            let bytes = count.and_then(|count| count.checked_mul(4));
            let inside = element_count(&tensor.shape).is_some_and(|total| tensor.elements.end <= total);
            if view.dtype() != Dtype::F32 || Some(view.data().len() as u64) != bytes || !inside {
                return Err(damaged(format!(
                    "tensor {name:?} is {:?} of {} bytes in the file, elements {:?} of {:?} in its entry",
                    view.dtype(),
                    view.data().len(),
                    tensor.elements,
                    tensor.shape
                )));
            }
        }
        Ok(TensorObject { key: entry.key.clone(), tensors: tensors.clone(), bytes })
    }

    /// Hands the elements of every tensor that is wanted to `each`, in file order, in runs of at most 2^18.
    pub fn slices(
        &self,
        mut wanted: impl FnMut(&TensorEntry) -> bool,
        mut each: impl FnMut(TensorSlice<'_>),
    ) -> Result<(), CheckpointError> {
        let damaged = |e: safetensors::SafeTensorError| CheckpointError::damaged(&self.key, e.to_string());
        let file = SafeTensors::deserialize(&self.bytes).map_err(damaged)?;
        let mut values = Vec::new();
        for tensor in self.tensors.iter().filter(|t| wanted(t)) {
            let view = file.tensor(&tensor.name_in_file()).map_err(damaged)?;
            let mut start = tensor.elements.start;
            for bytes in view.data().chunks(4 * SLICE_ELEMENTS) {
                decode_f32(bytes, &mut values);
                let end = start + values.len() as u64;
                let (name, shape) = (tensor.name.as_str(), tensor.shape.as_slice());
                each(TensorSlice { name, shape, elements: start..end, data: &values });
                start = end;
            }
        }
        Ok(())
    }
}

/// What is wanted of one tensor entry of an object, and where it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedPart {
    /// The entry's place among the object's.
    pub(crate) entry: usize,
    /// Elements, of the whole tensor's.
    pub(crate) elements: Range<u64>,
    /// Their bytes in the object.
    pub(crate) bytes: Range<u64>,
}

/// The parts of an object's tensors that are `wanted` (elements of the whole tensor, ascending), in file order.
/// `entry` was checked.
pub(crate) fn wanted_parts<W: IntoIterator<Item = Range<u64>>>(
    tensors: &[TensorEntry],
    mut wanted: impl FnMut(&TensorEntry) -> W,
) -> Vec<WantedPart> {
    let mut parts = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        for range in wanted(tensor) {
            let (start, end) = (range.start.max(tensor.elements.start), range.end.min(tensor.elements.end));
            if start < end {
                let at = |element: u64| tensor.offset + 4 * (element - tensor.elements.start);
                parts.push(WantedPart { entry: index, elements: start..end, bytes: at(start)..at(end) });
            }
        }
    }
    parts.sort_by_key(|part| part.bytes.start);
    parts
}

/// The values that `span` has of `part`, as a tensor of their own; `None` if it has none.
pub(crate) fn decode_part(tensor: &TensorEntry, part: &WantedPart, span: &Span) -> Option<NamedTensor> {
    let piece = span.part_of(&part.bytes)?;
    let first = part.elements.start + (piece.offset - part.bytes.start) / 4;
    let data = Values::of_little_endian(piece.bytes);
    let elements = first..first + data.len() as u64;
    Some(NamedTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), elements, data })
}
