//! What a user is told about a run that has nothing to do, nothing to show, or lies where it should not: the truth, once, and
//! with the same exit status for the same thing.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::fs;
use std::time::Duration;

use polygram_tests::{
    Cluster, Contents, Engine, Finished, PoolCluster, Running, program, repository, segment, wait_until,
};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const RUN: [&str; 3] = ["training.steps=20", "checkpoint.every_steps=10", "evaluation.every_steps=5"];

fn cluster() -> Cluster {
    Cluster::tiny(Engine::Drill).unwrap().with(&RUN)
}

fn ask(cluster: &Cluster, arguments: &[&str]) -> Finished {
    cluster.polygram(&[arguments, &["--root", cluster.root_url()]].concat()).unwrap()
}

fn json(finished: Finished) -> Value {
    let finished = finished.success().unwrap();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.said()))
}

/// `words` are said, on either stream, and `not` are not.
fn says(finished: &Finished, words: &[&str], not: &[&str]) {
    let said = finished.said();
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
    for word in not {
        assert!(!said.contains(word), "{word:?} is there: {said}");
    }
}

/// A run with nothing left to train is left as it was, whatever the settings; one message says so, and its advice holds.
#[test]
fn a_run_with_nothing_to_do_is_left_as_it_was() {
    let cluster = cluster().with(&["training.schedule=cosine", "training.warmup_steps=2"]);
    cluster.train(&[]).unwrap().success().unwrap();
    let status = json(ask(&cluster, &["status", "tiny", "-o", "json"]));
    let before = Contents::of(&cluster.root()).unwrap();
    for (sets, reason) in [
        (&[][..], "nothing is left to train"),
        (&["training.lr=0.5"], "nothing is left to train, and its settings are left as they were"),
        (
            &["training.steps=12", "training.lr=0.5"],
            "nothing is trained, for training.steps is 12, and its settings",
        ),
        (&["training.stop_at_step=15"], "nothing is trained, for training.stop_at_step is 15"),
    ] {
        let again = cluster.train(sets).unwrap().success().unwrap();
        says(
            &again,
            &[reason, "all 20 steps", "learning rate has decayed to 3e-4", "--set training.lr=3e-4"],
            &[],
        );
        says(
            &again,
            &[],
            &["warning:", "rises from", "of 12", "changed since", "configuration of run", "00000000003e"],
        );
        assert_eq!(again.said().matches("nothing is ").count(), 1, "{}", again.said());
        let now = Contents::of(&cluster.root()).unwrap();
        assert!(before.lost_in(&now).is_empty() && now.lost_in(&before).is_empty(), "{}", again.said());
        assert_eq!(json(ask(&cluster, &["status", "tiny", "-o", "json"])), status);
    }
    // What is advised is what it takes.
    let advised = ["training.steps=40", "training.lr=3e-4", "training.min_lr_ratio=1"];
    let longer = cluster.train(&advised).unwrap().success().unwrap();
    says(&longer, &["all 40 steps"], &["learning rate rises"]);
}

/// A run that was stopped on its way is not ended by settings that end before: they say how it goes on.
#[test]
fn a_stopped_run_is_not_completed_by_fewer_steps() {
    let cluster = cluster();
    cluster.train(&["training.stop_at_step=10"]).unwrap().success().unwrap();
    let idle = cluster.train(&["training.steps=7", "training.warmup_steps=1"]).unwrap().success().unwrap();
    says(
        &idle,
        &[
            "for training.steps is 7",
            "with training.steps above 10, or without it; the run was trained with training.steps = 20",
        ],
        &["of 7", "completed"],
    );
    let status = json(ask(&cluster, &["status", "tiny", "-o", "json"]));
    assert_eq!((status["state"].as_str(), status["total_steps"].as_u64()), (Some("stopped"), Some(20)));
    says(&cluster.train(&[]).unwrap().success().unwrap(), &["all 20 steps"], &[]);
}

/// Nothing committed: it is said before, after, and when it is lost.
#[test]
fn what_is_not_committed_is_said_before_and_after() {
    let cluster = cluster();
    let file = repository().join("configs/tiny.toml").display().to_string();
    for (sets, has) in
        [(&["checkpoint.every_steps="][..], true), (&["checkpoint.every_steps=61"], true), (&[], false)]
    {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let plan = cluster.polygram(&["plan", &file].into_iter().chain(sets).collect::<Vec<_>>()).unwrap();
        let plan = plan.success().unwrap();
        assert_eq!(
            plan.stderr.contains("warning: nothing is committed before step 60"),
            has,
            "{}",
            plan.said()
        );
    }
    let mut running = cluster.start(&["training.steps=10000000", "checkpoint.every_steps="]).unwrap();
    cluster.await_step(&mut running, 5).unwrap();
    assert!(running.stderr().unwrap().contains("warning: nothing is committed before step 10000000"));
    // The same emptiness has the same status, whoever is asked: here there are steps, and no checkpoint.
    for arguments in [&["digest", "tiny"][..], &["ckpt", "verify", "tiny"], &["ckpt", "show", "tiny"]] {
        let empty = ask(&cluster, arguments);
        assert_eq!(empty.status.code(), Some(1), "{}", empty.said());
        says(&empty, &["has no checkpoint yet"], &[]);
    }
    let metrics = cluster.root().join("runs/tiny/events/metrics");
    wait_until("recorded steps", LIMIT, || Ok(metrics.is_dir().then_some(()))).unwrap();
    running.signal(running.pid(), Signal::KILL).unwrap();
    running.wait(LIMIT).unwrap();
    running.wait_for_silence(LIMIT).unwrap();
    let lost = cluster.train(&[]).unwrap().success().unwrap();
    says(&lost, &["but nothing of it was committed: it begins anew", "starting run tiny"], &[]);
}

/// The only checkpoint is not removed with the words for one of several; afterwards nobody says that all is committed.
#[test]
fn a_run_whose_checkpoints_are_gone_says_so() {
    let cluster = cluster();
    cluster.train(&[]).unwrap().success().unwrap();
    let newest = cluster.ckpt("rm", &["20"]).unwrap();
    assert_eq!(newest.status.code(), Some(2), "{}", newest.said());
    says(&newest, &["the steps since the one of step 10 are lost"], &[]);
    cluster.ckpt("rm", &["20", "--force"]).unwrap().success().unwrap();
    let one_gone = ask(&cluster, &["status", "tiny"]).success().unwrap();
    let words =
        "its checkpoint of step 20 is not there any more; the same train command goes on from step 10";
    says(&one_gone, &[words, "committed step 10"], &["done and committed"]);

    let only = cluster.ckpt("rm", &["10"]).unwrap();
    says(&only, &["it is the only one", "all 10 steps are lost", "begins anew"], &["the one before"]);
    cluster.ckpt("rm", &["10", "--force"]).unwrap().success().unwrap();
    let all_gone = ask(&cluster, &["status", "tiny"]).success().unwrap();
    says(&all_gone, &["no checkpoint is left"], &["done and committed", "nothing committed yet"]);
    let again = cluster.train(&[]).unwrap().success().unwrap();
    says(
        &again,
        &["warning: run tiny had done 20 steps, but no checkpoint of it is left: it begins anew"],
        &[],
    );
}

/// A run that was made of another one's checkpoint is sound, says where it comes from, and is not written over.
#[test]
fn a_resharded_run_is_sound_and_is_not_written_over() {
    let cluster = cluster();
    cluster.train(&[]).unwrap().success().unwrap();
    let reshard = ["--workers", "2", "--shards", "3", "--to-run", "copy"];
    for step in ["10", "20"] {
        cluster.ckpt("reshard", &[&reshard[..], &["--step", step]].concat()).unwrap().success().unwrap();
    }
    let verified = ask(&cluster, &["ckpt", "verify", "copy", "--all"]).success().unwrap();
    says(&verified, &["step 10: ", "step 20: ", "every byte"], &["fault"]);
    for command in ["ledger", "metrics"] {
        let empty = ask(&cluster, &[command, "copy"]);
        assert_eq!(empty.status.code(), Some(1), "{}", empty.said());
        says(&empty, &["step 20", "another run has made"], &["fault", "no line", "no such step"]);
    }
    let before = Contents::of(&cluster.root()).unwrap();
    let twice = cluster.ckpt("reshard", &reshard).unwrap();
    assert_eq!(twice.status.code(), Some(2), "{}", twice.said());
    says(&twice, &["run copy in ", "has a checkpoint of step 20 already", "--to-run NAME"], &["cannot read"]);
    let after = Contents::of(&cluster.root()).unwrap();
    assert!(after.lost_in(&before).is_empty(), "a refused reshard wrote something");
    // Stopped before its first step, it is sound still; trained on, each step is there once.
    let longer = ["training.steps=30", "run.name=copy"];
    cluster.train(&[&longer[..], &["training.stop_at_step=25"]].concat()).unwrap().success().unwrap();
    says(
        &ask(&cluster, &["ckpt", "verify", "copy", "--all"]).success().unwrap(),
        &["ledger: 5 steps"],
        &["fault"],
    );
    let steps = ask(&cluster, &["metrics", "copy", "-o", "jsonl"]).success().unwrap();
    assert_eq!(steps.stdout.lines().count(), 5, "{}", steps.said());
}

/// A folder that is no run, one that is the copy of a run, and a root that is the folder of runs.
#[test]
fn what_is_listed_is_what_every_command_finds() {
    let cluster = cluster();
    cluster.train(&[]).unwrap().success().unwrap();
    let runs = cluster.root().join("runs");
    fs::create_dir(runs.join("empty")).unwrap();
    let copied =
        std::process::Command::new("cp").arg("-r").args([runs.join("tiny"), runs.join("copied")]).status();
    assert!(copied.unwrap().success());
    let listed = ask(&cluster, &["runs"]).success().unwrap();
    says(&listed, &["tiny", "copied: ", "is a copy of that run"], &["empty", "0/0"]);
    let asked = ask(&cluster, &["status", "copied"]);
    assert_eq!(asked.status.code(), Some(2), "{}", asked.said());
    says(&asked, &["is a copy of that run"], &["run tiny: completed"]);
    let copy = cluster.train(&["run.name=copied"]).unwrap();
    assert_eq!(copy.status.code(), Some(2), "{}", copy.said());
    let words = ["is a copy of that run", "--to-run copied", "where run tiny itself is gone, rename"];
    says(&copy, &words, &["cannot open", "configuration of run"]);
    let root = cluster.root().display().to_string();
    for (inner, command) in [("runs", &["runs"][..]), ("runs", &["status", "tiny"]), ("runs/tiny", &["runs"])]
    {
        let inner = format!("{root}/{inner}");
        let refused = cluster.polygram(&[command, &["--root", &inner]].concat()).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
        says(&refused, &["lies within a root", &format!("give --root {root}")], &["committed"]);
    }
    let nowhere = cluster.polygram(&["runs", "--root", "nowhere"]).unwrap();
    assert_eq!(
        (nowhere.status.code(), nowhere.stderr.matches("nowhere").count()),
        (Some(2), 1),
        "{}",
        nowhere.said()
    );
    let unused = cluster.polygram(&["plan", "run.toml", "--root", &root]).unwrap();
    assert_eq!(unused.status.code(), Some(2), "{}", unused.said());
}

/// The comparison beside a held-out loss is of the very tokens that were evaluated, and is left out for other data.
#[test]
fn a_held_out_loss_is_compared_with_its_own_tokens() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap();
    let prefix = |name: &str| cluster.folder().join(name);
    let documents = segment::documents(128);
    segment::write(&prefix("train"), &documents).unwrap();
    segment::write(&prefix("held"), &documents[..40]).unwrap();
    segment::write(&prefix("other"), &documents[40..80]).unwrap();
    let (held, other) = (prefix("held").display().to_string(), prefix("other").display().to_string());
    let train = prefix("train");
    let cluster = cluster.on_segments(&train).unwrap().with(&RUN).with(&["evaluation.cells=2"]);
    let of = |path: &str| format!("data.held_out={path:?}");
    let first = cluster.train(&[&of(&held)]).unwrap().success().unwrap();
    // Two cells of 2 × 32 targets, each of the first tokens of the set.
    let tokens: Vec<u16> = documents[..40].concat();
    let targets: Vec<u16> = tokens[1..=128].to_vec();
    let share =
        |token: &u16| targets.iter().filter(|other| *other == token).count() as f64 / targets.len() as f64;
    let mut kinds = targets.clone();
    kinds.sort_unstable();
    kinds.dedup();
    let entropy: f64 = kinds.iter().map(|token| -share(token) * share(token).ln()).sum();
    let line = format!("a model without context reaches {entropy:.4} on these tokens at best");
    says(&first, &["over 128 tokens", &line], &[]);
    // Nothing is evaluated again: with the same data the line is the same, with other data there is none.
    says(&cluster.train(&[&of(&held)]).unwrap().success().unwrap(), &[&line], &["other data"]);
    let changed = cluster.train(&[&of(&other)]).unwrap().success().unwrap();
    says(&changed, &["it is of the data that the set had then"], &["without context"]);
}

/// Refused starts: status 2, one message, nothing left behind.
#[test]
fn a_start_that_cannot_be_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("root")).unwrap();
    // As the superuser of a namespace of its own, who may mount.
    let script = format!(
        "mount -t tmpfs -o ro tmpfs root || exit 99\n\
         {polygram} train {file} --root root --set device.engine=drill\n\
         echo status $?\n{polygram} pool up --workers 1 --shards 1 --folder root/pool\necho status $?\nls root\n",
        polygram = program("polygram").unwrap().display(),
        file = repository().join("configs/tiny.toml").display(),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["-rm", "bash", "-c", &script]).current_dir(folder.path());
    let finished = Running::start(command, folder.path()).unwrap().wait(LIMIT).unwrap();
    let said = finished.said();
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), ["status 2", "status 2"], "{said}");
    says(
        &finished,
        &["cannot be written", "Read-only", "another folder"],
        &["configuration of run", "log folder"],
    );
    assert_eq!(finished.stderr.matches("error: ").count(), 2, "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let pool = PoolCluster::new().unwrap();
    let refused =
        pool.polygram(&["pool", "up", "--workers", "1", "--shards", "1", "--listen", &listen]).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
    says(&refused, &[&format!("--listen {listen}"), "another port"], &[]);
    for address in ["~/runs", "s3:/bucket/x"] {
        let refused =
            pool.polygram(&["pool", "up", "--workers", "1", "--shards", "1", "--root", address]).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
        says(&refused, &[&format!("--root is {address:?}")], &[]);
    }
    assert!(!pool.folder().join("polygram-pool").exists() && !pool.folder().join("~").exists());
}
