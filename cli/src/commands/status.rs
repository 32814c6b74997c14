//! `polygram status`: state, step and members of a run, from its coordinator if it lives, else from the store.

use std::time::Duration;

use polygram_checkpoint::lease::RENEWAL_PERIOD;
use polygram_checkpoint::{CheckpointError, CoordinatorRecord, Leadership, Lease, RunStore};
use polygram_proto::control::{
    CollisionStatus, MemberStatus, OperatorClient, Rollback, RowsStatus, RunFingerprint, RunState, RunStatus,
};
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
    /// The store says that the run goes on and who leads it, but that one is not reachable from here.
    Elsewhere(Box<Lease>),
    /// The store says that the run goes on, but nobody leads it.
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
    let leader = leader(&run.store).await.map_err(|error| stored::refused(&place.root, error))?;
    let stored: Option<RunStatus> =
        run.store.read_status().await.map_err(|error| stored::refused(&place.root, error))?;
    let status = stored.ok_or_else(|| {
        let who = leader.as_ref().map_or("its coordinator does not answer".to_owned(), |lease| {
            format!("it is led by {}, which is not reachable from here", lease.leader())
        });
        Failure::failed(format!("run {} has no status in {} yet, and {who}", place.name, place.root))
    })?;
    let source = match leader {
        _ if status.state.is_over() => Source::Store,
        Some(lease) => Source::Elsewhere(Box::new(lease)),
        None => Source::Lost(run.coordinator),
    };
    Ok(Found { status, source })
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
        Source::Elsewhere(lease) => (found.status.state.to_string(), elsewhere_message(&found.status, lease)),
        Source::Lost(record) => {
            for member in rest.get_mut("members").and_then(Value::as_array_mut).into_iter().flatten() {
                member["alive"] = Value::Bool(false);
            }
            ("lost".to_owned(), lost_message(&found.status, record.as_ref()))
        }
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
        text.push_str(&format!(
            "\nworker 0 holds {}, its part of the optimizer state {}\n",
            units::bytes(metrics.resident_bytes),
            units::bytes(metrics.optimizer_bytes)
        ));
    }
    match status.last_commit {
        Some(step) => text.push_str(&format!("committed step {step}\n")),
        None => text.push_str("nothing committed yet\n"),
    }
    if let Some(step) = status.last_point.filter(|step| Some(*step) > status.last_commit) {
        text.push_str(&format!("recovery point at step {step}\n"));
    }
    if let Some(culprit) = status.culprit.as_ref().filter(|_| status.state == RunState::Failed) {
        text.push_str(&format!("ended by {culprit}\n"));
    }
    if let Some(Rollback { culprit, .. }) = &status.last_rollback {
        let (generation, restarts) = (status.generation, status.restarts);
        text.push_str(&format!("generation {generation}, {restarts} restarts; the last was for {culprit}\n"));
    }
    for sentence in &status.set_aside {
        text.push_str(&format!("{sentence}\n"));
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
    text.push_str(&shards(&status.members));
    text.push_str(&tables(&status.rows));
    text
}

/// What shards have counted of their rows; nothing before they have.
fn shards(members: &[MemberStatus]) -> String {
    let told = members.iter().filter_map(|member| Some((member, member.shard.as_ref()?)));
    let heads = ["rows", "touched", "of", "records", "overlap", "parked", "skew", "reads at", "metrics at"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(told.map(|(member, shard)| {
        let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), units::percent);
        let address = |address: Option<std::net::SocketAddr>| {
            address.map_or("-".to_owned(), |address| address.to_string())
        };
        vec![
            format!("{} {}", member.role, member.index),
            units::grouped(shard.touched_rows()),
            units::grouped(shard.owned_rows()),
            units::bytes(shard.touched_rows().saturating_mul(shard.record_bytes)),
            ratio(shard.overlap_ratio()),
            units::duration(shard.parked_seconds),
            ratio(shard.lane_skew_ratio),
            address(shard.query_address),
            address(shard.metrics_address),
        ]
    }));
    if rows.len() > 1 { units::columns(&rows) } else { String::new() }
}

/// The n-gram tables against the ideal hash; tables of other sites have the same rows and are not repeated.
fn tables(rows: &RowsStatus) -> String {
    let mut text = String::new();
    if let Some(unique) = rows.input.and_then(|input| input.unique_ratio()) {
        text.push_str(&format!("{} of a cell's row ids are unique\n", units::percent(unique)));
    }
    if let Some(RunFingerprint { since, mark }) = rows.fingerprint {
        let from = if since.0 == 0 { String::new() } else { format!(" (counted from step {since})") };
        text.push_str(&format!("rows' fingerprint at step {}: {}{from}\n", mark.version, mark.fingerprint));
    }
    let heads = ["table", "order", "rows", "touched", "n-grams", "ideal", "excess collisions"];
    let mut lines = vec![heads.map(str::to_owned).to_vec()];
    let sizes: Vec<u64> = rows.tables.iter().map(|table| table.rows).collect();
    let first_site = rows.tables.iter().enumerate().filter(|(at, table)| !sizes[..*at].contains(&table.rows));
    lines.extend(first_site.map(|(number, table)| {
        let judged = |of: fn(&CollisionStatus) -> Option<String>| {
            table.collisions.as_ref().and_then(of).unwrap_or("-".to_owned())
        };
        vec![
            number.to_string(),
            table.order.to_string(),
            units::grouped(table.rows),
            units::grouped(table.touched_rows),
            judged(|judged| Some(units::count(judged.distinct_ngrams.round()))),
            judged(|judged| Some(units::count(judged.ideal_rows.round()))),
            judged(|judged| judged.excess_ratio.map(|ratio| format!("{:+.1}%", 100.0 * ratio))),
        ]
    }));
    if lines.len() > 1 {
        text.push_str(&units::columns(&lines));
    }
    text
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;
    use polygram_proto::control::{
        Fingerprint, InputStatus, Mark, Phase, Role, ShardReport, TableRows, TableStatus,
    };

    use super::*;

    #[test]
    fn counts_read_well() {
        let shard = ShardReport {
            version: Step(9),
            since: Step(0),
            record_bytes: 1536,
            tables: vec![TableRows { owned_rows: 5_000, touched_rows: 1_024 }],
            declared_rows: 100,
            step_rows: 75,
            parked_lookups: 2,
            parked_seconds: 12.0,
            lane_skew_ratio: None,
            marks: Vec::new(),
            query_address: Some("127.0.0.1:900".parse().unwrap()),
            metrics_address: None,
        };
        let member = |role, shard| MemberStatus {
            role,
            index: 0,
            pid: 1,
            host: "box".into(),
            phase: Phase::Serving,
            step: Step(9),
            address: "127.0.0.1:1".into(),
            last_heard_ms: 5,
            alive: true,
            shard,
        };
        assert_eq!(shards(&[member(Role::Worker, None)]), "");
        let text = shards(&[member(Role::Worker, None), member(Role::Shard, Some(shard))]);
        let told = "shard 0    1,024  5,000  1.50 MiB      25%     12s     -  127.0.0.1:900           -\n";
        assert_eq!(text.split_once('\n').unwrap().1, told, "{text}");

        let collisions =
            Some(CollisionStatus { distinct_ngrams: 1234.4, ideal_rows: 1000.0, excess_ratio: Some(0.0123) });
        let table = |rows, collisions| TableStatus {
            name: "t".into(),
            order: 2,
            rows,
            touched_rows: 988,
            collisions,
        };
        let rows = RowsStatus {
            tables: vec![table(10_007, collisions), table(10_009, None), table(10_007, collisions)],
            input: Some(InputStatus { since: Step(0), row_ids: 100, unique_rows: 42 }),
            fingerprint: Some(RunFingerprint {
                since: Step(4),
                mark: Mark { version: Step(9), fingerprint: Fingerprint(0xabc) },
            }),
        };
        let lines: Vec<String> = tables(&rows).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "42% of a cell's row ids are unique");
        assert_eq!(lines[1], "rows' fingerprint at step 9: 0000000000000abc (counted from step 4)");
        assert!(lines[3].ends_with("1.23 k  1.00 k              +1.2%"), "{lines:?}");
        assert!(lines[4].ends_with("-"), "{lines:?}");
        assert_eq!(lines.len(), 5, "the second site is not repeated: {lines:?}");
        assert_eq!(tables(&RowsStatus::default()), "");
    }
}
