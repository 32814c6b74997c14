//! What a member is told during one membership, and what may end it at any time: the coordinator, the pool, a signal.
//!
//! What always holds: every end of a membership that comes from outside is returned by [`Inbox::next`], and by nothing
//! else. A report that cannot be sent is no end of its own: the next call says why the session is over.

use std::time::Duration;

use polygram_domain::Step;
use polygram_domain::control::{Abort, Assignment, Directive, MemberReport};
use polygram_proto::control::{ControlError, Directives, Reporter};
use tokio::time::timeout;

use crate::error::MemberError;
use crate::failure::{FailureReply, MemberFailure};
use crate::signals::SignalPolicy;

/// A member that failed waits so long for the coordinator's reply.
const FAILURE_REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the coordinator tells a member that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// Everybody is ready: begin.
    Start,
    /// Commit at the next step boundary and stop.
    Stop {
        /// One sentence.
        reason: String,
    },
    /// The checkpoint of this step is committed.
    Committed {
        /// Updates applied in it.
        step: Step,
    },
    /// The recovery point of this step is kept, or was given up.
    PointSettled {
        /// Updates applied in it.
        step: Step,
        /// Whether it is kept.
        kept: bool,
    },
    /// The run is over: leave.
    Exit,
}

/// One membership's directives, and the signals of this process.
pub struct Inbox<'a, 's> {
    directives: Directives,
    signals: &'a mut SignalPolicy<'s>,
}

/// A directive, sorted.
enum Received {
    Assignment(Assignment),
    Event(MemberEvent),
}

impl<'a, 's> Inbox<'a, 's> {
    pub(crate) fn new(directives: Directives, signals: &'a mut SignalPolicy<'s>) -> Inbox<'a, 's> {
        Inbox { directives, signals }
    }

    async fn receive(&mut self) -> Result<Received, MemberError> {
        let directive = tokio::select! {
            directive = self.directives.next() => directive?,
            () = self.signals.leave_at_once() => return Err(MemberError::Signalled),
        };
        Ok(Received::Event(match directive {
            Directive::Assign(assignment) => return Ok(Received::Assignment(assignment)),
            Directive::Abort(abort) => return Err(abort.into()),
            Directive::Start => MemberEvent::Start,
            Directive::Stop { reason } => MemberEvent::Stop { reason },
            Directive::Committed { step } => MemberEvent::Committed { step },
            Directive::PointSettled { step, kept } => MemberEvent::PointSettled { step, kept },
            Directive::Exit => MemberEvent::Exit,
        }))
    }

    /// The next event. Cancel safe.
    ///
    /// # Errors
    /// The end of the membership: an abort, a lost coordinator, a recall, a second signal.
    pub async fn next(&mut self) -> Result<MemberEvent, MemberError> {
        loop {
            if let Received::Event(event) = self.receive().await? {
                return Ok(event);
            }
        }
    }

    /// The assignment; `None` where the run ends before.
    pub(crate) async fn assignment(&mut self) -> Result<Option<Assignment>, MemberError> {
        loop {
            match self.receive().await? {
                Received::Assignment(assignment) => return Ok(Some(assignment)),
                Received::Event(MemberEvent::Exit) => return Ok(None),
                Received::Event(_) => {}
            }
        }
    }

    /// Waits for the start of the run; `None` where it ends before.
    ///
    /// # Errors
    /// Those of [`Inbox::next`].
    pub async fn started(&mut self) -> Result<Option<()>, MemberError> {
        loop {
            match self.next().await? {
                MemberEvent::Start => return Ok(Some(())),
                MemberEvent::Exit => return Ok(None),
                MemberEvent::Stop { .. }
                | MemberEvent::Committed { .. }
                | MemberEvent::PointSettled { .. } => {}
            }
        }
    }

    /// Does `work`, unless the membership ends before: peers that are gone would be waited for long. `None` where the run
    /// ends in order. Then `work` is dropped.
    ///
    /// # Errors
    /// Those of `work`, and those of [`Inbox::next`].
    pub async fn unless_ended<T, E: From<MemberError>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, E> {
        let ended = async {
            loop {
                match self.next().await {
                    Ok(MemberEvent::Exit) => return Ok(None),
                    Ok(_) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::select! {
            done = work => done.map(Some),
            ended = ended => ended,
        }
    }

    /// Reports a failure and gives the coordinator a moment to reply, so that it learns who failed and why. A signal does
    /// not shorten that.
    pub(crate) async fn report_failure(
        &mut self,
        failure: &MemberFailure,
        reporter: &Reporter,
    ) -> FailureReply {
        let (step, phase) = reporter.progress().get();
        let report = MemberReport::Failed(failure.report(step, phase));
        if let Err(lost) = reporter.report(report).await {
            tracing::warn!(%lost, "the failure was not reported");
            return FailureReply::Unknown;
        }
        let replied = async {
            loop {
                match self.directives.next().await {
                    Ok(Directive::Exit) => return FailureReply::RunOver,
                    Ok(Directive::Abort(abort)) => return reply_of(abort),
                    Ok(_) => {}
                    Err(_lost) => return FailureReply::Unknown,
                }
            }
        };
        timeout(FAILURE_REPLY_TIMEOUT, replied).await.unwrap_or_else(|_elapsed| {
            tracing::warn!("the coordinator did not reply to the failure report");
            FailureReply::Unknown
        })
    }

    /// Leaves the run in order.
    pub(crate) async fn leave(self) -> Result<(), ControlError> {
        self.directives.leave().await
    }

    /// Ends the session at once. Its task has ended when this returns.
    pub(crate) async fn close(self) {
        self.directives.close().await;
    }
}

fn reply_of(abort: Abort) -> FailureReply {
    match MemberError::from(abort) {
        MemberError::RunRestarts(_) => FailureReply::RunContinues,
        _ => FailureReply::RunOver,
    }
}
