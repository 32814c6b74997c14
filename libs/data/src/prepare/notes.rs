//! What a preparation says beside its result: what the user may not expect, and what was found where no text
//! was.

use polygram_domain::words::{counted, grouped, of_many};

use super::corpus::Corpus;
use super::files::UNREADABLE;
use super::meta::{LeftOutCount, PartCount, SourceCount};
use super::options::PrepareOptions;
use super::reading::PassReport;
use super::tokenizer::TextTokenizer;
use crate::error::DataError;

/// What the user may not expect. `parts` are the training and the held-out segment.
pub(super) fn notes(
    options: &PrepareOptions,
    tokenizer: &TextTokenizer,
    (train, held_out): (&PartCount, &PartCount),
    found: &PassReport,
) -> Vec<String> {
    let mut notes = tokenizer.notes().to_vec();
    let repaired: u64 = found.sources.values().map(|count| count.repaired_documents).sum();
    if repaired > 0 {
        notes.push(format!("documents with broken text, which became U+FFFD: {}", grouped(repaired)));
    }
    for (what, count) in &found.doubts {
        notes.push(format!(
            "files that {what} were each read as one text: {}; say what they are, or read them so with --format text",
            files(count)
        ));
    }
    if let Some(count) = found.left_out.get(UNREADABLE) {
        notes.push(format!(
            "files and folders without permission to read were left out: {}; give it (chmod, or as their owner) and \
             prepare again to have them",
            files(count)
        ));
    }
    let eos = tokenizer.vocab().eos;
    let inside = |part: &PartCount| part.count_of(eos).saturating_sub(part.documents());
    let inside = inside(train) + inside(held_out);
    if inside > 0 {
        notes.push(format!(
            "the tokenizer makes its closing token {eos} of text too: it stands {} inside documents",
            of_many(inside, grouped(inside), "time")
        ));
    }
    if options.held_out_share > 0.0 && held_out.documents() == 0 {
        notes.push(format!(
            "no document is held out: {} at a share of {}; choose a larger share or another seed to have some",
            of_many(train.documents(), grouped(train.documents()), "document"),
            options.held_out_share
        ));
    }
    notes
}

/// A count of files with an example: `3 (a/b and others)`.
fn files(LeftOutCount { files, example }: &LeftOutCount) -> String {
    let more = if *files > 1 { " and others" } else { "" };
    format!("{} ({example}{more})", grouped(*files))
}

/// Refuses inputs without text, and says what they have instead.
pub(super) fn check_found(
    options: &PrepareOptions,
    corpus: &Corpus,
    found: Option<&PassReport>,
) -> Result<(), DataError> {
    let Some(found) = found.filter(|found| found.documents() == 0) else { return Ok(()) };
    let inputs: Vec<String> = options.inputs.iter().map(|path| path.display().to_string()).collect();
    Err(DataError::EmptyCorpus { inputs: inputs.join(", "), found: without_text(corpus, found) })
}

fn without_text(corpus: &Corpus, found: &PassReport) -> String {
    let sum = |of: fn(&SourceCount) -> u64| found.sources.values().map(of).sum::<u64>();
    let (nulls, empties) = (sum(|count| count.null_texts), sum(|count| count.empty_texts));
    let read = corpus.inputs.files.len() as u64;
    if read == 1 && nulls + empties == 0 && found.left_out.len() == 1 && found.left_out.contains_key("empty")
    {
        return "the file is empty".into();
    }
    let mut clauses = vec![format!("{} read", counted(read, "file"))];
    for (count, what) in [(nulls, "null text"), (empties, "empty text")] {
        if count > 0 {
            clauses.push(of_many(count, grouped(count), what));
        }
    }
    let kinds: Vec<String> =
        found.left_out.iter().map(|(kind, count)| format!("{kind}: {}", grouped(count.files))).collect();
    if !kinds.is_empty() {
        clauses.push(format!("left out: {}", kinds.join(", ")));
    }
    clauses.join(", ")
}
