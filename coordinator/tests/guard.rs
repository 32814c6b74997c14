//! Strangers at the doors of a run and of a pool: they are refused for their token, whatever they send.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::{Lead, PATIENCE, tiny, token};
use polygram_coordinator::pool::core::Rules;
use polygram_coordinator::pool::{Pool, Store, serve};
use polygram_proto::control::MESSAGE_LIMIT_BYTES;
use polygram_proto::control::wire::StopReply;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const RUN: [&str; 3] = ["Join", "ReportUpload", "Stop"];
const POOL: [&str; 4] = ["Submit", "Cancel", "Jobs", "Members"];

async fn connect(address: &str) -> Grpc<Channel> {
    Grpc::new(Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

/// Calls `path` with a message of one text, which is as long as that, as its first field.
async fn call(raw: &mut Grpc<Channel>, path: &str, token: Option<&str>, bytes: usize) -> Code {
    let mut request = Request::new(StopReply { message: "x".repeat(bytes) });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    raw.ready().await.unwrap();
    let codec = ProstCodec::<StopReply, StopReply>::default();
    let path: PathAndQuery = path.parse().unwrap();
    let answer = timeout(PATIENCE, raw.unary(request, path, codec)).await.unwrap();
    answer.map_or_else(|refusal| refusal.code(), |_| Code::Ok)
}

/// Every call of `service` refuses strangers for their token, before it looks at a message that nobody may send.
async fn refuses_strangers(address: &str, service: &str, calls: &[&str]) {
    let mut raw = connect(address).await;
    for method in calls {
        let path = format!("/{service}/{method}");
        for bytes in [1, MESSAGE_LIMIT_BYTES + 1] {
            for stranger in [None, Some("another-token-for-tests")] {
                let code = call(&mut raw, &path, stranger, bytes).await;
                assert_eq!(code, Code::Unauthenticated, "{path}, {bytes} bytes, {stranger:?}");
            }
        }
        // With the token, it is the message that is refused.
        let code = call(&mut raw, &path, Some("a-token-for-tests-only"), MESSAGE_LIMIT_BYTES + 1).await;
        assert_eq!(code, Code::OutOfRange, "{path}");
    }
}

#[tokio::test]
async fn a_run_refuses_strangers_before_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let lead = Lead::start(folder.path(), tiny(&[])).await.unwrap();
    refuses_strangers(&lead.address(), "polygram.control.v1.Coordinator", &RUN).await;
    // What nobody can make sense of, and what anybody may ask.
    let mut raw = connect(&lead.address()).await;
    let join = "/polygram.control.v1.Coordinator/Join";
    assert_eq!(call(&mut raw, join, Some("a-token-for-tests-only"), 1).await, Code::Internal);
    for open in polygram_proto::control::OPEN_CALLS {
        assert_ne!(call(&mut raw, open, None, 1).await, Code::Unauthenticated, "{open}");
    }
    lead.interrupts.send("the test".into()).await.unwrap();
    lead.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_refuses_strangers_before_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root").display().to_string();
    let store = Store::open(&folder.path().join("state.sqlite"), &root).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (interrupts, waiting) = mpsc::channel(4);
    let pool = Pool { store, root, token: token(), rules: Rules::of(10_000), metrics: None };
    let serving = tokio::spawn(serve(pool, listener, waiting));
    refuses_strangers(&address, "polygram.pool.v1.Pool", &POOL).await;
    interrupts.send("the test".into()).await.unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}
