//! One run's objects: names relative to the run, reads that verify, writes that say what they wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStore, PutPayload};
use polygram_domain::{RunName, RunSpec};

use crate::error::CheckpointError;
use crate::root::{Root, create_root, open_root};
use crate::transfer::{Created, Place};
use crate::waits::Waits;

/// Data objects are closed once they hold so many bytes, unless told otherwise.
const OBJECT_BYTES: usize = 128 << 20;

/// A store of recovery points is not asked again for longer: a run goes on without them.
const POINTS_RETRY_LIMIT: Duration = Duration::from_secs(15);

/// The objects of one run. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct RunStore {
    root: Root,
    run: RunName,
    object_bytes: usize,
    read_bytes: Arc<AtomicU64>,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name relative to the run.
    pub key: String,
    /// Length.
    pub bytes: u64,
    /// When it was written, milliseconds since 1970 UTC, by the store's clock.
    pub modified_unix_ms: i64,
}

impl RunStore {
    /// Opens `run` under an existing root ([`crate::root`]). The run itself need not exist yet. For `memory://` every
    /// call is a new, empty store.
    pub fn open(root: &str, run: &RunName) -> Result<RunStore, CheckpointError> {
        Ok(RunStore::at(open_root(root)?, run))
    }

    /// The same, making the folder of a local root if it is missing.
    pub fn create(root: &str, run: &RunName) -> Result<RunStore, CheckpointError> {
        Ok(RunStore::at(create_root(root)?, run))
    }

    /// The recovery points of the run of `spec` under `root`, where it makes any; a missing folder is made.
    pub fn of_points(root: &str, spec: &RunSpec) -> Result<Option<RunStore>, CheckpointError> {
        let points = spec.recovery_points.as_ref();
        let open = |root: &str| Ok(RunStore::create(root, &spec.name)?.with_retry_limit(POINTS_RETRY_LIMIT));
        points.map(|points| open(&points.root(root))).transpose()
    }

    /// The same store, for one of several processes of a machine that read the same ([`Root::shared`]).
    pub fn shared(self) -> RunStore {
        RunStore { root: self.root.shared(), ..self }
    }

    /// The same store, which is asked again for no longer than `limit`: for what can wait. Its waits are not told.
    pub fn with_retry_limit(self, limit: Duration) -> RunStore {
        let patience = self.root.patience.clone().limited_to(limit);
        let root = Root { waits: None, ..self.root.with_patience(patience) };
        RunStore { root, ..self }
    }

    /// The same store, whose waits are told. A write then also waits for what a person has to mend: room, permission, a
    /// bucket.
    pub fn with_waits(self, waits: Waits) -> RunStore {
        RunStore { root: Root { waits: Some(waits), ..self.root }, ..self }
    }

    /// Where its waits are told.
    pub fn waits(&self) -> Option<&Waits> {
        self.root.waits.as_ref()
    }

    /// `run` under a root that is already open.
    pub fn at(root: Root, run: &RunName) -> RunStore {
        RunStore { root, run: run.clone(), object_bytes: OBJECT_BYTES, read_bytes: Arc::default() }
    }

    /// `run` in an object store that is already open.
    pub fn with_store(store: Arc<dyn ObjectStore>, run: &RunName) -> RunStore {
        RunStore::at(Root::of(store), run)
    }

    /// Data objects are closed at about `bytes` instead of 128 MiB.
    pub fn with_object_bytes(self, bytes: usize) -> RunStore {
        RunStore { object_bytes: bytes.max(64), ..self }
    }

    /// The run.
    pub fn run(&self) -> &RunName {
        &self.run
    }

    /// Bytes of data objects that this store and its clones have read and verified so far: for progress.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// The same store, which adds what it reads to `counter` from now on.
    pub fn counting_into(self, counter: Arc<AtomicU64>) -> RunStore {
        RunStore { read_bytes: counter, ..self }
    }

    pub(crate) fn count_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn object_bytes(&self) -> usize {
        self.object_bytes
    }

    /// The root that the run lies under.
    pub fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn place<'a>(&self, key: &'a str) -> Result<Place<'a>, CheckpointError> {
        Place::in_run(&self.run, key)
    }

    /// Reads a whole object, unverified.
    pub(crate) async fn get(&self, key: &str) -> Result<Bytes, CheckpointError> {
        self.root.get(&self.place(key)?).await
    }

    /// Writes an object under a name of its own content, or one that may be replaced.
    pub(crate) async fn put(&self, key: &str, payload: PutPayload) -> Result<(), CheckpointError> {
        self.root.put(&self.place(key)?, payload).await
    }

    /// Writes an object unless one of that name exists; exactly one of several concurrent calls makes it.
    pub(crate) async fn put_new(&self, key: &str, payload: Bytes) -> Result<Created, CheckpointError> {
        self.root.create(&self.place(key)?, payload).await
    }

    /// The same; an existing object of the same content is success too, of another content an error.
    pub(crate) async fn put_once(&self, key: &str, payload: Bytes) -> Result<(), CheckpointError> {
        match self.put_new(key, payload).await? {
            Created::New | Created::Same => Ok(()),
            Created::Other => Err(CheckpointError::AlreadyExists { key: key.to_owned() }),
        }
    }

    /// Removes an object; one that is gone already is no error.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), CheckpointError> {
        self.root.delete(&self.place(key)?).await
    }

    /// Every object under a folder of the run, sorted by name.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, CheckpointError> {
        let base = format!("runs/{}/", self.run);
        let found = self.root.list(&self.place(folder)?).await?;
        let mut listed: Vec<Listed> = found
            .into_iter()
            .filter_map(|meta| {
                let key = meta.location.as_ref().strip_prefix(&base)?.to_owned();
                Some(Listed {
                    key,
                    bytes: meta.size,
                    modified_unix_ms: meta.last_modified.timestamp_millis(),
                })
            })
            .collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }
}
