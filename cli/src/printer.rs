//! The only place that writes to standard output (results) and standard error (progress, warnings, errors).
//!
//! A closed pipe is the reader's choice, never an error: what is left of the result is not written, and the command ends
//! with its own status. Other write errors on standard output are errors.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::exit::{Failure, Outcome};
use polygram_domain::OutputFormat;
use polygram_telemetry::lossy_stderr;

/// Back to the first column, and nothing in the line.
const CLEAR_LINE: &str = "\r\x1b[2K";

/// Writes results in the chosen form.
pub(crate) struct Printer {
    format: OutputFormat,
    verbose: u8,
    line_open: bool,
    /// Whether the reader of standard output has gone.
    is_closed: bool,
}

impl Printer {
    /// A printer of `format`; `verbose` counts the -v.
    pub(crate) fn new(format: OutputFormat, verbose: u8) -> Printer {
        Printer { format, verbose, line_open: false, is_closed: false }
    }

    /// The chosen form.
    pub(crate) fn format(&self) -> OutputFormat {
        self.format
    }

    /// Whether everything should be said.
    pub(crate) fn is_verbose(&self) -> bool {
        self.verbose > 0
    }

    /// Prints a result: `human()` for eyes, `document` as JSON otherwise.
    pub(crate) fn result<T: Serialize>(
        &mut self,
        document: &T,
        human: impl FnOnce() -> String,
    ) -> Outcome<()> {
        match self.format {
            OutputFormat::Human => self.text(&human()),
            OutputFormat::Json => self.json_pretty(document),
            OutputFormat::Jsonl => self.json_line(document),
        }
    }

    /// Prints text as it is, closed by a newline.
    pub(crate) fn text(&mut self, text: &str) -> Outcome<()> {
        self.end_line();
        self.write(format!("{}\n", text.trim_end_matches('\n')).as_bytes())
    }

    /// Prints one compact JSON document on a line.
    pub(crate) fn json_line<T: Serialize>(&mut self, document: &T) -> Outcome<()> {
        self.json_lines(std::slice::from_ref(document))
    }

    /// Prints one compact JSON document per item, a line each.
    pub(crate) fn json_lines<T: Serialize>(&mut self, items: &[T]) -> Outcome<()> {
        let mut lines = Vec::new();
        for item in items {
            serde_json::to_writer(&mut lines, item).map_err(unprintable)?;
            lines.push(b'\n');
        }
        self.end_line();
        self.write(&lines)
    }

    fn json_pretty<T: Serialize>(&mut self, document: &T) -> Outcome<()> {
        let mut text = serde_json::to_vec_pretty(document).map_err(unprintable)?;
        text.push(b'\n');
        self.end_line();
        self.write(&text)
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        if self.is_closed {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            // The reader has seen enough (`polygram metrics demo | head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::failed("cannot write to standard output").because(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Says something on standard error. A closed standard error is not worth failing for.
    /// The live line makes way for it; the next one comes below.
    pub(crate) fn say(&mut self, text: impl AsRef<str>) {
        let clear = if std::mem::take(&mut self.line_open) { CLEAR_LINE } else { "" };
        // Nor is one that nobody reads: a run does not wait for it.
        let _ = lossy_stderr().write_all(format!("{clear}{}\n", text.as_ref()).as_bytes());
    }

    /// A warning on standard error.
    pub(crate) fn warn(&mut self, text: impl AsRef<str>) {
        self.say(format!("warning: {}", text.as_ref()));
    }

    /// Rewrites the live line of a terminal, cut to its width. Elsewhere nothing is written: use [`Printer::say`] now and
    /// then.
    pub(crate) fn live(&mut self, text: &str) {
        let line = cut(text, self.width());
        let _ = lossy_stderr().write_all(format!("{CLEAR_LINE}{line}").as_bytes());
        self.line_open = true;
    }

    /// Whether standard error is a terminal, so that a line can be rewritten.
    pub(crate) fn is_live(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Columns of a line: of the terminal without its last one, without limit elsewhere.
    pub(crate) fn width(&self) -> usize {
        if self.is_live() { terminal_width().saturating_sub(1) } else { usize::MAX }
    }

    /// Leaves the live line as it stands.
    pub(crate) fn end_line(&mut self) {
        if std::mem::take(&mut self.line_open) {
            let _ = writeln!(io::stderr().lock());
        }
    }

    /// The last word of a failed command, on standard error.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        self.end_line();
        // A reader that is paused sees this one all the same.
        let _ = writeln!(io::stderr().lock(), "{failure}");
    }
}

/// The text in at most `width` columns; an ellipsis says that it was cut.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut line: String = text.chars().take(width.saturating_sub(1)).collect();
    line.extend((width > 0).then_some('…'));
    line
}

fn unprintable(error: serde_json::Error) -> Failure {
    Failure::failed("cannot write the result as JSON").because(error)
}

/// Columns of the terminal behind standard error, 80 when it does not say.
fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| match size.ws_col {
        0 => 80,
        columns => columns.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_to_their_width() {
        assert_eq!(cut("waiting", 7), "waiting");
        assert_eq!(cut("waiting", 6), "waiti…");
        assert_eq!([cut("wäiting", 2), cut("x", 0), cut("", 0)], ["w…", "", ""]);
    }
}
