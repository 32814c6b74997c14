//! A shard of a pool: one process that takes the index of one run after another.

use futures::FutureExt;
use polygram_domain::ShardIndex;
use polygram_faults::FaultInjection;
use polygram_process::StopSignal;
use polygram_proto::control::{ControlError, Role};
use polygram_proto::pool::{Engagement, OfferOptions, Placement, PoolOffer};
use tokio::signal::unix::SignalKind;

use crate::member::{MemberError, MemberOptions, run};

/// Offers this process until SIGTERM ends it: `options` as for a run, its coordinator the pool, its index none. A failure
/// that is this process's own ends it too: a new process is the better start.
pub async fn serve(options: MemberOptions, faults: FaultInjection) -> Result<(), MemberError> {
    let (pool, token) = (options.coordinator.clone(), options.token.clone());
    let mut terminations = Terminations::listen();
    let mut offer = PoolOffer::begin(OfferOptions { pool, token, role: Role::Shard })?;
    loop {
        let engaged = tokio::select! {
            engaged = offer.engaged() => engaged?,
            () = terminations.next() => return Ok(()),
        };
        let Engagement { placement, recall } = engaged;
        let Placement { seat, run: name, address } = placement.clone();
        tracing::info!(run = name, %seat, address, "placed");
        // Only the first index of a process can have faults ordered for it.
        if let Err(error) = faults.expect("shard", seat.slot.index) {
            tracing::error!(%error, "fault injection is disabled");
        }
        let index = ShardIndex(seat.slot.index);
        let ended = run(MemberOptions { coordinator: address, index, recall, ..options.clone() }).await;
        let failure = ended.as_ref().err().filter(|error| !is_in_order(error)).map(MemberError::to_string);
        offer.released(&placement, failure).await;
        match ended {
            Err(error) if !is_of_the_run(&error) => return Err(error),
            Err(error) => tracing::info!(%error, "left the run"),
            Ok(()) => tracing::info!("left the run, which is over"),
        }
        if terminations.next().now_or_never().is_some() {
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

/// SIGTERM. Inside a run it is the run's to obey; here it is the end of the offer.
struct Terminations(Option<StopSignal>);

impl Terminations {
    fn listen() -> Terminations {
        let signal = StopSignal::listen(SignalKind::terminate());
        if let Err(error) = &signal {
            tracing::warn!(%error, "SIGTERM ends this shard without a word");
        }
        Terminations(signal.ok())
    }

    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    }
}
