//! `polygram data`: text into token files, and what is in them.

mod display;
mod inspect;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use polygram_data::prepare::{Leftovers, Monitor, Progress, Stage, TextFormat, TokenizerChoice, UNREADABLE};
use polygram_data::segment::Existing;
use polygram_data::{DataError, PrepareOptions, PrepareReport, prepare_with};
use polygram_telemetry::{Format, Identity, Logging, Role};
use tokio::sync::oneshot;

use crate::args::{DataPrepareArgs, InputFormat};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::StopSignals;
use crate::printer::Printer;
use crate::units::{bytes, columns, counted, grouped};
use display::Display;

pub(crate) use inspect::inspect;

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_millis(200);
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
    let leftovers = Leftovers::of(&options.output);
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
                    leftovers
                        .remove()
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

/// What was left out, and what the user may not expect.
fn say_what_differs(report: &PrepareReport, printer: &mut Printer) {
    // A note says more about what may not be read.
    for (kind, count) in report.left_out.iter().filter(|(kind, _)| *kind != UNREADABLE) {
        let more = if count.files > 1 { " and others" } else { "" };
        printer.say(format!("left out: {kind}: {} ({}{more})", grouped(count.files), count.example));
    }
    for (kind, count) in report.sources.iter().filter(|(_, count)| count.null_texts + count.empty_texts > 0) {
        let texts = [(count.null_texts, "null text"), (count.empty_texts, "empty text")];
        let texts: Vec<String> = texts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| counted(count, what))
            .collect();
        printer.say(format!("left out: in {kind}: {}", texts.join(", ")));
    }
    for note in &report.notes {
        printer.warn(note);
    }
}

fn human(report: &PrepareReport, output: &Path) -> String {
    let mut rows =
        vec![["file", "documents", "without text", "read", "skipped files"].map(str::to_owned).to_vec()];
    rows.extend(report.sources.iter().map(|(extension, count)| {
        vec![
            extension.clone(),
            grouped(count.documents),
            grouped(count.null_texts + count.empty_texts),
            bytes(count.bytes),
            grouped(count.skipped_files),
        ]
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
    text.push_str(&format!("\nwritten to {}; for the run file:\n\n{}", output.display(), sections(report)));
    text
}

/// The sections of a run file that name this data and agree with it, as TOML.
fn sections(report: &PrepareReport) -> String {
    // A JSON string is one of TOML too.
    let quoted = |path: &str| serde_json::Value::from(path).to_string();
    let mut text = format!("[data]\ntrain = {}\n", quoted(&report.train.path));
    if let Some(part) = &report.held_out {
        text.push_str(&format!("held_out = {}\n", quoted(&part.path)));
    }
    text.push_str(&format!(
        "\n[model]\nvocab_size = {}  # or more\nbos_token_id = {}\neos_token_id = {}\n",
        report.vocab_size, report.bos_token_id, report.eos_token_id
    ));
    if report.held_out.is_some() {
        text.push_str("\n[evaluation]\nevery_steps = 100  # and after the last step\n");
    }
    text
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
