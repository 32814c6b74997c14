//! The flat f32 buffer of a rank's dense parameters and the views into it.
//!
//! The order is that of [`RankLayout`]; master weights live in host memory. Matrix products read either the
//! masters themselves (f32 on the CPU), or a copy of them on the device or in bf16, made anew after each change.

use std::ops::Range;

use polygram_domain::RankLayout;
use polygram_domain::rank_layout::Entry;
use tch::{Device, Kind, Tensor, no_grad};

use crate::error::{ModelError, Result};
use crate::kernels::{Products, round_into};

/// A contiguous f32 tensor in host memory that plain code may read and write.
#[derive(Debug)]
pub(crate) struct FlatBuffer {
    tensor: Tensor,
    len: usize,
}

impl FlatBuffer {
    pub(crate) fn zeros(len: usize) -> Result<FlatBuffer> {
        let tensor = Tensor::f_zeros([len as i64], (Kind::Float, Device::Cpu))?;
        Ok(FlatBuffer { tensor, len })
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: the tensor is contiguous f32 in host memory, of `len` elements, and owned by self, so the storage
        // lives as long as the slice; libtorch writes to it only through `&mut self` of the owner.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<f32>(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; `&mut self` excludes other slices, and no libtorch operation runs on this thread
        // while the slice lives, the only thread that touches the tensor.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<f32>(), self.len) }
    }
}

/// Which copy of a weight a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32: norms, routers, embeddings.
    Single,
    /// The type of matrix products.
    Compute,
}

/// The masters and the copies that products read.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) layout: RankLayout,
    pub(crate) master: FlatBuffer,
    /// On the device; the master's own storage on the CPU.
    single: Tensor,
    /// Operands of products, where those are rounded to bf16.
    half: Option<Tensor>,
    products: Products,
}

impl Weights {
    pub(crate) fn new(layout: RankLayout, products: Products, device: Device) -> Result<Weights> {
        let len = layout.len() as i64;
        let master = FlatBuffer::zeros(layout.len())?;
        let single = match device {
            Device::Cpu => master.tensor.shallow_clone(),
            _ => Tensor::f_zeros([len], (Kind::Float, device))?,
        };
        let half = match products {
            Products::F32 => None,
            _ => Some(Tensor::f_zeros([len], (products.kind(), device))?),
        };
        Ok(Weights { layout, master, single, half, products })
    }

    /// The tensor called `name`.
    pub(crate) fn entry(&self, name: &str) -> Result<&Entry> {
        self.layout.get(name).ok_or_else(|| ModelError::State {
            name: name.to_owned(),
            problem: "the model has no tensor of this name, or it is an expert of another rank".into(),
        })
    }

    /// Makes the copies follow the masters. Call it after every change of them.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        no_grad(|| {
            if self.single.device() != Device::Cpu {
                self.single.f_copy_(&self.master.tensor)?;
            }
            match &mut self.half {
                Some(half) if self.products == Products::RoundedBf16 => round_into(&self.single, half)?,
                Some(half) => half.f_copy_(&self.single)?,
                None => {}
            }
            Ok(())
        })
    }

    /// A view without gradient of elements `range` as `shape`.
    pub(crate) fn view(&self, range: &Range<usize>, shape: &[i64], precision: Precision) -> Result<Tensor> {
        let base = match (precision, &self.half) {
            (Precision::Compute, Some(half)) => half,
            _ => &self.single,
        };
        Ok(base.f_narrow(0, range.start as i64, range.len() as i64)?.f_view(shape)?.f_detach()?)
    }
}

/// A weight as a leaf of the graph: a view into the flat buffer, and where its gradient belongs.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) range: Range<usize>,
    pub(crate) tensor: Tensor,
}

/// Collects the leaves of one segment while its parts are built.
pub(crate) struct Leaves<'a> {
    pub(crate) weights: &'a Weights,
    list: Vec<Leaf>,
}

impl<'a> Leaves<'a> {
    pub(crate) fn new(weights: &'a Weights) -> Leaves<'a> {
        Leaves { weights, list: Vec::new() }
    }

    /// Neighbouring weights, from `first` to `last`, as one tensor: `shape` must have their elements.
    pub(crate) fn joined(&mut self, first: &str, last: &str, shape: &[i64]) -> Result<Tensor> {
        let range = self.weights.entry(first)?.range.start..self.weights.entry(last)?.range.end;
        let tensor = self.weights.view(&range, shape, Precision::Compute)?.f_set_requires_grad(true)?;
        self.list.push(Leaf { range, tensor: tensor.shallow_clone() });
        Ok(tensor)
    }

    pub(crate) fn finish(self) -> Vec<Leaf> {
        self.list
    }
}
