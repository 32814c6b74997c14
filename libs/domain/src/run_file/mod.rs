//! A run file as written (TOML), and its resolution into a [`RunSpec`].
//!
//! [`read`] turns text and `--set a.b=c` assignments into a [`RunFile`]: unknown keys are errors with a
//! suggestion, and numbers stay in the ranges of [`bounds`]. [`resolve`] checks the values against each
//! other, with [`consistency`] for keys that would have no effect. [`reference`] describes every key. The effective configuration (every key,
//! defaults included) can be printed with the origin of each key and is what a run is frozen with. [`change`]
//! says which keys may change when a run is resumed.

mod bounds;
mod change;
mod consistency;
mod keys;
mod read;
mod reference;
mod required;
mod resolve;
mod sections;
mod seed;

use std::collections::BTreeMap;

use serde::Serialize;

pub use change::{Change, OnResume, Refused, changes};
pub use keys::{Key, KeyKind};
pub use reference::{EXAMPLE, KeyReference};
pub use resolve::ratio_of_base;
pub use sections::*;

/// Why a configuration is refused; the text says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not TOML, a key is unknown or missing, or a value has the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// File or override.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// Values that do not fit each other.
    #[error("{0}")]
    Invalid(String),
}

/// Where a key's effective value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody wrote it.
    Default,
    /// The run file.
    File,
    /// `--set`.
    Override,
}

impl RunFile {
    /// The effective configuration as TOML: every key with its value. Parsing it gives this `RunFile` again.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self)
            .map_err(|e| ConfigError::Invalid(format!("cannot write the configuration: {e}")))
    }

    /// Every effective key, dotted, with its value as TOML and its origin.
    pub fn origins(
        &self,
        text: &str,
        overrides: &[String],
    ) -> Result<BTreeMap<String, (String, Origin)>, ConfigError> {
        let parse = |text: &str| -> Result<toml::Table, ConfigError> {
            toml::from_str(text)
                .map_err(|e| ConfigError::Parse { origin: "run file".into(), message: e.to_string() })
        };
        let (mut effective, mut written) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &toml::Value::Table(parse(&self.to_toml()?)?), &mut effective);
        flatten("", &toml::Value::Table(parse(text)?), &mut written);
        let set: Vec<&str> =
            overrides.iter().filter_map(|o| o.split_once('=')).map(|(key, _)| key.trim()).collect();
        Ok(effective
            .into_iter()
            .map(|(key, value)| {
                let origin = if set.contains(&key.as_str()) {
                    Origin::Override
                } else if written.contains_key(&key) {
                    Origin::File
                } else {
                    Origin::Default
                };
                (key, (value, origin))
            })
            .collect())
    }
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        other => {
            out.insert(prefix.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    fn parse(overrides: &[&str]) -> Result<RunFile, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        RunFile::parse(TINY, "configs/tiny.toml", &overrides)
    }

    #[test]
    fn effective_configuration_reads_back() {
        let file = parse(&[
            "training.steps=7",
            "model.rope_scaling={factor=4.0, original_max_position_embeddings=64}",
        ])
        .unwrap();
        let again = RunFile::parse(&file.to_toml().unwrap(), "effective", &[]).unwrap();
        assert_eq!(file, again);
        assert_eq!(file.resolve().unwrap(), again.resolve().unwrap());
    }

    #[test]
    fn origins_name_file_default_and_override() {
        let overrides = vec!["training.steps=7".to_owned()];
        let file = RunFile::parse(TINY, "tiny", &overrides).unwrap();
        let origins = file.origins(TINY, &overrides).unwrap();
        assert_eq!(origins["training.steps"], ("7".into(), Origin::Override));
        assert_eq!(origins["training.seq_len"].1, Origin::File);
        assert_eq!(origins["embedding.weight_decay"].1, Origin::Default);
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let error = parse(&["training.stepz=7"]).unwrap_err().to_string();
        assert!(error.contains("stepz") && error.contains("did you mean `steps`"), "{error}");
        let error = parse(&["trainin.steps=7"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `training`"), "{error}");
        let error = RunFile::parse(&format!("{TINY}\n[nonsense]\n"), "x.toml", &[]).unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("nonsense"), "{error}");
        assert!(
            parse(&["training.schedule=cosin"]).unwrap_err().to_string().contains("did you mean `cosine`")
        );
        assert!(
            parse(&["steps"]).is_err()
                && parse(&["steps=1"]).is_err()
                && parse(&["training.steps.x=1"]).is_err()
        );
    }

    #[test]
    fn rules_name_the_key() {
        for (set, key) in [
            ("training.cells=3", "training.cells"),
            ("topology.workers=3", "topology.workers"),
            ("topology.workers=64", "training.cells"),
            ("topology.shards=0", "topology.shards"),
            ("topology.expert_parallel=2", "topology.expert_parallel"),
            ("checkpoint.keep=1", "checkpoint.keep"),
            ("recovery_points.every_steps=0", "recovery_points.every_steps"),
            ("recovery_points.changes_below=1.5", "recovery_points.changes_below"),
            ("recovery_points.root=\"\"", "recovery_points.root"),
            ("training.lr=-1", "training.lr"),
            ("training.lr=nan", "training.lr"),
            ("ngram.heads=7", "ngram.heads"),
            ("model.moe_topk=99", "model.moe_topk"),
            ("model.eos_token_id=9999999", "model.eos_token_id"),
            ("embedding.beta2=1.0", "embedding.beta2"),
            ("training.balance.loss_groups=5", "training.balance.loss_groups"),
            ("run.name=Bad_Name", "run name"),
            ("data.train=x", "data"),
            ("ngram.ratio=2.5", "ngram.base_rows"),
            ("training.balance.target_top_k=0", "training.balance.target_top_k"),
        ] {
            let error = parse(&[set]).and_then(|file| file.resolve()).unwrap_err().to_string();
            assert!(error.contains(key), "{set}: {error}");
        }
    }

    #[test]
    fn recovery_points_are_kept_at_an_address_of_a_store() {
        let of = |root: &str| {
            let root = format!("recovery_points.root={root}");
            parse(&["recovery_points.every_steps=5", &root]).and_then(|file| file.resolve())
        };
        for (root, words) in
            [("s3:/b/x", "write s3://b/x"), ("~/x", "~ is not expanded"), ("\" \"", "is empty")]
        {
            let error = of(root).unwrap_err().to_string();
            assert!(error.starts_with("recovery_points.root ") && error.contains(words), "{root}: {error}");
        }
        assert!(of("s3://b/x").is_ok() && of("fast/disk").is_ok());
    }

    #[test]
    fn fewer_workers_need_an_elastic_run_that_divides() {
        let of = |sets: &[&str]| parse(sets).and_then(|file| file.resolve()).map(|spec| spec.elasticity);
        let four = ["topology.workers=4", "topology.expert_parallel=2"];
        let with = |set: &'static str| of(&[&four[..], &[set]].concat());
        assert_eq!(of(&four).unwrap().min_workers, 4);
        let elasticity = with("topology.min_workers=2").unwrap();
        let within = |offered| elasticity.workers_within(4, offered);
        assert_eq!(
            [within(9), within(4), within(3), within(2), within(1)],
            [Some(4), Some(4), Some(2), Some(2), None]
        );
        for set in [
            "topology.min_workers=1",
            "topology.min_workers=3",
            "topology.min_workers=8",
            "topology.min_workers=0",
        ] {
            let error = with(set).unwrap_err().to_string();
            assert!(error.contains("topology.min_workers"), "{set}: {error}");
        }
        let sets = [&four[..], &["topology.min_workers=2", "training.determinism=topology"]].concat();
        assert!(of(&sets).unwrap_err().to_string().contains("training.determinism"));
        assert!(
            with("recovery.wait_for_members_seconds=-1")
                .unwrap_err()
                .to_string()
                .contains("wait_for_members")
        );
    }

    #[test]
    fn base_rows_survive_the_ratio() {
        for vocab in [113u32, 32_000, 50_257, 131_072, 163_840] {
            for base in [u64::from(vocab) * 7 + 3, 10_232_743, 3_905_163] {
                let ratio = ratio_of_base(base, vocab);
                for table in 0..20u32 {
                    assert_eq!(
                        (ratio * f64::from(vocab) + f64::from(2 * table + 1)) as u64,
                        base + 2 * u64::from(table),
                        "V {vocab} base {base}"
                    );
                }
            }
        }
    }

    #[test]
    fn word_embeddings_decay_like_the_rest_unless_told_otherwise() {
        let adamw = |overrides: &[&str]| parse(overrides).unwrap().resolve().unwrap().training.adamw;
        assert_eq!(adamw(&["training.optimizer.weight_decay=0.2"]).word_embedding_weight_decay, 0.2);
        let own = "training.optimizer.word_embedding_weight_decay=0.0";
        assert_eq!(adamw(&["training.optimizer.weight_decay=0.2", own]).word_embedding_weight_decay, 0.0);
        let negative = parse(&["training.optimizer.word_embedding_weight_decay=-1.0"]);
        assert!(negative.unwrap_err().to_string().contains("word_embedding_weight_decay"));
    }
}
