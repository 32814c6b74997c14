//! The decoder, its losses and its optimizer, on libtorch: plain buffers in, plain buffers out.
//!
//! [`Model`] computes one cell at a time ([`Model::forward_backward`]): rows and tokens in; loss, row gradients and
//! routing counts out. Dense gradients are f32 buffers, one for each bucket of
//! [`polygram_domain::RankLayout`]; cells are folded along the fixed tree of [`polygram_domain::sum_tree`], so that the
//! sum does not depend on who computed which cell. Master weights and optimizer state are flat f32 buffers in host
//! memory, whatever the device and the type of matrix products.
//!
//! Experts may be divided over ranks ([`Model::join`]): every rank then sends its tokens to the ranks of their experts
//! and computes its own experts for the tokens of all, cell by cell, so that the bits are those of one rank.
//!
//! Legend for names: B sequences, T positions, P = B·T, D hidden size, V vocabulary, C tables per site, U unique rows,
//! S sites, w values per row, n FFN experts, z zero experts, k choices per token.
//!
//! One thread owns a model. Threads inside matrix products are fixed with [`set_threads`]; sums may depend on them.

pub mod adamw;
mod attention;
pub mod balance;
pub mod cell;
mod context;
mod decoder;
mod embedding;
pub mod error;
mod experts;
mod ffn;
mod gradient;
pub mod hf;
mod init;
mod inspect;
mod kernels;
mod layer;
mod linear;
mod loss;
mod moe;
mod norm;
mod options;
mod parameters;
pub mod rope;
mod runtime;
mod segment;
mod state;

pub use adamw::{AdamW, Group, Update};
pub use cell::{Auxiliary, CellInput, CellOutput};
pub use decoder::Model;
pub use error::ModelError;
pub use experts::ExchangeWatch;
pub use gradient::TakeBucket;
pub use inspect::{Inspection, RoutingTrace};
pub use kernels::Products;
pub use options::Options;
pub use runtime::{cuda_device, set_threads};
pub use tch::Device;
