//! Taking hold of a run: read its configuration, find what it continues from, claim its term.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::renewal::TermObject;
use polygram_checkpoint::rollback::policy_of;
use polygram_checkpoint::{
    CheckpointError, ConfigHash, CoordinatorAddress, CoverError, Damaged, Lease, Manifest, QuarantineReason,
    RunStore, Term, keys,
};
use polygram_domain::run_file::Change;
use polygram_domain::spikes::PolicyState;
use polygram_domain::{ConfigError, RunFile, RunSpec, Step};
use polygram_process::unix_ms;
use polygram_proto::control::{Announcement, RunStatus};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::compatibility::{self, Incompatible};
use crate::core::{Earlier, Resume, Settings, State};
use crate::leadership::{self, Claim};
use crate::ledger::Base;
use crate::points::{self, Points};
use crate::room;

/// What a coordinator is given.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The effective configuration, TOML.
    pub config_toml: String,
    /// Where that text came from, for messages.
    pub config_name: String,
    /// Root of the object store.
    pub root: String,
    /// What becomes of another coordinator that leads the run.
    pub claim: Claim,
}

/// Why a run cannot be led.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The configuration is not legal.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The configuration does not fit the checkpoint.
    #[error("run {run} cannot be resumed: {source}")]
    Incompatible {
        /// The run.
        run: String,
        /// What changed.
        source: Incompatible,
    },
    /// The checkpoint does not hold the state of the configuration.
    #[error("run {run} cannot be resumed from step {step}: {source}")]
    Cover {
        /// The run.
        run: String,
        /// The checkpoint's step.
        step: u64,
        /// What is missing or too much.
        source: CoverError,
    },
    /// The configuration that the checkpoint was made with is not in the store.
    #[error(
        "run {run} cannot be resumed from step {step}: {key}, the configuration of that step, is not in the store any more \
         (has a rule of the store removed what is old?); start once with the very run file and overrides of that time, \
         which are recognised and written again, or copy the object back"
    )]
    ConfigGone {
        /// The run.
        run: String,
        /// The checkpoint's step.
        step: u64,
        /// The configuration's object.
        key: String,
    },
    /// Checkpoints exist, but none can be believed.
    #[error(
        "run {run} has {count} checkpoints and none of them verifies (newest: {key}: {reason}); repair the store or \
         train under another run name"
    )]
    AllDamaged {
        /// The run.
        run: String,
        /// How many.
        count: usize,
        /// The newest one's object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another coordinator leads the run right now.
    #[error(
        "run {run} is led by {leader}; stop it there first, or take the run over with --take-over: the other one ends then, \
         and what it has not committed is computed again"
    )]
    Led {
        /// The run.
        run: String,
        /// That coordinator, its host and when it was last heard.
        leader: String,
    },
}

impl OpeningError {
    /// Whether the user asked for something that cannot be: the configuration or the command is what has to be changed.
    /// Nothing of the run was written then.
    pub fn is_of_configuration(&self) -> bool {
        match self {
            OpeningError::Config(_) | OpeningError::Incompatible { .. } | OpeningError::Led { .. } => true,
            OpeningError::Store(error) => error.is_of_root() || error.is_of_another_run(),
            _ => false,
        }
    }
}

/// A run that this process may lead.
#[derive(Debug)]
pub struct Opened {
    pub(crate) spec: RunSpec,
    pub(crate) config_toml: String,
    pub(crate) config: ConfigHash,
    pub(crate) root: String,
    pub(crate) store: RunStore,
    pub(crate) points: Option<Points>,
    pub(crate) term: Term,
    pub(crate) claim: TermObject,
    pub(crate) lease: Lease,
    pub(crate) state: State,
    pub(crate) base: Base,
    /// Checkpoints that were set aside on the way to it.
    pub(crate) fallen: Vec<(Step, String)>,
    pub(crate) policy: PolicyState,
    pub(crate) clock: Clock,
    pub(crate) metrics: Option<TcpListener>,
    pub(crate) status: watch::Sender<Arc<RunStatus>>,
    /// Looks for recovery points that nobody names any more.
    pub(crate) scan: AbortOnDropHandle<()>,
    address: SocketAddr,
}

impl Opened {
    /// What the launcher is told.
    pub fn announcement(&self) -> Announcement {
        let settings = self.state.settings();
        Announcement {
            address: self.address,
            pid: std::process::id(),
            run: settings.run.clone(),
            attempt: settings.attempt,
            state: self.state.run_state(),
            message: self.state.message().to_owned(),
            resume_step: self.state.resume_step().0,
        }
    }

    /// Tells metrics on `listener` while the run is led.
    pub fn with_metrics(self, listener: TcpListener) -> Opened {
        Opened { metrics: Some(listener), ..self }
    }

    /// The run's status from now on.
    pub fn statuses(&self) -> watch::Receiver<Arc<RunStatus>> {
        self.status.subscribe()
    }

    /// The resolved run.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }
}

/// Takes hold of the run of `origin` for a coordinator that listens on `address`. Nothing of the
/// run is written before the configuration was found to fit what is there.
pub async fn open(origin: Origin, address: SocketAddr) -> Result<Opened, OpeningError> {
    let file = RunFile::parse(&origin.config_toml, &origin.config_name, &[])?;
    let spec = file.resolve()?;
    let store = RunStore::create(&origin.root, &spec.name)?;
    let has_room = room::has_room(&store).await?;
    if origin.claim == Claim::IfVacant
        && let Some(leader) = leadership::leader(&store, &address.to_string()).await?
    {
        return Err(OpeningError::Led { run: spec.name.to_string(), leader });
    }
    if !has_room {
        room::make_room(&store, &file, &spec).await?;
    }
    // Quarantine checkpoints superseded by a rollback whose coordinator crashed half-way.
    for step in store.quarantine_superseded(&store.rollbacks().await?).await? {
        tracing::warn!(
            step = step.0,
            "checkpoint quarantined: the run was rolled back from a spike before it"
        );
    }
    let points = Points::open(&origin.root, &spec).await;
    let found = find_checkpoint((&store, points.as_ref()), &file, &spec).await?;
    let from = found.resume.as_ref().map_or(Step(0), |resume| resume.step);
    let scan = points::tell_of_forgotten(store.clone(), origin.root.clone(), spec.clone(), from);
    let scan = AbortOnDropHandle::new(tokio::spawn(scan));
    let claim = CoordinatorAddress {
        address: address.to_string(),
        pid: std::process::id(),
        started_unix_ms: unix_ms(),
    };
    let term = store.claim_term(&claim).await?;
    let detection = Duration::from_secs_f64(spec.failure_detection_seconds);
    let lease = Lease::new(term, &claim, detection);
    let claim = store.term_object(term).await?;
    polygram_faults::pass(polygram_faults::Point::CoordinatorTermClaimed);
    store.write_lease(&lease).await?;
    for damaged in &found.damaged {
        tracing::error!(
            key = damaged.key,
            reason = damaged.reason,
            "checkpoint quarantined: it does not verify"
        );
        store.quarantine(damaged.step, &QuarantineReason::Damaged).await?;
    }
    let config = store.put_config(&origin.config_toml).await?;
    if let Some(points) = &points {
        points.put_config(&origin.config_toml).await;
    }
    let clock = Clock::start();
    // Terms of one run number its starts; four billion of them will do.
    let attempt = u32::try_from(term.0).unwrap_or(u32::MAX);
    let settings = Settings::of(&spec, (found.resume, found.policy.clone()), attempt);
    let settings = Settings { committed: found.committed, earlier: earlier(&store, from).await, ..settings };
    let fallen: Vec<_> = found.damaged.into_iter().map(|damaged| (damaged.step, damaged.reason)).collect();
    let state = State::new(settings, clock.now()).with_set_aside(&fallen, found.base.step);
    let first = Arc::new(state.status(clock.now()));
    Ok(Opened {
        config_toml: origin.config_toml,
        root: origin.root,
        spec,
        config,
        store,
        points,
        term,
        claim,
        lease,
        state,
        fallen,
        base: found.base,
        policy: found.policy.clone(),
        clock,
        metrics: None,
        status: watch::Sender::new(first),
        scan,
        address,
    })
}

/// What earlier attempts have reported of the state version `resumed`; nothing where their status cannot be read.
async fn earlier(store: &RunStore, resumed: Step) -> Earlier {
    match store.read_status::<RunStatus>().await {
        Ok(Some(status)) => Earlier::of(status, resumed),
        Ok(None) => Earlier::default(),
        Err(error) => {
            tracing::warn!(%error, "the status of the attempt before cannot be read; its losses are not shown");
            Earlier::default()
        }
    }
}

struct Found {
    resume: Option<Resume>,
    /// The newest commit.
    committed: Option<Step>,
    base: Base,
    policy: PolicyState,
    damaged: Vec<Damaged>,
}

/// What the run goes on from: the newest commit, or a recovery point behind it.
async fn find_checkpoint(
    (store, points): (&RunStore, Option<&Points>),
    file: &RunFile,
    spec: &RunSpec,
) -> Result<Found, OpeningError> {
    let run = spec.name.to_string();
    let rollbacks = store.rollbacks().await?;
    let latest = store.latest_manifest().await?;
    let committed = latest.manifest.as_ref().map(|manifest| manifest.step);
    let point = match points {
        Some(points) => points.newest(store, &rollbacks, (committed, Step(spec.last_step()))).await,
        None => None,
    };
    let point = point.map(|manifest| (Resume::at_point(manifest.step), manifest));
    let commit = latest.manifest.map(|manifest| (Resume::at(manifest.step), manifest));
    let Some((resume, manifest)) = point.or(commit) else {
        let mut damaged = latest.damaged;
        if damaged.is_empty() {
            // A run that had checkpoints does not begin afresh because they are gone.
            damaged = store.quarantined_as_damaged(&rollbacks).await?;
        }
        if let Some(newest) = damaged.first() {
            return Err(OpeningError::AllDamaged {
                run,
                count: damaged.len(),
                key: newest.key.clone(),
                reason: newest.reason.clone(),
            });
        }
        let policy = policy_of(None, &rollbacks);
        let base = Base::genesis();
        return Ok(Found { resume: None, committed, base, policy, damaged: Vec::new() });
    };
    for change in check_fit(store, &manifest, file, spec).await? {
        tracing::info!(since_step = manifest.step.0, "changed: {change}");
    }
    let base = Base::of(store, &manifest).await?;
    let policy = policy_of(Some(&manifest), &rollbacks);
    Ok(Found { resume: Some(resume), committed, base, policy, damaged: latest.damaged })
}

/// Checks that the run may go on from `manifest`, and answers which settings changed since it was made.
pub(crate) async fn check_fit(
    store: &RunStore,
    manifest: &Manifest,
    file: &RunFile,
    spec: &RunSpec,
) -> Result<Vec<Change>, OpeningError> {
    let run = || spec.name.to_string();
    let before = match store.read_config(&manifest.config).await {
        Ok(before) => before,
        Err(CheckpointError::Missing { key }) => {
            // The same configuration again needs no comparison, and is written again.
            let given = file.to_toml()?;
            if ConfigHash::of(&given) != manifest.config {
                return Err(OpeningError::ConfigGone { run: run(), step: manifest.step.0, key });
            }
            given
        }
        Err(error) => return Err(error.into()),
    };
    let before = RunFile::parse(&before, &keys::config(&manifest.config.0), &[])?;
    let changes = compatibility::check(&before, file, manifest.step.0)
        .map_err(|source| OpeningError::Incompatible { run: run(), source })?;
    manifest.check_cover(spec).map_err(|source| OpeningError::Cover {
        run: run(),
        step: manifest.step.0,
        source,
    })?;
    Ok(changes)
}
