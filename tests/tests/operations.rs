//! What happens around a run: who leads it from other hosts, what its caller ignores, files that are taken away, programs
//! that are replaced, logs that cannot be written, addresses that lead nowhere.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_process::child::answer_signals;
use polygram_tests::{Cluster, Engine, Running, program, wait_until};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// Two of everything, and long enough to be disturbed.
const RUN: [&str; 6] = [
    "training.steps=600",
    "checkpoint.every_steps=100",
    "evaluation.every_steps=600",
    "topology.workers=2",
    "topology.shards=2",
    "run.failure_detection_seconds=3",
];
/// A run that does not end by itself.
const ENDLESS: [&str; 3] =
    ["training.steps=100000000", "checkpoint.every_steps=50000000", "run.failure_detection_seconds=3"];

/// The digest of a run that nothing happens to.
fn undisturbed() -> String {
    static KNOWN: OnceLock<String> = OnceLock::new();
    let train = || {
        let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
        cluster.train(&[]).unwrap().success().unwrap();
        cluster.digest().unwrap().digest
    };
    KNOWN.get_or_init(train).clone()
}

/// Brings up the loopback interface of a new network namespace (SIOCSIFFLAGS, IFF_UP).
const LOOPBACK_UP: &str = "import fcntl,socket,struct\n\
    fcntl.ioctl(socket.socket(),0x8914,struct.pack('16sh22x',b'lo',1))";

/// `command` as if on another host: with processes and a network of its own, but the same files.
fn on_another_host(command: &Command) -> Command {
    let mut other = Command::new("unshare");
    other.args(["-rnpf", "--mount-proc", "--kill-child", "sh", "-c"]);
    other.args([r#"python3 -c "$0" && exec "$@""#, LOOPBACK_UP]).arg(command.get_program());
    other.args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        other.current_dir(folder);
    }
    other
}

/// `polygram train` of the cluster's run.
fn train(cluster: &Cluster, sets: &[&str], more: &[&str]) -> Result<Command> {
    let run_file = cluster.folder().join("effective.toml");
    fs::write(&run_file, cluster.effective_toml()?)?;
    let mut command = Command::new(program("polygram")?);
    command.current_dir(cluster.folder()).arg("train").arg(run_file).args(["--root", cluster.root_url()]);
    command.args(more);
    for set in sets {
        command.args(["--set", set]);
    }
    Ok(command)
}

fn status(cluster: &Cluster) -> Result<Value> {
    let asked = ["status", "tiny", "--root", cluster.root_url(), "-o", "json"];
    let said = cluster.polygram(&asked)?;
    serde_json::from_str(&said.stdout).with_context(|| said.said())
}

/// A run that is led on another host, at work.
fn led_elsewhere(cluster: &Cluster) -> Result<Running> {
    let mut elsewhere = Running::start(on_another_host(&train(cluster, &[], &[])?), cluster.folder())?;
    let told = wait_until("the other host's run to be at work", LIMIT, || {
        if let Some(finished) = elsewhere.poll()? {
            anyhow::bail!("it ended: {}", finished.said());
        }
        Ok(status(cluster).ok().filter(|status| status["state"] == "running"))
    })?;
    ensure!(told["live"] == false, "{told}");
    let message = told["message"].as_str().context("no message")?;
    for words in ["led by the coordinator on host ", "last heard ", "not reachable from here"] {
        ensure!(message.contains(words), "{words:?} is not in {message}");
    }
    Ok(elsewhere)
}

#[test]
fn a_run_that_is_led_elsewhere_is_refused_until_it_is_taken_over() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&ENDLESS);
    let mut elsewhere = led_elsewhere(&cluster).unwrap();
    let mut second = Running::start(train(&cluster, &[], &[]).unwrap(), cluster.folder()).unwrap();
    let refused = second.wait(LIMIT).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.said());
    for words in ["run tiny is led by the coordinator on host ", "last heard ", "--take-over"] {
        assert!(refused.stderr.contains(words), "{words:?} is not in\n{}", refused.said());
    }
    assert_eq!(refused.stderr.matches("error: ").count(), 1, "told once\n{}", refused.said());
    assert!(elsewhere.poll().unwrap().is_none(), "the first goes on");

    let taking = train(&cluster, &["training.stop_at_step=40"], &["--take-over"]).unwrap();
    let mut taking = Running::start(taking, cluster.folder()).unwrap();
    taking.wait(LIMIT).unwrap().success().unwrap();
    let ended = elsewhere.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.said());
    assert!(ended.stderr.contains("the run was taken over by the coordinator on host "), "{}", ended.said());
    elsewhere.wait_for_silence(LIMIT).unwrap();
    assert_eq!(cluster.digest().unwrap().step, 40);
}

/// Its machine cannot be asked: a leader is followed once its lease does not change. No flag is needed then.
#[test]
fn a_leader_elsewhere_that_falls_silent_is_followed() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&ENDLESS);
    let elsewhere = led_elsewhere(&cluster).unwrap();
    for pid in elsewhere.processes().unwrap() {
        // Those that end with another are gone already.
        let _gone = elsewhere.signal(pid, Signal::KILL);
    }
    elsewhere.wait_for_silence(LIMIT).unwrap();
    let following = train(&cluster, &["training.stop_at_step=40"], &[]).unwrap();
    let mut following = Running::start(following, cluster.folder()).unwrap();
    let finished = following.wait(LIMIT).unwrap().success().unwrap();
    assert!(finished.stderr.contains("waiting to see whether"), "{}", finished.said());
    // The new one has given it up in good order.
    let told = status(&cluster).unwrap();
    assert_eq!((&told["state"], &told["step"]), (&"stopped".into(), &40.into()), "{told}");
}

/// Whether a process ignores these signals (proc(5), SigIgn).
fn ignores(pid: u32, signals: &[i32]) -> Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = text.lines().find_map(|line| line.strip_prefix("SigIgn:")).context("no SigIgn")?;
    let mask = u64::from_str_radix(mask.trim(), 16)?;
    Ok(signals.iter().all(|signal| mask & (1 << (signal - 1)) != 0))
}

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;

#[test]
fn what_the_caller_ignores_stays_ignored_in_every_program() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let command = train(&cluster, &["training.steps=3000"], &[]).unwrap();
    let mut ignoring = Command::new("sh");
    ignoring.args(["-c", r#"trap '' HUP INT; exec "$0" "$@""#]).arg(command.get_program());
    ignoring.args(command.get_args()).current_dir(cluster.folder());
    let mut running = Running::start(ignoring, cluster.folder()).unwrap();
    cluster.await_step(&mut running, 1).unwrap();
    let processes = running.processes().unwrap();
    assert_eq!(processes.len(), 6, "launcher, coordinator, two of each role: {processes:?}");
    for pid in processes {
        assert!(ignores(pid, &[SIGHUP, SIGINT]).unwrap(), "{}", command_line(pid));
        running.signal(pid, Signal::HUP).unwrap();
        running.signal(pid, Signal::INT).unwrap();
    }
    running.wait(LIMIT).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap().step, 3000);
}

/// A parent that ignores the deaths of its children (SIGCHLD) leaves that to what it starts, which then cannot wait.
#[test]
fn programs_wait_for_their_children_whatever_their_caller_ignores() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let train = train(&cluster, &["training.steps=20"], &[]).unwrap();
    let mut bench = Command::new(program("polygram").unwrap());
    bench.args(["bench", "collective", "--bytes", "64", "--op", "all_reduce", "-o", "json"]);
    for command in [train, bench] {
        let mut ignoring = Command::new("sh");
        ignoring.args(["-c", r#"trap '' CHLD; exec "$0" "$@""#]).arg(command.get_program());
        ignoring.args(command.get_args()).current_dir(cluster.folder());
        let finished = Running::start(ignoring, cluster.folder()).unwrap().wait(LIMIT).unwrap();
        finished.success().unwrap();
    }
}

/// Whoever is killed takes along what it has started.
#[test]
fn children_of_measuring_programs_end_with_them() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["bench", "collective", "--warm-up", "1000000", "--bytes", "16000000"][..],
        &["bench", "shard", "exchange"],
    ] {
        let mut command = Command::new(program("polygram").unwrap());
        command.args(arguments).current_dir(folder.path());
        let mut running = Running::start(command, folder.path()).unwrap();
        wait_until("children of children", LIMIT, || {
            ensure!(running.poll()?.is_none(), "it ended: {}", running.stderr()?);
            Ok((running.processes()?.len() > 3).then_some(()))
        })
        .unwrap();
        running.signal(running.pid(), Signal::KILL).unwrap();
        running.wait(LIMIT).unwrap();
        running.wait_for_silence(LIMIT).unwrap();
    }
}

fn command_line(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

#[test]
fn a_signal_that_nobody_ignores_stops_the_run() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let mut command = train(&cluster, &["training.steps=100000"], &[]).unwrap();
    // Whoever runs the tests may ignore it.
    answer_signals(&mut command, &[SIGHUP]);
    let mut running = Running::start(command, cluster.folder()).unwrap();
    cluster.await_step(&mut running, 1).unwrap();
    running.signal(running.pid(), Signal::HUP).unwrap();
    let finished = running.wait(LIMIT).unwrap();
    assert_eq!(finished.status.code(), Some(3), "{}", finished.said());
}

/// Removes everything in a folder.
fn clean(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?
        } else {
            fs::remove_file(path)?
        };
    }
    Ok(())
}

#[test]
fn files_of_a_launch_that_are_taken_away_cost_nothing() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let temporary = cluster.folder().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let variables = [("TMPDIR", temporary.to_str().unwrap())];
    let mut running = cluster.start_with(&["training.steps=3000"], &variables).unwrap();
    let before = cluster.await_step(&mut running, 1).unwrap();
    let run = cluster.root().join("runs/tiny");
    let of_role = |role: &str| before.members.iter().find(|member| member.role == role).unwrap().pid;
    let coordinator = running
        .processes()
        .unwrap()
        .into_iter()
        .find(|pid| command_line(*pid).contains("polygram-coordinator"));
    let folders = [temporary, run.join("launch"), run.join("logs")];
    for pid in [of_role("worker"), of_role("shard"), coordinator.unwrap()] {
        folders.iter().for_each(|folder| clean(folder).unwrap());
        running.signal(pid, Signal::KILL).unwrap();
        wait_until("the process that was killed to be gone", LIMIT, || {
            ensure!(running.poll()?.is_none(), "the run ended: {}", running.stderr()?);
            Ok((!running.processes()?.contains(&pid) && running.processes()?.len() == 6).then_some(()))
        })
        .unwrap();
    }
    running.wait(LIMIT).unwrap().success().unwrap();
    assert_eq!(cluster.digest().unwrap().step, 3000);
    assert_eq!(fs::read_dir(run.join("launch")).unwrap().count(), 0, "nothing secret is left");
}

#[test]
fn logs_that_cannot_be_written_end_nothing() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let command = train(&cluster, &[], &[]).unwrap();
    // A full disk, a reader that is gone, and nothing at all behind standard error.
    for output in ["2>/dev/full", "2>&1 | true", "2>&-"] {
        let _old = fs::remove_dir_all(cluster.root());
        let mut loud = Command::new("sh");
        let script = format!(r#"{{ "$0" "$@"; echo "$?" >status; }} {output}"#);
        loud.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
        loud.current_dir(cluster.folder());
        let mut running = Running::start(loud, cluster.folder()).unwrap();
        let status = cluster.folder().join("status");
        running.wait(LIMIT).unwrap();
        running.wait_for_silence(LIMIT).unwrap();
        assert_eq!(fs::read_to_string(&status).unwrap().trim(), "0", "{output}");
        assert_eq!(cluster.digest().unwrap().digest, undisturbed(), "{output}");
    }
}

/// Starts a program of a run by hand, its standard error where nothing can be written.
fn by_hand(cluster: &Cluster, name: &str, arguments: &[&str], stderr: Stdio) -> std::process::Child {
    let mut command = Command::new(program(name).unwrap());
    command.current_dir(cluster.folder()).args(arguments).stdin(Stdio::null()).stderr(stderr);
    command.spawn().unwrap()
}

#[test]
fn members_on_every_address_and_without_a_log_complete_a_run() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let folder = cluster.folder();
    fs::write(folder.join("run.toml"), cluster.effective_toml().unwrap()).unwrap();
    fs::write(folder.join("token"), "a-secret-of-this-test-alone\n").unwrap();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let root = cluster.root_url();
    let lead =
        ["--config", "run.toml", "--root", root, "--token-file", "token", "--announce-file", "announced"];
    let everywhere = ["--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:0"];
    let mut coordinator =
        by_hand(&cluster, "polygram-coordinator", &[&lead[..], &everywhere].concat(), full());
    let address = wait_until("the coordinator to listen", LIMIT, || {
        ensure!(coordinator.try_wait()?.is_none(), "it ended");
        let Ok(text) = fs::read_to_string(folder.join("announced")) else { return Ok(None) };
        Ok(serde_json::from_str::<Value>(&text)?["address"].as_str().map(str::to_owned))
    })
    .unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let mut members = Vec::new();
    for (number, stderr) in [("0", full()), ("1", closed())] {
        let common = ["--coordinator", &address, "--token-file", "token"];
        let shard = [&common[..], &["--index", number, "--listen", "0.0.0.0:0"]].concat();
        members.push(by_hand(&cluster, "polygram-embedding-shard", &shard, full()));
        let worker = [&common[..], &["--rank", number, "--listen", "0.0.0.0"]].concat();
        members.push(by_hand(&cluster, "polygram-worker", &worker, stderr));
    }
    for mut process in members.into_iter().chain([coordinator]) {
        let ended = wait_until("a program's end", LIMIT, || Ok(process.try_wait()?));
        assert!(ended.unwrap().success());
    }
    assert_eq!(cluster.digest().unwrap().digest, undisturbed());
}

#[test]
fn addresses_that_lead_nowhere_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "a-secret-of-this-test-alone\n").unwrap();
    let tiny = polygram_tests::repository().join("configs/tiny.toml");
    // 192.0.2.1 is nobody's (RFC 5737): a coordinator on another host.
    let far = ["--coordinator", "192.0.2.1:7000", "--token-file", "token"];
    let cases: [(&str, Vec<&str>, [&str; 2]); 5] = [
        (
            "polygram-coordinator",
            vec![
                "--config",
                tiny.to_str().unwrap(),
                "--root",
                "root",
                "--token-file",
                "token",
                "--listen",
                "0.0.0.0:0",
            ],
            ["0.0.0.0:", "--advertise IP:PORT"],
        ),
        (
            "polygram-coordinator",
            vec!["pool", "--state", "state", "--root", "root", "--token-file", "token", "--listen", "[::]:0"],
            ["--listen [::]:0", "no address that members can reach"],
        ),
        ("polygram-worker", [&far[..], &["--rank", "0"]].concat(), ["127.0.0.1:", "--listen"]),
        (
            "polygram-worker",
            [&far[..], &["--rank", "0", "--listen", "::1"]].concat(),
            ["[::1]:", "192.0.2.1:7000"],
        ),
        ("polygram-embedding-shard", [&far[..], &["--index", "0"]].concat(), ["127.0.0.1:", "--listen"]),
    ];
    for (name, arguments, words) in cases {
        let mut command = Command::new(program(name).unwrap());
        command.args(&arguments).current_dir(folder.path());
        let finished = Running::start(command, folder.path()).unwrap().wait(LIMIT).unwrap();
        let said = finished.said();
        assert_eq!(finished.status.code(), Some(2), "{name} {arguments:?}\n{said}");
        assert_eq!(finished.stderr.matches("error: ").count(), 1, "{said}");
        assert!(words.iter().all(|word| finished.stderr.contains(word)), "{words:?}\n{said}");
    }
    assert!(!folder.path().join("root/runs").exists(), "nothing was written");
}

#[test]
fn a_limit_is_named_by_every_program() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "a-secret-of-this-test-alone\n").unwrap();
    let tiny = polygram_tests::repository().join("configs/tiny.toml");
    let tiny = tiny.to_str().unwrap();
    let cases: [(&str, &[&str]); 4] = [
        ("polygram", &["train", tiny, "--root", "root"]),
        ("polygram-coordinator", &["--config", tiny, "--root", "root", "--token-file", "token"]),
        ("polygram-worker", &["--coordinator", "127.0.0.1:1", "--rank", "0", "--token-file", "token"]),
        (
            "polygram-embedding-shard",
            &["--coordinator", "127.0.0.1:1", "--index", "0", "--token-file", "token"],
        ),
    ];
    for (name, arguments) in cases {
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -n 6; exec "$0" "$@""#]).arg(program(name).unwrap()).args(arguments);
        command.current_dir(folder.path());
        let finished = Running::start(command, folder.path()).unwrap().wait(LIMIT).unwrap();
        let said = finished.said();
        assert!(finished.status.code().is_some_and(|code| code != 0), "{said}");
        assert!(finished.stderr.contains("RLIMIT_NOFILE is 6"), "{name}\n{said}");
        assert!(!finished.stderr.contains("panicked"), "{said}");
    }
}

/// What needs no relative path works in a folder that was removed.
#[test]
fn a_removed_working_directory_is_told_where_it_matters() {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    let run_file = cluster.folder().join("run.toml");
    fs::write(&run_file, cluster.effective_toml().unwrap()).unwrap();
    let polygram = program("polygram").unwrap();
    let script = format!(
        "mkdir gone && cd gone && rmdir ../gone\n\
         {polygram} train {file} --root {root} && echo trained\n\
         {polygram} status tiny --root {root} && echo asked\n\
         {polygram} runs; echo \"status $?\"\n",
        polygram = polygram.display(),
        file = run_file.display(),
        root = cluster.root_url(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(cluster.folder());
    let finished = Running::start(command, cluster.folder()).unwrap().wait(LIMIT).unwrap();
    let said = finished.said();
    for words in ["trained", "asked", "status 2"] {
        assert!(finished.stdout.lines().any(|line| line == words), "{words}\n{said}");
    }
    assert!(finished.stderr.contains("error: the current directory cannot be used"), "{said}");
    assert_eq!(cluster.digest().unwrap().digest, undisturbed());
}
