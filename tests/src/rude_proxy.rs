//! A proxy between programs and an S3 server that is as rude as networks and stores are: it flips bits in what is read of
//! data objects, cuts answers short, loses them after the request has done its work, answers 503, and takes its time. What
//! it does to a request is a function of the seed, the request and how often it came before, not of the order of arrival.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// What a client is told that came too often.
const SLOW_DOWN: &[u8] = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// Longest head of a message.
const HEAD_BYTES: u64 = 64 << 10;
/// Nobody is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rudeness {
    /// One bit of the answer is another.
    Flipped,
    /// The answer ends in its middle.
    Cut,
    /// The request is carried out, and the answer lost.
    Lost,
    /// It is answered 503 and not carried out.
    Refused,
    /// It takes its time.
    Late,
}

/// A proxy that listens until it is dropped.
#[derive(Debug)]
pub struct RudeProxy {
    address: SocketAddr,
    mood: Arc<Mood>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    Fickle,
    Broken,
    /// Every answer takes so much longer.
    Distant(Duration),
}

#[derive(Debug)]
struct Mood {
    to: String,
    seed: u64,
    temper: Temper,
    over: AtomicBool,
    /// How often each request came.
    seen: Mutex<BTreeMap<String, u64>>,
    done: Mutex<BTreeMap<Rudeness, u64>>,
    requests: AtomicU64,
}

impl RudeProxy {
    /// A proxy before the server at `to` (`host:port`).
    pub fn before(to: &str, seed: u64) -> Result<RudeProxy> {
        RudeProxy::of(to, seed, Temper::Fickle)
    }

    /// One that flips a bit in everything that is read of data objects, every time, and is polite otherwise: the network of
    /// a broken host.
    pub fn of_a_broken_host(to: &str) -> Result<RudeProxy> {
        RudeProxy::of(to, 0, Temper::Broken)
    }

    /// One that is polite and adds `delay` to every answer: a store far away.
    pub fn far_away(to: &str, delay: Duration) -> Result<RudeProxy> {
        RudeProxy::of(to, 0, Temper::Distant(delay))
    }

    fn of(to: &str, seed: u64, temper: Temper) -> Result<RudeProxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let mood = Arc::new(Mood {
            to: to.to_owned(),
            seed,
            temper,
            over: AtomicBool::new(false),
            seen: Mutex::default(),
            done: Mutex::default(),
            requests: AtomicU64::new(0),
        });
        let heard = Arc::clone(&mood);
        thread::Builder::new().name("rude".into()).spawn(move || {
            for client in listener.incoming() {
                if heard.over.load(Ordering::Relaxed) {
                    break;
                }
                let (Ok(client), heard) = (client, Arc::clone(&heard)) else { continue };
                // A connection that breaks is one more rudeness: the client asks again.
                drop(thread::Builder::new().name("rude".into()).spawn(move || heard.serve(&client)));
            }
        })?;
        Ok(RudeProxy { address, mood })
    }

    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it has done so far, and how often.
    pub fn done(&self) -> BTreeMap<Rudeness, u64> {
        self.mood.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Names of the objects that were written so far, each once.
    pub fn written(&self) -> Vec<String> {
        let seen = self.mood.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let name =
            |request: &String| Some(request.strip_prefix("PUT ")?.split(['?', ' ']).next()?.to_owned());
        let mut written: Vec<String> = seen.keys().filter_map(name).collect();
        written.dedup();
        written
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.mood.requests.load(Ordering::Relaxed)
    }
}

impl Drop for RudeProxy {
    fn drop(&mut self) {
        self.mood.over.store(true, Ordering::Relaxed);
        // The listener looks up once more, and goes.
        let _closed = TcpStream::connect(self.address);
    }
}

/// A request as it came.
struct Request {
    /// Method, target and range: what it is known by.
    name: String,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Mood {
    /// One request, and the connection is over.
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        let Some(request) = read_request(client)? else { return Ok(()) };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (rudeness, die) = self.rudeness_to(&request.name);
        if let Some(rudeness) = rudeness {
            *self.done.lock().unwrap_or_else(PoisonError::into_inner).entry(rudeness).or_default() += 1;
        }
        let mut client = client;
        if rudeness == Some(Rudeness::Refused) {
            return client.write_all(SLOW_DOWN);
        }
        if rudeness == Some(Rudeness::Late) {
            thread::sleep(Duration::from_millis(die % 400));
        }
        let mut answer = self.ask(&request)?;
        let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        let length = answer.len() - body;
        match rudeness {
            Some(Rudeness::Lost) => return Ok(()),
            Some(Rudeness::Flipped) if length > 0 => {
                answer[body + (die >> 3) as usize % length] ^= 1 << (die % 8);
            }
            Some(Rudeness::Cut) => answer.truncate(body + length / 2),
            _ => {}
        }
        client.write_all(&answer)
    }

    /// What becomes of the request of this name, and a number for its particulars.
    fn rudeness_to(&self, name: &str) -> (Option<Rudeness>, u64) {
        let nth = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let nth = seen.entry(name.to_owned()).or_default();
            *nth += 1;
            *nth
        };
        if let Temper::Distant(delay) = self.temper {
            thread::sleep(delay);
            return (None, 0);
        }
        let die = dice(self.seed, name, nth);
        let is_data = name.starts_with("GET ") && name.contains("/ckpt/data/");
        if self.temper == Temper::Broken {
            return (is_data.then_some(Rudeness::Flipped), die);
        }
        let rudeness = match (die >> 40) % 100 {
            // A read is made once more if it is not what was written, so no part of an object is altered twice.
            0..40 if is_data && nth == 1 => Some(Rudeness::Flipped),
            40..80 if is_data && nth == 1 => Some(Rudeness::Cut),
            80..88 => Some(Rudeness::Lost),
            88..96 => Some(Rudeness::Refused),
            96..100 => Some(Rudeness::Late),
            _ => None,
        };
        (rudeness, die)
    }

    /// The server's whole answer.
    fn ask(&self, request: &Request) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(&self.to)?;
        server.set_read_timeout(Some(PATIENCE))?;
        server.write_all(&request.head)?;
        server.write_all(&request.body)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Reads a request; its connection is to be closed after it. `None` where none came.
fn read_request(client: &TcpStream) -> io::Result<Option<Request>> {
    let mut reader = BufReader::new(client);
    let mut lines = Vec::new();
    let (mut length, mut range, mut bytes) = (0, String::new(), 0);
    loop {
        let mut line = String::new();
        bytes += reader.by_ref().take(HEAD_BYTES).read_line(&mut line)? as u64;
        if line.is_empty() || bytes > HEAD_BYTES {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        let (key, value) = line.split_once(':').unwrap_or_default();
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
            "range" => range = value.trim().to_owned(),
            "transfer-encoding" => return Err(io::Error::other("a request in chunks")),
            "connection" => continue,
            _ => {}
        }
        lines.push(line);
    }
    let Some(first) = lines.first() else { return Ok(None) };
    let name = format!("{} {range}", first.trim_end_matches(" HTTP/1.1"));
    let head = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).into_bytes();
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { name, head, body }))
}

/// A number that follows from the seed, a name and how often it came: FNV-1a, then the last steps of SplitMix64 (Steele, Lea
/// and Flood 2014).
fn dice(seed: u64, name: &str, nth: u64) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    let mut z = hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ nth.rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
