//! How the program ends: a status that means something, and one clear message when something went wrong.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::process::ExitCode;

use polygram_process::limits;

/// The exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// 0: done.
    Success,
    /// 1: the run or the work failed.
    Failed,
    /// 2: the command line, a configuration or an input is wrong; nothing was started or written.
    Usage,
    /// 3: stopped on request before its end, state committed; the same command continues it.
    Stopped,
    /// What a program run on the user's behalf ended with.
    Passed(u8),
}

impl ExitStatus {
    /// The number the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::Failed => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Stopped => 3,
            ExitStatus::Passed(code) => code,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status.code())
    }
}

/// Why a command ends badly: what happened, because of what, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

/// What a command returns.
pub(crate) type Outcome<T = ExitStatus> = Result<T, Failure>;

impl Failure {
    /// Something the user gave is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { status: ExitStatus::Usage, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// The input was fine, the work failed.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure { status: ExitStatus::Failed, ..Failure::usage(message) }
    }

    /// Somebody asked for the end before there was anything to commit.
    pub(crate) fn stopped(message: impl Into<String>) -> Failure {
        Failure { status: ExitStatus::Stopped, ..Failure::usage(message) }
    }

    /// Adds an error and everything below it as causes.
    pub(crate) fn because(mut self, error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        let error = error.into();
        if self.hint.is_none() {
            self.hint = limits::advice_in(error.as_ref());
        }
        let mut next: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        while let Some(cause) = next {
            let text = cause.to_string();
            // A message that already quotes its source is not repeated.
            if !self.causes.last().is_some_and(|last| last.contains(&text)) {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }

    /// What happened, without causes and hint.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("error: {}", self.message.trim_end());
        for cause in &self.causes {
            write!(text, "\n  because: {}", cause.trim_end().replace('\n', "\n    "))?;
        }
        if let Some(hint) = &self.hint {
            write!(text, "\nhint: {}", hint.trim_end())?;
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_reads_as_one_message() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let text = Failure::usage("cannot read x.toml").because(io).hint("look in configs/").to_string();
        assert_eq!(text, "error: cannot read x.toml\n  because: no such file\nhint: look in configs/");
    }

    #[test]
    fn a_quoted_source_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] std::io::Error);
        let io = || std::io::Error::other("inner");
        assert_eq!(
            Failure::failed("m").because(Outer(io())).to_string(),
            "error: m\n  because: outer: inner"
        );
    }
}
