//! Hugging Face directories: shards, narrow types, and every way in which one can be broken.

use std::collections::BTreeMap;
use std::path::Path;

use polygram_model::Options;
use polygram_model::hf::HfDirectory;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::fixture::{Golden, golden_path};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors of golden A.
fn tensors() -> Tensors {
    let file = std::fs::read(golden_path("A/model.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&file).unwrap();
    parsed
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn directory(tensors: &Tensors) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden_path("A/config.json"), dir.path().join("config.json")).unwrap();
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

fn error_of(path: &Path) -> String {
    HfDirectory::open(path).unwrap_err().to_string()
}

#[test]
fn shards_give_the_same_bits_as_one_file() {
    let golden = Golden::open("A");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden_path("A/config.json"), dir.path().join("config.json")).unwrap();
    let (mut parts, mut map) = ([Tensors::new(), Tensors::new(), Tensors::new()], serde_json::Map::new());
    for (index, (name, tensor)) in tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", index % 3).into());
        parts[index % 3].insert(name, tensor);
    }
    for (index, part) in parts.iter().enumerate() {
        write(&dir.path().join(format!("model-{index}.safetensors")), part);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let sharded = HfDirectory::open(dir.path()).unwrap();
    let whole = golden.directory.load(Options::evaluation()).unwrap();
    assert_eq!(sharded.load(Options::evaluation()).unwrap().weights(), whole.weights());
    assert_eq!(sharded.table(3).unwrap(), golden.directory.table(3).unwrap());
    assert_eq!(sharded.rows(&golden.unique.offsets, &golden.unique.rows).unwrap(), golden.rows_suw);

    std::fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    assert!(error_of(dir.path()).contains("model-1.safetensors"));
    let outside = index.to_string().replace("model-0.safetensors", "../model-0.safetensors");
    std::fs::write(dir.path().join("model.safetensors.index.json"), outside).unwrap();
    assert!(error_of(dir.path()).contains("same directory"));
}

#[test]
fn narrow_types_are_widened() {
    let golden = Golden::open("A");
    // Significant bits of bf16 and f16 are 8 and 11: the relative error of rounding is half a unit of the last.
    for (dtype, limit) in [(Dtype::BF16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)] {
        let mut narrow = tensors();
        for (kind, _, data) in narrow.values_mut() {
            *kind = dtype;
            *data = data
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|bytes| {
                    let value = f32::from_le_bytes(*bytes);
                    match dtype {
                        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes(),
                        _ => half::f16::from_f32(value).to_le_bytes(),
                    }
                })
                .collect();
        }
        let dir = directory(&narrow);
        let opened = HfDirectory::open(dir.path()).unwrap();
        let rows = opened.rows(&golden.unique.offsets, &golden.unique.rows).unwrap();
        let model = opened.load(Options::evaluation()).unwrap();
        let exact = golden.directory.load(Options::evaluation()).unwrap();
        for (found, wanted) in [(&rows[..], &golden.rows_suw[..]), (model.weights(), exact.weights())] {
            assert!(found != wanted, "rounding must have happened");
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() <= wanted.abs() * limit + 1e-7, "{found} against {wanted}");
            }
        }
    }
}

#[test]
fn broken_directories_are_refused_with_one_clear_message() {
    let empty = tempfile::tempdir().unwrap();
    assert!(error_of(empty.path()).contains("config.json"));

    let name = "model.layers.1.mlp.experts.2.down_proj.weight";
    let mut missing = tensors();
    missing.remove(name);
    assert!(error_of(directory(&missing).path()).contains(name));

    let mut turned = tensors();
    turned.get_mut(name).unwrap().1.reverse();
    let error = error_of(directory(&turned).path());
    assert!(error.contains(name) && error.contains("[32, 64]") && error.contains("[64, 32]"), "{error}");

    let mut integers = tensors();
    integers.get_mut(name).unwrap().0 = Dtype::I32;
    assert!(error_of(directory(&integers).path()).contains("I32"));

    let dir = directory(&tensors());
    let file = dir.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 100, 7, 0] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let error = error_of(dir.path());
        assert!(error.contains("model.safetensors"), "{length} bytes: {error}");
    }
    let mut garbled = whole.clone();
    garbled[9..40].fill(b'!');
    std::fs::write(&file, &garbled).unwrap();
    assert!(error_of(dir.path()).contains("safetensors"));
    let mut huge = whole;
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&file, &huge).unwrap();
    assert!(error_of(dir.path()).contains("safetensors"));

    std::fs::write(dir.path().join("config.json"), "{ not json").unwrap();
    assert!(error_of(dir.path()).contains("config.json"));
}

#[test]
fn rows_out_of_range_are_refused() {
    let golden = Golden::open("A");
    let directory = &golden.directory;
    assert!(directory.rows(&[0, 1, 1, 1, 1], &[1_000_000]).unwrap_err().to_string().contains("1000000"));
    assert!(directory.rows(&[0, 1], &[0]).is_err());
    assert!(directory.rows(&[0, 1, 0, 1, 1], &[0]).is_err());
    assert!(directory.table(4).is_err());
}
