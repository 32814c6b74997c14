//! Configurations, terms, events, metrics, status: on every store.

use polygram_checkpoint::{
    AttemptRecord, CheckpointError, ConfigHash, CoordinatorAddress, EvaluationRecord, MetricsLine,
    MetricsRecord, Term,
};
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
        assert!(matches!(fenced, Err(CheckpointError::Fenced { held: 7, current: 8 })));
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
        // A lost object is a gap, not a shorter history.
        store.append_metrics(3, 2, &[step(9, 1.0)]).await.unwrap();
        let gap = store.read_metrics().await.unwrap_err().to_string();
        assert!(gap.contains("events/metrics/000003/00000001.jsonl"), "{gap}");
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
    assert!(store.append_events("worker", 0, 0, "no newline").await.is_err());
    assert!(store.append_events("no/role", 0, 0, "{}\n").await.is_err());
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
