//! Rules of the repository that no compiler keeps: which crate may depend on which, who may link libtorch, how long a
//! file may be, that every run file is legal and that the README's tree is the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, PackageId};
use polygram_domain::RunFile;
use polygram_tests::repository;

/// What each crate may depend on (docs/architecture.md, "Crates"): arrows point down only. Dependencies of tests
/// and build scripts are free.
const ARROWS: [(&str, &str, &[&str]); 20] = [
    // (folder, crate, crates it may depend on)
    ("libs/domain", "domain", &[]),
    ("libs/same-host", "same-host", &[]),
    ("libs/handshake", "handshake", &[]),
    ("libs/process", "process", &[]),
    ("libs/telemetry", "telemetry", &["process"]),
    ("libs/faults", "faults", &[]),
    ("libs/files", "files", &[]),
    ("libs/ngram", "ngram", &["domain"]),
    ("libs/data", "data", &["domain"]),
    ("libs/collective", "collective", &["same-host", "handshake", "process", "domain"]),
    ("libs/checkpoint", "checkpoint", &["process", "domain"]),
    ("libs/model", "model", &["collective", "process", "domain"]),
    ("libs/row-exchange", "row-exchange", &["same-host", "handshake", "domain"]),
    ("proto", "proto", &["handshake", "domain"]),
    ("libs/member", "member", &["proto", "checkpoint", "process", "faults", "domain"]),
    ("coordinator", "coordinator", &["proto", "checkpoint", "telemetry", "process", "faults", "domain"]),
    (
        "embedding-shard",
        "embedding-shard",
        &[
            "member",
            "proto",
            "row-exchange",
            "handshake",
            "checkpoint",
            "ngram",
            "telemetry",
            "process",
            "faults",
            "domain",
        ],
    ),
    ("cli", "cli", &["proto", "checkpoint", "ngram", "data", "telemetry", "process", "faults", "domain"]),
    (
        "worker",
        "worker",
        &[
            "member",
            "proto",
            "row-exchange",
            "checkpoint",
            "ngram",
            "data",
            "collective",
            "model",
            "telemetry",
            "process",
            "faults",
            "files",
            "domain",
        ],
    ),
    ("tests", "tests", &["process", "faults", "domain"]),
];

/// The crate that links libtorch.
const LIBTORCH: &str = "torch-sys";

/// Lines of a source file that need no reason.
const LONGEST_FILE: usize = 600;

/// Longer files and their reasons: (path, reason). None today.
const LONGER_FILES: &[(&str, &str)] = &[];

fn metadata(features: Option<CargoOpt>) -> Result<Metadata> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let version = Command::new(cargo).arg("-vV").output().context("cannot run cargo")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo names no host")?;
    let mut command = MetadataCommand::new();
    command.manifest_path(repository().join("Cargo.toml"));
    if let Some(features) = features {
        command.features(features);
    }
    // The packages of this machine only: those of others need not have been downloaded.
    let options = ["--locked", "--offline", "--filter-platform", host];
    Ok(command.other_options(options.map(str::to_owned)).exec()?)
}

/// Every package that `from` needs to be built and run, tests and build scripts aside.
fn reachable(metadata: &Metadata, from: &str) -> Result<BTreeSet<String>> {
    let resolve = metadata.resolve.as_ref().context("cargo gave no graph")?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: BTreeMap<&PackageId, String> =
        metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
    let start = names.iter().find(|(_, name)| *name == from).with_context(|| format!("no package {from}"))?;
    let mut seen = BTreeSet::from([*start.0]);
    let mut open = vec![*start.0];
    while let Some(id) = open.pop() {
        for dependency in &nodes.get(id).with_context(|| format!("{id} is not in the graph"))?.deps {
            let is_normal = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            if is_normal && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    Ok(seen.into_iter().map(|id| names[id].clone()).collect())
}

#[test]
fn arrows_point_down() {
    let metadata = metadata(None).unwrap();
    let root = repository().canonicalize().unwrap();
    let mut found = BTreeSet::new();
    for package in metadata.workspace_packages() {
        let name = package.name.strip_prefix("polygram-").expect("crates are called polygram-<folder>");
        let folder = package.manifest_path.parent().unwrap().as_std_path().canonicalize().unwrap();
        let folder = folder.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let (place, _, allowed) = ARROWS
            .iter()
            .find(|(_, known, _)| *known == name)
            .unwrap_or_else(|| panic!("crate {name} is new: say in ARROWS what it may depend on, and why"));
        assert_eq!(folder, *place, "crate {name}: a folder is called as its crate");
        for dependency in &package.dependencies {
            let Some(to) = dependency.name.strip_prefix("polygram-") else { continue };
            if dependency.kind == DependencyKind::Normal {
                assert!(allowed.contains(&to), "{name} depends on {to}; it may depend on {allowed:?}");
            }
        }
        found.insert(name.to_owned());
    }
    let known: BTreeSet<String> = ARROWS.iter().map(|(_, name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known, "ARROWS lists crates that are gone");
}

/// `a` may depend on `b` only if `b` stands before it: the table itself has no cycle.
#[test]
fn the_table_of_arrows_has_no_cycle() {
    for (index, (_, name, allowed)) in ARROWS.iter().enumerate() {
        for to in *allowed {
            let place = ARROWS.iter().position(|(_, known, _)| known == to).unwrap();
            assert!(place < index, "{name} stands above {to}");
        }
    }
}

#[test]
fn only_the_worker_and_its_model_link_libtorch() {
    let full = metadata(None).unwrap();
    for (_, name, _) in ARROWS {
        let linked = reachable(&full, &format!("polygram-{name}")).unwrap().contains(LIBTORCH);
        assert_eq!(linked, ["model", "worker"].contains(&name), "{name} links {LIBTORCH}: {linked}");
    }
    let bare = metadata(Some(CargoOpt::NoDefaultFeatures)).unwrap();
    let worker = reachable(&bare, "polygram-worker").unwrap();
    assert!(!worker.contains(LIBTORCH), "the worker without its default features links {LIBTORCH}");
}

/// Every file under `folder` with one of `extensions`; build output and hidden folders aside.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with('.') || name == "target" || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn files_are_short_or_have_a_reason() {
    let root = repository();
    let mut long = BTreeMap::new();
    for path in files(&root, &["rs"]).unwrap() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > LONGEST_FILE {
            long.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), lines);
        }
    }
    let known: BTreeSet<String> = LONGER_FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
    let unknown: Vec<_> = long.iter().filter(|(path, _)| !known.contains(*path)).collect();
    assert!(unknown.is_empty(), "over {LONGEST_FILE} lines and without a reason: {unknown:?}");
    let gone: Vec<_> = known.iter().filter(|path| !root.join(path).is_file()).collect();
    assert!(gone.is_empty(), "listed, but not there: {gone:?}");
}

#[test]
fn every_run_file_is_legal() {
    let run_files = files(&repository().join("configs"), &["toml"]).unwrap();
    assert!(!run_files.is_empty());
    for path in run_files {
        let origin = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let spec = RunFile::parse(&text, &origin, &[])
            .and_then(|file| file.resolve())
            .unwrap_or_else(|error| panic!("{origin}: {error}"));
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(spec.name.as_str(), stem, "{origin}: run.name is the file's name");
    }
}

/// The tiny run is what other tests and checks rely on.
#[test]
fn the_tiny_run_has_every_part() {
    let text = fs::read_to_string(repository().join("configs/tiny.toml")).unwrap();
    let spec = RunFile::parse(&text, "configs/tiny.toml", &[]).unwrap().resolve().unwrap();
    assert!(spec.training.steps >= 40);
    assert_eq!(spec.training.cells, 4);
    assert!(spec.model.moe.zero_experts > 0 && !spec.tables().is_empty());
}

#[test]
fn the_readme_shows_the_tree() {
    let root = repository();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let tracked = Command::new("git")
        .args(["-C", root.to_str().unwrap(), "ls-files"])
        .output()
        .ok()
        .filter(|output| output.status.success());
    // In an unpacked archive there is no git; the folders that exist must do.
    let folders: BTreeSet<String> = match tracked {
        Some(output) => String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter_map(|path| path.split_once('/'))
            .map(|(folder, _)| folder.to_owned())
            .collect(),
        None => files(&root, &["rs", "toml", "md"])
            .unwrap()
            .iter()
            .filter_map(|path| path.strip_prefix(&root).ok()?.to_str()?.split_once('/'))
            .map(|(folder, _)| folder.to_owned())
            .collect(),
    };
    let missing: Vec<_> = folders
        .iter()
        .filter(|folder| !folder.starts_with('.'))
        .filter(|folder| !readme.contains(&format!("{folder}/ ")))
        .collect();
    assert!(missing.is_empty(), "the README's tree lacks {missing:?}");
    for (folder, ..) in ARROWS {
        let name = folder.trim_start_matches("libs/");
        assert!(readme.contains(&format!("{name}/ ")), "the README's tree lacks {folder}");
    }
}
