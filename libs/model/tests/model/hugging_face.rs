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
    tensors_of("A")
}

fn tensors_of(name: &str) -> Tensors {
    let file = std::fs::read(golden_path(name).join("model.safetensors")).unwrap();
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

/// What this value does to a model is never silent: the error names the tensor and the place.
#[test]
fn values_that_are_not_finite_are_refused_by_name() {
    let golden = Golden::open("A");
    let dense = "model.layers.1.mlps.0.up_proj.weight";
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut broken = tensors();
        broken.get_mut(dense).unwrap().2[4 * (64 * 3 + 5)..][..4].copy_from_slice(&bad.to_le_bytes());
        let dir = directory(&broken);
        let opened = HfDirectory::open(dir.path()).unwrap();
        let error = opened.load(Options::evaluation()).unwrap_err().to_string();
        assert!(error.contains(dense) && error.contains("[3, 5]"), "{error}");
    }
    // Half precision has its own infinities.
    let mut half = tensors();
    let (dtype, _, data) = half.get_mut("model.norm.weight").unwrap();
    *dtype = Dtype::F16;
    *data = [half::f16::ONE.to_le_bytes(); 64].concat();
    data[6..8].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    let opened = HfDirectory::open(directory(&half).path()).unwrap();
    let error = opened.load(Options::evaluation()).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight") && error.contains("[3]"), "{error}");

    let table = "model.ngram_embeddings.embedders.1.weight";
    let (row, used) = (golden.unique.rows[golden.unique.offsets[1]], &golden.unique);
    let mut broken = tensors();
    let place = 4 * (16 * row as usize + 2);
    broken.get_mut(table).unwrap().2[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let dir = directory(&broken);
    let opened = HfDirectory::open(dir.path()).unwrap();
    for error in [
        opened.rows(&used.offsets, &used.rows).unwrap_err().to_string(),
        opened.table(1).unwrap_err().to_string(),
    ] {
        assert!(error.contains(table) && error.contains(&format!("[{row}, 2]")), "{error}");
    }
}

#[test]
fn tensors_that_the_model_does_not_have_are_refused_by_name() {
    let one = || (Dtype::F32, vec![1], vec![0; 4]);
    // A router bias that the configuration does not know, a layer too many, a quantisation scale.
    for name in [
        "model.layers.0.mlp.router.classifier.bias",
        "model.layers.2.input_layernorm.0.weight",
        "model.layers.0.mlps.0.up_proj.weight_scale_inv",
        "model.ngram_embeddings.embedders.4.weight",
        "model.layers.0.mlp.experts.6.gate_proj.weight",
    ] {
        let mut more = tensors();
        more.insert(name.to_owned(), one());
        let error = error_of(directory(&more).path());
        assert!(error.contains(name) && error.contains("model.safetensors"), "{error}");
    }
    // These are known to be of no use here.
    let mut more = tensors();
    for name in ["model.mtp.layers.0.eh_proj.weight", "model.layers.1.self_attn.0.rotary_emb.inv_freq"] {
        more.insert(name.to_owned(), one());
    }
    HfDirectory::open(directory(&more).path()).unwrap();
}

/// transformers 5.24.0 writes gate and up projections of zero experts, which it does not use either.
#[test]
fn weights_of_zero_experts_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden_path("B/config.json"), dir.path().join("config.json")).unwrap();
    let mut more = tensors_of("B");
    for name in
        ["model.layers.0.mlp.experts.8.gate_proj.weight", "model.layers.1.mlp.experts.11.up_proj.weight"]
    {
        more.insert(name.to_owned(), (Dtype::F32, vec![24, 96], vec![0; 4 * 24 * 96]));
    }
    write(&dir.path().join("model.safetensors"), &more);
    HfDirectory::open(dir.path()).unwrap();
    // There are 12 experts, from 0 to 11.
    more.insert("model.layers.1.mlp.experts.12.up_proj.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    write(&dir.path().join("model.safetensors"), &more);
    assert!(error_of(dir.path()).contains("experts.12.up_proj"));
}

/// transformers 5 keeps the experts of a layer in two tensors.
#[test]
fn fused_experts_give_the_same_bits() {
    let golden = Golden::open("B");
    let mut fused = tensors_of("B");
    for layer in 0..2 {
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..8 {
            let prefix = format!("model.layers.{layer}.mlp.experts.{expert}");
            for part in ["gate_proj", "up_proj"] {
                gate_up.extend(fused.remove(&format!("{prefix}.{part}.weight")).unwrap().2);
            }
            down.extend(fused.remove(&format!("{prefix}.down_proj.weight")).unwrap().2);
        }
        // Rows of zero experts, which hold anything.
        gate_up.extend(f32::NAN.to_le_bytes().repeat(4 * 48 * 96));
        let prefix = format!("model.layers.{layer}.mlp.experts");
        fused.insert(format!("{prefix}.gate_up_proj"), (Dtype::F32, vec![12, 48, 96], gate_up));
        fused.insert(format!("{prefix}.down_proj"), (Dtype::F32, vec![8, 96, 24], down));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden_path("B/config.json"), dir.path().join("config.json")).unwrap();
    let file = dir.path().join("model.safetensors");
    write(&file, &fused);
    let opened = HfDirectory::open(dir.path()).unwrap();
    let whole = golden.directory.load(Options::evaluation()).unwrap();
    assert_eq!(opened.load(Options::evaluation()).unwrap().weights(), whole.weights());

    let name = "model.layers.1.mlp.experts.down_proj";
    fused.get_mut(name).unwrap().1 = vec![8, 24, 96];
    write(&file, &fused);
    assert!(error_of(dir.path()).contains(name));
    fused.get_mut(name).unwrap().1 = vec![4, 96, 48];
    write(&file, &fused);
    assert!(error_of(dir.path()).contains(name));
}

/// The published class has the word embedding under two names; a writer that drops doubles may keep either.
#[test]
fn the_word_embedding_may_have_its_second_name() {
    let golden = Golden::open("A");
    let (name, alias) = ("model.embed_tokens.weight", "model.ngram_embeddings.word_embeddings.weight");
    let mut both = tensors();
    both.insert(alias.to_owned(), both[name].clone());
    let mut second = both.clone();
    second.remove(name);
    let whole = golden.directory.load(Options::evaluation()).unwrap();
    for tensors in [&both, &second] {
        let opened = HfDirectory::open(directory(tensors).path()).unwrap();
        assert_eq!(opened.load(Options::evaluation()).unwrap().weights(), whole.weights());
    }
    both.get_mut(alias).unwrap().2[0] ^= 1;
    let error = error_of(directory(&both).path());
    assert!(error.contains(alias) && error.contains("differ"), "{error}");
}

#[test]
fn a_directory_without_one_set_of_weights_is_refused() {
    let dir = directory(&tensors());
    std::fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(error_of(dir.path()).contains("both"));
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(error_of(dir.path()).contains("weight_map"));
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    assert!(error_of(dir.path()).contains("neither"));
    std::fs::write(dir.path().join("config.json"), [0xff, 0xfe]).unwrap();
    assert!(error_of(dir.path()).contains("UTF-8"));
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
