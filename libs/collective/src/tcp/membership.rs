//! Who a rank is, as its peers check it.

use polygram_domain::{Generation, Rank};
use polygram_handshake::LinkKey;

/// Version of what ranks say to each other: 5 has the keyed challenge and heartbeats.
const PROTOCOL_VERSION: u32 = 5;

/// Who a rank is, as its peers check it.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The run: its name, or any token that tells it from others.
    pub run: String,
    /// The membership's fencing number; all ranks have the same.
    pub generation: Generation,
    /// This rank's seat in the group.
    pub rank: Rank,
    /// Version of the protocol.
    pub version: u32,
    /// Of the run's token, which all ranks know.
    pub key: LinkKey,
}

impl Membership {
    /// `rank` of `run` in `generation`, speaking this build's protocol.
    pub fn new(run: impl Into<String>, generation: Generation, rank: Rank, key: LinkKey) -> Membership {
        Membership { run: run.into(), generation, rank, version: PROTOCOL_VERSION, key }
    }
}
