//! A member's session with the coordinator: join, then one stream for life.
//!
//! One task owns the stream ([`attendance`]): it sends heartbeats from the shared [`Progress`] cell, forwards reports
//! and hands directives out. The task lives as long as the [`Directives`] half; the [`Reporter`] half is cheap to
//! clone. Whatever ends the stream (a dead coordinator, a cut network, a refusal) comes out of
//! [`Directives::next`] as one error.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use polygram_domain::control::{Abort, AbortKind, Directive, Incarnation, MemberRef, MemberReport, Phase};
use polygram_domain::{SCHEMA_VERSION, Step};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::control::error::{ControlError, Tried};
use crate::control::joining::{JoinRequest, Joined, Upload, UploadReport};
use crate::control::progress::Progress;
use crate::control::recall::Recall;
use crate::control::token::{Token, random};
use crate::control::transport::{Client, KeepAlive, Signature, client, connect, timed};
use crate::control::wire;

mod attendance;

use attendance::Attendance;

/// Pause between two attempts of an idempotent call.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Reports that may wait for the network; more of them hold the reporter back.
const REPORTS_IN_FLIGHT: usize = 256;
const DIRECTIVES_IN_FLIGHT: usize = 64;

/// How long a member that lost its coordinator, or was sent back by it, tries to join again: three times the failure
/// detection, and at least ten seconds, so that a coordinator on the same machine can be started again.
pub fn rejoin_patience(failure_detection: Duration) -> Duration {
    (failure_detection * 3).max(Duration::from_secs(10))
}

/// What a process needs to enter a run.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The coordinator, `host:port`.
    pub coordinator: String,
    /// The run's secret.
    pub token: Token,
    /// The slot it wants.
    pub member: MemberRef,
    /// Where peers reach its data plane.
    pub data_address: SocketAddr,
    /// Joining is tried for so long.
    pub deadline: Duration,
    /// Version of every message it speaks.
    pub schema_version: u32,
    /// Ends joining and membership from outside the run.
    pub recall: Recall,
}

impl JoinOptions {
    /// Options with this build's schema version and a deadline of 30 seconds.
    pub fn new(
        coordinator: impl Into<String>,
        token: Token,
        member: MemberRef,
        data_address: SocketAddr,
    ) -> JoinOptions {
        JoinOptions {
            coordinator: coordinator.into(),
            token,
            member,
            data_address,
            deadline: Duration::from_secs(30),
            schema_version: SCHEMA_VERSION,
            recall: Recall::default(),
        }
    }
}

/// A member's life in a run.
pub struct MemberSession {
    reporter: Reporter,
    directives: Directives,
}

impl MemberSession {
    /// Enters the run and opens the stream. Must run on a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Refused`] at once when the coordinator says no; [`ControlError::Connect`],
    /// [`ControlError::NotYet`] or [`ControlError::Deadline`] when it could not be reached, or had no place, for the
    /// whole deadline; [`ControlError::Recalled`].
    pub async fn join(options: JoinOptions) -> Result<(MemberSession, Joined), ControlError> {
        let mut recall = options.recall.clone();
        let joining = Joining { options: &options, started: Instant::now() };
        let joined = tokio::select! {
            joined = joining.run() => joined?,
            () = recall.called() => return Err(ControlError::Recalled),
        };
        // A connection of its own for the stream: its keep-alive follows the run's failure detection, and large
        // parts on the other one never hold a heartbeat back.
        let keep_alive = KeepAlive { interval: joined.heartbeat_interval, timeout: joined.failure_detection };
        let address = options.coordinator.clone();
        let open = || async {
            let channel = connect(&address, joined.failure_detection, keep_alive).await;
            let channel =
                channel.map_err(|message| ControlError::Lost { address: address.clone(), message })?;
            Ok::<Client, ControlError>(client(channel, Signature::new(Some(&options.token))?))
        };
        let (attend, unary) = (open().await?, open().await?);

        let progress = Progress::new(Step(0), Phase::Starting);
        let (reports, waiting_reports) = mpsc::channel(REPORTS_IN_FLIGHT);
        let (outgoing, directives) = mpsc::channel(DIRECTIVES_IN_FLIGHT);
        let (leave, leaving) = oneshot::channel();
        let fate = Arc::new(OnceLock::new());
        let attendance = Attendance {
            address: address.clone(),
            joined: joined.clone(),
            progress: progress.clone(),
            reports: waiting_reports,
            directives: outgoing,
            fate: Arc::clone(&fate),
        };
        let task = tokio::spawn(attendance.run(attend, leaving));
        let reporter = Reporter {
            address,
            joined: joined.clone(),
            progress,
            reports,
            fate: Arc::clone(&fate),
            client: unary,
        };
        let directives =
            Directives { incoming: directives, fate, task, leave: Some(leave), over: false, recall };
        Ok((MemberSession { reporter, directives }, joined))
    }

    /// The cell that the heartbeats read.
    pub fn progress(&self) -> Progress {
        self.reporter.progress()
    }

    /// The two halves: one to speak with from anywhere, one to listen to in one place.
    pub fn split(self) -> (Reporter, Directives) {
        (self.reporter, self.directives)
    }
}

/// The speaking half of a session.
#[derive(Clone)]
pub struct Reporter {
    address: String,
    joined: Joined,
    progress: Progress,
    reports: mpsc::Sender<MemberReport>,
    fate: Arc<OnceLock<ControlError>>,
    client: Client,
}

impl Reporter {
    /// The cell that the heartbeats read.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Sends `report` on the stream, waiting while the network is behind.
    ///
    /// # Errors
    /// Why the session ended, once it has.
    pub async fn report(&self, report: MemberReport) -> Result<(), ControlError> {
        self.reports.send(report).await.map_err(|_closed| self.fate())
    }

    /// Like [`Reporter::report`], from a thread outside the runtime.
    ///
    /// # Panics
    /// When called on a thread of an asynchronous runtime.
    pub fn report_blocking(&self, report: MemberReport) -> Result<(), ControlError> {
        self.reports.blocking_send(report).map_err(|_closed| self.fate())
    }

    /// Tells the coordinator what became of this member's part of the checkpoint of `step`. Idempotent: tried again until
    /// the run's failure detection has passed.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when the part does not fit (another member id, an old generation, not a part).
    pub async fn report_upload(&self, step: Step, upload: Upload) -> Result<(), ControlError> {
        let (started, deadline) = (Instant::now(), self.joined.failure_detection);
        let report =
            UploadReport { member: self.joined.member, generation: self.joined.generation, step, upload };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let left = deadline.saturating_sub(started.elapsed());
            let request = timed(wire::ReportUploadRequest::from(report.clone()), left);
            let status = match self.client.clone().report_upload(request).await {
                Ok(_accepted) => return Ok(()),
                Err(status) => status,
            };
            let elapsed = started.elapsed();
            if status.code() != Code::Unavailable || elapsed + RETRY_PAUSE >= deadline {
                let tried = Tried { attempts, elapsed };
                return Err(ControlError::of_status("ReportUpload", &self.address, &status, tried));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn fate(&self) -> ControlError {
        self.fate.get().cloned().unwrap_or(ControlError::Closed)
    }
}

/// The listening half of a session; it owns the stream's task.
pub struct Directives {
    incoming: mpsc::Receiver<Directive>,
    fate: Arc<OnceLock<ControlError>>,
    task: JoinHandle<()>,
    leave: Option<oneshot::Sender<()>>,
    over: bool,
    recall: Recall,
}

impl Directives {
    /// The next directive. A recall comes as the Abort that ends the membership. Cancel safe.
    ///
    /// # Errors
    /// [`ControlError::Lost`] once the coordinator is gone; [`ControlError::Closed`] after Exit or Abort.
    pub async fn next(&mut self) -> Result<Directive, ControlError> {
        if self.over {
            return Err(ControlError::Closed);
        }
        let incoming = tokio::select! {
            biased;
            incoming = self.incoming.recv() => incoming,
            () = self.recall.called() => Some(Directive::Abort(recalled())),
        };
        match incoming {
            Some(directive) => {
                self.over = matches!(directive, Directive::Exit | Directive::Abort(_));
                Ok(directive)
            }
            None => Err(self.fate.get().cloned().unwrap_or(ControlError::Closed)),
        }
    }

    /// Sends what is still waiting, ends the stream in good order and joins its task. Takes no longer than the run's
    /// failure detection.
    ///
    /// # Errors
    /// [`ControlError::Lost`] when reports could not be delivered.
    pub async fn leave(mut self) -> Result<(), ControlError> {
        if let Some(leave) = self.leave.take() {
            // A task that is already over has dropped its end; its fate is read below.
            let _already_over = leave.send(());
        }
        // Directives that nobody will read must not hold the task back.
        self.incoming.close();
        if let Err(join) = (&mut self.task).await
            && join.is_panic()
        {
            std::panic::resume_unwind(join.into_panic());
        }
        match self.fate.get() {
            Some(error) if !self.over => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Ends the stream at once and joins its task.
    pub async fn close(mut self) {
        self.task.abort();
        if let Err(join) = (&mut self.task).await
            && join.is_panic()
        {
            std::panic::resume_unwind(join.into_panic());
        }
    }
}

/// The end of a membership whose member is wanted elsewhere.
fn recalled() -> Abort {
    Abort { reason: ControlError::Recalled.to_string(), culprit: None, kind: AbortKind::End }
}

impl Drop for Directives {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The Join call with its retries.
struct Joining<'a> {
    options: &'a JoinOptions,
    started: Instant,
}

impl Joining<'_> {
    async fn run(&self) -> Result<Joined, ControlError> {
        let JoinOptions { member, data_address, schema_version, .. } = self.options;
        let mut incarnation = [0u8; 8];
        random(&mut incarnation)?;
        let request = JoinRequest {
            schema_version: *schema_version,
            member: *member,
            incarnation: Incarnation(u64::from_le_bytes(incarnation)),
            pid: std::process::id(),
            host: host(),
            data_address: *data_address,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.attempt(&request, attempts).await {
                Ok(joined) => return Ok(joined),
                Err(error) => error,
            };
            let again = matches!(error, ControlError::Connect { .. } | ControlError::NotYet { .. });
            if !again || self.left() <= RETRY_PAUSE {
                return Err(error);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(&self, request: &JoinRequest, attempts: u32) -> Result<Joined, ControlError> {
        let address = &self.options.coordinator;
        let tried = || Tried { attempts, elapsed: self.started.elapsed() };
        let keep_alive = KeepAlive { interval: self.options.deadline, timeout: self.options.deadline };
        let channel =
            connect(address, self.left(), keep_alive).await.map_err(|message| ControlError::Connect {
                address: address.clone(),
                message,
                attempts,
                seconds: self.started.elapsed().as_secs_f64(),
            })?;
        let mut client = client(channel, Signature::new(Some(&self.options.token))?);
        let reply = client.join(timed(wire::JoinRequest::from(request), self.left())).await;
        let reply = reply.map_err(|status| ControlError::of_status("Join", address, &status, tried()))?;
        Ok(reply.into_inner().try_into()?)
    }

    fn left(&self) -> Duration {
        self.options.deadline.saturating_sub(self.started.elapsed())
    }
}

/// The machine's name, for people.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".into() } else { name.trim().to_owned() }
}
