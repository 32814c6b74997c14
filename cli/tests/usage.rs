//! Exit codes, help, and the refusals that need no cluster.

mod common;

use common::{polygram, polygram_in};

#[test]
fn help_and_version_succeed() {
    for args in [&["--help"][..], &["train", "--help"], &["ngram", "size", "--help"], &["--version"]] {
        let said = polygram(args);
        assert_eq!(said.code, Some(0), "{args:?}: {}", said.stderr);
        assert!(said.stdout.contains("polygram") || said.stdout.contains("Usage"), "{}", said.stdout);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    polygram(&["trian", "x"]).refused(&["trian"]);
    polygram(&["plan"]).refused(&["RUNFILE"]);
    polygram(&["plan", "configs/tiny.toml", "-o", "xml"]).refused(&["xml"]);
}

#[test]
fn names_and_roots_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["status", "metrics", "why", "digest"] {
        polygram_in(folder.path(), &[command, "Bad_Name"]).refused(&["Bad_Name"]);
        polygram_in(folder.path(), &[command, "demo"]).refused(&["polygram-root"]);
        polygram_in(folder.path(), &[command, "demo", "--root", "file://x/y"])
            .refused(&["file:///absolute/path"]);
        polygram_in(folder.path(), &[command, "demo", "--root", "ftp://x/y"]).refused(&["ftp://"]);
        std::fs::create_dir_all(folder.path().join("root")).unwrap();
        polygram_in(folder.path(), &[command, "demo", "--root", "root"]).refused(&["no run demo"]);
    }
    assert!(!folder.path().join("polygram-root").exists(), "reading creates nothing");
}

/// The reference of keys is whole, names each once, and its example is a run file.
#[test]
fn keys_are_described_and_the_example_plans() {
    let folder = tempfile::tempdir().unwrap();
    let all = polygram_in(folder.path(), &["keys", "-o", "json"]).json();
    let keys = all.as_array().unwrap();
    let lr = keys.iter().find(|key| key["key"] == "training.lr").unwrap();
    assert_eq!(
        (lr["required"].as_bool(), lr["takes"].as_str()),
        (Some(true), Some("a number above 0, at most 1000"))
    );
    assert!(keys.len() > 100 && keys.iter().all(|key| !key["meaning"].as_str().unwrap().is_empty()));
    let clip = polygram_in(folder.path(), &["keys", "training.clip"]);
    assert!(clip.stdout.contains("[training.clip]\n  enabled = true\n"), "{}", clip.stdout);
    assert!(!clip.stdout.contains("schedule"), "{}", clip.stdout);
    polygram_in(folder.path(), &["keys", "learning_rate"]).refused(&["no key learning_rate", "training.lr"]);
    let example = polygram_in(folder.path(), &["keys", "--example"]);
    assert_eq!(example.code, Some(0), "{}", example.stderr);
    let file = common::file(folder.path(), "mine.toml", &example.stdout);
    assert_eq!(polygram_in(folder.path(), &["plan", &file]).code, Some(0));
}

/// What only looks like the address of a store is never taken for a folder.
#[test]
fn addresses_that_are_none_are_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = common::repository().join("configs/tiny.toml").display().to_string();
    for address in ["s3:/bucket/x", "~/runs", "~", "file:x"] {
        for arguments in [
            &["train", &tiny, "--root"][..],
            &["status", "x", "--root"],
            &["runs", "--root"],
            &["pool", "up", "--workers", "1", "--shards", "1", "--root"],
            &["bench", "checkpoint", "save", "--root"],
        ] {
            let said = polygram_in(folder.path(), &[arguments, &[address]].concat());
            said.refused(&[&format!("--root is {address:?}")]);
        }
        let points = format!("recovery_points.root={address}");
        let train = ["train", &tiny, "--set", "recovery_points.every_steps=5", "--set", &points];
        polygram_in(folder.path(), &train).refused(&["recovery_points.root is", address]);
        let data = format!("data.train={address}");
        let unset = ["--set", "data.synthetic_tokens=", "--set", "data.synthetic_held_out_tokens=", "--set"];
        let train = [&["train", &tiny][..], &unset, &["evaluation.every_steps=", "--set", &data]].concat();
        polygram_in(folder.path(), &train).refused(&["data.train = ", address]);
    }
    std::fs::create_dir(folder.path().join("root")).unwrap();
    for (option, command) in [
        ("--to-root", &["ckpt", "reshard", "x", "--workers", "1", "--shards", "1"][..]),
        ("--other-root", &["ckpt", "diff", "x", "1", "2"]),
    ] {
        let said = polygram_in(folder.path(), &[command, &["--root", "root", option, "s3:/b"]].concat());
        said.refused(&[&format!("{option} is \"s3:/b\"; write s3://b")]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was made");
}

#[test]
fn training_refuses_before_it_starts_anything() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = common::repository().join("configs/tiny.toml");
    let tiny = tiny.to_str().unwrap();
    let train = |more: &[&str]| polygram_in(folder.path(), &[&["train", tiny], more].concat());
    train(&["--run", "Not/Legal"]).refused(&["Not/Legal"]);
    train(&["--set", "topology.workers=3"]).refused(&["topology.workers"]);
    let demo = common::repository().join("configs/demo.toml");
    polygram_in(folder.path(), &["train", demo.to_str().unwrap()]).refused(&[
        "data.train",
        "demo-data/train.idx",
        "polygram data prepare",
    ]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn logits_checks_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["logits", "--model", "absent", "--input", "in", "--output", "out"];
    polygram_in(folder.path(), &args).refused(&["absent", "config.json"]);
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("model")).unwrap();
    for name in ["model/config.json", "model/model.safetensors", "in"] {
        std::fs::write(at(name), "kept").unwrap();
    }
    std::os::unix::fs::symlink("model/model.safetensors", at("link")).unwrap();
    for (output, what) in [
        ("in", "the input"),
        ("model/model.safetensors", "a file of the model"),
        ("link", "a file of the model"),
    ] {
        let args = ["logits", "--model", "model", "--input", "in", "--output", output];
        polygram_in(folder.path(), &args).refused(&[output, what]);
    }
    for name in ["model/config.json", "model/model.safetensors", "in"] {
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "kept");
    }
}

#[test]
fn data_commands_check_their_files() {
    let folder = tempfile::tempdir().unwrap();
    polygram_in(folder.path(), &["data", "inspect", "absent"]).refused(&["absent"]);
    polygram_in(folder.path(), &["data", "prepare", "absent", "--output", "out"]).refused(&["absent"]);
    assert!(!folder.path().join("out").exists());
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> std::io::Result<std::process::Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

/// `polygram … | head` is no error, whatever of it is closed.
#[test]
fn closed_pipes_are_no_errors() {
    let runs: &[(&[&str], i32)] = &[
        (&["plan", "configs/tiny.toml"], 0),
        (&["plan", "configs/tiny.toml", "-o", "jsonl", "-v"], 0),
        (&["plan", "configs/longcat-flash-lite.toml"], 0),
        (&["ngram", "size", "--vocab", "100", "--rows", "500", "--orders", "3", "--heads", "2"], 0),
        (&["--help"], 0),
        (&["plan", "absent.toml"], 2),
        (&["trian"], 2),
    ];
    for (args, code) in runs {
        for closed in ["stdout", "stderr", "both"] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_polygram"));
            command.args(*args).current_dir(common::repository());
            command.stdout(if closed == "stderr" {
                std::process::Stdio::piped()
            } else {
                closed_pipe().unwrap()
            });
            command.stderr(if closed == "stdout" {
                std::process::Stdio::piped()
            } else {
                closed_pipe().unwrap()
            });
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(*code), "{args:?} with {closed} closed: {said}");
            assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{args:?}: {said}");
        }
    }
}

/// A device that is full is an error of its own: the result is not there.
#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_polygram"));
    command.args(["plan", "configs/tiny.toml"]).current_dir(common::repository()).stdout(full);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to standard output"), "{said}");
}
