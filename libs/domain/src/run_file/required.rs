//! The keys that every run file must have. They are reported together where they are missing.

/// Section by section. Tested against the types, which say the same by having no default.
const REQUIRED: &[(&str, &[&str])] = &[
    ("run", &["name"]),
    (
        "model",
        &[
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_attention_heads",
            "ffn_hidden_size",
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "n_routed_experts",
            "zero_expert_num",
            "moe_topk",
            "expert_ffn_hidden_size",
            "routed_scaling_factor",
        ],
    ),
    ("ngram", &["max_order", "heads"]),
    ("training", &["steps", "seq_len", "micro_batch_size", "cells", "lr"]),
];

/// Of each pair exactly one must be there.
const EITHER: &[(&str, [&str; 2])] =
    &[("ngram", ["ratio", "base_rows"]), ("data", ["train", "synthetic_tokens"])];

/// Whether a run file must have the key `path`.
pub(super) fn is_required(path: &str) -> bool {
    path.split_once('.').is_some_and(|(section, name)| {
        REQUIRED.iter().any(|(known, keys)| *known == section && keys.contains(&name))
    })
}

/// The pairs of keys of which `tree` has neither, in words.
pub(super) fn missing_pairs(tree: &toml::Table) -> Vec<String> {
    let has = |section: &str, key: &str| match tree.get(section) {
        Some(toml::Value::Table(table)) => table.contains_key(key),
        Some(_) => true,
        None => false,
    };
    let lacking = EITHER.iter().filter(|(section, keys)| !keys.iter().any(|key| has(section, key)));
    lacking.map(|(section, [first, second])| format!("{section}.{first} or {section}.{second}")).collect()
}

/// The required keys that `tree` lacks, dotted, in the order of a run file.
pub(super) fn missing(tree: &toml::Table) -> Vec<String> {
    let lacks = |section: &str, key: &str| match tree.get(section) {
        Some(toml::Value::Table(table)) => !table.contains_key(key),
        // A section that is no table is another error.
        Some(_) => false,
        None => true,
    };
    let keys = REQUIRED.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)));
    keys.filter(|(section, key)| lacks(section, key))
        .map(|(section, key)| format!("{section}.{key}"))
        .collect()
}

/// Missing keys in words.
pub(super) fn message(missing: &[String]) -> String {
    let (noun, them) = if missing.len() == 1 { ("key", "it") } else { ("keys", "them") };
    format!(
        "missing {noun}: {}; write {them} in the run file, or give --set SECTION.KEY=VALUE (`polygram keys` describes \
         every key, `polygram keys --example` prints a small run file to begin from)",
        missing.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::RunFile;
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    fn refusal(tree: &toml::Table, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let text = toml::to_string(tree).unwrap();
        RunFile::parse(&text, "run.toml", &sets).unwrap_err().to_string()
    }

    /// The list is that of the types: a key is in it if, and only if, a file without it is refused.
    #[test]
    fn required_keys_are_those_without_a_default() {
        let file = RunFile::parse(TINY, "tiny", &[]).unwrap();
        let whole: toml::Table = toml::from_str(&file.to_toml().unwrap()).unwrap();
        let origins = file.origins(TINY, &[]).unwrap();
        for key in origins.keys().filter(|key| key.matches('.').count() == 1) {
            let (section, name) = key.split_once('.').unwrap();
            let mut tree = whole.clone();
            tree[section].as_table_mut().unwrap().remove(name).unwrap();
            let is_refused = tree.clone().try_into::<RunFile>().is_err();
            let expected = if is_refused { vec![key.clone()] } else { Vec::new() };
            assert_eq!(missing(&tree), expected, "{key}");
        }
        let all: usize = REQUIRED.iter().map(|(_, keys)| keys.len()).sum();
        assert_eq!(missing(&toml::Table::new()).len(), all);
    }

    #[test]
    fn all_missing_keys_are_told_at_once() {
        let mut tree: toml::Table = toml::from_str(TINY).unwrap();
        tree.remove("ngram");
        tree["training"].as_table_mut().unwrap().retain(|key, _| key != "lr" && key != "steps");
        tree["model"].as_table_mut().unwrap().remove("hidden_size");
        let all = "model.hidden_size, ngram.max_order, ngram.heads, training.steps, training.lr, ngram.ratio or ngram.base_rows;";
        assert!(refusal(&tree, &[]).starts_with(&format!("run.toml: missing keys: {all}")));
        // What assignments supply is not missing, in whichever order they come.
        let error = refusal(&tree, &["training.lr=1e-3", "ngram.heads=4", "model.hidden_size=64"]);
        assert!(
            error.starts_with("run.toml: missing keys: ngram.max_order, training.steps, ngram.ratio or"),
            "{error}"
        );
        let most = [
            "ngram.heads=4",
            "training.lr=1e-3",
            "ngram.max_order=3",
            "model.hidden_size=64",
            "ngram.ratio=5",
        ];
        let error = refusal(&tree, &most);
        assert!(error.starts_with("run.toml: missing key: training.steps;"), "{error}");
    }

    #[test]
    fn an_empty_file_and_one_of_another_kind_are_refused() {
        let error = refusal(&toml::Table::new(), &[]);
        assert!(error.contains("data.train or data.synthetic_tokens; write them"), "{error}");
        assert!(error.contains("run.name, model.vocab_size") && error.contains("training.lr"), "{error}");
        let tree: toml::Table = toml::from_str("run = 3").unwrap();
        assert!(!refusal(&tree, &[]).contains("missing"), "a section of the wrong type comes first");
        let tree: toml::Table = toml::from_str("[run]\nnam = \"x\"").unwrap();
        let error = refusal(&tree, &[]);
        assert!(error.contains("unknown field `nam`"), "an unknown key may be the missing one: {error}");
    }
}
