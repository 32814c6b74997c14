//! A run of the tiny configuration in a folder of its own, and the questions that one can ask about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use polygram_domain::RunFile;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Finished, Moto, RudeProxy, Running, manifests, program, repository, wait_until};

/// A whole session of a tiny run ends long before this, on a busy machine too.
const SESSION_LIMIT: Duration = Duration::from_secs(180);
/// A question to a run is answered long before this.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);

/// What computes losses and gradients in a cluster's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The model.
    Torch,
    /// The small stand-in, for claims about everything around the model.
    Drill,
}

/// A run under a root in a temporary folder.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    run_file: PathBuf,
    root: String,
    sets: Vec<String>,
    /// Of every process that the cluster or a question starts.
    variables: Vec<(String, String)>,
}

/// A digest of a committed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Of the whole state.
    pub digest: String,
    /// Of each part.
    pub parts: BTreeMap<String, String>,
    /// The state's version.
    pub step: u64,
}

/// What `polygram status` says.
#[derive(Clone, Debug)]
pub struct Status {
    /// The run's state, in lower case.
    pub state: String,
    /// Updates applied.
    pub step: u64,
    /// Its processes.
    pub members: Vec<Member>,
}

/// One process of a run.
#[derive(Clone, Debug)]
pub struct Member {
    /// `worker` or a word with `shard` in it, in lower case.
    pub role: String,
    /// Rank or shard index.
    pub index: u64,
    /// Its process.
    pub pid: u32,
    /// Its phase.
    pub phase: String,
    /// The step it is at.
    pub step: u64,
}

impl Status {
    /// The member of `role` (`worker` or `shard`) with this index.
    pub fn member(&self, role: &str, index: u64) -> Result<&Member> {
        self.members
            .iter()
            .find(|member| member.role.contains(role) && member.index == index)
            .ok_or_else(|| anyhow!("no {role} {index} among {:?}", self.members))
    }
}

impl Cluster {
    /// The run of `configs/tiny.toml`, computed by `engine`, in a new folder.
    pub fn tiny(engine: Engine) -> Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let run_file = repository().join("configs/tiny.toml");
        let engine = match engine {
            Engine::Torch => "torch",
            Engine::Drill => "drill",
        };
        let root = format!("file://{}", folder.path().join("root").display());
        let sets = vec![format!("device.engine={engine}")];
        Ok(Cluster { folder, run_file, root, sets, variables: Vec::new() })
    }

    /// The same, its root a prefix of a bucket of `server` that no other cluster has.
    pub fn on_s3(self, server: &Moto) -> Result<Cluster> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static BUCKET: OnceLock<Result<(), String>> = OnceLock::new();
        let made = BUCKET.get_or_init(|| server.make_bucket("clusters").map_err(|error| error.to_string()));
        made.clone().map_err(|error| anyhow!(error))?;
        let root = format!("s3://clusters/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Ok(Cluster { root, variables: server.variables().into_iter().map(owned).collect(), ..self })
    }

    /// The same, reached over `proxy`.
    pub fn over(mut self, proxy: &RudeProxy) -> Cluster {
        self.variables.retain(|(key, _)| key != "AWS_ENDPOINT_URL");
        self.variables.push(("AWS_ENDPOINT_URL".into(), proxy.endpoint()));
        self
    }

    /// The same with a copy of everything that `other` has in its root, a folder.
    pub fn with_root_of(self, other: &Cluster) -> Result<Cluster> {
        let mut open = vec![(other.root(), self.root())];
        while let Some((from, to)) = open.pop() {
            std::fs::create_dir_all(&to)?;
            for entry in std::fs::read_dir(&from)? {
                let entry = entry?;
                let (from, to) = (entry.path(), to.join(entry.file_name()));
                if from.is_dir() {
                    open.push((from, to));
                } else {
                    std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
                }
            }
        }
        Ok(self)
    }

    /// The same with keys overridden in every session.
    pub fn with(mut self, sets: &[&str]) -> Cluster {
        self.sets.extend(sets.iter().map(|set| (*set).to_owned()));
        self
    }

    /// The same on the token files `prefix` instead of synthetic data.
    pub fn on_segments(mut self, prefix: &Path) -> Result<Cluster> {
        let text = std::fs::read_to_string(&self.run_file)?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("synthetic_")).collect();
        let path = prefix.display().to_string();
        let data = format!("[data]\ntrain = {path:?}\nheld_out = {path:?}");
        self.run_file = self.folder.path().join("run.toml");
        std::fs::write(&self.run_file, kept.join("\n").replacen("[data]", &data, 1))?;
        Ok(self)
    }

    /// The run file with everything that is overridden in every session.
    pub fn effective_toml(&self) -> Result<String> {
        let text = std::fs::read_to_string(&self.run_file)?;
        let file = RunFile::parse(&text, &self.run_file.display().to_string(), &self.sets)?;
        Ok(file.to_toml()?)
    }

    /// The folder of everything that belongs to this cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the environment of its processes holds beside the usual.
    pub fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// The folder of its runs, unless they lie elsewhere.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Where its programs keep what they would keep in the user's home.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The URL of its root.
    pub fn root_url(&self) -> &str {
        &self.root
    }

    /// Starts a session of the run, with keys overridden for it alone.
    pub fn start(&self, sets: &[&str]) -> Result<Running> {
        self.start_with(sets, &[])
    }

    /// As [`Cluster::start`], with variables in the environment of every process. Where one of them orders faults, they are
    /// injected.
    pub fn start_with(&self, sets: &[&str], variables: &[(&str, &str)]) -> Result<Running> {
        let mut command = self.train_command(sets)?;
        command.envs(variables.iter().copied());
        if variables.iter().any(|(key, _)| *key == polygram_faults::VARIABLE) {
            command.arg(polygram_faults::FLAG);
        }
        Running::start(command, self.folder.path())
    }

    /// The command that [`Cluster::start`] runs.
    pub fn train_command(&self, sets: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("polygram")?);
        command
            .current_dir(self.folder.path())
            .env("XDG_STATE_HOME", self.state())
            .envs(self.variables.iter().map(|(key, value)| (key, value)))
            .arg("train")
            .arg(&self.run_file)
            .args(["--root", self.root_url()]);
        for set in self.sets.iter().map(String::as_str).chain(sets.iter().copied()) {
            command.args(["--set", set]);
        }
        Ok(command)
    }

    /// Runs a session to its end, however it ends.
    pub fn train(&self, sets: &[&str]) -> Result<Finished> {
        self.start(sets)?.wait(SESSION_LIMIT)
    }

    /// Runs `polygram` with `arguments`, in the cluster's folder.
    pub fn polygram(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(program("polygram")?);
        command.current_dir(self.folder.path()).args(arguments);
        command.envs(self.variables.iter().map(|(key, value)| (key, value)));
        Running::start(command, self.folder.path())?.wait(QUESTION_LIMIT)
    }

    fn ask(&self, command: &str, more: &[&str]) -> Result<Finished> {
        let arguments = [&[command, "tiny", "--root", self.root_url()], more].concat();
        self.polygram(&arguments)
    }

    /// `polygram ckpt <command> tiny …`, however it ends.
    pub fn ckpt(&self, command: &str, more: &[&str]) -> Result<Finished> {
        let arguments = [&["ckpt", command, "tiny", "--root", self.root_url()], more].concat();
        self.polygram(&arguments)
    }

    /// The same, its answer as JSON, whatever its exit status.
    pub fn ckpt_json(&self, command: &str, more: &[&str]) -> Result<Value> {
        let finished = self.ckpt(command, &[more, &["-o", "json"]].concat())?;
        serde_json::from_str(&finished.stdout).with_context(|| finished.said())
    }

    /// The digest of the newest commit.
    pub fn digest(&self) -> Result<Digest> {
        self.digest_of(&[])
    }

    /// The digest of the commit of `step`.
    pub fn digest_at(&self, step: u64) -> Result<Digest> {
        self.digest_of(&["--step", &step.to_string()])
    }

    fn digest_of(&self, more: &[&str]) -> Result<Digest> {
        let finished = self.ask("digest", &[&["-o", "json"], more].concat())?.success()?;
        let value: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
        let parts = value["parts"].as_object().context("no parts")?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a digest is no string");
        Ok(Digest {
            digest: text(&value["digest"])?,
            parts: parts.iter().map(|(name, part)| Ok((name.clone(), text(part)?))).collect::<Result<_>>()?,
            step: value["step"].as_u64().context("no step")?,
        })
    }

    /// The recorded steps: step → (loss, gradient norm, learning rate) as bits, so that equal means equal.
    pub fn metrics(&self) -> Result<BTreeMap<u64, [u64; 3]>> {
        let finished = self.ask("metrics", &["-o", "jsonl"])?.success()?;
        let mut steps = BTreeMap::new();
        for line in finished.stdout.lines() {
            let record: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            let step = record["step"].as_u64().with_context(|| format!("no step: {line}"))?;
            let bits = |key: &str| {
                let number = record[key].as_f64().with_context(|| format!("no {key}: {line}"))?;
                Ok::<u64, anyhow::Error>(number.to_bits())
            };
            let values = [bits("loss")?, bits("grad_norm")?, bits("lr")?];
            if steps.insert(step, values).is_some() {
                bail!("step {step} is recorded twice");
            }
        }
        Ok(steps)
    }

    /// The ledger, one line a step as it is stored; the command also checks it.
    pub fn ledger(&self) -> Result<Vec<String>> {
        let finished = self.ask("ledger", &["-o", "jsonl"])?.success()?;
        Ok(finished.stdout.lines().map(str::to_owned).collect())
    }

    /// `polygram verify-replay tiny …`, however it ends.
    pub fn verify_replay(&self, more: &[&str]) -> Result<Finished> {
        let mut command = Command::new(program("polygram")?);
        command.current_dir(self.folder.path()).env("XDG_STATE_HOME", self.state());
        command.args(["verify-replay", "tiny", "--root", self.root_url()]);
        command.args(more).envs(self.variables.iter().map(|(key, value)| (key, value)));
        Running::start(command, self.folder.path())?.wait(SESSION_LIMIT)
    }

    /// What the run says about itself.
    pub fn status(&self) -> Result<Status> {
        let finished = self.ask("status", &["-o", "json"])?.success()?;
        let value: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
        let word = |value: &Value| value.as_str().map(str::to_lowercase).context("not a word");
        let number = |value: &Value| value.as_u64().context("not a number");
        let members = value["members"].as_array().context("no members")?;
        Ok(Status {
            state: word(&value["state"])?,
            step: number(&value["step"])?,
            members: members
                .iter()
                .map(|member| {
                    Ok(Member {
                        role: word(&member["role"])?,
                        index: number(&member["index"])?,
                        pid: u32::try_from(number(&member["pid"])?)?,
                        phase: word(&member["phase"])?,
                        step: number(&member["step"])?,
                    })
                })
                .collect::<Result<_>>()
                .with_context(|| finished.said())?,
        })
    }

    /// Waits until the running session has applied at least `step` updates and lists all its members.
    pub fn await_step(&self, running: &mut Running, step: u64) -> Result<Status> {
        wait_until(&format!("step {step}"), SESSION_LIMIT, || {
            if let Some(finished) = running.poll()? {
                bail!("the run ended before step {step}: {}\n{}", finished.status, finished.said());
            }
            // Before the coordinator is up there is no answer.
            Ok(self.status().ok().filter(|status| status.step >= step && !status.members.is_empty()))
        })
    }

    /// The committed steps, ascending.
    pub fn commits(&self) -> Result<Vec<u64>> {
        let found = manifests(&self.root().join("runs/tiny"))?;
        Ok(found.into_iter().map(|(step, _)| step).collect())
    }
}
