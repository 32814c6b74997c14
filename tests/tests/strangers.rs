//! Strangers at every port of a run: whoever does not know the run's token changes nothing, costs bounded memory, and is
//! named once in the log of the process that he came to.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{ByHand, Cluster, Engine, Slot, Undisturbed};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

/// Long enough for all that comes.
const RUN: [&str; 6] = [
    "training.steps=8000",
    "checkpoint.every_steps=1000",
    "evaluation.every_steps=4000",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=20",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);
/// Connections that are open at one port at once.
const FLOOD: usize = 1000;
/// A process may grow by so much beside what its work needs.
const MEMORY_BYTES: u64 = 64 << 20;
/// A stranger waits no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a shard may say to a stranger.
const REFUSED: u32 = 3;
const CHALLENGE: u32 = 18;
/// What a process says of the first stranger at an address.
const NAMED: &str = "did not prove that it belongs to the run";

/// TCP addresses that a process listens on.
fn listening(pid: u32) -> Result<Vec<SocketAddr>> {
    let mut own = BTreeSet::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed meanwhile.
        let Ok(target) = fs::read_link(descriptor?.path()) else { continue };
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        own.extend(inode.map(str::to_owned));
    }
    let mut addresses = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/net/tcp"))?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Local address, state (0A: listening), inode.
        if fields[3] == "0A" && own.contains(fields[9]) {
            let (ip, port) = fields[1].split_once(':').context("an address without a port")?;
            let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16)?.swap_bytes());
            addresses.push(SocketAddr::from((ip, u16::from_str_radix(port, 16)?)));
        }
    }
    Ok(addresses)
}

/// The most memory that a process ever had.
fn peak_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Connects and says `bytes`, as far as the other side takes them.
fn say(address: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Refused in the middle is as good as refused at the end.
    let _taken = stream.write_all(bytes);
    Ok(stream)
}

/// The rest of what the other side says, until it hangs up.
fn hang_up(mut stream: TcpStream) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            anyhow::bail!("it neither answers nor hangs up")
        }
        // A reset is as good an end as any.
        _ => Ok(said),
    }
}

/// Kinds of the frames of the bulk protocol that a shard has said; none for what speaks another protocol.
fn kinds(mut said: &[u8]) -> Vec<u32> {
    const HEADER_BYTES: usize = 56;
    let mut kinds = Vec::new();
    while said.starts_with(b"PGBK") && said.len() >= HEADER_BYTES {
        let word = |at: usize| u32::from_le_bytes([said[at], said[at + 1], said[at + 2], said[at + 3]]);
        kinds.push(word(8));
        said = said.get(HEADER_BYTES + word(44) as usize..).unwrap_or_default();
    }
    kinds
}

/// All that a stranger does at one address. `hello` is what a member of the run said in its handshake.
fn annoy(address: SocketAddr, hello: &[u8]) -> Result<()> {
    let silent = say(address, &[])?;
    let half = say(address, &hello[..20])?;
    let garbage: Vec<u8> = (0..100_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    drop(hang_up(say(address, &garbage)?)?);
    // All that the member said, again: its hello is as it should be, its proof is of another connection.
    let said = hang_up(say(address, hello)?)?;
    ensure!(kinds(&said).iter().all(|kind| [REFUSED, CHALLENGE].contains(kind)), "admitted: {said:?}");
    let mut open = vec![silent, half];
    for number in 0..FLOOD {
        let bytes: &[u8] = if number % 2 == 0 { &[] } else { hello };
        // What is not accepted any more is no harm done.
        let Ok(stream) = say(address, bytes) else { break };
        open.push(stream);
    }
    drop(open);
    Ok(())
}

fn steps(status: &Value) -> u64 {
    status["step"].as_u64().unwrap_or(0)
}

fn is_shard((role, _): Slot) -> bool {
    role == "shard"
}

#[test]
fn strangers_change_nothing_and_are_named_once() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let mut run = ByHand::start(&cluster, (2, 2)).unwrap();
    run.await_status("step 20", |status| status["state"] == "running" && steps(status) >= 20).unwrap();
    let mut ports = Vec::new();
    for (slot, pid) in run.processes() {
        let before = peak_bytes(pid).unwrap();
        ports.extend(listening(pid).unwrap().into_iter().map(|address| (slot, pid, before, address)));
    }
    assert!(ports.iter().filter(|(slot, ..)| is_shard(*slot)).count() >= 2, "{ports:?}");
    let hello = run.recorded_hello(("shard", 0)).unwrap();
    for (slot, _, _, address) in &ports {
        annoy(*address, &hello).with_context(|| format!("{slot:?} at {address}")).unwrap();
    }
    let status = run.await_status("a status", |_| true).unwrap();
    assert_eq!(status["restarts"].as_u64(), Some(0), "{status}");
    for (slot, pid, before, address) in &ports {
        let grown = peak_bytes(*pid).unwrap().saturating_sub(*before);
        assert!(grown < MEMORY_BYTES, "{slot:?} at {address} grew by {grown} bytes");
    }
    for index in 0..2 {
        let log = run.log(("shard", index)).unwrap();
        assert_eq!(log.matches(NAMED).count(), 1, "shard {index}:\n{log}");
    }
    let finished = run.completes().unwrap();
    assert!(cluster.trace().unwrap() == *UNDISTURBED.trace(Engine::Drill), "{}", finished.said());
    for slot in [("worker", 0), ("worker", 1), ("shard", 0), ("shard", 1)] {
        assert_eq!(run.starts(slot).unwrap(), 1, "{slot:?}");
    }
}
