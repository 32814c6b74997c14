//! How fast bytes move one way between two processes of this host: raw TCP over loopback, and frames over TCP and over
//! shared memory. Every way is measured in every round, so that a noisy machine disturbs all alike; medians are told.
//!
//! `cargo run --release -p polygram-proto --example stream -- [MB a measurement] [rounds] [way]`

use std::error::Error;
use std::io::{Read, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polygram_domain::embedding::RowType;
use polygram_domain::{Cell, Generation, Step};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::{over_rings, over_tcp};
use polygram_row_exchange::frame::{Header, Kind, Outgoing, Piece};
use polygram_row_exchange::message::{Message, WelcomeBody};
use polygram_row_exchange::pool::Buffers;
use polygram_row_exchange::same_host::{Meeting, accept};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes of a message or of a frame's payload.
const NO_ROWS: BlockShape = BlockShape { sites: 1, width: 1, kind: RowType::F32 };
const MESSAGE_BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const WAYS: [(&str, &str); 4] = [
    ("raw-1", "raw TCP, reno, 1 connection"),
    ("raw-2", "raw TCP, reno, 2 connections"),
    ("framed-tcp", "frames over TCP"),
    ("framed-memory", "frames over shared memory"),
];

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, way, address, messages] = &args[..]
        && role == "sender"
    {
        return send(way, address.parse()?, messages.parse()?);
    }
    let number = |at: usize, default: usize| args.get(at).map_or(Ok(default), |arg| arg.parse());
    let (megabytes, rounds) = (number(0, 1000)?, number(1, 7)?);
    let messages = (megabytes * 1_000_000).div_ceil(MESSAGE_BYTES);
    let mut measured = [const { Vec::new() }; WAYS.len()];
    for _ in 0..rounds.max(1) {
        let only = |way: &str| args.get(2).is_none_or(|wanted| wanted == way);
        for ((way, _), measured) in WAYS.iter().zip(&mut measured).filter(|((way, _), _)| only(way)) {
            measured.push(measure(way, messages)?);
        }
    }
    for ((_, words), measured) in WAYS.iter().zip(measured).filter(|(_, measured)| !measured.is_empty()) {
        let sorted = |pick: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = measured.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (rates, costs) = (sorted(|(rate, _)| *rate), sorted(|(_, cost)| *cost));
        let (low, median, high) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
        let cost = 1000.0 * costs[costs.len() / 2];
        writeln!(
            stdout(),
            "{words:<30} {median:6.2} GB/s ({low:.2} to {high:.2}), {cost:5.0} ms of both processes' CPU a GB"
        )?;
    }
    Ok(())
}

/// Processor time of this process and of the children it has waited for.
fn cpu_seconds() -> Outcome<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(4).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_A_SECOND)
}

fn spawn_sender(way: &str, address: SocketAddr, messages: usize) -> Outcome<Child> {
    let program = std::env::current_exe()?;
    let args = ["sender".to_owned(), way.to_owned(), address.to_string(), messages.to_string()];
    Ok(Command::new(program).args(args).stdin(Stdio::null()).spawn()?)
}

/// One way's GB/s from the first byte to the last, and CPU seconds of both ends a GB. This process receives.
fn measure(way: &str, messages: usize) -> Outcome<(f64, f64)> {
    let before = cpu_seconds()?;
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut child = spawn_sender(way, listener.local_addr()?, messages)?;
    let seconds = match way.strip_prefix("raw-") {
        Some(connections) => receive_raw(&listener, connections.parse()?)?,
        None => runtime()?.block_on(receive_frames(listener, way, messages))?,
    };
    if !child.wait()?.success() {
        return Err("the sender failed".into());
    }
    let gigabytes = (messages * MESSAGE_BYTES) as f64 / 1e9;
    Ok((gigabytes / seconds, (cpu_seconds()? - before) / gigabytes))
}

fn send(way: &str, address: SocketAddr, messages: usize) -> Outcome<()> {
    match way.strip_prefix("raw-") {
        Some(connections) => send_raw(address, connections.parse()?, messages),
        None => runtime()?.block_on(send_frames(address, way, messages)),
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn tune(stream: StdStream) -> Outcome<StdStream> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_congestion(&stream, "reno")?;
    Ok(stream)
}

fn send_raw(address: SocketAddr, connections: usize, messages: usize) -> Outcome<()> {
    let message = vec![1u8; MESSAGE_BYTES];
    let streams: Vec<StdStream> =
        (0..connections).map(|_| tune(StdStream::connect(address)?)).collect::<Outcome<_>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .into_iter()
            .enumerate()
            .map(|(i, mut stream)| {
                let (message, share) = (&message, (messages + connections - 1 - i) / connections);
                scope.spawn(move || (0..share).try_for_each(|_| stream.write_all(message)))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a sending thread failed")??;
        }
        Ok(())
    })
}

fn receive_raw(listener: &StdListener, connections: usize) -> Outcome<f64> {
    let streams: Vec<StdStream> =
        (0..connections).map(|_| tune(listener.accept()?.0)).collect::<Outcome<_>>()?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    let mut buffer = vec![0u8; MESSAGE_BYTES];
                    while stream.read(&mut buffer)? > 0 {}
                    std::io::Result::Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a receiving thread failed")??;
        }
        Ok(started.elapsed().as_secs_f64())
    })
}

fn header(kind: Kind) -> Header {
    Header { kind, chunk: 0, run: 1, generation: Generation(1), step: Step(0), cell: Cell(0) }
}

async fn send_frames(address: SocketAddr, way: &str, messages: usize) -> Outcome<()> {
    let buffers = Buffers::new(64 << 20);
    let (mut reader, mut writer) = over_tcp(TcpStream::connect(address).await?, PATIENCE, &buffers);
    if way == "framed-memory" {
        let (incoming, payload) = reader.read().await?;
        let Message::Welcome(welcome) = Message::decode(incoming.header.kind, payload, NO_ROWS)? else {
            return Err("no welcome".into());
        };
        let offer = welcome.offer.ok_or("no offer")?;
        (_, writer) = over_rings(accept(&offer).await?, PATIENCE, &buffers);
    }
    let mut words = buffers.take(MESSAGE_BYTES / 4);
    words.fill(1);
    let words = std::sync::Arc::new(words);
    for _ in 0..messages {
        let piece = Piece::Shared(std::sync::Arc::clone(&words), 0..words.len());
        writer.write(&Outgoing::seal(&header(Kind::Push), vec![piece])?).await?;
    }
    // The receiver hangs up once it has everything.
    let _hung_up = reader.read().await;
    Ok(())
}

async fn receive_frames(listener: StdListener, way: &str, messages: usize) -> Outcome<f64> {
    listener.set_nonblocking(true)?;
    let (stream, _) = TcpListener::from_std(listener)?.accept().await?;
    let buffers = Buffers::new(64 << 20);
    let (mut reader, mut writer) = over_tcp(stream, PATIENCE, &buffers);
    if way == "framed-memory" {
        let meeting = Meeting::open()?;
        let welcome = WelcomeBody {
            shard: polygram_domain::ShardIndex(0),
            shards: 1,
            version: Step(0),
            window_bytes: 1,
            silence_ms: 1,
            offer: Some(meeting.offer()),
        };
        let (kind, pieces) = Message::Welcome(welcome).encode();
        writer.write(&Outgoing::seal(&header(kind), pieces)?).await?;
        (reader, _) = over_rings(meeting.meet().await?, PATIENCE, &buffers);
    }
    let started = Instant::now();
    for _ in 0..messages {
        let (_, payload) = reader.read().await?;
        if payload.len() * 4 != MESSAGE_BYTES {
            return Err("a frame of another size".into());
        }
    }
    Ok(started.elapsed().as_secs_f64())
}
