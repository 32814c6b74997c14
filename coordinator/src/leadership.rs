//! Who leads a run: nobody else may when it is opened, and from then on this coordinator says every few seconds that it does.

use std::time::Duration;

use polygram_checkpoint::lease::RENEWAL_PERIOD;
use polygram_checkpoint::{CheckpointError, Leadership, Lease, RunStore};
use polygram_proto::control::OperatorClient;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::core::Event;
use crate::messages::Input;

/// A coordinator that leads a run answers within this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// On what terms a run is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    /// Only if no coordinator leads it.
    #[default]
    IfVacant,
    /// Always: another coordinator that leads it is fenced, and its run ends.
    TakeOver,
}

/// The coordinator that leads the run of `store`, in words; nothing where nobody does. `address` is this coordinator's own.
/// A leader that does not answer is watched for as long as it may be silent.
pub(crate) async fn leader(store: &RunStore, address: &str) -> Result<Option<String>, CheckpointError> {
    match store.leadership().await? {
        Leadership::Vacant => Ok(None),
        Leadership::Leased(lease) if is_own(&lease.address, address) => Ok(None),
        Leadership::Leased(lease) => {
            if answers(&lease.address, store.run().as_str()).await {
                return Ok(Some(lease.leader()));
            }
            // A task of this very process that does not answer has ended.
            if lease.process.is_current() {
                return Ok(None);
            }
            tracing::warn!(
                "waiting to see whether {} still leads the run: it does not answer",
                lease.leader()
            );
            Ok(store.await_renewal(&lease).await?.map(|lease| lease.leader()))
        }
        Leadership::Claimed(record) if is_own(&record.address, address) => Ok(None),
        Leadership::Claimed(record) => {
            let is_led = answers(&record.address, store.run().as_str()).await;
            Ok(is_led.then(|| record.leader()))
        }
    }
}

/// Whether a leader's address is this coordinator's own: the process that listened there has ended. A loopback address
/// proves nothing: every machine and container has the same.
fn is_own(leaders: &str, own: &str) -> bool {
    let is_loopback =
        |text: &str| text.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    leaders == own && !is_loopback(own)
}

/// Whether a coordinator answers there that leads `run`.
async fn answers(address: &str, run: &str) -> bool {
    let status = async { OperatorClient::connect(address, None).await?.status().await };
    match tokio::time::timeout(ANSWER_DEADLINE, status).await {
        Ok(Ok(status)) => status.run == run && !status.state.is_over(),
        Ok(Err(gone)) => {
            tracing::debug!(address, %gone, "the previous coordinator does not answer");
            false
        }
        Err(_elapsed) => false,
    }
}

/// Renews `lease` until `closing`, then gives it up. A run that another coordinator has claimed ends. A lease that cannot be
/// written is logged, and does not disturb the run.
pub(crate) async fn keep(
    store: RunStore,
    mut lease: Lease,
    driver: mpsc::Sender<Input>,
    closing: CancellationToken,
) {
    let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + RENEWAL_PERIOD, RENEWAL_PERIOD);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_written = true;
    loop {
        let is_closing = tokio::select! {
            biased;
            () = closing.cancelled() => true,
            _instant = beat.tick() => false,
        };
        lease = if is_closing { lease.released() } else { lease.renewed() };
        let written = async {
            store.check_term(lease.term).await?;
            store.write_lease(&lease).await
        };
        match written.await {
            Ok(()) => is_written = true,
            Err(error @ CheckpointError::Fenced { .. }) => {
                let message = error.to_string();
                if driver.send(Input::Happened(Event::TakenOver { message })).await.is_err() {
                    tracing::debug!("the driver is gone");
                }
                return;
            }
            Err(error) if is_written => {
                is_written = false;
                tracing::warn!(%error, "the leader's lease cannot be renewed; on other hosts the run looks as if nobody led it");
            }
            Err(error) => tracing::debug!(%error, "the leader's lease cannot be renewed yet"),
        }
        if is_closing {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ones_own_tells_unless_everybody_has_it() {
        assert!(is_own("192.0.2.1:7000", "192.0.2.1:7000"));
        assert!(!is_own("192.0.2.1:7000", "192.0.2.1:7001"));
        assert!(!is_own("127.0.0.1:7000", "127.0.0.1:7000"));
        assert!(!is_own("[::1]:7000", "[::1]:7000"));
    }
}
