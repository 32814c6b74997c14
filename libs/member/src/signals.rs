//! SIGINT and SIGTERM mean the same in every role: the first asks the run to commit and stop, the second ends this member
//! at once. A run that cannot be asked ends it at once, too.

use std::fmt;
use std::pin::Pin;

use polygram_domain::control::StopMode;
use polygram_process::StopSignals;
use polygram_proto::control::{ControlError, OperatorClient};

use crate::options::MemberOptions;

/// The coordinator's answer to the request to stop.
type Answer = Pin<Box<dyn Future<Output = Result<String, ControlError>> + Send>>;

/// What the signals of this process have led to so far.
enum State {
    /// No signal.
    Listening,
    /// The run is asked to stop.
    Asking(Answer),
    /// It was asked, and answered.
    Asked,
    /// This member leaves at once.
    Leaving,
}

/// The policy, for one run.
pub(crate) struct SignalPolicy<'a> {
    signals: &'a mut StopSignals,
    options: &'a MemberOptions,
    state: State,
}

impl<'a> SignalPolicy<'a> {
    /// Of a member with `options`. Signals that came before count.
    pub(crate) fn new(signals: &'a mut StopSignals, options: &'a MemberOptions) -> SignalPolicy<'a> {
        SignalPolicy { signals, options, state: State::Listening }
    }

    /// Follows the signals. Resolves when this member is to leave at once. Cancel safe.
    pub(crate) async fn leave_at_once(&mut self) {
        let SignalPolicy { signals, options, state } = self;
        loop {
            *state = match state {
                State::Listening => {
                    signals.at_least(1).await;
                    tracing::info!(
                        member = %options.member,
                        "signalled: the run is asked to commit and stop; once more, and this member leaves at once"
                    );
                    State::Asking(ask_to_stop((*options).clone()))
                }
                State::Asking(answer) => tokio::select! {
                    answer = answer => match answer {
                        Ok(answer) => {
                            tracing::info!(answer, "the coordinator answered");
                            State::Asked
                        }
                        Err(error) => {
                            tracing::error!(%error, "the run could not be asked to stop: leaving without a commit");
                            State::Leaving
                        }
                    },
                    () = signals.at_least(2) => State::Asked,
                },
                State::Asked => {
                    signals.at_least(2).await;
                    tracing::warn!("signalled again: leaving at once, without a commit");
                    State::Leaving
                }
                State::Leaving => return,
            }
        }
    }
}

fn ask_to_stop(options: MemberOptions) -> Answer {
    Box::pin(async move {
        let MemberOptions { coordinator, token, member, .. } = options;
        let mut operator = OperatorClient::connect(&coordinator, Some(&token)).await?;
        operator.stop(StopMode::Commit, &format!("{member} was told to end by a signal")).await
    })
}

impl fmt::Debug for SignalPolicy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalPolicy").field("member", &self.options.member).finish_non_exhaustive()
    }
}
