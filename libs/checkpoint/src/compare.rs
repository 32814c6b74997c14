//! How far apart two checkpoints are where their digests differ.
//!
//! Tensors are read in runs of elements and tables in runs of buckets, of both checkpoints side by side, so that memory
//! holds a piece of each at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use polygram_domain::TableIndex;
use polygram_domain::tables::BUCKETS;

use crate::digest::{Difference, Place};
use crate::distance::{Distance, RowDistance};
use crate::error::CheckpointError;
use crate::manifest::Manifest;
use crate::object::ObjectEntry;
use crate::rows::RowRecord;
use crate::store::RunStore;

/// Elements of a tensor that are compared at a time: 32 MiB of each checkpoint.
const ELEMENTS: u64 = 1 << 23;

/// A checkpoint and the store that holds it.
pub type Stored<'a> = (&'a RunStore, &'a Manifest);

/// Sums of a [`Distance`] that is not complete.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    max_abs: f64,
    difference: f64,
    first: f64,
}

impl Sums {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        for (a, b) in a.iter().zip(b) {
            // Equal infinities and NaNs are equal.
            let is_equal = a.to_bits() == b.to_bits();
            let (a, b) = (f64::from(*a), f64::from(*b));
            let difference = if is_equal { 0.0 } else { b - a };
            // f64::max would hide a NaN.
            if difference.is_nan() || difference.abs() > self.max_abs {
                self.max_abs = difference.abs();
            }
            self.difference += difference * difference;
            self.first += a * a;
        }
    }

    fn distance(self) -> Distance {
        let Sums { max_abs, difference, first } = self;
        let relative_l2 = if difference == 0.0 { 0.0 } else { (difference / first).sqrt() };
        // A NaN that a larger number followed.
        let max_abs = if difference.is_nan() { f64::NAN } else { max_abs };
        Distance { max_abs, relative_l2 }
    }
}

/// Measures the distance of every tensor and table of `differences` that both checkpoints have in one shape.
///
/// Errors: damage; a store that fails.
pub async fn measure(
    first: Stored<'_>,
    second: Stored<'_>,
    differences: &mut [Difference],
) -> Result<(), CheckpointError> {
    for difference in differences {
        match difference.place {
            Place::Nowhere => {}
            Place::Tensor { elements } => {
                let mut sums = Sums::default();
                for range in runs(elements) {
                    let a = elements_of(first, &difference.name, &range).await?;
                    sums.add(&a, &elements_of(second, &difference.name, &range).await?);
                }
                difference.distance = Some(sums.distance());
            }
            Place::Table { table, width } => {
                let (weights, rows) = table_distance(first, second, table, width).await?;
                (difference.distance, difference.rows) = (Some(weights), Some(rows));
            }
        }
    }
    Ok(())
}

/// `0..elements` in pieces.
fn runs(elements: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (0..elements).step_by(ELEMENTS as usize);
    starts.map(move |start| start..elements.min(start.saturating_add(ELEMENTS)))
}

/// Some elements of a tensor.
async fn elements_of(
    (store, manifest): Stored<'_>,
    name: &str,
    range: &Range<u64>,
) -> Result<Vec<f32>, CheckpointError> {
    let mut values = vec![0.0; (range.end - range.start) as usize];
    let mut count = 0;
    let wanted = |elements: &Range<u64>| {
        let start = elements.start.max(range.start);
        Some(start..elements.end.min(range.end).max(start)).filter(|wanted| !wanted.is_empty())
    };
    store
        .read_tensor_slices(
            manifest,
            |entry| wanted(&entry.elements).filter(|_| entry.name == name),
            |slice| {
                let at = (slice.elements.start - range.start) as usize;
                if let Some(target) = values.get_mut(at..at + slice.data.len()) {
                    target.copy_from_slice(slice.data);
                    count += slice.data.len();
                }
            },
        )
        .await?;
    if count != values.len() {
        return Err(CheckpointError::NoTensor { step: manifest.step, name: name.to_owned() });
    }
    Ok(values)
}

async fn table_distance(
    first: Stored<'_>,
    second: Stored<'_>,
    table: TableIndex,
    width: usize,
) -> Result<(Distance, RowDistance), CheckpointError> {
    let (mut weights, mut optimizer) = (Sums::default(), Sums::default());
    let (mut rows, mut only_first, mut only_second) = (0, 0, 0);
    for buckets in pieces(first.1, table) {
        let mut held: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        let keep = |record: RowRecord<'_>| {
            held.insert(record.row.0, record.values.to_vec());
            Ok(())
        };
        first.0.read_rows::<CheckpointError>(first.1, table, buckets.clone(), keep).await?;
        let compare = |record: RowRecord<'_>| {
            match held.remove(&record.row.0) {
                Some(values) => {
                    let (a, a_state) = values.split_at(width.min(values.len()));
                    let (b, b_state) = record.values.split_at(width.min(record.values.len()));
                    weights.add(a, b);
                    optimizer.add(a_state, b_state);
                    rows += 1;
                }
                None => only_second += 1,
            }
            Ok(())
        };
        second.0.read_rows::<CheckpointError>(second.1, table, buckets, compare).await?;
        only_first += held.len() as u64;
    }
    let rows = RowDistance { rows, only_first, only_second, optimizer: optimizer.distance() };
    Ok((weights.distance(), rows))
}

/// All buckets, cut where the objects that hold them end.
fn pieces(manifest: &Manifest, table: TableIndex) -> Vec<Range<u32>> {
    let objects = manifest.row_objects(table).into_iter();
    let mut ends: Vec<u32> = objects.map(|(range, _): (_, &ObjectEntry)| range.end).collect();
    ends.push(BUCKETS);
    ends.sort_unstable();
    ends.dedup();
    let mut start = 0;
    let piece = |end: u32| std::mem::replace(&mut start, end)..end;
    ends.into_iter().filter(|end| (1..=BUCKETS).contains(end)).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(a: &[f32], b: &[f32]) -> Distance {
        let mut sums = Sums::default();
        sums.add(a, b);
        sums.distance()
    }

    #[test]
    fn distances_by_hand() {
        assert_eq!(distance(&[3.0, 4.0], &[3.0, 4.5]), Distance { max_abs: 0.5, relative_l2: 0.1 });
        assert_eq!(distance(&[0.0, -0.0], &[-0.0, 0.0]), Distance { max_abs: 0.0, relative_l2: 0.0 });
        assert_eq!(distance(&[0.0], &[-2.0]), Distance { max_abs: 2.0, relative_l2: f64::INFINITY });
        assert_eq!(distance(&[], &[]), Distance { max_abs: 0.0, relative_l2: 0.0 });
        let hidden = distance(&[1.0, 1.0], &[f32::NAN, 9.0]);
        assert!(hidden.max_abs.is_nan() && hidden.relative_l2.is_nan(), "{hidden:?}");
        let both = distance(&[f32::INFINITY, 1.0], &[f32::INFINITY, 3.0]);
        assert_eq!(both, Distance { max_abs: 2.0, relative_l2: 0.0 }, "equal infinities lie nowhere apart");
        assert_eq!(distance(&[1.0], &[f32::NEG_INFINITY]).max_abs, f64::INFINITY);
        assert!(runs(2 * ELEMENTS + 5).eq([
            0..ELEMENTS,
            ELEMENTS..2 * ELEMENTS,
            2 * ELEMENTS..2 * ELEMENTS + 5
        ]));
        assert_eq!(runs(0).count(), 0);
    }
}
