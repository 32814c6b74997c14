//! A pool's coordinator over its real wire, with members that take their seats and do nothing there.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use polygram_coordinator::pool::core::Rules;
use polygram_coordinator::pool::{Pool, PoolError, Store, serve};
use polygram_domain::control::{MemberRef, Role};
use polygram_domain::{RunFile, ShardIndex};
use polygram_proto::control::{ControlError, JoinOptions, MemberSession, OperatorClient, Token};
use polygram_proto::pool::{Engagement, JobState, OfferOptions, PoolClient, PoolOffer, Submission};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const TINY: &str = include_str!("../../configs/tiny.toml");
/// Nothing here takes so long, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(60);

struct Up {
    address: String,
    metrics: SocketAddr,
    token: Token,
    interrupts: mpsc::Sender<String>,
    serving: JoinHandle<Result<(), PoolError>>,
}

async fn up(folder: &Path) -> Up {
    up_with(folder, Rules::of(10_000)).await
}

async fn up_with(folder: &Path, rules: Rules) -> Up {
    let root = folder.join("root").display().to_string();
    let store = Store::open(&folder.join("state.sqlite"), &root).unwrap();
    let token = Token::new("a-secret-of-this-test").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (interrupts, waiting) = mpsc::channel(4);
    let scraped = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = scraped.local_addr().unwrap();
    let pool = Pool { store, root, token: token.clone(), rules, metrics: Some(scraped) };
    Up { address, metrics, token, interrupts, serving: tokio::spawn(serve(pool, listener, waiting)) }
}

impl Up {
    async fn down(self) {
        self.interrupts.send("the test".into()).await.unwrap();
        timeout(LIMIT, self.serving).await.unwrap().unwrap().unwrap();
    }

    async fn client(&self) -> PoolClient {
        PoolClient::connect(&self.address, &self.token).await.unwrap()
    }

    fn offer(&self, role: Role) -> PoolOffer {
        let (pool, token) = (self.address.clone(), self.token.clone());
        PoolOffer::begin(OfferOptions { pool, token, role }).unwrap()
    }
}

fn submission(run: &str) -> Submission {
    let sets = [format!("run.name=\"{run}\""), "topology.shards=1".into(), "device.engine=drill".into()];
    let file = RunFile::parse(TINY, "tiny", &sets).unwrap();
    Submission { config_toml: file.to_toml().unwrap(), priority: 0, preemptible: false }
}

async fn until_offered(client: &mut PoolClient, count: usize) {
    let there = async {
        while client.members().await.unwrap().len() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, there).await.unwrap();
}

async fn engaged(offer: &mut PoolOffer) -> Engagement {
    timeout(LIMIT, offer.engaged()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_placed_recalled_and_placed_again() {
    let folder = tempfile::tempdir().unwrap();
    let up = up(folder.path()).await;
    let mut client = up.client().await;
    let (mut worker, mut shard) = (up.offer(Role::Worker), up.offer(Role::Shard));
    let first = client.submit(submission("first")).await.unwrap();
    let second = client.submit(submission("second")).await.unwrap();
    let twice = client.submit(submission("first")).await.unwrap_err();
    assert!(matches!(&twice, ControlError::Refused { message, .. } if message.contains("first")), "{twice}");

    for (job, run) in [(first, "first"), (second, "second")] {
        let (mut at_work, mut serving) = (engaged(&mut worker).await, engaged(&mut shard).await);
        for (engagement, role) in [(&at_work, Role::Worker), (&serving, Role::Shard)] {
            let placement = &engagement.placement;
            assert_eq!((placement.run.as_str(), placement.seat.job), (run, job));
            assert_eq!((placement.seat.slot.role, placement.seat.slot.index), (role, 0));
        }
        // The run's own coordinator listens where it was said.
        let address = &at_work.placement.address;
        let status = OperatorClient::connect(address, None).await.unwrap().status().await.unwrap();
        assert_eq!(status.run, run);
        client.cancel(job).await.unwrap();
        timeout(LIMIT, at_work.recall.called()).await.unwrap();
        timeout(LIMIT, serving.recall.called()).await.unwrap();
        worker.released(&at_work.placement, None).await;
        shard.released(&serving.placement, Some("as told".into())).await;
    }
    let jobs = client.all_jobs().await.unwrap();
    assert!(jobs.iter().all(|job| job.state == JobState::Cancelled), "{jobs:?}");
    assert!(client.jobs().await.unwrap().is_empty());
    timeout(LIMIT, async {
        while client.members().await.unwrap().iter().any(|member| member.seat.is_some()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(client.members().await.unwrap().len(), 2);
    let metrics = up.metrics;
    up.down().await;
    assert!(TcpStream::connect(metrics).await.is_err(), "the endpoint ends with the pool");
}

/// A member that has its seat and does not join the run, although it says that it lives, makes room for a spare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_before_it_joins_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let up = up_with(folder.path(), Rules::of(1_000)).await;
    let (mut one, mut other, mut shard) =
        (up.offer(Role::Worker), up.offer(Role::Worker), up.offer(Role::Shard));
    let mut client = up.client().await;
    until_offered(&mut client, 3).await;
    let mut submission = submission("hangs");
    let file = RunFile::parse(&submission.config_toml, "t", &["run.failure_detection_seconds=1.0".into()]);
    submission.config_toml = file.unwrap().to_toml().unwrap();
    let job = client.submit(submission).await.unwrap();
    let (first, second) = timeout(LIMIT, async {
        tokio::select! {
            engagement = one.engaged() => (engagement.unwrap(), &mut other),
            engagement = other.engaged() => (engagement.unwrap(), &mut one),
        }
    })
    .await
    .unwrap();
    let serving = engaged(&mut shard).await;
    // The shard joins.
    let mut join = JoinOptions::new(
        serving.placement.address.clone(),
        up.token.clone(),
        MemberRef::shard(ShardIndex(0)),
        "127.0.0.1:4000".parse().unwrap(),
    );
    join.recall = serving.recall.clone();
    let (session, _joined) = MemberSession::join(join).await.unwrap();
    let (_reporter, _directives) = session.split();
    // The worker does not. Its time is up after two seconds.
    let mut recall = first.recall.clone();
    timeout(LIMIT, recall.called()).await.unwrap();
    let again = engaged(second).await;
    assert_eq!(again.placement.seat, first.placement.seat);
    let members = client.members().await.unwrap();
    let seated = members.iter().filter(|member| member.seat.is_some() && !member.leaving);
    assert_eq!(seated.count(), 2, "{members:?}");
    client.cancel(job).await.unwrap();
    up.down().await;
}

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: pool\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// Scrapes until each sample that contains all of the parts has this value.
async fn until_told(address: SocketAddr, wanted: &[(&[&str], f64)]) -> String {
    let mut last = String::new();
    let told = async {
        loop {
            last = scrape(address).await;
            let value = |parts: &[&str]| {
                let mut lines = last.lines().filter(|line| !line.starts_with('#'));
                let line = lines.find(|line| parts.iter().all(|part| line.contains(part)))?;
                line.rsplit(' ').next()?.parse::<f64>().ok()
            };
            if wanted.iter().all(|(parts, number)| value(parts) == Some(*number)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = timeout(LIMIT, told).await;
    assert!(in_time.is_ok(), "not all of {wanted:?} in\n{last}");
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_is_told_as_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let up = up(folder.path()).await;
    let mut client = up.client().await;
    let (mut one, mut other, shard) = (up.offer(Role::Worker), up.offer(Role::Worker), up.offer(Role::Shard));
    until_offered(&mut client, 3).await;
    let job = client.submit(submission("first")).await.unwrap();
    client.submit(submission("second")).await.unwrap();
    let one_is_spare = timeout(LIMIT, async {
        tokio::select! {
            engagement = one.engaged() => engagement.map(|_| false).unwrap(),
            engagement = other.engaged() => engagement.map(|_| true).unwrap(),
        }
    })
    .await
    .unwrap();
    let text = until_told(
        up.metrics,
        &[
            (&["polygram_pool_members{", "member=\"worker\"", "place=\"idle\"", "run=\"pool\""], 1.0),
            (&["polygram_pool_members{", "member=\"worker\"", "place=\"seated\""], 1.0),
            (&["polygram_pool_members{", "member=\"shard\"", "place=\"seated\""], 1.0),
            (&["polygram_pool_members{", "member=\"shard\"", "place=\"idle\""], 0.0),
            (&["polygram_pool_jobs{", "state=\"starting\""], 1.0),
            (&["polygram_pool_jobs{", "state=\"queued\""], 1.0),
            (&["polygram_pool_jobs{", "state=\"failed\""], 0.0),
            (&["polygram_pool_sessions_total{"], 1.0),
            (&["polygram_pool_queue_wait_seconds_count{"], 1.0),
            (&["polygram_pool_preemptions_total{"], 0.0),
            (&["polygram_pool_restarts_total{"], 0.0),
            (&["polygram_pool_seats_taken_back_total{"], 0.0),
        ],
    )
    .await;
    assert!(text.contains("polygram_pool_longest_wait_seconds{"), "{text}");
    // A member that leaves is a member less.
    let (spare, _seated) = if one_is_spare { (one, other) } else { (other, one) };
    drop(spare);
    let gone: &[&str] = &["polygram_pool_members{", "member=\"worker\"", "place=\"idle\""];
    let lost: &[&str] = &["polygram_pool_members_lost_total{"];
    until_told(up.metrics, &[(gone, 0.0)]).await;
    drop(shard);
    until_told(up.metrics, &[(lost, 1.0)]).await;
    client.cancel(job).await.unwrap();
    up.down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_there_after_a_restart_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = up(folder.path()).await;
    let job = first.client().await.submit(submission("kept")).await.unwrap();
    let bad = Submission { config_toml: "[run]\nname = 3\n".into(), ..submission("bad") };
    let refused = first.client().await.submit(bad).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused { .. }), "{refused}");

    let stranger = Token::new("another-secret-altogether").unwrap();
    let (pool, role) = (first.address.clone(), Role::Worker);
    let mut offer = PoolOffer::begin(OfferOptions { pool, token: stranger.clone(), role }).unwrap();
    let refused = timeout(LIMIT, offer.engaged()).await.unwrap().unwrap_err();
    assert!(matches!(refused, ControlError::Unauthenticated { .. }), "{refused}");
    let mut client = PoolClient::connect(&first.address, &stranger).await.unwrap();
    for refused in [
        client.jobs().await.map(|_| ()),
        client.members().await.map(|_| ()),
        client.cancel(job).await.map(|_| ()),
        client.submit(submission("theirs")).await.map(|_| ()),
    ] {
        assert!(matches!(refused, Err(ControlError::Unauthenticated { .. })), "{refused:?}");
    }
    first.down().await;

    let second = up(folder.path()).await;
    let jobs = second.client().await.jobs().await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].job, jobs[0].run.as_str(), jobs[0].state), (job, "kept", JobState::Queued));
    second.down().await;
}
