//! Whether the programs of a run can be started, and are of this program's version. Each is asked for its version before
//! anything is made: one that cannot load its libraries would be started again and again.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use polygram_process::{end_with_parent, limits};

use crate::exit::{Failure, Outcome};

/// A program says its version long before this, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often its end is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What to do about a program that does not fit.
const REBUILD: &str = "build all programs with `make build` and keep them in one folder";
/// What to do about libtorch.
const LIBTORCH: &str = "the worker needs the libtorch that it was built with, and the libraries that came beside it: build \
                        again with `make build`, or name the `lib` folders of all of them in LD_LIBRARY_PATH; a \
                        LD_LIBRARY_PATH that names another libtorch has to be unset";

/// What a program answers to `--version`, after its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    /// Whether the program was built without libtorch.
    pub(crate) fn is_without_libtorch(&self) -> bool {
        self.0.ends_with("without libtorch")
    }
}

/// Asks the programs at `paths` for their versions, all at once. Every one of them is waited for.
pub(crate) fn check<const N: usize>(paths: [&Path; N]) -> [Outcome<Version>; N] {
    let deadline = Instant::now() + DEADLINE;
    paths
        .map(|path| (path, ask(path)))
        .map(|(path, child)| child.and_then(|child| answer(path, child, deadline)))
}

fn ask(path: &Path) -> Outcome<Child> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    end_with_parent(&mut command).spawn().map_err(|error| {
        if limits::advice(&error).is_some() {
            // The program is not at fault; the limit is named as everywhere.
            return Failure::failed(format!("cannot start {}", path.display())).because(error);
        }
        let hint = match error.kind() {
            ErrorKind::PermissionDenied => format!("make it executable (chmod +x), or {REBUILD}"),
            _ => REBUILD.to_owned(),
        };
        Failure::usage(format!("{} cannot be executed", path.display())).because(error).hint(hint)
    })
}

fn answer(path: &Path, mut child: Child, deadline: Instant) -> Outcome<Version> {
    let failed =
        |error| Failure::failed(format!("cannot wait for {} --version", path.display())).because(error);
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
            None => {
                // It fails only for a child that has just ended.
                let _ended = child.kill();
                child.wait().map_err(failed)?;
                let seconds = DEADLINE.as_secs();
                return Err(Failure::usage(format!(
                    "{} did not say its version within {seconds} s",
                    path.display()
                ))
                .hint(REBUILD));
            }
        }
    };
    let mut said = String::new();
    let mut complaint = String::new();
    // What is no text says nothing.
    let _read = child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut said));
    let _read = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut complaint));
    judge(path, status, (said.trim(), complaint.trim()))
}

/// What follows from a program's answer.
fn judge(path: &Path, status: ExitStatus, (said, complaint): (&str, &str)) -> Outcome<Version> {
    let file = path.display();
    if !status.success() {
        let reason = complaint.lines().last().unwrap_or("it says nothing");
        // Only the worker is linked with more than the system's own libraries: libtorch, and what that needs.
        let is_worker = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("worker"));
        let is_of_libtorch =
            ["libtorch", "libc10", "symbol lookup error"].iter().any(|word| reason.contains(word))
                || (is_worker && reason.contains("shared object file"));
        let hint = if is_of_libtorch { LIBTORCH } else { REBUILD };
        return Err(Failure::usage(format!("{file} cannot be started ({status}): {reason}")).hint(hint));
    }
    let version = said.split_once(' ').map_or("", |(_, version)| version);
    let own = env!("CARGO_PKG_VERSION");
    if version.split(' ').next() != Some(own) {
        let other = if version.is_empty() {
            format!("answers {said:?} to --version")
        } else {
            format!("is version {version}")
        };
        return Err(
            Failure::usage(format!("{file} {other}, but this program is version {own}")).hint(REBUILD)
        );
    }
    Ok(Version(version.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn judged(code: i32, said: &str, complaint: &str) -> Result<Version, String> {
        let status = ExitStatus::from_raw(code << 8);
        judge(Path::new("/p/polygram-worker"), status, (said, complaint))
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn versions_are_read() {
        let own = env!("CARGO_PKG_VERSION");
        assert!(!judged(0, &format!("polygram-worker {own}"), "").unwrap().is_without_libtorch());
        let without = judged(0, &format!("polygram-worker {own} without libtorch"), "").unwrap();
        assert!(without.is_without_libtorch());
        for other in ["polygram-worker 0.0.9", "polygram-worker", ""] {
            let error = judged(0, other, "").unwrap_err();
            assert!(error.contains("/p/polygram-worker") && error.contains(own), "{other}: {error}");
            assert!(error.contains("make build"), "{other}: {error}");
        }
    }

    #[test]
    fn a_library_that_is_missing_or_another_is_named_with_what_to_do() {
        for reason in [
            "polygram-worker: error while loading shared libraries: libtorch_cpu.so: cannot open shared object file: No \
             such file or directory",
            "polygram-worker: error while loading shared libraries: libcupti.so.13: cannot open shared object file: No such \
             file or directory",
            "polygram-worker: libgomp.so.1: cannot open shared object file",
            "polygram-worker: symbol lookup error: polygram-worker: undefined symbol: _ZN2at4_ops3add",
        ] {
            let error = judged(127, "", reason).unwrap_err();
            assert!(error.contains(reason) && error.contains("LD_LIBRARY_PATH"), "{error}");
        }
        // Another program has nothing to do with libtorch.
        let status = ExitStatus::from_raw(127 << 8);
        let reason = "polygram-coordinator: libxyz.so: cannot open shared object file";
        let refused = judge(Path::new("/p/polygram-coordinator"), status, ("", reason));
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("libxyz.so") && error.contains("make build"), "{error}");
        assert!(!error.contains("LD_LIBRARY_PATH"), "{error}");
    }

    #[test]
    fn programs_that_cannot_be_executed_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("polygram-worker");
        std::fs::write(&text, "not a program").unwrap();
        let [refused] = check([text.as_path()]);
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("cannot be executed") && said.contains("chmod +x"), "{said}");
        let [refused, other] = check([Path::new("/bin/false"), Path::new("/bin/true")]);
        let said = refused.unwrap_err().to_string();
        assert!(other.is_err(), "it says no version");
        assert!(said.contains("/bin/false cannot be started (exit status: 1)"), "{said}");
    }
}
