//! A host tensor as rows of f32 that several threads read or write.

use std::marker::PhantomData;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Whether these are f32 in host memory, so that plain code works on them.
pub(crate) fn are_plain(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device() == Device::Cpu && matches!(x.f_kind(), Ok(Kind::Float)))
}

/// Rows of a tensor: all dimensions but the last, in order; rows may lie apart. Whoever writes one is the only one who
/// uses it meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    start: *mut f32,
    stride: usize,
    width: usize,
    count: usize,
    tensor: PhantomData<&'a Tensor>,
}

// SAFETY: a place in memory that is valid on every thread; what threads may do with it is asked of the callers of `row_mut`.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// # Errors
    /// Where the tensor is not f32 in host memory, or its rows are not equally spaced runs of neighbouring elements.
    pub(super) fn of(tensor: &'a Tensor) -> Result<Rows<'a>> {
        let (size, stride) = (tensor.size(), tensor.stride());
        let layout = Rows::layout(&size, &stride);
        let Some((count, stride, width)) = layout.filter(|_| are_plain(&[tensor])) else {
            let problem = format!("rows of a {:?} tensor {size:?} with strides {stride:?}", tensor.f_kind()?);
            return Err(ModelError::Torch(problem));
        };
        Ok(Rows { start: tensor.data_ptr().cast(), stride, width, count, tensor: PhantomData })
    }

    /// (number of rows, distance, width).
    fn layout(size: &[i64], stride: &[i64]) -> Option<(usize, usize, usize)> {
        let (&width, outer) = size.split_last()?;
        if width > 1 && *stride.last()? != 1 {
            return None;
        }
        let (mut count, mut distance) = (1, None);
        for (&size, &stride) in outer.iter().zip(stride).rev() {
            if size != 1 {
                match distance {
                    None => distance = Some(stride),
                    Some(distance) if stride == distance * count => {}
                    Some(_) => return None,
                }
            }
            count *= size;
        }
        let whole = |value: i64| usize::try_from(value).ok();
        Some((whole(count)?, whole(distance.unwrap_or(width))?, whole(width)?))
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Row `index`.
    ///
    /// # Panics
    /// Where there is no such row.
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.count);
        // SAFETY: the row lies within the tensor, which outlives 'a; writers keep to `row_mut`'s condition.
        unsafe { std::slice::from_raw_parts(self.start.add(index * self.stride), self.width) }
    }

    /// Row `index`, to write.
    ///
    /// # Safety
    /// No other reference to the row may be in use, on any thread; rows of the tensor must not overlap.
    ///
    /// # Panics
    /// Where there is no such row.
    #[allow(clippy::mut_from_ref)] // exclusive by the condition above
    #[inline(always)]
    pub(super) unsafe fn row_mut(&self, index: usize) -> &'a mut [f32] {
        assert!(index < self.count);
        // SAFETY: as in `row`; exclusive by the condition above.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn rows_are_found_in_views() {
        let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([2, 3, 4]);
        let rows = Rows::of(&x).unwrap();
        assert_eq!((rows.count(), rows.width()), (6, 4));
        assert_eq!(rows.row(4), [16.0, 17.0, 18.0, 19.0]);
        let part = x.narrow(-1, 1, 2);
        assert_eq!(Rows::of(&part).unwrap().row(4), [17.0, 18.0]);
        let one = x.narrow(0, 1, 1);
        assert_eq!(Rows::of(&one).unwrap().row(2), [20.0, 21.0, 22.0, 23.0]);
        // SAFETY: nothing else refers to the row.
        unsafe { rows.row_mut(5) }.fill(1.0);
        assert_eq!(rows.row(5), [1.0; 4]);
    }

    #[test]
    fn other_layouts_are_refused() {
        let x = Tensor::zeros([2, 3, 4], (Kind::Float, Device::Cpu));
        assert!(Rows::of(&x.transpose(0, 1)).is_err());
        assert!(Rows::of(&x.transpose(1, 2)).is_err());
        assert!(Rows::of(&x.to_kind(Kind::Double)).is_err());
        assert!(Rows::of(&Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))).unwrap().count() == 0);
    }
}
