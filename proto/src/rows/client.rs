//! A reader's connection to one shard.

use std::time::Duration;

use polygram_domain::TableIndex;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::control::error::Malformed;
use crate::control::transport::{KeepAlive, Signature, connect, timed};
use crate::control::{ControlError, Token};
use crate::rows::error::ReadError;
use crate::rows::types::{Description, Looked, Lookup, Stats};
use crate::rows::wire::row_service_client::RowServiceClient;
use crate::rows::{MESSAGE_LIMIT_BYTES, wire};

/// Every call answers within this or fails.
const DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) };

/// Reads one shard. Every call is safe to repeat; nothing is retried here.
#[derive(Clone)]
pub struct RowReader {
    address: String,
    client: RowServiceClient<InterceptedService<Channel, Signature>>,
}

impl RowReader {
    /// Connects to the shard that answers reads at `address` (`host:port`).
    ///
    /// # Errors
    /// [`ReadError::Connect`] when nobody answers there.
    pub async fn connect(address: &str, token: &Token) -> Result<RowReader, ReadError> {
        let signature = Signature::new(Some(token)).map_err(|error| match error {
            ControlError::Malformed(malformed) => ReadError::Malformed(malformed),
            other => ReadError::Connect { address: address.to_owned(), message: other.to_string() },
        })?;
        let channel = connect(address, DEADLINE, KEEP_ALIVE).await;
        let channel =
            channel.map_err(|message| ReadError::Connect { address: address.to_owned(), message })?;
        let client = RowServiceClient::with_interceptor(channel, signature)
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES);
        Ok(RowReader { address: address.to_owned(), client })
    }

    /// Weights of `rows` of `table` as of the last closed step, `width` values each, in the order asked for.
    ///
    /// # Errors
    /// [`ReadError::Refused`] for rows of another shard or too many of them.
    pub async fn lookup(&mut self, table: TableIndex, rows: Vec<u32>) -> Result<Looked, ReadError> {
        let asked = rows.len();
        let request = wire::LookupRequest::from(Lookup { table, rows });
        let reply = self.client.lookup(timed(request, DEADLINE)).await;
        let looked = Looked::from(reply.map_err(|status| self.error("Lookup", &status))?.into_inner());
        if looked.values_rw.len().checked_rem(asked).unwrap_or(looked.values_rw.len()) != 0 {
            let what = format!("{} values are not {asked} rows", looked.values_rw.len());
            return Err(Malformed { message: "LookupReply", what }.into());
        }
        Ok(looked)
    }

    /// What the shard owns.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn describe(&mut self) -> Result<Description, ReadError> {
        let reply = self.client.describe(timed(wire::DescribeRequest {}, DEADLINE)).await;
        Ok(reply.map_err(|status| self.error("Describe", &status))?.into_inner().try_into()?)
    }

    /// What the shard has counted.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stats(&mut self) -> Result<Stats, ReadError> {
        let reply = self.client.stats(timed(wire::StatsRequest {}, DEADLINE)).await;
        Ok(reply.map_err(|status| self.error("Stats", &status))?.into_inner().try_into()?)
    }

    fn error(&self, call: &'static str, status: &tonic::Status) -> ReadError {
        ReadError::of_status(call, &self.address, status, DEADLINE.as_secs_f64())
    }
}
