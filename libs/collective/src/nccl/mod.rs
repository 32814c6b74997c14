//! Ranks that have a GPU each: long messages go between the devices with NCCL.
//!
//! A [`Tcp`] group becomes a [`Nccl`] one ([`Group::with_nccl`]). It stays underneath: headers, short messages, notices and
//! the accusation table go over it, so ranks in other calls, silence and failures are found out as without NCCL, which by
//! itself would only hang. Long payloads are staged on the device, sent by grouped non-blocking sends and receives,
//! and summed by the same tree as everywhere, hence to the same bits.
//!
//! CUDA and NCCL are loaded when they are first needed; without them a group stays what it is and the error says so.
//! Nothing here has been run on a GPU yet.

mod device;
mod error;
mod link;

use polygram_domain::Rank;

use crate::collective::Collective;
use crate::group::Group;
use crate::tcp::Tcp;

use device::Device;
pub use error::NcclError;
pub use link::NcclLink;

/// A rank of a group of processes with a GPU each.
pub type Nccl = Group<NcclLink>;

impl Tcp {
    /// The same group, with NCCL between the ranks' devices; `device` counts the devices of this host. All ranks call
    /// it at the same place, and either all get a group or none does.
    ///
    /// # Errors
    /// Whatever keeps this rank, or another, from using NCCL. The group is gone then; join a new one without NCCL.
    pub fn with_nccl(mut self, device: usize) -> Result<Nccl, NcclError> {
        let opened = Device::open(device);
        let able = self.all_gather(&[u8::from(opened.is_ok())])?;
        let mut device = opened?;
        let unable = (0..).map(Rank).zip(able).filter(|(_, able)| able != &[1]);
        let ranks: Vec<Rank> = unable.map(|(seat, _)| self.seats().name(seat)).collect();
        if !ranks.is_empty() {
            return Err(NcclError::Peers { ranks });
        }
        let made = if self.rank() == Rank(0) { device::unique_id() } else { Ok(Vec::new()) };
        let mut id = made.as_ref().map_or(Vec::new(), Vec::clone);
        self.broadcast(Rank(0), &mut id)?;
        made?;
        let Ok(id) = <[u8; device::ID_BYTES]>::try_from(id) else {
            return Err(NcclError::Peers { ranks: vec![self.seats().name(Rank(0))] });
        };
        device.connect(id, (self.rank(), self.world_size()), self.options().failure_detection)?;
        self.barrier()?;
        Ok(self.map_link(|tcp| NcclLink::new(tcp, device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no GPU the error says what is missing; where there is one, the device opens.
    #[test]
    fn an_absent_library_is_named() {
        match Device::open(0) {
            Ok(_) => {}
            Err(NcclError::Absent { library }) => assert!(["CUDA", "NCCL"].contains(&library)),
            Err(error) => assert!(matches!(error, NcclError::Refused { .. }), "{error}"),
        }
    }
}
