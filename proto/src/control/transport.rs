//! Channels to the coordinator: how they are opened, kept alive and signed.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::control::MESSAGE_LIMIT_BYTES;
use crate::control::error::{ControlError, Malformed, deepest};
use crate::control::token::Token;
use crate::control::wire::coordinator_client::CoordinatorClient;

/// A client whose every call carries the token.
pub(crate) type Client = CoordinatorClient<InterceptedService<Channel, Signature>>;

/// How long a silent connection is trusted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAlive {
    /// A ping goes out this often.
    pub(crate) interval: Duration,
    /// An unanswered ping ends the connection after this.
    pub(crate) timeout: Duration,
}

/// Adds the `authorization` header.
#[derive(Clone)]
pub(crate) struct Signature(Option<MetadataValue<Ascii>>);

impl Signature {
    pub(crate) fn new(token: Option<&Token>) -> Result<Signature, ControlError> {
        let value = token.map(|token| token.header().parse()).transpose();
        let mut value: Option<MetadataValue<Ascii>> = value.map_err(|_| Malformed {
            message: "authorization",
            what: "the token is not legal in a header".into(),
        })?;
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        Ok(Signature(value))
    }
}

impl Interceptor for Signature {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Opens one connection to `address` (`host:port`). The error is the last cause's text.
pub(crate) async fn connect(
    address: &str,
    deadline: Duration,
    keep_alive: KeepAlive,
) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| format!("{address:?} is not an address of the form host:port ({e})"))?
        .connect_timeout(deadline)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| deepest(&e))
}

/// A client over `channel` that signs with `signature`.
pub(crate) fn client(channel: Channel, signature: Signature) -> Client {
    CoordinatorClient::with_interceptor(channel, signature)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES)
}

/// `message` as a call that the server may give up after `deadline`.
pub(crate) fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}
