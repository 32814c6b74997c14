//! What was written is what is read, in whatever slices and bucket ranges.

use polygram_checkpoint::{
    CheckpointError, NamedTensor, OwnedRow, PartRef, RowRecord, RowScope, RowSet, RowWriter, TableShape,
    expected_tensors, list_runs, open_root,
};
use polygram_domain::tables::{BUCKETS, buckets_of};
use polygram_domain::{RowId, RunName, ShardIndex, Step, TableIndex};

use crate::support::{Backend, ONE, Split, State, spec};

const SPLITS: [Split; 4] = [
    ONE,
    Split { workers: 3, shards: 2, object_bytes: 1 << 16 },
    Split { workers: 2, shards: 7, object_bytes: 1 << 12 },
    Split { workers: 4, shards: 64, object_bytes: 1 << 20 },
];

#[tokio::test]
async fn tensors_come_back_whole_from_any_split() {
    let spec = spec(&[]);
    let state = State::new(&spec, 1, 3);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for split in SPLITS {
            let manifest = state.manifest(&store, &spec, split).await;
            let names: Vec<String> = expected_tensors(&spec).into_iter().map(|t| t.name).collect();
            let read = store.read_tensors(&manifest, &names).await.unwrap();
            assert_eq!(read.len(), state.tensors.len());
            for tensor in &state.tensors {
                assert_eq!(read[&tensor.name].shape, tensor.shape, "{} {split:?}", backend.name);
                assert_eq!(&read[&tensor.name].data[..], &tensor.data[..], "{} {split:?}", backend.name);
            }
            let error = store.read_tensors(&manifest, &["model.nothing"]).await.unwrap_err();
            assert!(matches!(error, CheckpointError::NoTensor { ref name, .. } if name == "model.nothing"));
            assert!(manifest.objects.iter().all(|o| o.bytes <= 2 * split.object_bytes as u64 + (1 << 16)));
        }
    }
}

#[tokio::test]
async fn a_tensor_file_is_plain_safetensors() {
    let spec = spec(&[]);
    let (backend, state) = (Backend::memory(), State::new(&spec, 1, 3));
    let manifest = state.manifest(&backend.run(&spec), &spec, ONE).await;
    let mut seen = 0;
    for object in manifest.objects.iter().filter(|o| o.key.ends_with(".safetensors")) {
        let bytes = backend.raw(&spec, &object.key).await;
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for tensor in &state.tensors {
            let Ok(view) = file.tensor(&tensor.name) else { continue };
            let bytes: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(view.data(), bytes);
            assert_eq!(view.shape(), tensor.shape.iter().map(|&d| d as usize).collect::<Vec<_>>());
            seen += 1;
        }
    }
    assert_eq!(seen, state.tensors.len());
}

#[tokio::test]
async fn rows_come_back_by_other_bucket_ranges_than_written() {
    let spec = spec(&[]);
    let state = State::new(&spec, 2, 5);
    for backend in Backend::all() {
        let store = backend.run(&spec);
        for split in SPLITS {
            let manifest = state.manifest(&store, &spec, split).await;
            for (shape, rows) in &state.tables {
                for shards in [1, 2, 3, 5] {
                    let mut read: Vec<OwnedRow> = Vec::new();
                    for shard in 0..shards {
                        let buckets = buckets_of(ShardIndex(shard), shards);
                        store
                            .read_rows::<CheckpointError>(&manifest, shape.table, buckets.clone(), |record| {
                                read.push(OwnedRow {
                                    row: record.row,
                                    updates: record.updates,
                                    values: record.values.to_vec(),
                                });
                                Ok(())
                            })
                            .await
                            .unwrap();
                    }
                    assert!(read == *rows, "{} {split:?} read by {shards} shards", backend.name);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_reader_of_rows_may_stop() {
    let spec = spec(&[]);
    let (backend, state) = (Backend::memory(), State::new(&spec, 2, 5));
    let store = backend.run(&spec);
    let manifest = state.manifest(&store, &spec, ONE).await;
    let mut seen = 0;
    let result = store
        .read_rows(&manifest, TableIndex(0), 0..BUCKETS, |_| {
            seen += 1;
            if seen == 3 { Err(CheckpointError::ShuttingDown) } else { Ok(()) }
        })
        .await;
    assert!(matches!(result, Err(CheckpointError::ShuttingDown)));
    assert_eq!(seen, 3);
    let beyond = store.read_rows(&manifest, TableIndex(99), 0..1, |_| Ok(())).await;
    assert!(matches!(beyond, Err(CheckpointError::NoBuckets { table: 99, .. })));
}

#[tokio::test]
async fn writers_refuse_what_must_not_be_stored() {
    let spec = spec(&[]);
    let backend = Backend::memory();
    let store = backend.run(&spec);
    let tensor = |elements: std::ops::Range<u64>, shape: &[u64], count: usize| NamedTensor {
        name: "t".into(),
        shape: shape.to_vec(),
        elements,
        data: vec![0.0; count].into(),
    };
    for bad in [
        tensor(0..4, &[3], 4),
        tensor(0..3, &[4], 2),
        tensor(2..2, &[4], 0),
        tensor(0..1, &[u64::MAX, u64::MAX], 1),
    ] {
        let refused = store.write_tensors(Step(1), "worker-0", [bad]).await;
        assert!(matches!(refused, Err(CheckpointError::Input { .. })), "{refused:?}");
    }
    let twice = [tensor(0..4, &[4], 4), tensor(0..4, &[4], 4)];
    assert!(store.write_tensors(Step(1), "worker-0", twice).await.is_err());
    assert!(store.write_tensors(Step(1), "../evil", []).await.is_err());

    let shape = TableShape { table: TableIndex(0), rows: 8192, width: 2, state_values: 1 };
    let (part, all) = (PartRef { step: Step(1), member: "shard-0" }, RowSet { shape, scope: RowScope::All });
    let mut writer = RowWriter::new(&store, part, all, 1..2).unwrap();
    let row = |row, values| RowRecord { row: RowId(row), updates: 1, values };
    writer.push(row(2, &[1.0, 2.0, 3.0])).await.unwrap();
    for (bad, values) in
        [(2, &[0.0; 3][..]), (1, &[0.0; 3]), (4, &[0.0; 3]), (9000, &[0.0; 3]), (3, &[0.0; 2])]
    {
        let error = writer.push(row(bad, values)).await.unwrap_err();
        assert!(error.to_string().contains("table 0"), "{error}");
    }
    writer.push(row(3, &[1.0, 2.0, 3.0])).await.unwrap();
    assert_eq!(writer.finish().await.unwrap().len(), 1);
    assert!(RowWriter::new(&store, part, all, 3..3).is_err());
    assert!(RowWriter::new(&store, part, all, 0..BUCKETS + 1).is_err());
}

#[tokio::test]
async fn runs_of_a_root_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    let store = open_root(root).unwrap();
    assert_eq!(list_runs(&store).await.unwrap(), []);
    for name in ["zebra", "alpha-2"] {
        let run = polygram_checkpoint::RunStore::create(root, &RunName::new(name).unwrap()).unwrap();
        run.put_config("x = 1\n").await.unwrap();
    }
    let names: Vec<String> = list_runs(&store).await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["alpha-2", "zebra"]);
}
