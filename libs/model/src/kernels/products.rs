//! How matrix products are computed, and their operands.

use polygram_domain::processor::has_matrix_units;
use polygram_domain::run_spec::ComputeType;
use tch::{Device, Kind, Tensor};

use super::elementary::rounded;
use crate::error::Result;

/// How matrix products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// IEEE single.
    F32,
    /// bf16 tensors.
    Bf16,
    /// Operands rounded to bf16 and kept in f32, multiplied by f32 instructions: a product of two bf16 numbers is exact in
    /// f32, so this differs from [`Products::Bf16`] only in that sums are not rounded again. For processors whose bf16
    /// instructions are no faster than f32 ones.
    RoundedBf16,
}

impl Products {
    /// How this machine computes products of `compute` on `device`.
    pub fn of(compute: ComputeType, device: Device) -> Products {
        match compute {
            ComputeType::F32 => Products::F32,
            ComputeType::Bf16 if device == Device::Cpu && !has_matrix_units() => Products::RoundedBf16,
            ComputeType::Bf16 => Products::Bf16,
        }
    }

    /// The type of tensors that are multiplied.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Products::F32 | Products::RoundedBf16 => Kind::Float,
            Products::Bf16 => Kind::BFloat16,
        }
    }

    /// `x` as an operand of products.
    pub(crate) fn operand(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Products::F32 => Ok(x.f_to_kind(Kind::Float)?),
            Products::Bf16 => Ok(x.f_to_kind(Kind::BFloat16)?),
            Products::RoundedBf16 => rounded(x),
        }
    }

    /// The same as a differentiable operation.
    pub(crate) fn operand_in_graph(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Products::F32 | Products::Bf16 => self.operand(x),
            Products::RoundedBf16 => Ok(x.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?),
        }
    }

    pub(super) fn rounds(self) -> bool {
        self == Products::RoundedBf16
    }
}
