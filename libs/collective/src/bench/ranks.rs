//! The processes, as the one that measures sees them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use polygram_domain::embedding::SameHost;
use polygram_process::end_with_parent;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::BenchArgs;
use crate::order::Order;
use crate::outcome::Outcome;

/// One rank's process. It ends with its value.
struct Process {
    rank: u32,
    child: Child,
    /// Closed: the child ends.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(rank: u32, same_host: SameHost) -> Outcome<Process> {
        let same_host = match same_host {
            SameHost::Auto => "auto",
            SameHost::Tcp => "tcp",
        };
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = end_with_parent(&mut command)
            .args(["rank", "--rank", &rank.to_string(), "--same-host", same_host])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("a process without its output")?;
        Ok(Process { rank, child, stdin, stdout: BufReader::new(stdout) })
    }

    fn say(&mut self, words: &impl Serialize) -> Outcome {
        let line = serde_json::to_string(words)? + "\n";
        let stdin = self.stdin.as_mut().ok_or("a process that was told to end")?;
        Ok(stdin.write_all(line.as_bytes())?)
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Outcome<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("rank {} ended; its own words are above", self.rank).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Ended already, or it has no more to say.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// All ranks, joined.
pub(crate) struct Ranks {
    processes: Vec<Process>,
}

impl Ranks {
    pub(crate) fn start(args: &BenchArgs) -> Outcome<Ranks> {
        let processes = (0..args.procs).map(|rank| Process::start(rank, args.same_host));
        let mut ranks = Ranks { processes: processes.collect::<Outcome<_>>()? };
        let addresses = ranks.all_hear::<SocketAddr>()?;
        ranks.tell_all(&addresses)?;
        Ok(ranks)
    }

    /// Seconds of one call on the slowest rank.
    pub(crate) fn once(&mut self, order: &Order) -> Outcome<f64> {
        self.tell_all(order)?;
        Ok(self.all_hear::<f64>()?.into_iter().fold(0.0, f64::max))
    }

    /// Waits for all to end by themselves.
    pub(crate) fn end(mut self) -> Outcome {
        for process in &mut self.processes {
            drop(process.stdin.take());
        }
        for process in &mut self.processes {
            let status = process.child.wait()?;
            if !status.success() {
                return Err(format!("rank {} ended with {status}", process.rank).into());
            }
        }
        Ok(())
    }

    fn tell_all(&mut self, words: &impl Serialize) -> Outcome {
        self.processes.iter_mut().try_for_each(|process| process.say(words))
    }

    fn all_hear<T: DeserializeOwned>(&mut self) -> Outcome<Vec<T>> {
        self.processes.iter_mut().map(Process::hear).collect()
    }
}
