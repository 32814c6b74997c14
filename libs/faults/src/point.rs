//! The crash points: places in the life of each role at which a death is worth a test.

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// A crash point.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Point { $($(#[$doc])* $name),* }

        impl Point {
            /// Every point, in the order of lives.
            pub const ALL: &'static [Point] = &[$(Point::$name),*];

            /// Its name, `role.place`.
            pub fn as_str(self) -> &'static str {
                match self { $(Point::$name => $text),* }
            }
        }
    };
}

points! {
    /// Admitted, not yet attending.
    WorkerJoined = "worker.joined",
    /// The assignment has come.
    WorkerAssigned = "worker.assigned",
    /// The engine holds the checkpoint's state.
    WorkerRestored = "worker.restored",
    /// All other ranks are connected.
    WorkerMet = "worker.met",
    /// About to say that it is ready.
    WorkerReady = "worker.ready",
    /// Told to start.
    WorkerStarted = "worker.started",
    /// About to hand over the row gradients of a cell.
    WorkerBeforePush = "worker.before_push",
    /// About to ask the shards what a step would do.
    WorkerBeforePrepare = "worker.before_prepare",
    /// The shards have said so.
    WorkerAfterPrepare = "worker.after_prepare",
    /// All ranks agree on a step.
    WorkerAgreed = "worker.agreed",
    /// The order to commit a step is on its way to the shards.
    WorkerAfterCommit = "worker.after_commit",
    /// Its own part of the weights is updated, not yet given to the others.
    WorkerApplied = "worker.applied",
    /// A copy of its state is taken, nothing is uploaded.
    WorkerSnapshotTaken = "worker.snapshot_taken",
    /// Its objects are in the store, nobody knows.
    WorkerUploaded = "worker.uploaded",
    /// The coordinator knows.
    WorkerReported = "worker.reported",
    /// A commit is over.
    WorkerCommitted = "worker.committed",
    /// All steps are done and told.
    WorkerFinished = "worker.finished",
    /// Admitted, not yet attending.
    ShardJoined = "shard.joined",
    /// The assignment has come.
    ShardAssigned = "shard.assigned",
    /// Its rows are restored.
    ShardRestored = "shard.restored",
    /// About to say that it is ready.
    ShardReady = "shard.ready",
    /// A worker is connected.
    ShardConnected = "shard.connected",
    /// A lookup is about to be declared.
    ShardBeforeDeclare = "shard.before_declare",
    /// Gradients are about to be taken.
    ShardBeforeAdd = "shard.before_add",
    /// A step's sums are known, about to be told.
    ShardPrepared = "shard.prepared",
    /// All workers have voted, no row is changed.
    ShardBeforeApply = "shard.before_apply",
    /// A lane has changed its rows.
    ShardAfterApply = "shard.after_apply",
    /// A snapshot has begun.
    ShardSnapshotBegun = "shard.snapshot_begun",
    /// Its objects are in the store, nobody knows.
    ShardUploaded = "shard.uploaded",
    /// The coordinator knows.
    ShardReported = "shard.reported",
    /// Its term is claimed.
    CoordinatorTermClaimed = "coordinator.term_claimed",
    /// It has said where it listens.
    CoordinatorAnnounced = "coordinator.announced",
    /// A member is admitted, and does not know.
    CoordinatorAdmitted = "coordinator.admitted",
    /// Members were given their assignment.
    CoordinatorAssigned = "coordinator.assigned",
    /// Members were told to start.
    CoordinatorStarted = "coordinator.started",
    /// A member's part of a checkpoint is here.
    CoordinatorPartNoted = "coordinator.part_noted",
    /// All parts of a checkpoint are here.
    CoordinatorPartsComplete = "coordinator.parts_complete",
    /// The ledger's lines of a checkpoint are written, not its manifest.
    CoordinatorLedgerWritten = "coordinator.ledger_written",
    /// The manifest is assembled and checked, not written.
    CoordinatorBeforeManifest = "coordinator.before_manifest",
    /// The manifest is written: the commit has happened.
    CoordinatorAfterManifest = "coordinator.after_manifest",
    /// Old checkpoints are removed.
    CoordinatorAfterRetention = "coordinator.after_retention",
    /// A way back from a spike is decided, nothing is set aside.
    CoordinatorRollBackDecided = "coordinator.roll_back_decided",
    /// A checkpoint is found damaged, and is not set aside yet.
    CoordinatorDamageFound = "coordinator.damage_found",
    /// It is set aside, and nobody knows.
    CoordinatorSetAside = "coordinator.set_aside",
    /// Metrics are about to be written.
    CoordinatorBeforeFlush = "coordinator.before_flush",
    /// Metrics are written.
    CoordinatorAfterFlush = "coordinator.after_flush",
    /// The run is over, members are about to be told.
    CoordinatorOver = "coordinator.over",
}

impl Point {
    /// The point of this name.
    pub fn named(name: &str) -> Option<Point> {
        Point::ALL.iter().copied().find(|point| point.as_str() == name)
    }

    /// Whose it is.
    pub fn role(self) -> &'static str {
        self.as_str().split_once('.').map_or("", |(role, _)| role)
    }
}
