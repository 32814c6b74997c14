//! Tokens to row ids: the only hash in the tree.
//!
//! [`hasher`] turns tokens into the row ids of the n-gram tables (whole sequences, packed documents, and one token
//! at a time: all three agree exactly), [`keys`] names n-grams for counting, [`unique`] lists each table's distinct
//! rows with the way back, [`merit`] says how badly a table's size collides, and [`sizing`] finds sizes that do not.
//!
//! Legend: P positions, T positions of one sequence, V hash vocabulary, N longest n-gram, K heads per order,
//! C = (N − 1)·K tables per site, U distinct rows of a cell.

pub mod error;
pub mod hasher;
pub mod keys;
pub mod merit;
mod modulus;
pub mod sizing;
pub mod stream;
pub mod unique;

pub use error::NgramError;
pub use hasher::{Hasher, batch_ids};
pub use keys::batch_keys;
pub use merit::merit;
pub use sizing::{SizeQuery, Sizing, Warning, check_tables, size_tables};
pub use stream::Stream;
pub use unique::UniqueRows;
