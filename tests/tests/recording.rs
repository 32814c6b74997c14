//! What a run records of itself: few objects at any speed; a store without room costs nothing but time; what is old may go.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test program: an unwrap is a failed test, figures are told

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use polygram_tests::{Cluster, Engine, Finished, Moto, RudeProxy, Running, program, repository, wait_until};
use rustix::process::Signal;

const END_LIMIT: Duration = Duration::from_secs(180);
/// Objects that records of a minute may make, at any number of steps.
const OBJECTS_A_MINUTE: f64 = 20.0;

/// A run that goes on until it is stopped.
const ENDLESS: [&str; 3] =
    ["training.steps=10000000", "checkpoint.every_steps=1000000", "evaluation.every_steps=1000000"];

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found
}

fn records(cluster: &Cluster) -> usize {
    let run = cluster.root().join("runs/tiny");
    files(&run.join("events")).len() + files(&run.join("ledger")).len()
}

fn stop(running: &mut Running) -> Result<Finished> {
    running.signal(running.pid(), Signal::TERM)?;
    let finished = running.wait(END_LIMIT)?;
    running.wait_for_silence(END_LIMIT)?;
    ensure!(finished.status.code() == Some(3), "{}", finished.said());
    Ok(finished)
}

/// `polygram metrics tiny …`: the steps, and what was said beside them.
fn metrics(cluster: &Cluster, more: &[&str]) -> Result<(Vec<u64>, String)> {
    let arguments = [&["metrics", "tiny", "--root", cluster.root_url(), "-o", "jsonl"], more].concat();
    let finished = cluster.polygram(&arguments)?.success()?;
    let step = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line)?;
        record["step"].as_u64().context("no step")
    };
    let steps = finished.stdout.lines().map(step).collect::<Result<_>>()?;
    Ok((steps, finished.stderr))
}

#[test]
fn a_fast_run_makes_few_objects_and_tells_its_newest_steps() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&ENDLESS);
    let mut running = cluster.start(&[]).unwrap();
    cluster.await_step(&mut running, 1).unwrap();
    let began = Instant::now();
    let (mut asked, mut fresh) = (0, 0);
    wait_until("twenty seconds", END_LIMIT, || {
        let reached = cluster.status()?.step;
        let (steps, said) = metrics(&cluster, &["--last", "3"])?;
        ensure!(steps.len() == 3 && said.is_empty(), "{steps:?}: {said}");
        // The store alone is seconds behind. A coordinator on a busy machine may answer too late.
        (asked, fresh) = (asked + 1, fresh + u32::from(steps[2] >= reached));
        Ok((began.elapsed() > Duration::from_secs(20)).then_some(()))
    })
    .unwrap();
    println!("{fresh} of {asked} answers were as new as the status");
    assert!(fresh > 0, "none of {asked} answers was as new as the status");
    let (count, minutes) = (records(&cluster), began.elapsed().as_secs_f64() / 60.0);
    let reached = cluster.status().unwrap().step;
    println!("{count} objects in {minutes:.2} minutes and {reached} steps");
    assert!(count as f64 <= OBJECTS_A_MINUTE * minutes, "{count} objects in {minutes} minutes");
    stop(&mut running).unwrap();
    let (steps, said) = metrics(&cluster, &[]).unwrap();
    assert!(said.is_empty() && steps.iter().copied().eq(1..=steps.len() as u64), "{said}");
    assert!(steps.len() as u64 >= reached);
    let (middle, _) = metrics(&cluster, &["--from", "5", "--to", "9"]).unwrap();
    assert_eq!(middle, [5, 6, 7, 8, 9]);
    let refusal = cluster
        .polygram(&["metrics", "tiny", "--root", cluster.root_url(), "--from", "9", "--to", "5"])
        .unwrap()
        .refusal()
        .unwrap();
    assert!(refusal.contains("--from 9 is behind --to 5"), "{refusal}");
}

/// A shell in a mount namespace of its own: `root` is a file system of so many MiB, `fill` takes all its room, `train`
/// trains there with the drill.
fn on_a_small_disk(mebibytes: u32, script: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("root")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={mebibytes}m tmpfs root || exit 99\n\
         polygram={polygram}\n\
         fill() {{ cat /dev/zero > root/fill 2>/dev/null; }}\n\
         train() {{ exec $polygram train {file} --root root --set device.engine=drill \"$@\"; }}\n\
         {script}\n",
        polygram = program("polygram").unwrap().display(),
        file = repository().join("configs/tiny.toml").display(),
    );
    let mut command = Command::new("unshare");
    // As the superuser of a namespace of its own, who may mount.
    command.args(["-rm", "bash", "-c", &script]).current_dir(folder.path());
    let mut running = Running::start(command, folder.path()).unwrap();
    running.wait(END_LIMIT).unwrap()
}

/// No room for some seconds, between commits and while commits are due: the run goes on, and nothing is missing.
#[test]
fn a_disk_that_is_full_for_a_moment_costs_nothing() {
    for every in ["1000000", "100"] {
        let finished = on_a_small_disk(
            64,
            &format!(
                "train --set training.steps=10000000 --set checkpoint.every_steps={every} & train=$!\n\
                 until ls root/runs/tiny/events/metrics/*/* > /dev/null 2>&1; do sleep 0.1; done\n\
                 fill; sleep 6; rm root/fill; sleep 1\n\
                 kill -TERM $train; wait $train; echo status $?\n\
                 $polygram metrics tiny --root root -o jsonl | wc -l\n\
                 $polygram status tiny --root root -o json\n"
            ),
        );
        let said = finished.said();
        let (head, status) = finished.stdout.split_once("\n{").context(said.clone()).unwrap();
        let status: serde_json::Value = serde_json::from_str(&format!("{{{status}")).unwrap();
        let lines: Vec<&str> = head.lines().collect();
        let recorded = lines[lines.len() - 1].trim();
        assert!(lines.contains(&"status 3"), "{said}");
        assert_eq!(status["last_commit"].to_string(), recorded, "{said}");
        assert_eq!(status["state"], "stopped", "{said}");
        assert!(!said.contains("not in the store"), "{said}");
    }
}

/// The ways out of a full disk need no room: remove a checkpoint, collect, keep fewer.
#[test]
fn a_full_disk_can_be_emptied() {
    let finished = on_a_small_disk(
        96,
        "set -- --set checkpoint.every_steps=10 --set checkpoint.keep=9 --set evaluation.every_steps=1000\n\
         (train \"$@\" --set training.steps=70 --set training.stop_at_step=60) || exit 97\n\
         rm=\"$polygram ckpt rm tiny --root root\"\n\
         $polygram ckpt pin tiny 20 --root root; fill\n\
         $rm 60; echo newest $?; $rm 20; echo pinned $?; $rm 7; echo absent $?\n\
         $rm 10; echo old $?; fill\n\
         $rm 20 --force; echo forced $?; fill\n\
         $polygram ckpt gc tiny --yes --root root; echo gc $?\n\
         $polygram ckpt ls tiny --root root -o json | tr -d ' \\n' | grep -o 'step\":[0-9]*' ; fill\n\
         (train \"$@\" --set training.steps=70 --set checkpoint.keep=2); echo keep $?\n\
         $polygram ckpt verify tiny --root root; echo verify $?\n",
    );
    let said = finished.said();
    for line in [
        "newest 2",
        "pinned 2",
        "absent 2",
        "old 0",
        "forced 0",
        "gc 0",
        "step\":30",
        "step\":40",
        "step\":50",
        "step\":60",
        "keep 0",
        "verify 0",
    ] {
        assert!(finished.stdout.lines().any(|there| there == line), "{line:?} is not in\n{said}");
    }
    assert!(!finished.stdout.contains("step\":10") && !finished.stdout.contains("step\":20"), "{said}");
    assert!(said.contains("`polygram ckpt unpin`") && said.contains("the newest sound one"), "{said}");
}

const SHORT: [&str; 4] =
    ["training.steps=40", "checkpoint.every_steps=10", "evaluation.every_steps=40", "topology.shards=2"];

/// A store that removes what is older than the newest checkpoint's own objects: the run goes on, and says what is gone.
#[test]
fn what_is_older_than_the_newest_checkpoint_may_go() {
    let calm = Cluster::tiny(Engine::Drill).unwrap().with(&SHORT);
    calm.train(&[]).unwrap().success().unwrap();
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&SHORT);
    for step in [10, 20, 30] {
        cluster.train(&[&format!("training.stop_at_step={step}")]).unwrap();
    }
    assert_eq!(cluster.commits().unwrap().last(), Some(&30));
    let run = cluster.root().join("runs/tiny");
    let age = |file: &Path| fs::metadata(file).and_then(|data| data.modified()).unwrap();
    let is_newest = |file: &PathBuf| file.to_string_lossy().contains("/000000000030-");
    let oldest: SystemTime = files(&run.join("ckpt/data"))
        .iter()
        .filter(|file| is_newest(file))
        .map(|file| age(file))
        .min()
        .unwrap();
    let old: Vec<PathBuf> = files(&run).into_iter().filter(|file| age(file) < oldest).collect();
    for folder in ["coord", "config", "events/metrics/000001", "ledger/000002", "ckpt/commit"] {
        assert!(
            old.iter().any(|file| file.starts_with(run.join(folder))),
            "nothing of {folder} is old: {old:?}"
        );
    }
    old.iter().for_each(|file| fs::remove_file(file).unwrap());
    cluster.train(&[]).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap(), calm.digest().unwrap());
    let (steps, said) = metrics(&cluster, &[]).unwrap();
    assert_eq!(steps, (21..=40).collect::<Vec<_>>());
    assert!(said.contains("steps 1 to 20 are not in the store any more"), "{said}");
    assert_eq!(metrics(&cluster, &["--from", "25"]).unwrap(), ((25..=40).collect(), String::new()));
    for command in ["status", "why"] {
        cluster.polygram(&[command, "tiny", "--root", cluster.root_url()]).unwrap().success().unwrap();
    }
}

/// Without its configuration a checkpoint is refused with a way on, and that is one.
#[test]
fn a_configuration_that_is_gone_is_named_and_can_be_given_again() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&SHORT);
    let session = ["training.stop_at_step=20"];
    cluster.train(&session).unwrap();
    fs::remove_dir_all(cluster.root().join("runs/tiny/config")).unwrap();
    fs::remove_dir_all(cluster.root().join("runs/tiny/coord")).unwrap();
    let finished = cluster.train(&[]).unwrap();
    let said = finished.said();
    assert!(!finished.status.success(), "{said}");
    assert!(said.contains("config/") && said.contains("the very run file and overrides"), "{said}");
    cluster.train(&session).unwrap();
    cluster.train(&[]).unwrap().success().unwrap();
    assert_eq!(metrics(&cluster, &[]).unwrap(), ((1..=40).collect(), String::new()));
}

/// Memory and descriptors of a process, now and then.
#[derive(Debug, Default)]
struct Watched {
    name: String,
    resident_kib: Vec<u64>,
    descriptors: Vec<u64>,
}

impl Watched {
    fn look(&mut self, pid: u32) -> Option<()> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        self.name = line("Name:")?.to_owned();
        self.resident_kib.push(line("VmRSS:")?.split_whitespace().next()?.parse().ok()?);
        self.descriptors.push(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64);
        Some(())
    }

    /// The largest of the second fourth, and of the last one.
    fn course(values: &[u64]) -> (u64, u64) {
        let fourth = values.len() / 4;
        let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
        (most(&values[fourth..2 * fourth]), most(&values[3 * fourth..]))
    }
}

/// `POLYGRAM_SOAK_STEPS` steps on a store that is 30 ms away.
#[test]
fn a_long_run_far_from_its_store_stays_small() {
    let steps: u64 = std::env::var("POLYGRAM_SOAK_STEPS").map_or(3_000, |steps| steps.parse().unwrap());
    soak(steps).unwrap();
}

fn soak(steps: u64) -> Result<()> {
    let server = Moto::shared()?;
    let proxy = RudeProxy::far_away(server.address(), Duration::from_millis(30))?;
    let (steps_set, every) =
        (format!("training.steps={steps}"), format!("checkpoint.every_steps={}", (steps / 10).max(2_000)));
    let cluster = Cluster::tiny(Engine::Drill)?.on_s3(server)?.over(&proxy);
    let cluster = cluster.with(&[&steps_set, &every, "evaluation.every_steps=1000000"]);
    let began = Instant::now();
    let mut running = cluster.start(&[])?;
    let mut watched: BTreeMap<u32, Watched> = BTreeMap::new();
    let limit = END_LIMIT + Duration::from_millis(40 * steps);
    let finished = wait_until("the end of the run", limit, || {
        for pid in running.processes()? {
            watched.entry(pid).or_default().look(pid);
        }
        std::thread::sleep(Duration::from_millis(200));
        running.poll()
    })?;
    finished.success()?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let written = proxy.written();
    let of = |folders: &[&str]| {
        written.iter().filter(|name| folders.iter().any(|folder| name.contains(folder))).count()
    };
    let recorded = of(&["/events/", "/ledger/", "/status.json", "/coord/", "/config/"]);
    println!(
        "{steps} steps in {minutes:.2} minutes: {recorded} objects of records were made, {} of all kinds, {} requests",
        written.len(),
        proxy.requests()
    );
    // The first minute has short pauses between writes.
    ensure!(
        recorded as f64 <= OBJECTS_A_MINUTE * minutes.max(1.0),
        "{recorded} objects in {minutes} minutes"
    );
    for (command, more) in [
        ("metrics", vec!["-o", "jsonl"]),
        ("metrics", vec!["--last", "100"]),
        ("status", vec![]),
        ("why", vec![]),
    ] {
        let asked = Instant::now();
        let arguments = [vec![command, "tiny", "--root", cluster.root_url()], more.clone()].concat();
        let answer = cluster.polygram(&arguments)?.success()?;
        let lines = answer.stdout.lines().count();
        println!("{command} {more:?}: {lines} lines in {:.2} s", asked.elapsed().as_secs_f64());
        ensure!(!more.contains(&"jsonl") || lines as u64 == steps, "{command}: {lines} lines");
    }
    for (pid, process) in &watched {
        let (resident, later_resident) = Watched::course(&process.resident_kib);
        let (open, later_open) = Watched::course(&process.descriptors);
        println!(
            "{} {pid}: {resident} KiB and {open} descriptors in the second fourth, {later_resident} KiB and \
             {later_open} in the last",
            process.name
        );
        // A short run is not at rest in its second fourth.
        if steps >= 50_000 {
            ensure!(later_resident <= resident + resident / 10 + 4096, "{} grows", process.name);
            ensure!(later_open <= open + 8, "{} opens more and more", process.name);
        }
    }
    Ok(())
}
