//! Tensors to and from the store.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::stream::{BoxStream, FuturesOrdered};
use futures::{StreamExt, TryStreamExt};
use polygram_domain::Step;

use crate::cover::check_entry;
use crate::data_io::DataName;
use crate::error::CheckpointError;
use crate::manifest::Manifest;
use crate::object::{Content, ObjectEntry, TensorEntry, element_count};
use crate::store::RunStore;
use crate::tensors::{
    NamedTensor, TensorEncoder, TensorObject, TensorSlice, WantedPart, decode_part, wanted_parts,
};
use crate::threads::off_thread;
use crate::word::check_word;

/// Files of one call that are hashed or on their way at a time.
const FILES_AT_ONCE: usize = 4;

/// A whole tensor as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Shape.
    pub shape: Vec<u64>,
    /// Values in row-major order.
    pub data: Vec<f32>,
}

impl RunStore {
    /// Writes `tensors` as safetensors files of at most about 128 MiB; larger tensors are cut into slices. The
    /// iterator is drawn as files fill, so that memory holds the files under way, four at most, and one tensor; values
    /// are not copied. One file is hashed while others are written.
    ///
    /// Errors: a tensor whose values do not fit its shape and elements; a name given twice for the same elements
    /// within one file; a failing store.
    pub async fn write_tensors<I>(
        &self,
        step: Step,
        member: &str,
        tensors: I,
    ) -> Result<Vec<ObjectEntry>, CheckpointError>
    where
        I: IntoIterator<Item = NamedTensor>,
        I::IntoIter: Send,
    {
        check_word("member", member)?;
        let put = |number: usize, file: TensorEncoder| {
            let (chunks, content) = file.finish();
            let name = DataName { step, member, number: format!("t{number:04}"), kind: "safetensors" };
            self.put_data(name, chunks, content)
        };
        let (mut writing, mut begun) = (FuturesOrdered::new(), 0..);
        let mut written = Vec::new();
        let mut file = TensorEncoder::default();
        for tensor in tensors {
            tensor.check()?;
            let NamedTensor { name, shape, elements, data } = tensor;
            let (mut start, values) = (0, data.into_little_endian());
            while start < values.len() {
                let room = self.object_bytes().saturating_sub(file.bytes()) / 4 * 4;
                let rest = values.len() - start;
                // A tensor that fits into a file of its own is not cut.
                if room < rest && !file.is_empty() {
                    while writing.len() >= FILES_AT_ONCE {
                        written.extend(writing.try_next().await?);
                    }
                    writing.extend(begun.next().map(|number| put(number, std::mem::take(&mut file))));
                    continue;
                }
                let count = rest.min(room.max(4));
                let first = elements.start + start as u64 / 4;
                let elements = first..first + count as u64 / 4;
                file.push(&name, &shape, elements, values.slice(start..start + count))?;
                start += count;
            }
        }
        if !file.is_empty() {
            writing.extend(begun.next().map(|number| put(number, file)));
        }
        while let Some(entry) = writing.try_next().await? {
            written.push(entry);
        }
        Ok(written)
    }

    /// Reads and verifies one tensor object.
    pub async fn read_tensor_object(&self, entry: &ObjectEntry) -> Result<TensorObject, CheckpointError> {
        let bytes = self.read_object(entry).await?;
        let entry = entry.clone();
        off_thread(move || TensorObject::decode(&entry, bytes)).await?
    }

    /// The elements of one object's tensors that are `wanted`; see [`RunStore::tensors`].
    pub fn tensor_parts<'a, F, W>(
        &'a self,
        entry: &'a ObjectEntry,
        wanted: F,
    ) -> BoxStream<'a, Result<NamedTensor, CheckpointError>>
    where
        F: FnMut(&TensorEntry) -> W,
        W: IntoIterator<Item = Range<u64>>,
    {
        self.tensors([entry], wanted)
    }

    /// The elements of some objects' tensors that are `wanted` (elements of the whole tensor, ascending), object by object,
    /// in file order and in pieces of a read each. Only the MiB that hold them are read, and each is verified; reads of
    /// one object do not wait for those of the one before. Objects that hold no tensors are passed over.
    ///
    /// Errors: damage, also of an entry itself.
    pub fn tensors<'a, F, W>(
        &'a self,
        entries: impl IntoIterator<Item = &'a ObjectEntry>,
        mut wanted: F,
    ) -> BoxStream<'a, Result<NamedTensor, CheckpointError>>
    where
        F: FnMut(&TensorEntry) -> W,
        W: IntoIterator<Item = Range<u64>>,
    {
        let mut objects = Vec::new();
        for entry in entries {
            let Content::Tensors { tensors } = &entry.content else { continue };
            if let Err(reason) = check_entry(entry) {
                let damaged = CheckpointError::damaged(&entry.key, reason);
                return futures::stream::iter([Err(damaged)]).boxed();
            }
            let parts = wanted_parts(tensors, &mut wanted);
            objects.push((entry, tensors.as_slice(), parts));
        }
        let ranges = |parts: &[WantedPart]| parts.iter().map(|part| part.bytes.clone()).collect::<Vec<_>>();
        let spans = self.spans_of(objects.iter().map(|(entry, _, parts)| (*entry, ranges(parts))).collect());
        let decoded = spans.map_ok(move |(object, span)| {
            let (_, tensors, parts) = &objects[object];
            let first = parts.partition_point(|part| part.bytes.end <= span.offset);
            let end = span.offset + span.bytes.len() as u64;
            let here = parts[first..].iter().take_while(|part| part.bytes.start < end);
            let pieces: Vec<_> =
                here.filter_map(|part| decode_part(&tensors[part.entry], part, &span)).map(Ok).collect();
            futures::stream::iter(pieces)
        });
        decoded.try_flatten().boxed()
    }

    /// Hands the elements that are `wanted` of every tensor to `each`, in pieces, object by object; what is not near
    /// them is not read. The caller knows from the cover check that every element comes exactly once.
    pub async fn read_tensor_slices(
        &self,
        manifest: &Manifest,
        mut wanted: impl FnMut(&TensorEntry) -> Option<Range<u64>> + Send,
        mut each: impl FnMut(TensorSlice<'_>) + Send,
    ) -> Result<(), CheckpointError> {
        let mut parts = std::pin::pin!(self.tensors(&manifest.objects, &mut wanted));
        while let Some(NamedTensor { name, shape, elements, data }) = parts.try_next().await? {
            each(TensorSlice { name: &name, shape: &shape, elements, data: &data });
        }
        Ok(())
    }

    /// Reads whole tensors by name.
    ///
    /// Errors: [`CheckpointError::NoTensor`] for a name that the checkpoint does not hold completely.
    pub async fn read_tensors<N: AsRef<str>>(
        &self,
        manifest: &Manifest,
        names: &[N],
    ) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        let absent = |name: &str| CheckpointError::NoTensor { step: manifest.step, name: name.to_owned() };
        let mut held: BTreeMap<&str, (&[u64], u64)> = BTreeMap::new();
        for entry in manifest.tensors() {
            let (_, count) = held.entry(&entry.name).or_insert((&entry.shape, 0));
            *count = count.saturating_add(entry.elements.end.saturating_sub(entry.elements.start));
        }
        let mut tensors: BTreeMap<String, (Tensor, u64)> = BTreeMap::new();
        for name in names.iter().map(AsRef::as_ref) {
            let (shape, count) = *held.get(name).ok_or_else(|| absent(name))?;
            let length = usize::try_from(count).map_err(|_| absent(name))?;
            let mut data = Vec::new();
            if element_count(shape) != Some(count) || data.try_reserve_exact(length).is_err() {
                return Err(absent(name));
            }
            data.resize(length, 0.0);
            tensors.insert(name.to_owned(), (Tensor { shape: shape.to_vec(), data }, 0));
        }
        let wanted: Vec<String> = tensors.keys().cloned().collect();
        self.read_tensor_slices(
            manifest,
            |entry| wanted.binary_search(&entry.name).ok().map(|_| entry.elements.clone()),
            |slice| {
                if let Some((tensor, read)) = tensors.get_mut(slice.name) {
                    let range = slice.elements.start as usize..slice.elements.end as usize;
                    if let Some(target) = tensor.data.get_mut(range) {
                        target.copy_from_slice(slice.data);
                        *read += slice.data.len() as u64;
                    }
                }
            },
        )
        .await?;
        tensors
            .into_iter()
            .map(
                |(name, (tensor, read))| {
                    if read == tensor.data.len() as u64 { Ok((name, tensor)) } else { Err(absent(&name)) }
                },
            )
            .collect()
    }
}
