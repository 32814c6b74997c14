//! Whether another coordinator leads the run, asked before anything is made or written. The coordinator that is started looks
//! again: this one only spares a launch that would be refused.

use std::time::Duration;

use polygram_checkpoint::lease::RENEWAL_PERIOD;
use polygram_checkpoint::{CheckpointError, Leadership, RunStore};
use polygram_domain::RunName;
use polygram_proto::control::OperatorClient;

use crate::exit::{Failure, Outcome};
use crate::settings::Root;
use crate::stored;

/// A coordinator that leads a run answers within this.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Refuses the run `name` under `root` where another coordinator leads it.
pub(crate) async fn check(root: &Root, name: &RunName) -> Outcome<()> {
    // Where there is no store yet, nobody leads the run; one that cannot be opened is refused where it is made.
    let Ok(store) = RunStore::open(&root.address(), name) else { return Ok(()) };
    let leader = leader(&store).await.map_err(|error| stored::refused(root, error))?;
    leader.map_or(Ok(()), |leader| {
        Err(Failure::usage(format!("run {name} is led by {leader}")).hint(
            "stop it there first, or take the run over with --take-over: the other one ends then, and what it has not \
             committed is computed again",
        ))
    })
}

/// The leader in words. One that does not answer here may do so elsewhere: its lease is watched for one renewal.
async fn leader(store: &RunStore) -> Result<Option<String>, CheckpointError> {
    match store.leadership().await? {
        Leadership::Vacant => Ok(None),
        Leadership::Claimed(record) => Ok(answers(&record.address, store).await.then(|| record.leader())),
        Leadership::Leased(lease) if answers(&lease.address, store).await => Ok(Some(lease.leader())),
        Leadership::Leased(lease) => {
            let watched = tokio::time::timeout(RENEWAL_PERIOD * 2, store.await_renewal(&lease)).await;
            Ok(watched.unwrap_or(Ok(None))?.map(|lease| lease.leader()))
        }
    }
}

/// Whether a coordinator answers at `address` that leads the run of `store`.
async fn answers(address: &str, store: &RunStore) -> bool {
    let status = async { OperatorClient::connect(address, None).await?.status().await };
    match tokio::time::timeout(ANSWER_DEADLINE, status).await {
        Ok(Ok(status)) => status.run == store.run().as_str() && !status.state.is_over(),
        _ => false,
    }
}
