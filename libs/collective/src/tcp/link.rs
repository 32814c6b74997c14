//! The mesh as a [`Link`]: all connections of one rank, moved by one thread.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polygram_domain::{Generation, Rank};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Membership;
use super::inbound::{Arrival, Inbound, Want};
use super::outbound::{Outbound, payload_bytes};
use crate::abort::AbortTarget;
use crate::link::{Broken, Cause, Incoming, Link, Notice, Outgoing, Round, abort_notice};
use crate::sink::Discard;
use crate::wire::{Content, Header, notice_frame};

/// The connections of one rank, shared with its abort handles.
struct Mesh {
    rank: Rank,
    generation: Generation,
    /// By rank; none for this rank.
    sockets: Vec<Option<TcpStream>>,
    /// A byte written here wakes the rank from [`poll`].
    alarm: UnixStream,
}

impl Mesh {
    /// Tells `notice` to the ranks that `reachable` picks, as far as that needs no waiting, and sends nothing more.
    fn tell(&self, notice: &Notice, reachable: impl Fn(Rank) -> bool) {
        let frame = notice_frame(self.generation, self.rank, notice);
        for (peer, socket) in (0..).map(Rank).zip(&self.sockets) {
            let Some(mut socket) = socket.as_ref() else { continue };
            if reachable(peer)
                && let Err(error) = socket.write(&frame)
            {
                tracing::debug!(%peer, %error, "could not tell a rank of the failure");
            }
            if let Err(error) = socket.shutdown(Shutdown::Write) {
                tracing::debug!(%peer, %error, "a failed connection was closed already");
            }
        }
    }
}

/// All connections of one rank.
pub struct TcpLink {
    mesh: Arc<Mesh>,
    inbound: Vec<Option<Inbound>>,
    /// Peers that have the beginning of a message whose end will not come: nothing more can be told to them.
    cut: Vec<bool>,
    /// The other end of [`Mesh::alarm`].
    alarm: UnixStream,
    patience: Duration,
}

impl TcpLink {
    pub(super) fn new(
        sockets: Vec<Option<TcpStream>>,
        member: &Membership,
        patience: Duration,
    ) -> io::Result<TcpLink> {
        let (alarm, bell) = UnixStream::pair()?;
        alarm.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let generation = member.generation;
        let inbound = (0..).map(Rank).zip(&sockets);
        let inbound = inbound.map(|(peer, socket)| socket.as_ref().map(|_| Inbound::new(peer, generation)));
        let inbound = inbound.collect();
        let cut = vec![false; sockets.len()];
        let mesh = Arc::new(Mesh { rank: member.rank, generation, sockets, alarm: bell });
        Ok(TcpLink { mesh, inbound, cut, alarm, patience })
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
        let outbound = |send| {
            let content = Content::Message { call: round.call, round: round.number };
            let (generation, sender) = (self.mesh.generation, self.mesh.rank);
            let payload_bytes = payload_bytes(send) as u64;
            Outbound::new(&Header { generation, sender, payload_bytes, content }, send)
        };
        let done = vec![false; receives.len()];
        let mut traffic = Traffic { round, sends: sends.iter().map(outbound).collect(), receives, done };
        self.run(&mut traffic).map_err(|cause| {
            for send in traffic.sends.iter().filter(|send| send.is_cut()) {
                self.cut[send.to.index()] = true;
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
        let mut discard: Vec<Discard> = self.inbound.iter().map(|_| Discard::default()).collect();
        loop {
            let mut open = Vec::new();
            for peer in (0..self.world_size()).map(Rank) {
                match self.hear(peer, &mut discard[peer.index()]) {
                    Ok(Arrival::Held) => {}
                    Ok(_) => open.push(peer),
                    Err(Cause::Told { sender, notice }) => notices.push((sender, notice)),
                    Err(cause) => {
                        tracing::debug!(%peer, ?cause, "a peer's last words could not be read");
                        self.inbound[peer.index()] = None;
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
            let left = self.patience.saturating_sub(moved.elapsed());
            if left.is_zero() {
                return Err(Cause::Silent);
            }
            readable = self.wait(traffic, left)?;
        }
    }

    /// Gives every socket a piece of what is to be sent; whether any took something.
    fn send(&mut self, traffic: &mut Traffic<'_, '_>) -> Result<bool, Cause> {
        let mut moved = false;
        for send in traffic.sends.iter_mut().filter(|send| !send.is_done()) {
            let peer = send.to;
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
            let (Some(socket), Some(inbound)) = (&self.mesh.sockets[at], &mut self.inbound[at]) else {
                continue;
            };
            match inbound.advance(socket, &mut Want::Now(traffic.round, receive.sink))? {
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

    /// Reads the header of a message that is not due, or the notice of a failure.
    fn look_ahead(&mut self, traffic: &Traffic<'_, '_>, peer: Rank) -> Result<(), Cause> {
        let (socket, inbound) = (&self.mesh.sockets[peer.index()], &mut self.inbound[peer.index()]);
        let (Some(socket), Some(inbound)) = (socket, inbound) else { return Ok(()) };
        if !traffic.is_due(peer) && inbound.is_between() {
            inbound.advance(socket, &mut Want::Later(traffic.round))?;
        }
        Ok(())
    }

    /// Sleeps until a socket has something to give or room to take, or the alarm rings. Answers the ranks that
    /// have something to say.
    fn wait(&self, traffic: &Traffic<'_, '_>, time: Duration) -> Result<Vec<Rank>, Cause> {
        let mut polled = vec![PollFd::new(&self.alarm, PollFlags::IN)];
        let mut peers = Vec::with_capacity(self.inbound.len());
        for (peer, (socket, inbound)) in (0..).map(Rank).zip(self.mesh.sockets.iter().zip(&self.inbound)) {
            let (Some(socket), Some(inbound)) = (socket, inbound) else { continue };
            let mut flags = PollFlags::empty();
            if traffic.is_due(peer) || inbound.is_between() {
                flags |= PollFlags::IN;
            }
            if traffic.is_unsent(peer) {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                polled.push(PollFd::new(socket, flags));
                peers.push(peer);
            }
        }
        match poll(&mut polled, Some(&timespec(time))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let detail = format!("waiting for its socket: {error}");
                let peer = peers.first().copied().unwrap_or(self.mesh.rank);
                return Err(Cause::Lost { peer, detail });
            }
        }
        let told = polled[1..].iter().zip(peers).filter(|(polled, _)| {
            polled.revents().intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP)
        });
        Ok(told.map(|(_, peer)| peer).collect())
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
        match (&self.mesh.sockets[peer.index()], &mut self.inbound[peer.index()]) {
            (Some(socket), Some(inbound)) => inbound.advance(socket, &mut Want::Notices(discard)),
            _ => Ok(Arrival::Held),
        }
    }

    /// Whom the exchange waits for: peers not heard from, else those not finished, else those that take nothing.
    fn waiting(&self, traffic: &Traffic<'_, '_>) -> Vec<Rank> {
        let due = traffic.receives.iter().map(|receive| receive.from).filter(|peer| traffic.is_due(*peer));
        let due: Vec<Rank> = due.collect();
        let silent = |peer: &Rank| self.inbound[peer.index()].as_ref().is_none_or(Inbound::is_silent);
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

impl AbortTarget for Mesh {
    fn interrupt(&self) {
        match (&self.alarm).write(&[1]) {
            Ok(_) => {}
            // Full: it rings already.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "the rank to be aborted has gone"),
        }
    }

    fn announce(&self, reason: &str) {
        self.tell(&abort_notice(self.rank, reason), |_| true);
    }
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

/// `time` as the system takes it.
pub(super) fn timespec(time: Duration) -> Timespec {
    const DAY: Duration = Duration::from_secs(86_400);
    Timespec { tv_sec: time.min(DAY).as_secs() as _, tv_nsec: time.subsec_nanos() as _ }
}
