//! `polygram status`: state, step and members of a run, from its coordinator if it lives, else from the store.
//! [`super::status_text`] writes it for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polygram_checkpoint::lease::RENEWAL_PERIOD;
use polygram_checkpoint::{CheckpointError, CoordinatorRecord, Leadership, Lease, Manifest, RunStore, keys};
use polygram_domain::control::{Reason, RunState, RunStatus};
use polygram_domain::{RunFile, Step};
use polygram_proto::control::OperatorClient;
use serde::Serialize;
use serde_json::Value;

use crate::args::RunArgs;
use crate::commands::block_on;
use crate::commands::status_text::{self, Age};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::stored;
use crate::stored::StoredRun;
use crate::units::counted;

/// How long a living coordinator may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Clocks of two machines differ by no more than this.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);

/// What the operator is told: the coordinator's own words, and whether they are of now.
#[derive(Debug, Serialize)]
pub(crate) struct StatusDocument {
    /// One of the coordinator's states, or `lost`: the store says the run goes on, but its coordinator is gone.
    state: String,
    message: String,
    /// Whether the coordinator itself answered.
    live: bool,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

pub(crate) fn run(args: &RunArgs, printer: &mut Printer) -> Outcome {
    let place = RunPlace::resolve(args)?;
    let found = block_on(find(&place))?;
    let document = document(&found)?;
    printer.result(&document, || {
        status_text::human(&found.status, (&document.state, &document.message), &found.age())
    })?;
    Ok(ExitStatus::Success)
}

/// A status and where it came from.
pub(crate) struct Found {
    status: RunStatus,
    source: Source,
}

enum Source {
    /// The coordinator answered.
    Coordinator,
    /// The run is over, and the store says how; or no coordinator has led it, and its newest checkpoint is all there is.
    Store,
    /// The store says that the run goes on and who leads it, but that one is not reachable from here.
    Elsewhere(Box<Lease>),
    /// The store says that the run goes on, but nobody leads it.
    Lost(Option<CoordinatorRecord>),
}

/// Asks the coordinator, then the store.
pub(crate) async fn find(place: &RunPlace) -> Outcome<Found> {
    of(stored::open(place).await?, place).await
}

/// The same of a run that is open.
pub(crate) async fn of(run: StoredRun, place: &RunPlace) -> Outcome<Found> {
    if let Some(record) = &run.coordinator
        && let Some(status) = ask(record, place).await
    {
        return Ok(Found { status, source: Source::Coordinator });
    }
    let failed = |error| stored::refused(&place.root, error);
    let leader = leader(&run.store).await.map_err(failed)?;
    let stored: Result<Option<RunStatus>, CheckpointError> = run.store.read_status().await;
    let damage = match &stored {
        Err(damaged @ CheckpointError::Damaged { .. }) => Some(damaged.to_string()),
        _ => None,
    };
    let stored = if damage.is_some() { None } else { stored.map_err(failed)? };
    if let Some(status) = stored.as_ref().filter(|status| status.run != place.name.as_str()) {
        let (run, found) = (place.name.to_string(), status.run.clone());
        return Err(failed(CheckpointError::OtherRun { key: keys::STATUS.to_owned(), run, found }));
    }
    let status = match stored {
        // What retention, or a checkpoint copied into the run, has changed since.
        Some(status) => {
            let committed = run.store.committed_steps().await.map_err(failed)?.last().copied();
            // One whose coordinator was killed may have recorded steps after its last status. Where they cannot be read, the
            // status is what is known.
            let recorded = match status.state.is_over() {
                true => status.step,
                false => run.store.newest_metrics_step().await.map_or(status.step, Step),
            };
            let message = gone(&status, committed).unwrap_or(status.message);
            RunStatus { last_commit: committed, step: status.step.max(recorded), message, ..status }
        }
        None => of_checkpoint(&run, place, (leader.as_ref(), damage)).await?,
    };
    let source = match leader {
        _ if status.state.is_over() => Source::Store,
        Some(lease) => Source::Elsewhere(Box::new(lease)),
        None => Source::Lost(run.coordinator),
    };
    Ok(Found { status, source })
}

/// What to say of a run that is over and whose newest checkpoint is not there any more.
fn gone(status: &RunStatus, committed: Option<Step>) -> Option<String> {
    let was = status.last_commit.filter(|was| status.state.is_over() && committed < Some(*was))?;
    let rest = match committed {
        Some(step) => format!("the same train command goes on from step {step}"),
        None => "no checkpoint is left, so the same train command begins anew".to_owned(),
    };
    Some(format!(
        "it ended at step {}, but its checkpoint of step {was} is not there any more; {rest}",
        status.step
    ))
}

/// Who leads the run although nobody answers here. A lease that looks old by this machine's clock may be renewed all the
/// same: it is watched for a renewal, unless it is so old that no two clocks differ by that much.
async fn leader(store: &RunStore) -> Result<Option<Lease>, CheckpointError> {
    let Leadership::Leased(lease) = store.leadership().await? else { return Ok(None) };
    if lease.is_fresh() {
        return Ok(Some(*lease));
    }
    if lease.age() > CLOCKS_DIFFER {
        return Ok(None);
    }
    let watched = tokio::time::timeout(RENEWAL_PERIOD + DEADLINE, store.await_renewal(&lease)).await;
    watched.unwrap_or(Ok(None))
}

/// The status of a run that has no `status.json`: one whose checkpoint was written by `ckpt reshard` or copied, or whose
/// status was lost. Or of one whose `status.json` is damaged, in the words given.
async fn of_checkpoint(
    run: &StoredRun,
    place: &RunPlace,
    (leader, damage): (Option<&Lease>, Option<String>),
) -> Outcome<RunStatus> {
    let failed = |error| stored::refused(&place.root, error);
    let Some(manifest) = run.store.latest_manifest().await.map_err(failed)?.manifest else {
        let who = leader.map_or("its coordinator does not answer".to_owned(), |lease| {
            format!("it is led by {}, which is not reachable from here", lease.leader())
        });
        let what = damage.unwrap_or_else(|| format!("there is no status in {} yet", place.root));
        return Err(Failure::failed(format!("nothing is known of run {}: {what}, and {who}", place.name)));
    };
    let config = run.store.read_config(&manifest.config).await.map_err(failed)?;
    let refused = |error: polygram_domain::ConfigError| Failure::failed(error.to_string());
    let file = RunFile::parse(&config, &keys::config(&manifest.config.0), &[]).map_err(refused)?;
    let origin = match (damage, &run.coordinator) {
        (Some(damage), _) => {
            format!("is what the store knows of it, for its last record cannot be read ({damage})")
        }
        (None, None) => "was copied or resharded".to_owned(),
        (None, Some(_)) => "is all that is stored of it: its status was lost".to_owned(),
    };
    Ok(status_of(&manifest, file.training.steps, (place.name.as_str(), &origin)))
}

fn status_of(manifest: &Manifest, total_steps: u64, (run, origin): (&str, &str)) -> RunStatus {
    let Manifest { step, created_unix_ms, .. } = *manifest;
    let is_complete = step.0 >= total_steps;
    let rest = total_steps.saturating_sub(step.0);
    let to_do = if is_complete {
        "nothing is left to do".to_owned()
    } else {
        format!("`polygram train` continues it, {} to go", counted(rest, "step"))
    };
    let message = format!("its checkpoint of step {step} {origin}; {to_do}");
    RunStatus {
        state: if is_complete { RunState::Completed } else { RunState::Stopped },
        reason: if is_complete { Reason::AllStepsDone } else { Reason::StopRequested },
        message,
        since_unix_ms: created_unix_ms,
        step,
        resume_step: step,
        last_commit: Some(step),
        ..RunStatus::of(run, total_steps)
    }
}

/// The coordinator's status, unless nobody answers there, or somebody else does.
async fn ask(record: &CoordinatorRecord, place: &RunPlace) -> Option<RunStatus> {
    let answer = async { OperatorClient::connect(&record.address, None).await?.status().await };
    let status = tokio::time::timeout(DEADLINE, answer).await.ok()?.ok()?;
    (status.run == place.name.as_str()).then_some(status)
}

/// The document of a status.
pub(crate) fn document(found: &Found) -> Outcome<StatusDocument> {
    let unprintable = || Failure::failed("the status cannot be written as JSON");
    let Ok(Value::Object(mut rest)) = serde_json::to_value(&found.status) else { return Err(unprintable()) };
    rest.remove("state");
    rest.remove("message");
    // What members last said is not of now where nobody hears them any more.
    for member in rest.get_mut("members").and_then(Value::as_array_mut).into_iter().flatten() {
        if !matches!(found.source, Source::Coordinator) {
            member["alive"] = Value::Bool(false);
            member["last_heard_ms"] = Value::Null;
        }
        if found.status.state.is_over() {
            member["phase"] = Value::from("ended");
        }
    }
    let (state, message) = match &found.source {
        Source::Coordinator | Source::Store => (found.status.state.to_string(), found.status.message.clone()),
        Source::Elsewhere(lease) => (found.status.state.to_string(), elsewhere_message(&found.status, lease)),
        Source::Lost(record) => ("lost".to_owned(), lost_message(&found.status, record.as_ref())),
    };
    Ok(StatusDocument { state, message, live: matches!(found.source, Source::Coordinator), rest })
}

fn elsewhere_message(status: &RunStatus, lease: &Lease) -> String {
    let leader = lease.leader();
    format!("led by {leader}, not reachable from here; as of its newest record: {}", status.message)
}

fn lost_message(status: &RunStatus, record: Option<&CoordinatorRecord>) -> String {
    let who = record.map_or("the coordinator".to_owned(), |record| {
        format!("the coordinator (pid {} at {})", record.pid, record.address)
    });
    let from = match status.last_commit {
        Some(step) => format!("continues from step {step}"),
        None => "begins anew, for nothing is committed".to_owned(),
    };
    format!(
        "{who} does not answer; it was last {} at step {}. The same train command {from}",
        status.state, status.step
    )
}

impl Found {
    /// Whether a coordinator leads the run right now.
    pub(crate) fn is_led(&self) -> bool {
        matches!(self.source, Source::Coordinator | Source::Elsewhere(_)) && !self.status.state.is_over()
    }

    /// How old the status is.
    fn age(&self) -> Age {
        match self.source {
            _ if self.status.state.is_over() => Age::Ended { now_unix_ms: unix_ms() },
            Source::Lost(_) | Source::Elsewhere(_) => Age::LastKnown,
            Source::Coordinator | Source::Store => Age::Live,
        }
    }

    /// State in one word, step and newest commit.
    pub(crate) fn summary(&self) -> (String, u64, u64, Option<u64>) {
        let state = match self.source {
            Source::Lost(_) => "lost".to_owned(),
            _ => self.status.state.to_string(),
        };
        let commit = self.status.last_commit.map(|step| step.0);
        (state, self.status.step.0, self.status.total_steps, commit)
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
