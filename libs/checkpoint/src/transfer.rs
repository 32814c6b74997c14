//! Requests to a root's store: each with a deadline, repeated while that can help, and with an error that says what to do.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use polygram_domain::RunName;
use tokio::sync::SemaphorePermit;

use crate::disk::Read;
use crate::error::{CheckpointError, FailedRequest};
use crate::patience::{Asked, GaveUp, Operator, Telling};
use crate::problem::StoreProblem;
use crate::root::{Root, UPLOAD_WINDOW_BYTES};
use crate::threads::off_thread;

/// Parts of one object that are on their way at a time.
const PARTS_AT_ONCE: usize = 4;

/// What a write with Create found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Nothing: the object is new.
    New,
    /// An object of that name and this very content. It may be ours, its answer lost.
    Same,
    /// An object of that name with another content.
    Other,
}

/// An object of a root: its place in the store, and what it is called in messages.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) path: Path,
    pub(crate) key: &'a str,
}

impl<'a> Place<'a> {
    /// The object `key` of a run.
    pub(crate) fn in_run(run: &RunName, key: &'a str) -> Result<Place<'a>, CheckpointError> {
        match Path::parse(format!("runs/{run}/{key}")) {
            Ok(path) => Ok(Place { path, key }),
            Err(e) => Err(CheckpointError::damaged(key, format!("not a legal object name: {e}"))),
        }
    }
}

/// A request of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// What is attempted: "read", "write", "list", "delete".
    pub(crate) action: &'static str,
    /// Object or prefix.
    pub(crate) key: &'a str,
    /// Bytes that go either way; 0 where nobody knows.
    pub(crate) bytes: u64,
}

impl Root {
    pub(crate) async fn persist<T, F>(
        &self,
        request: Request<'_>,
        attempt: impl FnMut() -> F,
    ) -> Result<T, CheckpointError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Request { action, key, bytes } = request;
        let sentence = |source: &Error, limit: Duration| self.wait_sentence(source, limit);
        // What was written before may be written again; what is read may just not be there.
        let operator = if action == "write" { Operator::Awaited } else { Operator::NotAwaited };
        let telling = self.waits.as_ref().map(|waits| Telling { waits, operator, sentence: &sentence });
        let asked = Asked { answered: &self.answered, bytes, telling };
        let result = self.patience.persist(asked, attempt).await;
        result.map_err(|gave_up| self.refused(action, key, gave_up))
    }

    fn refused(&self, action: &'static str, key: &str, gave_up: GaveUp) -> CheckpointError {
        let GaveUp { source, tries, waited } = gave_up;
        let advice = self.advice(&source);
        let key = key.to_owned();
        if advice.is_none() && matches!(source, Error::NotFound { .. }) {
            return CheckpointError::Missing { key };
        }
        let failed = Box::new(FailedRequest { action, key, tries, waited, source });
        match advice {
            Some(advice) => CheckpointError::Refused { root: self.name.to_string(), advice, failed },
            None => CheckpointError::Store(failed),
        }
    }

    /// What is told while a request waits for so long.
    fn wait_sentence(&self, source: &Error, limit: Duration) -> String {
        let headline = StoreProblem::of(source).headline();
        let advice = self.advice(source).unwrap_or_else(|| source.to_string());
        format!("{headline}: {}: {advice}; waiting for up to {} s", self.name, limit.as_secs())
    }

    /// What an operator can do about an error that is about the whole store, not about one object.
    fn advice(&self, source: &Error) -> Option<String> {
        let problem = StoreProblem::of(source);
        let Some(cloud) = self.cloud else { return on_disk(problem).map(str::to_owned) };
        let variables = cloud.variables();
        match problem {
            StoreProblem::NoRoom => on_disk(problem).map(str::to_owned),
            StoreProblem::NoBucket => {
                Some("the bucket does not exist: create it, or correct the root".into())
            }
            StoreProblem::StaleSignature => Some(format!(
                "it takes the signature for expired: set this machine's clock, or renew the credentials in {variables}"
            )),
            StoreProblem::Denied => {
                Some(format!("it refuses these credentials: check {variables}, and what they may do there"))
            }
            _ if is_asking_this_machine(&source.to_string()) => {
                Some(format!("no credentials were found: set {variables}"))
            }
            StoreProblem::Unreachable => {
                Some(format!("nothing answers at its endpoint: check the network, and {variables}"))
            }
            StoreProblem::ReadOnly | StoreProblem::Other => None,
        }
    }

    /// Reads a whole object, unverified.
    pub(crate) async fn get(&self, place: &Place<'_>) -> Result<Bytes, CheckpointError> {
        self.persist(Request { action: "read", key: place.key, bytes: 0 }, || self.fetch(&place.path)).await
    }

    /// One attempt to read a whole object.
    async fn fetch(&self, path: &Path) -> Result<Bytes, Error> {
        let result = self.store.get(path).await?;
        let wanted = result.range.end - result.range.start;
        all_of(result.bytes().await?, wanted)
    }

    /// Reads `range` of an object that is `length` bytes long, and answers what `look` makes of it, off the runtime's threads.
    /// An object of another length is damaged.
    pub(crate) async fn get_range<T: Send + 'static>(
        &self,
        place: &Place<'_>,
        range: Range<u64>,
        length: u64,
        look: impl Fn(Bytes) -> T + Clone + Send + 'static,
    ) -> Result<T, CheckpointError> {
        let wanted = range.end.saturating_sub(range.start);
        let read = self
            .persist(Request { action: "read", key: place.key, bytes: wanted }, || async {
                if let Some(disk) = &self.disk {
                    let (disk, path, range) = (disk.clone(), place.path.clone(), range.clone());
                    let (is_shared, look) = (self.is_shared, look.clone());
                    let read = move || match disk.read(&path, range, length, is_shared)? {
                        Read::Bytes(bytes) => Ok(Ok(look(bytes))),
                        Read::Length(found) => Ok(Err(found)),
                    };
                    return off_thread(read).await?;
                }
                let options =
                    GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
                let result = match self.store.get_opts(&place.path, options).await {
                    Ok(result) => result,
                    Err(error @ Error::NotFound { .. }) => return Err(error),
                    // A range beyond the end of a shorter object is an error of each store's own kind.
                    Err(error) => match self.store.head(&place.path).await {
                        Ok(meta) if meta.size != length => return Ok(Err(meta.size)),
                        _ => return Err(error),
                    },
                };
                if result.meta.size != length {
                    return Ok(Err(result.meta.size));
                }
                let (bytes, look) = (all_of(result.bytes().await?, wanted)?, look.clone());
                Ok(Ok(off_thread(move || look(bytes)).await?))
            })
            .await?;
        read.map_err(|found| {
            CheckpointError::damaged(place.key, format!("{found} bytes long, {length} were written"))
        })
    }

    /// Writes an object under a name of its own content, or one that may be replaced. Long ones go in parts where the
    /// root says so. No more than the upload window is on its way at once.
    pub(crate) async fn put(&self, place: &Place<'_>, payload: PutPayload) -> Result<(), CheckpointError> {
        let bytes = payload.content_length();
        let request = Request { action: "write", key: place.key, bytes: bytes as u64 };
        match self.part_bytes {
            Some(part) if bytes > part => {
                let _window = self.window(bytes.min(PARTS_AT_ONCE * part)).await?;
                let parts = cut(payload, part);
                self.persist(request, || self.put_parts(&place.path, &parts)).await
            }
            part => {
                // What goes to this machine's own disk has no way to crowd.
                let _window = if part.is_some() { Some(self.window(bytes).await?) } else { None };
                let put = || async { self.store.put(&place.path, payload.clone()).await.map(drop) };
                self.persist(request, put).await
            }
        }
    }

    /// Waits until so many bytes may be on their way.
    async fn window(&self, bytes: usize) -> Result<SemaphorePermit<'_>, CheckpointError> {
        let permits = bytes.min(UPLOAD_WINDOW_BYTES) as u32;
        self.uploading.acquire_many(permits).await.map_err(|_| CheckpointError::ShuttingDown)
    }

    async fn put_parts(&self, path: &Path, parts: &[PutPayload]) -> Result<(), Error> {
        let mut upload = self.store.put_multipart(path).await?;
        let sending: Vec<_> = parts.iter().map(|part| upload.put_part(part.clone())).collect();
        let sent = in_order(sending, PARTS_AT_ONCE).try_for_each(|()| std::future::ready(Ok(()))).await;
        match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => {
                if let Err(left) = upload.abort().await {
                    tracing::warn!(%path, %left, "parts of a failed upload are left; let a lifecycle rule remove them");
                }
                Err(error)
            }
        }
    }

    /// Writes an object unless one of that name exists; of several concurrent calls with different contents exactly one
    /// makes it. A lost answer is resolved by reading back; that another's content is there counts once two readings of
    /// it agree, since a reading may be damaged on its way and the object be ours.
    pub(crate) async fn create(&self, place: &Place<'_>, payload: Bytes) -> Result<Created, CheckpointError> {
        self.persist(Request { action: "write", key: place.key, bytes: payload.len() as u64 }, || async {
            let options = PutOptions::from(PutMode::Create);
            match self.store.put_opts(&place.path, payload.clone().into(), options).await {
                Ok(_) => Ok(Created::New),
                Err(Error::AlreadyExists { .. }) => match self.fetch(&place.path).await {
                    Ok(found) if found == payload => Ok(Created::Same),
                    Ok(found) if self.fetch(&place.path).await? == found => Ok(Created::Other),
                    Ok(_) => Err(generic("two readings of what is there differ".into())),
                    // S3 answers "conflict" while another Create of the name is under way and may yet fail.
                    Err(Error::NotFound { .. }) => {
                        Err(generic("it is said to exist, and cannot be read".into()))
                    }
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Removes an object; one that is gone already is no error.
    pub(crate) async fn delete(&self, place: &Place<'_>) -> Result<(), CheckpointError> {
        let deleted = self
            .persist(Request { action: "delete", key: place.key, bytes: 0 }, || {
                self.store.delete(&place.path)
            })
            .await;
        match deleted {
            Err(CheckpointError::Missing { .. }) => Ok(()),
            other => other,
        }
    }

    /// Every object under a folder, in no order.
    pub(crate) async fn list(&self, place: &Place<'_>) -> Result<Vec<ObjectMeta>, CheckpointError> {
        self.persist(Request { action: "list", key: place.key, bytes: 0 }, || {
            self.store.list(Some(&place.path)).try_collect()
        })
        .await
    }

    /// Names of the folders right under a folder.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let path = Path::from(folder);
        let listing = self
            .persist(Request { action: "list", key: folder, bytes: 0 }, || {
                self.store.list_with_delimiter(Some(&path))
            })
            .await?;
        Ok(listing.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
    }
}

/// What an operator can do about a problem of a disk.
fn on_disk(problem: StoreProblem) -> Option<&'static str> {
    match problem {
        StoreProblem::NoRoom => Some(
            "the disk is full, or the quota used up: make room there (`polygram ckpt rm` and `polygram ckpt gc` \
             need none themselves); everything committed before is untouched",
        ),
        StoreProblem::ReadOnly => Some(
            "the file system is read-only: mount it writable (an error of the disk may have made it so; the system's log \
             says); everything committed before is untouched",
        ),
        StoreProblem::Denied => Some(
            "permission denied: give this user the right to read and write that folder and all below it; everything \
             committed before is untouched",
        ),
        _ => None,
    }
}

/// Without credentials in the environment the client asks the machine's own metadata service.
fn is_asking_this_machine(text: &str) -> bool {
    // Addresses of such services, and what is asked of them.
    let marks = [
        "169.254.169.254",
        "169.254.170.",
        "metadata.google.internal",
        "/latest/api/token",
        "/latest/meta-data/",
        "/computeMetadata/",
        "/metadata/identity/",
    ];
    marks.iter().any(|mark| text.contains(mark))
}

/// `bytes` if they are as many as `wanted`; a store that sends fewer is asked again.
fn all_of(bytes: Bytes, wanted: u64) -> Result<Bytes, Error> {
    if bytes.len() as u64 == wanted {
        return Ok(bytes);
    }
    Err(generic(format!("{} bytes came, {wanted} were asked for", bytes.len())))
}

/// An error of ours in the store's type.
pub(crate) fn generic(text: String) -> Error {
    Error::Generic { store: "checkpoint", source: text.into() }
}

/// A payload as payloads of `size` bytes, the last one shorter. Nothing is copied.
fn cut(payload: PutPayload, size: usize) -> Vec<PutPayload> {
    let (mut parts, mut open, mut room) = (Vec::new(), Vec::new(), size);
    for mut chunk in payload {
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(room));
            room -= piece.len();
            open.push(piece);
            if room == 0 {
                parts.push(std::mem::take(&mut open).into_iter().collect());
                room = size;
            }
        }
    }
    if !open.is_empty() {
        parts.push(open.into_iter().collect());
    }
    parts
}

/// The stream of `futures`, at most `at_once` of them running, results in order.
pub(crate) fn in_order<F: Future>(
    futures: impl IntoIterator<Item = F>,
    at_once: usize,
) -> impl futures::Stream<Item = F::Output> {
    futures::stream::iter(futures).buffered(at_once)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_cut_without_loss() {
        let chunks = [Bytes::from_static(b"abc"), Bytes::from_static(b"defghij"), Bytes::from_static(b"k")];
        for size in 1..13 {
            let parts = cut(chunks.iter().cloned().collect(), size);
            let bytes: Vec<Vec<u8>> =
                parts.iter().map(|p| p.iter().flat_map(|b| b.to_vec()).collect()).collect();
            assert_eq!(bytes.concat(), b"abcdefghijk");
            assert!(bytes[..bytes.len() - 1].iter().all(|part| part.len() == size));
        }
    }
}
