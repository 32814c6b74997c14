//! A process that is out of files cannot accept connections: its shard serves those that it has, and accepts again when
//! there are files. In a test program of its own, since the limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod common;

use common::cluster::{Cluster, DEADLINE};
use common::{Workload, overrides, spec};
use polygram_domain::{Cell, Step};
use polygram_row_exchange::RowExchange;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::time::timeout;

const WORKLOAD: Workload = Workload { seed: 31, poisoned: None };

fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_outlives_a_process_that_is_out_of_files() {
    let cluster = Cluster::start(&spec(&overrides(&["topology.shards=1", "topology.workers=2"]))).await;
    let client = cluster.client(0, 1 << 20).await;
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open_files() + 7), ..before }).unwrap();
    let mut open = Vec::new();
    let full = loop {
        match TcpStream::connect(cluster.addresses[0]).await {
            Ok(stream) => open.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()), "{full}");
    // The shard shares the limit: connections wait that it cannot accept, and those that it has go on.
    for _ in 0..20 {
        let ids = WORKLOAD.ids(&cluster.spec, Step(0), Cell(0));
        assert!(client.read(Step(0), ids).await.is_ok());
    }
    drop(open);
    setrlimit(Resource::Nofile, before).unwrap();
    let next = timeout(DEADLINE, cluster.client(1, 1 << 20)).await.unwrap();
    let ids = WORKLOAD.ids(&cluster.spec, Step(0), Cell(1));
    assert!(next.read(Step(0), ids).await.is_ok());
    next.close().await.unwrap();
    client.close().await.unwrap();
    cluster.stop().await.remove(0).unwrap();
}
