//! The mesh as a [`Link`]: all connections of one rank, moved by one thread.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_domain::Rank;
use rustix::event::{PollFd, PollFlags, poll};

use super::inbound::{Arrival, Inbound, Want};
use super::joined::Joined;
use super::local_rank::Home;
use super::mesh::Mesh;
use super::outbound::{Outbound, payload_bytes, socket_frame_bytes};
use super::ring::{RingIn, RingOut, Rings, ring_frame_bytes};
use super::timeout::timespec;
use crate::abort::AbortTarget;
use crate::link::{Broken, Cause, Incoming, Link, Notice, Outgoing, Round};
use crate::sink::Discard;
use crate::wire::{Content, Header};

/// After the last byte a rank looks for more without rest for so long, as another core may be about to write it,
const SPIN: Duration = Duration::from_micros(3);
/// then lets others run between its looks, and after so long sleeps.
const YIELD: Duration = Duration::from_micros(60);

/// What comes from one peer and how it is reached.
struct Peer {
    /// What comes over its socket: everything, or what rings do not carry.
    inbound: Inbound,
    rings: Option<Rings>,
    /// How its socket ended, where there are rings: what it wrote into them before comes first.
    ended: Option<Cause>,
}

impl Peer {
    /// Whether nothing of its next message has come, as far as is known.
    fn is_silent(&self) -> bool {
        self.rings.as_ref().map_or(self.inbound.is_silent(), |rings| rings.from.is_between())
    }
}

/// All connections of one rank.
pub struct TcpLink {
    home: Home,
    mesh: Arc<Mesh>,
    peers: Vec<Option<Peer>>,
    /// Peers that have the beginning of a message whose end will not come: nothing more can be told to them.
    cut: Vec<bool>,
    /// The other end of [`Mesh::alarm`].
    alarm: UnixStream,
    patience: Duration,
}

impl TcpLink {
    pub(super) fn new(joined: Vec<Option<Joined>>, home: Home, patience: Duration) -> io::Result<TcpLink> {
        let (alarm, bell) = UnixStream::pair()?;
        alarm.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let generation = home.membership.generation;
        let (mut sockets, mut peers) = (Vec::new(), Vec::new());
        for (peer, joined) in (0..).map(Rank).zip(joined) {
            let Some(Joined { socket, ends, pulse: _ }) = joined else {
                sockets.push(None);
                peers.push(None);
                continue;
            };
            let rings = match ends {
                None => None,
                Some((from, to)) => {
                    Some(Rings { from: RingIn::open(from, peer, generation)?, to: RingOut::open(to)? })
                }
            };
            sockets.push(Some(socket));
            peers.push(Some(Peer { inbound: Inbound::new(peer, generation), rings, ended: None }));
        }
        let cut = vec![false; sockets.len()];
        let mesh = Arc::new(Mesh { rank: home.membership.rank, generation, sockets, alarm: bell });
        if let Some(pulse) = &home.pulse {
            pulse.wakes(&mesh);
        }
        Ok(TcpLink { home, mesh, peers, cut, alarm, patience })
    }

    /// How this rank joined.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// The longest wait in which nothing moves.
    #[cfg(feature = "nccl")]
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Looks, without waiting, whether a peer has failed or is in another call.
    #[cfg(feature = "nccl")]
    pub(crate) fn glance(&mut self, round: &Round<'_>) -> Result<(), Cause> {
        let traffic = Traffic { round, sends: Vec::new(), receives: &mut [], done: Vec::new() };
        for peer in self.wait(&traffic, Duration::ZERO)? {
            self.look_ahead(&traffic, peer)?;
        }
        self.check_idle(&traffic)
    }

    fn rings(&mut self, peer: Rank) -> Option<&mut Rings> {
        self.peers[peer.index()].as_mut()?.rings.as_mut()
    }
}

/// An exchange in progress.
struct Traffic<'a, 'b> {
    round: &'a Round<'a>,
    sends: Vec<Outbound<'a>>,
    receives: &'a mut [Incoming<'b>],
    /// Which receives are complete.
    done: Vec<bool>,
}

impl Traffic<'_, '_> {
    fn is_done(&self) -> bool {
        self.done.iter().all(|done| *done) && self.sends.iter().all(Outbound::is_done)
    }

    fn is_due(&self, peer: Rank) -> bool {
        self.receives.iter().zip(&self.done).any(|(receive, done)| receive.from == peer && !done)
    }

    fn is_unsent(&self, peer: Rank) -> bool {
        self.sends.iter().any(|send| send.to == peer && !send.is_done())
    }
}

impl Link for TcpLink {
    fn rank(&self) -> Rank {
        self.mesh.rank
    }

    fn world_size(&self) -> u32 {
        self.mesh.sockets.len() as u32
    }

    fn exchange(
        &mut self,
        round: &Round<'_>,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), Broken> {
        let content = Content::Message { call: round.call, round: round.number };
        let (generation, sender) = (self.mesh.generation, self.mesh.rank);
        let shared: Vec<bool> = sends.iter().map(|send| self.rings(send.to).is_some()).collect();
        let outbound = |(send, shared)| {
            let payload_bytes = payload_bytes(send) as u64;
            let header = Header { generation, sender, payload_bytes, content };
            Outbound::new(&header, send, if shared { ring_frame_bytes } else { socket_frame_bytes })
        };
        let outbound = sends.iter().zip(shared).map(outbound).collect();
        let done = vec![false; receives.len()];
        let mut traffic = Traffic { round, sends: outbound, receives, done };
        self.run(&mut traffic).map_err(|cause| {
            for send in traffic.sends.iter().filter(|send| send.is_cut()) {
                self.cut[send.to.index()] = self.rings(send.to).is_none();
            }
            Broken { cause, waiting: self.waiting(&traffic) }
        })
    }

    fn announce(&mut self, notice: &Notice) {
        self.mesh.tell(notice, |peer| !self.cut[peer.index()]);
    }

    fn gather_notices(&mut self, grace: Duration) -> Vec<(Rank, Notice)> {
        let begun = Instant::now();
        let mut notices = Vec::new();
        let mut discard: Vec<Discard> = self.peers.iter().map(|_| Discard::default()).collect();
        loop {
            let mut open = Vec::new();
            for peer in (0..self.world_size()).map(Rank) {
                match self.hear(peer, &mut discard[peer.index()]) {
                    Ok(Arrival::Held) => {}
                    Ok(_) => open.push(peer),
                    Err(Cause::Told { sender, notice }) => notices.push((sender, notice)),
                    Err(cause) => {
                        tracing::debug!(%peer, ?cause, "a peer's last words could not be read");
                        self.peers[peer.index()] = None;
                    }
                }
            }
            let left = grace.saturating_sub(begun.elapsed());
            if open.is_empty() || left.is_zero() {
                return notices;
            }
            let sockets = open.iter().filter_map(|peer| self.mesh.sockets[peer.index()].as_ref());
            let mut polled: Vec<_> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            if let Err(error) = poll(&mut polled, Some(&timespec(left)))
                && error != rustix::io::Errno::INTR
            {
                tracing::debug!(%error, "could not wait for the peers' last words");
                return notices;
            }
        }
    }

    fn abort_target(&self) -> Arc<dyn AbortTarget> {
        Arc::clone(&self.mesh) as Arc<dyn AbortTarget>
    }
}

impl TcpLink {
    /// Moves bytes both ways until all of the round is through.
    fn run(&mut self, traffic: &mut Traffic<'_, '_>) -> Result<(), Cause> {
        let mut moved = Instant::now();
        let mut readable = Vec::new();
        loop {
            if traffic.round.abort.is_aborted() {
                return Err(Cause::Aborted);
            }
            for peer in readable.drain(..) {
                self.look_ahead(traffic, peer)?;
            }
            if self.send(traffic)? | self.receive(traffic)? {
                if traffic.is_done() {
                    return Ok(());
                }
                moved = Instant::now();
                continue;
            }
            if traffic.is_done() {
                return Ok(());
            }
            self.check_idle(traffic)?;
            if let Some((peer, waited)) = self.home.pulse.as_ref().and_then(|pulse| pulse.unheard()) {
                return Err(Cause::Unheard { peer, waited });
            }
            let waited = moved.elapsed();
            if waited < SPIN {
                std::hint::spin_loop();
            } else if waited < YIELD {
                std::thread::yield_now();
            } else if waited < self.patience {
                readable = self.wait(traffic, self.patience - waited)?;
            } else {
                return Err(Cause::Silent);
            }
        }
    }

    /// Gives every peer a piece of what is to be sent; whether any took something.
    fn send(&mut self, traffic: &mut Traffic<'_, '_>) -> Result<bool, Cause> {
        let mut moved = false;
        for send in traffic.sends.iter_mut().filter(|send| !send.is_done()) {
            let peer = send.to;
            if let Some(rings) = self.rings(peer) {
                let wrote = rings.to.write(send);
                moved |= wrote.map_err(|error| Cause::Corrupt { peer, detail: error.to_string() })?;
                continue;
            }
            let Some(socket) = self.mesh.sockets[peer.index()].as_ref() else { continue };
            match send.write(socket) {
                Ok(took) => moved |= took,
                Err(error) => return Err(self.last_words(peer, &error)),
            }
        }
        Ok(moved)
    }

    /// Takes a piece from every peer whose message is due; whether any came.
    fn receive(&mut self, traffic: &mut Traffic<'_, '_>) -> Result<bool, Cause> {
        let mut moved = false;
        for (receive, done) in traffic.receives.iter_mut().zip(&mut traffic.done).filter(|(_, done)| !**done)
        {
            let at = receive.from.index();
            let (Some(socket), Some(peer)) = (&self.mesh.sockets[at], &mut self.peers[at]) else {
                continue;
            };
            let mut want = Want::Now(traffic.round, receive.sink);
            let arrival = match &mut peer.rings {
                Some(rings) => rings.from.advance(&mut want)?,
                None => peer.inbound.advance(socket, &mut want)?,
            };
            match arrival {
                Arrival::Complete => {
                    *done = true;
                    moved = true;
                }
                Arrival::Moved => moved = true,
                Arrival::Blocked | Arrival::Held => {}
            }
        }
        Ok(moved)
    }

    /// Nothing moves: looks at messages that are not due, in rings or already read, and at peers that have ended with
    /// nothing left of theirs to read.
    fn check_idle(&mut self, traffic: &Traffic<'_, '_>) -> Result<(), Cause> {
        for rank in (0..self.world_size()).map(Rank) {
            let Some(peer) = &mut self.peers[rank.index()] else { continue };
            let due = traffic.is_due(rank);
            let Some(rings) = &mut peer.rings else {
                if peer.inbound.is_ahead() {
                    self.look_ahead(traffic, rank)?;
                }
                continue;
            };
            if !due && rings.from.is_between() {
                rings.from.advance(&mut Want::Later(traffic.round))?;
            }
            let told = matches!(peer.ended, Some(Cause::Told { .. })) && rings.from.is_between();
            if (told || due || traffic.is_unsent(rank))
                && let Some(cause) = peer.ended.take()
            {
                return Err(cause);
            }
        }
        Ok(())
    }

    /// Reads the header of a message that is not due, or the notice of a failure.
    fn look_ahead(&mut self, traffic: &Traffic<'_, '_>, rank: Rank) -> Result<(), Cause> {
        let (socket, peer) = (&self.mesh.sockets[rank.index()], &mut self.peers[rank.index()]);
        let (Some(socket), Some(peer)) = (socket, peer) else { return Ok(()) };
        if !peer.inbound.is_between() || (peer.rings.is_none() && traffic.is_due(rank)) {
            return Ok(());
        }
        let heard = peer.inbound.advance(socket, &mut Want::Later(traffic.round));
        match heard {
            Err(cause @ Cause::Told { .. }) if peer.rings.is_some() => peer.ended = Some(cause),
            Err(cause) => return Err(cause),
            Ok(_) => {}
        }
        if let (Some(detail), Some(_), None) = (peer.inbound.end(), &peer.rings, &peer.ended) {
            peer.ended = Some(Cause::Lost { peer: rank, detail: detail.to_string() });
        }
        Ok(())
    }

    /// Sleeps until a socket or ring has something to give or room to take, or the alarm rings. Answers the ranks
    /// whose sockets have something to say.
    fn wait(&mut self, traffic: &Traffic<'_, '_>, time: Duration) -> Result<Vec<Rank>, Cause> {
        if !self.rest(traffic)? {
            self.rise();
            return Ok(Vec::new());
        }
        let mut polled = vec![PollFd::new(&self.alarm, PollFlags::IN)];
        let mut sources = Vec::with_capacity(3 * self.peers.len());
        for (rank, (socket, peer)) in (0..).map(Rank).zip(self.mesh.sockets.iter().zip(&self.peers)) {
            let (Some(socket), Some(peer)) = (socket, peer) else { continue };
            let mut flags = PollFlags::empty();
            if peer.inbound.is_between() || (peer.rings.is_none() && traffic.is_due(rank)) {
                flags |= PollFlags::IN;
            }
            if peer.rings.is_none() && traffic.is_unsent(rank) {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                polled.push(PollFd::new(socket, flags));
                sources.push((rank, Source::Socket));
            }
            let Some(rings) = &peer.rings else { continue };
            let bells = [(&rings.from.bell, Source::From), (&rings.to.bell, Source::To)];
            for (bell, source) in bells.into_iter().filter(|(bell, _)| !bell.ended) {
                polled.push(PollFd::new(&bell.socket, PollFlags::IN));
                sources.push((rank, source));
            }
        }
        match poll(&mut polled, Some(&timespec(time))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let detail = format!("waiting for its socket: {error}");
                let peer = sources.first().map_or(self.mesh.rank, |(rank, _)| *rank);
                return Err(Cause::Lost { peer, detail });
            }
        }
        let said = PollFlags::IN | PollFlags::ERR | PollFlags::HUP;
        let told = polled[1..].iter().zip(sources).filter(|(polled, _)| polled.revents().intersects(said));
        let told: Vec<_> = told.map(|(_, source)| source).collect();
        self.rise();
        for (rank, source) in &told {
            match (source, self.rings(*rank)) {
                (Source::From, Some(rings)) => rings.from.bell.quiet(),
                (Source::To, Some(rings)) => rings.to.bell.quiet(),
                _ => {}
            }
        }
        Ok(told.into_iter().filter(|(_, source)| *source == Source::Socket).map(|(rank, _)| rank).collect())
    }

    /// Says in all rings waited for that this rank is about to sleep; false when one has something for it.
    fn rest(&self, traffic: &Traffic<'_, '_>) -> Result<bool, Cause> {
        for (rank, peer) in (0..).map(Rank).zip(&self.peers) {
            let Some(Peer { rings: Some(rings), .. }) = peer else { continue };
            let listens = traffic.is_due(rank) || rings.from.is_between();
            if listens && !rings.from.rest()? {
                return Ok(false);
            }
            let full = |error: io::Error| Cause::Corrupt { peer: rank, detail: error.to_string() };
            if traffic.is_unsent(rank) && !rings.to.rest().map_err(full)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// This rank is awake.
    fn rise(&self) {
        for rings in self.peers.iter().flatten().filter_map(|peer| peer.rings.as_ref()) {
            rings.from.rise();
            rings.to.rise();
        }
    }

    /// Why `peer` takes nothing more: its own words, where they have come, or the system's.
    fn last_words(&mut self, peer: Rank, error: &io::Error) -> Cause {
        let mut discard = Discard::default();
        loop {
            match self.hear(peer, &mut discard) {
                Ok(Arrival::Moved | Arrival::Complete) => {}
                Ok(Arrival::Blocked | Arrival::Held) => {
                    return Cause::Lost { peer, detail: error.to_string() };
                }
                Err(cause) => return cause,
            }
        }
    }

    /// Reads towards a notice of `peer`, skipping messages.
    fn hear(&mut self, peer: Rank, discard: &mut Discard) -> Result<Arrival, Cause> {
        match (&self.mesh.sockets[peer.index()], &mut self.peers[peer.index()]) {
            (Some(_), Some(Peer { ended: ended @ Some(Cause::Told { .. }), .. })) => {
                ended.take().map_or(Ok(Arrival::Held), Err)
            }
            (Some(socket), Some(peer)) => peer.inbound.advance(socket, &mut Want::Notices(discard)),
            _ => Ok(Arrival::Held),
        }
    }

    /// Whom the exchange waits for: peers not heard from, else those not finished, else those that take nothing.
    fn waiting(&self, traffic: &Traffic<'_, '_>) -> Vec<Rank> {
        let due = traffic.receives.iter().map(|receive| receive.from).filter(|peer| traffic.is_due(*peer));
        let due: Vec<Rank> = due.collect();
        let silent = |peer: &Rank| self.peers[peer.index()].as_ref().is_none_or(Peer::is_silent);
        let silent: Vec<Rank> = due.iter().copied().filter(silent).collect();
        if !silent.is_empty() {
            return silent;
        }
        if !due.is_empty() {
            return due;
        }
        traffic.sends.iter().filter(|send| !send.is_done()).map(|send| send.to).collect()
    }
}

/// What [`poll`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Socket,
    /// The bell of the ring from a peer.
    From,
    /// The bell of the ring to a peer.
    To,
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        // Abort handles may outlive the link and hold its sockets; peers must see the end all the same.
        for socket in self.mesh.sockets.iter().flatten() {
            if let Err(error) = socket.shutdown(Shutdown::Both) {
                tracing::trace!(%error, "a connection was closed already");
            }
        }
    }
}
