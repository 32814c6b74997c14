//! The gRPC door: turns messages into ours and back. The only place here that names generated types. Tokens have been
//! checked when a call comes here ([`Guarded`](polygram_proto::control::Guarded)).

use std::pin::Pin;

use futures::{Stream, StreamExt};
use polygram_domain::control::{Directive, Envelope, StopMode, WatchEvent};
use polygram_proto::control::wire::coordinator_server::Coordinator;
use polygram_proto::control::{JoinRequest, MESSAGE_LIMIT_BYTES, Malformed, UploadReport, wire};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::messages::{Input, Refusal};
use crate::upload::ReadUpload;

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over the driver's inbox.
pub(crate) struct Door {
    pub(crate) inbox: mpsc::Sender<Input>,
}

impl Door {
    /// Asks the driver; a driver that is gone means that the run has ended.
    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let ended = || Status::failed_precondition("the run is over: the coordinator is leaving");
        let (answer, receiver) = oneshot::channel();
        self.inbox.send(input(answer)).await.map_err(|_| ended())?;
        receiver.await.map_err(|_| ended())
    }
}

/// A refusal as a status; see `ControlError` for what members make of it.
fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::No(why) => Status::failed_precondition(why),
        Refusal::Later(why) => Status::aborted(why),
    }
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl Coordinator for Door {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let message = request.into_inner();
        // Another version's message may well lack what ours has: its version is looked at first.
        let (theirs, ours) = (message.schema_version, polygram_domain::SCHEMA_VERSION);
        if theirs != ours {
            return Err(Status::failed_precondition(format!(
                "the member speaks schema version {theirs}, the run speaks version {ours}; use the same build \
                 everywhere"
            )));
        }
        let request = JoinRequest::try_from(message).map_err(malformed)?;
        let joined = self.ask(|answer| Input::Join { request, answer }).await?;
        Ok(Response::new(joined.map_err(refused)?.into()))
    }

    type AttendStream = Outgoing<wire::Directive>;

    async fn attend(
        &self,
        request: Request<Streaming<wire::MemberReport>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first =
            first.ok_or_else(|| Status::invalid_argument("the stream ended before its first report"))?;
        let first = Envelope::try_from(first).map_err(malformed)?;
        let (member, generation) = (first.member, first.generation);
        let rest = messages.map(|message| match message {
            Ok(message) => Envelope::try_from(message).map_err(|e| format!("it sent nonsense: {e}")),
            Err(status) => Err(format!("its connection broke ({})", status.message())),
        });
        let reports = Box::pin(futures::stream::once(async { Ok(first) }).chain(rest));
        let directives = self.ask(|answer| Input::Attend { member, generation, reports, answer }).await?;
        let directives = ReceiverStream::new(directives.map_err(refused)?);
        Ok(Response::new(Box::pin(directives.map(|directive: Directive| Ok(directive.into())))))
    }

    async fn report_upload(
        &self,
        request: Request<wire::ReportUploadRequest>,
    ) -> Result<Response<wire::ReportUploadReply>, Status> {
        let report = UploadReport::from(request.into_inner());
        let report = ReadUpload::of(report).await.map_err(Status::failed_precondition)?;
        let noted = self.ask(|answer| Input::Upload { report, answer }).await?;
        noted.map_err(refused)?;
        Ok(Response::new(wire::ReportUploadReply {}))
    }

    async fn status(
        &self,
        _request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        let status = self.ask(|answer| Input::Status { answer }).await?;
        Ok(Response::new(status.into()))
    }

    type WatchStream = Outgoing<wire::WatchEvent>;

    async fn watch(
        &self,
        _request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (status, events) = self.ask(|answer| Input::Watch { answer }).await?;
        // A slow watcher misses events, which is the only error here; the run does not wait for it.
        let later = BroadcastStream::new(events).filter_map(|event| async { event.ok() });
        let first = futures::stream::once(async { WatchEvent::Status(Box::new(status)) });
        let all = first.chain(later).scan(false, |over, event| {
            let emitted = (!*over).then(|| {
                *over = matches!(&event, WatchEvent::Status(status) if status.state.is_over());
                Ok(wire::WatchEvent::from(event))
            });
            async { emitted }
        });
        Ok(Response::new(Box::pin(all)))
    }

    async fn waiting_metrics(
        &self,
        _request: Request<wire::WaitingMetricsRequest>,
    ) -> Result<Response<wire::WaitingMetricsReply>, Status> {
        let waiting = self.ask(|answer| Input::WaitingMetrics { answer }).await?;
        let mut room = MESSAGE_LIMIT_BYTES / 2;
        let lines = waiting.iter().map_while(|line| {
            let line = serde_json::to_string(line).ok()?;
            room = room.checked_sub(line.len())?;
            Some(line)
        });
        Ok(Response::new(wire::WaitingMetricsReply { lines: lines.collect() }))
    }

    async fn stop(&self, request: Request<wire::StopRequest>) -> Result<Response<wire::StopReply>, Status> {
        let mode = StopMode::try_from(request.get_ref().mode()).map_err(malformed)?;
        let reason = request.into_inner().reason;
        let message = self.ask(|answer| Input::Stop { mode, reason, answer }).await?;
        Ok(Response::new(wire::StopReply { message: message.map_err(refused)? }))
    }
}
