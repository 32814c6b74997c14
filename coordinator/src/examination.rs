//! What the recorder does about a checkpoint that a member could not believe: it looks itself, and where the member was
//! right it quarantines the checkpoint, if there is an older one to go on from.

use polygram_checkpoint::rollback::policy_of;
use polygram_checkpoint::{Latest, QuarantineReason, RunStore};
use polygram_domain::{RunFile, RunSpec};
use polygram_faults::{Point, pass};
use polygram_proto::control::DamagedCheckpoint;

use crate::core::{Examined, FellBack};
use crate::opening::{OpeningError, check_fit};

/// Looks at the object that `claim` names, and at the whole of what else a look at lengths tells of its checkpoint. A
/// checkpoint at fault is quarantined with those that are passed over on the way to the one that is gone on from; what is
/// asked of that one is what is asked when a run is opened. Where there is none, nothing is touched.
///
/// # Errors
/// [`OpeningError::AllDamaged`] where no checkpoint is left; whatever the store says where it fails.
pub(crate) async fn examine(
    store: &RunStore,
    (file, spec): (&RunFile, &RunSpec),
    claim: &DamagedCheckpoint,
) -> Result<Examined, OpeningError> {
    let DamagedCheckpoint { place, key, .. } = claim;
    let Some(fault) = store.find_fault(place.step, key).await? else { return Ok(Examined::Sound) };
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
    check_fit(store, &manifest, file, spec).await?;
    store.quarantine(place.step, &QuarantineReason::Faulty(fault.clone())).await?;
    for damaged in &damaged {
        store.quarantine(damaged.step, &QuarantineReason::Damaged).await?;
    }
    pass(Point::CoordinatorSetAside);
    let policy = policy_of(Some(&manifest), &store.rollbacks().await?);
    let passed_over = damaged.into_iter().map(|damaged| (damaged.step, damaged.reason));
    let fallen = std::iter::once((place.step, fault.reason)).chain(passed_over).collect();
    Ok(Examined::SetAside(FellBack { fallen, to: manifest.step, policy }))
}
