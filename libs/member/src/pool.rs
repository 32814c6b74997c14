//! A member of a pool: one process that takes part in one run after another.

use polygram_domain::control::{MemberRef, Role as RoleKind};
use polygram_faults::FaultInjection;
use polygram_process::StopSignals;
use polygram_proto::control::Token;
use polygram_proto::pool::{Engagement, OfferOptions, Placement, PoolOffer};

use crate::error::MemberError;
use crate::failure::Disposition;
use crate::options::MemberOptions;
use crate::runtime::{Role, run_until_signalled};

/// How a member finds its pool.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The pool's `host:port`.
    pub pool: String,
    /// The pool's secret, which is also that of its runs.
    pub token: Token,
    /// What this process can be.
    pub kind: RoleKind,
    /// Whether faults are injected.
    pub faults: FaultInjection,
}

/// Offers this process until a signal ends it.
///
/// # Errors
/// A failure after which a new process is the better start, or a pool that refuses the offer.
pub async fn serve<R: Role>(options: PoolOptions, role: &mut R) -> Result<(), R::Error> {
    let PoolOptions { pool, token, kind, faults } = options;
    let mut signals = StopSignals::listen().map_err(MemberError::Signals)?;
    let offered = OfferOptions { pool, token: token.clone(), role: kind };
    let mut offer = PoolOffer::begin(offered).map_err(MemberError::from)?;
    loop {
        let engaged = tokio::select! {
            engaged = offer.engaged() => engaged.map_err(MemberError::from)?,
            () = signals.at_least(1) => return Ok(()),
        };
        let Engagement { placement, recall } = engaged;
        let Placement { seat, run, address } = placement.clone();
        tracing::info!(run, %seat, address, "placed");
        // Only the first run of a process can have faults ordered for it.
        if let Err(error) = faults.expect(&kind.to_string(), seat.slot.index) {
            tracing::error!(%error, "fault injection is disabled");
        }
        let member = MemberRef { role: kind, index: seat.slot.index };
        let placed = MemberOptions { coordinator: address, member, token: token.clone(), recall };
        let ended = run_until_signalled(&placed, role, &mut signals).await;
        role.released();
        let failure = ended.as_ref().err().filter(|ended| !ended.failure.is_in_order());
        offer.released(&placement, failure.map(|ended| ended.error.to_string())).await;
        match ended {
            Err(ended) if ended.disposition == Disposition::ExitProcess => return Err(ended.error),
            Err(ended) => tracing::info!(error = %ended.error, "left the run"),
            Ok(()) => tracing::info!("left the run, which is over"),
        }
        if signals.count() > 0 {
            return Ok(());
        }
    }
}
