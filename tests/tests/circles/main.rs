//! No circles between the modules of a crate, except those that are named here with a reason.
//!
//! At each level of a crate's modules: if a module uses a sibling or its parent's file, that one does not use
//! the module, neither directly nor through others. [`graph`] defines what counts as a use. The test sees names
//! only: a method that a child adds to its parent's type with `impl` can be called without naming the child.
//! Items under `#[cfg(test)]` are left out.

mod graph;
mod source;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use graph::{Circle, circles};
use polygram_tests::repository;
use tree::Tree;

/// A circle that is allowed: its members may be fewer than these, but no others.
struct Known {
    /// The root file of the program or library.
    root: &'static str,
    /// The module whose children they are; empty for the root.
    parent: &'static str,
    members: &'static [&'static str],
    reason: &'static str,
}

static KNOWN: &[Known] = &[];

impl Known {
    fn allows(&self, circle: &Circle) -> bool {
        let members: BTreeSet<&str> = self.members.iter().copied().collect();
        circle.parent == self.parent && circle.members.iter().all(|member| members.contains(member.as_str()))
    }
}

/// Every Rust file under `folder`.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folders `src` of the repository's crates.
fn sources() -> Result<Vec<PathBuf>> {
    let root = repository();
    let mut found = Vec::new();
    for folder in [root.join("libs"), root] {
        for entry in fs::read_dir(folder)? {
            let folder = entry?.path();
            if folder.join("Cargo.toml").is_file() && folder.join("src").is_dir() {
                found.push(folder.join("src"));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The root files of libraries and programs under `source`.
fn roots(source: &Path) -> Result<Vec<PathBuf>> {
    let library = source.join("lib.rs");
    let files = rust_files(source)?;
    Ok(files.into_iter().filter(|file| *file == library || file.ends_with("main.rs")).collect())
}

fn read(root: &Path) -> Result<Tree> {
    Tree::read(root).map_err(anyhow::Error::msg)
}

fn relative(file: &Path) -> String {
    let file = file.strip_prefix(repository()).unwrap_or(file);
    file.display().to_string()
}

/// Whether `file` is, or lies in the folder of, a module that one of `texts` declares for tests only.
fn is_of_tests(file: &Path, texts: &[String]) -> bool {
    let names = file.ancestors().filter_map(|path| path.file_stem()?.to_str());
    names.filter(|name| *name != "mod").take_while(|name| *name != "src").any(|name| {
        let declaration = format!("mod {name};");
        texts.iter().any(|text| {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let is_for_tests = |line: &str| line.starts_with("#[cfg(") && line.contains("test");
            lines.iter().enumerate().filter(|(_, line)| line.ends_with(&declaration)).any(|(at, _)| {
                let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
                attributes.copied().any(is_for_tests)
            })
        })
    })
}

#[test]
fn modules_form_no_circles_without_a_reason() {
    let (mut bad, mut gone) = (Vec::new(), KNOWN.iter().collect::<Vec<_>>());
    let sources = sources().unwrap();
    for root in sources.iter().flat_map(|source| roots(source).unwrap()) {
        let name = relative(&root);
        for circle in circles(&read(&root).unwrap()) {
            match KNOWN.iter().find(|known| known.root == name && known.allows(&circle)) {
                Some(known) => gone.retain(|other| !std::ptr::eq(*other, known)),
                None => bad.push(format!("{name}, {circle}")),
            }
        }
    }
    assert!(
        bad.is_empty(),
        "modules use each other in circles; move what one of them needs into a file below both:\n{}",
        bad.join("\n").replace(&format!("{}/", repository().display()), "")
    );
    let gone: Vec<String> = gone
        .iter()
        .map(|known| format!("{} {} {:?} ({})", known.root, known.parent, known.members, known.reason))
        .collect();
    assert!(gone.is_empty(), "KNOWN lists circles that are gone; take them out:\n{}", gone.join("\n"));
}

/// What no tree reaches is not checked; only files of tests may be so.
#[test]
fn every_file_is_checked() {
    for source in sources().unwrap() {
        let mut reached = BTreeSet::new();
        for root in roots(&source).unwrap() {
            reached.extend(read(&root).unwrap().modules.into_iter().map(|module| module.file));
        }
        let texts: Vec<String> = reached.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        for file in rust_files(&source).unwrap().iter().filter(|file| !reached.contains(*file)) {
            let name = relative(file);
            assert!(is_of_tests(file, &texts), "{name}: the scanner does not find the module of this file");
        }
    }
}

/// The circles of a made-up crate, printed.
fn found_in(files: &[(&str, &str)]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(path, text)?;
    }
    let tree = read(&folder.path().join("lib.rs"))?;
    let prefix = format!("{}/", folder.path().display());
    Ok(circles(&tree).iter().map(|circle| circle.to_string().replace(&prefix, "")).collect())
}

#[test]
fn siblings_in_a_circle_are_named_with_file_and_line() {
    let found = found_in(&[
        ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\npub use a::A;"),
        (
            "a.rs",
            "//! A.\nuse crate::b::{self, B};\npub struct A(B);\nfn f() -> impl Sized + use<> {\n    b::g()\n}",
        ),
        ("b.rs", "pub struct B;\npub fn g() { super::c::h() }"),
        // Over a name that the root hands on: it is `a` that is used, not the root.
        ("c.rs", "use crate::d::D;\npub fn h() -> Option<crate::A> {\n    None\n}"),
        ("d.rs", "pub struct D;"),
    ])
    .unwrap();
    let wanted = "in the crate: a, b, c\n    \
                  a -> b: a.rs:2 names crate::b::B\n    \
                  b -> c: b.rs:2 names super::c::h\n    \
                  c -> a: c.rs:2 names crate::A\n";
    assert_eq!(found, [wanted]);
}

#[test]
fn circles_of_a_folder_are_its_own() {
    let found = found_in(&[
        ("lib.rs", "mod a;\nmod z;"),
        ("a/mod.rs", "pub mod b;\npub mod c;"),
        ("a/b.rs", "use super::c::C;\nuse crate::z::Z as Other;\npub struct B;"),
        ("a/c.rs", "pub struct C;\nimpl C {\n    fn f(b: &super::b::B) {}\n}"),
        ("z.rs", "pub struct Z;"),
    ])
    .unwrap();
    let wanted =
        "in a: b, c\n    b -> c: a/b.rs:1 names super::c::C\n    c -> b: a/c.rs:3 names super::b::B\n";
    assert_eq!(found, [wanted]);
}

#[test]
fn a_parent_and_its_child_need_each_other_only_one_way() {
    let own = "in the crate: (own file), a\n    \
               (own file) -> a: lib.rs:2 names a::f\n    \
               a -> (own file): a.rs:1 names super::Limit\n";
    let child = ("a.rs", "use super::Limit;\npub struct A;\npub fn f(limit: Limit) {}");
    let both = "mod a;\npub fn g() { a::f(Limit) }\npub struct Limit;";
    assert_eq!(found_in(&[("lib.rs", both), child]).unwrap(), [own]);
    // The parent hands on only.
    let handed = "mod a;\npub use a::{A, f};\npub struct Limit;";
    assert_eq!(found_in(&[("lib.rs", handed), child]).unwrap(), [""; 0]);
    // It hands on, and uses what it hands on.
    let used = "mod a;\npub use a::{A, f};\npub struct Limit;\npub fn g(a: A) {}";
    let used = found_in(&[("lib.rs", used), child]).unwrap();
    assert!(used.len() == 1 && used[0].contains("lib.rs:2 names a::A"), "{used:?}");
    // Everything of the parent, as children write it.
    let all = ("a.rs", "use super::*;\npub fn f(limit: Limit) {}");
    let all = found_in(&[("lib.rs", both), all]).unwrap();
    assert!(all.len() == 1 && all[0].contains("a.rs:2 names Limit"), "{all:?}");
}

#[test]
fn tests_comments_and_texts_are_no_uses() {
    let found = found_in(&[
        ("lib.rs", "mod a;\nmod b;"),
        ("a.rs", "use crate::b::B;\npub struct A<'a>(&'a B);"),
        (
            "b.rs",
            "//! crate::a::A\n/* crate::a::A /* nested */ crate::a::A */\npub struct B;\n\
             const TEXT: &str = \"crate::a::A \\\" crate::a::A\";\n\
             const RAW: &str = r#\"crate::a::A \" crate::a::A\"#;\nconst MARK: (char, char) = ('\"', '\\'');\n\
             #[cfg(test)]\nuse crate::a::A;\n\
             #[cfg(test)]\n#[derive(Debug)]\npub struct C(crate::a::A);\n\
             #[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n#[cfg(test)]\nmod more;\n",
        ),
    ])
    .unwrap();
    assert_eq!(found, [""; 0]);
    let found = found_in(&[
        ("lib.rs", "mod a;\nmod b;"),
        ("a.rs", "use crate::b::B;\npub struct A<'a>(&'a B);"),
        ("b.rs", "#[cfg(test)]\nmod tests {}\n#[cfg(not(test))]\nuse crate::a::A;\npub struct B;"),
    ])
    .unwrap();
    assert!(found.len() == 1 && found[0].contains("b.rs:4 names crate::a::A"), "{found:?}");
}
