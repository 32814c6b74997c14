//! A coordinator that is lost just as a member reports that it is ready, for both roles as they are: nothing of the former
//! membership is left when they join again, and the run completes.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use polygram_coordinator::core::Outcome;
use polygram_coordinator::{Claim, Ended, Origin, ServeError, open, serve};
use polygram_domain::control::{Assignment, Heartbeat, MemberRef, MemberReport};
use polygram_domain::{Rank, RunFile, ShardIndex};
use polygram_embedding_shard::ShardRole;
use polygram_member::{Inbox, Listening, MemberOptions, Membership, Role, Stage, run};
use polygram_proto::control::{Recall, Token};
use polygram_worker::observe::MetricsDesk;
use polygram_worker::{Listen, WorkerRole};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// Nothing here takes so long, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(60);
const LANES: usize = 2;

/// A role whose first Ready is lost: it is prepared, and returns only when nothing can be reported any more.
struct LostReady<R> {
    role: R,
    /// Binds the same address in the next membership.
    keep_address: fn(&mut R, SocketAddr),
    /// Told whenever it is prepared.
    prepared: mpsc::UnboundedSender<()>,
    is_first: bool,
}

impl<R: Role> Role for LostReady<R> {
    type Error = R::Error;
    type Bound = R::Bound;
    type Opened = R::Opened;
    type Prepared = R::Prepared;

    async fn bind(&mut self) -> Result<(R::Bound, Listening), R::Error> {
        let (bound, listening) = self.role.bind().await?;
        (self.keep_address)(&mut self.role, listening.bound);
        Ok((bound, listening))
    }

    async fn open(&mut self, bound: R::Bound, membership: &Membership) -> Result<R::Opened, R::Error> {
        self.role.open(bound, membership).await
    }

    async fn prepare(
        &mut self,
        opened: R::Opened,
        assignment: Assignment,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<Option<R::Prepared>, R::Error> {
        let prepared = self.role.prepare(opened, assignment, membership, inbox).await?;
        self.prepared.send(()).unwrap();
        if std::mem::take(&mut self.is_first) {
            let mut look = interval(Duration::from_millis(10));
            let (step, phase) = membership.reporter.progress().get();
            let beat = Heartbeat { step, phase, restored_bytes: 0, store_wait: None };
            while membership.reporter.report(MemberReport::Heartbeat(beat.clone())).await.is_ok() {
                look.tick().await;
            }
        }
        Ok(prepared)
    }

    async fn run(
        &mut self,
        prepared: R::Prepared,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<(), R::Error> {
        self.role.run(prepared, membership, inbox).await
    }

    async fn shutdown(
        &mut self,
        result: Result<(), R::Error>,
        membership: &Membership,
    ) -> Result<(), R::Error> {
        self.role.shutdown(result, membership).await
    }

    fn reached(&self, stage: Stage) {
        self.role.reached(stage);
    }
}

struct Coordinator {
    address: SocketAddr,
    ended: JoinHandle<Result<Ended, ServeError>>,
    _interrupts: mpsc::Sender<String>,
}

fn token() -> Token {
    Token::new("a-token-for-tests-only").unwrap()
}

async fn coordinator(address: SocketAddr, root: &std::path::Path) -> Coordinator {
    let lanes = format!("embedding.lanes={LANES}");
    let sets = [
        "device.engine=drill",
        "topology.workers=1",
        "topology.shards=1",
        "training.steps=4",
        "training.warmup_steps=0",
        "checkpoint.every_steps=4",
        "run.failure_detection_seconds=5.0",
        &lanes,
    ];
    let file =
        RunFile::parse(include_str!("../../configs/tiny.toml"), "tiny", &sets.map(str::to_owned)).unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let origin = Origin {
        config_toml: file.to_toml().unwrap(),
        config_name: "test".into(),
        root: root.display().to_string(),
        claim: Claim::IfVacant,
    };
    let opened = open(origin, address).await.unwrap();
    let (interrupts, receiver) = mpsc::channel(4);
    Coordinator {
        address,
        ended: tokio::spawn(serve(opened, listener, token(), receiver)),
        _interrupts: interrupts,
    }
}

/// Threads of this process with this beginning of a name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

async fn until_lanes_run() {
    let begun = Instant::now();
    let mut look = interval(Duration::from_millis(10));
    while threads("lane") < LANES {
        assert!(begun.elapsed() < LIMIT, "the shard's lanes do not start");
        look.tick().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ready_leaves_nothing_behind_in_either_role() {
    let folder = tempfile::tempdir().unwrap();
    let first = coordinator(([127, 0, 0, 1], 0).into(), folder.path()).await;
    let address = first.address;
    let options = |member| MemberOptions {
        coordinator: address.to_string(),
        member,
        token: token(),
        recall: Recall::default(),
    };
    let (prepared, mut notes) = mpsc::unbounded_channel();
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut shard = LostReady {
        role: ShardRole { listen: anywhere, advertise: None, query_listen: None, metrics_listen: None },
        keep_address: |role, address| role.listen = address,
        prepared: prepared.clone(),
        is_first: true,
    };
    let listen = Listen { ip: anywhere.ip(), advertise: None };
    let mut worker = LostReady {
        role: WorkerRole::new(listen, MetricsDesk::new("")),
        keep_address: |_role, _address| {},
        prepared,
        is_first: true,
    };
    let shard_options = options(MemberRef::shard(ShardIndex(0)));
    let worker_options = options(MemberRef::worker(Rank(0)));
    let shard = tokio::spawn(async move { run(&shard_options, &mut shard).await });
    let worker = tokio::spawn(async move { run(&worker_options, &mut worker).await });
    let mut both_prepared = async || {
        for _ in 0..2 {
            timeout(LIMIT, notes.recv()).await.expect("a member is prepared").unwrap();
        }
    };

    both_prepared().await;
    until_lanes_run().await;
    assert_eq!((threads("lane"), threads("compute")), (LANES, 1));
    first.ended.abort();
    assert!(first.ended.await.is_err());
    let second = coordinator(address, folder.path()).await;
    both_prepared().await;
    until_lanes_run().await;
    assert_eq!((threads("lane"), threads("compute")), (LANES, 1), "one set of tables, one engine");
    timeout(LIMIT, shard).await.unwrap().unwrap().unwrap();
    timeout(LIMIT, worker).await.unwrap().unwrap().unwrap();
    let ended = timeout(LIMIT, second.ended).await.unwrap().unwrap().unwrap();
    assert_eq!(ended.outcome, Outcome::Good, "{}", ended.status.message);
    assert_eq!((threads("lane"), threads("compute")), (0, 0));
}
