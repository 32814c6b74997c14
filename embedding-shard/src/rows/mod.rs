//! A lane's rows: virtual until written, then records in an arena.
//!
//! * [`store`](RowStore): which row is where, gathering and updating; `saved`: rows out to checkpoints and back;
//!   `changed`: which of them a recovery point needs.
//! * `layout`, `arena`, `region`: records and the memory they are in.
//! * [`optimizer`](RowRule), [`decay`](DecayLog), `rounding`, [`virtual_rows`](VirtualRows): the arithmetic.

mod arena;
mod changed;
mod counter;
mod decay;
mod layout;
mod optimizer;
mod region;
mod rounding;
mod saved;
mod store;
#[cfg(test)]
mod tests;
mod virtual_rows;

pub(crate) use changed::ChangedRows;
pub use decay::DecayLog;
pub use optimizer::{Rates, RowRule, RowState, square_sum};
pub(crate) use region::prefetch;
pub use saved::Record;
pub use store::{Gradients, RowStore, RowsOut, Updated};
pub use virtual_rows::VirtualRows;
