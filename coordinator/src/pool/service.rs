//! The gRPC door of a pool: generated types stop here. Every call needs the token, which has been checked before
//! ([`Guarded`](polygram_proto::control::Guarded)).

use std::pin::Pin;

use futures::{Stream, StreamExt};
use polygram_proto::control::Malformed;
use polygram_proto::pool::wire::pool_server::Pool;
use polygram_proto::pool::{JobId, MemberWord, PoolWord, Submission, wire};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::messages::Input;

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service over the driver's inbox.
pub(super) struct Door {
    pub(super) inbox: mpsc::Sender<Input>,
}

impl Door {
    /// Asks the driver; one that is gone means that the process is on its way out.
    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let leaving = || Status::failed_precondition("the pool's coordinator is leaving");
        let (answer, receiver) = oneshot::channel();
        self.inbox.send(input(answer)).await.map_err(|_| leaving())?;
        receiver.await.map_err(|_| leaving())
    }
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl Pool for Door {
    type OfferStream = Outgoing<wire::PoolWord>;

    async fn offer(
        &self,
        request: Request<Streaming<wire::MemberWord>>,
    ) -> Result<Response<Self::OfferStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?;
        let first =
            first.ok_or_else(|| Status::invalid_argument("the stream ended before its first word"))?;
        let MemberWord::Offering(offering) = MemberWord::try_from(first).map_err(malformed)? else {
            return Err(Status::invalid_argument("the first word of a stream must be an offering"));
        };
        let words = messages.map(|message| match message {
            Ok(message) => MemberWord::try_from(message).map_err(|e| format!("it sent nonsense: {e}")),
            Err(status) => Err(format!("its connection broke ({})", status.message())),
        });
        let words = Box::pin(words);
        let told = self.ask(|answer| Input::Offer { offering, words, answer }).await?;
        let told = ReceiverStream::new(told).map(|word: PoolWord| Ok(word.into()));
        Ok(Response::new(Box::pin(told)))
    }

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitReply>, Status> {
        let submission = Submission::from(request.into_inner());
        let job = self.ask(|answer| Input::Submit { submission, answer }).await?;
        let job = job.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::SubmitReply { job: job.0 }))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelReply>, Status> {
        let job = JobId(request.into_inner().job);
        let message = self.ask(|answer| Input::Cancel { job, answer }).await?;
        Ok(Response::new(wire::CancelReply { message: message.map_err(Status::failed_precondition)? }))
    }

    async fn jobs(&self, request: Request<wire::JobsRequest>) -> Result<Response<wire::JobsReply>, Status> {
        let all = request.into_inner().all;
        let jobs = self.ask(|answer| Input::Jobs { answer }).await?;
        let jobs = jobs.into_iter().filter(|job| all || !job.state.is_over()).map(Into::into).collect();
        Ok(Response::new(wire::JobsReply { jobs }))
    }

    async fn members(
        &self,
        _request: Request<wire::MembersRequest>,
    ) -> Result<Response<wire::MembersReply>, Status> {
        let members = self.ask(|answer| Input::Members { answer }).await?;
        Ok(Response::new(wire::MembersReply { members: members.into_iter().map(Into::into).collect() }))
    }
}
