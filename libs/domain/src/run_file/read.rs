//! Reading a run file and `--set` assignments. An error in the file names its line; an error in an assignment
//! names that assignment alone.

use toml::de::{DeTable, DeValue};

use super::{ConfigError, RunFile, bounds, required, seed};

impl RunFile {
    /// Reads a run file's text and applies `overrides` of the form `a.b=c`, in order. `origin` names the file
    /// in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<RunFile, ConfigError> {
        let in_file = |message: &str| parse_error(origin, with_suggestion(message));
        let mut tree: toml::Table = toml::from_str(text)
            .map_err(|e| bare_text(text, origin, &e).unwrap_or_else(|| in_file(&e.to_string())))?;
        bounds::check(&tree)
            .map_err(|found| parse_error(&place_in(text, origin, &found.key), found.message))?;
        let mut file = match toml::from_str::<RunFile>(text) {
            Ok(file) => Ok(file),
            // An assignment may supply a key that the file lacks.
            Err(e) if is_missing(&e) => Err(in_file(&e.to_string())),
            Err(e) => return Err(in_file(&e.to_string())),
        };
        for assignment in overrides {
            let in_set = |message: &str| parse_error(&set(assignment), with_suggestion(message));
            apply_override(&mut tree, assignment)?;
            bounds::check(&tree).map_err(|found| parse_error(&set(assignment), found.message))?;
            file = match tree.clone().try_into::<RunFile>() {
                Ok(file) => Ok(file),
                // A key that is missing still is the fault of what was at fault before.
                Err(e) if is_missing(&e) => Err(match file {
                    Err(ConfigError::Parse { origin, .. }) => {
                        parse_error(&origin, with_suggestion(&e.to_string()))
                    }
                    _ => in_set(&e.to_string()),
                }),
                Err(e) => return Err(in_set(&e.to_string())),
            };
        }
        let mut missing = required::missing(&tree);
        if file.is_err() && !missing.is_empty() {
            missing.extend(required::missing_pairs(&tree));
            return Err(parse_error(origin, required::message(&missing)));
        }
        file
    }

    /// Where the key that `message` is about was written: its assignment, or its line of the file. The whole
    /// file where the message names no key that somebody wrote.
    pub fn place_of(message: &str, text: &str, origin: &str, overrides: &[String]) -> String {
        let is_of_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let words = || message.split(|c| !is_of_key(c)).map(|word| word.trim_matches('.'));
        let keys = || words().filter(|word| word.contains('.'));
        let assigned = |key: &str| {
            overrides.iter().rev().find(|set| set.split_once('=').is_some_and(|(set, _)| set.trim() == key))
        };
        if let Some(assignment) = keys().find_map(assigned) {
            return set(assignment);
        }
        let written = keys().find_map(|key| line_of(text, key));
        written.map_or_else(|| origin.to_owned(), |line| format!("{origin}, line {line}"))
    }
}

fn parse_error(origin: &str, message: String) -> ConfigError {
    ConfigError::Parse { origin: origin.to_owned(), message }
}

fn set(assignment: &str) -> String {
    format!("--set {assignment}")
}

fn place_in(text: &str, origin: &str, key: &str) -> String {
    line_of(text, key).map_or_else(|| origin.to_owned(), |line| format!("{origin}, line {line}"))
}

/// The line, from 1, on which the value of `key` begins.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut keys = key.split('.');
    let mut found = document.get_ref().get(keys.next()?)?;
    for key in keys {
        let DeValue::Table(table) = found.get_ref() else { return None };
        found = table.get(key)?;
    }
    let before = text.get(..found.span().start)?;
    Some(before.matches('\n').count() + 1)
}

/// Whether a key is missing, which a later assignment may supply.
fn is_missing(error: &toml::de::Error) -> bool {
    error.message().starts_with("missing field")
}

fn apply_override(tree: &mut toml::Table, assignment: &str) -> Result<(), ConfigError> {
    const FORM: &str = "write it as section.key=value";
    let error = |message: String| parse_error(&set(assignment), message);
    let (path, text) = assignment.split_once('=').ok_or_else(|| error(FORM.into()))?;
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    let Some((last, parents)) = keys.split_last() else { return Err(error(FORM.into())) };
    if keys.iter().any(|key| key.is_empty()) || parents.is_empty() {
        return Err(error(FORM.into()));
    }
    if text.trim().is_empty() {
        return unset(tree, &keys).map_err(error);
    }
    let value = parse_value(&keys, text.trim()).map_err(error)?;
    let mut table = tree;
    for key in parents {
        table = table
            .entry(*key)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| error(format!("{key} is a value, not a section")))?;
    }
    table.insert((*last).to_owned(), value);
    Ok(())
}

/// Takes a key out of the tree, or a whole section below another: as if nobody had written it.
fn unset(tree: &mut toml::Table, keys: &[&str]) -> Result<(), String> {
    let path = keys.join(".");
    let is_within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let known = RunFile::keys().map_err(|error| error.to_string())?;
    if !known.iter().any(|key| is_within(&key.path, &path) || is_within(&path, &key.path)) {
        let near = nearest(&path, known.iter().map(|key| key.path.as_str()));
        let meant = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        return Err(format!("there is no key {path} to unset{meant}"));
    }
    let Some((last, parents)) = keys.split_last() else { return Ok(()) };
    let mut table = tree;
    for key in parents {
        let Some(toml::Value::Table(inner)) = table.get_mut(*key) else { return Ok(()) };
        table = inner;
    }
    table.remove(*last);
    Ok(())
}

/// A TOML value, or the bare text as a string. Whole numbers that TOML cannot hold are seeds or refused.
fn parse_value(keys: &[&str], text: &str) -> Result<toml::Value, String> {
    let read = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    if let Some(value) = read.and_then(|mut table| table.remove("value")) {
        return Ok(value);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text).replace('_', "");
    let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_seed = keys == ["run", "seed"];
    if is_whole && !(is_seed && seed::parse(text).is_some()) {
        let most = if is_seed { u64::MAX } else { i64::MAX.unsigned_abs() };
        return Err(format!("{} is {text}; no whole number may be larger than {most}", keys.join(".")));
    }
    Ok(toml::Value::String(text.to_owned()))
}

/// Words of other tools, and the words that mean the same here.
const SYNONYMS: &[(&[&str], &str)] = &[
    (&["gpu", "nvidia", "gpus"], "cuda"),
    (&["host"], "cpu"),
    (&["float32", "fp32", "float", "single"], "f32"),
    (&["bfloat16", "bfloat"], "bf16"),
    (&["rollback", "revert"], "roll_back"),
    (&["linear", "warmup_stable_decay"], "wsd"),
    (&["learning_rate"], "lr"),
    (&["sequence_length", "max_length", "block_size", "context_length"], "seq_len"),
    (&["max_steps", "num_steps", "total_steps"], "steps"),
    (&["batch_size"], "micro_batch_size"),
    (&["gradient_accumulation_steps"], "cells"),
];

/// Serde's message in plain words, with "did you mean" for an unknown key or word.
fn with_suggestion(message: &str) -> String {
    let message = plain(message);
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_unknown = message.contains("unknown field") || message.contains("unknown variant");
    let Some((wrong, known)) = quoted.split_first().filter(|_| is_unknown) else {
        return message;
    };
    match nearest(wrong, known.iter().copied()) {
        Some(candidate) => format!("{message}\ndid you mean `{candidate}`?"),
        None => message,
    }
}

/// The word here that means the same as a word of another tool.
pub(super) fn synonym(word: &str) -> Option<&'static str> {
    let lower = word.to_lowercase();
    SYNONYMS.iter().find(|(words, _)| words.contains(&lower.as_str())).map(|(_, meant)| *meant)
}

/// The word of `known` that was meant by `wrong`: the same word of another tool, or one that differs in few letters.
fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let meant = synonym(wrong);
    if let Some(candidate) = known.clone().find(|candidate| Some(*candidate) == meant) {
        return Some(candidate);
    }
    known
        .map(|candidate| (strsim::damerau_levenshtein(wrong, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(wrong.len()) / 2)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Serde's message without the names of Rust's types, the key first.
fn plain(message: &str) -> String {
    const TYPES: &[(&str, &str)] = &[
        ("expected f64", "expected a number"),
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: section"),
    ];
    let mut text = message.trim().to_owned();
    for (word, plain) in TYPES {
        text = text.replace(word, plain);
    }
    // "expected struct TrainingSection": sections are what TOML calls tables.
    while let Some((before, after)) = text.split_once("expected struct ") {
        let rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        text = format!("{before}expected a section{rest}");
    }
    match text.split_once("\nin `") {
        Some((what, key)) => format!("{}: {what}", key.trim_end().trim_end_matches('`')),
        None => text,
    }
}

/// The error of a line whose value is text without quotes, which TOML takes for something else.
fn bare_text(text: &str, origin: &str, error: &toml::de::Error) -> Option<ConfigError> {
    let at = error.span()?.start;
    let before = text.get(..at)?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.lines().next()?;
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.split('#').next()?.trim());
    let is_word = value.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/' | '~' | '.'));
    if !is_word || value.contains(['"', '\'', '[', '{']) || key.is_empty() {
        return None;
    }
    let number = before.matches('\n').count() + 1;
    let message = format!("the value of {key} is text, which stands in quotes: {key} = {value:?}");
    Some(parse_error(&format!("{origin}, line {number}"), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = include_str!("../../../../configs/tiny.toml");

    fn read(text: &str, sets: &[&str]) -> Result<RunFile, String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunFile::parse(text, "run.toml", &sets).map_err(|error| error.to_string())
    }

    /// `key` on a line of its own after the line of `training.steps`, and that line's number.
    fn with_line(line: &str) -> (String, usize) {
        let text = TINY.replacen("steps = 60", &format!("steps = 60\n{line}"), 1);
        let number = text.lines().position(|other| other == line).unwrap() + 1;
        (text, number)
    }

    #[test]
    fn an_error_in_the_file_names_its_line_with_and_without_assignments() {
        for (line, key) in [
            ("stepz = 3", "stepz"),
            ("min_lr_ratio = \"low\"", "min_lr_ratio"),
            ("min_lr_ratio = 3.0", "training.min_lr_ratio"),
            ("recompute = 1", "recompute"),
            ("decay_steps = -1", "training.decay_steps"),
            ("stop_at_step = 18446744073709551615", "stop_at_step"),
        ] {
            let (text, number) = with_line(line);
            for sets in [&[][..], &["training.lr=1e-3"], &["training.lr=1e-3", "topology.shards=1"]] {
                let error = read(&text, sets).unwrap_err();
                assert!(error.starts_with("run.toml"), "{line} {sets:?}: {error}");
                assert!(error.contains(&format!("line {number}")), "{line} {sets:?}: {error}");
                assert!(error.contains(key) && !error.contains("--set"), "{line} {sets:?}: {error}");
            }
        }
    }

    #[test]
    fn an_error_in_an_assignment_names_it_alone() {
        for bad in
            ["training.stepz=3", "training.lr=fast", "training.lr=1e9", "topology.shards=x", "run=3", "a.b=1"]
        {
            let error = read(TINY, &["checkpoint.keep=5", bad, "topology.workers=2"]).unwrap_err();
            assert!(error.starts_with(&format!("--set {bad}: ")), "{bad}: {error}");
            assert!(!error.contains("run.toml") && !error.contains("keep=5"), "{bad}: {error}");
        }
    }

    #[test]
    fn assignments_supply_what_the_file_lacks() {
        let text = TINY.replacen("lr = 3e-3", "", 1);
        assert!(read(&text, &["training.lr=1e-3"]).is_ok());
        let error = read(&text, &["checkpoint.keep=5"]).unwrap_err();
        assert!(error.starts_with("run.toml") && error.contains("missing key: training.lr;"), "{error}");
        let half = "model.rope_scaling.factor=4.0";
        let other = "model.rope_scaling.original_max_position_embeddings=64";
        assert!(read(TINY, &[half, other]).is_ok());
        let error = read(TINY, &[half]).unwrap_err();
        assert!(error.starts_with("--set model.rope_scaling.factor"), "{error}");
    }

    #[test]
    fn text_without_quotes_is_told_as_such() {
        for (line, key) in [
            ("name = first", "name = \"first\""),
            ("name = tiny # the run", "name = \"tiny\""),
            ("name = north", "name = \"north\""),
            ("name = /a/b", "name = \"/a/b\""),
            ("name = ~/x", "name = \"~/x\""),
        ] {
            let error = read(&TINY.replacen("name = \"tiny\"", line, 1), &[]).unwrap_err();
            assert!(error.starts_with("run.toml, line 3: ") && error.ends_with(key), "{line}: {error}");
        }
        let error = read(&TINY.replacen("name = \"tiny\"", "name = \"tiny", 1), &[]).unwrap_err();
        assert!(!error.contains("stands in quotes"), "what has a quote is another error: {error}");
    }

    #[test]
    fn a_wrong_type_is_told_without_types_of_rust() {
        for (set, words) in [
            ("training.lr=fast", "training.lr: invalid type: string \"fast\", expected a number"),
            ("training.steps=many", "expected a whole number"),
            ("training.steps=1.5", "it must be a whole number"),
            ("training.recompute=1", "expected true or false"),
            ("ngram.ignored_tokens=3", "expected a list"),
            ("run=3", "write it as section.key=value"),
            ("training.clip=3", "training.clip: invalid type: integer `3`, expected a section"),
            ("training.lr=[1]", "training.lr: invalid type: list, expected a number"),
        ] {
            let error = read(TINY, &[set]).unwrap_err();
            assert!(error.contains(words), "{set}: {error}");
            let jargon = ["f64", "u32", "u64", "struct", "sequence", "boolean", "Section"];
            assert!(jargon.iter().all(|word| !error.contains(word)), "{set}: {error}");
        }
        let (text, _) = with_line("recompute = \"yes\"");
        let error = read(&text, &[]).unwrap_err();
        assert!(error.contains("expected true or false"), "{error}");
    }

    #[test]
    fn words_of_other_tools_are_known() {
        for (set, meant) in [
            ("device.kind=gpu", "`cuda`"),
            ("device.kind=GPU", "`cuda`"),
            ("device.kind=cdua", "`cuda`"),
            ("training.compute=bfloat16", "`bf16`"),
            ("embedding.storage=float32", "`f32`"),
            ("training.on_nonfinite=rollback", "`roll_back`"),
            ("training.learning_rate=1e-3", "`lr`"),
            ("training.batch_size=8", "`micro_batch_size`"),
        ] {
            let error = read(TINY, &[set]).unwrap_err();
            assert!(error.ends_with(&format!("did you mean {meant}?")), "{set}: {error}");
        }
    }

    /// What is set in the file can be taken out by an assignment, so that the other key of a pair can be given.
    #[test]
    fn an_empty_assignment_unsets_a_key() {
        let resolve = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            RunFile::parse(TINY, "run.toml", &sets).and_then(|file| file.resolve()).map_err(|e| e.to_string())
        };
        for (both, unset) in [
            (&["ngram.ratio=2.5"][..], &["ngram.base_rows="][..]),
            (
                &["data.train=x"],
                &["data.synthetic_tokens=", "data.synthetic_held_out_tokens=", "evaluation.every_steps="],
            ),
        ] {
            let error = resolve(both).unwrap_err();
            let key = both[0].split('=').next().unwrap();
            assert!(error.contains("both set") && error.contains(key) && error.contains(unset[0]), "{error}");
            assert!(resolve(&[both, unset].concat()).is_ok(), "{:?}", resolve(&[both, unset].concat()));
        }
        assert!(
            resolve(&["ngram.base_rows="])
                .unwrap_err()
                .contains("neither ngram.ratio nor ngram.base_rows is set")
        );
        assert!(resolve(&["data.synthetic_tokens="]).unwrap_err().contains("neither data.train nor"));
        assert_eq!(resolve(&["checkpoint.every_steps="]).unwrap().checkpoint.every_steps, None);
        assert_eq!(resolve(&["training.clip.norm=5", "training.clip="]).unwrap().training.clip, Some(1.0));
        assert!(resolve(&["data.held_out.wiki="]).is_ok(), "a key within a key");
        assert!(resolve(&["training.lr="]).unwrap_err().contains("missing key: training.lr;"));
        let error = resolve(&["ngram.base_row="]).unwrap_err();
        assert!(error.contains("no key ngram.base_row") && error.contains("`ngram.base_rows`"), "{error}");
    }

    #[test]
    fn seeds_have_64_bits() {
        for (seed, number) in
            [("0", 0), ("9223372036854775807", i64::MAX as u64), ("18446744073709551615", u64::MAX)]
        {
            let file = read(TINY, &[&format!("run.seed={seed}")]).unwrap();
            assert_eq!(file.run.seed, number);
            let again = RunFile::parse(&file.to_toml().unwrap(), "effective", &[]).unwrap();
            assert_eq!(again, file, "{seed}");
        }
        assert_eq!(read(TINY, &["run.seed=\"0xffffffffffffffff\""]).unwrap().run.seed, u64::MAX);
        assert_eq!(read(TINY, &["run.seed=0xffffffffffffffff"]).unwrap().run.seed, u64::MAX);
        assert_eq!(read(&TINY.replacen("seed = 7", "seed = \"12\"", 1), &[]).unwrap().run.seed, 12);
        for bad in ["18446744073709551616", "-1", "1.5", "\"12 \"", "\"+12\"", "0x", "\"0x+1\""] {
            let error = read(TINY, &[&format!("run.seed={bad}")]).unwrap_err();
            assert!(error.starts_with("--set run.seed="), "{bad}: {error}");
        }
        let error = read(TINY, &["training.steps=18446744073709551615"]).unwrap_err();
        assert!(error.contains("training.steps") && !error.contains("string"), "{error}");
    }

    #[test]
    fn what_does_not_resolve_is_placed() {
        let place = |message: &str, sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            RunFile::place_of(message, TINY, "run.toml", &sets)
        };
        let workers = "topology.workers is 8, but a step has only 4 cells (training.cells); 1.5 is no key.";
        let line = |start: &str| TINY.lines().position(|other| other.starts_with(start)).map(|line| line + 1);
        let written = format!("run.toml, line {}", line("workers").unwrap());
        assert_eq!(place(workers, &["checkpoint.keep=2"]), written);
        assert_eq!(
            place(workers, &["training.cells=4", "training.cells = 8"]),
            "--set training.cells = 8",
            "the last assignment of a key counts"
        );
        assert_eq!(place("no key here", &["training.cells=4"]), "run.toml");
        assert_eq!(place("embedding.lanes is of a default", &[]), "run.toml");
    }
}
