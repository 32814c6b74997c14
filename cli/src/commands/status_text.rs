//! A run's status for people: what is of now is shown as such, what is of the past says from when.

use polygram_domain::control::{
    CollisionStatus, MemberStatus, Rollback, RowsStatus, RunFingerprint, RunState, RunStatus,
};

use crate::evaluations;
use crate::units;

/// How old a status is.
pub(crate) enum Age {
    /// The coordinator has just answered.
    Live,
    /// The last that the coordinator wrote before it was lost.
    LastKnown,
    /// Of a run that is over.
    Ended {
        /// The time of the question, milliseconds since 1970.
        now_unix_ms: u64,
    },
}

/// The whole status; `state` and `message` are the run's, or say that its coordinator is lost.
pub(crate) fn human(status: &RunStatus, (state, message): (&str, &str), age: &Age) -> String {
    let RunStatus { run, step, total_steps, attempt, .. } = status;
    let mut text = format!("run {run}: {state}, step {step}/{total_steps}, attempt {attempt}\n{message}\n");
    if let (Some(stall), Age::Live) = (&status.stall, age) {
        text += &format!("{stall}\n");
    }
    if let Age::Ended { now_unix_ms } = age {
        let ago = now_unix_ms.saturating_sub(status.since_unix_ms) as f64 / 1000.0;
        text += &format!("ended {} ago, {} UTC\n", units::duration(ago), units::moment(status.since_unix_ms));
    }
    text += &losses(status, age);
    match status.last_commit {
        Some(step) => text += &format!("committed step {step}\n"),
        None if status.state.is_over() && status.step.0 > 0 => text += "no checkpoint is left\n",
        None => text += "nothing committed yet\n",
    }
    if let Some(step) = status.last_point.filter(|step| Some(*step) > status.last_commit) {
        text += &format!("recovery point at step {step}\n");
    }
    if let Some(culprit) = status.culprit.as_ref().filter(|_| status.state == RunState::Failed) {
        text += &format!("ended by {culprit}\n");
    }
    if let Some(Rollback { culprit, .. }) = &status.last_rollback {
        let restarts = units::counted(status.restarts.into(), "restart");
        text += &format!("generation {}, {restarts}; the last was for {culprit}\n", status.generation);
    }
    for sentence in &status.set_aside {
        text += &format!("{sentence}\n");
    }
    for consequence in &status.consequences {
        text += &format!("  then {consequence}\n");
    }
    text += &members(&status.members, age);
    text += &shards(&status.members, age);
    text += &tables(&status.rows);
    text
}

fn losses(status: &RunStatus, age: &Age) -> String {
    let mut text = String::new();
    if let Some(metrics) = &status.last_metrics {
        text += &format!("loss {:.4} nats per token at step {}\n", metrics.loss, metrics.step.next());
    }
    for evaluation in &status.evaluations {
        text += &format!("{}\n", evaluations::line(evaluation));
    }
    // Memory of a process that is gone is nobody's.
    if let (Some(metrics), Age::Live) = (&status.last_metrics, age) {
        text += &format!(
            "worker 0 holds {}, its part of the optimizer state {}\n",
            units::bytes(metrics.resident_bytes),
            units::bytes(metrics.optimizer_bytes)
        );
    }
    text
}

/// Who takes part, or took part.
fn members(members: &[MemberStatus], age: &Age) -> String {
    if members.is_empty() {
        return String::new();
    }
    let heads: &[&str] = match age {
        Age::Live => &["member", "pid", "phase", "step", "heard"],
        Age::LastKnown => &["member", "pid", "last phase", "last step"],
        // The last heartbeat came before the end: its step is not where the member ended.
        Age::Ended { .. } => &["member", "pid", "host"],
    };
    let mut rows = vec![heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
    rows.extend(members.iter().map(|member| {
        let mut row = vec![format!("{} {}", member.role, member.index), member.pid.to_string()];
        match age {
            Age::Ended { .. } => row.push(member.host.clone()),
            Age::Live | Age::LastKnown => row.extend([member.phase.to_string(), member.step.to_string()]),
        }
        if let Age::Live = age {
            row.push(format!("{} ago", units::duration(member.last_heard_ms as f64 / 1000.0)));
        }
        row
    }));
    units::columns(&rows)
}

/// What shards have counted of their rows; nothing before they have.
fn shards(members: &[MemberStatus], age: &Age) -> String {
    let told = members.iter().filter_map(|member| Some((member, member.shard.as_ref()?)));
    let is_live = matches!(age, Age::Live);
    let mut heads = vec!["rows", "touched", "of", "records", "overlap", "parked", "for", "skew"];
    // Nobody listens there any more once the run has ended.
    if is_live {
        heads.extend(["reads at", "metrics at"]);
    }
    let mut rows = vec![heads.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(told.map(|(member, shard)| {
        let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), units::percent);
        let address = |address: Option<std::net::SocketAddr>| {
            address.map_or("-".to_owned(), |address| address.to_string())
        };
        let mut row = vec![
            format!("{} {}", member.role, member.index),
            units::grouped(shard.touched_rows()),
            units::grouped(shard.owned_rows()),
            units::bytes(shard.touched_rows().saturating_mul(shard.record_bytes)),
            ratio(shard.overlap_ratio()),
            units::grouped(shard.parked_lookups),
            shard.mean_parked_seconds().map_or("-".to_owned(), units::latency),
            ratio(shard.lane_skew_ratio),
        ];
        if is_live {
            row.extend([address(shard.query_address), address(shard.metrics_address)]);
        }
        row
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
    let heads = ["table", "order", "rows", "touched", "n-grams", "per row", "shared", "ideal", "excess"];
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
            judged(|judged| judged.ngrams_per_row.map(|mean| format!("{mean:.2}"))),
            judged(|judged| judged.shared_lookups_ratio.map(|share| format!("{:.1}%", 100.0 * share))),
            judged(|judged| Some(units::count(judged.ideal_rows.round()))),
            judged(|judged| judged.excess_ratio.map(units::signed_percent)),
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
    use polygram_domain::control::{
        Evaluation, Fingerprint, InputStatus, Mark, Phase, Reason, Role, ShardReport, StepMetrics, TableRows,
        TableStatus,
    };

    use super::*;

    fn shard() -> ShardReport {
        ShardReport {
            version: Step(9),
            since: Step(0),
            record_bytes: 1536,
            tables: vec![TableRows { owned_rows: 5_000, touched_rows: 1_024 }],
            declared_rows: 100,
            step_rows: 75,
            parked_lookups: 2_400,
            parked_seconds: 12.0,
            lane_skew_ratio: None,
            marks: Vec::new(),
            query_address: Some("127.0.0.1:900".parse().unwrap()),
            metrics_address: None,
        }
    }

    fn member(role: Role, shard: Option<ShardReport>) -> MemberStatus {
        MemberStatus {
            role,
            index: 0,
            pid: 1,
            host: "box".into(),
            phase: Phase::Snapshotting,
            step: Step(9),
            address: "127.0.0.1:1".into(),
            last_heard_ms: 5,
            alive: true,
            shard,
        }
    }

    fn status() -> RunStatus {
        let evaluation = |set: &str, loss| Evaluation { step: Step(8), set: set.into(), loss, tokens: 1024 };
        RunStatus {
            state: RunState::Completed,
            reason: Reason::AllStepsDone,
            message: "all 9 steps done and committed".into(),
            since_unix_ms: 1_700_000_000_000,
            attempt: 1,
            step: Step(9),
            members: vec![member(Role::Worker, None), member(Role::Shard, Some(shard()))],
            last_commit: Some(Step(9)),
            last_metrics: Some(StepMetrics { step: Step(8), loss: 2.5, ..StepMetrics::default() }),
            evaluations: vec![evaluation("code", 2.0), evaluation("wiki", 3.25)],
            ..RunStatus::of("tiny", 9)
        }
    }

    #[test]
    fn a_run_that_ended_an_hour_ago_says_nothing_of_now() {
        let age = Age::Ended { now_unix_ms: 1_700_000_000_000 + 3_720_000 };
        let text = human(&status(), ("completed", "all 9 steps done and committed"), &age);
        let whole = "run tiny: completed, step 9/9, attempt 1\n\
                     all 9 steps done and committed\n\
                     ended 1h 02m ago, 2023-11-14 22:13:20 UTC\n\
                     loss 2.5000 nats per token at step 9\n\
                     held-out loss of code 2.0000 nats per token at step 8, over 1,024 tokens\n\
                     held-out loss of wiki 3.2500 nats per token at step 8, over 1,024 tokens\n\
                     committed step 9\n\
                     member    pid  host\n\
                     worker 0    1   box\n\
                     shard 0     1   box\n\
                     rows     touched     of   records  overlap  parked      for  skew\n\
                     shard 0    1,024  5,000  1.50 MiB      25%   2,400  5.00 ms     -\n";
        assert_eq!(text, whole, "{text}");
        for word in ["snapshotting", "heard", "127.0.0.1", "holds"] {
            assert!(!text.contains(word), "{word:?} is of a process that is gone:\n{text}");
        }
        let lost = human(&status(), ("lost", "nobody answers"), &Age::LastKnown);
        assert!(lost.contains("last phase") && !lost.contains("heard") && !lost.contains("ended"), "{lost}");
    }

    #[test]
    fn counts_read_well() {
        let live = human(&status(), ("running", "training"), &Age::Live);
        for words in ["0.0s ago", "snapshotting", "worker 0 holds", "127.0.0.1:900"] {
            assert!(live.contains(words), "{words:?} is not in:\n{live}");
        }
        assert_eq!(shards(&[member(Role::Worker, None)], &Age::Live), "");

        let collisions = Some(CollisionStatus {
            distinct_ngrams: 1234.4,
            ideal_rows: 1000.0,
            excess_ratio: Some(0.0123),
            ngrams_per_row: Some(1.25),
            shared_lookups_ratio: Some(0.2314),
        });
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
        assert!(lines[3].ends_with("1.23 k     1.25   23.1%  1.00 k   +1.2%"), "{lines:?}");
        assert!(lines[4].ends_with("-"), "{lines:?}");
        assert_eq!(lines.len(), 5, "the second site is not repeated: {lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        assert_eq!(tables(&RowsStatus::default()), "");
    }
}
