//! The protocol alone: no sockets, no threads, no rows.

use std::sync::Arc;

use polygram_domain::embedding::RowType;
use polygram_domain::{
    BucketIndex, Cell, Generation, MicroBatchRef, Rank, RunFile, RunSpec, ShardIndex, Step, TableIndex,
};
use polygram_row_exchange::block::BlockShape;
use polygram_row_exchange::frame::Kind;
use polygram_row_exchange::message::{Commit, Message, Reason, Refusal, Request, RowBlock, SnapshotOrder};

use super::{Effect, FrameId, Ledger, Peer, Vote};
use crate::config::ShardConfig;

const SHAPE: BlockShape = BlockShape { sites: 1, width: 12, kind: RowType::F32 };

fn spec() -> RunSpec {
    let text = include_str!("../../../configs/tiny.toml");
    let overrides =
        ["topology.workers=2", "topology.shards=1", "training.cells=2", "embedding.prefetch_steps=1"];
    let overrides: Vec<String> = overrides.iter().map(|item| (*item).to_owned()).collect();
    RunFile::parse(text, "tiny", &overrides).and_then(|file| file.resolve()).unwrap()
}

fn ledger() -> Ledger {
    let config = ShardConfig::of(&spec(), ShardIndex(0), Generation(0));
    Ledger::new(Arc::new(config), Step(0), vec![0, 0])
}

fn peer(rank: u32) -> Peer {
    Peer { connection: 10 + u64::from(rank), rank: Rank(rank) }
}

fn request(rows: &[u32]) -> Request {
    Request { offsets: vec![0, rows.len(), rows.len(), rows.len(), rows.len()], rows: rows.to_vec() }
}

fn block(first: u32, rows: u32) -> RowBlock {
    let runs: Vec<_> = (rows > 0).then_some(first..first + rows).into_iter().collect();
    let mut words = RowBlock::head(&runs);
    words.resize(words.len() + rows as usize * SHAPE.stride(), 0);
    match Message::decode(Kind::Push, words, SHAPE).unwrap() {
        Message::Push(block) => block,
        other => panic!("{other:?}"),
    }
}

const COMMIT: Commit = Commit { scale: 1.0, lr: 0.1, snapshot: SnapshotOrder::None };

/// Effects in one word each.
fn names(ledger: &mut Ledger) -> Vec<String> {
    let name = |effect: Effect| match effect {
        Effect::Union { step, .. } => format!("union {step}"),
        Effect::Serve { at, .. } => format!("serve {}.{}", at.step, at.index),
        Effect::ServeRead { version, number, .. } => format!("read {version}#{number}"),
        Effect::Add { step, request, .. } => format!("add {step} {:?}", request.rows),
        Effect::Sum { step } => format!("sum {step}"),
        Effect::Close { step, vote: Vote::Commit(_) } => format!("apply {step}"),
        Effect::Close { step, .. } => format!("skip {step}"),
        Effect::Reply { to, step, message } => format!("{:?} {step} to {}", message.encode().0, to.rank),
        Effect::Fail(refusal) => format!("fail {:?}", refusal.reason),
    };
    ledger.take_effects().into_iter().map(name).collect()
}

fn at(step: u64, cell: u32) -> MicroBatchRef {
    MicroBatchRef { step: Step(step), index: Cell(cell) }
}

fn lookup(ledger: &mut Ledger, step: u64, cell: u32, rows: &[u32]) -> Result<(), Refusal> {
    ledger.lookup(peer(cell), at(step, cell), request(rows))
}

fn push(ledger: &mut Ledger, step: u64, cell: u32, rows: u32) -> Result<(), Refusal> {
    ledger.push(peer(cell), at(step, cell), FrameId { chunk: 0, crc: 77 }, block(0, rows))
}

/// Both workers declare and push `rows` and the lanes sum them.
fn prepared(ledger: &mut Ledger, step: u64) {
    for cell in 0..2 {
        lookup(ledger, step, cell, &[1, 2]).unwrap();
        push(ledger, step, cell, 2).unwrap();
    }
    for _lane in 0..2 {
        ledger.summed(Step(step), vec![(TableIndex(0), BucketIndex(0), 1.0)]);
    }
    ledger.take_effects();
}

fn committed(ledger: &mut Ledger, step: u64) {
    prepared(ledger, step);
    for rank in 0..2 {
        ledger.vote(peer(rank), Step(step), Vote::Commit(COMMIT)).unwrap();
    }
    for _lane in 0..2 {
        ledger.lane_closed(Step(step), 5);
    }
    ledger.take_effects();
}

#[test]
fn a_step_from_declaration_to_acknowledgement() {
    let mut l = ledger();
    lookup(&mut l, 0, 0, &[1, 2]).unwrap();
    assert_eq!(names(&mut l), ["serve 0.0"]);
    push(&mut l, 0, 0, 2).unwrap();
    l.prepare(peer(0), Step(0)).unwrap();
    assert!(names(&mut l).is_empty(), "the other worker has not declared");
    lookup(&mut l, 0, 1, &[]).unwrap();
    assert_eq!(names(&mut l), ["union 0", "serve 0.1", "add 0 [1, 2]"]);
    push(&mut l, 0, 1, 0).unwrap();
    assert_eq!(names(&mut l), ["add 0 []", "sum 0"]);
    l.summed(Step(0), vec![]);
    assert!(names(&mut l).is_empty());
    l.summed(Step(0), vec![(TableIndex(0), BucketIndex(3), 2.0)]);
    assert_eq!(names(&mut l), ["Prepared 0 to 0"]);
    l.prepare(peer(1), Step(0)).unwrap();
    assert_eq!(names(&mut l), ["Prepared 0 to 1"]);
    l.vote(peer(1), Step(0), Vote::Commit(COMMIT)).unwrap();
    assert!(names(&mut l).is_empty());
    l.vote(peer(0), Step(0), Vote::Commit(COMMIT)).unwrap();
    assert_eq!(names(&mut l), ["apply 0"]);
    assert_eq!(l.version(), Step(1));
    l.lane_closed(Step(0), 5);
    assert!(names(&mut l).is_empty());
    l.lane_closed(Step(0), 5);
    assert_eq!(names(&mut l), ["Committed 0 to 0", "Committed 0 to 1"]);
}

#[test]
fn a_later_lookup_waits_for_every_earlier_declaration() {
    let mut l = ledger();
    lookup(&mut l, 1, 0, &[5]).unwrap();
    lookup(&mut l, 0, 0, &[1]).unwrap();
    assert_eq!(names(&mut l), ["serve 0.0"], "worker 1 has not declared its cell of step 0");
    lookup(&mut l, 0, 1, &[1]).unwrap();
    assert_eq!(names(&mut l), ["union 0", "serve 0.1", "serve 1.0"]);
}

#[test]
fn gradients_are_added_in_cell_order() {
    let mut l = ledger();
    lookup(&mut l, 0, 0, &[1]).unwrap();
    lookup(&mut l, 0, 1, &[2]).unwrap();
    l.take_effects();
    push(&mut l, 0, 1, 1).unwrap();
    assert!(names(&mut l).is_empty());
    push(&mut l, 0, 0, 1).unwrap();
    assert_eq!(names(&mut l), ["add 0 [1]", "add 0 [2]", "sum 0"]);
}

#[test]
fn repeated_frames_change_nothing() {
    let mut l = ledger();
    lookup(&mut l, 0, 0, &[1, 2]).unwrap();
    l.take_effects();
    lookup(&mut l, 0, 0, &[1, 2]).unwrap();
    assert_eq!(names(&mut l), ["serve 0.0"], "the same rows again");
    assert_eq!(lookup(&mut l, 0, 0, &[1]).unwrap_err().reason, Reason::Conflict);
    lookup(&mut l, 0, 1, &[3, 4]).unwrap();
    for _ in 0..2 {
        push(&mut l, 0, 0, 2).unwrap();
        push(&mut l, 0, 1, 2).unwrap();
    }
    assert_eq!(names(&mut l), ["union 0", "serve 0.1", "add 0 [1, 2]", "add 0 [3, 4]", "sum 0"]);
    let other_bytes = l.push(peer(0), at(0, 0), FrameId { chunk: 0, crc: 78 }, block(0, 2));
    assert_eq!(other_bytes.unwrap_err().reason, Reason::Conflict);
    for _lane in 0..2 {
        l.summed(Step(0), vec![]);
    }
    for _ in 0..2 {
        l.vote(peer(0), Step(0), Vote::Commit(COMMIT)).unwrap();
    }
    assert!(names(&mut l).is_empty(), "one worker's vote counts once");
    l.vote(peer(1), Step(0), Vote::Commit(COMMIT)).unwrap();
    assert_eq!(names(&mut l), ["apply 0"]);
    l.vote(peer(1), Step(0), Vote::Commit(COMMIT)).unwrap();
    push(&mut l, 0, 0, 2).unwrap();
    l.lane_closed(Step(0), 5);
    l.lane_closed(Step(0), 5);
    assert_eq!(names(&mut l), ["Committed 0 to 0", "Committed 0 to 1"]);
    l.vote(peer(1), Step(0), Vote::Commit(COMMIT)).unwrap();
    l.prepare(peer(1), Step(0)).unwrap();
    assert_eq!(names(&mut l), ["Committed 0 to 1", "Prepared 0 to 1"]);
    let late = l.vote(peer(1), Step(0), Vote::Abort { snapshot: SnapshotOrder::None }).unwrap_err();
    assert_eq!(late.reason, Reason::Conflict);
}

#[test]
fn pushes_must_cover_each_row_once() {
    let mut l = ledger();
    let early = l.push(peer(0), at(0, 0), FrameId { chunk: 0, crc: 1 }, block(0, 1)).unwrap_err();
    assert_eq!(early.reason, Reason::Step);
    lookup(&mut l, 0, 0, &[1, 2, 3]).unwrap();
    let mut chunk = |number, first, rows| {
        l.push(peer(0), at(0, 0), FrameId { chunk: number, crc: 5 }, block(first, rows))
    };
    chunk(1, 2, 1).unwrap();
    assert!(chunk(2, 1, 2).unwrap_err().text.contains("already"));
    assert!(chunk(3, 2, 2).unwrap_err().text.contains("3 rows"));
    chunk(0, 0, 2).unwrap();
    assert!(chunk(4, 0, 1).unwrap_err().text.contains("after all"));
}

#[test]
fn disagreement_names_both_workers_and_ends_everything() {
    let votes = [
        Vote::Commit(Commit { scale: 0.5, ..COMMIT }),
        Vote::Commit(Commit { lr: 0.2, ..COMMIT }),
        Vote::Commit(Commit { snapshot: SnapshotOrder::Commit, ..COMMIT }),
        Vote::Commit(Commit { snapshot: SnapshotOrder::Point { after: None }, ..COMMIT }),
        Vote::Abort { snapshot: SnapshotOrder::None },
    ];
    for other in votes {
        let mut l = ledger();
        prepared(&mut l, 0);
        l.vote(peer(0), Step(0), Vote::Commit(COMMIT)).unwrap();
        let refusal = l.vote(peer(1), Step(0), other).unwrap_err();
        assert_eq!(refusal.reason, Reason::Disagreement);
        assert!(refusal.text.contains("worker 0") && refusal.text.contains("worker 1"), "{}", refusal.text);
        assert_eq!(names(&mut l), ["fail Disagreement"]);
        assert_eq!(l.prepare(peer(0), Step(0)).unwrap_err(), refusal);
    }
}

#[test]
fn steps_outside_the_window_are_refused() {
    let mut l = ledger();
    committed(&mut l, 0);
    assert!(lookup(&mut l, 0, 0, &[1]).unwrap_err().text.contains("is over"));
    assert!(lookup(&mut l, 4, 0, &[1]).unwrap_err().text.contains("too far ahead"));
    lookup(&mut l, 3, 0, &[1]).unwrap();
    assert!(l.read(peer(0), Step(0), Cell(0), request(&[1])).unwrap_err().text.contains("is over"));
    assert!(l.prepare(peer(0), Step(u64::MAX)).is_err());
}

#[test]
fn votes_need_sums_and_finite_ones() {
    let mut l = ledger();
    let early = l.vote(peer(0), Step(0), Vote::Commit(COMMIT)).unwrap_err();
    assert!(early.text.contains("before the step was prepared"));
    for cell in 0..2 {
        lookup(&mut l, 0, cell, &[1]).unwrap();
        push(&mut l, 0, cell, 1).unwrap();
    }
    l.prepare(peer(0), Step(0)).unwrap();
    l.take_effects();
    l.summed(Step(0), vec![(TableIndex(0), BucketIndex(0), f64::NAN)]);
    l.summed(Step(0), vec![]);
    match &l.take_effects()[..] {
        [Effect::Reply { message: Message::Prepared(body), .. }] => assert!(!body.finite),
        other => panic!("{other:?}"),
    }
    let refusal = l.vote(peer(0), Step(0), Vote::Commit(COMMIT)).unwrap_err();
    assert!(refusal.text.contains("not finite"));
    for rank in 0..2 {
        l.vote(peer(rank), Step(0), Vote::Abort { snapshot: SnapshotOrder::None }).unwrap();
    }
    assert_eq!(names(&mut l), ["skip 0"]);
    assert_eq!(l.version(), Step(1));
}

#[test]
fn reads_are_answered_at_exactly_their_version() {
    let mut l = ledger();
    l.read(peer(0), Step(1), Cell(0), request(&[1])).unwrap();
    l.read(peer(0), Step(0), Cell(1), request(&[1])).unwrap();
    assert_eq!(names(&mut l), ["read 0#1"]);
    prepared(&mut l, 0);
    for rank in 0..2 {
        l.vote(peer(rank), Step(0), Vote::Commit(COMMIT)).unwrap();
    }
    assert_eq!(names(&mut l), ["apply 0", "read 1#0"]);
}

#[test]
fn a_snapshot_waits_for_the_one_before() {
    let mut l = ledger();
    let vote = Vote::Commit(Commit { snapshot: SnapshotOrder::Commit, ..COMMIT });
    for (step, effects) in [(0, &["apply 0"][..]), (1, &[])] {
        prepared(&mut l, step);
        for rank in 0..2 {
            l.vote(peer(rank), Step(step), vote).unwrap();
        }
        assert_eq!(names(&mut l), effects);
    }
    l.snapshot_finished();
    assert_eq!(names(&mut l), ["apply 1"]);
}

#[test]
fn strangers_are_refused() {
    let mut l = ledger();
    assert!(l.hello(Rank(1), 2).is_ok());
    assert!(l.hello(Rank(2), 2).is_err());
    assert!(l.hello(Rank(0), 4).is_err());
    let foreign_cell = l.lookup(peer(0), at(0, 1), request(&[1])).unwrap_err();
    assert!(foreign_cell.text.contains("belongs to worker 1"));
    assert!(l.lookup(peer(0), at(0, 9), request(&[1])).is_err());
    assert!(lookup(&mut l, 0, 0, &[u32::MAX]).unwrap_err().text.contains("not of shard"));
    let short = Request { offsets: vec![0], rows: vec![] };
    assert!(l.lookup(peer(0), at(0, 0), short).is_err());
}

#[test]
fn the_memory_ceiling_names_the_bytes_needed() {
    let mut l = ledger();
    let limit = l.config.embedding.memory_limit_bytes;
    let bytes = l.config.record_bytes();
    l.counted(0, limit / bytes);
    assert!(names(&mut l).is_empty());
    l.counted(1, 1);
    assert_eq!(names(&mut l), ["fail Memory"]);
    let needed = (limit / bytes + 1) * bytes;
    assert!(lookup(&mut l, 0, 0, &[1]).unwrap_err().text.contains(&needed.to_string()));
}
