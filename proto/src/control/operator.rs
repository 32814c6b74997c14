//! The operator's client: what is the run doing, and end it.

use std::time::{Duration, Instant};

use tonic::Streaming;

use crate::control::error::{ControlError, Tried, deepest};
use crate::control::token::Token;
use crate::control::transport::{Client, KeepAlive, Signature, client, connect, timed};
use crate::control::wire;
use polygram_domain::control::{RunStatus, StopMode, WatchEvent};

/// Every operator call answers within this or fails.
const DEADLINE: Duration = Duration::from_secs(5);
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(5), timeout: Duration::from_secs(10) };

/// A connection to a coordinator.
#[derive(Clone)]
pub struct OperatorClient {
    address: String,
    client: Client,
}

impl OperatorClient {
    /// Connects to `address` (`host:port`). Without a token only looking is allowed.
    pub async fn connect(address: &str, token: Option<&Token>) -> Result<OperatorClient, ControlError> {
        let started = Instant::now();
        let channel =
            connect(address, DEADLINE, KEEP_ALIVE).await.map_err(|message| ControlError::Connect {
                address: address.to_owned(),
                message,
                attempts: 1,
                seconds: started.elapsed().as_secs_f64(),
            })?;
        Ok(OperatorClient { address: address.to_owned(), client: client(channel, Signature::new(token)?) })
    }

    /// What the run is doing now.
    pub async fn status(&mut self) -> Result<RunStatus, ControlError> {
        let started = Instant::now();
        let reply = self.client.status(timed(wire::StatusRequest {}, DEADLINE)).await;
        let reply = reply.map_err(|status| self.error("Status", &status, started))?;
        Ok(reply.into_inner().try_into()?)
    }

    /// Metrics that are not in the store yet: lines as the store holds them.
    pub async fn waiting_metrics(&mut self) -> Result<Vec<String>, ControlError> {
        let started = Instant::now();
        let reply = self.client.waiting_metrics(timed(wire::WaitingMetricsRequest {}, DEADLINE)).await;
        let reply = reply.map_err(|status| self.error("WaitingMetrics", &status, started))?;
        Ok(reply.into_inner().lines)
    }

    /// What the run does from now on; the stream itself has no end but the run's.
    pub async fn watch(&mut self) -> Result<WatchStream, ControlError> {
        let started = Instant::now();
        // A deadline on the request would bound the whole stream; only its opening is bounded here.
        let opening = tokio::time::timeout(DEADLINE, self.client.watch(wire::WatchRequest {})).await;
        let reply = opening.map_err(|_elapsed| ControlError::Deadline {
            call: "Watch",
            deadline_seconds: DEADLINE.as_secs_f64(),
            attempts: 1,
        })?;
        let reply = reply.map_err(|status| self.error("Watch", &status, started))?;
        Ok(WatchStream { address: self.address.clone(), stream: reply.into_inner() })
    }

    /// Ends the run; the answer says what happens now.
    pub async fn stop(&mut self, mode: StopMode, reason: &str) -> Result<String, ControlError> {
        let started = Instant::now();
        let request =
            wire::StopRequest { reason: reason.to_owned(), mode: wire::StopMode::from(mode).into() };
        let reply = self.client.stop(timed(request, DEADLINE)).await;
        let reply = reply.map_err(|status| self.error("Stop", &status, started))?;
        Ok(reply.into_inner().message)
    }

    fn error(&self, call: &'static str, status: &tonic::Status, started: Instant) -> ControlError {
        let tried = Tried { attempts: 1, elapsed: started.elapsed() };
        ControlError::of_status(call, &self.address, status, tried)
    }
}

/// Events of a run as they happen.
pub struct WatchStream {
    address: String,
    stream: Streaming<wire::WatchEvent>,
}

impl WatchStream {
    /// The next event; `None` once the coordinator ended the stream in good order.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ControlError> {
        match self.stream.message().await {
            Ok(Some(event)) => Ok(Some(event.try_into()?)),
            Ok(None) => Ok(None),
            Err(status) => {
                Err(ControlError::Lost { address: self.address.clone(), message: deepest(&status) })
            }
        }
    }
}
