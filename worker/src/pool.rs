//! A worker of a pool: one process that takes the rank of one run after another.

use polygram_domain::Rank;
use polygram_faults::FaultInjection;
use polygram_proto::control::{ControlError, Role, Token};
use polygram_proto::pool::{Engagement, OfferOptions, Placement, PoolOffer};

use crate::error::WorkerError;
use crate::observe::MetricsDesk;
use crate::session::{Listen, WorkerOptions, take_part};
use polygram_process::StopSignals;

/// How a worker finds its pool.
#[derive(Clone, Debug)]
pub struct PoolWorkerOptions {
    /// The pool's `host:port`.
    pub pool: String,
    /// The pool's secret.
    pub token: Token,
    /// Where it listens for the other ranks.
    pub listen: Listen,
    /// Where its metrics are told.
    pub metrics: MetricsDesk,
    /// Whether faults are injected.
    pub faults: FaultInjection,
}

/// Offers this process until a signal ends it. A failure that is this process's own ends it too: a new process is the
/// better start.
pub async fn serve(options: PoolWorkerOptions) -> Result<(), WorkerError> {
    let PoolWorkerOptions { pool, token, listen, metrics, faults } = options;
    let mut signals = StopSignals::listen().map_err(WorkerError::Signals)?;
    let mut offer = PoolOffer::begin(OfferOptions { pool, token: token.clone(), role: Role::Worker })?;
    loop {
        let engaged = tokio::select! {
            engaged = offer.engaged() => engaged?,
            () = signals.at_least(1) => return Ok(()),
        };
        let Engagement { placement, recall } = engaged;
        let Placement { seat, run, address } = placement.clone();
        tracing::info!(run, %seat, address, "placed");
        // Only the first rank of a process can have faults ordered for it.
        if let Err(error) = faults.expect("worker", seat.slot.index) {
            tracing::error!(%error, "fault injection is disabled");
        }
        let taken = WorkerOptions {
            coordinator: address,
            rank: Rank(seat.slot.index),
            token: token.clone(),
            listen,
            metrics: metrics.clone(),
        };
        let ended = take_part(&taken, &recall, &mut signals).await;
        metrics.end("pool");
        let failure = ended.as_ref().err().filter(|error| !is_in_order(error)).map(WorkerError::to_string);
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
fn is_in_order(error: &WorkerError) -> bool {
    matches!(error, WorkerError::Aborted(_) | WorkerError::Control(ControlError::Recalled))
}

/// Whether the cause lies in the run or its other members, so that this process may take part in another.
fn is_of_the_run(error: &WorkerError) -> bool {
    matches!(error, WorkerError::Aborted(_) | WorkerError::Control(_)) || error.is_of_others()
}
