//! Taking hold of a run: read its configuration, find what it continues from, claim its term.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::renewal::TermObject;
use polygram_checkpoint::rollback::policy_of;
use polygram_checkpoint::{ConfigHash, CoordinatorAddress, Damaged, Lease, QuarantineReason, RunStore, Term};
use polygram_domain::control::RunStatus;
use polygram_domain::spikes::PolicyState;
use polygram_domain::{RunFile, RunSpec, Step};
use polygram_process::unix_ms;
use polygram_proto::control::Announcement;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::core::{Earlier, Resume, Settings, State};
use crate::fit::check_fit;
use crate::leadership::{self, Claim};
use crate::ledger::Base;
use crate::opening_error::OpeningError;
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
    /// Checkpoints that were quarantined on the way to it.
    pub(crate) quarantined: Vec<(Step, String)>,
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
    let quarantined: Vec<_> =
        found.damaged.into_iter().map(|damaged| (damaged.step, damaged.reason)).collect();
    let state = State::new(settings, clock.now()).with_quarantined(&quarantined, found.base.step);
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
        quarantined,
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
