//! What runs beside other programs gives its core away while it waits: the variables that make OpenMP's threads sleep are
//! in the environment of every process with libtorch before libtorch is loaded, whoever starts it, and a user's own win.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use polygram_tests::{Running, program, repository, wait_until};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(120);
/// What is set, and to what (`polygram_telemetry::passive_waits`).
const PASSIVE: [(&str, &str); 2] = [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")];

/// A command without what this test's own environment says about OpenMP.
fn command(name: &str, folder: &Path) -> Result<Command> {
    let mut command = Command::new(program(name)?);
    command.current_dir(folder);
    clear(&mut command);
    Ok(command)
}

fn clear(command: &mut Command) {
    for (variable, _) in PASSIVE {
        command.env_remove(variable);
    }
    command.env_remove("OMP_DISPLAY_ENV");
}

/// What a process's environment says about waits. None where it has ended.
fn waits_of(pid: u32) -> Option<BTreeMap<String, String>> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&environment).into_owned();
    let pairs = text.split('\0').filter_map(|variable| variable.split_once('='));
    let waits = pairs.filter(|(name, _)| PASSIVE.iter().any(|(known, _)| known == name));
    Some(waits.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The workers among the processes that `running` started, with libtorch loaded.
fn workers(running: &Running) -> Result<Vec<u32>> {
    let is_worker = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        // The kernel cuts a process's name to 15 bytes.
        name.trim() == "polygram-worker" && maps.contains("libtorch_cpu")
    };
    Ok(running.processes()?.into_iter().filter(is_worker).collect())
}

/// Somebody who takes connections and never answers, and a secret: a worker stays where it is.
fn silence(folder: &Path) -> Result<(TcpListener, String, PathBuf)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, token) = (listener.local_addr()?.to_string(), folder.join("token"));
    std::fs::write(&token, "a-secret-of-this-test-alone\n")?;
    Ok((listener, address, token))
}

/// A worker started by hand, with variables of its user, until its waits are as `wanted`.
fn by_hand(arguments: &[&str], own: &[(&str, &str)], wanted: &[(&str, &str)]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (listener, address, token) = silence(folder.path())?;
    let mut command = command("polygram-worker", folder.path())?;
    let (first, rest) = arguments.split_first().context("how it is started")?;
    command.args([*first, address.as_str()]).args(rest).arg("--token-file").arg(&token);
    command.envs(own.iter().copied());
    let mut running = Running::start(command, folder.path())?;
    let pid = running.pid();
    // It connects when it has started as it is to be.
    listener.set_nonblocking(true)?;
    let _connection = wait_until("the worker to connect", LIMIT, || {
        if let Some(finished) = running.poll()? {
            bail!("the worker ended: {}", finished.said());
        }
        Ok(listener.accept().ok())
    })?;
    ensure!(waits_of(pid) == Some(map(wanted)), "{own:?} became {:?}", waits_of(pid));
    ensure!(
        workers(&running)? == [pid],
        "the process keeps its number and its name, and nobody is beside it"
    );
    // A signal ends it: it has the number that whoever started it knows.
    running.signal(pid, Signal::KILL)?;
    running.wait(LIMIT)?;
    Ok(())
}

#[test]
fn a_worker_of_a_run_started_by_hand_waits_passively() {
    by_hand(&["--coordinator", "--rank", "0"], &[], &PASSIVE).unwrap();
}

#[test]
fn a_member_of_a_pool_started_by_hand_waits_passively() {
    by_hand(&["--pool"], &[], &PASSIVE).unwrap();
}

#[test]
fn what_a_user_has_set_wins() {
    for own in [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000"), ("OMP_WAIT_POLICY", "passive")] {
        by_hand(&["--coordinator", "--rank", "0"], &[own], &[own]).unwrap();
    }
}

#[test]
fn workers_of_the_launcher_and_of_a_pool_wait_passively() {
    let tiny = repository().join("configs/tiny.toml").display().to_string();
    let long = ["--set", "device.engine=drill", "--set", "training.steps=10000000"];
    let train = [&["train", &tiny, "--set", "topology.workers=2", "--root", "root"][..], &long].concat();
    let pool = ["pool", "up", "--workers", "2", "--shards", "1", "--root", "root"];
    for (arguments, own) in [
        (&train[..], None),
        (&pool[..], None),
        (&train[..], Some(("OMP_WAIT_POLICY", "ACTIVE"))),
        (&pool[..], Some(("GOMP_SPINCOUNT", "500"))),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command("polygram", folder.path()).unwrap();
        command.args(arguments).envs(own);
        let mut running = Running::start(command, folder.path()).unwrap();
        let workers = wait_until("two workers", LIMIT, || {
            if let Some(finished) = running.poll()? {
                bail!("it ended: {}", finished.said());
            }
            Ok(Some(workers(&running)?).filter(|workers| workers.len() == 2))
        });
        let wanted = own.map_or(map(&PASSIVE), |own| map(&[own]));
        for pid in workers.unwrap() {
            assert_eq!(waits_of(pid).unwrap(), wanted, "{arguments:?} with {own:?}");
        }
    }
}

/// What libtorch's runtime itself says of its settings, once for each time that it is loaded, and whether all went well.
fn settings_of(mut command: Command, own: &[(&str, &str)]) -> Result<(Vec<(String, String)>, bool)> {
    let folder = tempfile::tempdir()?;
    command.current_dir(folder.path());
    command.envs(own.iter().copied()).env("OMP_DISPLAY_ENV", "VERBOSE");
    let finished = Running::start(command, folder.path())?.wait(LIMIT)?;
    let setting = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.split_once(name)).map(|(_, value)| value);
        line.map(|value| value.trim_matches([' ', '=', '\'']).to_owned()).unwrap_or_default()
    };
    let displays = finished.stderr.split("OPENMP DISPLAY ENVIRONMENT BEGIN").skip(1);
    let settings = displays.map(|text| (setting(text, "OMP_WAIT_POLICY"), setting(text, "GOMP_SPINCOUNT")));
    Ok((settings.collect(), finished.status.success()))
}

/// `logits` of golden vectors.
fn logits(mut command: Command) -> Command {
    let golden = repository().join("tests/golden/A");
    command.arg("logits").arg("--model").arg(&golden).arg("--input").arg(golden.join("forward.safetensors"));
    command.args(["--output", "out.safetensors"]);
    command
}

/// The environment alone would prove nothing if the runtime had read it before.
#[test]
fn the_runtime_itself_has_read_them() {
    let passive = ("PASSIVE".to_owned(), "0".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let worker = || logits(command("polygram-worker", folder.path()).unwrap());
    let (by_hand, good) = settings_of(worker(), &[]).unwrap();
    assert_eq!((by_hand.len(), good), (2, true), "it starts itself again, once: {by_hand:?}");
    assert_eq!(by_hand[1], passive);
    let polygram = logits(command("polygram", folder.path()).unwrap());
    assert_eq!(settings_of(polygram, &[]).unwrap(), (vec![passive], true), "once is enough");
    let (own, good) = settings_of(worker(), &[("OMP_WAIT_POLICY", "ACTIVE")]).unwrap();
    assert_eq!(
        (own.len(), own[0].0.as_str(), good),
        (1, "ACTIVE", true),
        "a user's own value, and one start"
    );
}

/// What `/proc/self/exe` leads to is the loader then, and not the worker.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_worker_started_through_the_dynamic_loader_works() {
    let mut loader = Command::new("/lib64/ld-linux-x86-64.so.2");
    clear(&mut loader);
    loader.arg(program("polygram-worker").unwrap());
    let (settings, good) = settings_of(logits(loader), &[]).unwrap();
    assert_eq!((settings.len(), good), (1, true), "{settings:?}");
}

/// Exec keeps arguments, the name, the working folder and what was ignored; what needs no libtorch is not done twice.
#[test]
fn a_second_start_changes_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut version = command("polygram-worker", folder.path()).unwrap();
    version.arg("--version");
    let (version, good) = settings_of(version, &[]).unwrap();
    assert_eq!((version.len(), good), (1, true), "a question for the version needs no second start");
    let (listener, address, token) = silence(folder.path()).unwrap();
    let worker = program("polygram-worker").unwrap();
    let token = token.display().to_string();
    let script = format!(
        "trap '' USR1; exec -a 'a name' {} --run 'two words' --coordinator {address} --rank 0 --token-file {token}",
        worker.display()
    );
    let mut shell = Command::new("bash");
    clear(&mut shell);
    shell.args(["-c", &script]).current_dir(folder.path());
    let mut running = Running::start(shell, folder.path()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let _connection = wait_until("the worker to connect", LIMIT, || {
        if let Some(finished) = running.poll()? {
            bail!("the worker ended: {}", finished.said());
        }
        Ok(listener.accept().ok())
    })
    .unwrap();
    let of = |file: &str| std::fs::read(format!("/proc/{}/{file}", running.pid())).unwrap();
    let arguments = String::from_utf8(of("cmdline")).unwrap();
    let wanted = ["a name", "--run", "two words", "--coordinator", &address, "--rank", "0", "--token-file"];
    assert_eq!(arguments.split('\0').take(8).collect::<Vec<_>>(), wanted);
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", running.pid())).unwrap();
    assert_eq!(cwd, folder.path().canonicalize().unwrap());
    let status = String::from_utf8(of("status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    assert_ne!(ignored & (1 << (Signal::USR1.as_raw() - 1)), 0, "what was ignored stays so: {ignored:x}");
    assert_eq!(waits_of(running.pid()).unwrap(), map(&PASSIVE));
}
