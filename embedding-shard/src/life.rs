//! One membership of a shard: assignment, restore, ready, serve, end.

use std::sync::Arc;
use std::time::Duration;

use polygram_checkpoint::{RunStore, Waits};
use polygram_domain::{CheckpointKind, RunFile, RunSpec, ShardIndex};
use polygram_faults::{Point, pass};
use polygram_handshake::LinkKey;
use polygram_proto::control::{
    AbortKind, Assignment, Directive, Directives, Failure, Joined, MemberReport, Phase, Progress, Reporter,
    Upload,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::archive::{Chain, PointArchive, Shipment, StoreArchive};
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::member::MemberError;
use crate::outside::{Outside, Services};
use crate::restore::{RestoreError, chain_of, restore};
use crate::server::Door;
use crate::shard::Shard;
use crate::status::ShardStatus;

/// A failed shard waits so long for the coordinator's answer.
const CONFESSION: Duration = Duration::from_secs(5);
/// Parts whose report is not accepted yet, at most.
const PARTS_IN_FLIGHT: usize = 4;

/// One membership.
pub(crate) struct Life {
    pub(crate) index: ShardIndex,
    pub(crate) reporter: Reporter,
    pub(crate) joined: Joined,
    /// Of the run's token.
    pub(crate) key: LinkKey,
}

impl Life {
    /// Lives it to its end. Lanes, services and connections have ended when this returns.
    pub(crate) async fn live(
        &self,
        listener: TcpListener,
        services: Services,
        directives: &mut Directives,
    ) -> Result<(), MemberError> {
        let file = RunFile::parse(&self.joined.config_toml, "configuration from the coordinator", &[])?;
        let spec = file.resolve()?;
        let progress = self.reporter.progress();
        let waits = Waits::told_to(progress.store_wait().clone());
        let store = RunStore::open(&self.joined.root, &spec.name)?.with_waits(waits);
        let Some(assignment) = assignment(directives).await? else { return Ok(()) };
        pass(Point::ShardAssigned);
        progress.set(assignment.resume_step, Phase::Restoring);
        let config = ShardConfig::of(&spec, self.index, assignment.generation);
        if self.index.0 >= spec.topology.shards || assignment.shards.len() != spec.topology.shards as usize {
            let (shards, listed) = (spec.topology.shards, assignment.shards.len());
            let text = format!("shard {} in a run of {shards} shards, {listed} of them assigned", self.index);
            return Err(MemberError::Assignment(text));
        }
        let points = RunStore::of_points(&self.joined.root, &spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "recovery points are not written by this shard");
            None
        });
        // From now on workers that come get heartbeats.
        let door = Door::open(listener, &Arc::new(config.clone()), self.key);
        let places = (&store, points.as_ref());
        let prepared = self.prepare(config.clone(), places, (&spec, &assignment), directives).await;
        let (shard, chain) = match prepared {
            Ok(Some(prepared)) => prepared,
            ended => {
                door.ended(Duration::ZERO).await;
                return ended.map(drop);
            }
        };
        pass(Point::ShardRestored);
        let (shipments, shipped) = mpsc::channel(PARTS_IN_FLIGHT);
        let mut archive = StoreArchive::new(store, config, shipments);
        if let Some((store, points)) = points.zip(spec.recovery_points.as_ref()) {
            archive = archive.with_points(PointArchive::new(store, points.changes_below, chain));
        }
        let shard = shard.with_archive(Arc::new(archive));
        let status = shard.status();
        let outside = services.start(&shard, self.reporter.clone());
        let (shutdown, stop) = oneshot::channel::<()>();
        let served = tokio::spawn(shard.serve(door, async move {
            // Dropped or sent: the shard is to stop either way.
            let _either_way = stop.await;
        }));
        let uploads = tokio::spawn(report_uploads(self.reporter.clone(), shipped));
        progress.set(assignment.resume_step, Phase::Ready);
        pass(Point::ShardReady);
        let serving = Serving { served, uploads, shutdown: Some(shutdown), status, progress, outside };
        match self.reporter.report(MemberReport::Ready { assignment: assignment.hash() }).await {
            Ok(()) => serving.watch(directives).await,
            Err(lost) => serving.end(Some(lost.into())).await,
        }
    }

    /// A shard with the rows that are assigned, and what its next recovery point may go on from; `None` where the run ends
    /// before it starts.
    async fn prepare(
        &self,
        config: ShardConfig,
        (store, points): (&RunStore, Option<&RunStore>),
        (spec, assignment): (&RunSpec, &Assignment),
        directives: &mut Directives,
    ) -> Result<Option<(Shard, Option<Chain>)>, MemberError> {
        let mut shard = Shard::new(config)?;
        if assignment.resume_manifest.is_none() {
            return Ok(Some((shard, None)));
        }
        let counter = self.reporter.progress().restored_bytes();
        let counting = |store: &RunStore| store.clone().counting_into(Arc::clone(&counter));
        let stores = (counting(store), points.map(counting));
        let restored = restore_from(&mut shard, (&stores.0, stores.1.as_ref()), spec, assignment);
        tokio::select! {
            restored = restored => {
                let chain = restored?;
                Ok(Some((shard, chain)))
            }
            ended = before_start(directives) => ended.map(|()| None),
        }
    }

    /// Reports a failure and gives the coordinator a moment to answer, so that it learns who failed and why. Answers
    /// whether it said that the run goes on with another generation.
    pub(crate) async fn confess(&self, error: &MemberError, directives: &mut Directives) -> bool {
        if matches!(error, MemberError::Aborted(_) | MemberError::RolledBack(_) | MemberError::Control(_)) {
            return false;
        }
        let (step, phase) = self.reporter.progress().get();
        let (message, damaged) = (error.to_string(), error.damaged());
        let failure =
            Failure { message, step, phase, suspect: None, roll_back: false, damaged, kind: error.kind() };
        if let Err(lost) = self.reporter.report(MemberReport::Failed(failure)).await {
            tracing::warn!(%lost, "the failure was not reported");
            return false;
        }
        let answer = async {
            loop {
                match directives.next().await {
                    Ok(Directive::Abort(abort)) => break matches!(abort.kind, AbortKind::Rejoin { .. }),
                    Ok(Directive::Exit) | Err(_) => break false,
                    Ok(_) => {}
                }
            }
        };
        timeout(CONFESSION, answer).await.unwrap_or_else(|_| {
            tracing::warn!("the coordinator did not answer the failure report");
            false
        })
    }
}

/// The assignment, or `None` where the run ends before it starts.
async fn assignment(directives: &mut Directives) -> Result<Option<Assignment>, MemberError> {
    loop {
        match directives.next().await? {
            Directive::Assign(assignment) => return Ok(Some(assignment)),
            Directive::Abort(abort) => return Err(abort.into()),
            Directive::Exit => return Ok(None),
            Directive::Start
            | Directive::Stop { .. }
            | Directive::Committed { .. }
            | Directive::PointSettled { .. } => {}
        }
    }
}

/// Waits for the end of a membership that has not started.
async fn before_start(directives: &mut Directives) -> Result<(), MemberError> {
    loop {
        match directives.next().await? {
            Directive::Abort(abort) => return Err(abort.into()),
            Directive::Exit => return Ok(()),
            _ => {}
        }
    }
}

/// Restores what is assigned, from the run's store or that of its recovery points. Answers what the next recovery point may
/// go on from.
async fn restore_from(
    shard: &mut Shard,
    (commits, points): (&RunStore, Option<&RunStore>),
    spec: &RunSpec,
    assignment: &Assignment,
) -> Result<Option<Chain>, MemberError> {
    let (step, kind) = (assignment.resume_step, assignment.resume_kind);
    let store = match kind {
        CheckpointKind::Commit => commits,
        CheckpointKind::Point => points.ok_or_else(|| {
            let reason = "it is a recovery point, and this shard has no place for them".to_owned();
            MemberError::Resume { step, reason }
        })?,
    };
    // A recovery point that fails is not gone back to again, whatever is wrong with it: nobody has to look.
    let unrestored = |source| match kind {
        CheckpointKind::Commit => MemberError::Unrestored { step, source },
        CheckpointKind::Point => source.into(),
    };
    let manifest = store.read_manifest(step).await.map_err(unrestored)?;
    manifest.check_cover(spec).map_err(|error| MemberError::Resume { step, reason: error.to_string() })?;
    restore(shard, store, &manifest).await.map_err(|error| match error {
        RestoreError::Store(source) => unrestored(source),
        other => other.into(),
    })?;
    tracing::info!(%step, from = kind.noun(), rows = shard.written(), "rows restored");
    Ok((kind == CheckpointKind::Point).then(|| chain_of(shard, &manifest)).flatten())
}

/// Tells the coordinator what became of every snapshot.
async fn report_uploads(
    reporter: Reporter,
    mut shipments: mpsc::Receiver<Shipment>,
) -> Result<(), MemberError> {
    while let Some(shipment) = shipments.recv().await {
        let (step, upload) = match shipment {
            Shipment::Part { kind, part } => {
                (part.step, Upload::Part { kind, json: serde_json::to_string(&part)? })
            }
            Shipment::NotWritten { step, reason } => (step, Upload::NotWritten { reason }),
        };
        reporter.report_upload(step, upload).await?;
        pass(Point::ShardReported);
    }
    Ok(())
}

/// A shard at work, watched from the session.
struct Serving {
    served: JoinHandle<Result<Shard, ShardError>>,
    uploads: JoinHandle<Result<(), MemberError>>,
    /// Dropping it ends the serving.
    shutdown: Option<oneshot::Sender<()>>,
    status: tokio::sync::watch::Receiver<ShardStatus>,
    progress: Progress,
    outside: Outside,
}

impl Serving {
    /// Follows directives until Exit; the first failure of any part ends it.
    async fn watch(mut self, directives: &mut Directives) -> Result<(), MemberError> {
        let mut uploads_ended = false;
        let failure = loop {
            tokio::select! {
                directive = directives.next() => match directive {
                    Ok(Directive::Exit) => break None,
                    Ok(Directive::Abort(abort)) => break Some(abort.into()),
                    Ok(Directive::Start) => self.progress.phase(Phase::Serving),
                    Ok(
                        Directive::Assign(_)
                        | Directive::Stop { .. }
                        | Directive::Committed { .. }
                        | Directive::PointSettled { .. },
                    ) => {}
                    Err(error) => break Some(error.into()),
                },
                served = &mut self.served => {
                    self.end_beside().await;
                    return match served? {
                        Ok(_) => Ok(()),
                        Err(error) => Err(error.into()),
                    };
                }
                ended = &mut self.uploads, if !uploads_ended => match ended {
                    Ok(Ok(())) => uploads_ended = true,
                    Ok(Err(error)) => break Some(error),
                    Err(abnormal) => break Some(abnormal.into()),
                },
                Ok(()) = self.status.changed() => {
                    let ShardStatus { version, is_snapshotting, .. } = *self.status.borrow_and_update();
                    let phase = if is_snapshotting { Phase::Snapshotting } else { Phase::Serving };
                    let (_, before) = self.progress.get();
                    self.progress.set(version, phase);
                    if phase != before {
                        self.outside.report().await;
                    }
                }
                () = self.outside.next() => {}
            }
        };
        self.end(failure).await
    }

    /// Ends the serving and all beside it, for `failure` if there was one.
    async fn end(mut self, failure: Option<MemberError>) -> Result<(), MemberError> {
        self.shutdown.take();
        let served = (&mut self.served).await;
        self.end_beside().await;
        let served = served?;
        match (failure, served) {
            (Some(failure), _) => Err(failure),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(_)) => Ok(()),
        }
    }

    /// Ends what runs beside the serving: its listeners are free afterwards.
    async fn end_beside(&mut self) {
        self.uploads.abort();
        self.outside.end().await;
    }
}
