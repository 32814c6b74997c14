//! `polygram data`: text into token files, and what is in them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use polygram_data::prepare::{Monitor, Progress, Stage, TextFormat, TokenizerChoice, UNREADABLE, abandon};
use polygram_data::segment::Existing;
use polygram_data::{DataError, PrepareOptions, PrepareReport, prepare_with};
use polygram_telemetry::{Format, Identity, Logging, Role};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::args::{DataInspectArgs, DataPrepareArgs, InputFormat};
use crate::data_files;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::StopSignals;
use crate::printer::Printer;
use crate::units::{bytes, columns, counted, duration, grouped, percent};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is printed where no line can be rewritten.
const LINE: Duration = Duration::from_secs(10);
/// How long a preparation may take to stop by itself: it may be waiting for a pipe.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// `polygram data prepare`.
pub(crate) fn prepare(args: &DataPrepareArgs, printer: &mut Printer) -> Outcome {
    let mut options = PrepareOptions::new(args.inputs.clone(), args.output.clone());
    options.tokenizer = match (&args.tokenizer, TokenizerChoice::default()) {
        (Some(path), _) => TokenizerChoice::Given { path: path.clone(), eos: args.eos.clone() },
        (None, TokenizerChoice::Train { sample_bytes, .. }) => {
            TokenizerChoice::Train { vocab_size: args.vocab_size, sample_bytes }
        }
        (None, given) => given,
    };
    options.text_key.clone_from(&args.text_key);
    options.format = match args.format {
        InputFormat::Auto => TextFormat::Auto,
        InputFormat::Text => TextFormat::Text,
        InputFormat::Jsonl => TextFormat::JsonLines,
    };
    options.max_bytes = args.max_bytes;
    options.held_out_share = args.held_out;
    options.seed = args.seed;
    options.threads = args.threads.unwrap_or(options.threads);
    options.existing = if args.replace { Existing::Replace } else { Existing::Refuse };
    log_warnings()?;
    let threads = match options.threads.get() {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    };
    printer.say(format!("preparing {} with {threads}", args.output.display()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("cannot start the runtime").because(error))?;
    let report = runtime.block_on(attend(options, printer))?;
    say_what_differs(&report, printer);
    printer.result(&report, || human(&report, &args.output))?;
    Ok(ExitStatus::Success)
}

/// Warnings of the libraries go to standard error.
fn log_warnings() -> Outcome<()> {
    let identity = Identity { run: "data".into(), role: Role::Cli, index: None };
    let logging = Logging { level: "warn".into(), format: Format::Human };
    polygram_telemetry::init(&identity, &logging)
        .map_err(|error| Failure::failed("cannot start the log").because(error))
}

/// The last progress, and whether the work is to stop.
#[derive(Default)]
struct Follower {
    stop: AtomicBool,
    progress: Mutex<Option<Progress>>,
}

impl Follower {
    fn last(&self) -> Option<Progress> {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Follower {
    fn progress(&self, progress: &Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(*progress);
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Prepares on a thread of its own, shows the progress and stops the work on a signal.
async fn attend(options: PrepareOptions, printer: &mut Printer) -> Outcome<PrepareReport> {
    let mut signals = StopSignals::listen()?;
    let follower = Arc::new(Follower::default());
    let output = options.output.clone();
    let (send, mut done) = oneshot::channel();
    let monitor = Arc::clone(&follower);
    std::thread::Builder::new()
        .name("prepare".into())
        .spawn(move || send.send(prepare_with(&options, &*monitor)).is_ok())
        .map_err(|error| Failure::failed("cannot start a thread").because(error))?;
    let mut display = Display::new(printer);
    let mut stopping = None;
    let mut look = tokio::time::interval(LOOK);
    let result = loop {
        tokio::select! {
            result = &mut done => break result,
            () = signals.next() => {
                follower.stop.store(true, Ordering::SeqCst);
                stopping.get_or_insert_with(Instant::now);
            }
            _ = look.tick() => {
                let last = follower.last();
                display.show(last, printer);
                // Files that are being given their names are left to it.
                let installing = last.is_some_and(|last| last.stage == Stage::Install);
                if !installing && stopping.is_some_and(|since| since.elapsed() > STOP_TIMEOUT) {
                    display.end();
                    abandon(&output)
                        .map_err(|error| Failure::failed("cannot remove unfinished files").because(error))?;
                    return Err(Failure::stopped(DataError::Stopped.to_string()));
                }
            }
        }
    };
    display.end();
    result
        .map_err(|_| Failure::failed("the preparation ended without a result"))?
        .map_err(|error| refused("nothing was prepared", error))
}

/// Progress on standard error: a bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    stage: Option<Stage>,
    stage_began: Instant,
    last_line: Instant,
}

impl Display {
    fn new(printer: &Printer) -> Display {
        let bar = printer.is_live().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        Display { bar, stage: None, stage_began: now, last_line: now }
    }

    fn show(&mut self, progress: Option<Progress>, printer: &mut Printer) {
        let Some(progress) = progress else { return };
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            self.stage_began = Instant::now();
        }
        let seconds = self.stage_began.elapsed().as_secs_f64();
        let done = progress.bytes as f64 / progress.total_bytes.max(1) as f64;
        let left =
            if done > 0.0 && seconds > 1.0 { seconds * (1.0 - done).max(0.0) / done } else { f64::NAN };
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(name_of(progress.stage));
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.bytes);
                bar.set_message(match progress.stage {
                    Stage::Train | Stage::Install => duration(seconds),
                    Stage::Survey | Stage::Encode => format!("{} left", duration(left)),
                });
            }
            None if self.last_line.elapsed() >= LINE => {
                self.last_line = Instant::now();
                printer.say(line(&progress, seconds, left));
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn name_of(stage: Stage) -> &'static str {
    match stage {
        Stage::Survey => "reading",
        Stage::Train => "training the tokenizer",
        Stage::Encode => "encoding",
        Stage::Install => "writing",
    }
}

/// The progress as a line of its own.
fn line(progress: &Progress, seconds: f64, left: f64) -> String {
    let name = name_of(progress.stage);
    match progress.stage {
        Stage::Train | Stage::Install => format!("{name} for {}", duration(seconds)),
        Stage::Survey | Stage::Encode => {
            let done = progress.bytes as f64 / progress.total_bytes.max(1) as f64;
            format!(
                "{name}: {} of {} ({}), {}, {} tokens, {} left",
                bytes(progress.bytes),
                bytes(progress.total_bytes),
                percent(done),
                counted(progress.documents, "document"),
                grouped(progress.tokens),
                duration(left)
            )
        }
    }
}

/// What was left out, and what the user may not expect.
fn say_what_differs(report: &PrepareReport, printer: &mut Printer) {
    // A note says more about what may not be read.
    for (kind, count) in report.left_out.iter().filter(|(kind, _)| *kind != UNREADABLE) {
        let more = if count.files > 1 { " and others" } else { "" };
        printer.say(format!("left out: {} {kind} ({}{more})", grouped(count.files), count.example));
    }
    for note in &report.notes {
        printer.warn(note);
    }
}

fn human(report: &PrepareReport, output: &Path) -> String {
    let mut rows = vec![["file", "documents", "read", "skipped"].map(str::to_owned).to_vec()];
    rows.extend(report.sources.iter().map(|(extension, count)| {
        vec![extension.clone(), grouped(count.documents), bytes(count.bytes), grouped(count.skipped_files)]
    }));
    let mut text = columns(&rows);
    rows = vec![["part", "documents", "tokens", "unigram entropy"].map(str::to_owned).to_vec()];
    rows.extend(
        [("train", Some(&report.train)), ("held out", report.held_out.as_ref())].into_iter().filter_map(
            |(name, part)| {
                let part = part?;
                let entropy = format!("{:.4} nats", part.unigram_entropy_nats);
                Some(vec![name.to_owned(), grouped(part.documents), grouped(part.tokens), entropy])
            },
        ),
    );
    text.push('\n');
    text.push_str(&columns(&rows));
    text.push_str(&format!(
        "\nwritten to {}; in the run file:\n  data.train = {:?}\n",
        output.display(),
        report.train.path
    ));
    if let Some(part) = &report.held_out {
        text.push_str(&format!("  data.held_out = {:?}\n", part.path));
    }
    text.push_str(&format!(
        "  model.vocab_size = {} or more, model.bos_token_id = {}, model.eos_token_id = {}\n",
        report.vocab_size, report.bos_token_id, report.eos_token_id
    ));
    text
}

#[derive(Serialize)]
struct InspectDocument {
    file: String,
    dtype: String,
    documents: u64,
    sequences: u64,
    tokens: u64,
    max_token: Option<u32>,
    first_tokens: Vec<u32>,
    /// Of the first tokens, where a tokenizer lies beside the files.
    first_text: Option<String>,
}

/// `polygram data inspect`.
pub(crate) fn inspect(args: &DataInspectArgs, printer: &mut Printer) -> Outcome {
    let prefix = args.prefix.to_str().ok_or_else(|| {
        Failure::usage(format!("{} is no UTF-8 path", args.prefix.display())).hint("rename the files")
    })?;
    let (_, idx) = polygram_data::segment::pair_of(prefix);
    if let Some(hint) = (!idx.is_file()).then(|| data_files::meant("PREFIX", prefix)).flatten() {
        return Err(Failure::usage(format!("there is no file {}", idx.display())).hint(hint));
    }
    let found = polygram_data::inspect(prefix).map_err(|error| refused("cannot inspect the data", error))?;
    let document = InspectDocument {
        file: found.name,
        dtype: found.dtype.to_string(),
        documents: found.documents,
        sequences: found.sequences,
        tokens: found.tokens,
        max_token: found.max_token,
        first_tokens: found.first_tokens,
        first_text: found.first_text,
    };
    printer.result(&document, || {
        let max = document.max_token.map_or("none".to_owned(), grouped_token);
        let text = document.first_text.as_ref().map(|text| {
            let lines: String = text.lines().map(|line| format!("  | {line}\n")).collect();
            format!("as text:\n{lines}")
        });
        format!(
            "{}: {}, {} of type {}\nlargest token {max}\nbegins with {:?}\n{}",
            document.file,
            counted(document.documents, "document"),
            counted(document.tokens, "token"),
            document.dtype,
            document.first_tokens,
            text.unwrap_or_default()
        )
    })?;
    Ok(ExitStatus::Success)
}

fn grouped_token(token: u32) -> String {
    grouped(token.into())
}

/// What the user gave is a matter of usage; what the system refuses is a failure.
fn refused(what: &str, error: DataError) -> Failure {
    use std::io::ErrorKind;
    match error {
        DataError::Stopped => Failure::stopped(error.to_string()),
        DataError::Io { ref source, .. }
            if !matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::NotADirectory
                    | ErrorKind::IsADirectory
                    | ErrorKind::InvalidFilename
            ) =>
        {
            Failure::failed(what).because(error)
        }
        _ => Failure::usage(what).because(error),
    }
}
