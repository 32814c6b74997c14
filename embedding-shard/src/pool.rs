//! A shard of a pool: one process that takes the index of one run after another.

use polygram_domain::ShardIndex;
use polygram_faults::FaultInjection;
use polygram_process::StopSignals;
use polygram_proto::control::{ControlError, Role};
use polygram_proto::pool::{Engagement, OfferOptions, Placement, PoolOffer};

use crate::member::{MemberError, MemberOptions, run_until_signalled};

/// Offers this process until a signal ends it: `options` as for a run, its coordinator the pool, its index none. A failure
/// that is this process's own ends it too: a new process is the better start.
pub async fn serve(options: MemberOptions, faults: FaultInjection) -> Result<(), MemberError> {
    let (pool, token) = (options.coordinator.clone(), options.token.clone());
    let mut signals = StopSignals::listen().map_err(MemberError::Signals)?;
    let mut offer = PoolOffer::begin(OfferOptions { pool, token, role: Role::Shard })?;
    loop {
        let engaged = tokio::select! {
            engaged = offer.engaged() => engaged?,
            () = signals.at_least(1) => return Ok(()),
        };
        let Engagement { placement, recall } = engaged;
        let Placement { seat, run: name, address } = placement.clone();
        tracing::info!(run = name, %seat, address, "placed");
        // Only the first index of a process can have faults ordered for it.
        if let Err(error) = faults.expect("shard", seat.slot.index) {
            tracing::error!(%error, "fault injection is disabled");
        }
        let index = ShardIndex(seat.slot.index);
        let placed = MemberOptions { coordinator: address, index, recall, ..options.clone() };
        let ended = run_until_signalled(&placed, &mut signals).await;
        let failure = ended.as_ref().err().filter(|error| !is_in_order(error)).map(MemberError::to_string);
        offer.released(&placement, failure).await;
        match ended {
            Err(error) if !is_of_the_run(&error) => return Err(error),
            Err(error) => tracing::info!(%error, "left the run"),
            Ok(()) => tracing::info!("left the run, which is over"),
        }
        if signals.count() > 0 {
            return Ok(());
        }
    }
}

/// Whether a run was left because the pool, or the run itself, wanted it.
fn is_in_order(error: &MemberError) -> bool {
    matches!(error, MemberError::Aborted(_) | MemberError::Control(ControlError::Recalled))
}

/// Whether the cause lies in the run or its other members, so that this process may take part in another.
fn is_of_the_run(error: &MemberError) -> bool {
    matches!(error, MemberError::Aborted(_) | MemberError::RolledBack(_) | MemberError::Control(_))
}
