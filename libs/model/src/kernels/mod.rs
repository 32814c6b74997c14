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
mod products;
mod rotation;
mod rows;
mod vectorized;

pub(crate) use combine::{Owners, combine, row_products};
pub(crate) use cross_entropy::nll_and_gradient;
pub(crate) use elementary::round_into;
pub(crate) use gated::{Gated, silu_gated, silu_gated_backward};
pub(crate) use norm::{Adds, Normed, rms_norm, rms_norm_backward};
pub use products::Products;
pub(crate) use rotation::{Attended, Heads, assemble, disassemble};
pub(crate) use rows::are_plain;
use vectorized::vectorized;
