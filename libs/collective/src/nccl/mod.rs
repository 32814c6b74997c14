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
mod link;

use std::fmt;

use polygram_domain::Rank;

use crate::collective::Collective;
use crate::error::CollectiveError;
use crate::group::Group;
use crate::tcp::Tcp;

use device::Device;
pub use link::NcclLink;

/// A rank of a group of processes with a GPU each.
pub type Nccl = Group<NcclLink>;

/// Why a group cannot use NCCL.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// A library cannot be loaded here: install it, or stay with TCP.
    #[error(
        "{library} cannot be loaded; install it and put its folder into LD_LIBRARY_PATH, or run without NCCL"
    )]
    Absent {
        /// What is missing.
        library: &'static str,
    },
    /// Other ranks cannot use NCCL, so this one does not either.
    #[error("NCCL cannot be used on {}; their own errors say why", crate::error::ranks(ranks))]
    Peers {
        /// Those ranks.
        ranks: Vec<Rank>,
    },
    /// CUDA or NCCL refused something.
    #[error("{doing}: {detail}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What the library said.
        detail: String,
    },
    /// The group failed while it prepared.
    #[error(transparent)]
    Group(#[from] CollectiveError),
}

impl NcclError {
    fn refused(doing: &'static str) -> impl Fn(Detail) -> NcclError {
        move |Detail(detail)| NcclError::Refused { doing, detail }
    }
}

/// The words of a library's error.
struct Detail(String);

impl<E: fmt::Debug> From<E> for Detail {
    fn from(error: E) -> Detail {
        Detail(format!("{error:?}"))
    }
}

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
