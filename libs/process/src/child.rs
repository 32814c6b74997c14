//! A child that ends with its parent.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub use libc::{SIGINT, SIGTERM};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::SignalKind;

use crate::signals;

/// The child gets SIGKILL when the thread that starts it ends, however that ends: start it from a thread that lives as
/// long as its process. A parent that is gone before the child has asked for this ends the child, too.
///
/// A parent that inherited SIGCHLD as ignored could not wait for it; that signal is answered from now on. A parent whose
/// working directory was removed gives the child `/`: some libraries (oneMKL) cannot be loaded in none.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
    if signals::is_ignored(SignalKind::child()).is_ok_and(|is_ignored| is_ignored) {
        // SAFETY: the system's own answer to this signal, which is to do nothing, takes the place of another that does nothing.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
    if std::env::current_dir().is_err() {
        command.current_dir("/");
    }
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec the closure makes two system calls (prctl, getppid) and allocates nothing, so it is
    // async-signal-safe.
    unsafe { command.pre_exec(move || ask_for_the_end(parent)) }
}

/// The child answers these signals as if nobody had ever ignored them: its parent ends it with them.
pub fn answer_signals<'c>(command: &'c mut Command, numbers: &'static [i32]) -> &'c mut Command {
    // SAFETY: between fork and exec the closure calls nothing but signal(2), which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for &number in numbers {
                if libc::signal(number, libc::SIG_DFL) == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}

fn ask_for_the_end(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn ends(child: &mut Child) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ended = child.kill();
        false
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            end_with_parent(Command::new("sleep").arg("600").stdin(Stdio::null())).spawn().unwrap()
        })
        .join()
        .unwrap();
        assert!(ends(&mut child), "the child outlived its parent thread");
    }

    #[test]
    fn a_child_answers_a_signal_and_a_deaf_one_does_not() {
        // The shell ignores the signal, and `exec` keeps that.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; exec sleep 600"]);
        let mut deaf = command.spawn().unwrap();
        let mut plain = answer_signals(Command::new("sleep").arg("600"), &[libc::SIGTERM]).spawn().unwrap();
        let term = |child: &Child| {
            let pid = Pid::from_raw(child.id() as i32).unwrap();
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
        };
        // Until the shell has become what it starts, it might answer.
        let is_deaf = || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", deaf.id())).unwrap();
            name.trim() == "sleep"
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_deaf() {
            assert!(Instant::now() < deadline);
        }
        term(&deaf);
        term(&plain);
        assert!(ends(&mut plain));
        assert!(deaf.try_wait().unwrap().is_none());
        deaf.kill().unwrap();
        deaf.wait().unwrap();
    }
}
