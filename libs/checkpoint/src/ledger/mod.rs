//! The ledger of a run: one line a step, each with the hash of the line before it.
//!
//! A line says what a step was in every topology: samples, tokens, rate, loss and norm by their bits, what became of
//! the update, and fingerprints of the rows that it updated and of the dense weights after it. So two runs did the same
//! exactly when their lines are the same bytes.
//!
//! Lines lie in [segments](crate::segments); each begins with a [`Heading`] that names the line it continues from. A
//! segment that continues from an earlier line makes void what was written beyond: those updates were rolled back. The
//! manifest of a checkpoint names the hash of its last line, and is created after that line is in the store.

mod chain;
mod entry;
mod objects;
mod page;

pub use chain::{Chain, Faults};
pub use entry::{ChainHash, Entry};
pub use page::Heading;
