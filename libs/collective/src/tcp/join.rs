//! Forming the mesh: dial the lower ranks, be dialled by the higher ones, share memory with those on this host, all
//! before one deadline.
//!
//! Nobody waits in a circle: rank 0 dials nobody and so answers at once, rank 1 then gets its answer and answers
//! in turn, and so on. Strangers (another run, a port scanner) are refused or ignored, and hold nobody up.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;
use polygram_same_host::Offer;
use rustix::event::{PollFd, PollFlags, poll};

use super::handshake::{Hello, NAME_LIMIT, Reply, Words};
use super::link::timespec;
use super::meet::{self, Ends, Guest, Meeting};
use super::{Home, Membership};
use crate::error::JoinError;
use crate::group::Options;
use crate::members::Members;

/// Time between attempts to reach a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);
/// The longest wait for one attempt to connect.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Connections that may be in the middle of their greeting at once; the oldest goes first.
const PENDING: usize = 4096;

/// What joining needs to know.
struct Joining<'a> {
    member: &'a Membership,
    /// The ranks of the run, for errors.
    members: &'a Members,
    addresses: &'a [SocketAddr],
    options: &'a Options,
    /// Where the higher ranks may come for memory.
    meeting: Option<Meeting>,
    begun: Instant,
    deadline: Duration,
}

/// A connection to another rank, and the rings that may go with it.
pub(super) struct Joined {
    pub(super) socket: TcpStream,
    pub(super) ends: Option<Ends>,
}

/// Connections to all other ranks, by rank.
pub(super) fn mesh(
    listener: TcpListener,
    home: &Home,
    members: &Members,
    addresses: &[SocketAddr],
    options: &Options,
) -> Result<Vec<Option<Joined>>, JoinError> {
    let (member, deadline) = (&home.membership, home.deadline);
    let refuse = |detail| Err(JoinError::Argument { group: options.group.clone(), detail });
    if member.rank.index() >= addresses.len() {
        return refuse(format!("rank {} with {} addresses", member.rank, addresses.len()));
    }
    if member.run.len() > NAME_LIMIT || options.group.len() > NAME_LIMIT {
        return refuse(format!("the names of run and group may have {NAME_LIMIT} bytes each"));
    }
    let is_last = member.rank.index() + 1 == addresses.len();
    let meeting = match options.same_host {
        SameHost::Auto if !is_last => Meeting::open()
            .inspect_err(|error| tracing::info!(%error, "no memory is offered to other ranks"))
            .ok(),
        SameHost::Auto | SameHost::Tcp => None,
    };
    let joining = Joining { member, members, addresses, options, meeting, begun: Instant::now(), deadline };
    let mut sockets = Vec::with_capacity(addresses.len());
    let mut offers = Vec::with_capacity(addresses.len());
    for peer in 0..member.rank.0 {
        let (socket, offer) = joining.dial(Rank(peer))?;
        sockets.push(Some(socket));
        offers.push(offer);
    }
    sockets.resize_with(addresses.len(), || None);
    joining.answer(&listener, &mut sockets)?;
    let mut ends = joining.take_up(&offers, &sockets)?;
    ends.extend(joining.hand_out(&sockets)?);
    let joined = sockets.into_iter().zip(ends);
    Ok(joined.map(|(socket, ends)| socket.map(|socket| Joined { socket, ends })).collect())
}

/// Why an attempt to join a peer did not succeed.
enum Attempt {
    Refused(String),
    Failed(String),
}

impl Joining<'_> {
    fn hello(&self, receiver: Rank) -> Hello {
        Hello::new(self.member, receiver, self.addresses.len() as u32, self.options)
    }

    /// This rank of the run.
    fn name(&self) -> Rank {
        self.members.name(self.member.rank)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.begun.elapsed())
    }

    fn dial(&self, peer: Rank) -> Result<(TcpStream, Option<Offer>), JoinError> {
        let address = self.addresses[peer.index()];
        loop {
            let attempt = self.attempt(peer, address);
            let (rank, peer) = (self.name(), self.members.name(peer));
            match attempt {
                Ok(joined) => return Ok(joined),
                Err(Attempt::Refused(reason)) => {
                    return Err(JoinError::Refused { rank, peer, address, reason });
                }
                Err(Attempt::Failed(detail)) if self.left() <= RETRY => {
                    let waited = self.begun.elapsed();
                    return Err(JoinError::Unreachable { rank, peer, address, waited, detail });
                }
                Err(Attempt::Failed(_)) => thread::sleep(RETRY),
            }
        }
    }

    fn attempt(&self, peer: Rank, address: SocketAddr) -> Result<(TcpStream, Option<Offer>), Attempt> {
        let failed = |error: io::Error| Attempt::Failed(error.to_string());
        let time = self.left().min(ATTEMPT).max(RETRY);
        let mut socket = TcpStream::connect_timeout(&address, time).map_err(failed)?;
        socket.set_write_timeout(Some(time)).map_err(failed)?;
        socket.write_all(&self.hello(peer).encode()).map_err(failed)?;
        let mut bytes = Vec::new();
        // Not a byte more than the reply may be read: the first message can be right behind it.
        loop {
            let missing = Words::Reply.missing(&bytes).map_err(Attempt::Refused)?;
            if missing == 0 {
                break;
            }
            let left = self.left();
            if left.is_zero() {
                return Err(Attempt::Failed("no answer to the greeting".to_string()));
            }
            socket.set_read_timeout(Some(left)).map_err(failed)?;
            let known = bytes.len();
            bytes.resize(known + missing, 0);
            let count = match socket.read(&mut bytes[known..]) {
                Ok(0) => return Err(Attempt::Failed("hung up on the greeting".to_string())),
                Ok(count) => count,
                Err(error) if would_block(&error) => 0,
                Err(error) => return Err(failed(error)),
            };
            bytes.truncate(known + count);
        }
        let reply = Reply::decode(&bytes).map_err(Attempt::Refused)?;
        let offer = reply.verdict.map_err(Attempt::Refused)?;
        if reply.sender == peer {
            Ok((socket, offer))
        } else {
            Err(Attempt::Refused(format!("rank {} answers there", self.members.name(reply.sender))))
        }
    }

    /// Fills the empty places of the higher ranks.
    fn answer(&self, listener: &TcpListener, sockets: &mut [Option<TcpStream>]) -> Result<(), JoinError> {
        let rank = self.name();
        let io = |doing| move |source| JoinError::Io { rank, doing, source };
        listener.set_nonblocking(true).map_err(io("listening"))?;
        let mut pending: Vec<Greeting> = Vec::new();
        let mut refusals = Vec::new();
        loop {
            let missing = (self.member.rank.0 + 1..sockets.len() as u32).map(Rank);
            let missing: Vec<Rank> = missing.filter(|peer| sockets[peer.index()].is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            let left = self.left();
            if left.is_zero() {
                let refused = if refusals.is_empty() {
                    String::new()
                } else {
                    format!("; refused meanwhile: {}", refusals.join("; "))
                };
                let missing = self.members.names(&missing);
                return Err(JoinError::Missing { rank, missing, waited: self.begun.elapsed(), refused });
            }
            wait(listener, &pending, left).map_err(io("waiting for ranks to connect"))?;
            match listener.accept() {
                Ok((socket, from)) => {
                    if pending.len() == PENDING {
                        pending.remove(0);
                    }
                    socket.set_nonblocking(true).map_err(io("accepting a connection"))?;
                    pending.push(Greeting { socket, from, bytes: Vec::new() });
                }
                Err(error) if would_block(&error) || error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(io("accepting a connection")(error)),
            }
            let mut unfinished = Vec::with_capacity(pending.len());
            for mut greeting in pending {
                match greeting.read() {
                    Ok(Heard::Part) => unfinished.push(greeting),
                    Ok(Heard::All) => self.judge(greeting, sockets, &mut refusals),
                    Err(reason) => self.refuse(greeting, reason, &mut refusals),
                }
            }
            pending = unfinished;
        }
    }

    /// Takes up the lower ranks' offers, by rank, and tells them so. No rings where there was none, or none that
    /// this rank can use.
    fn take_up(
        &self,
        offers: &[Option<Offer>],
        sockets: &[Option<TcpStream>],
    ) -> Result<Vec<Option<Ends>>, JoinError> {
        let take = |(peer, (offer, socket)): (u32, (&Option<Offer>, &Option<TcpStream>))| {
            let (Some(offer), Some(mut socket)) = (offer, socket.as_ref()) else { return Ok(None) };
            let ends = match self.options.same_host {
                SameHost::Auto => meet::accept(offer, self.member.rank, self.left())
                    .inspect_err(|error| {
                        let peer = self.members.name(Rank(peer));
                        tracing::info!(%peer, %error, "no memory is shared with a rank");
                    })
                    .ok(),
                SameHost::Tcp => None,
            };
            socket.write_all(&[u8::from(ends.is_some())]).map_err(|source| JoinError::Io {
                rank: self.name(),
                doing: "telling a rank whether memory is shared",
                source,
            })?;
            Ok(ends)
        };
        (0..).zip(offers.iter().zip(sockets)).map(take).collect()
    }

    /// Hands rings to the higher ranks that want them: what this rank and all higher ones have.
    fn hand_out(&self, sockets: &[Option<TcpStream>]) -> Result<Vec<Option<Ends>>, JoinError> {
        let rank = self.name();
        let guests = (0..).map(Rank).zip(sockets).skip(self.member.rank.index() + 1);
        let guest = |(rank, socket)| Guest { rank, socket, ends: None, decided: self.meeting.is_none() };
        let mut guests: Vec<Guest<'_>> =
            guests.filter_map(|(rank, socket)| Some(guest((rank, socket.as_ref()?)))).collect();
        while let (Some(meeting), true) = (&self.meeting, guests.iter().any(|guest| !guest.decided)) {
            let left = self.left();
            if left.is_zero() {
                let undecided = guests.iter().filter(|guest| !guest.decided);
                let missing = undecided.map(|guest| self.members.name(guest.rank)).collect();
                let refused = "; it did not say whether it shares memory".to_string();
                return Err(JoinError::Missing { rank, missing, waited: self.begun.elapsed(), refused });
            }
            let served = meeting.serve(&mut guests, left);
            served.map_err(|source| JoinError::Io { rank, doing: "sharing memory", source })?;
        }
        Ok(std::iter::once(None).chain(guests.into_iter().map(|guest| guest.ends)).collect())
    }

    fn judge(&self, mut greeting: Greeting, sockets: &mut [Option<TcpStream>], refusals: &mut Vec<String>) {
        let verdict = Hello::decode(&greeting.bytes, self.member.schema).and_then(|hello| {
            hello.check(&self.hello(hello.member.rank), self.members)?;
            match sockets[hello.member.rank.index()] {
                None => Ok(hello.member.rank),
                Some(_) => Err(format!("rank {} is connected already", self.members.name(hello.member.rank))),
            }
        });
        match verdict {
            Err(reason) => self.refuse(greeting, reason, refusals),
            Ok(peer) => {
                let offer = self.meeting.as_ref().map(|meeting| meeting.offer);
                let reply = Reply { sender: self.member.rank, verdict: Ok(offer) };
                match greeting.socket.write_all(&reply.encode()) {
                    Ok(()) => sockets[peer.index()] = Some(greeting.socket),
                    // It will try again.
                    Err(error) => tracing::debug!(%peer, %error, "a rank hung up before it was accepted"),
                }
            }
        }
    }

    fn refuse(&self, mut greeting: Greeting, reason: String, refusals: &mut Vec<String>) {
        const KEPT: usize = 8;
        tracing::warn!(from = %greeting.from, reason, group = self.options.group, "refused a connection");
        let reply = Reply { sender: self.member.rank, verdict: Err(reason.clone()) };
        if let Err(error) = greeting.socket.write_all(&reply.encode()) {
            tracing::debug!(from = %greeting.from, %error, "could not tell the reason");
        }
        if refusals.len() < KEPT {
            refusals.push(format!("{}: {reason}", greeting.from));
        }
    }
}

/// A connection whose hello is not complete.
struct Greeting {
    socket: TcpStream,
    from: SocketAddr,
    bytes: Vec<u8>,
}

enum Heard {
    Part,
    All,
}

impl Greeting {
    /// Reads what is there; the error is the reason to refuse the connection.
    fn read(&mut self) -> Result<Heard, String> {
        loop {
            let missing = Words::Hello.missing(&self.bytes)?;
            if missing == 0 {
                return Ok(Heard::All);
            }
            let known = self.bytes.len();
            self.bytes.resize(known + missing, 0);
            let read = self.socket.read(&mut self.bytes[known..]);
            self.bytes.truncate(known + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => return Err("hung up in the middle of its greeting".to_string()),
                Ok(_) => {}
                Err(error) if would_block(&error) => return Ok(Heard::Part),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Waits until somebody connects or speaks.
fn wait(listener: &TcpListener, pending: &[Greeting], time: Duration) -> io::Result<()> {
    let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
    polled.extend(pending.iter().map(|greeting| PollFd::new(&greeting.socket, PollFlags::IN)));
    match poll(&mut polled, Some(&timespec(time))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
