//! `polygram logits` on what users give it: wrong models and inputs end with status 2 and one message, and
//! links, pipes and devices as output stay what they are.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_tests::tensors::TensorFile;
use polygram_tests::{Finished, Running, program, repository};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
/// Status of a wrong command line or input.
const WRONG_INPUT: Option<i32> = Some(2);

/// A copy of golden A in a folder of its own.
struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new() -> Result<Model> {
        let model = Model { folder: tempfile::tempdir()? };
        fs::create_dir(model.at("model"))?;
        for file in ["model/config.json", "model/model.safetensors"] {
            fs::copy(golden(&file.replace("model/", "A/")), model.at(file))?;
        }
        Ok(model)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration with these keys in place of its own.
    fn configure(&self, keys: &Value) -> Result<()> {
        let mut config: Value = serde_json::from_slice(&fs::read(golden("A/config.json"))?)?;
        let keys = keys.as_object().context("keys")?.clone();
        config.as_object_mut().context("config.json")?.extend(keys);
        Ok(fs::write(self.at("model/config.json"), config.to_string())?)
    }

    fn run(&self, input: &Path, output: &Path) -> Result<Finished> {
        let mut command = Command::new(program("polygram")?);
        command.current_dir(self.folder.path()).arg("logits").arg("--model").arg(self.at("model"));
        command.arg("--input").arg(input).arg("--output").arg(output);
        Running::start(command, self.folder.path())?.wait(LIMIT)
    }

    /// The message of a command that refuses its input with status 2, once, and writes nothing.
    fn refusal(&self, input: &Path, output: &Path) -> Result<String> {
        let finished = self.run(input, output)?;
        ensure!(finished.status.code() == WRONG_INPUT, "{}", finished.said());
        let message = finished.refusal()?;
        ensure!(message.matches("error: ").count() == 1, "not told once:\n{message}");
        Ok(message)
    }
}

fn golden(name: &str) -> PathBuf {
    repository().join("tests/golden").join(name)
}

fn input() -> PathBuf {
    golden("A/forward.safetensors")
}

#[test]
fn a_wrong_configuration_is_refused_with_status_2_and_its_key() {
    let model = Model::new().unwrap();
    let output = model.at("out");
    for (keys, key) in [
        (json!({ "hidden_act": "gelu" }), "hidden_act"),
        (json!({ "eos_token_id": [2, 3] }), "eos_token_id"),
        (json!({ "num_layers": 4_294_967_295u32 }), "num_layers"),
        (json!({ "router_bias": true }), "router_bias"),
        (json!({ "residual_gate": 1 }), "residual_gate"),
        (json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0 } }), "rope_scaling.rope_type"),
    ] {
        model.configure(&keys).unwrap();
        let message = model.refusal(&input(), &output).unwrap();
        assert!(message.contains(key) && message.contains("config.json"), "{key}: {message}");
        assert!(!output.exists());
    }
}

#[test]
fn what_was_written_is_told_in_one_line() {
    let model = Model::new().unwrap();
    let finished = model.run(&input(), &model.at("out")).unwrap().success().unwrap();
    let bytes = fs::read(model.at("out")).unwrap();
    let shape = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().shape().to_vec();
    let line = format!("logits of {} positions ({} sequence", shape[0] * shape[1], shape[0]);
    assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.said());
    assert!(
        finished.stdout.starts_with(&line) && finished.stdout.trim_end().ends_with("/out"),
        "{}",
        finished.said()
    );
}

#[test]
fn an_input_that_is_none_is_refused_with_what_it_should_be() {
    let model = Model::new().unwrap();
    let data = [0u8; 8];
    let file = |name: &str, dtype, shape: &[usize]| {
        let view = TensorView::new(dtype, shape.to_vec(), &data).unwrap();
        fs::write(model.at("in"), safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        model.refusal(&model.at("in"), &model.at("out")).unwrap()
    };
    for (message, words) in [
        (file("tokens", Dtype::I64, &[1, 1]), &["no tensor input_ids", "tokens", "I64 of shape [B, T]"][..]),
        (file("input_ids", Dtype::I32, &[1, 2]), &["input_ids is I32", "convert it to I64"]),
        (file("input_ids", Dtype::I64, &[1]), &["shape [1]", "I64 of shape [B, T]"]),
        (file("input_ids", Dtype::I64, &[1, 1]), &["[1, 1]", "T ≥ 2"]),
    ] {
        for word in words {
            assert!(message.contains(word), "{word:?}: {message}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let model = Model::new().unwrap();
    let bytes = fs::read(golden("A/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
    norm.3[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(model.at("model/model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let message = model.refusal(&input(), &model.at("out")).unwrap();
    assert!(message.contains("model.norm.weight") && message.contains("finite"), "{message}");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused_by_position() {
    let model = Model::new().unwrap();
    for (id, place) in [(113i64, 4), (-1, 0), (i64::MAX, 5), (1 << 32, 3)] {
        let mut tokens = [7i64; 6];
        tokens[place] = id;
        let data: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I64, vec![2, 3], &data).unwrap();
        let input = model.at("in");
        fs::write(&input, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
        let message = model.refusal(&input, &model.at("out")).unwrap();
        let wanted = format!("input_ids[{}, {}] is {id}", place / 3, place % 3);
        assert!(message.contains(&wanted) && message.contains("112"), "{message}");
    }
}

#[test]
fn an_unusable_input_or_output_is_refused_before_the_work() {
    let model = Model::new().unwrap();
    fs::create_dir(model.at("dir")).unwrap();
    fs::write(model.at("text"), "no tensors").unwrap();
    for name in ["missing", "dir", "text"] {
        let message = model.refusal(&model.at(name), &model.at("out")).unwrap();
        assert!(message.contains(name), "{message}");
    }
    // The model is wrong, too: the output is looked at first.
    model.configure(&json!({ "hidden_act": "gelu" })).unwrap();
    for name in ["dir", "nowhere/out", "text/out"] {
        let message = model.refusal(&input(), &model.at(name)).unwrap();
        assert!(message.contains(name) && message.contains("cannot write"), "{message}");
    }
    assert!(model.at("dir").is_dir() && fs::read(model.at("text")).unwrap() == b"no tensors");
}

/// The bytes of the logits in an output.
fn values(bytes: &[u8]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    Ok(file.tensor("logits")?.data().to_vec())
}

#[test]
fn links_pipes_and_devices_stay_what_they_are() {
    let model = Model::new().unwrap();
    let plain = model.at("plain");
    model.run(&input(), &plain).unwrap().success().unwrap();
    TensorFile::open(&plain).unwrap().f32s("logits").unwrap();
    let wanted = values(&fs::read(&plain).unwrap()).unwrap();

    fs::write(model.at("target"), "old").unwrap();
    symlink("target", model.at("link")).unwrap();
    symlink("fresh", model.at("dangling")).unwrap();
    for (link, target) in [("link", "target"), ("dangling", "fresh")] {
        model.run(&input(), &model.at(link)).unwrap().success().unwrap();
        assert!(model.at(link).is_symlink(), "{link}");
        assert!(values(&fs::read(model.at(target)).unwrap()).unwrap() == wanted, "{link}");
    }

    let pipe = model.at("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(pipe).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    model.run(&input(), &pipe).unwrap().success().unwrap();
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    assert!(values(&reader.join().unwrap()).unwrap() == wanted);

    model.run(&input(), Path::new("/dev/null")).unwrap().success().unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    // A device without room is no wrong input.
    let finished = model.run(&input(), Path::new("/dev/full")).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{}", finished.said());
    assert!(finished.refusal().unwrap().contains("/dev/full"));
}
