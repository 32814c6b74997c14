//! The gRPC server of a shard: RowService, the standard health service and server reflection.

use std::sync::Arc;
use std::time::Duration;

use polygram_proto::accept::Acceptor;
use polygram_proto::control::{Guarded, Token};
use polygram_proto::rows::wire::row_service_server::RowServiceServer;
use polygram_proto::rows::{FILE_DESCRIPTORS, MESSAGE_LIMIT_BYTES};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tonic::transport::server::Server;

use crate::observe::ShardView;
use crate::query::reader::ShardReader;
use crate::query::service::Door;

/// Lookups that are under way at one time; further ones wait.
pub const READS: usize = 8;
/// Calls of one connection at one time.
const CALLS: usize = 32;
/// Connections have this long to end once nothing is served any more.
const CLOSING: Duration = Duration::from_secs(2);
/// The largest request that makes sense: 4096 rows.
const REQUEST_LIMIT_BYTES: usize = 64 << 10;

/// Why reads are not served.
#[derive(Debug, Error)]
pub enum QueryServerError {
    /// The server stopped.
    #[error("the server for reads failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The schema's description does not describe.
    #[error("server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What is served.
#[derive(Debug)]
pub struct QueryServer {
    /// The way to rows.
    pub reader: ShardReader,
    /// The way to counts.
    pub view: ShardView,
    /// The run's secret: who does not know it, reads nothing.
    pub token: Token,
}

/// Serves reads on `listener` until `shutdown`; calls under way may then take a moment to end.
///
/// # Errors
/// When the server cannot start or go on.
pub async fn serve(
    served: QueryServer,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), QueryServerError> {
    let QueryServer { reader, view, token } = served;
    let door = Door { reader, view, reads: Arc::new(Semaphore::new(READS)) };
    let rows = RowServiceServer::new(door)
        .max_decoding_message_size(REQUEST_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let rows = Guarded::new(rows, token);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<RowServiceServer<Door>>().await;
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Many tools still speak the older version of reflection.
    let (reflection, older) = (describe().build_v1()?, describe().build_v1alpha()?);
    let closing = Notify::new();
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .add_service(rows)
        .add_service(health)
        .add_service(reflection)
        .add_service(older)
        .serve_with_incoming_shutdown(Acceptor::new(listener), closing.notified());
    let mut server = std::pin::pin!(server);
    tokio::select! {
        served = &mut server => return Ok(served?),
        () = shutdown => closing.notify_one(),
    }
    match timeout(CLOSING, server).await {
        Ok(served) => Ok(served?),
        Err(_elapsed) => Ok(()),
    }
}
