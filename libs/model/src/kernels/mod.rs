//! What is not a matrix product, in one pass over memory each: norms, gated units, rotations, cross-entropy, forward and
//! backward.
//!
//! Each has two forms with one meaning. On f32 tensors in host memory it is plain code over rows ([`Rows`]), divided
//! over libtorch's own threads ([`parallel`]): every value is one sequence of IEEE operations, and sums over rows are taken
//! in blocks of a fixed size, so the bits depend neither on threads nor on the processor. Elsewhere (other devices,
//! bf16 tensors) it is composed of libtorch's operations.

mod combine;
mod cross_entropy;
mod elementary;
mod gated;
mod norm;
mod parallel;
mod rotation;
mod rows;

pub(crate) use combine::{Owners, combine, row_products};
pub(crate) use cross_entropy::nll_and_gradient;
pub(crate) use elementary::round_into;
pub(crate) use gated::{Gated, silu_gated, silu_gated_backward};
pub(crate) use norm::{Adds, Normed, rms_norm, rms_norm_backward};
pub(crate) use rotation::{Attended, Heads, assemble, disassemble};

use polygram_domain::processor::has_matrix_units;
use polygram_domain::run_spec::ComputeType;
use tch::{Device, Kind, Tensor};

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
            Products::RoundedBf16 => elementary::rounded(x),
        }
    }

    /// The same as a differentiable operation.
    pub(crate) fn operand_in_graph(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Products::F32 | Products::Bf16 => self.operand(x),
            Products::RoundedBf16 => Ok(x.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?),
        }
    }

    fn rounds(self) -> bool {
        self == Products::RoundedBf16
    }
}

/// Whether these are f32 in host memory, so that plain code works on them.
pub(crate) fn are_plain(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| x.device() == Device::Cpu && matches!(x.f_kind(), Ok(Kind::Float)))
}

/// A function compiled for the widest vectors of this processor, chosen when it is called. More of them change no bit:
/// lanes are independent, and sums have a fixed number of partial sums.
macro_rules! vectorized {
    ($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($argument: $type),*) $body
                #[target_feature(enable = "avx2")]
                fn with_avx2($($argument: $type),*) $body
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has these instructions.
                    return unsafe { with_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has these instructions.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            $body
        }
    };
}
use vectorized;
