//! Which limit of the system an error is about, so that a message can name it.

use std::error::Error;
use std::io::{self, Write};

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
        // A thread whose stack finds no room is refused with the same code.
        Errno::AGAIN => Some(format!(
            "no more threads or processes are allowed: {} (`ulimit -u`){}{}; raise the limit",
            limit(Resource::Nproc, "RLIMIT_NPROC"),
            cgroup("pids.max").map_or(String::new(), |most| format!(", pids.max of the cgroup is {most}")),
            getrlimit(Resource::As)
                .current
                .map_or(String::new(), |most| format!(", RLIMIT_AS is {most} (`ulimit -v`)")),
        )),
        Errno::NOMEM => Some(format!(
            "no more memory is allowed: {} (`ulimit -v`){}; raise the limit or use less memory",
            limit(Resource::As, "RLIMIT_AS"),
            cgroup("memory.max")
                .map_or(String::new(), |most| format!(", memory.max of the cgroup is {most}"))
        )),
        Errno::MFILE => Some(format!(
            "no more open files are allowed: {} (`ulimit -n`); raise the limit",
            limit(Resource::Nofile, "RLIMIT_NOFILE")
        )),
        _ => None,
    }
}

/// What [`advice`] says of the first error of the system among `error` and its causes.
pub fn advice_in(error: &(dyn Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |&cause| cause.source());
    causes.find_map(|cause| advice(cause.downcast_ref::<io::Error>()?))
}

/// From now on a panic over such an error, which libraries raise where a thread cannot be started, ends the process with one
/// message that names the limit, and status 1. Call it first in `main`.
pub fn name_limits_on_panic() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let owned = payload.downcast_ref::<String>().map(String::as_str);
        let text = owned.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default();
        let Some(advice) = code_in(text).and_then(|code| advice(&io::Error::from_raw_os_error(code))) else {
            return others(panic);
        };
        // Where even stderr is gone, the exit status is all that is left to say.
        let _closed = writeln!(io::stderr(), "error: {text}: {advice}");
        std::process::exit(1);
    }));
}

/// The code of the system's error that a panic's text quotes, in either of the forms that the standard library writes.
fn code_in(text: &str) -> Option<i32> {
    let after = ["(os error ", "Os { code: "].iter().find_map(|mark| Some(text.split_once(mark)?.1))?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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
            let text = advice(&io::Error::from_raw_os_error(code.raw_os_error())).unwrap();
            assert!(text.contains(name) && text.contains("raise the limit"), "{text}");
        }
        assert_eq!(advice(&io::Error::from_raw_os_error(Errno::NOENT.raw_os_error())), None);
        assert_eq!(advice(&io::Error::other("of no code")), None);
    }

    #[test]
    fn the_code_is_found_in_what_the_standard_library_writes() {
        for code in [11, 12, 24] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(code_in(&format!("failed to spawn thread: {error:?}")), Some(code));
            assert_eq!(code_in(&format!("OS can't spawn worker thread: {error}")), Some(code));
        }
        assert_eq!(code_in("index out of bounds: the len is 3 but the index is 11"), None);
    }
}
