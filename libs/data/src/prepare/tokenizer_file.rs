//! The file that is given as a tokenizer: whether it is a `tokenizer.json`, and what it is otherwise.

use std::path::Path;

use serde_json::Value;

use super::train::failed;
use crate::error::DataError;

/// What a tokenizer is stored in, in a folder of a model.
const NAME: &str = "tokenizer.json";
/// Files of other forms of a tokenizer, which are no `tokenizer.json`.
const OTHER_FORMS: [&str; 5] =
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt"];
/// How another form becomes a `tokenizer.json`.
const CONVERT: &str = "transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";

/// Refuses a path that is no file.
pub(super) fn check(path: &Path) -> Result<(), DataError> {
    if path.is_dir() {
        let name = path.display().to_string();
        let file = path.join(NAME);
        if file.is_file() {
            return Err(failed(
                &name,
                format!("it is a folder; give the file in it: --tokenizer {}", file.display()),
            ));
        }
        let others: Vec<&str> = OTHER_FORMS.into_iter().filter(|other| path.join(other).is_file()).collect();
        let has = if others.is_empty() { String::new() } else { format!(", but {}", others.join(" and ")) };
        let advice = if others.is_empty() { "name the tokenizer.json itself" } else { CONVERT };
        return Err(failed(&name, format!("it is a folder, and has no tokenizer.json{has}; {advice}")));
    }
    if path.exists() {
        return Ok(());
    }
    DataError::check_local("the tokenizer", path)?;
    Err(DataError::Missing { path: path.to_owned(), hint: "name a tokenizer.json, or train one" })
}

/// The JSON of a `tokenizer.json`; the error is a clause that says what the file is.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Value, String> {
    if bytes.is_empty() {
        return Err("it is empty".into());
    }
    let json: Value = match serde_json::from_slice(bytes) {
        Ok(json) => json,
        Err(error) if error.is_eof() => {
            return Err(format!("its JSON ends early, in line {}: it was cut short", error.line()));
        }
        Err(_) if !bytes.trim_ascii_start().starts_with(b"{") => {
            return Err(format!(
                "it is not JSON; a tokenizer.model or vocab.txt is no tokenizer.json: {CONVERT}"
            ));
        }
        Err(error) => {
            return Err(format!("its JSON is broken in line {}, column {}", error.line(), error.column()));
        }
    };
    match foreign(&json) {
        None => Ok(json),
        Some(what) => {
            let beside = path.with_file_name(NAME);
            let is_other = beside.is_file() && path.file_name() != beside.file_name();
            let advice = match is_other {
                true => format!("give the file beside it: --tokenizer {}", beside.display()),
                false => CONVERT.to_owned(),
            };
            Err(format!("{what}; {advice}"))
        }
    }
}

/// What JSON is that is no tokenizer; `None` where it may be one.
fn foreign(json: &Value) -> Option<&'static str> {
    let Some(object) = json.as_object() else { return Some("it is no JSON object") };
    let has = |key: &str| object.contains_key(key);
    if object.get("model").is_some_and(Value::is_object) {
        None
    } else if has("tokenizer_class") || has("model_max_length") || has("added_tokens_decoder") {
        Some("it is a tokenizer_config.json, which has no vocabulary")
    } else if has("model_type") || has("architectures") {
        Some("it is the config.json of a model")
    } else if !object.is_empty() && object.values().all(Value::is_u64) {
        Some("it is a vocabulary alone (vocab.json), which does not say how text is divided")
    } else {
        Some("it has no \"model\", the vocabulary and its merges")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn other_files_are_named_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("given");
        let problem = |bytes: &[u8]| parse(bytes, &path).unwrap_err();
        for (text, words) in [
            ("", "it is empty"),
            ("{\"version\":\"1.0\",\n\"mod", "its JSON ends early, in line 2"),
            ("{\"version\":1.0,,}", "broken in line 1, column 16"),
            ("[PAD]\n[UNK]\nthe\n", "it is not JSON"),
            ("\n\x0e\n\x05<unk>", "it is not JSON"),
            ("[1]", "it is no JSON object"),
            ("{\"a\": 0, \"b\": 1}", "it is a vocabulary alone (vocab.json)"),
            (
                "{\"add_prefix_space\": false, \"tokenizer_class\": \"GPT2Tokenizer\"}",
                "a tokenizer_config.json",
            ),
            ("{\"architectures\": [], \"model_type\": \"llama\"}", "the config.json of a model"),
            ("{\"version\": \"1.0\", \"model\": null}", "it has no \"model\""),
            ("{}", "it has no \"model\""),
        ] {
            let found = problem(text.as_bytes());
            assert!(found.contains(words), "{text:?}: {found}");
            assert!(!found.contains("expected"), "{text:?}: {found}");
        }
        assert!(problem(b"{}").contains("save_pretrained"));
        fs::write(folder.path().join(NAME), "{}").unwrap();
        let beside = format!("--tokenizer {}", folder.path().join(NAME).display());
        assert!(problem(b"{}").contains(&beside));
        // It is not beside itself.
        assert!(parse(b"{}", &folder.path().join(NAME)).unwrap_err().contains("save_pretrained"));
    }

    #[test]
    fn a_folder_is_no_tokenizer_and_the_one_in_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| check(path).unwrap_err().to_string();
        assert!(refused(folder.path()).contains("has no tokenizer.json; name the tokenizer.json itself"));
        fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
        let other = refused(folder.path());
        assert!(other.contains("but tokenizer.model") && other.contains("save_pretrained"), "{other}");
        fs::write(folder.path().join(NAME), "{}").unwrap();
        let file = folder.path().join(NAME);
        assert!(refused(folder.path()).contains(&format!("--tokenizer {}", file.display())));
        assert!(check(&file).is_ok());
        for (path, words) in [
            ("absent.json", "does not exist"),
            ("https://x.org/tokenizer.json", "it is an address"),
            ("~/tokenizer.json", "not expanded"),
            ("-", "standard input"),
        ] {
            let error = refused(Path::new(path));
            assert!(error.contains(path) && error.contains(words), "{error}");
        }
    }
}
