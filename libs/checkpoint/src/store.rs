//! One run's objects: names relative to the run, reads that verify, writes that say what they wrote.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use polygram_domain::{RunName, Step};

use crate::error::CheckpointError;
use crate::keys;
use crate::object::{Checksums, Content, ObjectEntry};
use crate::root::{create_root, open_root};

/// Data objects are closed once they hold so many bytes, unless told otherwise.
const OBJECT_BYTES: usize = 256 << 20;

/// The objects of one run. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct RunStore {
    store: Arc<dyn ObjectStore>,
    run: RunName,
    object_bytes: usize,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name relative to the run.
    pub key: String,
    /// Length.
    pub bytes: u64,
}

/// What a write with Create found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Nothing: the object is new.
    New,
    /// An object of that name.
    Existed,
}

impl RunStore {
    /// Opens `run` under an existing root ([`crate::root`]). The run itself need not exist yet. For `memory://` every
    /// call is a new, empty store.
    pub fn open(root: &str, run: &RunName) -> Result<RunStore, CheckpointError> {
        Ok(RunStore::with_store(open_root(root)?, run))
    }

    /// The same, making the folder of a local root if it is missing.
    pub fn create(root: &str, run: &RunName) -> Result<RunStore, CheckpointError> {
        Ok(RunStore::with_store(create_root(root)?, run))
    }

    /// `run` in a store that is already open.
    pub fn with_store(store: Arc<dyn ObjectStore>, run: &RunName) -> RunStore {
        RunStore { store, run: run.clone(), object_bytes: OBJECT_BYTES }
    }

    /// Data objects are closed at about `bytes` instead of 256 MiB.
    pub fn with_object_bytes(self, bytes: usize) -> RunStore {
        RunStore { object_bytes: bytes.max(64), ..self }
    }

    /// The run.
    pub fn run(&self) -> &RunName {
        &self.run
    }

    pub(crate) fn object_bytes(&self) -> usize {
        self.object_bytes
    }

    fn path(&self, key: &str) -> Result<Path, CheckpointError> {
        Path::parse(format!("runs/{}/{key}", self.run))
            .map_err(|e| CheckpointError::damaged(key, format!("not a legal object name: {e}")))
    }

    /// Reads a whole object, unverified.
    pub(crate) async fn get(&self, key: &str) -> Result<Bytes, CheckpointError> {
        let fail = |source: object_store::Error| match source {
            object_store::Error::NotFound { .. } => CheckpointError::Missing { key: key.to_owned() },
            source => CheckpointError::Store { action: "read", key: key.to_owned(), source },
        };
        self.store.get(&self.path(key)?).await.map_err(fail)?.bytes().await.map_err(fail)
    }

    /// Writes an object under a name of its own content, or one that may be replaced.
    pub(crate) async fn put(&self, key: &str, payload: PutPayload) -> Result<(), CheckpointError> {
        let fail = |source| CheckpointError::Store { action: "write", key: key.to_owned(), source };
        self.store.put(&self.path(key)?, payload).await.map(|_| ()).map_err(fail)
    }

    /// Writes an object unless one of that name exists; exactly one of several concurrent calls makes it.
    pub(crate) async fn put_new(&self, key: &str, payload: Bytes) -> Result<Created, CheckpointError> {
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&self.path(key)?, payload.into(), options).await {
            Ok(_) => Ok(Created::New),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Existed),
            Err(source) => Err(CheckpointError::Store { action: "write", key: key.to_owned(), source }),
        }
    }

    /// The same; an existing object of the same content is success too, of another content an error.
    pub(crate) async fn put_once(&self, key: &str, payload: Bytes) -> Result<(), CheckpointError> {
        match self.put_new(key, payload.clone()).await? {
            Created::New => Ok(()),
            Created::Existed if self.get(key).await? == payload => Ok(()),
            Created::Existed => Err(CheckpointError::AlreadyExists { key: key.to_owned() }),
        }
    }

    /// Removes an object; one that is gone already is no error.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), CheckpointError> {
        match self.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(CheckpointError::Store { action: "delete", key: key.to_owned(), source }),
        }
    }

    /// Every object under a folder of the run, sorted by name.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, CheckpointError> {
        let base = format!("runs/{}/", self.run);
        let fail = |source| CheckpointError::Store { action: "list", key: folder.to_owned(), source };
        let found: Vec<_> = self.store.list(Some(&self.path(folder)?)).try_collect().await.map_err(fail)?;
        let mut listed: Vec<Listed> = found
            .into_iter()
            .filter_map(|meta| {
                let key = meta.location.as_ref().strip_prefix(&base)?.to_owned();
                Some(Listed { key, bytes: meta.size })
            })
            .collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// Writes a data object under a name made of its own hash, so that a retry writes the same object again and two
    /// attempts never write over each other.
    pub(crate) async fn put_data(
        &self,
        name: DataName<'_>,
        chunks: Vec<Bytes>,
        content: Content,
    ) -> Result<ObjectEntry, CheckpointError> {
        let hashed = chunks.clone();
        let sums = off_thread(move || Checksums::of(&hashed)).await?;
        let key = keys::data(name.step, name.member, &name.number, &sums.blake3, name.kind);
        self.put(&key, chunks.into_iter().collect()).await?;
        Ok(ObjectEntry { key, bytes: sums.bytes, crc32c: sums.crc32c, blake3: sums.blake3, content })
    }

    /// Reads a data object and verifies length, CRC-32C and BLAKE3. At most one object is in memory: about 256 MiB
    /// as written here.
    pub async fn read_object(&self, entry: &ObjectEntry) -> Result<Bytes, CheckpointError> {
        let object = self.get(&entry.key).await?;
        let entry = entry.clone();
        off_thread(move || entry.verify(&object).map(|()| object)).await?
    }
}

/// What a data object's name is made of, its hash aside.
pub(crate) struct DataName<'a> {
    pub(crate) step: Step,
    pub(crate) member: &'a str,
    pub(crate) number: String,
    pub(crate) kind: &'static str,
}

/// Runs `work` where it does not hold up the runtime's threads.
pub(crate) async fn off_thread<T, F>(work: F) -> Result<T, CheckpointError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Ok(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(CheckpointError::ShuttingDown),
    }
}
