//! How the threads of an OpenMP runtime wait for their next piece of work.
//!
//! libtorch computes on the threads of such a runtime. By default they spin for milliseconds after every operation, which
//! takes the core from whatever else runs there, their own process included. `benches/peers/busy.py` measures what that
//! costs.
//!
//! GNU's runtime reads its variables in the constructor of its library, which runs before `main` and before anything that
//! a program could do about them. So the variables are set by whoever starts the program, or the program starts itself
//! again. A user who has set one of them keeps what he has set.

use std::env;
use std::io;

/// Variables that make the threads sleep, with their values: the standard's own, and the count of GNU's runtime.
pub const VARIABLES: [(&str, &str); 2] = [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")];

/// The variables to add to this process's environment for a program that loads OpenMP: none where one of them is set.
pub fn missing_variables() -> &'static [(&'static str, &'static str)] {
    missing(|name| env::var_os(name).is_some())
}

fn missing(is_set: impl Fn(&str) -> bool) -> &'static [(&'static str, &'static str)] {
    if VARIABLES.iter().any(|(name, _)| is_set(name)) { &[] } else { &VARIABLES }
}

/// Starts this program again with the missing variables, in the same process: process id, parent, descriptors, ignored
/// signals, working directory and the parent's death signal stay. Call it in `main` before any thread is started and any
/// file is opened.
///
/// Returns where nothing is missing, or where the program cannot tell how it was started (by hand through the dynamic
/// loader, whose command line it does not know).
///
/// # Errors
/// The program cannot be started again, for example because there is no `/proc`. The process goes on as it was.
pub fn restart_with_variables() -> io::Result<()> {
    let missing = missing_variables();
    if missing.is_empty() {
        return Ok(());
    }
    restart(missing)
}

#[cfg(target_os = "linux")]
fn restart(variables: &[(&str, &str)]) -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    // SAFETY: it reads a value that the kernel gave this process, and has no other effect.
    let loaded_by_kernel = unsafe { libc::getauxval(libc::AT_BASE) } != 0;
    if !loaded_by_kernel {
        return Ok(());
    }
    // The path rather than the link, for the process is named after it in `ps`; the link where the file at the path was
    // replaced or removed since.
    let link = Path::new("/proc/self/exe");
    let path = std::fs::read_link(link)?;
    let program = if is_same_file(link, &path) { path.as_path() } else { link };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).envs(variables.iter().copied()).exec();
    // It has reset this signal, which Rust programs ignore.
    // SAFETY: the signal exists, and to ignore it runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    Err(error)
}

#[cfg(target_os = "linux")]
fn is_same_file(one: &std::path::Path, other: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Other systems bring other runtimes, whose defaults stay.
#[cfg(not(target_os = "linux"))]
fn restart(_variables: &[(&str, &str)]) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_has_set_wins() {
        assert_eq!(missing(|_| false), VARIABLES);
        assert!(missing(|name| name == "OMP_WAIT_POLICY").is_empty(), "a spin count would undo the policy");
        assert!(missing(|name| name == "GOMP_SPINCOUNT").is_empty());
        assert!(missing(|_| true).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_replaced_file_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let [one, link, other] = ["one", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&one, "program").unwrap();
        std::fs::write(&other, "program").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(is_same_file(&link, &one));
        std::fs::rename(&other, &one).unwrap();
        assert!(is_same_file(&link, &one), "the link leads to the new file");
        std::fs::remove_file(&one).unwrap();
        assert!(!is_same_file(&link, &one));
    }
}
