//! An object store that misbehaves on order: a decorator, and what went through it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use polygram_domain::philox::{Purpose, Stream};

/// How often what goes wrong, in thousandths of all requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// "503 Slow Down", nothing done.
    pub(crate) refused: u32,
    /// Done, but answered with an error.
    pub(crate) lost_answers: u32,
    /// Fewer bytes than asked for.
    pub(crate) short_reads: u32,
    /// One bit of what is read is another.
    pub(crate) flipped_reads: u32,
    /// Every answer takes so long.
    pub(crate) delay: Duration,
    /// Creates write over what is there, as stores do that do not know them.
    pub(crate) creates_overwrite: bool,
}

/// `inner` with faults that a seed decides.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
    seed: u64,
    requests: AtomicU64,
    read_bytes: AtomicU64,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, seed: u64, faults: Faults) -> Arc<Faulty> {
        let (requests, read_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Faulty { inner, faults, seed, requests, read_bytes })
    }

    /// Requests that came so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes that were read so far.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Begins a request: its dice, or its refusal.
    async fn begin(&self) -> Result<[u32; 4]> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.faults.delay).await;
        let dice = Stream::new(self.seed, Purpose::RowInit).words(number, 0).map(|word| word % 1000);
        if dice[0] < self.faults.refused { Err(failure("503 Slow Down")) } else { Ok(dice) }
    }

    /// Ends a write: perhaps its answer is lost.
    fn end<T>(&self, dice: [u32; 4], result: Result<T>) -> Result<T> {
        match result {
            Ok(_) if dice[1] < self.faults.lost_answers => Err(failure("connection reset by peer")),
            other => other,
        }
    }
}

fn failure(text: &'static str) -> Error {
    Error::Generic { store: "faulty", source: text.into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let dice = self.begin().await?;
        let options = if self.faults.creates_overwrite { PutOptions::default() } else { options };
        self.end(dice, self.inner.put_opts(path, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let dice = self.begin().await?;
        self.end(dice, self.inner.put_multipart_opts(path, options).await)
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let dice = self.begin().await?;
        let result = self.inner.get_opts(path, options.clone()).await?;
        if options.head {
            return Ok(result);
        }
        let GetResult { meta, range, attributes, extensions, .. } = &result;
        let (meta, range) = (meta.clone(), range.clone());
        let (attributes, extensions) = (attributes.clone(), extensions.clone());
        let mut bytes = result.bytes().await?.to_vec();
        self.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if dice[1] < self.faults.short_reads {
            bytes.truncate(bytes.len() / 2);
        }
        if dice[2] < self.faults.flipped_reads && !bytes.is_empty() {
            let at = dice[3] as usize * 7919 % bytes.len();
            bytes[at] ^= 1 << (dice[3] % 8);
        }
        let stream = futures::stream::once(async { Ok(Bytes::from(bytes)) }).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(stream), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let dice = Stream::new(self.seed, Purpose::RowInit).words(number, 0);
        if dice[0] % 1000 < self.faults.refused {
            return futures::stream::once(async { Err(failure("503 Slow Down")) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.begin().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
