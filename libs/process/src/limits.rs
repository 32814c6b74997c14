//! Which limit of the system an error is about, so that a message can name it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// What to say of `error`, which came when a thread or process was to be started, memory to be mapped or a file to be
/// opened: the limits that can cause it, with their values. Nothing for other errors.
pub fn advice(error: &io::Error) -> Option<String> {
    let code = Errno::from_io_error(error)?;
    let limit = |resource, name: &str| {
        let value = getrlimit(resource).current.map_or("unlimited".to_owned(), |value| value.to_string());
        format!("{name} is {value}")
    };
    match code {
        Errno::AGAIN => Some(format!(
            "no more threads or processes are allowed: {} (`ulimit -u`){}; raise the limit",
            limit(Resource::Nproc, "RLIMIT_NPROC"),
            cgroup("pids.max").map_or(String::new(), |most| format!(", pids.max of the cgroup is {most}"))
        )),
        Errno::NOMEM => Some(format!(
            "no more memory is allowed: {} (`ulimit -v`){}; raise the limit or use less memory",
            limit(Resource::As, "RLIMIT_AS"),
            cgroup("memory.max").map_or(String::new(), |most| format!(", memory.max of the cgroup is {most}"))
        )),
        Errno::MFILE => Some(format!(
            "no more open files are allowed: {} (`ulimit -n`); raise the limit",
            limit(Resource::Nofile, "RLIMIT_NOFILE")
        )),
        _ => None,
    }
}

/// `error` with what [`advice`] says of it.
pub fn explained(error: io::Error) -> io::Error {
    match advice(&error) {
        Some(advice) => io::Error::new(error.kind(), format!("{error}: {advice}")),
        None => error,
    }
}

/// A limit of this process's control group (version 2), if there is one.
fn cgroup(file: &str) -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let most = std::fs::read_to_string(format!("/sys/fs/cgroup/{group}/{file}")).ok()?;
    Some(most.trim().to_owned()).filter(|most| most != "max")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_named() {
        for (code, name) in
            [(Errno::AGAIN, "RLIMIT_NPROC"), (Errno::NOMEM, "RLIMIT_AS"), (Errno::MFILE, "RLIMIT_NOFILE")]
        {
            let error = explained(io::Error::from_raw_os_error(code.raw_os_error()));
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("raise the limit"), "{text}");
        }
        assert_eq!(advice(&io::Error::from_raw_os_error(Errno::NOENT.raw_os_error())), None);
        assert_eq!(advice(&io::Error::other("of no code")), None);
    }
}
