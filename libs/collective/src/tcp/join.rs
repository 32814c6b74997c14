//! Forming the mesh: dial the lower ranks, be dialled by the higher ones, share memory with those on this host, all
//! before one deadline.
//!
//! Nobody waits in a circle: rank 0 dials nobody and so answers at once, rank 1 then gets its answer and answers
//! in turn, and so on. Strangers (another run, a port scanner) are refused or ignored, and hold nobody up: they are
//! bounded in number, time and bytes, and a failing `accept` is tried again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use polygram_domain::Rank;
use polygram_domain::embedding::SameHost;
use polygram_handshake::{GREETING_TIMEOUT, Proof, Strangers, most_waiting};
use polygram_same_host::Offer;
use rustix::event::{PollFd, PollFlags, poll};

use super::handshake::{Challenge, Hello, NAME_LIMIT, Purpose, Reply, Words, is_reply, respond};
use super::joined::Joined;
use super::local_rank::Home;
use super::meet::{self, Ends, Guest, Meeting};
use super::membership::Membership;
use super::timeout::timespec;
use crate::error::JoinError;
use crate::group::Options;
use crate::members::Members;

/// Time between attempts to reach a rank that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);
/// The longest wait for one attempt to connect.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Who connects and says nothing is looked at this often.
const LOOK: Duration = Duration::from_millis(500);

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
    strangers: Strangers,
}

/// The connections to one rank that are made so far.
#[derive(Default)]
struct Made {
    messages: Option<TcpStream>,
    pulse: Option<TcpStream>,
}

impl Made {
    fn place(&mut self, purpose: Purpose) -> &mut Option<TcpStream> {
        match purpose {
            Purpose::Messages => &mut self.messages,
            Purpose::Pulse => &mut self.pulse,
        }
    }
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
    let strangers = Strangers::default();
    let begun = Instant::now();
    let joining = Joining { member, members, addresses, options, meeting, begun, deadline, strangers };
    let mut made = Vec::with_capacity(addresses.len());
    let mut offers = Vec::with_capacity(addresses.len());
    for peer in 0..member.rank.0 {
        let (socket, offer) = joining.dial(Rank(peer), Purpose::Messages)?;
        let pulse = match options.link_detection {
            Some(_) => Some(joining.dial(Rank(peer), Purpose::Pulse)?.0),
            None => None,
        };
        made.push(Made { messages: Some(socket), pulse });
        offers.push(offer);
    }
    made.resize_with(addresses.len(), Made::default);
    joining.answer(&listener, &mut made)?;
    let (sockets, pulses): (Vec<_>, Vec<_>) =
        made.into_iter().map(|made| (made.messages, made.pulse)).unzip();
    let mut ends = joining.take_up(&offers, &sockets)?;
    ends.extend(joining.hand_out(&sockets)?);
    let joined = sockets.into_iter().zip(ends).zip(pulses);
    let join = |((socket, ends), pulse): ((Option<TcpStream>, Option<Ends>), Option<TcpStream>)| {
        // A host does not lose itself.
        let pulse = pulse.filter(|_| ends.is_none());
        socket.map(|socket| Joined { socket, ends, pulse })
    };
    Ok(joined.map(join).collect())
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

    fn dial(&self, peer: Rank, purpose: Purpose) -> Result<(TcpStream, Option<Offer>), JoinError> {
        let address = self.addresses[peer.index()];
        loop {
            let attempt = self.attempt(peer, address, purpose);
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

    fn attempt(
        &self,
        peer: Rank,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<(TcpStream, Option<Offer>), Attempt> {
        let failed = |error: io::Error| Attempt::Failed(error.to_string());
        let time = self.left().min(ATTEMPT).max(RETRY);
        let mut socket = TcpStream::connect_timeout(&address, time).map_err(failed)?;
        socket.set_write_timeout(Some(time)).map_err(failed)?;
        let hello = Hello { purpose, ..self.hello(peer) }.encode();
        socket.write_all(&hello).map_err(failed)?;
        let mut bytes = self.read(&mut socket, Words::Answer)?;
        let mut expected = None;
        if !is_reply(&bytes) {
            let (response, proof) = respond(&self.member.key, &hello, &bytes).map_err(Attempt::Refused)?;
            socket.write_all(&response).map_err(failed)?;
            bytes = self.read(&mut socket, Words::Reply)?;
            expected = Some(proof);
        }
        let reply = Reply::decode(&bytes).map_err(Attempt::Refused)?;
        let (proof, offer) = reply.verdict.map_err(Attempt::Refused)?;
        if expected != Some(proof) {
            return Err(Attempt::Refused("whoever listens there does not know the run's token".to_string()));
        }
        if reply.sender == peer {
            Ok((socket, offer))
        } else {
            Err(Attempt::Refused(format!("rank {} answers there", self.members.name(reply.sender))))
        }
    }

    /// Reads a message of the listener, and not a byte more: the first message of a call can be right behind it.
    fn read(&self, socket: &mut TcpStream, words: Words) -> Result<Vec<u8>, Attempt> {
        let failed = |error: io::Error| Attempt::Failed(error.to_string());
        let mut bytes = Vec::new();
        loop {
            let missing = words.missing(&bytes).map_err(Attempt::Refused)?;
            if missing == 0 {
                return Ok(bytes);
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
    }

    /// Whether all that rank `peer` connects for is there.
    fn is_complete(&self, made: &Made) -> bool {
        made.messages.is_some() && (made.pulse.is_some() || self.options.link_detection.is_none())
    }

    /// Fills the empty places of the higher ranks.
    fn answer(&self, listener: &TcpListener, made: &mut [Made]) -> Result<(), JoinError> {
        let rank = self.name();
        let io = |doing| move |source| JoinError::Io { rank, doing, source };
        listener.set_nonblocking(true).map_err(io("listening"))?;
        let mut pending: Vec<Greeting> = Vec::new();
        let mut refusals = Vec::new();
        let mut failures = 0u32;
        loop {
            let missing = (self.member.rank.0 + 1..made.len() as u32).map(Rank);
            let missing: Vec<Rank> = missing.filter(|peer| !self.is_complete(&made[peer.index()])).collect();
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
            wait(listener, &pending, left.min(LOOK)).map_err(io("waiting for ranks to connect"))?;
            match listener.accept().and_then(|(socket, from)| Greeting::new(socket, from)) {
                Ok(greeting) => {
                    failures = 0;
                    self.make_room(&mut pending);
                    pending.push(greeting);
                }
                Err(error) if would_block(&error) => {}
                // The peer was gone before it was accepted, or the process is out of files: tried again.
                Err(error) => {
                    if failures == 0 {
                        tracing::error!(%error, "cannot accept a connection; trying again until the deadline");
                    }
                    failures += 1;
                    thread::sleep(RETRY.min(left));
                }
            }
            let mut unfinished = Vec::with_capacity(pending.len());
            for mut greeting in pending {
                match greeting.advance(self) {
                    Ok(Heard::Part) if greeting.since.elapsed() < GREETING_TIMEOUT => {
                        unfinished.push(greeting)
                    }
                    Ok(Heard::Part) => {
                        self.refuse_stranger(greeting, "it did not finish its handshake", &mut refusals)
                    }
                    Ok(Heard::All(hello, proof)) => {
                        self.judge(greeting, (&hello, proof), made, &mut refusals)
                    }
                    Err(reason) => self.refuse_stranger(greeting, &reason, &mut refusals),
                }
            }
            pending = unfinished;
        }
    }

    /// Ends the oldest connection that said least, where there are too many. A rank that is meant tries again.
    fn make_room(&self, pending: &mut Vec<Greeting>) {
        // Messages and heartbeats of every rank.
        if pending.len() < most_waiting(2 * self.addresses.len()) {
            return;
        }
        let silent = pending.iter().position(|greeting| greeting.challenge.is_none());
        let greeting = pending.remove(silent.unwrap_or(0));
        self.strangers.note(greeting.from, &"too many connections have not proved who they are");
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

    /// Answers a rank that has proved that it is of the run.
    fn judge(
        &self,
        mut greeting: Greeting,
        (hello, proof): (&Hello, Proof),
        made: &mut [Made],
        refusals: &mut Vec<String>,
    ) {
        let verdict = hello.check(&self.hello(hello.sender), self.members).and_then(|()| {
            let place = made[hello.sender.index()].place(hello.purpose);
            if place.is_none() {
                Ok(place)
            } else {
                Err(format!("rank {} is connected already", self.members.name(hello.sender)))
            }
        });
        match verdict {
            Err(reason) => {
                tracing::warn!(from = %greeting.from, reason, group = self.options.group, "refused a rank");
                self.refuse(greeting, reason, refusals);
            }
            Ok(place) => {
                let offer = self.meeting.as_ref().map(|meeting| meeting.offer);
                let offer = offer.filter(|_| hello.purpose == Purpose::Messages);
                let reply = Reply { sender: self.member.rank, verdict: Ok((proof, offer)) };
                match greeting.socket.write_all(&reply.encode()) {
                    Ok(()) => *place = Some(greeting.socket),
                    // It will try again.
                    Err(error) => {
                        tracing::debug!(peer = %hello.sender, %error, "a rank hung up before it was accepted");
                    }
                }
            }
        }
    }

    /// Refuses who has not proved that it is of the run.
    fn refuse_stranger(&self, greeting: Greeting, reason: &str, refusals: &mut Vec<String>) {
        self.strangers.note(greeting.from, &reason);
        self.refuse(greeting, reason.to_string(), refusals);
    }

    fn refuse(&self, mut greeting: Greeting, reason: String, refusals: &mut Vec<String>) {
        const KEPT: usize = 8;
        let reply = Reply { sender: self.member.rank, verdict: Err(reason.clone()) };
        if let Err(error) = greeting.socket.write_all(&reply.encode()) {
            tracing::debug!(from = %greeting.from, %error, "could not tell the reason");
        }
        if refusals.len() < KEPT {
            refusals.push(format!("{}: {reason}", greeting.from));
        }
    }
}

/// A connection in the middle of its handshake.
struct Greeting {
    socket: TcpStream,
    from: SocketAddr,
    since: Instant,
    /// What came of the present message.
    bytes: Vec<u8>,
    /// After its hello.
    challenge: Option<(Hello, Challenge)>,
}

enum Heard {
    Part,
    /// Its hello, and the proof that it is owed.
    All(Hello, Proof),
}

impl Greeting {
    fn new(socket: TcpStream, from: SocketAddr) -> io::Result<Greeting> {
        socket.set_nonblocking(true)?;
        Ok(Greeting { socket, from, since: Instant::now(), bytes: Vec::new(), challenge: None })
    }

    /// Reads what is there, and answers it; the error is the reason to refuse the connection.
    fn advance(&mut self, joining: &Joining<'_>) -> Result<Heard, String> {
        if self.challenge.is_none() {
            if !self.read(Words::Hello)? {
                return Ok(Heard::Part);
            }
            let bytes = std::mem::take(&mut self.bytes);
            let hello = Hello::decode(&bytes, joining.member.version)?;
            let challenge = Challenge::to(bytes).map_err(|error| error.to_string())?;
            self.socket.write_all(&challenge.encode()).map_err(|error| error.to_string())?;
            self.challenge = Some((hello, challenge));
        }
        if !self.read(Words::Response)? {
            return Ok(Heard::Part);
        }
        let Some((hello, challenge)) = self.challenge.take() else { return Ok(Heard::Part) };
        let proof = challenge.verify(&joining.member.key, &self.bytes)?;
        Ok(Heard::All(hello, proof))
    }

    /// Reads towards a whole message; whether it is there.
    fn read(&mut self, words: Words) -> Result<bool, String> {
        loop {
            let missing = words.missing(&self.bytes)?;
            if missing == 0 {
                return Ok(true);
            }
            let known = self.bytes.len();
            self.bytes.resize(known + missing, 0);
            let read = self.socket.read(&mut self.bytes[known..]);
            self.bytes.truncate(known + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => return Err("hung up in the middle of its handshake".to_string()),
                Ok(_) => {}
                Err(error) if would_block(&error) => return Ok(false),
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
