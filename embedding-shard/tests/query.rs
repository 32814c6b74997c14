//! Reads over gRPC: rows, description and counts, the standard health service, server reflection.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::cluster::{DEADLINE, GENERATION, new_shard};
use common::{overrides, spec};
use polygram_domain::{RowId, RowRef, Step, TableIndex};
use polygram_embedding_shard::observe::{LaneObserver, ShardView, StepTotals, UpdatedRow};
use polygram_embedding_shard::query::{Peek, PeekError, Peeked, QueryServer, ShardReader, serve};
use polygram_embedding_shard::{Shard, ShardConfig};
use polygram_proto::control::Token;
use polygram_proto::control::wire::StopReply;
use polygram_proto::rows::{ROWS_LIMIT, ReadError, RowReader};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const REFUSED: tonic::Code = tonic::Code::Unauthenticated;
const SERVICE: &str = "polygram.rows.v1.RowService";

fn token() -> Token {
    Token::new("a-token-for-tests-only").unwrap()
}

/// Shard 0 of two, with three lanes that have closed two steps.
fn shard() -> Shard {
    new_shard(&spec(&overrides(&["topology.shards=2", "embedding.lanes=3"])), 0)
}

/// Counts of two steps, in which each lane updated one row of table 0.
fn counted(config: &Arc<ShardConfig>) -> ShardView {
    let lanes = config.lane_buckets().into_iter().enumerate().map(|(number, _)| {
        let (mut lane, inlet) = LaneObserver::new(config.tables.len());
        for step in 0..2u32 {
            let updated =
                UpdatedRow { table: TableIndex(0), row: RowId(8 * number as u32), updates: step + 1 };
            lane.updated(updated, &[1, 2, 3, 4]);
            lane.row_norm(0.75);
            lane.released(Duration::from_millis(2));
            lane.closed_step(StepTotals {
                version: Step(u64::from(step) + 1),
                changed_rows: 0,
                declared_rows: 4,
                step_rows: 3,
                busy: Duration::from_millis(5),
            });
        }
        inlet
    });
    ShardView::new(Arc::clone(config), lanes.collect())
}

/// Answers questions as lanes do, with the shard's rows; `version` says of what version a lane's answer is.
async fn lanes(mut questions: mpsc::Receiver<Peek>, shard: Shard, version: fn(usize) -> u64) {
    let buckets = shard.config().lane_buckets();
    while let Some(Peek { lane, table, rows, reply }) = questions.recv().await {
        let spec = shard.config().tables.get(table).unwrap();
        let owned = polygram_embedding_shard::config::rows_of_buckets(spec, &buckets[lane]);
        assert!(rows.iter().all(|row| owned.contains(row)), "lane {lane} was asked for rows of another");
        let values = rows.iter().flat_map(|&row| shard.weights(RowRef { table, row: RowId(row) }).unwrap());
        let values_rw = values.collect();
        reply.send(Peeked { version: Step(version(lane)), values_rw }).unwrap();
    }
}

struct Served {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

async fn start(version: fn(usize) -> u64) -> Served {
    let shard = shard();
    let (reader, questions) = ShardReader::new(Arc::clone(shard.config()));
    let served = QueryServer { reader, view: counted(shard.config()), token: token() };
    tokio::spawn(lanes(questions, shard, version));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let stopped = async { stopped.await.unwrap_or_default() };
        serve(served, listener, stopped).await.unwrap();
    });
    Served { address, stop, server }
}

#[tokio::test]
async fn rows_come_in_the_order_asked_for() {
    let served = start(|_| 2).await;
    let mut reader = RowReader::connect(&served.address.to_string(), &token()).await.unwrap();
    let description = reader.describe().await.unwrap();
    assert_eq!((description.run.as_str(), description.generation), ("tiny", GENERATION));
    assert_eq!((description.shard.0, description.shards, description.lanes), (0, 2, 3));
    assert_eq!((description.version, description.optimizer.as_str()), (Step(2), "adam"));
    assert_eq!(description.storage, "f32");
    let known = shard();
    for table in &description.tables {
        let owned = &table.owned;
        assert!(owned.start == 0 && !owned.is_empty() && owned.end < table.rows);
        // From all lanes, not in order, one twice.
        let rows = vec![owned.end - 1, 0, owned.end / 2, 3, 0];
        let looked = reader.lookup(table.table, rows.clone()).await.unwrap();
        assert_eq!(looked.version, Step(2));
        let expected: Vec<f32> = rows
            .iter()
            .flat_map(|&row| known.weights(RowRef { table: table.table, row: RowId(row) }).unwrap())
            .collect();
        assert_eq!(looked.values_rw, expected, "table {}", table.table);
        assert_eq!(looked.values_rw.len(), rows.len() * table.width as usize);
    }
    let none = reader.lookup(TableIndex(0), Vec::new()).await.unwrap();
    assert_eq!((none.version, none.values_rw.len()), (Step(2), 0));
}

#[tokio::test]
async fn counts_are_told() {
    let served = start(|_| 2).await;
    let mut reader = RowReader::connect(&served.address.to_string(), &token()).await.unwrap();
    let stats = reader.stats().await.unwrap();
    assert_eq!((stats.version, stats.since), (Step(2), Step(0)));
    assert_eq!((stats.declared_rows, stats.step_rows), (24, 18));
    assert_eq!((stats.tables[0].touched_rows, stats.tables[0].updates), (3, 6));
    assert_ne!(stats.tables[0].fingerprint, stats.tables[1].fingerprint);
    assert_eq!(
        stats.hot_rows.iter().map(|row| (row.row.0, row.updates)).collect::<Vec<_>>(),
        [(0, 2), (8, 2), (16, 2)]
    );
    let norms: Vec<_> = stats.row_norms.buckets.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(norms, [&(1.0, 6)]);
    assert!((stats.park_seconds.sum - 0.012).abs() < 1e-6);
    assert_eq!(stats.lane_busy_seconds, [0.01; 3]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_says_why() {
    let served = start(|lane| lane as u64).await;
    let address = served.address.to_string();
    let mut reader = RowReader::connect(&address, &token()).await.unwrap();
    let end = reader.describe().await.unwrap().tables[0].owned.end;
    for (table, rows, part) in [
        (0, vec![0, end], "owns rows 0 to before"),
        (99, vec![0], "table 99 of a model with"),
        (0, vec![0; ROWS_LIMIT + 1], "at most 4096"),
    ] {
        let error = reader.lookup(TableIndex(table), rows).await.unwrap_err();
        assert!(matches!(error, ReadError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    }
    // A full call goes through.
    assert_eq!(reader.lookup(TableIndex(0), vec![1; ROWS_LIMIT]).await.unwrap().version, Step(0));
    // Lanes that never agree on a version are no answer.
    let error = reader.lookup(TableIndex(0), vec![0, end - 1]).await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error:?}");

    let stranger = Token::new("another-token-of-tests").unwrap();
    let mut stranger = RowReader::connect(&address, &stranger).await.unwrap();
    assert!(matches!(stranger.describe().await, Err(ReadError::Unauthenticated { .. })));
    assert!(matches!(stranger.stats().await, Err(ReadError::Unauthenticated { .. })));
    let looked = stranger.lookup(TableIndex(0), vec![0]).await;
    assert!(matches!(looked, Err(ReadError::Unauthenticated { .. })));

    served.stop.send(()).unwrap();
    tokio::time::timeout(DEADLINE, served.server).await.unwrap().unwrap();
    assert!(matches!(reader.stats().await, Err(ReadError::Unavailable { .. })));
    assert!(matches!(RowReader::connect(&address, &token()).await, Err(ReadError::Connect { .. })));
}

/// Tokens are looked at first: whoever has none cannot make a shard read, and learns nothing of its limits.
#[tokio::test]
async fn a_stranger_is_refused_whatever_it_sends() {
    let served = start(|_| 2).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    let mut raw = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    // As text, the first field fits no request; and 64 KiB are the most that a request may have.
    for (bytes, mine) in [(1, tonic::Code::Internal), (1 << 20, tonic::Code::OutOfRange)] {
        for (token, code) in
            [(Some("a-token-for-tests-only"), mine), (Some("another-token-of-tests"), REFUSED)]
                .into_iter()
                .chain([(None, REFUSED)])
        {
            let mut request = tonic::Request::new(StopReply { message: "x".repeat(bytes) });
            if let Some(token) = token {
                let header = format!("Bearer {token}").parse().unwrap();
                request.metadata_mut().insert("authorization", header);
            }
            raw.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<StopReply, StopReply>::default();
            let path = PathAndQuery::from_static("/polygram.rows.v1.RowService/Lookup");
            let refusal = raw.unary(request, path, codec).await.unwrap_err();
            assert_eq!(refusal.code(), code, "{bytes} bytes: {refusal}");
        }
    }
}

#[tokio::test]
async fn a_shard_that_does_not_serve_says_so() {
    let (reader, questions) = ShardReader::new(Arc::clone(shard().config()));
    drop(questions);
    assert_eq!(reader.peek(TableIndex(0), &[0]).await, Err(PeekError::Ended));
}

#[tokio::test]
async fn health_and_reflection_are_the_standard_ones() {
    let served = start(|_| 2).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = health.check(request).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "polygram.Nothing".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);

    let mut reflection = ServerReflectionClient::new(channel);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(SERVICE.to_owned())),
    ];
    let replies = reflection.server_reflection_info(tokio_stream::iter(requests)).await.unwrap();
    let mut replies = replies.into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        replies.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list of services");
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&SERVICE) && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let Some(MessageResponse::FileDescriptorResponse(file)) =
        replies.message().await.unwrap().unwrap().message_response
    else {
        panic!("the schema");
    };
    let text = file.file_descriptor_proto.concat();
    let has = |word: &str| text.windows(word.len()).any(|bytes| bytes == word.as_bytes());
    assert!(has("LookupRequest") && has("Describe") && has("polygram.rows.v1"));
}
