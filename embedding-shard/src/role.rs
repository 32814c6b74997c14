//! A shard as a member of a run: restore, ready, serve, end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::control::{Assignment, Phase};
use polygram_domain::{CheckpointKind, ShardIndex};
use polygram_faults::{Point, pass};
use polygram_member::stores::Resumption;
use polygram_member::{Inbox, Listening, MemberEvent, Membership, Role, Stage, Stores, bind};
use polygram_proto::control::{Progress, Reporter, Upload};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::archive::{Chain, PointArchive, Shipment, StoreArchive};
use crate::config::ShardConfig;
use crate::error::ShardError;
use crate::member_error::ShardMemberError;
use crate::restore::{RowsError, chain_of, restore};
use crate::server::Door;
use crate::shard::Shard;
use crate::side_services::{Services, SideServices};
use crate::status::ShardStatus;

/// Parts whose report is not accepted yet, at most.
const PARTS_IN_FLIGHT: usize = 4;

/// The role, for one membership after another.
#[derive(Clone, Debug)]
pub struct ShardRole {
    /// Address to listen on for the workers; port 0: the system chooses.
    pub listen: SocketAddr,
    /// Where workers reach it, if not there.
    pub advertise: Option<SocketAddr>,
    /// Address to answer reads on.
    pub query_listen: Option<SocketAddr>,
    /// Address to serve metrics on.
    pub metrics_listen: Option<SocketAddr>,
}

/// Bound listeners of a shard.
pub struct BoundShard {
    listener: TcpListener,
    services: Services,
}

/// A shard that has no rows yet.
pub struct OpenedShard {
    bound: BoundShard,
    stores: Stores,
}

impl Role for ShardRole {
    type Error = ShardMemberError;
    type Bound = BoundShard;
    type Opened = OpenedShard;
    type Prepared = Serving;

    async fn bind(&mut self) -> Result<(BoundShard, Listening), ShardMemberError> {
        let (listener, bound) = bind(self.listen).await?;
        let services = Services::bind(self.query_listen, self.metrics_listen).await?;
        Ok((BoundShard { listener, services }, Listening { bound, advertise: self.advertise }))
    }

    async fn open(
        &mut self,
        bound: BoundShard,
        membership: &Membership,
    ) -> Result<OpenedShard, ShardMemberError> {
        Ok(OpenedShard { bound, stores: Stores::open(membership)? })
    }

    async fn prepare(
        &mut self,
        opened: OpenedShard,
        assignment: Assignment,
        membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<Option<Serving>, ShardMemberError> {
        let OpenedShard { bound: BoundShard { listener, services }, stores } = opened;
        let spec = &membership.spec;
        let index = ShardIndex(membership.member.index);
        let config = ShardConfig::of(spec, index, assignment.generation);
        let (shards, listed) = (spec.topology.shards, assignment.shards.len());
        if index.0 >= shards || listed != shards as usize {
            let text = format!("shard {index} in a run of {shards} shards, {listed} of them assigned");
            return Err(ShardMemberError::Assignment(text));
        }
        // From now on workers that come get heartbeats.
        let door = Door::open(listener, &Arc::new(config.clone()), membership.token.link_key());
        let restored = restored(config.clone(), &stores, &assignment, membership);
        let (shard, chain) = match inbox.unless_ended(restored).await {
            Ok(Some(restored)) => restored,
            ended => {
                door.ended(Duration::ZERO).await;
                return ended.map(|_ended| None);
            }
        };
        pass(Point::ShardRestored);
        let (shipments, shipped) = mpsc::channel(PARTS_IN_FLIGHT);
        let mut archive = StoreArchive::new(stores.commits, config, shipments);
        if let Some((store, points)) = stores.points.zip(spec.recovery_points.as_ref()) {
            archive = archive.with_points(PointArchive::new(store, points.changes_below, chain));
        }
        let shard = shard.with_archive(Arc::new(archive));
        Ok(Some(Serving::start((shard, door), shipped, services, membership)))
    }

    async fn run(
        &mut self,
        mut serving: Serving,
        _membership: &Membership,
        inbox: &mut Inbox<'_, '_>,
    ) -> Result<(), ShardMemberError> {
        let result = serving.follow(inbox).await;
        serving.end(result).await
    }

    async fn shutdown(
        &mut self,
        result: Result<(), ShardMemberError>,
        _membership: &Membership,
    ) -> Result<(), ShardMemberError> {
        // What a membership begins, `prepare` and `run` end.
        result
    }

    fn reached(&self, stage: Stage) {
        pass(match stage {
            Stage::Joined => Point::ShardJoined,
            Stage::Assigned => Point::ShardAssigned,
            Stage::Ready => Point::ShardReady,
        });
    }
}

/// A shard with the rows that are assigned, and what its next recovery point may build on.
async fn restored(
    config: ShardConfig,
    stores: &Stores,
    assignment: &Assignment,
    membership: &Membership,
) -> Result<(Shard, Option<Chain>), ShardMemberError> {
    let mut shard = Shard::new(config)?;
    let Some(from) = stores.resumption(assignment, membership).await? else { return Ok((shard, None)) };
    let Resumption { checkpoint, store, manifest } = &from;
    restore(&mut shard, store, manifest).await.map_err(|error| match error {
        RowsError::Store(source) => from.unreadable(source).into(),
        RowsError::Shard(error) => ShardMemberError::Rows(error),
    })?;
    let rows = shard.written();
    tracing::info!(step = %checkpoint.step, from = checkpoint.kind.noun(), rows, "rows restored");
    let chain = match checkpoint.kind {
        CheckpointKind::Point => chain_of(&shard, manifest),
        CheckpointKind::Commit => None,
    };
    Ok((shard, chain))
}

/// Reports to the coordinator what became of every snapshot.
async fn report_uploads(
    reporter: Reporter,
    mut shipments: mpsc::Receiver<Shipment>,
) -> Result<(), ShardMemberError> {
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

/// A shard at work, and what runs beside it.
pub struct Serving {
    served: JoinSet<Result<Shard, ShardError>>,
    uploads: JoinSet<Result<(), ShardMemberError>>,
    /// Dropping it ends the serving.
    shutdown: oneshot::Sender<()>,
    status: watch::Receiver<ShardStatus>,
    progress: Progress,
    side_services: SideServices,
}

impl Serving {
    /// Serves `shard` through `door`, and reports what it has shipped.
    fn start(
        (shard, door): (Shard, Door),
        shipped: mpsc::Receiver<Shipment>,
        services: Services,
        membership: &Membership,
    ) -> Serving {
        let reporter = &membership.reporter;
        let (status, side_services) = (shard.status(), services.start(&shard, membership));
        let (shutdown, stop) = oneshot::channel::<()>();
        let (mut served, mut uploads) = (JoinSet::new(), JoinSet::new());
        served.spawn(shard.serve(door, async move {
            // Dropped or sent: the shard is to stop either way.
            let _either_way = stop.await;
        }));
        uploads.spawn(report_uploads(reporter.clone(), shipped));
        Serving { served, uploads, shutdown, status, progress: reporter.progress(), side_services }
    }

    /// Follows the run until Exit; the first failure of any part ends it.
    async fn follow(&mut self, inbox: &mut Inbox<'_, '_>) -> Result<(), ShardMemberError> {
        loop {
            tokio::select! {
                event = inbox.next() => match event? {
                    MemberEvent::Exit => return Ok(()),
                    MemberEvent::Start => self.progress.phase(Phase::Serving),
                    MemberEvent::Stop { .. }
                    | MemberEvent::Committed { .. }
                    | MemberEvent::PointSettled { .. } => {}
                },
                Some(served) = self.served.join_next() => {
                    served??;
                    return Ok(());
                }
                Some(ended) = self.uploads.join_next() => ended??,
                Ok(()) = self.status.changed() => self.note_status().await,
                () = self.side_services.next() => {}
            }
        }
    }

    async fn note_status(&mut self) {
        let ShardStatus { version, is_snapshotting, .. } = *self.status.borrow_and_update();
        let phase = if is_snapshotting { Phase::Snapshotting } else { Phase::Serving };
        let (_, before) = self.progress.get();
        self.progress.set(version, phase);
        if phase != before {
            self.side_services.report().await;
        }
    }

    /// Ends the serving and all beside it: listeners are free afterwards. A failure of the serving counts where `result`
    /// is none.
    async fn end(mut self, result: Result<(), ShardMemberError>) -> Result<(), ShardMemberError> {
        drop(self.shutdown);
        let served = self.served.join_next().await;
        self.uploads.shutdown().await;
        self.side_services.end().await;
        result?;
        if let Some(served) = served {
            served??;
        }
        Ok(())
    }
}
