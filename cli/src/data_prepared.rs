//! What `data prepare` noted beside token files, compared with the files, with each other and with the model.

use std::fmt;
use std::path::PathBuf;

use polygram_data::prepare::{PartReport, Prepared};
use polygram_data::{DataIdentity, PrepareReport};
use polygram_domain::RunSpec;

use crate::exit::{Failure, Outcome};
use crate::units::counted;

/// A set of token files that a run reads, and what it holds.
pub(crate) struct Set {
    /// The key that names it.
    pub(crate) key: String,
    pub(crate) prefix: String,
    pub(crate) identity: DataIdentity,
}

/// What `data prepare` noted beside the files, of all of them and of this segment: `None` where it did not
/// make them.
pub(crate) fn report_beside(prefix: &str) -> Option<(PathBuf, PrepareReport, PartReport)> {
    let Prepared { path, report, part } = PrepareReport::beside(prefix).ok()??;
    Some((path, report, part))
}

/// The files must be those that were prepared, by one tokenizer, whose special tokens are the model's. Gives
/// warnings.
pub(crate) fn check(sets: &[Set], spec: &RunSpec) -> Outcome<Vec<String>> {
    let mut warnings = Vec::new();
    for Set { key, prefix, identity } in sets {
        match PrepareReport::beside(prefix) {
            Ok(Some(Prepared { path, part, .. })) => {
                let path = path.display();
                if let Some(difference) = part.identity.and_then(|noted| noted.difference(identity)) {
                    return Err(Failure::usage(format!(
                        "{key}: {prefix} is not what {path} describes: {difference}"
                    ))
                    .hint("prepare the data again; the files of a preparation belong together"));
                }
            }
            Ok(None) => {}
            Err(error) => warnings.push(format!("{key} is not compared with what was prepared: {error}")),
        }
    }
    if let Some(difference) = different_tokenizers(sets) {
        let hint = difference.hint();
        return Err(Failure::usage(difference.to_string()).hint(hint));
    }
    for set in sets {
        check_special_tokens(set, spec)?;
    }
    Ok(warnings)
}

/// Two sets of tokens whose numbers do not mean the same text.
pub(crate) struct DifferentTokenizers {
    first: (String, Prepared),
    second: (String, Prepared),
}

/// The first set that was made by another tokenizer than the training data, as far as their preparations say.
pub(crate) fn different_tokenizers(sets: &[Set]) -> Option<DifferentTokenizers> {
    let noted = |set: &Set| Some((set.key.clone(), PrepareReport::beside(&set.prefix).ok()??));
    let mut noted = sets.iter().filter_map(noted);
    let first = noted.next()?;
    let second = noted.find(|(_, other)| !are_of_one_tokenizer(&first.1.report, &other.report))?;
    Some(DifferentTokenizers { first, second })
}

fn are_of_one_tokenizer(one: &PrepareReport, other: &PrepareReport) -> bool {
    if let (Some(one), Some(other)) = (&one.tokenizer_hash, &other.tokenizer_hash)
        && one != other
    {
        return false;
    }
    let numbers = |report: &PrepareReport| (report.vocab_size, report.bos_token_id, report.eos_token_id);
    numbers(one) == numbers(other)
}

impl DifferentTokenizers {
    /// What to do about it.
    fn hint(&self) -> String {
        let tokenizer = self.first.1.path.with_file_name("tokenizer.json");
        format!(
            "prepare the text of {} with the tokenizer of {}: polygram data prepare INPUT --tokenizer {} --output DIR",
            self.second.0,
            self.first.0,
            tokenizer.display()
        )
    }
}

impl fmt::Display for DifferentTokenizers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |(_, Prepared { path, report, .. }): &(String, Prepared)| {
            let name = path.with_file_name("tokenizer.json");
            format!(
                "{} ({}, BOS {}, EOS {})",
                name.display(),
                counted(report.vocab_size.into(), "token"),
                report.bos_token_id,
                report.eos_token_id
            )
        };
        write!(
            f,
            "{} and {} were made by different tokenizers, {} and {}: the same number is other text in them",
            self.first.0,
            self.second.0,
            of(&self.first),
            of(&self.second)
        )
    }
}

/// The tokenizer that made the data and the model must mean the same by their special tokens.
fn check_special_tokens(Set { key, prefix, .. }: &Set, spec: &RunSpec) -> Outcome<()> {
    let Some((path, report, _)) = report_beside(prefix) else { return Ok(()) };
    let (eos, bos) = (report.eos_token_id, report.bos_token_id);
    let mut wrong = Vec::new();
    if spec.model.eos_token_id != eos {
        wrong.push(("model.eos_token_id", "closed", eos, spec.model.eos_token_id));
    }
    // A tokenizer without a token that begins documents is noted with EOS in its place.
    if bos != eos && spec.model.bos_token_id != bos {
        wrong.push(("model.bos_token_id", "begun", bos, spec.model.bos_token_id));
    }
    let Some((id, verb, token, here)) = wrong.first() else { return Ok(()) };
    let mut sets: Vec<String> =
        wrong.iter().map(|(name, _, token, _)| format!("--set {name}={token}")).collect();
    // Special tokens must lie in the vocabulary.
    if eos.max(bos) >= spec.model.vocab_size {
        sets.push(format!("--set model.vocab_size={}", report.vocab_size));
    }
    Err(Failure::usage(format!(
        "{key}: its documents are {verb} by token {token} ({}), but {id} is {here}",
        path.display()
    ))
    .hint(format!("add {}", sets.join(" "))))
}
