//! Progress of a preparation on standard error: a line that is rewritten on a terminal, a line now and then
//! elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use polygram_data::prepare::{Progress, Stage};

use crate::printer::Printer;
use crate::units::{bytes, counted, duration, percent};

/// How often a line is printed where none can be rewritten.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// A part of a known whole.
const BAR: &str = "{prefix} {wide_bar} {bytes}/{total_bytes} {msg}";
/// Work whose end is not known.
const SPINNER: &str = "{spinner} {prefix} {msg}";

/// Shows progress.
pub(super) struct Display {
    is_live: bool,
    /// Of the stage; made anew for each, so that nothing of the one before is drawn.
    bar: Option<ProgressBar>,
    stage: Option<Stage>,
    stage_began: Instant,
    last_line: Instant,
}

impl Display {
    pub(super) fn new(printer: &Printer) -> Display {
        let now = Instant::now();
        Display { is_live: printer.is_live(), bar: None, stage: None, stage_began: now, last_line: now }
    }

    pub(super) fn show(&mut self, progress: Option<Progress>, printer: &mut Printer) {
        let Some(progress) = progress else { return };
        if self.stage != Some(progress.stage) {
            self.end();
            self.stage = Some(progress.stage);
            self.stage_began = Instant::now();
        }
        let state = State { progress, seconds: self.stage_began.elapsed().as_secs_f64() };
        if self.is_live {
            let bar = self.bar.get_or_insert_with(|| state.bar());
            bar.set_message(state.message());
            bar.set_position(progress.bytes);
            bar.tick();
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            printer.say(state.line());
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// How far a stage is after some seconds.
struct State {
    progress: Progress,
    seconds: f64,
}

impl State {
    /// What the stage does.
    fn name(&self) -> &'static str {
        match self.progress.stage {
            Stage::Survey => "reading",
            Stage::Train => "training the tokenizer",
            Stage::Encode => "encoding",
            Stage::Install => "writing",
        }
    }

    /// Whether the stage reads the inputs.
    fn reads(&self) -> bool {
        matches!(self.progress.stage, Stage::Survey | Stage::Encode)
    }

    /// The part that is done; `None` where the whole is not known.
    fn done(&self) -> Option<f64> {
        let Progress { bytes, total_bytes, .. } = self.progress;
        (self.reads() && total_bytes > 0).then(|| (bytes as f64 / total_bytes as f64).min(1.0))
    }

    /// The time that is left, once it can be told.
    fn left(&self) -> Option<String> {
        let done = self.done().filter(|&done| done > 0.0 && done < 1.0 && self.seconds > 1.0)?;
        Some(format!("{} left", duration(self.seconds * (1.0 - done) / done)))
    }

    fn template(&self) -> &'static str {
        if self.done().is_some() { BAR } else { SPINNER }
    }

    fn bar(&self) -> ProgressBar {
        let style =
            ProgressStyle::with_template(self.template()).unwrap_or_else(|_| ProgressStyle::default_bar());
        let total = self.done().map(|_| self.progress.total_bytes);
        ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
            .with_style(style)
            .with_prefix(self.name())
            .with_position(self.progress.bytes)
            .with_message(self.message())
    }

    /// What stands beside the bar or the spinner.
    fn message(&self) -> String {
        match self.done() {
            Some(_) => self.left().unwrap_or_default(),
            None if self.reads() => format!("{}, {}", bytes(self.progress.bytes), self.amounts()),
            None => duration(self.seconds),
        }
    }

    fn amounts(&self) -> String {
        let documents = counted(self.progress.documents, "document");
        match self.progress.stage {
            Stage::Encode => format!("{documents}, {}", counted(self.progress.tokens, "token")),
            _ => documents,
        }
    }

    /// A line of its own.
    fn line(&self) -> String {
        let (name, read) = (self.name(), bytes(self.progress.bytes));
        let Some(done) = self.done() else {
            return match self.reads() {
                true => format!("{name}: {read}, {}", self.amounts()),
                false => format!("{name} for {}", duration(self.seconds)),
            };
        };
        let left = self.left().map_or(String::new(), |left| format!(", {left}"));
        let total = bytes(self.progress.total_bytes);
        format!("{name}: {read} of {total} ({}), {}{left}", percent(done), self.amounts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(stage: Stage, (bytes, total_bytes): (u64, u64), seconds: f64) -> State {
        State { progress: Progress { stage, bytes, total_bytes, documents: 1, tokens: 20_686 }, seconds }
    }

    #[test]
    fn nothing_is_shown_that_is_not_known() {
        let mib = |count: u64| count << 20;
        for (state, template, message, line) in [
            (
                state(Stage::Survey, (mib(1), mib(4)), 2.0),
                BAR,
                "6.0s left",
                "reading: 1.00 MiB of 4.00 MiB (25%), 1 document, 6.0s left",
            ),
            (
                state(Stage::Encode, (mib(1), mib(4)), 0.2),
                BAR,
                "",
                "encoding: 1.00 MiB of 4.00 MiB (25%), 1 document, 20,686 tokens",
            ),
            // All is read and something is left to encode, or a file grew.
            (
                state(Stage::Encode, (mib(4), mib(4)), 9.0),
                BAR,
                "",
                "encoding: 4.00 MiB of 4.00 MiB (100%), 1 document, 20,686 tokens",
            ),
            (
                state(Stage::Encode, (mib(5), mib(4)), 9.0),
                BAR,
                "",
                "encoding: 5.00 MiB of 4.00 MiB (100%), 1 document, 20,686 tokens",
            ),
            // A pipe has no length.
            (
                state(Stage::Encode, (mib(3), 0), 9.0),
                SPINNER,
                "3.00 MiB, 1 document, 20,686 tokens",
                "encoding: 3.00 MiB, 1 document, 20,686 tokens",
            ),
            (state(Stage::Train, (0, 0), 61.0), SPINNER, "1m 01s", "training the tokenizer for 1m 01s"),
            (state(Stage::Install, (0, 0), 0.2), SPINNER, "0.2s", "writing for 0.2s"),
        ] {
            assert_eq!((state.template(), state.message().as_str()), (template, message), "{line}");
            assert_eq!(state.line(), line);
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
