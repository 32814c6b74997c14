//! The coordinator's hand on recovery points: the newest one that may be gone on from, and keeping the next.
//!
//! They lie in a root of their own, which may be lost at any time. So nothing that is wrong with them ends a run: it is told,
//! and the run goes on from its last commit. A recovery point counts only if the run's own ledger has the line that it names;
//! one of another past, or of another run of that name, is quarantined.

use std::collections::BTreeSet;
use std::time::Duration;

use polygram_checkpoint::{
    CheckpointError, ConfigHash, Manifest, QuarantineReason, RollbackRecord, RunStore, keys,
};
use polygram_domain::{RunFile, RunSpec, Step};

/// The place of recovery points.
#[derive(Clone, Debug)]
pub(crate) struct Points {
    store: RunStore,
}

/// Tells of recovery points newer than `from`, where the run goes on, that lie in a place which an earlier configuration of
/// the run names and `spec` does not: nobody looks for them there any more. Reads every configuration that the run ever
/// had, so nobody should wait for it. What cannot be read is passed over.
pub(crate) async fn tell_of_forgotten(run: RunStore, root: String, spec: RunSpec, from: Step) {
    let place = |spec: &RunSpec| spec.recovery_points.as_ref().map(|points| points.root(&root));
    let (looked_at, mut told) = (place(&spec), BTreeSet::new());
    for hash in run.configs().await.unwrap_or_default() {
        let Ok(text) = run.read_config(&hash).await else { continue };
        let earlier = RunFile::parse(&text, &keys::config(&hash.0), &[]).and_then(|file| file.resolve());
        let Some(place) = earlier.ok().as_ref().and_then(place) else { continue };
        if Some(&place) == looked_at.as_ref() || !told.insert(place.clone()) {
            continue;
        }
        let Ok(points) = RunStore::open(&place, &spec.name) else { continue };
        let newest = points.committed_steps().await.ok().and_then(|steps| steps.last().copied());
        if let Some(newest) = newest.filter(|newest| *newest > from) {
            tracing::warn!(
                newest = newest.0,
                from = from.0,
                place,
                "recovery points are not gone on from: the run file does not name their place any more; to use them, stop \
                 this run and put its [recovery_points] back"
            );
        }
    }
}

impl Points {
    /// Those of `spec` under `root`; `None` where it makes none, or where their place cannot be used.
    pub(crate) async fn open(root: &str, spec: &RunSpec) -> Option<Points> {
        match Points::try_open(root, spec).await {
            Ok(points) => points,
            Err(error) => {
                tracing::error!(%error, "recovery points cannot be used; a loss costs the steps since the last commit");
                None
            }
        }
    }

    async fn try_open(root: &str, spec: &RunSpec) -> Result<Option<Points>, CheckpointError> {
        let Some(store) = RunStore::of_points(root, spec)? else { return Ok(None) };
        store.root().probe_conditional_create().await?;
        Ok(Some(Points { store }))
    }

    /// Freezes the configuration beside the points too, so that they can be read without the run.
    pub(crate) async fn put_config(&self, config_toml: &str) {
        if let Err(error) = self.store.put_config(config_toml).await {
            tracing::warn!(%error, "the configuration is not written beside the recovery points");
        }
    }

    /// The newest point that is newer than `committed` and before `last`, where this session ends. What does not verify is
    /// quarantined on the way.
    pub(crate) async fn newest(
        &self,
        run: &RunStore,
        rollbacks: &[RollbackRecord],
        (committed, last): (Option<Step>, Step),
    ) -> Option<Manifest> {
        match self.try_newest(run, rollbacks, (committed, last)).await {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::error!(%error, "recovery points cannot be read: going on from the last commit");
                None
            }
        }
    }

    async fn try_newest(
        &self,
        run: &RunStore,
        rollbacks: &[RollbackRecord],
        (committed, last): (Option<Step>, Step),
    ) -> Result<Option<Manifest>, CheckpointError> {
        self.quarantine_superseded(rollbacks).await?;
        let latest = self.store.latest_manifest().await?;
        for damaged in &latest.damaged {
            tracing::error!(
                key = damaged.key,
                reason = damaged.reason,
                "recovery point quarantined: it is damaged"
            );
            self.store.quarantine(damaged.step, &QuarantineReason::Damaged).await?;
        }
        let newer =
            latest.manifest.filter(|manifest| Some(manifest.step) > committed && manifest.step < last);
        let Some(manifest) = newer else { return Ok(None) };
        if let Some(why) = foreign(run, &manifest).await? {
            let step = manifest.step;
            tracing::error!(step = step.0, why, "recovery point quarantined: it is not of this run's past");
            self.store.quarantine(step, &QuarantineReason::Unusable(why)).await?;
            return Ok(None);
        }
        Ok(Some(manifest))
    }

    /// Quarantines a point that nobody is to resume from, and tries for `limit`.
    pub(crate) async fn quarantine(
        &self,
        step: Step,
        why: String,
        limit: Duration,
    ) -> Result<(), CheckpointError> {
        let store = self.store.clone().with_retry_limit(limit);
        store.quarantine(step, &QuarantineReason::Unusable(why)).await.map(drop)
    }

    /// Quarantines what rollbacks have ended.
    pub(crate) async fn quarantine_superseded(
        &self,
        rollbacks: &[RollbackRecord],
    ) -> Result<(), CheckpointError> {
        for step in self.store.quarantine_superseded(rollbacks).await? {
            tracing::warn!(
                step = step.0,
                "recovery point quarantined: the run was rolled back from a spike before it"
            );
        }
        Ok(())
    }

    /// Keeps a point, and lets go of older ones.
    pub(crate) async fn keep(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        self.store.commit(manifest).await?;
        // Only the newest is ever resumed from.
        if let Err(error) = self.store.retain(1).await {
            tracing::warn!(%error, "cannot remove old recovery points");
        }
        Ok(())
    }
}

/// Why a recovery point is not of the past of `run`.
async fn foreign(run: &RunStore, manifest: &Manifest) -> Result<Option<String>, CheckpointError> {
    let ConfigHash(hash) = &manifest.config;
    match run.read_config(&manifest.config).await {
        Ok(_) => {}
        Err(CheckpointError::Missing { .. }) => {
            return Ok(Some(format!("the run does not know its configuration {hash}")));
        }
        Err(error) => return Err(error),
    }
    let Some(head) = manifest.ledger else { return Ok(Some("it names no line of a ledger".into())) };
    let (ledger, _) = run.read_ledger().await?;
    Ok(match ledger.hash_at(manifest.step) {
        Some(found) if found == head => None,
        Some(found) => Some(format!("it names {head} as its line of the ledger, which has {found} there")),
        None => Some(format!("the ledger has no line of step {}", manifest.step)),
    })
}
