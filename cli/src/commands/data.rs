//! `polygram data`: text into token files, and what is in them.

use std::path::Path;

use polygram_data::prepare::TokenizerChoice;
use polygram_data::segment::Existing;
use polygram_data::{DataError, PrepareOptions, PrepareReport};
use polygram_telemetry::{Format, Identity, Logging, Role};
use serde::Serialize;

use crate::args::{DataInspectArgs, DataPrepareArgs};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::units::{bytes, columns, counted, grouped};

/// `polygram data prepare`.
pub(crate) fn prepare(args: &DataPrepareArgs, printer: &mut Printer) -> Outcome {
    if let Some(absent) = args.inputs.iter().find(|input| !input.exists()) {
        return Err(Failure::usage(format!("there is no input {}", absent.display())));
    }
    let mut options = PrepareOptions::new(args.inputs.clone(), args.output.clone());
    options.tokenizer = match (&args.tokenizer, TokenizerChoice::default()) {
        (Some(path), _) => TokenizerChoice::Given { path: path.clone(), eos: args.eos.clone() },
        (None, TokenizerChoice::Train { sample_bytes, .. }) => {
            TokenizerChoice::Train { vocab_size: args.vocab_size, sample_bytes }
        }
        (None, given) => given,
    };
    options.text_key.clone_from(&args.text_key);
    options.max_bytes = args.max_bytes;
    options.held_out_share = args.held_out;
    options.seed = args.seed;
    options.existing = if args.replace { Existing::Replace } else { Existing::Refuse };
    report_progress()?;
    printer.say(format!("preparing {} with {} threads", args.output.display(), options.threads));
    let report = polygram_data::prepare(&options).map_err(|error| refused("nothing was prepared", error))?;
    printer.result(&report, || human(&report, &args.output))?;
    Ok(ExitStatus::Success)
}

/// The preparation tells its progress as log lines on standard error.
fn report_progress() -> Outcome<()> {
    let identity = Identity { run: "data".into(), role: Role::Cli, index: None };
    let logging = Logging { level: "info".into(), format: Format::Human };
    polygram_telemetry::init(&identity, &logging)
        .map_err(|error| Failure::failed("cannot start the log").because(error))
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
    match error {
        DataError::Io { .. } => Failure::failed(what).because(error),
        _ => Failure::usage(what).because(error),
    }
}
