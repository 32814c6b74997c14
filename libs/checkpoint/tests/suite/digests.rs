//! The digest speaks of the state and of nothing else.

use polygram_checkpoint::digest::{StateDigest, TableDigest, TensorDigest};
use polygram_checkpoint::{CheckpointError, Digest, RowRecord};
use polygram_domain::{RowId, RunSpec};

use crate::support::{Backend, ONE, Split, State, spec};

async fn digest(state: &State, spec: &RunSpec, split: Split) -> Digest {
    let backend = Backend::memory();
    let store = backend.run(spec);
    let manifest = state.manifest(&store, spec, split).await;
    store.digest(&manifest).await.unwrap()
}

#[tokio::test]
async fn every_split_of_a_state_has_one_digest() {
    let spec = spec(&[]);
    let state = State::new(&spec, 3, 9);
    let mut direct = StateDigest::default();
    for tensor in state.tensors.iter().rev() {
        let mut values = TensorDigest::default();
        tensor.data.chunks(1000).for_each(|run| values.update(run));
        direct.tensor(&tensor.name, &tensor.shape, values);
    }
    for (shape, rows) in &state.tables {
        let mut table = TableDigest::new(*shape);
        for row in rows {
            table.update(RowRecord { row: row.row, updates: row.updates, values: &row.values });
        }
        direct.table(table);
    }
    let expected = direct.finish(state.step, spec.seed, state.cursor, &Default::default());
    assert_eq!(
        expected.parts.keys().collect::<Vec<_>>(),
        ["data", "dense", "optimizer", "router_bias", "tables"]
    );
    for backend in Backend::all() {
        for (workers, shards, object_bytes) in
            [(1, 1, 1 << 30), (1, 2, 1 << 20), (2, 1, 1 << 14), (4, 3, 1 << 12), (3, 5, 100_000)]
        {
            let split = Split { workers, shards, object_bytes };
            let store = backend.run(&spec);
            let manifest = state.manifest(&store, &spec, split).await;
            assert_eq!(store.digest(&manifest).await.unwrap(), expected, "{} {split:?}", backend.name);
        }
    }
}

#[tokio::test]
async fn the_order_of_objects_does_not_matter() {
    let spec = spec(&[]);
    let (backend, state) = (Backend::memory(), State::new(&spec, 3, 9));
    let store = backend.run(&spec);
    let split = Split { workers: 3, shards: 2, object_bytes: 1 << 14 };
    let mut manifest = state.manifest(&store, &spec, split).await;
    let expected = store.digest(&manifest).await.unwrap();
    manifest.objects.reverse();
    assert_eq!(store.digest(&manifest).await.unwrap(), expected);
    manifest.objects.sort_by_key(|object| std::cmp::Reverse(object.blake3.clone()));
    assert_eq!(store.digest(&manifest).await.unwrap(), expected);
}

#[tokio::test]
async fn every_piece_of_state_moves_its_part_and_the_whole() {
    let spec = spec(&[]);
    let state = State::new(&spec, 3, 9);
    let before = digest(&state, &spec, ONE).await;
    let tensor = |end: &str| state.tensors.iter().position(|t| t.name.ends_with(end)).unwrap();
    let flip = |value: &mut f32| *value = f32::from_bits(value.to_bits() ^ 1);
    type Change<'a> = Box<dyn Fn(&mut State) + 'a>;
    let changes: Vec<(&str, Change<'_>)> = vec![
        ("dense", Box::new(|s| s.alter(tensor("lm_head.weight"), 7, flip))),
        ("optimizer", Box::new(|s| s.alter(s.tensors.len() - 1, 0, flip))),
        ("router_bias", Box::new(|s| s.alter(tensor("e_score_correction_bias"), 0, flip))),
        ("tables", Box::new(|s| s.tables[1].1[4].updates += 1)),
        ("tables", Box::new(|s| flip(s.tables[3].1[4].values.last_mut().unwrap()))),
        ("tables", Box::new(|s| drop(s.tables[0].1.pop()))),
        (
            "tables",
            Box::new(|s| {
                let unwritten = (0..).find(|&row| s.tables[0].1[row as usize].row != RowId(row)).unwrap();
                let moved = s.tables[0].1[unwritten as usize].row;
                assert!(moved.0 > unwritten);
                s.tables[0].1[unwritten as usize].row = RowId(unwritten);
            }),
        ),
        ("data", Box::new(|s| s.cursor.samples += 1)),
    ];
    for (name, change) in changes {
        let mut changed = state.clone();
        change(&mut changed);
        let after = digest(&changed, &spec, ONE).await;
        let moved: Vec<&String> =
            before.parts.keys().filter(|k| before.parts[*k] != after.parts[*k]).collect();
        assert_eq!(moved, [name]);
        assert_ne!(before.digest, after.digest);
    }
    let later = State { step: polygram_domain::Step(10), ..state.clone() };
    let after = digest(&later, &spec, ONE).await;
    assert_eq!((&before.parts, before.digest != after.digest), (&after.parts, true));
}

#[tokio::test]
async fn a_state_with_holes_never_has_the_digest_of_the_whole() {
    let spec = spec(&[]);
    let (backend, state) = (Backend::memory(), State::new(&spec, 3, 9));
    let store = backend.run(&spec);
    let split = Split { workers: 2, shards: 2, object_bytes: 1 << 14 };
    let manifest = state.manifest(&store, &spec, split).await;
    let whole = store.digest(&manifest).await.unwrap();
    for at in 0..manifest.objects.len() {
        let mut holed = manifest.clone();
        let lost = holed.objects.remove(at);
        // A hole inside a tensor or table is an error; a digest cannot miss a tensor that nothing speaks of.
        match store.digest(&holed).await {
            Err(CheckpointError::NoTensor { .. } | CheckpointError::NoBuckets { .. }) => {}
            Ok(digest) => assert_ne!(digest.digest, whole.digest, "without {}", lost.key),
            Err(other) => panic!("without {}: {other}", lost.key),
        }
        assert!(holed.check_cover(&spec).is_err());
    }
}
