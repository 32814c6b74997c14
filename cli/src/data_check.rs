//! What a run's data must be, checked before anything starts: files that are there and whole, tokens of the
//! model's vocabulary, enough of them, and documents closed by the token that the model takes for it.

use polygram_data::{DataError, DataIdentity, Loader, Segment};
use polygram_domain::RunSpec;
use polygram_domain::run_spec::DataSpec;

use crate::data_files;
pub(crate) use crate::data_prepared::report_beside;
use crate::data_prepared::{self, Set};
use crate::exit::{Failure, Outcome};
use crate::settings::Configuration;
use crate::units::{counted, grouped};

/// Checks the data of a run, and writes the identities of its files into the configuration. Gives warnings.
pub(crate) fn check(configuration: &mut Configuration) -> Outcome<Vec<String>> {
    let spec = &configuration.spec;
    for (key, prefix) in named(&spec.data) {
        data_files::check(&key, prefix)?;
    }
    let sets = sets(spec).map_err(|error| refusal(error, spec))?;
    let mut warnings = data_prepared::check(&sets, spec)?;
    let loader = Loader::of_run(spec).map_err(|error| refusal(error, spec))?;
    check_amounts(&loader, spec)?;
    let Some((train, held_out)) = sets.split_first() else { return Ok(Vec::new()) };
    let identity = train.identity.to_string();
    if let Some(wanted) = spec.train_identity.as_ref().filter(|wanted| **wanted != identity) {
        return Err(Failure::usage(format!(
            "data.train = {:?} is {identity}, not {wanted} as data.train_identity says",
            train.prefix
        ))
        .hint("give the data that was meant, or leave data.train_identity out"));
    }
    warnings.extend(equal_sets(&sets));
    let names = spec.data.held_out_names();
    let written = configuration.file.data.held_out_identity.clone().unwrap_or_default();
    if let Some(name) = written.names().find(|name| !names.contains(name)) {
        return Err(Failure::usage(format!(
            "data.held_out_identity names {name:?}, which is no held-out set"
        ))
        .hint(format!("the held-out sets are {}", names.join(", "))));
    }
    let mut identities = Vec::new();
    for (set, name) in held_out.iter().zip(names) {
        let found = set.identity.to_string();
        if let Some(wanted) = written.get(name).filter(|wanted| *wanted != found) {
            warnings.push(format!(
                "{} = {:?} is {found}, not {wanted} as data.held_out_identity says: its losses are not comparable \
                 with those of that data",
                set.key, set.prefix
            ));
        }
        identities.push((name.to_owned(), found));
    }
    configuration.set_identities(identity, identities)?;
    Ok(warnings)
}

/// Warnings about the data of a run, as far as it is on this machine and can be read.
pub(crate) fn warnings(spec: &RunSpec) -> Vec<String> {
    if named(&spec.data).iter().any(|(key, prefix)| data_files::check(key, prefix).is_err()) {
        return Vec::new();
    }
    let Ok(sets) = sets(spec) else { return Vec::new() };
    let tokenizers = data_prepared::different_tokenizers(&sets).map(|difference| difference.to_string());
    equal_sets(&sets).into_iter().chain(tokenizers).collect()
}

/// Whether the data is on this machine, or made by the run.
pub(crate) fn is_here(spec: &RunSpec) -> bool {
    match &spec.data {
        DataSpec::Segments { train, .. } => data_files::check("data.train", train).is_ok(),
        DataSpec::Synthetic { .. } => true,
    }
}

/// Key and path of the token files of a run, the training data first.
fn named(data: &DataSpec) -> Vec<(String, &str)> {
    let DataSpec::Segments { train, held_out } = data else { return Vec::new() };
    let held_out = held_out.iter().map(|(name, prefix)| (held_out.key(name), prefix));
    std::iter::once(("data.train".to_owned(), train.as_str())).chain(held_out).collect()
}

/// Reads the identity of each set, the training data first; each index is read once for it.
fn sets(spec: &RunSpec) -> Result<Vec<Set>, DataError> {
    let of = |(key, prefix): (String, &str)| {
        Ok(Set { key, prefix: prefix.to_owned(), identity: DataIdentity::of_path(prefix)? })
    };
    named(&spec.data).into_iter().map(of).collect()
}

/// A warning for each held-out set that is the data of another key, under whatever path.
fn equal_sets(sets: &[Set]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, set) in sets.iter().enumerate().skip(1) {
        let Some(same) = sets[..index].iter().find(|other| other.identity == set.identity) else { continue };
        let what =
            format!("{} = {:?} is the same data as {} = {:?}", set.key, set.prefix, same.key, same.prefix);
        warnings.push(match same.key.as_str() {
            "data.train" => {
                format!(
                    "{what}: its losses are those of text that the model is trained on, not held-out losses"
                )
            }
            _ => format!("{what}: it is evaluated twice"),
        });
    }
    warnings
}

/// A step needs samples of its own, an evaluation cells of its own.
fn check_amounts(loader: &Loader, spec: &RunSpec) -> Outcome<()> {
    let (samples, per_step) = (loader.samples(), spec.samples_per_step());
    if samples < per_step {
        return Err(Failure::usage(format!(
            "the training data has {} tokens, {} of training.seq_len = {}; one step takes {} (training.cells × \
             training.micro_batch_size)",
            grouped(loader.train_tokens()),
            counted(samples, "sample"),
            spec.training.seq_len,
            grouped(per_step),
        ))
        .hint("use more data, fewer cells or samples a step, or a smaller training.seq_len"));
    }
    let Some(evaluation) = &spec.evaluation else { return Ok(()) };
    // A shorter set is evaluated whole, beside one that has as much as is asked for.
    let sets = loader.held_out_sets().enumerate();
    let largest = sets.map(|(set, name)| (loader.held_out_cells(set), name)).max();
    let Some((cells, name)) = largest else { return Ok(()) };
    if cells < u64::from(evaluation.cells) {
        return Err(Failure::usage(format!(
            "evaluation.cells is {}, but the largest held-out set, {name}, makes only {} of {} samples of {} tokens",
            evaluation.cells,
            counted(cells, "cell"),
            spec.training.micro_batch_size,
            spec.training.seq_len,
        ))
        .hint(match cells {
            0 => "use more held-out data, a smaller training.micro_batch_size or a smaller training.seq_len".into(),
            cells => format!("add --set evaluation.cells={cells}, or use more held-out data"),
        }));
    }
    Ok(())
}

/// The refusal of data that cannot be used. A token outside the vocabulary is told with the number that would
/// do.
fn refusal(error: DataError, spec: &RunSpec) -> Failure {
    let DataSpec::Segments { train, held_out } = &spec.data else {
        return Failure::usage("the run's data cannot be made").because(error);
    };
    if let DataError::TokenRange { source_name, document, position, token, vocab } = &error {
        let largest = |prefix: &str| Segment::open(prefix).and_then(|segment| segment.largest_token());
        let prefixes = || std::iter::once(train.as_str()).chain(held_out.iter().map(|(_, prefix)| prefix));
        let largest: Result<Vec<_>, _> = prefixes().map(largest).collect();
        // Negative tokens and those above 32 bits fit no vocabulary; the error says so.
        if let Some(largest) = largest.ok().and_then(|largest| largest.into_iter().flatten().max()) {
            let noted = prefixes().filter_map(report_beside).map(|(_, report, _)| report.vocab_size);
            let wanted = noted.max().unwrap_or(0).max(largest.saturating_add(1));
            return Failure::usage(format!(
                "the data does not fit the model's vocabulary: {source_name} has token {token} at position {position} \
                 (document {document}), outside the vocabulary of {vocab} tokens (model.vocab_size)"
            ))
            .hint(format!("the largest token of the data is {largest}: add --set model.vocab_size={wanted}"));
        }
    }
    Failure::usage("the run's data cannot be used").because(error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use polygram_data::segment::{Dtype, Existing, SegmentWriter};

    use super::*;
    use crate::args::RunFileArgs;

    struct Data {
        folder: tempfile::TempDir,
    }

    impl Data {
        fn of(documents: &[&[u32]]) -> Data {
            let folder = tempfile::tempdir().unwrap();
            let data = Data { folder };
            let mut writer = SegmentWriter::create(&data.prefix(), Dtype::U16, Existing::Refuse).unwrap();
            documents.iter().for_each(|document| writer.push(document).unwrap());
            writer.finish().unwrap();
            data
        }

        fn prefix(&self) -> String {
            self.folder.path().join("tokens").display().to_string()
        }

        /// Tiny on this data, evaluated on it too.
        fn checked(&self, sets: &[&str]) -> Result<(Configuration, Vec<String>), String> {
            let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/tiny.toml");
            let text = std::fs::read_to_string(tiny).unwrap();
            let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("synthetic_")).collect();
            let prefix = self.prefix();
            let data = format!("[data]\ntrain = {prefix:?}\nheld_out = {prefix:?}");
            let run_file = self.folder.path().join("run.toml");
            std::fs::write(&run_file, kept.join("\n").replacen("[data]", &data, 1)).unwrap();
            let overrides = sets.iter().map(|set| (*set).to_owned()).collect();
            let mut configuration =
                Configuration::load(&RunFileArgs { run_file, overrides }, None).map_err(|e| e.to_string())?;
            let warnings = check(&mut configuration).map_err(|failure| {
                assert_eq!(failure.status.code(), 2);
                failure.to_string()
            })?;
            Ok((configuration, warnings))
        }
    }

    fn documents(count: usize) -> Vec<Vec<u32>> {
        let document = |d: usize| (0..63).map(|p| ((d * 64 + p) % 120 + 3) as u32).chain([2]).collect();
        (0..count).map(document).collect()
    }

    fn data(count: usize) -> Data {
        let documents = documents(count);
        Data::of(&documents.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn the_identity_is_frozen_with_the_run() {
        let (configuration, _) = data(64).checked(&[]).unwrap();
        let identity = configuration.spec.train_identity.clone().unwrap();
        assert!(configuration.effective_toml.contains(&identity), "{}", configuration.effective_toml);
        let pinned = format!("data.train_identity=\"{identity}\"");
        assert!(data(64).checked(&[&pinned]).is_ok(), "equal content at another path");
        let error = data(65).checked(&[&pinned]).unwrap_err();
        assert!(error.contains("data.train_identity") && error.contains("4096 tokens"), "{error}");
    }

    #[test]
    fn held_out_data_has_an_identity_too_and_another_is_warned_of() {
        let (first, other) = (data(64), data(65));
        let held_out = format!("data.held_out={:?}", other.prefix());
        let (configuration, warnings) = first.checked(&[&held_out]).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let identities = configuration.file.data.held_out_identity.clone().unwrap();
        let identity = identities.get("held_out").unwrap().to_owned();
        assert_eq!(identity, DataIdentity::of_path(&other.prefix()).unwrap().to_string());
        assert!(configuration.effective_toml.contains(&format!("held_out_identity = {identity:?}")));
        let pinned = format!("data.held_out_identity={identity:?}");
        assert_eq!(first.checked(&[&held_out, &pinned]).unwrap().1, Vec::<String>::new());
        // Another one changes no training: it is said, and the new one is kept.
        let third = data(66);
        let (configuration, warnings) =
            first.checked(&[&format!("data.held_out={:?}", third.prefix()), &pinned]).unwrap();
        assert!(
            warnings[0].contains("data.held_out = ") && warnings[0].contains("not comparable"),
            "{warnings:?}"
        );
        let now = configuration.file.data.held_out_identity.unwrap();
        assert_ne!(now.get("held_out"), Some(identity.as_str()));
        let error = first.checked(&[&held_out, "data.held_out_identity.wiki=\"x\""]).unwrap_err();
        assert!(error.contains("names \"wiki\", which is no held-out set"), "{error}");
    }

    #[test]
    fn held_out_data_that_is_trained_on_is_warned_of() {
        let (train, other) = (data(64), data(65));
        let link = train.folder.path().join("link");
        for extension in ["idx", "bin"] {
            let target = train.folder.path().join("tokens").with_extension(extension);
            std::os::unix::fs::symlink(&target, link.with_extension(extension)).unwrap();
        }
        let copy = data(64);
        let set = |prefix: &str| format!("data.held_out={prefix:?}");
        for prefix in
            [train.prefix(), format!("{}.bin", train.prefix()), link.display().to_string(), copy.prefix()]
        {
            let (configuration, warnings) = train.checked(&[&set(&prefix)]).unwrap();
            assert_eq!(warnings.len(), 1, "{prefix}: {warnings:?}");
            let same = "is the same data as data.train";
            assert!(
                warnings[0].contains(same) && warnings[0].contains("not held-out losses"),
                "{warnings:?}"
            );
            assert_eq!(super::warnings(&configuration.spec), warnings);
        }
        let two = format!("data.held_out={{a={0:?}, b={0:?}}}", other.prefix());
        let (_, warnings) = train.checked(&[&two]).unwrap();
        assert!(
            warnings[0].starts_with("data.held_out.b = ") && warnings[0].contains("data.held_out.a"),
            "{warnings:?}"
        );
        assert_eq!(warnings.len(), 1);
        assert_eq!(train.checked(&[&set(&other.prefix())]).unwrap().1, Vec::<String>::new());
    }

    /// Bytes that this thread has read by system calls.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    #[test]
    fn an_index_is_read_once_for_its_identity() {
        let documents: Vec<[u32; 1]> = (0..200_000).map(|d| [d % 120 + 3]).collect();
        let train = Data::of(&documents.iter().map(|document| &document[..]).collect::<Vec<_>>());
        let index = std::fs::metadata(format!("{}.idx", train.prefix())).unwrap().len();
        let identity = DataIdentity::of_path(&train.prefix()).unwrap();
        let part = serde_json::json!({"path": "x/tokens", "documents": 200_000, "tokens": 200_000,
            "unigram_entropy_nats": 1.0, "train_unigram_cross_entropy_nats": 1.0, "identity": identity});
        let meta = serde_json::json!({"version": 1, "train": part, "held_out": null, "tokenizer": "t",
            "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "dtype": "u16", "seed": 0,
            "held_out_share": 0.0, "sources": {}});
        std::fs::write(train.folder.path().join("meta.json"), meta.to_string()).unwrap();
        let small = data(64);
        let held_out = format!("data.held_out={:?}", small.prefix());
        let before = bytes_read();
        train.checked(&[&held_out]).unwrap();
        let read = bytes_read() - before;
        assert!(
            index > 2 << 20 && (index..2 * index).contains(&read),
            "{read} bytes for an index of {index}"
        );
    }

    #[test]
    fn a_vocabulary_that_is_too_small_is_told_with_the_number_that_would_do() {
        let wide: Vec<u32> = (0..4096)
            .map(|p| {
                if p == 77 {
                    300
                } else if p == 99 {
                    311
                } else {
                    5
                }
            })
            .collect();
        let error = Data::of(&[&wide]).checked(&[]).unwrap_err();
        assert!(error.contains("token 300 at position 77"), "{error}");
        // One piece of advice, which works.
        assert!(error.contains("--set model.vocab_size=312") && !error.contains("more than"), "{error}");
        assert!(Data::of(&[&wide]).checked(&["model.vocab_size=312"]).is_ok());
    }

    #[test]
    fn too_few_tokens_are_refused_by_what_they_are_for() {
        let error = data(1).checked(&["training.seq_len=64"]).unwrap_err();
        assert!(error.contains("65 are needed"), "{error}");
        let error = data(3).checked(&[]).unwrap_err();
        assert!(error.contains("5 samples of training.seq_len = 32; one step takes 8"), "{error}");
        let error = data(64).checked(&["evaluation.cells=64"]).unwrap_err();
        assert!(error.contains("evaluation.cells=63"), "{error}");
        assert!(data(64).checked(&["evaluation.cells=63"]).is_ok());
    }

    #[test]
    fn special_tokens_are_those_of_the_preparation() {
        let data = data(64);
        let part = |path: &str| {
            format!(
                r#"{{"path":"{path}","documents":64,"tokens":4096,"unigram_entropy_nats":1.0,"train_unigram_cross_entropy_nats":1.0}}"#
            )
        };
        let meta = |name: &str, eos: u32, bos: u32| {
            let text = format!(
                r#"{{"version":1,"train":{},"held_out":null,"tokenizer":"t","vocab_size":128,"bos_token_id":{bos},"eos_token_id":{eos},"dtype":"u16","seed":0,"held_out_share":0.0,"sources":{{}}}}"#,
                part(name)
            );
            std::fs::write(data.folder.path().join("meta.json"), text).unwrap();
        };
        meta("somewhere/tokens", 0, 0);
        let error = data.checked(&[]).unwrap_err();
        assert!(
            error.contains("closed by token 0") && error.contains("add --set model.eos_token_id=0"),
            "{error}"
        );
        assert!(data.checked(&["model.eos_token_id=0"]).is_ok(), "without a BOS of its own none is wanted");
        meta("somewhere/tokens", 0, 5);
        let error = data.checked(&[]).unwrap_err();
        assert!(error.contains("--set model.eos_token_id=0 --set model.bos_token_id=5"), "{error}");
        let error = data.checked(&["model.eos_token_id=0"]).unwrap_err();
        assert!(error.contains("begun by token 5"), "{error}");
        meta("somewhere/other", 0, 5);
        assert!(data.checked(&[]).is_ok(), "notes about other files do not count");
    }
}
