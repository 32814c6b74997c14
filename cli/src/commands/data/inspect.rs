//! `polygram data inspect`.

use polygram_data::local_path;
use serde::Serialize;

use super::refused;
use crate::args::DataInspectArgs;
use crate::data_files;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::units::{counted, grouped};

#[derive(Serialize)]
struct InspectDocument {
    file: String,
    dtype: String,
    documents: u64,
    sequences: u64,
    tokens: u64,
    max_token: Option<u32>,
    first_tokens: Vec<u32>,
    /// Of the first tokens, where the tokenizer that made them lies beside the files.
    first_text: Option<String>,
    /// What does not belong together; also printed as warnings.
    notes: Vec<String>,
}

/// `polygram data inspect`.
pub(crate) fn inspect(args: &DataInspectArgs, printer: &mut Printer) -> Outcome {
    let prefix = args.prefix.to_str().ok_or_else(|| {
        Failure::usage(format!("{} is no UTF-8 path", args.prefix.display())).hint("rename the files")
    })?;
    let (_, idx) = polygram_data::segment::pair_of(prefix);
    if !idx.is_file() {
        if let Some(problem) = local_path::problem_of(&args.prefix) {
            return Err(Failure::usage(format!("{prefix} cannot be inspected: {problem}")));
        }
        if let Some(hint) = data_files::meant("PREFIX", prefix) {
            return Err(Failure::usage(format!("there is no file {}", idx.display())).hint(hint));
        }
    }
    let found = polygram_data::inspect(prefix).map_err(|error| refused("cannot inspect the data", error))?;
    for note in &found.notes {
        printer.warn(note);
    }
    let document = InspectDocument {
        file: found.name,
        dtype: found.dtype.to_string(),
        documents: found.documents,
        sequences: found.sequences,
        tokens: found.tokens,
        max_token: found.max_token,
        first_tokens: found.first_tokens,
        first_text: found.first_text,
        notes: found.notes,
    };
    printer.result(&document, || human(&document))?;
    Ok(ExitStatus::Success)
}

fn human(document: &InspectDocument) -> String {
    let max = document.max_token.map_or("none".to_owned(), |token| grouped(token.into()));
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
}
