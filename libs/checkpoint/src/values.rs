//! Values of tensors as they travel between memory and store: shared, never changed, not copied.

use std::fmt;
use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::object::{decode_f32, extend_f32};

/// A run of f32 values. Cheap to clone and to cut.
#[derive(Clone, Default)]
pub struct Values(
    /// In the machine's own order, aligned, a whole number of values.
    Bytes,
);

struct Owner<T>(T);

impl<T: AsRef<[f32]>> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_ref())
    }
}

impl Values {
    /// The values of whatever holds them; it is dropped with the last of its shares.
    pub fn of_owner(owner: impl AsRef<[f32]> + Send + 'static) -> Values {
        Values(Bytes::from_owner(Owner(owner)))
    }

    /// Values that lie in `bytes`, little-endian; copied only where they do not lie as a processor wants them. A remainder
    /// below four bytes is ignored: lengths are checked before.
    pub(crate) fn of_little_endian(mut bytes: Bytes) -> Values {
        bytes.truncate(bytes.len() / 4 * 4);
        if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, f32>(&bytes).is_ok() {
            return Values(bytes);
        }
        let mut values = Vec::new();
        decode_f32(&bytes, &mut values);
        values.into()
    }

    /// The same as little-endian bytes.
    pub(crate) fn into_little_endian(self) -> Bytes {
        if cfg!(target_endian = "little") {
            return self.0;
        }
        let mut bytes = Vec::with_capacity(self.0.len());
        extend_f32(&mut bytes, &self);
        bytes.into()
    }

    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Values {
        Values(self.0.slice(4 * range.start..4 * range.end))
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Values {
        Values::of_owner(values)
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // Only no bytes at all may lie anywhere.
        bytemuck::try_cast_slice(&self.0).unwrap_or_default()
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Values) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_and_not_copied() {
        let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let place = values.as_ptr();
        let values = Values::from(values);
        assert_eq!(values.as_ptr(), place);
        let part = values.slice(3..7);
        drop(values);
        assert_eq!((&part[..], part.as_ptr()), (&[3.0, 4.0, 5.0, 6.0][..], place.wrapping_add(3)));
        assert!(part.slice(2..2).is_empty() && Values::default().is_empty());
    }

    #[test]
    fn bytes_at_odd_places_are_copied() {
        let mut bytes = Vec::new();
        extend_f32(&mut bytes, &[1.5, -2.0, 3.25]);
        let aligned = Values::of_little_endian(bytes.clone().into());
        bytes.insert(0, 9);
        let odd = Values::of_little_endian(Bytes::from(bytes).slice(1..));
        assert_eq!((&aligned[..], &odd[..]), (&[1.5, -2.0, 3.25][..], &[1.5, -2.0, 3.25][..]));
        assert_eq!(Values::of_little_endian(aligned.into_little_endian().slice(..7)).len(), 1);
    }
}
