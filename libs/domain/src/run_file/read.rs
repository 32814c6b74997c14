//! Reading a run file and `--set` assignments. An error in the file names its line; an error in an assignment
//! names that assignment alone.

use toml::de::{DeTable, DeValue};

use super::{ConfigError, RunFile, bounds, required, seed};

impl RunFile {
    /// Reads a run file's text and applies `overrides` of the form `a.b=c`, in order. `origin` names the file
    /// in errors.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<RunFile, ConfigError> {
        let in_file = |message: &str| parse_error(origin, with_suggestion(message));
        let mut tree: toml::Table = toml::from_str(text).map_err(|e| in_file(&e.to_string()))?;
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
        let missing = required::missing(&tree);
        if file.is_err() && !missing.is_empty() {
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

/// Adds "did you mean" to serde's message about an unknown key or variant.
fn with_suggestion(message: &str) -> String {
    let message = message.trim();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_unknown = message.contains("unknown field") || message.contains("unknown variant");
    let Some((wrong, known)) = quoted.split_first().filter(|_| is_unknown) else {
        return message.to_owned();
    };
    let best = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(wrong, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(wrong.len()) / 2)
        .min();
    match best {
        Some((_, candidate)) => format!("{message}\ndid you mean `{candidate}`?"),
        None => message.to_owned(),
    }
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
