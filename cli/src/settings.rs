//! The command line resolved: a root that names a place, a run name that is legal, a run file that was read,
//! overridden and checked. Commands take these and check nobody's spelling again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use polygram_domain::run_file::Origin;
use polygram_domain::{ConfigError, HeldOutIdentities, RunFile, RunName, RunSpec};
use polygram_proto::control::Token;
use polygram_proto::pool::PoolAnnouncement;

use crate::args::{PoolArgs, RootArgs, RunArgs, RunFileArgs};
use crate::exit::{Failure, Outcome};

/// Folder of runs when `--root` is not given, under the current directory.
const DEFAULT_ROOT: &str = "polygram-root";

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
        let text = args.root.as_deref();
        // What is absolute needs no current directory, which may have been removed.
        let is_absolute = text.is_some_and(|text| text.starts_with('/') || text.contains("://"));
        let here = if is_absolute { PathBuf::from("/") } else { current_folder()? };
        Root::from_text(text, &here)
    }

    fn from_text(text: Option<&str>, here: &Path) -> Outcome<Root> {
        let text = text.unwrap_or(DEFAULT_ROOT);
        if text.trim().is_empty() {
            return Err(Failure::usage("--root is empty").hint("give a folder or file:///path"));
        }
        let folder = match text.split_once("://") {
            Some(("file", _)) => {
                url::Url::parse(text).ok().and_then(|url| url.to_file_path().ok()).ok_or_else(|| {
                    Failure::usage(format!("--root {text} is not a file URL"))
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
        let text = std::fs::read_to_string(&args.run_file)
            .map_err(|error| Failure::usage(format!("cannot read the run file {origin}")).because(error))?;
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
            assert_eq!(Root::from_text(text, here).unwrap().to_string(), url);
        }
        let spaced = Root::from_text(Some("file:///a%20b"), here).unwrap();
        assert_eq!((spaced.address().as_str(), spaced.to_string().as_str()), ("/a b", "file:///a%20b"));
        assert!(Root::from_text(Some("file://relative"), here).is_err());
        assert!(Root::from_text(Some(" "), here).is_err());
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
