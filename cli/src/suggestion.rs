//! Suggestions for mistyped commands and options. A suggestion is made only where few letters differ;
//! commands of other tools are answered with what does it here.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Letters that may differ: a suggestion that is further away misleads.
const MOST_EDITS: usize = 2;

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
        "copy a run file of configs/ and edit it; `polygram plan RUNFILE` checks it",
    ),
    (&["version"], "`polygram --version` prints it"),
    (&["completions", "completion"], "there are no shell completions; `polygram --help` lists the commands"),
];

/// The same error without suggestions that mislead.
pub(crate) fn improve(mut error: Error) -> Error {
    let (wrong, suggested) = match error.kind() {
        ErrorKind::InvalidSubcommand => (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        ErrorKind::UnknownArgument => (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        ErrorKind::InvalidValue => (ContextKind::InvalidValue, ContextKind::SuggestedValue),
        _ => return error,
    };
    let Some(ContextValue::String(typed)) = error.get(wrong).cloned() else { return error };
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    fn said(line: &str) -> String {
        improve(Cli::try_parse_from(line.split(' ')).unwrap_err()).to_string()
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
