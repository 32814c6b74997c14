//! A pool of real processes in a folder of its own, and the questions that one can ask about it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Finished, Running, program, repository, wait_until};

/// A pool answers long before this, and a short job ends long before it, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(240);

/// A pool under a temporary folder; its runs are of `configs/tiny.toml`, computed by the drill.
#[derive(Debug)]
pub struct PoolCluster {
    folder: TempDir,
}

/// What `polygram jobs` says of a job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number.
    pub job: u64,
    /// Its run.
    pub run: String,
    /// Its state, in lower case.
    pub state: String,
    /// Why.
    pub reason: String,
    /// When it first had its members.
    pub started_unix_ms: Option<u64>,
    /// When it was over.
    pub ended_unix_ms: Option<u64>,
    /// How often its run was opened.
    pub sessions: u64,
    /// Workers that it has.
    pub workers: u64,
    /// Updates applied, as far as known.
    pub step: u64,
}

/// What `polygram pool members` says of a member.
#[derive(Clone, Debug)]
pub struct PoolMember {
    /// `worker` or `shard`.
    pub role: String,
    /// Its process.
    pub pid: u32,
    /// The job that it is placed in, and its rank or index there.
    pub placed: Option<(u64, u64)>,
}

impl PoolCluster {
    /// An empty folder.
    pub fn new() -> Result<PoolCluster> {
        Ok(PoolCluster { folder: tempfile::tempdir()? })
    }

    /// The folder of everything that belongs to this pool.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `polygram pool up`.
    pub fn up(&self, workers: u32, shards: u32) -> Result<Running> {
        let (workers, shards) = (workers.to_string(), shards.to_string());
        self.start("polygram", &["pool", "up", "--workers", &workers, "--shards", &shards, "--root", "root"])
    }

    /// Starts one of the programs in the pool's folder.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        let mut command = Command::new(program(name)?);
        command.current_dir(self.folder()).args(arguments);
        Running::start(command, self.folder())
    }

    /// Starts a coordinator alone, and waits until it listens. Members are the caller's.
    pub fn start_coordinator(&self) -> Result<(Running, String)> {
        let folder = self.folder().join("polygram-pool");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("token"), "a-secret-of-this-test-alone\n")?;
        let files = ["polygram-pool/state.sqlite", "polygram-pool/token", "polygram-pool/coordinator.json"];
        let [state, token, announcement] = files;
        let arguments = [
            "pool",
            "--state",
            state,
            "--root",
            "root",
            "--token-file",
            token,
            "--announce-file",
            announcement,
        ];
        let mut running = self.start("polygram-coordinator", &arguments)?;
        let address = wait_until("the pool to listen", LIMIT, || {
            if let Some(finished) = running.poll()? {
                bail!("the coordinator ended: {}", finished.said());
            }
            let Ok(text) = std::fs::read_to_string(self.folder().join(announcement)) else { return Ok(None) };
            let value: Value = serde_json::from_str(&text)?;
            Ok(value["address"].as_str().map(str::to_owned))
        })?;
        Ok((running, address))
    }

    /// Starts a member alone.
    pub fn start_member(&self, name: &str, pool: &str) -> Result<Running> {
        self.start(name, &["--pool", pool, "--token-file", "polygram-pool/token"])
    }

    /// Runs `polygram` with `arguments` in the pool's folder, however it ends.
    pub fn polygram(&self, arguments: &[&str]) -> Result<Finished> {
        self.start("polygram", arguments)?.wait(LIMIT)
    }

    /// Submits the tiny run, drilled, as `run` with keys overridden, once there is a pool to submit to.
    pub fn submit(&self, run: &str, sets: &[&str], more: &[&str]) -> Result<u64> {
        let file = repository().join("configs/tiny.toml").display().to_string();
        let mut arguments = vec!["submit", &file, "--run", run, "-o", "json", "--set", "device.engine=drill"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        arguments.extend(more);
        wait_until("a pool to submit to", LIMIT, || {
            let finished = self.polygram(&arguments)?;
            if !finished.status.success() {
                // It is not up yet.
                if finished.stderr.contains("no pool is named") || finished.stderr.contains("cannot reach") {
                    return Ok(None);
                }
                bail!("not submitted: {}", finished.said());
            }
            let value: Value = serde_json::from_str(&finished.stdout)?;
            value["job"].as_u64().map(Some).ok_or_else(|| anyhow!("no job: {}", finished.said()))
        })
    }

    /// Every job that the pool ever had.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let finished = self.polygram(&["jobs", "--all", "-o", "json"])?.success()?;
        let value: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
        let jobs = value.as_array().context("no list")?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a word");
        let number = |value: &Value| value.as_u64().context("not a number");
        jobs.iter()
            .map(|job| {
                Ok(Job {
                    job: number(&job["job"])?,
                    run: text(&job["run"])?,
                    state: text(&job["state"])?,
                    reason: text(&job["reason"])?,
                    started_unix_ms: job["started_unix_ms"].as_u64(),
                    ended_unix_ms: job["ended_unix_ms"].as_u64(),
                    sessions: number(&job["sessions"])?,
                    workers: number(&job["workers"])?,
                    step: job["step"].as_u64().unwrap_or(0),
                })
            })
            .collect()
    }

    /// One of them.
    pub fn job(&self, number: u64) -> Result<Job> {
        self.jobs()?.into_iter().find(|job| job.job == number).with_context(|| format!("no job {number}"))
    }

    /// Waits until `holds` of a job. A pool that does not answer meanwhile is asked again; a job that failed is an error.
    pub fn await_job(&self, number: u64, what: &str, holds: impl Fn(&Job) -> bool) -> Result<Job> {
        let what = format!("job {number}: {what}");
        let waited = wait_until(&what, LIMIT, || {
            let Ok(job) = self.job(number) else { return Ok(None) };
            if holds(&job) {
                return Ok(Some(job));
            }
            if job.state == "failed" {
                bail!("{what}: {job:?}");
            }
            Ok(None)
        });
        waited.with_context(|| format!("{:?}, members {:?}", self.jobs(), self.members()))
    }

    /// Who offers itself.
    pub fn members(&self) -> Result<Vec<PoolMember>> {
        let finished = self.polygram(&["pool", "members", "-o", "json"])?.success()?;
        let value: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
        let members = value.as_array().context("no list")?;
        members
            .iter()
            .map(|member| {
                let seat = &member["seat"];
                Ok(PoolMember {
                    role: member["role"].as_str().context("no role")?.to_owned(),
                    pid: u32::try_from(member["pid"].as_u64().context("no pid")?)?,
                    placed: seat["job"].as_u64().zip(seat["slot"]["index"].as_u64()),
                })
            })
            .collect()
    }

    /// The digest of a run's newest commit, and its step.
    pub fn digest(&self, run: &str) -> Result<(String, u64)> {
        let finished = self.polygram(&["digest", run, "--root", "root", "-o", "json"])?.success()?;
        let value: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.said())?;
        let digest = value["digest"].as_str().context("no digest")?.to_owned();
        Ok((digest, value["step"].as_u64().context("no step")?))
    }
}
