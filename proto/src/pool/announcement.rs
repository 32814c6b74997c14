//! How a pool's coordinator tells where it listens.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::ControlError;
use crate::control::announcement::{read_whole, write_whole};

/// A pool's coordinator that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAnnouncement {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub pid: u32,
}

impl PoolAnnouncement {
    /// Writes the file so that a reader sees all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<(), ControlError> {
        write_whole(path, self)
    }

    /// Reads the file; `None` while it is not there yet.
    pub fn read(path: &Path) -> Result<Option<PoolAnnouncement>, ControlError> {
        read_whole(path)
    }
}
