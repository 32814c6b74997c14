//! A network that falls apart between real processes: whoever is cut off from the coordinator is lost, what it still says
//! is fenced, and the run ends with the bits of one that was never disturbed, each step once in its ledger.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::{ByHand, Cluster, Engine, Slot, Undisturbed, Way, Ways, wait_until};
use serde_json::Value;

/// Long enough to be cut in the middle.
const RUN: [&str; 7] = [
    "training.steps=400",
    "checkpoint.every_steps=20",
    "evaluation.every_steps=200",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
    // Rows are to take the way that is cut.
    "embedding.same_host=\"tcp\"",
];
static UNDISTURBED: Undisturbed = Undisturbed::of(&RUN);
/// A process that has no place any more ends long before this.
const END_LIMIT: Duration = Duration::from_secs(120);
/// Well below the failure detection where it is outlasted.
const BLINK: Duration = Duration::from_millis(700);
/// Above it.
const BEYOND_DETECTION: Duration = Duration::from_secs(5);

fn tiny() -> Result<Cluster> {
    Ok(Cluster::tiny(Engine::Drill)?.with(&RUN))
}

fn number(status: &Value, key: &str) -> u64 {
    status[key].as_u64().unwrap_or(0)
}

/// A run that trains, some way behind a commit.
fn training(cluster: &Cluster) -> Result<ByHand<'_>> {
    let mut run = ByHand::start(cluster, (2, 2))?;
    run.await_status("step 50", |status| status["state"] == "running" && number(status, "step") >= 50)?;
    Ok(run)
}

fn ends_undisturbed(cluster: &Cluster, run: &mut ByHand<'_>) -> Result<()> {
    let finished = run.completes()?;
    ensure!(
        cluster.trace()? == *UNDISTURBED.trace(Engine::Drill),
        "other bits, or other steps\n{}",
        finished.said()
    );
    ensure!(cluster.ledger()?.len() == 400, "each step has one line");
    cluster.ckpt("verify", &["--all"])?.success()?;
    Ok(())
}

/// Cuts these slots (all, if none is named) off in these ways, until the run has gone back, and heals.
fn cut_off(slots: &[Slot], ways: Ways) -> Result<()> {
    let cluster = tiny()?;
    let mut run = training(&cluster)?;
    run.tell(slots, ways);
    run.await_status("the loss", |status| number(status, "restarts") >= 1)?;
    run.tell(slots, Ways::OPEN);
    ends_undisturbed(&cluster, &mut run).with_context(|| format!("{slots:?} {ways:?}"))
}

#[test]
fn a_worker_that_is_cut_off_is_lost_and_comes_back() {
    cut_off(&[("worker", 1)], Ways::both(Way::Held)).unwrap();
    cut_off(&[("worker", 0)], Ways::both(Way::Swallowed)).unwrap();
}

#[test]
fn a_shard_that_is_cut_off_is_lost_and_comes_back() {
    cut_off(&[("shard", 0)], Ways::both(Way::Held)).unwrap();
}

/// A member that hears and is not heard, and one that is heard and does not hear.
#[test]
fn a_member_may_be_cut_off_in_one_direction() {
    cut_off(&[("worker", 1)], Ways { up: Way::Held, ..Ways::OPEN }).unwrap();
    cut_off(&[("worker", 1)], Ways { down: Way::Held, ..Ways::OPEN }).unwrap();
    cut_off(&[("shard", 1)], Ways { down: Way::Swallowed, ..Ways::OPEN }).unwrap();
}

#[test]
fn everybody_may_be_cut_off_at_once() {
    cut_off(&[], Ways::both(Way::Held)).unwrap();
    cut_off(&[], Ways { refuses: true, ..Ways::both(Way::Swallowed) }).unwrap();
}

/// The coordinator hears from everybody, but workers and a shard do not reach each other.
#[test]
fn a_shard_may_be_cut_off_from_its_workers_alone() {
    let cluster = tiny().unwrap();
    let mut run = training(&cluster).unwrap();
    run.tell_data(&[("shard", 0)], Ways::both(Way::Held));
    std::thread::sleep(BEYOND_DETECTION);
    run.tell_data(&[("shard", 0)], Ways::OPEN);
    ends_undisturbed(&cluster, &mut run).unwrap();

    // Bytes that were lost cannot be made up for: the connection breaks, and the run goes back.
    let cluster = tiny().unwrap();
    let mut run = training(&cluster).unwrap();
    run.tell_data(&[("shard", 1)], Ways { up: Way::Swallowed, ..Ways::OPEN });
    wait_until("bytes to be lost", END_LIMIT, || Ok((run.swallowed_data() > 0).then_some(()))).unwrap();
    run.tell_data(&[("shard", 1)], Ways::OPEN);
    run.await_status("the loss", |status| number(status, "restarts") >= 1).unwrap();
    ends_undisturbed(&cluster, &mut run).unwrap();
}

/// Nobody reaches the shard, and it reaches nobody.
#[test]
fn a_shard_may_be_cut_off_from_everybody() {
    let cluster = tiny().unwrap();
    let mut run = training(&cluster).unwrap();
    run.tell(&[("shard", 1)], Ways::both(Way::Held));
    run.tell_data(&[("shard", 1)], Ways::both(Way::Held));
    run.await_status("the loss", |status| number(status, "restarts") >= 1).unwrap();
    run.tell(&[("shard", 1)], Ways::OPEN);
    run.tell_data(&[("shard", 1)], Ways::OPEN);
    ends_undisturbed(&cluster, &mut run).unwrap();
}

/// What heals before anybody could tell a cut from a slow network costs nothing.
#[test]
fn a_short_cut_is_outlasted() {
    let cluster = tiny().unwrap().with(&["run.failure_detection_seconds=15"]);
    let mut run = training(&cluster).unwrap();
    for slots in [&[][..], &[("worker", 0)], &[("shard", 1)]] {
        run.tell(slots, Ways::both(Way::Held));
        run.tell_data(slots, Ways::both(Way::Held));
        std::thread::sleep(BLINK);
        run.tell(slots, Ways::OPEN);
        run.tell_data(slots, Ways::OPEN);
    }
    let status = run.await_status("an answer", |_| true).unwrap();
    assert_eq!(number(&status, "restarts"), 0, "{status}");
    ends_undisturbed(&cluster, &mut run).unwrap();
    for slot in [("worker", 0), ("worker", 1), ("shard", 0), ("shard", 1)] {
        assert_eq!(run.starts(slot).unwrap(), 1, "{slot:?}");
    }
}

/// While one is cut off another process takes its place, and the run goes on. What the first still has to say when the way
/// is open again is of a generation that is over, and there is no place for it any more.
#[test]
fn a_zombie_is_fenced() {
    for slot in [("worker", 1), ("worker", 0), ("shard", 0)] {
        zombie(slot).with_context(|| format!("{slot:?}")).unwrap();
    }
}

fn zombie(slot: Slot) -> Result<()> {
    let cluster = tiny()?;
    let mut run = training(&cluster)?;
    run.tell(&[slot], Ways::both(Way::Held));
    run.tell_data(&[slot], Ways::both(Way::Held));
    run.await_status("the loss", |status| number(status, "restarts") >= 1)?;
    let mut zombie = run.replace(slot)?;
    run.await_status("the next generation", |status| status["state"] == "running")?;
    zombie.links.tell(Ways::OPEN);
    ends_undisturbed(&cluster, &mut run)?;
    let ended = wait_until("the zombie's end", END_LIMIT, || zombie.running.poll())?;
    ensure!(!ended.status.success(), "it was of the run to the end\n{}", ended.said());
    Ok(())
}
