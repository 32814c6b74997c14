//! `polygram status`: state, step and members of a run, from its coordinator if it lives, else from the store.

use std::time::Duration;

use polygram_checkpoint::CoordinatorRecord;
use polygram_proto::control::{OperatorClient, RunStatus};
use serde::Serialize;
use serde_json::Value;

use crate::args::RunArgs;
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::RunPlace;
use crate::units;

/// How long a living coordinator may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

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
    printer.result(&document, || human(&found, &document))?;
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
    /// The run is over, and the store says how.
    Store,
    /// The store says that the run goes on, but nobody answers.
    Lost(Option<CoordinatorRecord>),
}

/// Asks the coordinator, then the store.
pub(crate) async fn find(place: &RunPlace) -> Outcome<Found> {
    let run = stored::open(place).await?;
    if let Some(record) = &run.coordinator
        && let Some(status) = ask(record, place).await
    {
        return Ok(Found { status, source: Source::Coordinator });
    }
    let stored: Option<RunStatus> =
        run.store.read_status().await.map_err(|error| stored::refused(&place.root, error))?;
    let status = stored.ok_or_else(|| {
        Failure::failed(format!(
            "run {} has no status in {}, and its coordinator does not answer",
            place.name, place.root
        ))
    })?;
    let source = if status.state.is_over() { Source::Store } else { Source::Lost(run.coordinator) };
    Ok(Found { status, source })
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
    let (state, message) = match &found.source {
        Source::Coordinator | Source::Store => (found.status.state.to_string(), found.status.message.clone()),
        Source::Lost(record) => {
            for member in rest.get_mut("members").and_then(Value::as_array_mut).into_iter().flatten() {
                member["alive"] = Value::Bool(false);
            }
            ("lost".to_owned(), lost_message(&found.status, record.as_ref()))
        }
    };
    Ok(StatusDocument { state, message, live: matches!(found.source, Source::Coordinator), rest })
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

fn human(found: &Found, document: &StatusDocument) -> String {
    let status = &found.status;
    let mut text = format!(
        "run {}: {}, step {}/{}, attempt {}\n{}\n",
        status.run, document.state, status.step, status.total_steps, status.attempt, document.message
    );
    if let Some(metrics) = &status.last_metrics {
        text.push_str(&format!("loss {:.4}", metrics.loss));
        if let Some(evaluation) = &status.last_evaluation {
            text.push_str(&format!(", held-out loss {:.4} at step {}", evaluation.loss, evaluation.step));
        }
        text.push('\n');
    }
    match status.last_commit {
        Some(step) => text.push_str(&format!("committed step {step}\n")),
        None => text.push_str("nothing committed yet\n"),
    }
    if let Some(culprit) = &status.culprit {
        text.push_str(&format!("ended by {culprit}\n"));
    }
    for consequence in &status.consequences {
        text.push_str(&format!("  then {consequence}\n"));
    }
    if !status.members.is_empty() {
        let mut rows = vec![["member", "pid", "phase", "step", "heard"].map(str::to_owned).to_vec()];
        rows.extend(status.members.iter().map(|member| {
            vec![
                format!("{} {}", member.role, member.index),
                member.pid.to_string(),
                member.phase.to_string(),
                member.step.to_string(),
                format!("{} ago", units::duration(member.last_heard_ms as f64 / 1000.0)),
            ]
        }));
        text.push_str(&units::columns(&rows));
    }
    text
}
