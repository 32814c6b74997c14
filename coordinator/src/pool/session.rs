//! One session of a job's run: the run's own coordinator, from opening the run to its last word.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use polygram_domain::control::{MemberRef, Reason, Role, RunState, RunStatus};
use polygram_domain::{ConfigError, RunFile};
use polygram_proto::control::Token;
use polygram_proto::pool::JobId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::core::{Event, Progress, SessionEnd};
use super::messages::Input;
use crate::leadership::Claim;
use crate::opening::{Origin, open};
use crate::server::{Ended, serve};

/// What a session is made of.
pub(super) struct Session {
    pub(super) job: JobId,
    pub(super) session: u32,
    pub(super) workers: u32,
    pub(super) config_toml: Arc<str>,
    pub(super) root: String,
    /// Its port is chosen by the system.
    pub(super) listen: IpAddr,
    pub(super) token: Token,
    pub(super) inbox: mpsc::Sender<Input>,
}

/// What a session came to.
#[derive(Debug)]
pub(super) struct LedTo {
    pub(super) end: SessionEnd,
    /// How far its run had come; `None` where it could not be opened.
    pub(super) progress: Option<Progress>,
}

impl LedTo {
    /// A session that failed without a last status.
    pub(super) fn failed(message: String) -> LedTo {
        LedTo { end: SessionEnd::Failed(message), progress: None }
    }
}

impl Session {
    /// Leads the run to the end of this session. Each text on `interrupts` is a request to end it: the first commits and
    /// stops, the second aborts.
    pub(super) async fn lead(self, interrupts: mpsc::Receiver<String>) -> LedTo {
        match self.try_lead(interrupts).await {
            Ok(Ended { status, .. }) => {
                let last_commit = status.last_commit.map(|step| step.0);
                let progress = Some(Progress { step: status.step.0, last_commit });
                LedTo { end: end_of(status), progress }
            }
            Err(error) => LedTo::failed(format!("{error:#}")),
        }
    }

    async fn try_lead(&self, interrupts: mpsc::Receiver<String>) -> anyhow::Result<Ended> {
        let config_name = format!("run file of job {}", self.job);
        let config_toml = with_workers(&self.config_toml, &config_name, self.workers)?;
        let listener = TcpListener::bind(SocketAddr::new(self.listen, 0)).await?;
        let address = listener.local_addr()?;
        let (root, claim) = (self.root.clone(), Claim::IfVacant);
        let origin = Origin { config_toml, config_name, root, claim };
        let opened = open(origin, address).await?;
        let statuses = opened.statuses();
        let shards = opened.spec().topology.shards;
        let is_over = opened.announcement().state.is_over();
        let leading = serve(opened, listener, self.token.clone(), interrupts);
        let following = async {
            if !is_over {
                self.follow((address, shards), statuses).await;
            }
        };
        let (ended, ()) = tokio::join!(leading, following);
        Ok(ended?)
    }

    /// Tells the pool where the run is in its life.
    async fn follow(
        &self,
        (address, shards): (SocketAddr, u32),
        mut statuses: watch::Receiver<Arc<RunStatus>>,
    ) {
        let (job, session) = (self.job, self.session);
        self.tell(Input::Opened { job, session, address, statuses: statuses.clone() }).await;
        let (mut has_started, mut awaited) = (false, BTreeSet::new());
        loop {
            let (state, slots) = {
                let status = statuses.borrow_and_update();
                (status.state, missing(&status, self.workers, shards))
            };
            if awaited != slots {
                awaited.clone_from(&slots);
                self.tell(Input::Happened(Event::Awaited { job, session, slots })).await;
            }
            if state == RunState::Running && !std::mem::replace(&mut has_started, true) {
                self.tell(Input::Happened(Event::RunStarted { job, session })).await;
            }
            if state.is_over() {
                return self.tell(Input::Happened(Event::RunOver { job, session })).await;
            }
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }

    async fn tell(&self, input: Input) {
        if self.inbox.send(input).await.is_err() {
            tracing::debug!("the pool's driver is gone");
        }
    }
}

/// Slots that a run waits for: nobody has joined there.
fn missing(status: &RunStatus, workers: u32, shards: u32) -> BTreeSet<MemberRef> {
    if status.reason != Reason::WaitingForMembers {
        return BTreeSet::new();
    }
    let slots = |role, count| (0..count).map(move |index| MemberRef { role, index });
    let wanted = slots(Role::Worker, workers).chain(slots(Role::Shard, shards));
    let joined =
        |slot: &MemberRef| status.members.iter().any(|m| (m.role, m.index) == (slot.role, slot.index));
    wanted.filter(|slot| !joined(slot)).collect()
}

/// The same run file for another number of workers.
fn with_workers(config_toml: &str, name: &str, workers: u32) -> Result<String, ConfigError> {
    let mut file = RunFile::parse(config_toml, name, &[])?;
    file.topology.workers = workers;
    file.to_toml()
}

fn end_of(status: RunStatus) -> SessionEnd {
    let message = status.message;
    match (status.state, status.reason) {
        (RunState::Completed, _) => SessionEnd::Completed(message),
        (RunState::Stopped, Reason::StopAtStep) => SessionEnd::StoppedAtStep(message),
        (RunState::Stopped, _) => SessionEnd::Stopped(message),
        _ => SessionEnd::Failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_workers_are_a_legal_run_file() {
        let tiny = include_str!("../../../configs/tiny.toml");
        let sets = ["topology.workers=4", "topology.min_workers=1"].map(str::to_owned);
        let text = RunFile::parse(tiny, "tiny", &sets).unwrap().to_toml().unwrap();
        for workers in [4, 2, 1] {
            let text = with_workers(&text, "tiny", workers).unwrap();
            let spec = RunFile::parse(&text, "tiny", &[]).unwrap().resolve().unwrap();
            assert_eq!((spec.topology.workers, spec.elasticity.min_workers), (workers, 1));
        }
    }
}
