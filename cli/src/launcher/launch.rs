//! What one launch needs beside its decisions: files, processes, signals and the store.

use std::net::SocketAddr;
use std::time::Duration;

use polygram_checkpoint::RunStore;
use polygram_domain::control::RunStatus;
use polygram_proto::control::{Announcement, ControlError};

use super::claim::Claim;
use super::ended::COORDINATOR;
use super::files::LaunchFiles;
use super::messages::{Cause, Conclusion, Ending, Failed};
use super::plan::{Member, members};
use super::processes::{Processes, Start};
use super::siblings::Program;
use super::stop_signals::StopSignals;
use crate::exit::{Failure, Outcome};
use crate::settings::{Configuration, Root};

/// How long the store may take to say what is committed, after everything was killed.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to note that the run was killed: who asks twice wants the prompt.
const RECORD_DEADLINE: Duration = Duration::from_secs(3);

/// Everything of one launch that must outlive its processes.
pub(super) struct Launch<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) files: LaunchFiles,
    pub(super) processes: Processes<'a>,
    pub(super) signals: StopSignals,
    pub(super) root: &'a Root,
}

impl Launch<'_> {
    /// Starts a coordinator, and says its process id.
    pub(super) fn open(&mut self, listen: SocketAddr, claim: Claim) -> Outcome<u32> {
        // What an earlier one announced is not this one's word.
        self.files.forget_announcement()?;
        let args = self.files.coordinator_args(self.root, listen, claim);
        self.processes.learn(COORDINATOR.to_owned(), Start { program: Program::Coordinator, args });
        self.start(COORDINATOR)
    }

    /// What the coordinator has announced. From then on it is known how members are started.
    pub(super) fn announcement(&mut self) -> Result<Option<Announcement>, ControlError> {
        let announcement = Announcement::read(&self.files.announcement())?;
        if let Some(announcement) = &announcement {
            for Member { name, program, slot, number } in members(&self.configuration.spec) {
                let args = self.files.member_args(announcement, slot, number);
                self.processes.learn(name, Start { program, args });
            }
        }
        Ok(announcement)
    }

    /// Starts a process of this launch, once the files that it reads are there.
    pub(super) fn start(&mut self, name: &str) -> Outcome<u32> {
        self.files.restore()?;
        self.processes.start(name)
    }

    /// The newest commit in the store; `None` where there is none, or the store does not answer in time.
    pub(super) async fn newest_commit(&self) -> Option<u64> {
        let store = RunStore::open(&self.root.address(), &self.configuration.spec.name).ok()?;
        let steps = tokio::time::timeout(STORE_DEADLINE, store.committed_steps()).await.ok()?.ok()?;
        steps.last().map(|step| step.0)
    }

    /// Records in the store how the run ended now, in the place of its coordinator, the killed process `coordinator`. Whether
    /// it is recorded.
    pub(super) async fn record(&self, status: RunStatus, coordinator: u32) -> bool {
        let status = RunStatus { since_unix_ms: polygram_process::unix_ms(), ..status };
        let record = async {
            let store = RunStore::open(&self.root.address(), &self.configuration.spec.name).ok()?;
            // Another coordinator may have taken the run over: its word counts then.
            let newest = store.latest_coordinator().await.ok()??;
            if newest.pid != coordinator {
                return None;
            }
            store.put_status(&status).await.ok()
        };
        matches!(tokio::time::timeout(RECORD_DEADLINE, record).await, Ok(Some(())))
    }

    /// What the command returns, with what the logs say.
    pub(super) fn outcome(&self, conclusion: Conclusion) -> Outcome<Ending> {
        let Failed { cause, status, hint } = match conclusion {
            Conclusion::Ended(ending) => return Ok(ending),
            Conclusion::Failed(failed) => failed,
        };
        let mut failure = match cause {
            Cause::Own(failure) => failure,
            Cause::Process(ended) => self.processes.failure_of(&ended),
            Cause::CoordinatorLost(error) => Failure::failed("the coordinator was lost").because(error),
            Cause::NotListening(patience) => Failure::failed(format!(
                "the coordinator did not listen within {} seconds{}",
                patience.as_secs(),
                self.processes.tail_of(COORDINATOR)
            )),
            Cause::Run { status, culprit } => {
                let mut message = format!("run {} failed: {}", status.run, status.message);
                if let Some(ended) = culprit {
                    message.push_str(&format!("\n  the process {}", ended.how()));
                }
                for consequence in &status.consequences {
                    message.push_str(&format!("\n  then {consequence}"));
                }
                if let Some(culprit) = &status.culprit {
                    message.push_str(&self.processes.tail_of(&culprit.member.to_string()));
                }
                Failure::failed(message)
            }
        };
        failure.status = status;
        Err(match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}
