//! `polygram ckpt`: checkpoints as the store tells them; no process of the run is asked, but whether it lives.

pub(crate) mod diff;
pub(crate) mod gc;
pub(crate) mod ls;
pub(crate) mod pin;
pub(crate) mod reshard;
pub(crate) mod rm;
pub(crate) mod show;
pub(crate) mod verify;
