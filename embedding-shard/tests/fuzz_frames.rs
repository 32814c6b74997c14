//! Fuzzing of the bulk protocol: valid conversations whose frames are damaged, forged, replayed, reordered and cut drive
//! real shards over loopback, and the pure decoders without one.
//!
//! Three claims. Whatever a peer sends, a shard lives or ends with a refusal, and only declared rows are written. Beside
//! peers that send what no worker of the run may send, and what was sent before, a clean worker's training has the
//! reference's bits in every row, sum and record. And what a decoder accepts, it encodes again to the same message.
//!
//! `POLYGRAM_FUZZ_SECONDS` is the time of each claim (default 2), `POLYGRAM_FUZZ_SEED` the seed, which is printed. Mutation
//! is blind: coverage-guided fuzzing (cargo-fuzz, libFuzzer) needs a nightly compiler, and this project builds on stable.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test ends without what it needs, and says its seed"
)]

mod common;
mod fuzzing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, DEADLINE, GENERATION, Trainer};
use common::greeting;

use common::reference::{Reference, bits};
use common::{Workload, overrides, spec};
use fuzzing::{Conversation, Dice, Frame, crc_of, head_crc_of, refit};
use polygram_domain::embedding::RowType;
use polygram_domain::{Cell, Rank, RunSpec, Step};
use polygram_embedding_shard::ShardError;
use polygram_row_exchange::RowClient;
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::codec::{FrameReader, LinkError};
use polygram_row_exchange::frame::{HEADER_BYTES, Header, Incoming, Kind, run_hash};
use polygram_row_exchange::message::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Steps of a clean training.
const STEPS: u64 = 6;
/// Steps trained while one batch of attacks runs; earlier ones are closed then.
const STEPS_AT_ONCE: u64 = 2;
/// Attacks beside those steps; twice as many come before them.
const ATTACKS: u64 = 12;
/// A spoilt conversation waits so long for a step's sums.
const SUMS: Duration = Duration::from_millis(20);
/// A spoilt hello may not be answered at all.
const CHALLENGE: Duration = Duration::from_millis(500);
const WORKLOAD: Workload = Workload { seed: 11, poisoned: Some(1) };

fn budget() -> Duration {
    let seconds = std::env::var("POLYGRAM_FUZZ_SECONDS").ok().map(|text| text.parse().expect("seconds"));
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

fn seed() -> u64 {
    let seed = std::env::var("POLYGRAM_FUZZ_SEED").ok().map(|text| text.parse().expect("a seed"));
    // Another one every run: what one run does not find, the next may.
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = seed.unwrap_or_else(clock);
    println!("POLYGRAM_FUZZ_SEED={seed}");
    seed
}

fn shape(spec: &RunSpec) -> BlockShape {
    let tables = spec.tables();
    let width = tables.iter().next().unwrap().width as usize;
    BlockShape { sites: tables.len() / tables.tables_per_site() as usize, width, kind: RowType::F32 }
}

/// Sends `frames` on a connection of their own, as one who knows the run's key, hears the shard out, and gives what it
/// said after the handshake. A vote waits for the sums
/// before it, as a worker's does, but no longer than `patience`: they may never come.
async fn attack(cluster: &Cluster, frames: &[Frame], patience: Duration) -> Vec<Message> {
    let shape = shape(&cluster.spec);
    let Ok(stream) = TcpStream::connect(cluster.addresses[0]).await else { return Vec::new() };
    let (hears, mut says) = stream.into_split();
    let (answered, mut answers) = mpsc::unbounded_channel();
    let (challenged, mut challenges) = mpsc::unbounded_channel();
    let listener = tokio::spawn(async move {
        let mut reader = FrameReader::new(hears);
        let mut messages = Vec::new();
        loop {
            match reader.read().await {
                Ok((incoming, words)) => {
                    let message = Message::decode(incoming.header.kind, words, shape).unwrap();
                    match message {
                        Message::Challenge(nonce) => {
                            // Nobody may wait for it any more.
                            let _unanswered = challenged.send(nonce);
                            continue;
                        }
                        Message::Vouch(_) | Message::Heartbeat => continue,
                        _ => {}
                    }
                    if matches!(message, Message::Prepared(_) | Message::Nack(_) | Message::Refused(_)) {
                        // Only votes wait for it.
                        let _unheard = answered.send(());
                    }
                    messages.push(message);
                }
                // A reset is as good an end as any.
                Err(LinkError::Closed | LinkError::Io(_)) => return messages,
                Err(error) => panic!("the shard's own frames are damaged: {error}"),
            }
        }
    });
    let votes = [Kind::Commit, Kind::Abort].map(|kind| (kind as u32).to_le_bytes());
    for (number, frame) in frames.iter().enumerate() {
        if votes.iter().any(|kind| frame.get(8..12) == Some(kind)) {
            let _heard_or_not = timeout(patience, answers.recv()).await;
        }
        // A shard that has hung up takes no more.
        if says.write_all(frame).await.is_err() {
            break;
        }
        if number == 0
            && let Ok(Some(nonce)) = timeout(CHALLENGE, challenges.recv()).await
        {
            let response =
                greeting::sealed(&header(&cluster.spec), &greeting::response_to(&frames[0], nonce));
            let _taken_or_not = says.write_all(&response.to_bytes()).await;
        }
    }
    let _hung_up = says.shutdown().await;
    timeout(DEADLINE, listener).await.expect("the shard neither answers nor hangs up").unwrap()
}

/// What a response says of itself.
fn header(spec: &RunSpec) -> Header {
    let run = run_hash(&spec.name);
    Header { kind: Kind::Response, chunk: 0, run, generation: GENERATION, step: Step(0), cell: Cell(0) }
}

/// Whatever is sent, a shard lives or ends with a refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_conversation_crashes_a_shard() {
    let (seed, end) = (seed(), Instant::now() + budget());
    let (mut conversations, mut refused, mut ended, mut closed) = (0u64, 0u64, 0u64, 0u64);
    let spec = spec(&overrides(&["topology.shards=1", "embedding.lanes=2"]));
    let conversation = Conversation::of(&spec, WORKLOAD, 3);
    while Instant::now() < end || conversations == 0 {
        let cluster = Cluster::start(&spec).await;
        let mut declared = BTreeSet::new();
        let mut is_alive = true;
        for _ in 0..40 {
            let mut dice = Dice::new(seed, conversations);
            conversations += 1;
            let frames = conversation.mutated(&mut dice);
            for frame in &frames {
                declared.extend(rows_declared(&spec, frame));
            }
            let said = attack(&cluster, &frames, SUMS).await;
            let is_refusal = |m: &&Message| matches!(m, Message::Nack(_) | Message::Refused(_));
            refused += said.iter().filter(is_refusal).count() as u64;
            // A shard still answers, or has given up.
            let hello = [conversation.hello().clone()];
            let answer = attack(&cluster, &hello, SUMS).await;
            is_alive = matches!(answer[..], [Message::Welcome(_)]);
            if !is_alive {
                break;
            }
        }
        match cluster.stop().await.remove(0) {
            Ok(shard) => {
                assert!(is_alive, "seed {seed}, {conversations}: a shard that serves refuses a good hello");
                closed += shard.version().0;
                for record in shard.records() {
                    assert!(declared.contains(&(record.table.0, record.row.0)), "seed {seed}: {record:?}");
                    assert!(u64::from(record.updates) <= shard.version().0, "seed {seed}: {record:?}");
                }
            }
            // Contradicting oneself in votes, or asking for a snapshot where none can be taken, is the end of a run.
            Err(ShardError::Refused(_) | ShardError::Snapshot { .. }) => ended += 1,
            Err(error) => panic!("seed {seed}, conversation {conversations}: {error}"),
        }
    }
    println!(
        "{conversations} conversations, {refused} refusals, {ended} shards gave up, {closed} steps closed"
    );
    assert!(refused > 0 && closed > 0, "seed {seed}: the mutations reach nothing");
}

/// Rows that a frame declares if a shard takes it.
fn rows_declared(spec: &RunSpec, frame: &Frame) -> Vec<(u32, u32)> {
    let Some(head) = frame.first_chunk::<HEADER_BYTES>() else { return Vec::new() };
    // A frame may hold the next one's head where its length was changed: what is declared can only be fewer rows.
    let Ok(incoming) = Incoming::decode(head) else { return Vec::new() };
    let words = frame[HEADER_BYTES..].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    match Message::decode(incoming.header.kind, words.collect::<Vec<u32>>(), shape(spec)) {
        Ok(Message::Lookup(request)) => {
            let rows = |table: u32| request.rows_of(table as usize).iter().map(move |row| (table, *row));
            (0..request.offsets.len() as u32 - 1).flat_map(rows).collect()
        }
        _ => Vec::new(),
    }
}

/// A client of rank 0, as soon as the shard has heard of the end of the one before it.
async fn admitted(cluster: &Cluster) -> RowClient {
    let connecting = async {
        loop {
            let tables = Arc::new(cluster.spec.tables());
            match RowClient::connect(&cluster.addresses, cluster.hello(0), tables, DEADLINE).await {
                Ok(client) => break client,
                Err(error) => assert!(error.to_string().contains("connected already"), "{error}"),
            }
        }
    };
    timeout(DEADLINE, connecting).await.unwrap()
}

/// A clean worker trains beside peers that forge and replay: not a bit differs from the reference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_run_beside_forgers_has_the_reference_bits() {
    let (seed, end) = (seed(), Instant::now() + budget());
    let spec = spec(&overrides(&["topology.shards=1", "embedding.lanes=2", "embedding.prefetch_steps=1"]));
    let mut reference = Reference::new(&spec);
    let expected: Vec<_> = (0..STEPS).map(|step| reference.step(&WORKLOAD, Step(step))).collect();
    let conversation = Conversation::of(&spec, WORKLOAD, STEPS);
    let mut round = 0;
    while Instant::now() < end || round == 0 {
        let cluster = Cluster::start(&spec).await;
        for start in (0..STEPS).step_by(STEPS_AT_ONCE as usize) {
            // A rank has one process: forgers take its place while the clean worker is away. Beside it they are refused.
            for number in 0..2 * ATTACKS {
                let mut dice = Dice::new(seed, round << 32 | start << 16 | number);
                let frames = conversation.forged(&mut dice, start);
                attack(&cluster, &frames, Duration::ZERO).await;
            }
            let client = admitted(&cluster).await;
            let (workload, shuffle) = (WORKLOAD, round);
            let trainer = Trainer { workload, rank: Rank(0), client, shuffle, snapshots: vec![] };
            let beside = async {
                for number in 0..ATTACKS {
                    let mut dice = Dice::new(!seed, round << 32 | start << 16 | number);
                    let frames = conversation.forged(&mut dice, start);
                    attack(&cluster, &frames, Duration::ZERO).await;
                }
            };
            let (seen, ()) = tokio::join!(trainer.train(&spec, start..start + STEPS_AT_ONCE), beside);
            trainer.client.close().await.unwrap();
            let seen = seen.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
            for step in start..start + STEPS_AT_ONCE {
                let expected = &expected[step as usize];
                let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                let prepared = &seen.prepared[&Step(step)];
                assert_eq!(
                    prepared.finite, expected.prepared.finite,
                    "seed {seed}, round {round}, step {step}"
                );
                for (found, expected) in prepared.sums.iter().zip(&expected.prepared.sums) {
                    assert!(same(found.2, expected.2), "seed {seed}, round {round}, step {step}");
                }
                for ((_, cell), rows) in seen.rows.iter().filter(|((s, _), _)| s.0 == step) {
                    let found = rows.iter().map(|value| value.to_bits());
                    let expected = expected.rows[cell.index()].iter().map(|value| value.to_bits());
                    assert!(found.eq(expected), "seed {seed}, round {round}, step {step}, cell {cell}");
                }
            }
        }
        let records = cluster.into_records().await;
        assert_eq!(bits(&records), bits(&reference.records()), "seed {seed}, round {round}");
        round += 1;
    }
    println!("{round} clean runs beside {} forged conversations each", 3 * ATTACKS * STEPS / STEPS_AT_ONCE);
}

/// The pure decoders: never a panic, and what is accepted is encoded again to the same message.
#[test]
fn decoders_never_panic() {
    let (seed, end) = (seed(), Instant::now() + budget() / 2);
    let spec = spec(&overrides(&["topology.shards=1"]));
    let conversation = Conversation::of(&spec, WORKLOAD, 2);
    let (mut frames, mut accepted) = (0u64, 0u64);
    while Instant::now() < end || frames == 0 {
        let mut dice = Dice::new(seed, frames);
        for frame in conversation.mutated(&mut dice) {
            frames += 1;
            let Some(head) = frame.first_chunk::<HEADER_BYTES>() else { continue };
            let words = frame[HEADER_BYTES..].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            let words: Vec<u32> = words.collect();
            // Under its own kind and under any other.
            let own = Incoming::decode(head).map(|incoming| incoming.header.kind);
            let other = Kind::of(dice.below(24) as u32);
            let kind = if dice.below(2) == 0 { own } else { other };
            let rows = [RowType::F32, RowType::Bf16][dice.below(2) as usize];
            let shape = BlockShape { kind: rows, sites: 1 + dice.below(2) as usize, ..shape(&spec) };
            let Ok(kind) = kind else { continue };
            let Ok(message) = Message::decode(kind, words, shape) else { continue };
            accepted += 1;
            let words_of = |message: &Message| {
                let bytes: Vec<u8> =
                    message.encode().1.iter().flat_map(|piece| piece.bytes()).copied().collect();
                bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<u32>>()
            };
            let once = words_of(&message);
            let twice = words_of(&Message::decode(kind, once.clone(), shape).unwrap());
            assert_eq!(once, twice, "seed {seed}, frame {frames}: {message:?}");
        }
    }
    println!("{frames} frames, {accepted} accepted");
    assert!(accepted > 0, "seed {seed}: nothing is ever accepted");
}

/// The mutator's own checksum is the protocol's: forged frames get past it.
#[tokio::test]
async fn forged_frames_have_good_checksums() {
    let spec = spec(&overrides(&["topology.shards=1"]));
    let conversation = Conversation::of(&spec, WORKLOAD, 1);
    let mut frame = conversation.hello().clone();
    let stated = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
    assert_eq!((head_crc_of(&frame), crc_of(&frame)), (stated(48), stated(52)));
    let last = frame.len() - 1;
    frame[last] ^= 1;
    assert!(matches!(FrameReader::new(&frame[..]).read().await, Err(LinkError::Wire(_))));
    refit(&mut frame);
    assert!(FrameReader::new(&frame[..]).read().await.is_ok());
    let cluster = Cluster::start(&spec).await;
    let said = attack(&cluster, &conversation.frames()[..1], DEADLINE).await;
    assert!(matches!(said[..], [Message::Welcome(_)]), "{said:?}");
    let said = attack(&cluster, conversation.frames(), DEADLINE).await;
    assert!(said.iter().any(|message| matches!(message, Message::Prepared(_))), "{said:?}");
    // Who hangs up after a vote does not hear of its effect, but it has one.
    assert_eq!(cluster.stop().await.remove(0).unwrap().version(), Step(1));
}
