//! Ranks that are processes, killed and frozen in the middle of a call.

#![allow(clippy::unwrap_used)]

mod suite;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use suite::{Random, fresh_seed};

const RANKS: u32 = 4;
/// Seconds of silence after which a rank gives up, where that is what is tested.
const PATIENCE: &str = "1";

struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What it said when it failed.
    fn last_words(mut self) -> String {
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert!(!self.child.wait().unwrap().success(), "{words}");
        words
    }
}

fn ranks(same_host: &str, patience: &str) -> Vec<Process> {
    let start = |rank: u32| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_polygram-collective"))
            .args(["rank", "--rank", &rank.to_string(), "--same-host", same_host])
            .args(["--patience-seconds", patience])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Process { child, stdout }
    };
    let mut ranks: Vec<Process> = (0..RANKS).map(start).collect();
    let addresses: Vec<String> = ranks.iter_mut().map(|rank| rank.line().trim().to_string()).collect();
    ranks.iter_mut().for_each(|rank| rank.say(&format!("[{}]", addresses.join(","))));
    ranks
}

/// All ranks do the same calls for longer than the test will let them, after one that shows that all are joined.
fn begin(ranks: &mut [Process]) {
    for calls in [1, 1_000_000] {
        for rank in ranks.iter_mut() {
            let order = r#"{"op":"all_to_all_v","split":"skewed","bytes":3000000,"calls":"#;
            rank.say(&format!("{order}{calls}}}"));
        }
        if calls == 1 {
            ranks.iter_mut().for_each(|rank| assert!(rank.line().trim().parse::<f64>().unwrap() > 0.0));
        }
    }
}

fn bench(arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_polygram-collective")).arg("bench").args(arguments).output();
    let output = output.unwrap();
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn measurements_are_a_list() {
    let sizes = ["--bytes", "8,70001", "--repetitions", "2", "--warm-up", "0", "-o", "json"];
    let ops = ["--op", "all_reduce,reduce_scatter,all_gather,all_to_all_v,broadcast"];
    for procs in ["1", "2"] {
        let (ok, text) = bench(&[&["--procs", procs][..], &sizes, &ops].concat());
        assert!(ok, "{text}");
        let figures: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(figures.len(), 12);
        for figure in figures {
            assert_eq!(figure["procs"].to_string(), procs);
            let seconds =
                ["min_seconds", "median_seconds", "max_seconds"].map(|name| figure[name].as_f64().unwrap());
            assert!(seconds[0] > 0.0 && seconds.is_sorted(), "{figure}");
            let skewed = figure["split"] == "skewed";
            assert!(figure["op"] == "all_to_all_v" || !skewed, "{figure}");
        }
    }
    let (ok, text) = bench(&["--procs", "3"]);
    assert!(!ok && text.contains("needs a power of two of ranks, but the group has 3"), "{text}");
    assert!(bench(&["--op", "sum"]).1.contains("all_to_all_v"));
}

fn signal(process: &Process, name: &str) {
    let id = process.child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

#[test]
fn a_killed_process_is_named_at_once() {
    let mut random = Random(fresh_seed("a_killed_process_is_named_at_once"));
    for same_host in ["auto", "tcp"] {
        let mut ranks = ranks(same_host, "60");
        begin(&mut ranks);
        let victim = random.below(RANKS.into()) as usize;
        (0..random.below(100_000)).for_each(|_| std::hint::spin_loop());
        let mut killed = ranks.remove(victim);
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        for rank in ranks {
            let words = rank.last_words();
            assert!(words.contains(&format!("lost rank {victim}")), "{same_host}: {words}");
        }
    }
}

#[test]
fn a_frozen_process_is_named() {
    let mut random = Random(fresh_seed("a_frozen_process_is_named"));
    for same_host in ["auto", "tcp"] {
        let mut ranks = ranks(same_host, PATIENCE);
        begin(&mut ranks);
        let victim = random.below(RANKS.into()) as usize;
        (0..random.below(100_000)).for_each(|_| std::hint::spin_loop());
        let mut frozen = ranks.remove(victim);
        signal(&frozen, "-STOP");
        for rank in ranks {
            let words = rank.last_words();
            assert!(words.contains(&format!("nothing from rank {victim} for 1.0 s")), "{same_host}: {words}");
        }
        frozen.child.kill().unwrap();
        frozen.child.wait().unwrap();
    }
}
