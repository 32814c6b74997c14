//! Shards in processes of their own: this program again, as `bench serve`.
//!
//! The parent writes one JSON line (index, run file) to the child's standard input and keeps it open: its end is the
//! child's. The child answers with one line when it serves, and with one when it has ended.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use polygram_domain::{Generation, RunFile, ShardIndex};
use polygram_handshake::LinkKey;
use polygram_process::end_with_parent;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::error::BenchError;
use super::tcp;
use crate::config::ShardConfig;
use crate::server::Door;
use crate::shard::Shard;

/// Generation of every measured run.
pub(super) const GENERATION: Generation = Generation(1);

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    index: u32,
    run_file: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    rows: SocketAddr,
    tcp: SocketAddr,
}

/// How a shard's process ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Updates in its rows.
    pub(super) version: u64,
    /// Written rows, as of the last closed step.
    pub(super) written_rows: u64,
    /// Why, where it was not told to.
    pub(super) error: Option<String>,
}

/// A shard's process. It ends with its value.
#[derive(Debug)]
pub(super) struct Process {
    index: u32,
    child: Child,
    /// Closed: the child ends.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Where it serves rows.
    pub(super) rows: SocketAddr,
    /// Where it answers for the limit.
    pub(super) tcp: SocketAddr,
    /// From its start to its readiness.
    pub(super) start_seconds: f64,
}

impl Process {
    /// Starts shard `index` of each of `shards` and waits until all of them serve.
    pub(super) fn start_all(file: &RunFile, shards: u32) -> Result<Vec<Process>, BenchError> {
        let run_file = file.to_toml()?;
        let started = (0..shards).map(|index| Starting::spawn(Order { index, run_file: run_file.clone() }));
        let started = started.collect::<Result<Vec<Starting>, _>>()?;
        started.into_iter().map(Starting::ready).collect()
    }

    /// Memory that it has in use.
    pub(super) fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        1024 * kibibytes.unwrap_or(0)
    }

    /// Tells it to end, and what it said last.
    pub(super) fn end(mut self) -> Result<Ended, BenchError> {
        drop(self.stdin.take());
        let ended = answer(self.index, &mut self.stdout)?;
        self.child.wait().map_err(BenchError::io("cannot wait for a shard's process"))?;
        Ok(ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Ended already, or it has no more to say.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

struct Starting {
    index: u32,
    child: Child,
    started: Instant,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Starting {
    fn spawn(order: Order) -> Result<Starting, BenchError> {
        let started = Instant::now();
        let program =
            std::env::current_exe().map_err(BenchError::io("cannot tell where this program lies"))?;
        let mut command = Command::new(program);
        let mut child = end_with_parent(&mut command)
            .args(["bench", "serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::io("cannot start a shard's process"))?;
        let lost = || BenchError::Process { index: order.index, what: "has no pipes".into() };
        let mut stdin = child.stdin.take().ok_or_else(lost)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(lost)?);
        let line = serde_json::to_string(&order)? + "\n";
        stdin.write_all(line.as_bytes()).map_err(BenchError::io("cannot give a shard its order"))?;
        Ok(Starting { index: order.index, child, started, stdin, stdout })
    }

    fn ready(mut self) -> Result<Process, BenchError> {
        let Ready { rows, tcp } = answer(self.index, &mut self.stdout)?;
        let Starting { index, child, started, stdin, stdout } = self;
        let start_seconds = started.elapsed().as_secs_f64();
        Ok(Process { index, child, stdin: Some(stdin), stdout, rows, tcp, start_seconds })
    }
}

fn answer<T: for<'a> Deserialize<'a>>(index: u32, stdout: &mut impl BufRead) -> Result<T, BenchError> {
    let mut line = String::new();
    stdout.read_line(&mut line).map_err(BenchError::io("cannot hear a shard's process"))?;
    if line.is_empty() {
        return Err(BenchError::Process {
            index,
            what: "ended without an answer; its own words are above".into(),
        });
    }
    Ok(serde_json::from_str(&line)?)
}

/// Of the token that worker and shards of a measurement share.
pub(super) fn link_key() -> LinkKey {
    LinkKey::of_secret(b"a measurement on this machine")
}

/// The child's side.
pub(super) fn serve() -> Result<(), BenchError> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(BenchError::io("cannot read an order"))?;
    let Order { index, run_file } = serde_json::from_str(&line)?;
    let spec = RunFile::parse(&run_file, "the order", &[])?.resolve()?;
    let shard = Shard::new(ShardConfig::of(&spec, ShardIndex(index), GENERATION))?;
    let plain = TcpListener::bind("127.0.0.1:0").map_err(BenchError::io("cannot listen"))?;
    let tcp = plain.local_addr().map_err(BenchError::io("cannot listen"))?;
    tcp::serve(plain).map_err(BenchError::io("cannot serve plain bytes"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(BenchError::io("cannot start the I/O runtime"))?;
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.map_err(BenchError::io("cannot listen"))?;
        let rows = listener.local_addr().map_err(BenchError::io("cannot listen"))?;
        say(&Ready { rows, tcp })?;
        let status = shard.status();
        let door = Door::open(listener, shard.config(), link_key());
        let served = shard.serve(door, parent_left()?).await;
        let last = status.borrow();
        let error = served.err().map(|error| error.to_string());
        Ok::<Ended, BenchError>(Ended { version: last.version.0, written_rows: last.written_rows, error })
    })?;
    say(&ended)
}

/// Resolves when standard input ends.
fn parent_left() -> Result<impl Future<Output = ()> + Send, BenchError> {
    let (left, parent) = oneshot::channel::<()>();
    let wait = move || {
        // Whatever ends the input ends the child.
        let _end = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(left);
    };
    std::thread::Builder::new().spawn(wait).map_err(BenchError::io("cannot watch standard input"))?;
    Ok(async {
        let _left = parent.await;
    })
}

fn say(value: &impl Serialize) -> Result<(), BenchError> {
    let line = serde_json::to_string(value)? + "\n";
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(BenchError::io("cannot answer"))
}
