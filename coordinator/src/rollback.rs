//! The store's side of a rollback: which checkpoint the run resumes from, and what is quarantined.
//!
//! Every decision is one object that is made once, or leaves the store as it was. A coordinator that dies meanwhile has a
//! successor that finds the decision, or is asked again.

use std::time::Duration;

use polygram_checkpoint::rollback::policy_of;
use polygram_checkpoint::{
    CheckpointError, ConfigHash, Latest, QuarantineReason, RollbackRecord, RunStore, Term, keys,
};
use polygram_domain::control::DamagedCheckpoint;
use polygram_domain::spikes::{LeftOut, PolicyState, SpikeSpec};
use polygram_domain::{RunFile, RunSpec, Step};
use polygram_faults::{Point, pass};

use crate::core::{RollbackRequest, RollbackResolution, RollbackTarget};
use crate::fit::check_fit;
use crate::opening_error::OpeningError;
use crate::points::Points;

/// A recovery point that nobody needs any more is not held on to for longer.
const POINT_RETRY_LIMIT: Duration = Duration::from_secs(5);

/// Where the run lies, and the term of this coordinator, which may have been superseded.
pub(crate) struct Stores<'a> {
    pub(crate) run: &'a RunStore,
    pub(crate) points: Option<&'a Points>,
    pub(crate) term: Term,
}

/// What the run is, and what it leaves out so far.
pub(crate) struct Rules<'a> {
    pub(crate) spec: &'a RunSpec,
    pub(crate) config: &'a ConfigHash,
    pub(crate) policy: &'a PolicyState,
}

/// Decides what a rollback depends on.
///
/// # Errors
/// [`OpeningError::AllDamaged`] where no checkpoint is left; whatever the store says where it fails.
pub(crate) async fn resolve(
    stores: Stores<'_>,
    rules: Rules<'_>,
    request: RollbackRequest,
) -> Result<RollbackResolution, OpeningError> {
    stores.run.check_term(stores.term).await?;
    match request {
        RollbackRequest::Spike { at, cause } => Ok(before_spike(stores, rules, at, cause).await?),
        RollbackRequest::DamagedCheckpoint(claim) => verify(stores.run, rules, &claim).await,
        RollbackRequest::UnrestorablePoint { step, why } => {
            if let Some(points) = stores.points {
                points.quarantine(step, why, POINT_RETRY_LIMIT).await?;
            }
            Ok(RollbackResolution::PointQuarantined)
        }
    }
}

/// The newest commit that lies far enough before the spike becomes the newest there is. The decision comes first: a
/// coordinator that finds it quarantines the rest before it does anything else.
async fn before_spike(
    Stores { run, points, .. }: Stores<'_>,
    Rules { spec, policy, .. }: Rules<'_>,
    at: Step,
    cause: String,
) -> Result<RollbackResolution, CheckpointError> {
    let SpikeSpec { roll_back_steps, skip_steps, .. } = spec.spikes;
    let newest = Step(at.0.saturating_sub(roll_back_steps.into()));
    let to = run.sound_at_or_before(newest).await?;
    let samples = spec.samples_per_step();
    let mut more = LeftOut::default();
    for step in (at.0 + 1).saturating_sub(skip_steps.into())..=at.0 {
        let first = policy.left_out.sample_after(step * samples);
        more.add(first..first + samples);
    }
    let to_step = to.as_ref().map_or(Step(0), |manifest| manifest.step);
    run.decide_rollback(RollbackRecord::new(policy, (at, to_step), cause, &more)).await?;
    pass(Point::CoordinatorRollBackDecided);
    let all = run.rollbacks().await?;
    let superseded = run.quarantine_superseded(&all).await?;
    tracing::warn!(step = at.0, to = to_step.0, ?superseded, "rolled back from a spike");
    if let Some(points) = points
        && let Err(error) = points.quarantine_superseded(&all).await
    {
        tracing::warn!(%error, "recovery points behind the spike are not quarantined; they are not resumed from");
    }
    let (to, policy) = (to.as_ref().map(|manifest| manifest.step), policy_of(to.as_ref(), &all));
    Ok(RollbackResolution::Target(RollbackTarget { to, policy, quarantined: Vec::new() }))
}

/// Verifies the object that `claim` names, and lists what else of its checkpoint is missing or cut. A damaged checkpoint is
/// quarantined with those that are passed over on the way to the one that is resumed from; what is asked of that one is what
/// is asked when a run is opened. Where there is none, nothing is touched.
async fn verify(
    store: &RunStore,
    Rules { spec, config, .. }: Rules<'_>,
    claim: &DamagedCheckpoint,
) -> Result<RollbackResolution, OpeningError> {
    let config_toml = store.read_config(config).await?;
    let file = RunFile::parse(&config_toml, &keys::config(&config.0), &[])?;
    let DamagedCheckpoint { place, key, .. } = claim;
    let Some(fault) = store.find_fault(place.step, key).await? else { return Ok(RollbackResolution::Sound) };
    pass(Point::CoordinatorDamageFound);
    let Latest { manifest, damaged } = store.latest_before(place.step).await?;
    let Some(manifest) = manifest else {
        return Err(OpeningError::AllDamaged {
            run: spec.name.to_string(),
            count: damaged.len() + 1,
            key: fault.key,
            reason: fault.reason,
        });
    };
    check_fit(store, &manifest, &file, spec).await?;
    store.quarantine(place.step, &QuarantineReason::Faulty(fault.clone())).await?;
    for damaged in &damaged {
        store.quarantine(damaged.step, &QuarantineReason::Damaged).await?;
    }
    pass(Point::CoordinatorSetAside);
    let policy = policy_of(Some(&manifest), &store.rollbacks().await?);
    let passed_over = damaged.into_iter().map(|damaged| (damaged.step, damaged.reason));
    let quarantined = std::iter::once((place.step, fault.reason)).chain(passed_over).collect();
    Ok(RollbackResolution::Target(RollbackTarget { to: Some(manifest.step), policy, quarantined }))
}
