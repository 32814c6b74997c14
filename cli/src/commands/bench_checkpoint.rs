//! `polygram bench checkpoint`: a state of a given size written durably to a root, and read back into memory that is
//! there already. benches/peers/checkpoint.py puts other libraries beside it.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::TryStreamExt;
use polygram_checkpoint::{
    CheckpointError, ConfigHash, Cursor, Manifest, NamedTensor, ObjectEntry, RunStore,
};
use polygram_domain::{RunName, SCHEMA_VERSION, Step};
use serde::Serialize;

use crate::args::{BenchCheckpointArgs, CheckpointWork};
use crate::commands::block_on;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::Root;
use crate::stored;
use crate::units;

/// Tensors of the state are of this size: 32 MiB.
const TENSOR_ELEMENTS: u64 = 8 << 20;

#[derive(Debug, Serialize)]
struct Document {
    work: &'static str,
    bytes: u64,
    objects: usize,
    seconds: f64,
    gigabytes_per_second: f64,
}

pub(crate) fn run(args: &BenchCheckpointArgs, printer: &mut Printer) -> Outcome {
    let root = Root::resolve(&args.root)?;
    let run = RunName::new("bench-checkpoint").map_err(Failure::failed)?;
    let failed = |error| stored::refused(&root, error);
    let tensors = args.mebibytes.div_ceil(TENSOR_ELEMENTS >> 18);
    let document = block_on(async {
        let store = RunStore::create(&root.address(), &run).map_err(failed)?;
        match args.work {
            CheckpointWork::Save => save(&store, tensors).await.map_err(failed),
            CheckpointWork::Load => load(&store, tensors).await.map_err(failed),
        }
    })?;
    printer.result(&document, || {
        let Document { work, bytes, objects, seconds, gigabytes_per_second } = &document;
        let size = units::bytes(*bytes);
        let objects = units::counted(*objects as u64, "object");
        format!("{work}: {size} in {objects}, {seconds:.2} s, {gigabytes_per_second:.2} GB/s")
    })?;
    Ok(ExitStatus::Success)
}

fn name(tensor: u64) -> String {
    format!("model.bench.{tensor:04}")
}

fn value(tensor: u64, element: u64) -> f32 {
    ((tensor * 977 + element * 31) % 65_537) as f32
}

/// The state is made before the clock starts. A save is over when all objects and the manifest are synced.
async fn save(store: &RunStore, tensors: u64) -> Result<Document, CheckpointError> {
    let make = |tensor| {
        let values: Vec<f32> = (0..TENSOR_ELEMENTS).map(|element| value(tensor, element)).collect();
        NamedTensor::whole(name(tensor), &[TENSOR_ELEMENTS], values)
    };
    let state: Vec<NamedTensor> = (0..tensors).map(make).collect();
    let start = Instant::now();
    let mut objects = store.write_tensors(Step(0), "worker-0", state).await?;
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    let manifest = Manifest {
        schema: SCHEMA_VERSION,
        run: store.run().to_string(),
        step: Step(0),
        kind: Default::default(),
        seed: 0,
        config: ConfigHash::of(""),
        cursor: Cursor { samples: 0, tokens: 0 },
        table_decay: None,
        ledger: None,
        policy: Default::default(),
        created_unix_ms: 0,
        objects,
    };
    store.commit(&manifest).await?;
    Ok(document("save", &manifest.objects, start))
}

/// Into memory that was touched before the clock starts, as a model's weights are.
async fn load(store: &RunStore, tensors: u64) -> Result<Document, CheckpointError> {
    let mut state: BTreeMap<String, Vec<f32>> =
        (0..tensors).map(|tensor| (name(tensor), vec![1.0; TENSOR_ELEMENTS as usize])).collect();
    let start = Instant::now();
    let manifest = store.read_manifest(Step(0)).await?;
    let mut parts = store.tensors(&manifest.objects, |tensor| Some(tensor.elements.clone()));
    while let Some(part) = parts.try_next().await? {
        let elements = part.elements.start as usize..part.elements.end as usize;
        if let Some(values) = state.get_mut(&part.name).and_then(|values| values.get_mut(elements)) {
            values.copy_from_slice(&part.data);
        }
    }
    drop(parts);
    let document = document("load", &manifest.objects, start);
    for (tensor, (name, values)) in (0..).zip(&state) {
        let last = TENSOR_ELEMENTS - 1;
        if values[0] != value(tensor, 0) || values[last as usize] != value(tensor, last) {
            let step = manifest.step;
            return Err(CheckpointError::NoTensor { step, name: name.clone() });
        }
    }
    Ok(document)
}

fn document(work: &'static str, objects: &[ObjectEntry], start: Instant) -> Document {
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), objects.iter().map(|object| object.bytes).sum());
    let gigabytes_per_second = bytes as f64 / seconds / 1e9;
    Document { work, bytes, objects: objects.len(), seconds, gigabytes_per_second }
}
