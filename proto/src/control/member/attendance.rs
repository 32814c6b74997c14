//! The task behind a session: heartbeats and reports out, directives in, until one side ends it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::control::error::{ControlError, Tried, deepest};
use crate::control::joining::Joined;
use crate::control::progress::Progress;
use crate::control::transport::Client;
use crate::control::wire;
use polygram_domain::control::{Directive, Envelope, Heartbeat, MemberReport};

/// Messages that may wait in the transport.
const WIRE_QUEUE: usize = 64;

/// What the task holds. When it ends, `fate` says why, and both channels close.
pub(super) struct Attendance {
    pub(super) address: String,
    pub(super) joined: Joined,
    pub(super) progress: Progress,
    pub(super) reports: mpsc::Receiver<MemberReport>,
    pub(super) directives: mpsc::Sender<Directive>,
    pub(super) fate: Arc<OnceLock<ControlError>>,
}

/// Why the loop ended without an error.
enum End {
    /// The member leaves; reports may still wait.
    Left,
    /// The coordinator ended the stream after telling the member to go.
    Dismissed,
}

impl Attendance {
    pub(super) async fn run(mut self, client: Client, leaving: oneshot::Receiver<()>) {
        let end = self.attend(client, leaving).await;
        // Set once, here: the task is the only writer.
        let _first = self.fate.set(end.err().unwrap_or(ControlError::Closed));
    }

    async fn attend(
        &mut self,
        mut client: Client,
        mut leaving: oneshot::Receiver<()>,
    ) -> Result<(), ControlError> {
        let (wire, queue) = mpsc::channel(WIRE_QUEUE);
        // The first message names the member.
        self.send(&wire, self.heartbeat()).await?;
        let opening = client.attend(ReceiverStream::new(queue));
        let opening = tokio::time::timeout(self.joined.failure_detection, opening).await;
        let tried = Tried { attempts: 1, elapsed: self.joined.failure_detection };
        let mut inbound = opening
            .map_err(|_elapsed| ControlError::Deadline {
                call: "Attend",
                deadline_seconds: tried.elapsed.as_secs_f64(),
                attempts: 1,
            })?
            .map_err(|status| ControlError::of_status("Attend", &self.address, &status, tried))?
            .into_inner();
        let end = self.serve(&wire, &mut inbound, &mut leaving).await?;
        if let End::Left = end {
            self.flush(&wire).await?;
            drop(wire);
            return self.await_end(inbound).await;
        }
        Ok(())
    }

    async fn serve(
        &mut self,
        wire: &mpsc::Sender<wire::MemberReport>,
        inbound: &mut Streaming<wire::Directive>,
        leaving: &mut oneshot::Receiver<()>,
    ) -> Result<End, ControlError> {
        let mut beat = tokio::time::interval(self.joined.heartbeat_interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut undelivered: Option<Directive> = None;
        let mut dismissed = false;
        let mut reports_open = true;
        loop {
            tokio::select! {
                _asked = &mut *leaving => return Ok(End::Left),
                _instant = beat.tick() => {
                    // A full queue means that the network is behind: the next beat says the same.
                    let _full = wire.try_send(self.envelope(self.heartbeat()));
                }
                report = self.reports.recv(), if reports_open => match report {
                    Some(report) => self.send(wire, report).await?,
                    None => reports_open = false,
                },
                permit = self.directives.reserve(), if undelivered.is_some() => match permit {
                    Ok(permit) => {
                        if let Some(directive) = undelivered.take() {
                            permit.send(directive);
                        }
                    }
                    // The listener leaves or is gone; the leave signal or the abort follows.
                    Err(_closed) => undelivered = None,
                },
                message = inbound.message(), if undelivered.is_none() => match message {
                    Ok(Some(message)) => {
                        let directive = Directive::try_from(message)?;
                        dismissed |= matches!(directive, Directive::Exit | Directive::Abort(_));
                        undelivered = Some(directive);
                    }
                    Ok(None) if dismissed => return Ok(End::Dismissed),
                    Ok(None) => return Err(self.lost("it ended the stream".into())),
                    Err(_status) if dismissed => return Ok(End::Dismissed),
                    Err(status) => return Err(self.lost(deepest(&status))),
                },
            }
        }
    }

    /// Sends every report that is already waiting.
    async fn flush(&mut self, wire: &mpsc::Sender<wire::MemberReport>) -> Result<(), ControlError> {
        self.reports.close();
        while let Some(report) = self.reports.recv().await {
            self.send(wire, report).await?;
        }
        Ok(())
    }

    /// Reads to the end of the stream, which is the coordinator's word that it has read ours.
    async fn await_end(&self, mut inbound: Streaming<wire::Directive>) -> Result<(), ControlError> {
        let drain = async {
            while let Some(_late) = inbound.message().await.map_err(|s| self.lost(deepest(&s)))? {}
            Ok(())
        };
        let patience: Duration = self.joined.failure_detection;
        match tokio::time::timeout(patience, drain).await {
            Ok(end) => end,
            Err(_elapsed) => Err(self.lost(format!("it did not end the stream within {patience:?}"))),
        }
    }

    async fn send(
        &self,
        wire: &mpsc::Sender<wire::MemberReport>,
        report: MemberReport,
    ) -> Result<(), ControlError> {
        let sending = wire.send_timeout(self.envelope(report), self.joined.failure_detection).await;
        sending.map_err(|_stuck| self.lost("it does not read our reports".into()))
    }

    fn heartbeat(&self) -> MemberReport {
        let (step, phase) = self.progress.get();
        let restored_bytes = self.progress.restored_bytes().load(Ordering::Relaxed);
        let store_wait = self.progress.store_wait().borrow().clone();
        MemberReport::Heartbeat(Heartbeat { step, phase, restored_bytes, store_wait })
    }

    fn envelope(&self, report: MemberReport) -> wire::MemberReport {
        Envelope { member: self.joined.member, generation: self.joined.generation, report }.into()
    }

    fn lost(&self, message: String) -> ControlError {
        ControlError::Lost { address: self.address.clone(), message }
    }
}
