//! What members could not believe.

use polygram_domain::Step;
use polygram_domain::control::{CheckpointPlace, DamagedCheckpoint};

use super::{present, text};
use crate::control::error::Malformed;
use crate::control::wire;

impl From<DamagedCheckpoint> for wire::DamagedCheckpoint {
    fn from(damaged: DamagedCheckpoint) -> wire::DamagedCheckpoint {
        let DamagedCheckpoint { place: CheckpointPlace { step }, key, reason } = damaged;
        wire::DamagedCheckpoint { place: Some(wire::CheckpointPlace { step: step.0 }), key, reason }
    }
}

impl TryFrom<wire::DamagedCheckpoint> for DamagedCheckpoint {
    type Error = Malformed;

    fn try_from(message: wire::DamagedCheckpoint) -> Result<DamagedCheckpoint, Malformed> {
        let wire::DamagedCheckpoint { place, key, reason } = message;
        let wire::CheckpointPlace { step } = present("DamagedCheckpoint", "place", place)?;
        let place = CheckpointPlace { step: Step(step) };
        Ok(DamagedCheckpoint { place, key: text(key), reason: text(reason) })
    }
}
