//! Plain words for what was mistyped: suggestions for commands and options, and what a number has to be. A suggestion is
//! made only where few letters differ; commands of other tools are answered with what does it here.

use std::error::Error as _;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use polygram_domain::RunFile;

/// Letters that may differ: a suggestion that is further away misleads.
const MOST_EDITS: usize = 2;

/// Keys of a run file that are named in a tip.
const MOST_KEYS: usize = 3;

/// Commands that people look for, and what to do instead.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &["logs", "log", "tail"],
        "`polygram train` prints the folder of the logs when it starts; `polygram why RUN` says what was lost and why",
    ),
    (
        &["resume", "continue", "restart", "run", "start", "launch", "fit"],
        "`polygram train RUNFILE` starts a run, and goes on with one that exists",
    ),
    (
        &["stop", "kill", "abort"],
        "Ctrl-C or SIGTERM to `polygram train` commits and stops; `polygram cancel JOB` does it for a job of a pool",
    ),
    (&["list", "ls", "ps"], "`polygram runs` lists runs, `polygram ckpt ls RUN` the checkpoints of one"),
    (&["checkpoint", "checkpoints"], "`polygram ckpt --help` names what can be done with checkpoints"),
    (&["eval", "evaluate", "test"], "[evaluation] in the run file says when held-out data is evaluated"),
    (&["prepare", "tokenize", "preprocess"], "`polygram data prepare INPUT --output DIR` makes token files"),
    (&["queue"], "`polygram jobs` lists the queue of a pool"),
    (
        &["init", "new", "config"],
        "`polygram keys --example` prints a run file to begin from, `polygram keys` describes every key, `polygram plan \
         RUNFILE` checks it",
    ),
    (&["version"], "`polygram --version` prints it"),
    (&["completions", "completion"], "there are no shell completions; `polygram --help` lists the commands"),
];

/// Arguments that are numbers, and where one finds them.
const NUMBERS: &[(&str, &str)] = &[
    ("<JOB>", "the number of a job, as `polygram jobs --all` lists them"),
    ("<STEP>", "the number of a step, as `polygram ckpt ls RUN` lists them"),
    ("<A>", "the number of a step, as `polygram ckpt ls RUN` lists them"),
    ("<B>", "the number of a step, as `polygram ckpt ls RUN` lists them"),
];

/// The same error in plain words, without suggestions that mislead.
pub(crate) fn improve(error: Error) -> Error {
    if let Some(message) = no_number(&error).or_else(|| no_value(&error)) {
        return Error::raw(ErrorKind::ValueValidation, message);
    }
    improve_suggestion(error)
}

/// What to say of a number outside its range, and of what is no address.
fn no_value(error: &Error) -> Option<String> {
    let cause = error.source()?;
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (argument, typed) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    if cause.is::<std::net::AddrParseError>() {
        return Some(format!(
            "{typed:?} for {argument} is no address with a port; write it as 127.0.0.1:7000, port 0 for any that is free\n"
        ));
    }
    let said = cause.to_string();
    let (_, range) = said.split_once(" is not in ")?;
    let (least, most) = range.split_once("..")?;
    let last: u64 = match most.strip_prefix('=') {
        Some(most) => most.parse().ok()?,
        None if most == u64::MAX.to_string() => u64::MAX,
        None => most.parse::<u64>().ok()?.checked_sub(1)?,
    };
    let range =
        if last == u64::MAX { format!("at least {least}") } else { format!("from {least} to {last}") };
    Some(format!("{argument} is {typed}; it must be {range}\n"))
}

/// What to say where a number is wanted, and something else was typed.
fn no_number(error: &Error) -> Option<String> {
    let cause = error.source()?;
    let what = match (cause.downcast_ref::<ParseIntError>(), cause.is::<ParseFloatError>()) {
        (Some(cause), _) if *cause.kind() == IntErrorKind::PosOverflow => "as small as a number has to be",
        (Some(_), _) => "a whole number",
        (None, true) => "a number",
        (None, false) => return None,
    };
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (argument, typed) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    // `--step <N>` or `<STEP>`.
    let named = |name: &str| argument == name || (argument.starts_with("--step ") && name == "<STEP>");
    let known = NUMBERS.iter().find(|(name, _)| named(name)).map(|(_, what)| *what);
    let what = match cause.downcast_ref::<ParseIntError>().map(ParseIntError::kind) {
        Some(IntErrorKind::PosOverflow) => what,
        _ => known.unwrap_or(what),
    };
    Some(format!("\"{typed}\" for {argument} is not {what}\n"))
}

fn improve_suggestion(mut error: Error) -> Error {
    let (wrong, suggested) = match error.kind() {
        ErrorKind::InvalidSubcommand => (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        ErrorKind::UnknownArgument => (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        ErrorKind::InvalidValue => (ContextKind::InvalidValue, ContextKind::SuggestedValue),
        _ => return error,
    };
    let Some(ContextValue::String(typed)) = error.get(wrong).cloned() else { return error };
    if error.kind() == ErrorKind::UnknownArgument {
        // "To pass it as a value" is never what was meant: no argument begins with a hyphen.
        error.remove(ContextKind::Suggested);
        let takes_run_file =
            error.get(ContextKind::Usage).is_some_and(|usage| usage.to_string().contains("RUNFILE"));
        if let Some(tip) = tip(&typed).filter(|_| takes_run_file) {
            error.remove(suggested);
            let tip = clap::builder::StyledStr::from(tip);
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
            return error;
        }
    }
    let is_near = |candidate: &String| strsim::damerau_levenshtein(&typed, candidate) <= MOST_EDITS;
    let near = match error.remove(suggested) {
        Some(ContextValue::String(candidate)) if is_near(&candidate) => Some(ContextValue::String(candidate)),
        Some(ContextValue::Strings(candidates)) => {
            let near: Vec<String> = candidates.into_iter().filter(is_near).collect();
            (!near.is_empty()).then_some(ContextValue::Strings(near))
        }
        _ => None,
    };
    let is_command = suggested == ContextKind::SuggestedSubcommand;
    let elsewhere = ELSEWHERE.iter().find(|(words, _)| is_command && words.contains(&typed.as_str()));
    match (elsewhere, near) {
        (Some((_, text)), _) => {
            let text = clap::builder::StyledStr::from(*text);
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![text]));
        }
        (None, Some(near)) => {
            error.insert(suggested, near);
        }
        (None, None) => {}
    }
    error
}

/// What to write instead of an option that a command with a run file does not have.
fn tip(typed: &str) -> Option<String> {
    let name = typed.trim_start_matches('-');
    match name {
        "resume" | "continue" | "restart" => {
            return Some("the same command goes on with a run that exists; no option is needed".to_owned());
        }
        "config" | "config-file" | "run-file" => {
            return Some("the run file is given without an option: `polygram train RUNFILE`".to_owned());
        }
        "name" | "run-name" => return Some("`--run NAME` names the run".to_owned()),
        _ => {}
    }
    let keys = RunFile::keys_named(&name.replace('-', "_"));
    let sets: Vec<String> = keys.iter().take(MOST_KEYS).map(|key| format!("`--set {key}=VALUE`")).collect();
    (!sets.is_empty()).then(|| format!("keys of the run file are given as {}", sets.join(" or ")))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    fn said(line: &str) -> String {
        improve(Cli::try_parse_from(line.split(' ')).unwrap_err()).to_string()
    }

    #[test]
    fn what_is_no_number_is_told_in_plain_words() {
        for (line, words) in [
            ("polygram cancel pj9", "\"pj9\" for <JOB> is not the number of a job"),
            ("polygram ckpt rm mine latest", "\"latest\" for <STEP> is not the number of a step"),
            (
                "polygram ckpt show mine --step newest",
                "\"newest\" for --step <N> is not the number of a step",
            ),
            ("polygram ckpt diff mine 1 last", "\"last\" for <B> is not the number of a step"),
            ("polygram metrics mine --last all", "\"all\" for --last <N> is not a whole number"),
            ("polygram pool up --workers two --shards 1", "\"two\" for --workers <N> is not a whole number"),
            ("polygram cancel 99999999999999999999", "is not as small as a number has to be"),
            ("polygram submit x.toml --priority 1.5", "\"1.5\" for --priority <P> is not a whole number"),
        ] {
            let said = said(line);
            assert!(said.starts_with("error: ") && said.contains(words), "{line}: {said}");
            assert!(!said.contains("digit"), "{line}: {said}");
        }
        for (line, words) in [
            ("polygram metrics mine --last 0", "--last <N> is 0; it must be at least 1"),
            ("polygram pool up --workers 0 --shards 1", "--workers <N> is 0; it must be from 1 to 4096"),
            ("polygram verify-replay r --from 0 --to 2", "--from <A> is 0; it must be at least 1"),
            (
                "polygram ngram size --vocab 5 --rows 0 --orders 2 --heads 1",
                "it must be from 1 to 4294967294",
            ),
            ("polygram pool up --workers 1 --shards 1 --listen nowhere", "no address with a port"),
            ("polygram pool up --workers 1 --shards 1 --listen 127.0.0.1", "127.0.0.1:7000"),
        ] {
            let said = said(line);
            assert!(said.contains(words) && !said.contains("18446744073709551615"), "{line}: {said}");
            assert!(!said.contains("syntax"), "{line}: {said}");
        }
    }

    #[test]
    fn options_of_other_tools_are_answered_with_the_key() {
        for (line, words) in [
            ("polygram train x.toml --steps 3", "`--set training.steps=VALUE`"),
            ("polygram train x.toml --steps=3", "`--set training.steps=VALUE`"),
            ("polygram plan x.toml --learning-rate=1", "`--set training.lr=VALUE`"),
            ("polygram train x.toml --seq-len 8", "`--set training.seq_len=VALUE`"),
            ("polygram train x.toml --batch-size 8", "`--set training.micro_batch_size=VALUE`"),
            ("polygram submit x.toml --every-steps=5", "checkpoint.every_steps=VALUE` or"),
            ("polygram train x.toml --resume", "goes on with a run that exists"),
            ("polygram train --config x.toml", "without an option"),
        ] {
            let said = said(line);
            assert!(said.contains(words) && !said.contains("-- --"), "{line}: {said}");
        }
        for line in
            ["polygram train x.toml --frobnicate", "polygram status r --resume", "polygram status r -1"]
        {
            let said = said(line);
            assert!(!said.contains("tip:"), "{line}: {said}");
        }
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        for (line, word) in [
            ("polygram trian x", "'train'"),
            ("polygram metric x", "'metrics'"),
            ("polygram data prepare x --outputs y", "'--output'"),
            ("polygram status r --rot x", "'--root'"),
        ] {
            let text = said(line);
            assert!(text.contains(word) && text.contains("similar"), "{line}: {text}");
        }
        for line in
            ["polygram loggers", "polygram competitions", "polygram frobnicate", "polygram ckpt compare r"]
        {
            let text = said(line);
            assert!(!text.contains("similar") && text.contains("unrecognized"), "{line}: {text}");
        }
    }

    #[test]
    fn commands_of_other_tools_are_answered() {
        for (line, word) in [
            ("polygram logs", "polygram train"),
            ("polygram completions", "no shell completions"),
            ("polygram resume", "polygram train RUNFILE"),
            ("polygram checkpoint", "polygram ckpt --help"),
        ] {
            let text = said(line);
            assert!(text.contains(word) && !text.contains("similar"), "{line}: {text}");
        }
        let command = Cli::command();
        for (words, _) in ELSEWHERE {
            for word in *words {
                assert!(command.find_subcommand(word).is_none(), "{word} is a command of its own");
            }
        }
    }

    /// Commands that are named in an answer exist.
    #[test]
    fn answers_name_real_commands() {
        let command = Cli::command();
        for (_, text) in ELSEWHERE {
            for quoted in text.split('`').skip(1).step_by(2) {
                let word = quoted.split(' ').nth(1).unwrap();
                assert!(word.starts_with('-') || command.find_subcommand(word).is_some(), "{quoted}");
            }
        }
    }
}
