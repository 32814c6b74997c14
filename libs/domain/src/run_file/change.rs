//! What a change of each key means for a run that is resumed.
//!
//! A checkpoint is the state of one model on one order of samples: what decides the shape of the state, the
//! values of rows never written or the meaning of "samples consumed" stays as it was. All other keys may
//! change, and a change is shown.

use std::collections::BTreeSet;

use super::{ConfigError, RunFile};

/// What a change of a key does to a run that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnResume {
    /// It is refused; the text says what depends on the key.
    Refused(&'static str),
    /// It is refused unless samples a step, cells × micro-batch, stay as they were.
    SamplesPerStep,
    /// It is refused unless `data.allow_change` is set.
    Data,
    /// The run goes on; held-out losses from now on are those of other data.
    HeldOutData,
    /// The run goes on with the new value.
    Applied,
}

use OnResume::{Applied, Data, HeldOutData, SamplesPerStep};

const MODEL: OnResume = OnResume::Refused("the checkpoint holds the tensors of another model");
const TABLES: OnResume = OnResume::Refused("the checkpoint holds rows of other tables");
const SYNTHETIC: OnResume = OnResume::Refused("the data cursor counts samples of this data");

/// Every key, or section ending in a dot.
const KEYS: &[(&str, OnResume)] = &[
    ("run.name", Applied),
    ("run.seed", OnResume::Refused("initial rows and the order of samples follow from it")),
    ("run.failure_detection_seconds", Applied),
    ("run.stop_grace_seconds", Applied),
    ("model.", MODEL),
    ("ngram.", TABLES),
    // The path may change: what it holds is compared by its identity.
    ("data.train", Applied),
    ("data.train_identity", Data),
    ("data.allow_change", Applied),
    ("data.held_out", Applied),
    ("data.held_out_identity", HeldOutData),
    ("data.synthetic_tokens", SYNTHETIC),
    ("data.synthetic_held_out_tokens", Applied),
    ("training.steps", Applied),
    ("training.stop_at_step", Applied),
    ("training.seq_len", OnResume::Refused("the data cursor counts samples of this length")),
    ("training.micro_batch_size", SamplesPerStep),
    ("training.cells", SamplesPerStep),
    ("training.lr", Applied),
    ("training.schedule", Applied),
    ("training.min_lr_ratio", Applied),
    ("training.warmup_steps", Applied),
    ("training.decay_steps", Applied),
    ("training.optimizer.", Applied),
    ("training.clip.", Applied),
    ("training.balance.", Applied),
    ("training.compute", Applied),
    ("training.recompute", Applied),
    ("training.determinism", Applied),
    ("training.on_nonfinite", Applied),
    ("embedding.optimizer", OnResume::Refused("the checkpoint holds the state of another optimizer")),
    ("embedding.bias", OnResume::Refused("the moments in the checkpoint were corrected by another count")),
    ("embedding.lr_multiplier", Applied),
    ("embedding.beta1", Applied),
    ("embedding.beta2", Applied),
    ("embedding.eps", Applied),
    ("embedding.weight_decay", Applied),
    ("embedding.decay", OnResume::Refused("the checkpoint does not say how far its rows have decayed")),
    ("embedding.max_row_norm", Applied),
    ("embedding.init_std", OnResume::Refused("rows never written follow from it")),
    ("embedding.storage", OnResume::Refused("the checkpoint's rows were stored in another format")),
    ("embedding.wire_rows", Applied),
    ("embedding.wire_gradients", Applied),
    ("embedding.prefetch_steps", Applied),
    ("embedding.lanes", Applied),
    ("embedding.numa", Applied),
    ("embedding.connections", Applied),
    ("embedding.same_host", Applied),
    ("embedding.memory_limit_gib", Applied),
    ("topology.", Applied),
    ("checkpoint.", Applied),
    ("recovery_points.", Applied),
    ("recovery.", Applied),
    ("spikes.", Applied),
    ("evaluation.", Applied),
    ("device.engine", OnResume::Refused("the checkpoint was trained by another engine")),
    ("device.kind", Applied),
    ("device.threads", Applied),
    ("device.memory_gib", Applied),
];

/// A key whose value changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, dotted.
    pub key: String,
    /// Its value in the checkpoint's configuration, as TOML; `None` where it was not set.
    pub before: Option<String>,
    /// Its value now.
    pub after: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        write!(f, "{} {} → {}", self.key, text(&self.before), text(&self.after))
    }
}

/// Changes with which a run cannot be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Each refused change, with what depends on the key.
    pub changes: Vec<(Change, &'static str)>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
        let mut separator = "";
        for (Change { key, before, after }, why) in &self.changes {
            let (before, after) = (text(before), text(after));
            write!(f, "{separator}{key} was {before} and is {after} now; {why}")?;
            separator = ". ";
        }
        Ok(())
    }
}

/// Every key whose value differs in `before` and `after`, sorted.
pub fn changes(before: &RunFile, after: &RunFile) -> Result<Vec<Change>, ConfigError> {
    let values = |file: &RunFile| file.origins(&file.to_toml()?, &[]);
    let (old, new) = (values(before)?, values(after)?);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let value = |values: &std::collections::BTreeMap<String, (String, _)>, key: &str| {
        values.get(key).map(|(text, _)| text.clone())
    };
    let of = |key: &&String| Change {
        key: (*key).clone(),
        before: value(&old, key.as_str()),
        after: value(&new, key.as_str()),
    };
    Ok(keys.iter().map(of).filter(|change| change.before != change.after).collect())
}

impl Change {
    /// What the change does to a run that is resumed. An unknown key is refused.
    pub fn on_resume(&self) -> OnResume {
        rule_of(&self.key).unwrap_or(OnResume::Refused("this build does not know the key"))
    }
}

pub(super) fn rule_of(key: &str) -> Option<OnResume> {
    // A key may hold a table, as data.held_out does.
    let is_of = |known: &str| {
        let rest = key.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || known.ends_with('.'))
    };
    KEYS.iter().find(|(known, _)| is_of(known)).map(|(_, rule)| *rule)
}

impl RunFile {
    /// Whether a checkpoint made under `before` may be continued under this configuration: the changes that
    /// are applied, or those that are refused.
    pub fn resumes(&self, before: &RunFile) -> Result<Result<Vec<Change>, Refused>, ConfigError> {
        let samples =
            |file: &RunFile| u64::from(file.training.cells) * u64::from(file.training.micro_batch_size);
        let (mut applied, mut refused) = (Vec::new(), Vec::new());
        for change in changes(before, self)? {
            let is_same_data = change.before.is_none() || change.after.is_none() || self.data.allow_change;
            match change.on_resume() {
                OnResume::Refused(why) => refused.push((change, why)),
                SamplesPerStep if samples(before) != samples(self) => refused.push((
                    change,
                    "the data cursor counts samples a step, training.cells × training.micro_batch_size, which stay as \
                     they were",
                )),
                Data if !is_same_data => refused.push((
                    change,
                    "data.train does not hold the data that the run began with. Give the data that it had, or set \
                     data.allow_change=true to go on with this data from the sample that comes next",
                )),
                Applied | SamplesPerStep | Data | HeldOutData => applied.push(change),
            }
        }
        Ok(if refused.is_empty() { Ok(applied) } else { Err(Refused { changes: refused }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    fn tiny(overrides: &[&str]) -> RunFile {
        let overrides: Vec<String> = overrides.iter().map(|&o| o.to_owned()).collect();
        RunFile::parse(TINY, "tiny", &overrides).unwrap()
    }

    /// No key may change without somebody having decided what that means.
    #[test]
    fn every_key_has_a_rule() {
        let keys = RunFile::keys().unwrap();
        for key in &keys {
            assert!(rule_of(&key.path).is_some(), "{}: say in change.rs what its change does", key.path);
        }
        for (known, _) in KEYS {
            let is_used = keys.iter().any(|key| match known.strip_suffix('.') {
                Some(_) => key.path.starts_with(known),
                None => key.path == *known,
            });
            assert!(is_used, "{known} is no key");
        }
    }

    #[test]
    fn changes_name_both_values() {
        let changed = changes(&tiny(&[]), &tiny(&["training.lr=1e-3", "run.stop_grace_seconds=5"])).unwrap();
        let texts: Vec<String> = changed.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["run.stop_grace_seconds not set → 5.0", "training.lr 0.003 → 0.001"]);
        assert!(changes(&tiny(&[]), &tiny(&["training.steps=60"])).unwrap().is_empty());
    }

    #[test]
    fn what_decides_the_state_stays_and_every_refusal_is_told() {
        let sets = ["run.seed=8", "model.hidden_size=96", "training.lr=1e-3"];
        let refused = tiny(&sets).resumes(&tiny(&[])).unwrap().unwrap_err();
        let keys: Vec<&str> = refused.changes.iter().map(|(change, _)| change.key.as_str()).collect();
        assert_eq!(keys, ["model.hidden_size", "run.seed"]);
        let text = refused.to_string();
        assert!(text.contains("model.hidden_size was 48 and is 96 now; the checkpoint holds"), "{text}");
        for (set, key) in [
            ("training.cells=8", "training.cells"),
            ("training.micro_batch_size=1", "training.micro_batch_size"),
            ("data.synthetic_tokens=5000", "data.synthetic_tokens"),
            ("embedding.decay=\"all\"", "embedding.decay"),
            ("ngram.ignored_tokens=[3]", "ngram.ignored_tokens"),
        ] {
            let text = tiny(&[set]).resumes(&tiny(&[])).unwrap().unwrap_err().to_string();
            assert!(text.contains(key), "{set}: {text}");
        }
    }

    #[test]
    fn held_out_sets_may_change() {
        let with = |sets: &[(&str, &str)]| {
            let mut file = tiny(&[]);
            let sets = sets.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned()));
            file.data.held_out = Some(crate::HeldOutSets::named(sets).unwrap());
            file
        };
        let two = with(&[("wiki", "w"), ("code", "c")]);
        let applied = two.resumes(&with(&[("held_out", "w")])).unwrap().unwrap();
        let keys: Vec<&str> = applied.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys, ["data.held_out", "data.held_out.code", "data.held_out.wiki"]);
        assert_eq!(rule_of("data.held_outside"), None);
    }

    #[test]
    fn other_held_out_data_is_applied_as_such() {
        let with = |text: &str| {
            let mut file = tiny(&[]);
            let sets = [("code".to_owned(), text.to_owned()), ("wiki".to_owned(), "same".to_owned())];
            file.data.held_out_identity = Some(crate::HeldOutIdentities::named(sets).unwrap());
            file
        };
        let applied = with("y").resumes(&with("x")).unwrap().unwrap();
        let rules: Vec<_> = applied.iter().map(|change| (change.key.as_str(), change.on_resume())).collect();
        assert_eq!(rules, [("data.held_out_identity.code", HeldOutData)]);
        assert!(with("x").resumes(&with("x")).unwrap().unwrap().is_empty());
    }

    #[test]
    fn the_rest_is_applied_and_named() {
        let applied = tiny(&["training.cells=8", "training.micro_batch_size=1", "topology.shards=3"])
            .resumes(&tiny(&[]))
            .unwrap()
            .unwrap();
        let keys: Vec<&str> = applied.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys, ["topology.shards", "training.cells", "training.micro_batch_size"]);
    }

    #[test]
    fn other_data_is_refused_unless_it_is_allowed() {
        let of = |path: &str, identity: Option<&str>, allow_change| {
            let mut file = tiny(&[]);
            file.data.synthetic_tokens = None;
            file.data.train = Some(path.into());
            file.data.train_identity = identity.map(str::to_owned);
            file.data.allow_change = allow_change;
            file
        };
        let before = of("a/train", Some("x"), false);
        let resumed = |file: RunFile| file.resumes(&before).unwrap();
        assert_eq!(
            resumed(of("b/train", Some("x"), false)).unwrap().len(),
            1,
            "another path to the same data"
        );
        for path in ["a/train", "b/train"] {
            let text = resumed(of(path, Some("y"), false)).unwrap_err().to_string();
            assert!(text.contains("data.allow_change=true"), "{text}");
            assert!(resumed(of(path, Some("y"), true)).is_ok());
        }
        assert!(resumed(of("a/train", None, false)).is_ok(), "a pool may not know the identity");
        let text = resumed(tiny(&[])).unwrap_err().to_string();
        assert!(text.contains("data.synthetic_tokens"), "{text}");
    }
}
