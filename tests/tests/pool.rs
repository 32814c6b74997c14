//! A pool's queue keeps its order and its jobs their bits, whoever dies: coordinator, members with and without spares.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, waits are told

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use polygram_tests::{Cluster, Engine, Job, PoolCluster, Running, wait_until};
use rustix::process::Signal;

/// Long enough to be disturbed, two of everything.
const RUN: [&str; 6] = [
    "training.steps=600",
    "checkpoint.every_steps=50",
    "evaluation.every_steps=300",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
];
const END_LIMIT: Duration = Duration::from_secs(60);

/// The digest that `polygram train` gives for the same run file.
fn undisturbed(seed: u32) -> String {
    static KNOWN: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    if let Some(digest) = known.get(&seed) {
        return digest.clone();
    }
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).with(&[&format!("run.seed={seed}")]);
    cluster.train(&[]).unwrap().success().unwrap();
    let digest = cluster.digest().unwrap().digest;
    known.insert(seed, digest.clone());
    digest
}

fn submit(pool: &PoolCluster, seed: u32, more: &[&str]) -> Result<u64> {
    pool.submit(&format!("run-{seed}"), &[&RUN[..], &[&format!("run.seed={seed}")]].concat(), more)
}

fn at_step(step: u64) -> impl Fn(&Job) -> bool {
    move |job| job.state == "running" && job.step >= step
}

fn is_completed(job: &Job) -> bool {
    job.state == "completed"
}

fn ends_undisturbed(pool: &PoolCluster, job: u64, seed: u32) -> Result<Job> {
    let job = pool.await_job(job, "completed", is_completed)?;
    let (digest, step) = pool.digest(&format!("run-{seed}"))?;
    ensure!(step == 600, "job {job:?} is committed at step {step}");
    ensure!(digest == undisturbed(seed), "job {job:?} has other bits");
    Ok(job)
}

/// Ends the pool in order: nothing is left, and the status says that there may be more to do.
fn goes_down(mut running: Running) -> Result<()> {
    running.signal(running.pid(), Signal::INT)?;
    let finished = running.wait(END_LIMIT)?;
    ensure!(finished.status.code() == Some(3), "{}: {}", finished.status, finished.said());
    running.wait_for_silence(END_LIMIT)
}

#[test]
fn jobs_go_by_priority_and_end_with_the_bits_of_train() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(2, 2).unwrap();
    let first = submit(&pool, 1, &[]).unwrap();
    pool.await_job(first, "at work", at_step(1)).unwrap();
    let second = submit(&pool, 2, &[]).unwrap();
    let urgent = submit(&pool, 3, &["--priority", "5"]).unwrap();
    let twice = pool.polygram(&["jobs"]).unwrap().success().unwrap();
    assert!(twice.stdout.contains("run-3"), "{}", twice.said());
    let [first, second, urgent] =
        [(first, 1), (second, 2), (urgent, 3)].map(|(job, seed)| ends_undisturbed(&pool, job, seed).unwrap());
    // Members are free a moment before the last record of their run is written.
    assert!(first.started_unix_ms < urgent.started_unix_ms, "{first:?} {urgent:?}");
    assert!(urgent.started_unix_ms < second.started_unix_ms, "{urgent:?} {second:?}");
    assert!(urgent.ended_unix_ms < second.ended_unix_ms, "{urgent:?} {second:?}");
    assert_eq!([first.sessions, second.sessions, urgent.sessions], [1; 3], "nothing was disturbed");
    goes_down(running).unwrap();
}

#[test]
fn a_killed_coordinator_forgets_no_job() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(2, 2).unwrap();
    let (first, second) = (submit(&pool, 1, &[]).unwrap(), submit(&pool, 2, &[]).unwrap());
    pool.await_job(first, "past a commit", at_step(120)).unwrap();
    let announced = std::fs::read_to_string(pool.folder().join("polygram-pool/coordinator.json")).unwrap();
    let announced: serde_json::Value = serde_json::from_str(&announced).unwrap();
    let coordinator = u32::try_from(announced["pid"].as_u64().unwrap()).unwrap();
    let before: Vec<u32> = pool.members().unwrap().iter().map(|member| member.pid).collect();
    running.signal(coordinator, Signal::KILL).unwrap();
    let first = ends_undisturbed(&pool, first, 1).unwrap();
    assert!(first.sessions > 1, "its run was opened again: {first:?}");
    ends_undisturbed(&pool, second, 2).unwrap();
    let after: Vec<u32> = pool.members().unwrap().iter().map(|member| member.pid).collect();
    assert_eq!(before.len(), after.len());
    assert!(before.iter().all(|pid| after.contains(pid)), "members lived on: {before:?}, {after:?}");
    goes_down(running).unwrap();
}

#[test]
fn a_spare_takes_the_rank_of_a_dead_worker() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(3, 2).unwrap();
    let job = submit(&pool, 1, &[]).unwrap();
    pool.await_job(job, "past a commit", at_step(120)).unwrap();
    let workers = || pool.members().unwrap().into_iter().filter(|member| member.role == "worker");
    let spare = workers().find(|member| member.placed.is_none()).unwrap().pid;
    let victim = workers().find(|member| member.placed == Some((job, 1))).unwrap().pid;
    running.signal(victim, Signal::KILL).unwrap();
    pool.await_job(job, "with the spare", |_| {
        workers().any(|member| member.pid == spare && member.placed == Some((job, 1)))
    })
    .unwrap();
    let ended = ends_undisturbed(&pool, job, 1).unwrap();
    assert_eq!((ended.sessions, ended.started_unix_ms.is_some()), (1, true), "{ended:?}");
    goes_down(running).unwrap();
}

/// Without a spare the job goes on smaller, and grows when there is a worker again.
#[test]
fn a_job_shrinks_and_grows_again() {
    let pool = PoolCluster::new().unwrap();
    let (_coordinator, address) = pool.start_coordinator().unwrap();
    let _shards = [(); 2].map(|()| pool.start_member("polygram-embedding-shard", &address).unwrap());
    let workers = [(); 2].map(|()| pool.start_member("polygram-worker", &address).unwrap());
    let sets = ["topology.min_workers=1", "recovery.wait_for_members_seconds=1", "recovery.resize_seconds=1"];
    let more: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let job = submit(&pool, 1, &more).unwrap();
    pool.await_job(job, "past a commit with two workers", |job| at_step(60)(job) && job.workers == 2)
        .unwrap();
    workers[0].signal(workers[0].pid(), Signal::KILL).unwrap();
    let small =
        pool.await_job(job, "at work with one worker", |job| at_step(1)(job) && job.workers == 1).unwrap();
    let _third = pool.start_member("polygram-worker", &address).unwrap();
    let large =
        pool.await_job(job, "at work with two workers", |job| at_step(1)(job) && job.workers == 2).unwrap();
    println!("two workers to step {}, then one, then two again from before step {}", small.step, large.step);
    assert!(large.sessions >= 3, "{large:?}");
    ends_undisturbed(&pool, job, 1).unwrap();
}

#[test]
fn a_preemptible_job_makes_way_and_goes_on() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(2, 2).unwrap();
    let patient = submit(&pool, 1, &["--preemptible"]).unwrap();
    pool.await_job(patient, "at work", at_step(20)).unwrap();
    let urgent = submit(&pool, 2, &["--priority", "1"]).unwrap();
    let urgent = ends_undisturbed(&pool, urgent, 2).unwrap();
    let patient = ends_undisturbed(&pool, patient, 1).unwrap();
    assert!(urgent.ended_unix_ms < patient.ended_unix_ms && patient.sessions >= 2, "{urgent:?} {patient:?}");
    goes_down(running).unwrap();
}

/// The queue outlives everything: a pool that is taken down in order goes on where it was.
#[test]
fn a_pool_that_was_down_goes_on() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(2, 2).unwrap();
    let (first, second) = (submit(&pool, 1, &[]).unwrap(), submit(&pool, 2, &[]).unwrap());
    pool.await_job(first, "at work", at_step(20)).unwrap();
    goes_down(running).unwrap();
    let (_, committed) = pool.digest("run-1").unwrap();
    assert!(committed >= 20, "stopping committed: {committed}");
    let running = pool.up(2, 2).unwrap();
    ends_undisturbed(&pool, first, 1).unwrap();
    ends_undisturbed(&pool, second, 2).unwrap();
    goes_down(running).unwrap();
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let pool = PoolCluster::new().unwrap();
    let nobody = pool.polygram(&["jobs"]).unwrap();
    assert_eq!(nobody.status.code(), Some(2), "{}", nobody.said());
    assert!(nobody.refusal().unwrap().contains("pool up"));
    let running = pool.up(1, 2).unwrap();
    let job = submit(&pool, 1, &[]).unwrap();
    // One worker is too few for two: it waits, and says so; a second submission of the same run is refused.
    let file = polygram_tests::repository().join("configs/tiny.toml").display().to_string();
    let twice = pool.polygram(&["submit", &file, "--run", "run-1"]).unwrap();
    assert_eq!(twice.status.code(), Some(2), "{}", twice.said());
    assert!(twice.refusal().unwrap().contains("run-1"));
    let bad = pool.polygram(&["submit", &file, "--set", "topology.workers=3"]).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{}", bad.said());
    for arguments in [["cancel", "99"], ["cancel", "0"]] {
        let unknown = pool.polygram(&arguments).unwrap();
        assert_eq!(unknown.status.code(), Some(2), "{}", unknown.said());
        assert!(unknown.refusal().unwrap().contains("there is no job"));
    }
    let other = pool.folder().join("other-token");
    std::fs::write(&other, "not-the-secret-of-this-pool\n").unwrap();
    let stranger = pool.polygram(&["jobs", "--token-file", other.to_str().unwrap()]).unwrap();
    assert!(stranger.refusal().unwrap().contains("token"));
    // The same file for a second pool.
    let second = pool.up(1, 1).unwrap().wait(END_LIMIT).unwrap();
    let message = second.refusal().unwrap();
    assert!(message.contains("is up already") && message.contains("--folder"), "{message}");
    let waiting = pool.job(job).unwrap();
    assert!(waiting.state == "queued" && waiting.reason.contains("it needs 2 workers"), "{waiting:?}");
    pool.polygram(&["cancel", &job.to_string()]).unwrap().success().unwrap();
    assert_eq!(pool.job(job).unwrap().state, "cancelled");
    let over = pool.polygram(&["cancel", &job.to_string()]).unwrap();
    assert!(over.refusal().unwrap().contains("over already"));
    goes_down(running).unwrap();
}

#[test]
fn a_cancelled_run_keeps_its_last_commit() {
    let pool = PoolCluster::new().unwrap();
    let running = pool.up(2, 2).unwrap();
    let first = submit(&pool, 1, &[]).unwrap();
    pool.await_job(first, "at work", at_step(20)).unwrap();
    pool.polygram(&["cancel", &first.to_string()]).unwrap().success().unwrap();
    let cancelled = pool.await_job(first, "cancelled", |job| job.state == "cancelled").unwrap();
    let (_, committed) = pool.digest("run-1").unwrap();
    assert!((20..600).contains(&committed), "{committed}");
    assert_eq!(cancelled.step, committed, "a job that is over still says how far it came");
    // Its members are free for the next, which may well be the same run again.
    let again = submit(&pool, 1, &[]).unwrap();
    ends_undisturbed(&pool, again, 1).unwrap();
    goes_down(running).unwrap();
}

/// A pool that is up twice: refused with what can be done by the options of this command, and nothing is made.
#[test]
fn a_pool_is_not_brought_up_twice() {
    let pool = PoolCluster::new().unwrap();
    let _up = pool.up(1, 1).unwrap();
    wait_until("the pool", END_LIMIT, || Ok(pool.members().ok().filter(|members| members.len() == 2)))
        .unwrap();
    let logs = || std::fs::read_dir(pool.folder().join("polygram-pool/logs")).unwrap().count();
    let before = logs();
    let refused = pool.up(1, 1).unwrap().wait(END_LIMIT).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
    assert!(refused.stderr.contains("is up already"), "{}", refused.said());
    assert!(
        refused.stderr.contains("another --folder") && !refused.stderr.contains("--state"),
        "{}",
        refused.said()
    );
    assert_eq!(logs(), before, "a refused pool made files");
}

/// A folder that belongs to the pool of another root: the coordinator says so, in the words of this command.
#[test]
fn a_pool_of_another_root_is_refused_in_the_words_of_the_command() {
    let pool = PoolCluster::new().unwrap();
    let mut up = pool.up(1, 1).unwrap();
    wait_until("the pool", END_LIMIT, || Ok(pool.members().ok().filter(|members| members.len() == 2)))
        .unwrap();
    up.signal(up.pid(), Signal::TERM).unwrap();
    up.wait(END_LIMIT).unwrap();
    let other = ["pool", "up", "--workers", "1", "--shards", "1", "--root", "elsewhere"];
    let refused = pool.start("polygram", &other).unwrap().wait(END_LIMIT).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
    assert!(
        refused.stderr.contains("another --folder") && !refused.stderr.contains("--state"),
        "{}",
        refused.said()
    );
}
