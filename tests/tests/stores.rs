//! The same run on an object store as in a folder: same bits, killed and resumed, with the same tools.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, seeds are told

use std::time::Duration;

use polygram_tests::{ByHand, Cluster, Engine, Moto, RudeProxy, Rudeness};
use rustix::process::Signal;

const RUN: [&str; 5] = [
    "training.steps=40",
    "checkpoint.every_steps=8",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=60",
];
const END_LIMIT: Duration = Duration::from_secs(60);
/// Over a rude store everything takes its time.
const RUDE_LIMIT: Duration = Duration::from_secs(400);

#[test]
fn a_run_on_s3_is_killed_resumed_and_ends_with_the_bits_of_a_folders() {
    let here = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    here.train(&[]).unwrap().success().unwrap();

    let server = Moto::shared().unwrap();
    let there = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).on_s3(server).unwrap();
    // Worker 1 stands still in step 27, so that the launcher can be killed in the middle of the run.
    let freeze = ("POLYGRAM_FAULT", "1 27 reducing freeze");
    let mut running = there.start_with(&[], &[freeze]).unwrap();
    there.await_step(&mut running, 26).unwrap();
    running.signal(running.pid(), Signal::KILL).unwrap();
    running.wait(END_LIMIT).unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    let steps = |cluster: &Cluster| -> Vec<u64> {
        let listed = cluster.ckpt_json("ls", &[]).unwrap();
        listed.as_array().unwrap().iter().map(|line| line["step"].as_u64().unwrap()).collect()
    };
    let committed = steps(&there);
    assert!(committed.last().is_some_and(|last| (16..=24).contains(last)), "{committed:?}");

    there.train(&[]).unwrap().success().unwrap();
    assert_eq!(there.digest().unwrap(), here.digest().unwrap());
    assert_eq!(there.metrics().unwrap(), here.metrics().unwrap());
    assert_eq!(steps(&there), steps(&here));
    assert_eq!(there.ckpt_json("verify", &["--all"]).unwrap()[0]["sound"], true);
    let status = there.status().unwrap();
    assert_eq!((status.state.as_str(), status.step), ("completed", 40));
    // Logs outlive a cleaner of temporary folders, and no secret outlives its launch.
    let state = there.state().join("polygram");
    assert!(state.join("logs/tiny/0002/coordinator.log").is_file());
    assert_eq!(std::fs::read_dir(state.join("launch/tiny")).unwrap().count(), 0);
}

/// Bits flip on the way from the store, answers are cut short, lost, late or 503, and members die: the run ends with the
/// bits of one that had a folder to itself, and no checkpoint was given up.
#[test]
fn a_run_outlives_a_store_that_is_rude() {
    let seed = std::env::var("POLYGRAM_STORE_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("POLYGRAM_STORE_SEED={seed}");
    let here = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    here.train(&[]).unwrap().success().unwrap();

    let server = Moto::shared().unwrap();
    let proxy = RudeProxy::before(server.address(), seed).unwrap();
    let there = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).on_s3(server).unwrap().over(&proxy);
    let marks = there.folder().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let marks = marks.display();
    let deaths = format!("worker.applied 1:20 kill {marks}; shard.before_apply 0:30 kill {marks}");
    let mut running = there.start_with(&[], &[("POLYGRAM_FAULT", &deaths)]).unwrap();
    let finished = running.wait(RUDE_LIMIT).unwrap().success().unwrap();
    running.wait_for_silence(END_LIMIT).unwrap();
    let done = proxy.done();
    println!("{} requests: {done:?}", proxy.requests());
    assert_eq!(std::fs::read_dir(there.folder().join("marks")).unwrap().count(), 2, "{}", finished.said());
    for rudeness in [Rudeness::Flipped, Rudeness::Cut, Rudeness::Lost, Rudeness::Refused] {
        assert!(done.contains_key(&rudeness), "{rudeness:?}: {done:?}");
    }
    assert_eq!(there.digest().unwrap(), here.digest().unwrap());
    assert_eq!(there.metrics().unwrap(), here.metrics().unwrap());
    assert_eq!(there.ledger().unwrap(), here.ledger().unwrap());
    assert!(!finished.stderr.contains("set aside"), "{}", finished.said());
}

/// Whatever one host reads is not what was written, and the coordinator, which reads it rightly, does not believe it: the
/// member is lost, and once more, and that is the end. The checkpoint stays where it is.
#[test]
fn a_host_that_reads_wrongly_is_not_believed() {
    let server = Moto::shared().unwrap();
    let there = Cluster::tiny(Engine::Drill).unwrap().with(&RUN).on_s3(server).unwrap();
    there.train(&["training.stop_at_step=16"]).unwrap().success().unwrap();
    let committed = there.ckpt_json("ls", &[]).unwrap();

    let proxy = RudeProxy::of_a_broken_host(server.address()).unwrap();
    let endpoint = proxy.endpoint();
    let broken = [(("worker", 1), "AWS_ENDPOINT_URL", endpoint.as_str())];
    let message = ByHand::start_with(&there, (2, 2), &broken).unwrap().ends().unwrap().refusal().unwrap();
    assert!(proxy.done()[&Rudeness::Flipped] >= 2, "{:?}", proxy.done());
    for words in ["worker 1", "read here, it is sound", "this failure came at step 16 before"] {
        assert!(message.contains(words), "{words:?} is not in:\n{message}");
    }
    assert_eq!(there.ckpt_json("ls", &[]).unwrap(), committed);

    // On a host that reads rightly it goes on.
    there.train(&[]).unwrap().success().unwrap();
    let here = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    here.train(&[]).unwrap().success().unwrap();
    assert_eq!(there.digest().unwrap(), here.digest().unwrap());
}

#[test]
fn a_store_that_cannot_be_used_is_named_before_anything_starts() {
    let server = Moto::shared().unwrap();
    let there = Cluster::tiny(Engine::Drill).unwrap().on_s3(server).unwrap();
    let train = |root: &str, variables: &[(&str, &str)]| {
        let run_file = polygram_tests::repository().join("configs/tiny.toml");
        let mut command = std::process::Command::new(polygram_tests::program("polygram").unwrap());
        command.arg("train").arg(run_file).args(["--root", root]).envs(server.variables());
        command.envs(variables.iter().copied()).current_dir(there.folder());
        let mut running = polygram_tests::Running::start(command, there.folder()).unwrap();
        running.wait(END_LIMIT).unwrap().refusal().unwrap()
    };
    let message = train("s3://no-such-bucket/x", &[]);
    assert!(message.contains("s3://no-such-bucket/x") && message.contains("create it"), "{message}");
    let message = train(there.root_url(), &[("AWS_CONDITIONAL_PUT", "disabled")]);
    assert!(message.contains("If-None-Match"), "{message}");
    let message = train("ftp://host/x", &[]);
    assert!(message.contains("s3://bucket/prefix"), "{message}");
}
