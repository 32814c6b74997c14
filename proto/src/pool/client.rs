//! The operator's client of a pool: submit, cancel, look.

use std::time::{Duration, Instant};

use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::control::error::Tried;
use crate::control::transport::{KeepAlive, Signature, connect, timed};
use crate::control::{ControlError, MESSAGE_LIMIT_BYTES, Token};
use crate::pool::types::{JobId, JobStatus, PoolMemberStatus, Submission};
use crate::pool::wire;
use crate::pool::wire::pool_client::PoolClient as WireClient;

/// Every call answers within this or fails.
const DEADLINE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(5), timeout: Duration::from_secs(10) };

/// The service behind a connection whose every call carries the token.
pub(crate) type Service = WireClient<InterceptedService<Channel, Signature>>;

/// Opens a signed connection to the pool at `address` (`host:port`).
pub(crate) async fn open(address: &str, token: &Token, deadline: Duration) -> Result<Service, ControlError> {
    let started = Instant::now();
    let channel = connect(address, deadline, KEEP_ALIVE).await.map_err(|message| ControlError::Connect {
        address: address.to_owned(),
        message,
        attempts: 1,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    Ok(WireClient::with_interceptor(channel, Signature::new(Some(token))?)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES))
}

/// A connection to a pool's coordinator. Nothing is retried here.
#[derive(Clone)]
pub struct PoolClient {
    address: String,
    service: Service,
}

impl PoolClient {
    /// Connects to the pool at `address` (`host:port`).
    pub async fn connect(address: &str, token: &Token) -> Result<PoolClient, ControlError> {
        let service = open(address, token, DEADLINE).await?;
        Ok(PoolClient { address: address.to_owned(), service })
    }

    /// Puts a run file into the queue. When this returns, the job is there for good.
    ///
    /// # Errors
    /// [`ControlError::Refused`] where the run file is not legal, or its run is a job of the pool already.
    pub async fn submit(&mut self, submission: Submission) -> Result<JobId, ControlError> {
        let started = Instant::now();
        let request = timed(wire::SubmitRequest::from(submission), DEADLINE);
        let reply = self.service.submit(request).await.map_err(|s| self.error("Submit", &s, started))?;
        Ok(JobId(reply.into_inner().job))
    }

    /// Takes a job out of the queue, or has it commit and stop; the second time it stops at once. The answer says what
    /// happens.
    pub async fn cancel(&mut self, job: JobId) -> Result<String, ControlError> {
        let started = Instant::now();
        let request = timed(wire::CancelRequest { job: job.0 }, DEADLINE);
        let reply = self.service.cancel(request).await.map_err(|s| self.error("Cancel", &s, started))?;
        Ok(reply.into_inner().message)
    }

    /// The jobs that are not over, oldest first.
    pub async fn jobs(&mut self) -> Result<Vec<JobStatus>, ControlError> {
        self.list(wire::JobsRequest { all: false }).await
    }

    /// Every job that the pool ever had, oldest first.
    pub async fn all_jobs(&mut self) -> Result<Vec<JobStatus>, ControlError> {
        self.list(wire::JobsRequest { all: true }).await
    }

    async fn list(&mut self, request: wire::JobsRequest) -> Result<Vec<JobStatus>, ControlError> {
        let started = Instant::now();
        let reply = self.service.jobs(timed(request, DEADLINE)).await;
        let reply = reply.map_err(|status| self.error("Jobs", &status, started))?;
        Ok(reply.into_inner().jobs.into_iter().map(JobStatus::try_from).collect::<Result<_, _>>()?)
    }

    /// Who offers itself now.
    pub async fn members(&mut self) -> Result<Vec<PoolMemberStatus>, ControlError> {
        let started = Instant::now();
        let reply = self.service.members(timed(wire::MembersRequest {}, DEADLINE)).await;
        let reply = reply.map_err(|status| self.error("Members", &status, started))?;
        Ok(reply
            .into_inner()
            .members
            .into_iter()
            .map(PoolMemberStatus::try_from)
            .collect::<Result<_, _>>()?)
    }

    fn error(&self, call: &'static str, status: &tonic::Status, started: Instant) -> ControlError {
        ControlError::of_status(
            call,
            &self.address,
            status,
            Tried { attempts: 1, elapsed: started.elapsed() },
        )
    }
}
