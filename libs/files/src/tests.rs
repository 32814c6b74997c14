//! Every kind of thing that may stand under an output file's name.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;

fn write(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    OutputFile::new(path)?.write(bytes)
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_new_file_and_an_old_one_are_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    write(&path, b"first").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write(&path, b"2nd").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"2nd");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(names(folder.path()), ["out"]);
}

/// The mask of the process decides, as for every other program.
#[test]
fn a_new_file_has_the_permissions_of_new_files() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    write(&ours, b"x").unwrap();
    fs::write(&plain, b"x").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[test]
fn links_stay_links_and_what_they_lead_to_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().join("within");
    fs::create_dir(&within).unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("within/target"), "old").unwrap();
    // A chain of relative links, an absolute one, and one to a name that is free.
    symlink("within/target", at("one")).unwrap();
    symlink("one", at("two")).unwrap();
    symlink(at("within/target"), at("absolute")).unwrap();
    symlink("within/new", at("dangling")).unwrap();
    for (link, target) in [
        ("one", "target"),
        ("two", "target"),
        ("absolute", "target"),
        ("dangling", "new"),
        ("dangling", "new"),
    ] {
        write(&at(link), link.as_bytes()).unwrap();
        assert!(at(link).is_symlink(), "{link}");
        assert!(!within.join(target).is_symlink(), "{link}");
        assert_eq!(fs::read_to_string(within.join(target)).unwrap(), link);
    }
    assert_eq!(names(&within), ["new", "target"]);
    // A link to itself, and one into a folder that is not there.
    symlink("loop", at("loop")).unwrap();
    symlink("nowhere/x", at("lost")).unwrap();
    for link in ["loop", "lost"] {
        let error = OutputFile::new(&at(link)).unwrap_err();
        assert!(matches!(error, OutputError::Io { .. }), "{link}: {error}");
        assert!(at(link).is_symlink(), "{link}");
    }
}

#[test]
fn a_pipe_is_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = folder.path().join("link");
    symlink("pipe", &link).unwrap();
    for path in [&pipe, &link] {
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || {
                let mut text = String::new();
                File::open(pipe).unwrap().read_to_string(&mut text).unwrap();
                text
            })
        };
        write(path, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }
    assert_eq!(names(folder.path()), ["link", "pipe"]);
}

#[test]
fn a_character_device_is_written_to() {
    write(Path::new("/dev/null"), b"gone").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let error = write(Path::new("/dev/full"), b"no room").unwrap_err();
    assert!(matches!(error, OutputError::Write { .. }), "{error}");
}

#[test]
fn what_is_not_a_file_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("dir", at("to-dir")).unwrap();
    let _listener = UnixListener::bind(at("socket")).unwrap();
    fs::write(at("file"), "x").unwrap();
    for name in ["dir", "to-dir", "socket", "new/"] {
        let error = OutputFile::new(&at(name)).unwrap_err();
        assert!(matches!(error, OutputError::NotAFile { .. }), "{name}: {error}");
    }
    for name in ["missing/out", "file/out"] {
        let error = OutputFile::new(&at(name)).unwrap_err();
        assert!(matches!(error, OutputError::Io { .. }), "{name}: {error}");
    }
    assert!(OutputFile::new(Path::new("")).is_err());
    assert_eq!(names(folder.path()), ["dir", "file", "socket", "to-dir"]);
}

/// Nothing is lost where the write fails: here, because the folder is gone by then.
#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let (open, moved) = (folder.path().join("open"), folder.path().join("moved"));
    fs::create_dir(&open).unwrap();
    fs::write(open.join("out"), "precious").unwrap();
    let output = OutputFile::new(&open.join("out")).unwrap();
    fs::rename(&open, &moved).unwrap();
    output.write(b"new").unwrap_err();
    assert_eq!(fs::read_to_string(moved.join("out")).unwrap(), "precious");
    assert_eq!(names(&moved), ["out"]);
}
