//! A made-up training state, written by any split of members, and the stores to write it to.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use polygram_checkpoint::cover::expected_tables;
use polygram_checkpoint::{
    Committed, ConfigHash, Cursor, Manifest, ManifestHeader, NamedTensor, OwnedRow, Part, PartRef, Root,
    RunStore, TableShape, Variables, create_root, expected_tensors, open_root, open_root_with,
};
use polygram_domain::philox::{Purpose, Stream};
use polygram_domain::tables::{BUCKETS, buckets_of};
use polygram_domain::{RowId, RunFile, RunSpec, ShardIndex, Step};
use polygram_tests::Moto;

/// A store of each kind, with what must outlive it.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) root: Root,
    _folder: Option<tempfile::TempDir>,
}

/// The bucket of this test program; every backend has a prefix of its own in it.
const BUCKET: &str = "suite";

impl Backend {
    pub(crate) fn memory() -> Backend {
        Backend { name: "memory", root: open_root("memory://").unwrap(), _folder: None }
    }

    pub(crate) fn file() -> Backend {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("not/yet/there");
        let root = create_root(&format!("file://{}", root.display())).unwrap();
        Backend { name: "file", root, _folder: Some(folder) }
    }

    /// The S3 protocol, spoken with a server on this machine.
    pub(crate) fn s3() -> Backend {
        Backend { name: "s3", root: Backend::s3_at(Backend::server().endpoint()), _folder: None }
    }

    /// The server of this test program, with its bucket.
    pub(crate) fn server() -> &'static Moto {
        static BUCKET_MADE: OnceLock<()> = OnceLock::new();
        let server = Moto::shared().unwrap();
        BUCKET_MADE.get_or_init(|| server.make_bucket(BUCKET).unwrap());
        server
    }

    /// A new prefix of the bucket, reached at `endpoint`.
    pub(crate) fn s3_at(endpoint: &str) -> Root {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = format!("s3://{BUCKET}/prefix/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut variables = Backend::server().variables();
        variables.retain(|(key, _)| *key != "AWS_ENDPOINT_URL");
        variables.push(("AWS_ENDPOINT_URL", endpoint));
        open_root_with(&root, &Variables::these(variables)).unwrap()
    }

    pub(crate) fn all() -> Vec<Backend> {
        vec![Backend::memory(), Backend::file(), Backend::s3()]
    }

    pub(crate) fn run(&self, spec: &RunSpec) -> RunStore {
        RunStore::at(self.root.clone(), &spec.name)
    }

    fn path(spec: &RunSpec, key: &str) -> Path {
        Path::parse(format!("runs/{}/{key}", spec.name)).unwrap()
    }

    /// The bytes of an object, past the crate's checks.
    pub(crate) async fn raw(&self, spec: &RunSpec, key: &str) -> Bytes {
        self.root.store().get(&Backend::path(spec, key)).await.unwrap().bytes().await.unwrap()
    }

    /// Writes an object, past the crate's checks.
    pub(crate) async fn overwrite(&self, spec: &RunSpec, key: &str, bytes: impl Into<Bytes>) {
        self.root.store().put(&Backend::path(spec, key), bytes.into().into()).await.unwrap();
    }

    pub(crate) async fn remove(&self, spec: &RunSpec, key: &str) {
        self.root.store().delete(&Backend::path(spec, key)).await.unwrap();
    }
}

/// The smallest run file that has every part, with the given overrides.
pub(crate) fn spec(overrides: &[&str]) -> RunSpec {
    let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
    let text = include_str!("../../../../configs/tiny.toml");
    RunFile::parse(text, "tiny.toml", &overrides).and_then(|file| file.resolve()).unwrap()
}

/// Whole logical state of a run at a step.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) step: Step,
    pub(crate) cursor: Cursor,
    pub(crate) tensors: Vec<NamedTensor>,
    pub(crate) tables: Vec<(TableShape, Vec<OwnedRow>)>,
}

/// Who writes which part of a state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Members that hold an equal run of elements of every tensor.
    pub(crate) workers: u64,
    /// Members that hold an equal run of buckets of every table.
    pub(crate) shards: u32,
    /// Objects are closed at about so many bytes.
    pub(crate) object_bytes: usize,
}

pub(crate) const ONE: Split = Split { workers: 1, shards: 1, object_bytes: 1 << 20 };

impl State {
    /// Changes one value of a tensor.
    pub(crate) fn alter(&mut self, tensor: usize, element: usize, change: impl Fn(&mut f32)) {
        let mut values = self.tensors[tensor].data.to_vec();
        change(&mut values[element]);
        self.tensors[tensor].data = values.into();
    }

    /// A state whose values are a function of `seed` and `step`: about a third of the rows are written.
    pub(crate) fn new(spec: &RunSpec, seed: u64, step: u64) -> State {
        let stream = Stream::new(seed, Purpose::RowInit);
        let mut words = (0u64..).flat_map(|low| stream.words(step, low));
        let mut word = || words.next().unwrap();
        let mut values = |count: usize| -> Vec<f32> {
            (0..count).map(|_| (word() >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
        };
        let tensors = expected_tensors(spec)
            .into_iter()
            .map(|t| NamedTensor::whole(t.name, &t.shape, values(t.shape.iter().product::<u64>() as usize)))
            .collect();
        let tables = expected_tables(spec)
            .into_iter()
            .map(|shape| {
                let rows = (0..shape.rows)
                    .filter(|row| stream.words(u64::from(shape.table.0), u64::from(*row))[0] < u32::MAX / 3)
                    .map(|row| OwnedRow {
                        row: RowId(row),
                        updates: 1 + row % 5,
                        values: values(shape.values()),
                    })
                    .collect();
                (shape, rows)
            })
            .collect();
        let cursor =
            Cursor { samples: step * spec.samples_per_step(), tokens: step * spec.tokens_per_step() };
        State { step: Step(step), cursor, tensors, tables }
    }

    /// Writes the state as `split` says; the objects of every member, in order.
    pub(crate) async fn write(&self, store: &RunStore, split: Split) -> Vec<Part> {
        let store = store.clone().with_object_bytes(split.object_bytes);
        let mut parts = Vec::new();
        for worker in 0..split.workers {
            let slices = self.tensors.iter().filter_map(|tensor| {
                let count = tensor.data.len() as u64;
                let (start, end) = (count * worker / split.workers, count * (worker + 1) / split.workers);
                (start < end).then(|| NamedTensor {
                    elements: start..end,
                    data: tensor.data.slice(start as usize..end as usize),
                    ..tensor.clone()
                })
            });
            let member = format!("worker-{worker}");
            let objects = store.write_tensors(self.step, &member, slices.collect::<Vec<_>>()).await.unwrap();
            let cursor = (worker == 0).then_some(self.cursor);
            parts.push(Part { member, step: self.step, objects, cursor, table_decay: None });
        }
        for shard in 0..split.shards {
            let member = format!("shard-{shard}");
            let buckets = buckets_of(ShardIndex(shard), split.shards);
            let mut objects = Vec::new();
            for (shape, rows) in &self.tables {
                let rows = rows.iter().filter(|row| {
                    let bucket = u64::from(row.row.0) * u64::from(BUCKETS) / u64::from(shape.rows);
                    buckets.contains(&(bucket as u32))
                });
                let rows: Vec<OwnedRow> = rows.cloned().collect();
                let written = store
                    .write_rows(PartRef { step: self.step, member: &member }, *shape, buckets.clone(), rows)
                    .await
                    .unwrap();
                objects.extend(written);
            }
            parts.push(Part { member, step: self.step, objects, cursor: None, table_decay: None });
        }
        parts
    }

    /// Writes and assembles the state, without a commit.
    pub(crate) async fn manifest(&self, store: &RunStore, spec: &RunSpec, split: Split) -> Manifest {
        let parts = self.write(store, split).await;
        Manifest::assemble(spec, header(self.step), &parts).unwrap()
    }
}

pub(crate) fn header(step: Step) -> ManifestHeader {
    ManifestHeader {
        step,
        kind: Default::default(),
        config: ConfigHash::of("config"),
        ledger: None,
        policy: Default::default(),
        created_unix_ms: 1_700_000_000_000,
    }
}

/// Runs a future to its end on a runtime of its own, for property tests.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Commits the state of seed 1 at `step`, of one member each.
pub(crate) async fn commit(store: &RunStore, spec: &RunSpec, step: u64) -> Manifest {
    let manifest = State::new(spec, 1, step).manifest(store, spec, ONE).await;
    assert_eq!(store.commit(&manifest).await.unwrap(), Committed::Now);
    manifest
}
