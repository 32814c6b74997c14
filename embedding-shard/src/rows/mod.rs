//! A lane's rows: virtual until written, then records in an arena.

mod arena;
mod optimizer;
mod store;
mod virtual_rows;

pub use optimizer::{Rates, RowRule, RowState};
pub use store::{Record, RowStore};
pub use virtual_rows::VirtualRows;
