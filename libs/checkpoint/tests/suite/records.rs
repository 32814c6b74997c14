//! Configurations, terms, events, metrics, status: on every store.

use std::time::Duration;

use polygram_checkpoint::{
    AttemptRecord, CheckpointError, ConfigHash, CoordinatorAddress, EvaluationRecord, FailureLine,
    Leadership, Lease, MetricsLine, MetricsRecord, RollbackCause, SegmentId, Term, WentBackRecord, keys,
};
use polygram_domain::{Generation, Step, StepOutcome};
use polygram_process::ProcessIdentity;
use proptest::prelude::*;

use crate::support::{Backend, block_on, spec};

#[tokio::test]
async fn configurations_are_frozen_by_content() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let hash = store.put_config("a = 1\n").await.unwrap();
        assert_eq!(store.put_config("a = 1\n").await.unwrap(), hash);
        store.put_config("a = 2\n").await.unwrap();
        assert_eq!(store.read_config(&hash).await.unwrap(), "a = 1\n");
        assert_eq!(store.configs().await.unwrap().len(), 2);
        backend.overwrite(&spec, &format!("config/{hash}.toml"), "a = 3\n").await;
        assert!(matches!(store.read_config(&hash).await, Err(CheckpointError::Damaged { .. })));
        let absent = ConfigHash::of("never");
        assert!(matches!(store.read_config(&absent).await, Err(CheckpointError::Missing { .. })));
    }
}

fn address(pid: u32) -> CoordinatorAddress {
    CoordinatorAddress { address: format!("127.0.0.1:{pid}"), pid, started_unix_ms: 5 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_coordinator_gets_a_term_of_its_own() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(store.latest_coordinator().await.unwrap(), None);
        let mut claims = tokio::task::JoinSet::new();
        for pid in 1..=8 {
            let store = store.clone();
            claims.spawn(async move { (store.claim_term(&address(pid)).await.unwrap(), pid) });
        }
        let mut terms = claims.join_all().await;
        terms.sort();
        assert!(terms.iter().map(|(term, _)| term.0).eq(1..=8), "{} {terms:?}", backend.name);
        let latest = store.latest_coordinator().await.unwrap().unwrap();
        assert_eq!((latest.term, latest.pid), (Term(8), terms[7].1));
        store.check_term(Term(8)).await.unwrap();
        let fenced = store.check_term(Term(7)).await;
        assert!(matches!(fenced, Err(CheckpointError::Fenced { held: 7, current: 8, .. })));
    }
}

#[tokio::test]
async fn who_leads_a_run_stands_in_its_store() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(store.leadership().await.unwrap(), Leadership::Vacant, "{}", backend.name);
        let term = store.claim_term(&address(7)).await.unwrap();
        let claimed = store.leadership().await.unwrap();
        assert!(matches!(&claimed, Leadership::Claimed(record) if record.pid == 7), "{claimed:?}");
        // A leader on another machine.
        let own = Lease::new(term, &address(7), Duration::ZERO);
        let process = ProcessIdentity { host: "far".into(), boot_id: "b".into(), ..own.process.clone() };
        let lease = Lease { process, silence_ms: 1500, ..own.clone() };
        store.write_lease(&lease).await.unwrap();
        assert_eq!(store.leadership().await.unwrap(), Leadership::Leased(Box::new(lease.clone())));
        assert!(lease.is_fresh() && lease.leader().starts_with("the coordinator on host far (pid "));
        // A store that purges old objects takes the term and leaves the lease: the next term is a new one.
        backend.remove(&spec, &keys::term(term.0)).await;
        assert_eq!(store.leadership().await.unwrap(), Leadership::Leased(Box::new(lease.clone())));
        assert_eq!(store.claim_term(&address(8)).await.unwrap(), Term(term.0 + 1), "{}", backend.name);
        backend.remove(&spec, &keys::term(term.0 + 1)).await;
        // Its clock may be hours wrong: what counts is that it is renewed, or is not.
        let skewed = Lease { renewed_unix_ms: 5, ..lease.clone() };
        store.write_lease(&skewed).await.unwrap();
        let renewed = Lease { renewals: 1, ..skewed.clone() };
        let renewing = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.write_lease(&renewed).await.unwrap();
        };
        let (seen, ()) = tokio::join!(store.await_renewal(&skewed), renewing);
        assert_eq!(seen.unwrap(), Some(renewed.clone()), "{}", backend.name);
        assert_eq!(store.await_renewal(&renewed).await.unwrap(), None, "it is silent");
        // One that is given up, and one whose process has ended on this machine, hold nobody up.
        store.write_lease(&renewed.clone().released()).await.unwrap();
        assert_eq!(store.leadership().await.unwrap(), Leadership::Vacant);
        let process = ProcessIdentity { start_ticks: own.process.start_ticks + 1, ..own.process.clone() };
        store.write_lease(&Lease { process, ..own.clone() }).await.unwrap();
        assert_eq!(store.leadership().await.unwrap(), Leadership::Vacant);
        // A lease that cannot be read is none; one of another build is not understood, and not passed over.
        backend.overwrite(&spec, keys::LEASE, "{").await;
        assert_eq!(store.read_lease().await.unwrap(), None);
        store.write_lease(&Lease { schema: own.schema + 1, ..own }).await.unwrap();
        assert!(store.leadership().await.unwrap_err().is_of_another_build());
    }
}

fn step(step: u64, loss: f64) -> MetricsLine {
    MetricsLine::Step(MetricsRecord {
        step,
        loss,
        grad_norm: 1.0,
        lr: 0.1,
        tokens: 64,
        seconds: 0.5,
        data_wait_seconds: None,
        embedding_wait_seconds: Some(0.25),
    })
}

fn evaluation(step: u64, loss: f64) -> MetricsLine {
    MetricsLine::Evaluation(EvaluationRecord { step, set: "held_out".into(), loss, tokens: 10 })
}

fn attempt(attempt: u64, resumed_from: u64) -> MetricsLine {
    MetricsLine::Attempt(AttemptRecord { attempt, resumed_from })
}

#[tokio::test]
async fn a_resumed_attempt_makes_void_what_was_rolled_back() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(store.read_metrics().await.unwrap(), Default::default());
        store.append_metrics(1, 0, &[attempt(1, 0), step(1, 9.0), step(2, 8.0)]).await.unwrap();
        store.append_metrics(1, 1, &[step(3, 7.0), evaluation(3, 7.5), step(4, 6.0)]).await.unwrap();
        store.append_metrics(3, 0, &[attempt(3, 2), step(3, 7.25)]).await.unwrap();
        store.append_metrics(3, 0, &[attempt(3, 2), step(3, 7.25)]).await.unwrap();
        let other = store.append_metrics(3, 0, &[attempt(3, 2), step(3, 0.0)]).await;
        assert!(matches!(other, Err(CheckpointError::AlreadyExists { .. })));
        let metrics = store.read_metrics().await.unwrap();
        let losses: Vec<(u64, f64)> = metrics.steps.iter().map(|r| (r.step, r.loss)).collect();
        assert_eq!(losses, [(1, 9.0), (2, 8.0), (3, 7.25)], "{}", backend.name);
        assert_eq!(metrics.evaluations, []);
        assert_eq!(metrics.attempts.len(), 2);
        assert_eq!(metrics.steps[0].embedding_wait_seconds, Some(0.25));

        let line = String::from_utf8(backend.raw(&spec, "events/metrics/000003/00000000.jsonl").await.into());
        assert!(line.unwrap().contains("\"attempt\":3,\"resumed_from\":2"));
        // A lost segment is a gap that is told, and what was done again there does not come back.
        store.append_metrics(3, 2, &[step(9, 1.0), step(10, 0.5)]).await.unwrap();
        let metrics = store.read_metrics().await.unwrap();
        assert_eq!(metrics.gaps, [(4, 8)]);
        assert_eq!(metrics.steps.len(), 5);
        backend.remove(&spec, "events/metrics/000001/00000000.jsonl").await;
        backend.remove(&spec, "events/metrics/000003/00000000.jsonl").await;
        let metrics = store.read_metrics().await.unwrap();
        let steps: Vec<u64> = metrics.steps.iter().map(|record| record.step).collect();
        assert_eq!((steps, metrics.gaps), (vec![3, 4, 9, 10], vec![(1, 2), (5, 8)]));
    }
}

/// Versions of one segment: the newest counts, whichever are still there.
#[tokio::test]
async fn of_a_segment_the_newest_version_counts() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let version = |seq, version| SegmentId { seq, version };
        let mut lines = vec![attempt(1, 0), step(1, 9.0)];
        let first = store.append_metrics(1, version(0, 1), &lines).await.unwrap();
        lines.push(step(2, 8.0));
        let second = store.append_metrics(1, version(0, 2), &lines).await.unwrap();
        let third = store.append_metrics(1, version(1, 1), &[step(3, 7.0)]).await.unwrap();
        assert_eq!(second, "events/metrics/000001/00000000-000002-000000000001-18446744073709551615.jsonl");
        let steps = async || -> Vec<u64> {
            let metrics = store.read_metrics().await.unwrap();
            assert_eq!(metrics.gaps, []);
            metrics.steps.iter().map(|record| record.step).collect()
        };
        assert_eq!(steps().await, [1, 2, 3], "{}", backend.name);
        store.remove_replaced(&mut vec![first.clone()]).await;
        assert_eq!(steps().await, [1, 2, 3], "{}", backend.name);
        // What is gone is no error to remove.
        let mut gone = vec![first];
        store.remove_replaced(&mut gone).await;
        assert!(gone.is_empty());
        // A newer version that is damaged is damage, not a reason to take the older one.
        backend.overwrite(&spec, &third, "{}\n").await;
        assert!(matches!(store.read_metrics().await, Err(CheckpointError::Damaged { .. })));
    }
}

/// A range is what the whole history has there; the newest step is known from one segment.
#[tokio::test]
async fn a_range_is_a_part_of_the_whole() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    assert_eq!(store.newest_metrics_step().await.unwrap(), 0);
    let back = |step| MetricsLine::WentBack(WentBackRecord { step });
    for (attempt_number, seq, lines) in [
        (1, 0, (1..=40).map(|at| step(at, 1.0)).collect::<Vec<_>>()),
        (1, 1, (41..=80).map(|at| step(at, 1.0)).collect()),
        (1, 2, [back(30)].into_iter().chain((31..=50).map(|at| step(at, 2.0))).collect()),
        (1, 3, (51..=60).map(|at| step(at, 2.0)).chain([evaluation(55, 2.0)]).collect()),
        (2, 0, (46..=70).map(|at| step(at, 3.0)).collect()),
    ] {
        let lines = match (attempt_number, seq) {
            (1, 0) => [vec![attempt(1, 0)], lines].concat(),
            (2, 0) => [vec![attempt(2, 45)], lines].concat(),
            _ => lines,
        };
        let id = SegmentId { seq, version: 1 };
        store.append_metrics(attempt_number, id, &lines).await.unwrap();
    }
    assert_eq!(store.newest_metrics_step().await.unwrap(), 70);
    let whole = store.read_metrics().await.unwrap();
    assert_eq!(whole.steps.len(), 70);
    for from in 1..=90 {
        for to in from..=90 {
            let part = store.read_metrics_of(from..=to).await.unwrap().finish();
            let wanted: Vec<_> =
                whole.steps.iter().filter(|record| (from..=to).contains(&record.step)).cloned().collect();
            assert_eq!((part.steps, part.gaps), (wanted, vec![]), "{from}..={to}");
        }
    }
    // Nothing is read that cannot matter.
    backend.remove(&spec, "events/metrics/000001/00000001-000001-000000000041-000000000080.jsonl").await;
    backend
        .overwrite(&spec, "events/metrics/000001/00000003-000001-000000000051-000000000060.jsonl", "x")
        .await;
    assert_eq!(store.read_metrics_of(61..=99).await.unwrap().finish().steps.len(), 10);
    // An attempt that has only gone back tells where it goes on.
    let id = SegmentId { seq: 1, version: 1 };
    store.append_metrics(2, id, &[back(52)]).await.unwrap();
    assert_eq!(store.newest_metrics_step().await.unwrap(), 52);
}

/// A writer that replaces versions all the time: at any instant a reader finds a whole prefix, each line once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_finds_a_whole_prefix_at_any_instant() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        let writer = store.clone();
        let writing = tokio::spawn(async move {
            let (mut lines, mut older) = (vec![attempt(1, 0)], Vec::new());
            for version in 1..=120 {
                lines.push(step(version, 1.0));
                let id = SegmentId { seq: 0, version };
                let key = writer.append_metrics(1, id, &lines).await.unwrap();
                writer.remove_replaced(&mut older).await;
                older.push(key);
            }
        });
        let mut reached = 0;
        while reached < 120 {
            let is_over = writing.is_finished();
            let metrics = store.read_metrics().await.unwrap();
            let steps: Vec<u64> = metrics.steps.iter().map(|record| record.step).collect();
            assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "{}", backend.name);
            // A folder's listing may miss the newest one while it changes.
            reached = if is_over { steps.len() } else { reached.max(steps.len()) };
            assert!(!is_over || reached == 120, "{}: {reached}", backend.name);
        }
        writing.await.unwrap();
    }
}

/// What a store has removed for its age: terms go on behind the attempts that are recorded.
#[tokio::test]
async fn a_new_term_is_behind_every_recorded_attempt() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(store.claim_term(&address(1)).await.unwrap(), Term(1));
        store.append_metrics(7, 0, &[attempt(7, 0)]).await.unwrap();
        assert_eq!(store.claim_term(&address(2)).await.unwrap(), Term(8), "{}", backend.name);
        let term = store.term_object(Term(8)).await.unwrap();
        for object in store.list("coord").await.unwrap() {
            backend.remove(&spec, &object.key).await;
        }
        store.renew("a = 1\n", &term).await.unwrap();
        let latest = store.latest_coordinator().await.unwrap().unwrap();
        assert_eq!((latest.term, latest.pid), (Term(8), 2));
        assert_eq!(store.read_config(&ConfigHash::of("a = 1\n")).await.unwrap(), "a = 1\n");
        assert_eq!(store.claim_term(&address(3)).await.unwrap(), Term(9));
    }
}

#[tokio::test]
async fn every_held_out_set_has_its_evaluations() {
    let store = Backend::memory().run(&spec(&[]));
    let of = |step, set: &str, loss| {
        MetricsLine::Evaluation(EvaluationRecord { step, set: set.into(), loss, tokens: 10 })
    };
    let first =
        [attempt(1, 0), of(10, "wiki", 3.0), of(10, "code", 2.0), of(20, "wiki", 2.5), of(20, "code", 1.5)];
    store.append_metrics(1, 0, &first).await.unwrap();
    // The evaluations of the state that an attempt resumes from stay, those of later ones do not.
    store.append_metrics(2, 0, &[attempt(2, 10), of(20, "wiki", 2.25)]).await.unwrap();
    let evaluations = store.read_metrics().await.unwrap().evaluations;
    let found: Vec<_> = evaluations.iter().map(|e| (e.step, e.set.as_str(), e.loss)).collect();
    assert_eq!(found, [(10, "code", 2.0), (10, "wiki", 3.0), (20, "wiki", 2.25)]);
    // A record of a run that had one set without a name.
    let old = r#"{"kind":"evaluation","step":4,"loss":2.5,"tokens":64}"#;
    let MetricsLine::Evaluation(old) = serde_json::from_str(old).unwrap() else { panic!("{old}") };
    assert_eq!(old.set, "held_out");
}

#[tokio::test]
async fn attempts_begin_with_their_record() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    assert!(store.append_metrics(1, 0, &[step(1, 1.0)]).await.is_err());
    assert!(store.append_metrics(1, 0, &[attempt(2, 0)]).await.is_err());
    assert!(store.append_metrics(1, 1, &[attempt(1, 0)]).await.is_err());
    assert!(store.append_metrics(1, 0, &[attempt(1, 0), attempt(1, 0)]).await.is_err());
}

#[tokio::test]
async fn status_is_replaced() {
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        assert_eq!(store.read_status::<Vec<u32>>().await.unwrap(), None);
        store.put_status(&vec![1, 2]).await.unwrap();
        store.put_status(&vec![3]).await.unwrap();
        assert_eq!(store.read_status::<Vec<u32>>().await.unwrap(), Some(vec![3]));
        assert!(matches!(store.read_status::<String>().await, Err(CheckpointError::Damaged { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn floats_read_back_to_the_same_bits(bits in any::<[u64; 4]>()) {
        let values = bits.map(f64::from_bits);
        let spec = spec(&[]);
        let store = Backend::memory().run(&spec);
        let record = MetricsRecord {
            step: 1, loss: values[0], grad_norm: values[1], lr: values[2], tokens: u64::MAX,
            seconds: values[3], data_wait_seconds: Some(values[0]), embedding_wait_seconds: Some(values[1]),
        };
        let lines = [attempt(1, 0), MetricsLine::Step(record)];
        let read = block_on(async {
            store.append_metrics(1, 0, &lines).await.unwrap();
            store.read_metrics().await.unwrap().steps.remove(0)
        });
        let back = [read.loss, read.grad_norm, read.lr, read.seconds,
            read.data_wait_seconds.unwrap(), read.embedding_wait_seconds.unwrap()];
        for (back, value) in back.into_iter().zip(values.into_iter().chain([values[0], values[1]])) {
            prop_assert!(back.to_bits() == value.to_bits() || back.is_nan() && value.is_nan());
        }
    }
}

#[test]
fn floats_that_are_no_numbers_have_words() {
    for (value, word) in [(f64::NAN, "\"NaN\""), (f64::INFINITY, "\"inf\""), (f64::NEG_INFINITY, "\"-inf\"")]
    {
        let text = serde_json::to_string(&step(1, value)).unwrap();
        assert!(text.contains(&format!("\"loss\":{word}")), "{text}");
    }
    let nothing = serde_json::to_string(&step(1, 1.0)).unwrap().replace("\"loss\":1.0", "\"loss\":null");
    let MetricsLine::Step(record) = serde_json::from_str(&nothing).unwrap() else { panic!("{nothing}") };
    assert!(record.loss.is_nan());
    assert!(serde_json::from_str::<MetricsLine>(&nothing.replace("null", "\"many\"")).is_err());
}

/// The failure log of an earlier build, whose lines had other types (tests/golden/README.md): every line is read as what it
/// is, and counts beside lines of this build.
#[tokio::test]
async fn the_failure_log_of_an_earlier_build_is_read() {
    let segments = [
        (1, include_str!("../../../../tests/golden/failure_log/1.jsonl")),
        (2, include_str!("../../../../tests/golden/failure_log/2.jsonl")),
        (3, include_str!("../../../../tests/golden/failure_log/3.jsonl")),
    ];
    let spec = spec(&[]);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for (attempt, text) in segments {
            let key = format!("events/recovery/{attempt:06}/00000000-000007-000000000000-{}.jsonl", u64::MAX);
            backend.overwrite(&spec, &key, text).await;
        }
        let skipped = FailureLine::StepSkipped {
            at_unix_ms: 1,
            generation: Generation::of_attempt(4),
            step: Step(4),
            outcome: StepOutcome::SkippedNonfinite,
            loss: f64::INFINITY,
            grad_norm: 2.0,
        };
        let rolled_back = FailureLine::RolledBack {
            at_unix_ms: 2,
            generation: Generation::of_attempt(4),
            cause: RollbackCause::Spike { left_out: vec![[96, 104]] },
            to: Step(0),
        };
        let newest = [skipped, rolled_back];
        store.append_failure_log(4, 0, &newest).await.unwrap();
        let log = store.read_failure_log().await.unwrap();
        assert_eq!(log.iter().map(|log| log.attempt).collect::<Vec<_>>(), [1, 2, 3, 4], "{}", backend.name);
        let [first, second, third, fourth] = &log[..] else { panic!("{log:?}") };
        assert!(
            matches!(
                &first.lines[..],
                [
                    FailureLine::Opened { .. },
                    FailureLine::Lost(_),
                    FailureLine::WentBack { step: Step(0), .. },
                    FailureLine::Started { .. },
                    FailureLine::CaughtUp { step: Step(9), .. },
                    FailureLine::Policy { step: Step(17), .. },
                    FailureLine::Policy { .. },
                    FailureLine::WentBack { step: Step(10), .. },
                    FailureLine::Started { .. },
                    FailureLine::CaughtUp { .. },
                    FailureLine::Ended { .. },
                ]
            ),
            "{first:?}"
        );
        let [_, FailureLine::CheckpointQuarantined { step: Step(25), to: Step(20), .. }, ..] =
            &second.lines[..]
        else {
            panic!("{second:?}")
        };
        assert_eq!(third.lines.len(), 2);
        assert_eq!(fourth.lines, newest);
        // Nobody writes a line of an earlier build.
        for line in [&first.lines[2], &first.lines[5]] {
            assert!(store.append_failure_log(5, 0, std::slice::from_ref(line)).await.is_err());
        }
    }
}
