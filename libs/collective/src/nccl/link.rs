//! The devices as a [`Link`]: TCP says what comes, NCCL carries what is long.

use std::sync::Arc;
use std::time::Duration;

use polygram_domain::Rank;

use super::device::Device;
use super::error::Detail;
use crate::abort::AbortTarget;
use crate::link::{Broken, Cause, Incoming, Link, Notice, Outgoing, Round};
use crate::sink::Grow;
use crate::tcp::TcpLink;

/// Payloads above so many bytes go between the devices.
const SHORT_BYTES: usize = 64 << 10;
/// The length of a payload, which comes before a short one and instead of a long one.
const LENGTH_BYTES: usize = 8;

/// A rank's connections and its device.
pub struct NcclLink {
    tcp: TcpLink,
    device: Device,
}

enum Failure {
    Device(String),
    Group(Cause),
}

impl From<Detail> for Failure {
    fn from(Detail(detail): Detail) -> Failure {
        Failure::Device(detail)
    }
}

impl NcclLink {
    pub(super) fn new(tcp: TcpLink, device: Device) -> NcclLink {
        NcclLink { tcp, device }
    }
}

impl Link for NcclLink {
    fn rank(&self) -> Rank {
        self.tcp.rank()
    }

    fn world_size(&self) -> u32 {
        self.tcp.world_size()
    }

    fn exchange(
        &mut self,
        round: &Round<'_>,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), Broken> {
        let length = |send: &Outgoing<'_>| send.parts.iter().map(|part| part.len()).sum::<usize>();
        let lengths: Vec<_> = sends.iter().map(|send| (length(send) as u64).to_le_bytes()).collect();
        let letters = sends.iter().zip(&lengths).map(|(send, bytes)| {
            let short = length(send) <= SHORT_BYTES;
            let parts = std::iter::once(&bytes[..]).chain(send.parts.iter().copied().filter(|_| short));
            Outgoing { to: send.to, parts: parts.collect() }
        });
        let letters: Vec<_> = letters.collect();
        let mut heard: Vec<Vec<u8>> = vec![Vec::new(); receives.len()];
        let limit = (LENGTH_BYTES + SHORT_BYTES) as u64;
        let mut sinks: Vec<_> = heard.iter_mut().map(|buffer| Grow::new(buffer, limit)).collect();
        let mut incoming: Vec<_> = receives
            .iter()
            .zip(&mut sinks)
            .map(|(receive, sink)| Incoming { from: receive.from, sink })
            .collect();
        self.tcp.exchange(round, &letters, &mut incoming)?;

        let mut long = Vec::new();
        for (receive, bytes) in receives.iter_mut().zip(&heard) {
            let peer = receive.from;
            let corrupt = |detail| Broken { cause: Cause::Corrupt { peer, detail }, waiting: Vec::new() };
            let (length, payload) =
                bytes.split_first_chunk().ok_or_else(|| corrupt("a length is cut short".to_string()))?;
            let length = u64::from_le_bytes(*length);
            receive.sink.begin(length).map_err(corrupt)?;
            if payload.len() as u64 == length {
                receive.sink.absorb(payload.into());
            } else if payload.is_empty() {
                long.push((peer, vec![0; length as usize]));
            } else {
                return Err(corrupt(format!("{} bytes of {length}", payload.len())));
            }
        }
        let outgoing = sends.iter().filter(|send| length(send) > SHORT_BYTES);
        let outgoing: Vec<_> = outgoing.map(|send| (send.to, send.parts.concat())).collect();
        if outgoing.is_empty() && long.is_empty() {
            return Ok(());
        }
        let NcclLink { tcp, device } = self;
        let patience = tcp.patience();
        let mut keep = || match round.abort.is_aborted() {
            true => Err(Failure::Group(Cause::Aborted)),
            false => tcp.glance(round).map_err(Failure::Group),
        };
        let outcome = device.guarded(patience, |device| device.exchange(&outgoing, &mut long, &mut keep));
        if let Err(failure) = outcome {
            let waiting: Vec<Rank> = long.iter().map(|(peer, _)| *peer).collect();
            let peer = waiting.first().copied().unwrap_or(tcp.rank());
            let cause = match failure {
                Failure::Group(cause) => cause,
                Failure::Device(_) if device.is_expired() => Cause::Silent,
                Failure::Device(detail) => Cause::Lost { peer, detail },
            };
            return Err(Broken { cause, waiting });
        }
        for (from, bytes) in &long {
            if let Some(receive) = receives.iter_mut().find(|receive| receive.from == *from) {
                receive.sink.absorb(bytes.as_slice().into());
            }
        }
        Ok(())
    }

    fn announce(&mut self, notice: &Notice) {
        self.tcp.announce(notice);
    }

    fn gather_notices(&mut self, grace: Duration) -> Vec<(Rank, Notice)> {
        self.tcp.gather_notices(grace)
    }

    fn abort_target(&self) -> Arc<dyn AbortTarget> {
        self.tcp.abort_target()
    }
}
