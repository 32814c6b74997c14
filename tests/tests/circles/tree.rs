//! The modules of one program or library, read from its root file on: what each defines, imports and names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Token, closing, tokens};

/// Words before the name of an item.
const DEFINES: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union"];

/// A path that a module writes, and where.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// Whether it stands in a `pub use`: the module hands the item on and need not use it.
    pub(crate) is_reexport: bool,
}

/// A module: a file, or a `mod name { … }` within one.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// From the root on; empty for the root.
    pub(crate) path: Vec<String>,
    pub(crate) file: PathBuf,
    pub(crate) parent: Option<usize>,
    pub(crate) is_inline: bool,
    pub(crate) children: BTreeMap<String, usize>,
    pub(crate) definitions: BTreeSet<String>,
    /// The names that `use` brings in, with the paths that they stand for.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// Paths before `::*`.
    pub(crate) globs: Vec<Vec<String>>,
    /// Every path of two names or more, and every path of a `use`.
    pub(crate) named: Vec<Named>,
    /// Every single name outside `use`, with its first line.
    pub(crate) words: BTreeMap<String, usize>,
}

/// The modules of one root file; the root is module 0.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) modules: Vec<Module>,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Module(usize),
    /// Something that this module defines.
    ItemOf(usize),
}

impl Tree {
    /// Reads `root` (a `lib.rs` or `main.rs`) and the files of its modules. The error names the file.
    pub(crate) fn read(root: &Path) -> Result<Tree, String> {
        let mut tree = Tree { modules: vec![Module { file: root.to_path_buf(), ..Module::default() }] };
        tree.read_file(0)?;
        Ok(tree)
    }

    fn read_file(&mut self, module: usize) -> Result<(), String> {
        let file = self.modules[module].file.clone();
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        self.read_tokens(module, &tokens(&text))
    }

    fn read_tokens(&mut self, module: usize, tokens: &[Token]) -> Result<(), String> {
        let text = |index: usize| tokens.get(index).map_or("", |token| token.text);
        let (mut at, mut depth) = (0, 0);
        while at < tokens.len() {
            let token = tokens[at];
            match token.text {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                "mod" if text(at + 2) == ";" => {
                    self.child_file(module, text(at + 1))?;
                    at += 1;
                }
                "mod" if text(at + 2) == "{" => {
                    let end = closing(tokens, at + 2);
                    let child = self.child(module, text(at + 1), self.modules[module].file.clone());
                    self.modules[child].is_inline = true;
                    self.read_tokens(child, &tokens[at + 3..end])?;
                    at = end;
                }
                // Not the `use<'a>` of a return type.
                "use" if text(at + 1) != "<" => {
                    let visible = at > 0 && [")", "pub"].contains(&text(at - 1));
                    let mut leaves = Leaves { tokens, at: at + 1, is_reexport: visible };
                    leaves.read(&mut Vec::new(), &mut self.modules[module]);
                    at = leaves.at;
                }
                "macro_rules" if depth == 0 => {
                    self.modules[module].definitions.insert(text(at + 2).to_owned());
                }
                word if depth == 0 && DEFINES.contains(&word) => {
                    let name = if text(at + 1) == "mut" { text(at + 2) } else { text(at + 1) };
                    if !DEFINES.contains(&name) {
                        self.modules[module].definitions.insert(name.to_owned());
                        at += 1;
                    }
                }
                _ if token.is_name() && text(at.wrapping_sub(1)) != "." => {
                    let mut path = vec![token.text.to_owned()];
                    while text(at + 1) == "::" && tokens.get(at + 2).is_some_and(Token::is_name) {
                        path.push(text(at + 2).to_owned());
                        at += 2;
                    }
                    self.modules[module].words.entry(path[0].clone()).or_insert(token.line);
                    if path.len() > 1 {
                        self.modules[module].named.push(Named { path, line: token.line, is_reexport: false });
                    }
                }
                _ => {}
            }
            at += 1;
        }
        Ok(())
    }

    fn child(&mut self, parent: usize, name: &str, file: PathBuf) -> usize {
        let mut path = self.modules[parent].path.clone();
        path.push(name.to_owned());
        let child = self.modules.len();
        self.modules.push(Module { path, file, parent: Some(parent), ..Module::default() });
        self.modules[parent].children.insert(name.to_owned(), child);
        child
    }

    fn child_file(&mut self, parent: usize, name: &str) -> Result<(), String> {
        let root = self.modules[0].file.parent().unwrap_or(Path::new("")).to_path_buf();
        let folder = self.modules[parent].path.iter().fold(root, |folder, name| folder.join(name));
        let places = [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
        let file = places.iter().find(|place| place.is_file()).cloned();
        let file = file.ok_or_else(|| format!("{}: no file of module {name}", folder.display()))?;
        let child = self.child(parent, name, file);
        self.read_file(child)
    }

    /// Where `path`, written in module `from`, leads; `None` outside this tree.
    pub(crate) fn resolve(&self, from: usize, path: &[String]) -> Option<Target> {
        self.resolve_within(from, path, 8)
    }

    /// `budget` ends imports that lead to themselves.
    fn resolve_within(&self, from: usize, path: &[String], budget: usize) -> Option<Target> {
        let module = &self.modules[from];
        match path.first()?.as_str() {
            "crate" => self.walk(0, &path[1..], budget),
            "self" => self.walk(from, &path[1..], budget),
            "super" => {
                let mut at = module.parent?;
                let mut rest = &path[1..];
                while rest.first().is_some_and(|name| name == "super") {
                    at = self.modules[at].parent?;
                    rest = &rest[1..];
                }
                self.walk(at, rest, budget)
            }
            _ => self.lookup(from, path, budget),
        }
    }

    /// Follows `path` from within module `at`. A name that is not found is taken for one that a macro defines.
    fn walk(&self, at: usize, path: &[String], budget: usize) -> Option<Target> {
        let Some(first) = path.first() else { return Some(Target::Module(at)) };
        if let Some(found) = self.lookup(at, path, budget) {
            return Some(found);
        }
        // What is imported and leads nowhere comes from another crate.
        let module = &self.modules[at];
        let is_known = module.imports.contains_key(first) || module.children.contains_key(first);
        (!is_known).then_some(Target::ItemOf(at))
    }

    /// As `walk`, but a name that is not found is none.
    fn lookup(&self, at: usize, path: &[String], budget: usize) -> Option<Target> {
        let budget = budget.checked_sub(1)?;
        let (module, first) = (&self.modules[at], path.first()?);
        if let Some(import) = module.imports.get(first).filter(|import| import.first() != Some(first)) {
            return match self.resolve_within(at, import, budget)? {
                Target::Module(next) => self.walk(next, &path[1..], budget),
                item => Some(item),
            };
        }
        if let Some(child) = module.children.get(first) {
            return match module.imports.get(first) {
                // `pub mod merit; pub use merit::merit;`
                Some(import) if path.len() == 1 => self.walk(*child, &import[1..], budget),
                _ => self.walk(*child, &path[1..], budget),
            };
        }
        if module.definitions.contains(first) {
            return Some(Target::ItemOf(at));
        }
        module.globs.iter().find_map(|glob| match self.resolve_within(at, glob, budget)? {
            Target::Module(next) if next != at => self.lookup(next, path, budget),
            _ => None,
        })
    }
}

/// Reads the tree of a `use`.
struct Leaves<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    is_reexport: bool,
}

impl Leaves<'_> {
    fn text(&self) -> &str {
        self.tokens.get(self.at).map_or(";", |token| token.text)
    }

    /// From behind `prefix` to the `;`, `,` or `}` that ends this branch.
    fn read(&mut self, prefix: &mut Vec<String>, module: &mut Module) {
        let length = prefix.len();
        let mut name = None;
        loop {
            let token = self.tokens.get(self.at).copied();
            match self.text() {
                ";" | "," | "}" => break,
                "{" => {
                    self.at += 1;
                    while self.text() != "}" && self.text() != ";" {
                        self.read(prefix, module);
                        if self.text() == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    prefix.truncate(length);
                    return;
                }
                "*" => {
                    module.globs.push(prefix.clone());
                    self.at += 1;
                    prefix.truncate(length);
                    return;
                }
                "as" => {
                    self.at += 1;
                    name = Some(self.text().to_owned());
                }
                // `use a::{self}` is `a`.
                "self" if !prefix.is_empty() => name = prefix.last().cloned(),
                text if token.is_some_and(|token| token.is_name()) => {
                    let text = text.to_owned();
                    name = Some(text.clone());
                    prefix.push(text);
                }
                _ => {}
            }
            self.at += 1;
        }
        if let Some(name) = name {
            let line = self.tokens[self.at - 1].line;
            module.named.push(Named { path: prefix.clone(), line, is_reexport: self.is_reexport });
            if name != "_" {
                module.imports.insert(name, prefix.clone());
            }
        }
        prefix.truncate(length);
    }
}
