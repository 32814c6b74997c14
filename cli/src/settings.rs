//! The command line resolved: a root that names a place, a run name that is legal, a run file that was read,
//! overridden and checked. Commands take these and check nobody's spelling again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use polygram_domain::run_file::Origin;
use polygram_domain::store_address::check_store_address;
use polygram_domain::{ConfigError, HeldOutIdentities, RunFile, RunName, RunSpec};
use polygram_proto::control::Token;
use polygram_proto::pool::PoolAnnouncement;
use rustix::fs::Access;

use crate::args::{PoolArgs, RootArgs, RunArgs, RunFileArgs};
use crate::exit::{Failure, Outcome};

/// Folder of runs when `--root` is not given, under the current directory.
const DEFAULT_ROOT: &str = "polygram-root";
/// Folder of a root that its runs lie in.
const RUNS: &str = "runs";

/// Where runs are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A folder of this machine.
    Folder(PathBuf),
    /// Another store, by its URL.
    Remote(String),
}

impl Root {
    /// `--root`, or the default. Plain paths and `file://` become absolute; another scheme is left to the store.
    pub(crate) fn resolve(args: &RootArgs) -> Outcome<Root> {
        Root::of_option("--root", args.root.as_deref())
    }

    /// The root that `option` names, or the default.
    ///
    /// # Errors
    /// The text is no address of a store, or names the folder of the runs of a root, or one of these runs.
    pub(crate) fn of_option(option: &str, text: Option<&str>) -> Outcome<Root> {
        // What is absolute needs no current directory, which may have been removed.
        let is_absolute = text.is_some_and(|text| text.starts_with('/') || text.contains("://"));
        let here = if is_absolute { PathBuf::from("/") } else { current_folder()? };
        let root = Root::from_text((option, text), &here)?;
        match root.meant() {
            Some(meant) => Err(Failure::usage(format!("{option} {} lies within a root", root.address()))
                .hint(format!("give {option} {}", meant.display()))),
            None => Ok(root),
        }
    }

    /// The root that was meant where this one is its folder of runs, or a run in it.
    fn meant(&self) -> Option<&Path> {
        let folder = self.folder()?;
        let is_runs = |folder: &Path| folder.file_name().is_some_and(|name| name == RUNS);
        let is_run =
            |folder: &Path| ["coord", "config", "ckpt"].iter().any(|part| folder.join(part).is_dir());
        // One that has runs of its own is what it is said to be.
        if folder.join(RUNS).is_dir() {
            return None;
        }
        let parent = folder.parent()?;
        if is_runs(parent) && is_run(folder) {
            return parent.parent();
        }
        let mut entries = std::fs::read_dir(folder).ok().filter(|_| is_runs(folder))?.flatten();
        entries.any(|entry| is_run(&entry.path())).then_some(parent)
    }

    fn from_text((option, text): (&str, Option<&str>), here: &Path) -> Outcome<Root> {
        let text = text.unwrap_or(DEFAULT_ROOT);
        check_store_address(text).map_err(|reason| Failure::usage(format!("{option} {reason}")))?;
        let folder = match text.split_once("://") {
            Some(("file", _)) => {
                url::Url::parse(text).ok().and_then(|url| url.to_file_path().ok()).ok_or_else(|| {
                    Failure::usage(format!("{option} {text} is not a file URL"))
                        .hint("write file:///absolute/path, or a plain path")
                })?
            }
            Some(_) => return Ok(Root::Remote(text.to_owned())),
            None => here.join(text.strip_prefix("./").unwrap_or(text)),
        };
        Ok(Root::Folder(folder))
    }

    /// As the stores and the other programs take it: a path has no characters to escape.
    pub(crate) fn address(&self) -> String {
        match self {
            Root::Folder(folder) => folder.display().to_string(),
            Root::Remote(url) => url.clone(),
        }
    }

    /// As a folder of this machine, if it is one.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Root::Folder(folder) => Some(folder),
            Root::Remote(_) => None,
        }
    }

    /// Refuses a folder of this machine in which the run `name` cannot be written. A disk that is full is no reason: a
    /// launch may be what makes room.
    pub(crate) fn check_writable(&self, name: &RunName) -> Outcome<()> {
        match self.folder() {
            Some(folder) => check_writable(&folder.join(RUNS).join(name.as_str())),
            None => Ok(()),
        }
    }

    /// The option that names this root, as text to append to a command: nothing for the default.
    pub(crate) fn as_option(&self) -> String {
        let is_default =
            std::env::current_dir().is_ok_and(|here| self.folder() == Some(&here.join(DEFAULT_ROOT)));
        if is_default { String::new() } else { format!(" --root {}", self.address()) }
    }
}

impl fmt::Display for Root {
    /// As a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Root::Folder(folder) => match url::Url::from_file_path(folder) {
                Ok(url) => write!(f, "{url}"),
                Err(()) => write!(f, "{}", folder.display()),
            },
            Root::Remote(url) => f.write_str(url),
        }
    }
}

/// Refuses a folder that cannot be written, or made.
///
/// # Errors
/// This user has no permission, the file system is read-only, or a part of the path is a file.
pub(crate) fn check_writable(folder: &Path) -> Outcome<()> {
    let Some(there) = folder.ancestors().find(|ancestor| std::fs::symlink_metadata(ancestor).is_ok()) else {
        return Ok(());
    };
    let Err(error) = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) else { return Ok(()) };
    let remedy = match std::io::Error::from(error).kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => "mount the file system writable, or use another folder",
        std::io::ErrorKind::PermissionDenied => {
            "give this user write permission there, or use another folder"
        }
        _ => "use another folder",
    };
    let what = format!("{} cannot be written: {error}", there.display());
    Err(Failure::usage(what).hint(remedy))
}

/// The text of a file that is named on the command line.
pub(crate) fn read_text(path: &Path) -> Outcome<String> {
    let file = path.display();
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Failure::usage(format!("{file} is no text in UTF-8"))
            .hint("name a text file, or write it in UTF-8"),
        std::io::ErrorKind::IsADirectory => {
            Failure::usage(format!("cannot read {file}: it is a folder")).hint("name a file in it")
        }
        _ => Failure::usage(format!("cannot read {file}")).because(error),
    })
}

/// The current directory.
///
/// # Errors
/// It was removed, or cannot be looked into.
pub(crate) fn current_folder() -> Outcome<PathBuf> {
    std::env::current_dir().map_err(|error| {
        Failure::usage("the current directory cannot be used")
            .because(error)
            .hint("it may have been removed: change to another one, or give absolute paths")
    })
}

/// Where this user's programs keep what outlives them: `$XDG_STATE_HOME/polygram`, `~/.local/state/polygram`, or a folder
/// under the current directory.
pub(crate) fn state_folder() -> Outcome<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    match state {
        Some(state) => Ok(state.join("polygram")),
        None => Ok(current_folder()?.join("polygram-launch")),
    }
}

/// A run under a root.
#[derive(Clone, Debug)]
pub(crate) struct RunPlace {
    /// Its name.
    pub(crate) name: RunName,
    /// Where it is.
    pub(crate) root: Root,
}

impl RunPlace {
    /// Checks the name and resolves the root.
    pub(crate) fn resolve(args: &RunArgs) -> Outcome<RunPlace> {
        Ok(RunPlace {
            name: RunName::new(&*args.run).map_err(Failure::usage)?,
            root: Root::resolve(&args.root)?,
        })
    }

    /// Another run, or the same name under another root, which `option` names.
    pub(crate) fn other(&self, run: Option<&str>, (option, root): (&str, Option<&str>)) -> Outcome<RunPlace> {
        Ok(RunPlace {
            name: run.map_or(Ok(self.name.clone()), RunName::new).map_err(Failure::usage)?,
            root: root.map_or(Ok(self.root.clone()), |root| Root::of_option(option, Some(root)))?,
        })
    }
}

/// Folder of the pool that `polygram pool up` makes unless told otherwise, under the current directory.
const POOL_FOLDER: &str = "polygram-pool";

/// What a pool's folder holds.
#[derive(Clone, Debug)]
pub(crate) struct PoolFolder(pub(crate) PathBuf);

impl PoolFolder {
    /// The queue.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.sqlite")
    }

    /// The secret.
    pub(crate) fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    /// Where the coordinator listens.
    pub(crate) fn announcement(&self) -> PathBuf {
        self.0.join("coordinator.json")
    }
}

/// A pool that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct PoolPlace {
    /// Its coordinator, `host:port`.
    pub(crate) coordinator: String,
    /// Its secret.
    pub(crate) token: Token,
}

impl PoolPlace {
    /// Flags first, then the environment, then the pool of this directory.
    pub(crate) fn resolve(args: &PoolArgs) -> Outcome<PoolPlace> {
        let here = PoolFolder(PathBuf::from(POOL_FOLDER));
        let named = args.coordinator.clone().or_else(|| std::env::var("POLYGRAM_COORDINATOR").ok());
        let coordinator = match named {
            Some(address) => address,
            None => PoolAnnouncement::read(&here.announcement())
                .map_err(|error| Failure::usage("the pool of this directory is unreadable").because(error))?
                .map(|announcement| announcement.address.to_string())
                .ok_or_else(|| {
                    Failure::usage("no pool is named, and there is none in this directory").hint(
                        "give --coordinator HOST:PORT, or start one with `polygram pool up --workers N --shards M`",
                    )
                })?,
        };
        let file = args.token_file.clone();
        let file = file.or_else(|| std::env::var_os("POLYGRAM_TOKEN_FILE").map(PathBuf::from));
        let token = Token::read(&file.unwrap_or(here.token())).map_err(|error| {
            Failure::usage("the pool's secret cannot be read").because(error).hint("give --token-file FILE")
        })?;
        Ok(PoolPlace { coordinator, token })
    }
}

/// A run file as read, overridden and resolved.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// The resolved run.
    pub(crate) spec: RunSpec,
    /// Every key with its effective value and origin.
    pub(crate) origins: BTreeMap<String, (String, Origin)>,
    /// The effective run file, every key written.
    pub(crate) effective_toml: String,
    /// What the effective run file says.
    pub(crate) file: RunFile,
}

impl Configuration {
    /// Reads the run file, applies `--set` in order and then `--run`, and checks every rule.
    pub(crate) fn load(args: &RunFileArgs, run: Option<&str>) -> Outcome<Configuration> {
        let origin = args.run_file.display().to_string();
        let text = read_text(&args.run_file)?;
        let mut overrides = args.overrides.clone();
        if let Some(name) = run {
            let name = RunName::new(name).map_err(Failure::usage)?;
            overrides.push(format!("run.name=\"{name}\""));
        }
        let refused = |error: ConfigError| Failure::usage(error.to_string());
        let file = RunFile::parse(&text, &origin, &overrides).map_err(refused)?;
        Configuration::of(file, &text, &overrides).map_err(|error| match error {
            ConfigError::Invalid(message) => {
                let place = RunFile::place_of(&message, &text, &origin, &overrides);
                Failure::usage(format!("{place}: {message}"))
            }
            other => refused(other),
        })
    }

    /// Resolves `file`, which was read from `text` and `overrides`.
    pub(crate) fn of(file: RunFile, text: &str, overrides: &[String]) -> Result<Configuration, ConfigError> {
        Ok(Configuration {
            spec: file.resolve()?,
            origins: file.origins(text, overrides)?,
            effective_toml: file.to_toml()?,
            file,
        })
    }

    /// Writes the identities of the training data and of the held-out sets into the effective run file, with
    /// which the run is frozen.
    pub(crate) fn set_identities(&mut self, train: String, held_out: Vec<(String, String)>) -> Outcome<()> {
        let refused = |error: ConfigError| Failure::usage(error.to_string());
        self.spec.train_identity = Some(train.clone());
        self.file.data.train_identity = Some(train);
        if !held_out.is_empty() {
            let identities = HeldOutIdentities::named(held_out).map_err(Failure::usage)?;
            self.file.data.held_out_identity = Some(identities);
        }
        self.effective_toml = self.file.to_toml().map_err(refused)?;
        Ok(())
    }

    /// The effective configuration, one key a line, with its origin. Defaults only when `everything` is wanted.
    pub(crate) fn describe(&self, scope: KeyScope) -> String {
        let mut text = String::new();
        let mut section = "";
        for (key, (value, origin)) in &self.origins {
            let mark = match (origin, scope) {
                (Origin::Default, KeyScope::Written) => continue,
                (Origin::Default, KeyScope::All) => "  (default)",
                (Origin::File, _) => "",
                (Origin::Override, _) => "  (--set)",
            };
            let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
            if mark.is_empty() && parent == section {
                text.push_str(&format!("  {name}={value}"));
            } else {
                text.push_str(&format!("\n  {parent}: {name}={value}{mark}"));
            }
            section = if mark.is_empty() { parent } else { "" };
        }
        text.trim_start_matches('\n').to_owned()
    }
}

/// Which keys of a configuration are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyScope {
    /// Those that somebody wrote.
    Written,
    /// Defaults too.
    All,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_become_absolute() {
        let here = Path::new("/home/a");
        for (text, url) in [
            (None, "file:///home/a/polygram-root"),
            (Some("x"), "file:///home/a/x"),
            (Some("./x"), "file:///home/a/x"),
            (Some("/y"), "file:///y"),
            (Some("file:///z"), "file:///z"),
            (Some("s3://bucket/z"), "s3://bucket/z"),
        ] {
            assert_eq!(Root::from_text(("--root", text), here).unwrap().to_string(), url);
        }
        let of = |text| Root::from_text(("--to-root", Some(text)), here);
        let spaced = of("file:///a%20b").unwrap();
        assert_eq!((spaced.address().as_str(), spaced.to_string().as_str()), ("/a b", "file:///a%20b"));
        for text in ["file://relative", " ", "s3:/bucket", "~/runs"] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.starts_with("error: --to-root "), "{text}: {error}");
        }
    }

    #[test]
    fn a_folder_within_a_root_is_refused_with_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir_all(at("root/runs/first/coord")).unwrap();
        std::fs::create_dir_all(at("runs/x")).unwrap();
        std::fs::create_dir_all(at("runs/runs/first/coord")).unwrap();
        for inner in ["root/runs", "root/runs/first", "root/runs/"] {
            let error = Root::of_option("--root", Some(&at(inner))).unwrap_err().to_string();
            assert!(error.ends_with(&format!("hint: give --root {}", at("root"))), "{inner}: {error}");
        }
        // A root may have any name, and need not be there.
        for root in ["root", "runs", "root/other", "absent/runs"] {
            assert!(Root::of_option("--root", Some(&at(root))).is_ok(), "{root}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused_and_what_can_be_made_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_writable(&folder.path().join("a/b/c")).is_ok());
        std::fs::write(folder.path().join("file"), "x").unwrap();
        for path in ["/proc/self/x", "/proc/self/x/y"] {
            let failure = check_writable(Path::new(path)).unwrap_err();
            assert_eq!(failure.status.code(), 2, "{failure}");
            assert!(failure.to_string().contains("cannot be written"), "{failure}");
        }
        let below_a_file = check_writable(&folder.path().join("file/x")).unwrap_err().to_string();
        assert!(below_a_file.contains("file cannot be written"), "{below_a_file}");
    }

    #[test]
    fn configuration_shows_origins_and_takes_the_run_name() {
        let args = RunFileArgs {
            run_file: Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tiny.toml"),
            overrides: vec!["training.steps=7".into()],
        };
        let configuration = Configuration::load(&args, Some("42")).unwrap();
        assert_eq!(configuration.spec.name.as_str(), "42");
        let text = configuration.describe(KeyScope::Written);
        assert!(text.contains("steps=7  (--set)"), "{text}");
        assert!(!text.contains("(default)"), "{text}");
        assert!(configuration.describe(KeyScope::All).contains("beta1=0.9  (default)"));
    }
}
