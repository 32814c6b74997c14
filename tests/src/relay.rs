//! A relay between two sides of a TCP connection on this machine that can be told, while connections are open, to hold
//! bytes back in either direction, to swallow them, or to refuse: what a network does when it falls apart.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// How often a relay looks at what it was told.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes of each connection's beginning that are kept.
const RECORDED_BYTES: usize = 1 << 10;

/// What becomes of bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They pass.
    Open,
    /// They wait, and pass when the way is open again: packets that are sent again until they arrive.
    Held,
    /// They are lost. A connection that has lost any breaks when the way is open again.
    Swallowed,
}

/// What becomes of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// From whoever connects.
    pub up: Way,
    /// To whoever connects.
    pub down: Way,
    /// Whether new connections are closed at once.
    pub refuses: bool,
}

impl Ways {
    /// Everything passes.
    pub const OPEN: Ways = Ways { up: Way::Open, down: Way::Open, refuses: false };

    /// Both directions alike.
    pub const fn both(way: Way) -> Ways {
        Ways { up: way, down: way, refuses: false }
    }
}

/// A relay. Dropped, it closes what goes through it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    told: Arc<Told>,
}

#[derive(Debug)]
struct Told {
    /// `None`: the relay is gone.
    ways: Mutex<Option<Ways>>,
    to: Mutex<SocketAddr>,
    swallowed: AtomicU64,
    /// What each connection said first, up to [`RECORDED_BYTES`].
    recorded: Mutex<Vec<Vec<u8>>>,
}

impl Told {
    fn ways(&self) -> Option<Ways> {
        *self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, ways: Option<Ways>) {
        *self.ways.lock().unwrap_or_else(PoisonError::into_inner) = ways;
    }

    fn to(&self) -> SocketAddr {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// An open relay to `to`, on a port that the system chooses.
    pub fn to(to: SocketAddr) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (ways, to) = (Mutex::new(Some(Ways::OPEN)), Mutex::new(to));
        let told = Arc::new(Told { ways, to, swallowed: AtomicU64::new(0), recorded: Mutex::default() });
        listener.set_nonblocking(true)?;
        let heard = Arc::clone(&told);
        thread::Builder::new().name("relay".into()).spawn(move || accept(&listener, &heard))?;
        Ok(Relay { address, told })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does so with all connections from now on.
    pub fn tell(&self, ways: Ways) {
        self.told.tell(Some(ways));
    }

    /// Bytes that were lost so far.
    pub fn swallowed(&self) -> u64 {
        self.told.swallowed.load(Ordering::Relaxed)
    }

    /// What each connection said first: bytes from whoever connected, as they passed.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.told.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New connections lead to another place.
    pub fn lead_to(&self, to: SocketAddr) {
        *self.told.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.told.tell(None);
    }
}

fn accept(listener: &TcpListener, told: &Arc<Told>) {
    while let Some(ways) = told.ways() {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(LOOK);
            continue;
        };
        if ways.refuses {
            // Closed by being dropped.
            continue;
        }
        let told = Arc::clone(told);
        // A connection that cannot be served is closed, which is what its sides then see.
        let _unserved = thread::Builder::new().name("relay".into()).spawn(move || serve(&client, &told));
    }
}

/// One connection, until either direction ends. The far side hears of it once the way there is open.
fn serve(client: &TcpStream, told: &Told) {
    while told.ways().is_some_and(|ways| ways.up != Way::Open) {
        thread::sleep(LOOK);
    }
    let Ok(server) = TcpStream::connect(told.to()) else { return };
    let is_ready = |stream: &TcpStream| {
        // The listener's wish not to block may have passed on to what it accepted.
        stream.set_nonblocking(false).is_ok()
            && stream.set_read_timeout(Some(LOOK)).is_ok()
            && stream.set_nodelay(true).is_ok()
    };
    if !is_ready(client) || !is_ready(&server) {
        return;
    }
    let number = {
        let mut recorded = told.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.push(Vec::new());
        recorded.len() - 1
    };
    let record = |bytes: &[u8]| {
        let mut recorded = told.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let room = RECORDED_BYTES - recorded[number].len();
        recorded[number].extend_from_slice(&bytes[..room.min(bytes.len())]);
    };
    thread::scope(|both| {
        both.spawn(|| pass((client, &server), told, (|ways: Ways| ways.up, record)));
        pass((&server, client), told, (|ways: Ways| ways.down, |_: &[u8]| ()));
    });
}

/// Passes bytes in one direction as it is told, until a side ends the connection or it has to break.
fn pass(
    (from, to): (&TcpStream, &TcpStream),
    told: &Told,
    (way, record): (impl Fn(Ways) -> Way, impl Fn(&[u8])),
) {
    let (mut from, mut to) = (from, to);
    let mut bytes = vec![0; 64 << 10];
    let mut has_lost = false;
    loop {
        match told.ways().map(&way) {
            None => break,
            Some(Way::Held) => {
                thread::sleep(LOOK);
                continue;
            }
            Some(Way::Open) if has_lost => break,
            Some(_) => {}
        }
        let count = match from.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // What was on its way when the way was closed waits, or is lost, with the rest.
        let now = loop {
            match told.ways().map(&way) {
                Some(Way::Held) => thread::sleep(LOOK),
                now => break now,
            }
        };
        match now {
            None => break,
            Some(Way::Swallowed) => {
                has_lost = true;
                told.swallowed.fetch_add(count as u64, Ordering::Relaxed);
            }
            Some(_) if count == 0 => {
                // This direction is over; the other one may have more to say.
                let _closed = to.shutdown(Shutdown::Write);
                return;
            }
            Some(_) => {
                record(&bytes[..count]);
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
        }
        if count == 0 {
            // The end was swallowed too: nothing more will come of this side.
            thread::sleep(LOOK);
        }
    }
    let _closed = from.shutdown(Shutdown::Both);
    let _closed = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(300);

    fn line() -> (Relay, TcpStream, TcpStream) {
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(far.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(relay.address()).unwrap();
        let (server, _) = far.accept().unwrap();
        (relay, client, server)
    }

    /// What comes within some time; empty at the end of the connection, `None` where nothing comes.
    fn heard(stream: &mut TcpStream, within: Duration) -> Option<Vec<u8>> {
        stream.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 16];
        match stream.read(&mut bytes) {
            Ok(count) => Some(bytes[..count].to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(_) => Some(Vec::new()),
        }
    }

    #[test]
    fn bytes_pass_wait_and_pass_again_in_order() {
        let (relay, mut client, mut server) = line();
        client.write_all(b"a").unwrap();
        assert_eq!(heard(&mut server, SOON).unwrap(), b"a");
        relay.tell(Ways { up: Way::Held, ..Ways::OPEN });
        client.write_all(b"b").unwrap();
        assert_eq!(heard(&mut server, NEVER), None);
        server.write_all(b"c").unwrap();
        assert_eq!(heard(&mut client, SOON).unwrap(), b"c", "one direction only");
        client.write_all(b"d").unwrap();
        relay.tell(Ways::OPEN);
        let mut late = heard(&mut server, SOON).unwrap();
        if late.len() == 1 {
            late.extend(heard(&mut server, SOON).unwrap());
        }
        assert_eq!(late, b"bd");
        drop(client);
        assert_eq!(heard(&mut server, SOON).unwrap(), b"");
    }

    #[test]
    fn what_is_swallowed_breaks_the_connection_afterwards() {
        let (relay, mut client, mut server) = line();
        relay.tell(Ways::both(Way::Swallowed));
        client.write_all(b"a").unwrap();
        assert_eq!(heard(&mut server, NEVER), None);
        assert_eq!(relay.swallowed(), 1);
        relay.tell(Ways::OPEN);
        assert_eq!(heard(&mut server, SOON).unwrap(), b"");
        assert_eq!(heard(&mut client, SOON).unwrap(), b"");
    }

    #[test]
    fn new_connections_are_refused_and_led_elsewhere() {
        let (relay, _client, _server) = line();
        relay.tell(Ways { refuses: true, ..Ways::OPEN });
        let mut refused = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(heard(&mut refused, SOON).unwrap(), b"");
        relay.tell(Ways::OPEN);
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        relay.lead_to(other.local_addr().unwrap());
        let mut client = TcpStream::connect(relay.address()).unwrap();
        client.write_all(b"x").unwrap();
        let (mut server, _) = other.accept().unwrap();
        assert_eq!(heard(&mut server, SOON).unwrap(), b"x");
    }
}
