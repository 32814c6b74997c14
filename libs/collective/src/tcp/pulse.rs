//! Heartbeats between ranks of different hosts: a connection of its own for each two ranks, and one thread that
//! writes a byte to each of them now and then and notes which bring none.
//!
//! The connections of calls cannot tell: a rank that computes says nothing on them for minutes, and only its own
//! thread may write there. What always holds: the thread never touches those connections; the end of a peer's pulse is
//! not a failure (the peer may be done); a process that stood still counts that time as one look.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use polygram_domain::Rank;
use polygram_process::JoinedThread;
use rustix::event::{PollFd, PollFlags, poll};

use super::mesh::Mesh;
use super::timeout::timespec;
use crate::abort::AbortTarget;

/// Looks within the time after which a peer is lost; a byte is written at every second one.
const LOOKS: u32 = 8;

/// The heartbeats of one rank. Its thread ends with it: fields are dropped in their order, and the thread is joined last.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    /// Its end wakes and ends the thread.
    _stop: UnixStream,
    _thread: JoinedThread,
}

#[derive(Debug, Default)]
struct Shared {
    /// The first peer that was not heard, a rank of the run, and for how long.
    unheard: OnceLock<(Rank, Duration)>,
    /// Groups whose calls end then.
    groups: Mutex<Vec<Weak<Mesh>>>,
}

/// A peer as the thread sees it.
struct Peer {
    rank: Rank,
    socket: TcpStream,
    /// Looks in a row that found nothing.
    silent: u32,
}

impl Pulse {
    /// Watches the ranks at the other ends of `sockets`, each lost after `detection` without a heartbeat.
    pub(super) fn start(sockets: Vec<(Rank, TcpStream)>, detection: Duration) -> io::Result<Pulse> {
        let (stop, stopped) = UnixStream::pair()?;
        let mut peers = Vec::with_capacity(sockets.len());
        for (rank, socket) in sockets {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            peers.push(Peer { rank, socket, silent: 0 });
        }
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let work = move || watch(peers, detection, &watched, &stopped);
        let thread = JoinedThread::spawn("pulse", work)?;
        Ok(Pulse { shared, _stop: stop, _thread: thread })
    }

    /// A call of the group of `mesh` ends when a peer is not heard.
    pub(super) fn wakes(&self, mesh: &Arc<Mesh>) {
        let mut groups = self.shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(mesh));
    }

    /// The peer that was not heard, and for how long.
    pub(super) fn unheard(&self) -> Option<(Rank, Duration)> {
        self.shared.unheard.get().copied()
    }
}

fn watch(mut peers: Vec<Peer>, detection: Duration, shared: &Shared, stopped: &UnixStream) {
    let period = (detection / LOOKS).max(Duration::from_millis(1));
    let mut looks = 0u32;
    loop {
        if looks.is_multiple_of(2) {
            peers.retain(|peer| beat(&peer.socket));
        }
        if !sleep(stopped, period) {
            return;
        }
        looks = looks.wrapping_add(1);
        peers.retain_mut(Peer::look);
        if let Some(peer) = peers.iter().find(|peer| peer.silent >= LOOKS) {
            tracing::warn!(rank = %peer.rank, ?detection, "a rank sends no heartbeat");
            // Set once: this thread alone does, and ends.
            let _first = shared.unheard.set((peer.rank, detection));
            let groups = shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
            groups.iter().filter_map(Weak::upgrade).for_each(|mesh| mesh.interrupt());
            return;
        }
    }
}

/// Sleeps for `time`; false when the pulse is over.
fn sleep(stopped: &UnixStream, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(0) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return false,
            Err(error) => {
                tracing::error!(%error, "heartbeats end here");
                return false;
            }
        }
    }
}

/// Writes a heartbeat; false when the peer has ended its side. One that takes nothing has enough of them.
fn beat(mut socket: &TcpStream) -> bool {
    match socket.write_all(&[1]) {
        Ok(()) => true,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

impl Peer {
    /// Takes what has come; false when the peer has ended its side: its other connections say how.
    fn look(&mut self) -> bool {
        self.silent += 1;
        let mut bytes = [0; 64];
        loop {
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => self.silent = 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const DETECTION: Duration = Duration::from_millis(400);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn wait_for(pulse: &Pulse) -> (Rank, Duration) {
        let begun = Instant::now();
        loop {
            if let Some(unheard) = pulse.unheard() {
                return unheard;
            }
            assert!(begun.elapsed() < PATIENCE, "a silent peer was not noticed");
            std::thread::yield_now();
        }
    }

    /// Two that live hear each other; one that is there and says nothing is named; one that leaves is not.
    #[test]
    fn who_says_nothing_is_named() {
        let ((a, b), (c, silent), (d, left)) = (pair(), pair(), pair());
        drop(left);
        let other = Pulse::start(vec![(Rank(0), b)], DETECTION).unwrap();
        let begun = Instant::now();
        let pulse = Pulse::start(vec![(Rank(1), a), (Rank(2), c), (Rank(3), d)], DETECTION).unwrap();
        assert_eq!(wait_for(&pulse), (Rank(2), DETECTION));
        assert!(begun.elapsed() >= DETECTION / 2, "{:?}", begun.elapsed());
        assert_eq!(other.unheard(), None);
        drop((pulse, silent));
    }

    #[test]
    fn the_thread_ends_with_its_pulse() {
        let (near, mut far) = pair();
        drop(Pulse::start(vec![(Rank(1), near)], Duration::from_secs(3600)).unwrap());
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        assert!(rest.len() <= 1, "a heartbeat, and the end");
    }
}
