//! What every program needs to know of the system around it.
//!
//! [`signals`]: a signal that the parent left ignored stays ignored. [`child`]: a child ends with its parent. [`identity`]:
//! which process on which machine this is, and whether another one still runs. [`address`]: the address that peers on
//! other machines can reach. [`limits`]: which limit an error of the system is about. [`panics`]: text and place of a
//! panic reach whoever joins the thread.

pub mod address;
pub mod child;
pub mod identity;
pub mod limits;
pub mod panics;
pub mod signals;

pub use child::end_with_parent;
pub use identity::{Presence, ProcessIdentity, unix_ms};
pub use panics::{JoinedThread, Panicked};
pub use signals::{StopSignal, StopSignals};
