//! Who uses whom among the modules of a tree, and the circles in it.
//!
//! At each level the nodes are the children of a module, each with all that is below it, and the module's own
//! file. A module uses another if it names something that the other **defines**. A name that is handed on by
//! `pub use` counts for the file that defines it, and handing a name on is not using it. So a parent may use
//! its children, and children may use what their parent's file defines, but not both in one circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::tree::{Target, Tree};

/// How the file of a module is called beside its children.
const OWN_FILE: &str = "(own file)";

/// One use: `from` names something of `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) file: PathBuf,
    pub(crate) line: usize,
    pub(crate) path: String,
}

/// Modules of one level that use each other in a circle.
#[derive(Debug)]
pub(crate) struct Circle {
    /// The module whose children they are, as `a::b`; empty for the crate's root.
    pub(crate) parent: String,
    pub(crate) members: BTreeSet<String>,
    /// (from, to, use) within the circle.
    pub(crate) edges: Vec<(String, String, Edge)>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<&str> = self.members.iter().map(String::as_str).collect();
        let parent = if self.parent.is_empty() { "the crate" } else { &self.parent };
        writeln!(f, "in {parent}: {}", members.join(", "))?;
        for (from, to, edge) in &self.edges {
            writeln!(f, "    {from} -> {to}: {}:{} names {}", edge.file.display(), edge.line, edge.path)?;
        }
        Ok(())
    }
}

/// The file's module that `module` lies in: itself unless it is inline.
fn unit(tree: &Tree, mut module: usize) -> usize {
    while let (true, Some(parent)) = (tree.modules[module].is_inline, tree.modules[module].parent) {
        module = parent;
    }
    module
}

/// Every use between two files of the tree.
pub(crate) fn edges(tree: &Tree) -> Vec<Edge> {
    let mut found = BTreeSet::new();
    for (from, module) in tree.modules.iter().enumerate() {
        let mut add = |path: &[String], line: usize| {
            let to = match tree.resolve(from, path) {
                Some(Target::ItemOf(to)) => to,
                // A module that is brought in by its name is used where the name is.
                Some(Target::Module(_)) | None => return,
            };
            let (from, to) = (unit(tree, from), unit(tree, to));
            if from != to {
                let file = module.file.clone();
                found.insert(Edge { from, to, file, line, path: path.join("::") });
            }
        };
        for named in &module.named {
            let is_used = || named.path.last().is_some_and(|name| module.words.contains_key(name));
            if !named.is_reexport || is_used() {
                add(&named.path, named.line);
            }
        }
        for (word, line) in &module.words {
            let is_own = module.definitions.contains(word) || module.imports.contains_key(word);
            if !module.globs.is_empty() && !is_own {
                add(std::slice::from_ref(word), *line);
            }
        }
    }
    found.into_iter().collect()
}

/// The circles of every level, from the root down.
pub(crate) fn circles(tree: &Tree) -> Vec<Circle> {
    let edges = edges(tree);
    let mut found = Vec::new();
    for (parent, module) in tree.modules.iter().enumerate() {
        if module.is_inline || module.children.is_empty() {
            continue;
        }
        let mut uses: BTreeMap<(String, String), &Edge> = BTreeMap::new();
        for edge in &edges {
            if let (Some(from), Some(to)) = (node(tree, parent, edge.from), node(tree, parent, edge.to))
                && from != to
            {
                uses.entry((from, to)).or_insert(edge);
            }
        }
        let nodes: BTreeSet<&str> = uses.keys().flat_map(|(from, to)| [from.as_str(), to.as_str()]).collect();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for start in nodes {
            if seen.contains(start) {
                continue;
            }
            let members: BTreeSet<String> = reached(&uses, start)
                .into_iter()
                .filter(|node| reached(&uses, node).contains(start))
                .map(str::to_owned)
                .collect();
            seen.extend(
                uses.keys()
                    .flat_map(|(from, to)| [from, to])
                    .filter(|n| members.contains(*n))
                    .map(String::as_str),
            );
            if members.len() > 1 {
                let edges = uses
                    .iter()
                    .filter(|((from, to), _)| members.contains(from) && members.contains(to))
                    .map(|((from, to), edge)| (from.clone(), to.clone(), (*edge).clone()))
                    .collect();
                found.push(Circle { parent: module.path.join("::"), members, edges });
            }
        }
    }
    found
}

/// What `module` is called at the level below `parent`; `None` outside it.
fn node(tree: &Tree, parent: usize, module: usize) -> Option<String> {
    let (above, path) = (&tree.modules[parent].path, &tree.modules[module].path);
    let below = path.strip_prefix(above.as_slice())?;
    Some(below.first().map_or_else(|| OWN_FILE.to_owned(), Clone::clone))
}

/// Every node that `start` uses, itself included, directly or not.
fn reached<'a>(uses: &'a BTreeMap<(String, String), &Edge>, start: &'a str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(node) = open.pop() {
        for (from, to) in uses.keys() {
            if from == node && seen.insert(to) {
                open.push(to);
            }
        }
    }
    seen
}
