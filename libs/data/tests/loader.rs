//! The loader: every sample once an epoch, cells a pure function of (seed, step, cell), clear refusals.

#![allow(clippy::unwrap_used)] // a test's own files

use std::collections::BTreeSet;
use std::path::Path;

use polygram_data::segment::Existing;
use polygram_data::{DataError, Dtype, Loader, SegmentWriter, Vocabulary};
use polygram_domain::ids::{Cell, Step};
use polygram_domain::run_spec::{DataSpec, RunSpec, TrainingSpec};
use polygram_domain::{CellBatch, HeldOutSets, RunFile};

const VOCAB: Vocabulary = Vocabulary { size: 60_000, bos: 1, eos: 2 };

/// A run of a configuration that ships with the project, its batch made small.
fn run() -> RunSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tiny.toml");
    let text = std::fs::read_to_string(path).unwrap();
    RunFile::parse(&text, "configs/tiny.toml", &[]).unwrap().resolve().unwrap()
}

fn training(seq_len: u32, micro_batch_size: u32, cells: u32) -> TrainingSpec {
    TrainingSpec { seq_len, micro_batch_size, cells, ..run().training }
}

/// A segment whose token at position p is p + 3.
fn counting(folder: &Path, name: &str, tokens: u32) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    let mut writer = SegmentWriter::create(&path, Dtype::U16, Existing::Refuse).unwrap();
    let all: Vec<u32> = (3..tokens + 3).collect();
    for document in all.chunks(10) {
        writer.push(document).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn segments(train: String, held_out: Option<String>) -> DataSpec {
    DataSpec::Segments { train, held_out: held_out.map(HeldOutSets::one).unwrap_or_default() }
}

/// First token of each sequence.
fn firsts(batch: &CellBatch) -> Vec<u32> {
    batch.tokens_bt().iter().step_by(batch.seq_len()).copied().collect()
}

#[test]
fn an_epoch_visits_every_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    // 24 samples of 4 + 1 tokens; one token is left over.
    let data = segments(counting(folder.path(), "t", 98), None);
    let loader = Loader::open(&data, 7, &training(4, 3, 2), VOCAB).unwrap();
    assert_eq!((loader.samples(), loader.train_tokens(), loader.held_out_cells(0)), (24, 98, 0));
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let mut seen = Vec::new();
        for step in 0..4 {
            for cell in 0..2 {
                let batch = loader.cell(Step(epoch * 4 + step), Cell(cell)).unwrap();
                assert_eq!((batch.batch(), batch.seq_len()), (3, 4));
                for (input, target) in batch.tokens_bt().iter().zip(batch.targets_bt()) {
                    assert_eq!(i64::from(*input) + 1, *target);
                }
                seen.extend(firsts(&batch));
            }
        }
        let samples: BTreeSet<u32> = seen.iter().map(|token| (token - 3) / 4).collect();
        assert!(samples.into_iter().eq(0..24) && seen.iter().all(|token| (token - 3) % 4 == 0));
        orders.push(seen);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2], "each epoch has its own order");

    // Resuming needs nothing but the numbers; the grid's shape does not change which samples follow.
    let again = Loader::open(&data, 7, &training(4, 3, 2), VOCAB).unwrap();
    assert_eq!(again.cell(Step(5), Cell(1)).unwrap(), loader.cell(Step(5), Cell(1)).unwrap());
    let wider = Loader::open(&data, 7, &training(4, 6, 1), VOCAB).unwrap();
    assert_eq!(firsts(&wider.cell(Step(1), Cell(0)).unwrap()), orders[0][6..12]);
    let other = Loader::open(&data, 8, &training(4, 3, 2), VOCAB).unwrap();
    assert_ne!(other.cell(Step(0), Cell(0)).unwrap(), loader.cell(Step(0), Cell(0)).unwrap());
}

#[test]
fn held_out_cells_follow_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let data = segments(counting(folder.path(), "t", 98), Some(counting(folder.path(), "h", 30)));
    let loader = Loader::open(&data, 7, &training(4, 3, 2), VOCAB).unwrap();
    assert_eq!(loader.held_out_cells(0), 2);
    let cells: Vec<Vec<u32>> =
        (0..2).map(|i| firsts(&loader.held_out_cell(0, i).unwrap().unwrap())).collect();
    assert_eq!(cells, [[3, 7, 11], [15, 19, 23]]);
    for past in [2, u64::MAX] {
        assert_eq!(loader.held_out_cell(0, past).unwrap(), None);
    }
}

#[test]
fn every_held_out_set_has_cells_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let [wiki, code] = [("wiki", 30), ("code", 13)]
        .map(|(name, tokens)| (name.to_owned(), counting(folder.path(), name, tokens)));
    let sets =
        |sets: &[&(String, String)]| HeldOutSets::named(sets.iter().map(|set| (*set).clone())).unwrap();
    let train = counting(folder.path(), "t", 98);
    let data = |held_out| DataSpec::Segments { train: train.clone(), held_out };
    let loader = Loader::open(&data(sets(&[&wiki, &code])), 7, &training(4, 3, 2), VOCAB).unwrap();
    assert_eq!(
        loader.held_out_sets().collect::<Vec<_>>(),
        ["code", "wiki"],
        "by name, in any order of the file"
    );
    assert_eq!([0, 1, 2].map(|set| loader.held_out_cells(set)), [1, 2, 0]);
    // The same tokens with other training data, another seed and other sets beside: they follow from the file alone.
    let alone = Loader::open(&data(sets(&[&wiki])), 8, &training(4, 3, 1), VOCAB).unwrap();
    for cell in 0..2 {
        assert_eq!(loader.held_out_cell(1, cell).unwrap(), alone.held_out_cell(0, cell).unwrap());
    }
    assert_eq!(loader.held_out_cell(2, 0).unwrap(), None);

    let short = ("short".to_owned(), counting(folder.path(), "short", 12));
    let error =
        Loader::open(&data(sets(&[&wiki, &short])), 7, &training(4, 3, 2), VOCAB).map(drop).unwrap_err();
    assert!(
        matches!(&error, DataError::TooShort { source_name, .. } if source_name.contains("short")),
        "{error}"
    );
}

#[test]
fn short_and_foreign_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |data: &DataSpec, vocab| Loader::open(data, 7, &training(4, 3, 2), vocab).map(drop);
    let short = segments(counting(folder.path(), "short", 4), None);
    let error = open(&short, VOCAB).unwrap_err();
    assert!(matches!(error, DataError::TooShort { tokens: 4, needed: 5, .. }), "{error}");
    let enough = counting(folder.path(), "enough", 5);
    open(&segments(enough.clone(), None), VOCAB).unwrap();
    let held_out = segments(enough.clone(), Some(counting(folder.path(), "h", 12)));
    let error = open(&held_out, VOCAB).unwrap_err();
    assert!(matches!(error, DataError::TooShort { tokens: 12, needed: 13, .. }), "{error}");

    let error = open(&segments(enough, None), Vocabulary { size: 6, ..VOCAB }).unwrap_err();
    assert!(error.to_string().contains("enough.bin has token 6 at position 3 (document 0)"), "{error}");
    assert!(open(&segments("nowhere/at/all".into(), None), VOCAB).is_err());
    let nothing = DataSpec::Synthetic { tokens: 4, held_out_tokens: 0 };
    assert!(matches!(open(&nothing, VOCAB), Err(DataError::TooShort { .. })));
}

#[test]
fn cells_outside_the_grid_are_refused() {
    let data = DataSpec::Synthetic { tokens: 10_000, held_out_tokens: 1000 };
    let loader = Loader::open(&data, 7, &training(64, 2, 4), VOCAB).unwrap();
    for (step, cell) in [(0, 4), (u64::MAX, 0), (u64::MAX / 8, 3)] {
        let error = loader.cell(Step(step), Cell(cell)).unwrap_err();
        assert!(matches!(error, DataError::NoSuchCell { .. }), "{error}");
    }
    assert!(loader.cell(Step(u64::MAX / 8 - 1), Cell(3)).is_ok());
}

#[test]
fn a_run_s_synthetic_data_is_its_own() {
    let mut spec = run();
    spec.data = DataSpec::Synthetic { tokens: 1 << 20, held_out_tokens: 1 << 16 };
    let loader = Loader::of_run(&spec).unwrap();
    let batch = loader.cell(Step(3), Cell(0)).unwrap();
    assert!(batch.tokens_bt().iter().all(|&token| token < spec.model.vocab_size));
    assert!(batch.tokens_bt().contains(&spec.model.eos_token_id));
    assert_eq!(batch, Loader::of_run(&spec).unwrap().cell(Step(3), Cell(0)).unwrap());
    assert!(loader.held_out_cell(0, 0).unwrap().is_some());
    spec.seed += 1;
    assert_ne!(batch, Loader::of_run(&spec).unwrap().cell(Step(3), Cell(0)).unwrap());
}
