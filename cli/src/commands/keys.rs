//! `polygram keys`: every key of a run file with its type, its default and one line, as the run file's own types have them.

use polygram_domain::RunFile;
use polygram_domain::run_file::{EXAMPLE, KeyReference};
use serde::Serialize;

use crate::args::KeysArgs;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    takes: &'a str,
    default: Option<&'a str>,
    required: bool,
    /// Whether a run that is resumed refuses another value.
    fixed: bool,
    meaning: &'a str,
}

pub(crate) fn run(args: &KeysArgs, printer: &mut Printer) -> Outcome {
    if args.example {
        printer.text(EXAMPLE)?;
        return Ok(ExitStatus::Success);
    }
    let reference = RunFile::reference().map_err(|error| Failure::failed(error.to_string()))?;
    let wanted = args.key.as_deref().unwrap_or_default();
    let is_wanted = |path: &str| {
        let rest = path.strip_prefix(wanted);
        wanted.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let keys: Vec<&KeyReference> = reference.iter().filter(|key| is_wanted(&key.path)).collect();
    if keys.is_empty() {
        let meant = RunFile::keys_named(wanted.rsplit('.').next().unwrap_or_default());
        let hint = match meant.as_slice() {
            [] => "`polygram keys` lists all of them".to_owned(),
            meant => format!("did you mean {}?", meant.join(" or ")),
        };
        return Err(Failure::usage(format!("a run file has no key {wanted}")).hint(hint));
    }
    let lines: Vec<Line<'_>> = keys.iter().map(|key| line(key)).collect();
    printer.result(&lines, || human(&keys))?;
    Ok(ExitStatus::Success)
}

fn line(key: &KeyReference) -> Line<'_> {
    Line {
        key: &key.path,
        takes: &key.takes,
        default: key.default.as_deref(),
        required: key.is_required,
        fixed: key.is_fixed,
        meaning: key.meaning,
    }
}

fn human(keys: &[&KeyReference]) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in keys {
        let (parent, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        if parent != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}[{parent}]\n"));
            section = parent;
        }
        let value = match (&key.default, key.is_required) {
            (_, true) => " (required)".to_owned(),
            (Some(default), false) => format!(" = {default}"),
            (None, false) => " (not set)".to_owned(),
        };
        let fixed = if key.is_fixed { "; fixed once the run has begun" } else { "" };
        text.push_str(&format!("  {name}{value}\n      {}\n      {}{fixed}\n", key.meaning, key.takes));
    }
    text
}
