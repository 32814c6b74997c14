//! A store that a person has to mend while a run writes to it: it is told within seconds, waited for, and ends the run without
//! a restart; what is committed stays, and the same command continues.

#![allow(clippy::unwrap_used)] // a test program: an unwrap is a failed test

use std::process::Command;
use std::time::Duration;

use polygram_tests::{Cluster, Engine, Finished, Running, program, repository};

const END_LIMIT: Duration = Duration::from_secs(120);
const RUN: [&str; 4] =
    ["training.steps=400", "checkpoint.every_steps=20", "evaluation.every_steps=1000", "topology.workers=2"];

/// A script in a mount namespace of its own, where `root` is a file system of 64 MiB and `train` trains in it. `trouble` begins
/// once there is a commit.
fn in_trouble(retry_seconds: u32, script: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("root")).unwrap();
    let sets: Vec<String> = RUN.iter().map(|set| format!("--set {set}")).collect();
    let script = format!(
        "mount -t tmpfs -o size=64m tmpfs root || exit 99\n\
         polygram={polygram}\n\
         train() {{ exec $polygram train {file} --root root --set device.engine=drill {sets} \"$@\"; }}\n\
         begun() {{ until [ -n \"$(ls root/runs/tiny/ckpt/commit 2>/dev/null)\" ]; do sleep 0.05; done; }}\n\
         fill() {{ cat /dev/zero > root/fill 2>/dev/null; }}\n\
         until_said() {{ until grep -q \"$1\" said; do sleep 0.1; done; }}\n\
         {script}\n",
        polygram = program("polygram").unwrap().display(),
        file = repository().join("configs/tiny.toml").display(),
        sets = sets.join(" "),
    );
    let mut command = Command::new("unshare");
    // As the superuser of a namespace of its own, who may mount.
    command.args(["-rm", "bash", "-c", &script]).current_dir(folder.path());
    command.env("POLYGRAM_STORE_RETRY_SECONDS", retry_seconds.to_string());
    let mut running = Running::start(command, folder.path()).unwrap();
    running.wait(END_LIMIT).unwrap()
}

fn undisturbed() -> String {
    let cluster = Cluster::tiny(Engine::Drill).unwrap().with(&RUN);
    cluster.train(&[]).unwrap().success().unwrap();
    cluster.digest().unwrap().digest
}

/// The run is paused for a moment, so that it is not over before the trouble begins.
const PAUSED: &str = "pids=$(pgrep -P $train); kill -STOP $pids; ";

fn ends_without_a_restart(trouble: &str, mended: &str, words: &[&str]) {
    let finished = in_trouble(
        6,
        &format!(
            "train 2> said & train=$!; begun\n{PAUSED}{trouble}; kill -CONT $pids; date +begun\\ %s\n\
             until_said '^warning: the store'; date +told\\ %s\n\
             $polygram status tiny --root root -o json > status.json; grep -o 'store_trouble' status.json\n\
             wait $train; echo status $?\n{mended}\n$polygram why tiny --root root\n\
             (train); echo again $?; $polygram digest tiny --root root; cat said >&2"
        ),
    );
    let said = finished.said();
    let second = |word: &str| -> u64 {
        let line = finished.stdout.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("{word:?} is not in\n{said}")).trim().parse().unwrap()
    };
    assert!(second("told ") - second("begun ") <= 10, "{said}");
    assert_eq!((second("status "), second("again ")), (1, 0), "{said}");
    assert!(finished.stdout.contains("store_trouble"), "{said}");
    assert_eq!(finished.stderr.matches("warning: the store").count(), 1, "told once\n{said}");
    for word in words.iter().chain(&["mend it, and the same command continues"]) {
        assert!(finished.stderr.contains(word), "{word:?} is not in\n{said}");
    }
    for word in ["restart 1 of", "joining again", "panicked", "was started again"] {
        assert!(!finished.stderr.contains(word), "{word:?} is in\n{said}");
    }
    assert!(finished.stdout.contains(&undisturbed()), "other bits\n{said}");
}

#[test]
fn a_disk_that_stays_full_ends_the_run_with_that_reason() {
    ends_without_a_restart("fill", "rm root/fill", &["the store has no room", "waiting for up to 6 s"]);
}

#[test]
fn a_disk_that_becomes_read_only_ends_the_run_with_that_reason() {
    ends_without_a_restart(
        // A mount of its own, since logs are open for writing beside it.
        "ckpt=root/runs/tiny/ckpt; mount --bind $ckpt $ckpt; mount -o remount,bind,ro $ckpt",
        "umount $ckpt",
        &["the store is read-only", "mount it writable"],
    );
}

#[test]
fn a_wait_ends_by_itself_and_its_end_is_told_once() {
    let finished = in_trouble(
        300,
        &format!(
            "train 2> said & train=$!; begun\n{PAUSED}fill; kill -CONT $pids; until_said '^warning: the store'\n\
             rm root/fill; wait $train; echo status $?; $polygram digest tiny --root root; cat said >&2"
        ),
    );
    let said = finished.said();
    assert!(finished.stdout.contains("status 0") && finished.stdout.contains(&undisturbed()), "{said}");
    for (words, count) in [("warning: the store has no room", 1), ("the store works again, after", 1)] {
        assert_eq!(finished.stderr.matches(words).count(), count, "{words:?}\n{said}");
    }
}

#[test]
fn one_signal_during_a_wait_ends_within_the_grace_and_a_second_one_at_once() {
    for (grace, signals, status) in [("--set run.stop_grace_seconds=2", 1, 3), ("", 2, 1)] {
        let finished = in_trouble(
            300,
            &format!(
                "train {grace} 2> said & train=$!; begun\n\
                 {PAUSED}fill; kill -CONT $pids; until_said '^warning: the store'\n\
                 date +begun\\ %s; for i in $(seq {signals}); do kill -TERM $train; sleep 1; done\n\
                 wait $train; echo status $?; date +ended\\ %s; cat said >&2"
            ),
        );
        let said = finished.said();
        let second = |word: &str| -> u64 {
            let line = finished.stdout.lines().find_map(|line| line.strip_prefix(word));
            line.unwrap_or_else(|| panic!("{word:?} is not in\n{said}")).trim().parse().unwrap()
        };
        assert_eq!(second("status "), status, "{said}");
        // The grace, and some seconds for a last attempt to record how the run ended; the store's own patience is 300 s.
        assert!(second("ended ") - second("begun ") <= 30, "{said}");
    }
}
