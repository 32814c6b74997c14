//! The token files that `data.train` and `data.held_out` name, and what was meant where they are not there.

use std::path::Path;

use polygram_data::segment::pair_of;
use polygram_domain::store_address::check_local_path;

use crate::exit::{Failure, Outcome};

/// Letters of a file name that may differ.
const MOST_EDITS: usize = 2;
/// Pairs that are listed at most.
const MOST_LISTED: usize = 6;

const PREPARE: &str = "make it with `polygram data prepare TEXT --output DIR`";

/// Whether both files of the segment `prefix` are there, which `key` names.
pub(crate) fn check(key: &str, prefix: &str) -> Outcome<()> {
    check_local_path(prefix).map_err(|reason| Failure::usage(format!("{key} {reason}")))?;
    let (bin, idx) = pair_of(prefix);
    match (idx.is_file(), bin.is_file()) {
        (true, true) => Ok(()),
        (false, false) => {
            let hint = meant(key, prefix).unwrap_or_else(|| PREPARE.to_owned());
            Err(Failure::usage(format!("{key}: there is no file {}", idx.display())).hint(hint))
        }
        (has_index, _) => {
            let (there, missing) = if has_index { (&idx, &bin) } else { (&bin, &idx) };
            let what = format!("{key}: there is no file {} beside {}", missing.display(), there.display());
            Err(Failure::usage(what)
                .hint("the two files belong together: copy both, or prepare the data again"))
        }
    }
}

/// What `key` was meant to name; `None` where nothing near `prefix` is a segment or text.
pub(crate) fn meant(key: &str, prefix: &str) -> Option<String> {
    let path = Path::new(prefix);
    if path.is_dir() {
        let pairs = pairs_in(path);
        if pairs.is_empty() {
            return Some(format!("{prefix} is a folder without token files: {PREPARE}"));
        }
        let name = if key.starts_with("data.held_out") { "held_out" } else { "train" };
        if let Some(pair) = pairs.iter().find(|pair| file_name(pair) == name) {
            return Some(format!("did you mean {key} = {pair:?}?"));
        }
        if name == "held_out" && pairs.iter().any(|pair| file_name(pair) == "train") {
            return Some(format!(
                "{prefix} has no held-out documents: prepare the data with a larger --held-out, or name other files"
            ));
        }
        return Some(listed(prefix, &pairs));
    }
    if path.is_file() {
        return Some(format!(
            "{prefix} is no pair of token files: make one with `polygram data prepare {prefix} --output DIR`"
        ));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let pairs = pairs_in(folder);
    let is_near =
        |pair: &&String| strsim::damerau_levenshtein(file_name(pair), file_name(prefix)) <= MOST_EDITS;
    match pairs.iter().find(is_near) {
        Some(pair) => Some(format!("did you mean {key} = {pair:?}?")),
        None => (!pairs.is_empty()).then(|| listed(&folder.display().to_string(), &pairs)),
    }
}

fn listed(folder: &str, pairs: &[String]) -> String {
    let more = if pairs.len() > MOST_LISTED { ", …" } else { "" };
    let names: Vec<&str> = pairs.iter().take(MOST_LISTED).map(String::as_str).collect();
    format!("the token files in {folder} are {}{more}: name one of them", names.join(", "))
}

/// The segments in a folder, sorted, as a run file names them.
fn pairs_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let indices =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "idx"));
    let whole = indices.filter(|idx| idx.is_file() && idx.with_extension("bin").is_file());
    let prefix = |idx: std::path::PathBuf| {
        let prefix = idx.with_extension("");
        prefix.strip_prefix(".").unwrap_or(&prefix).to_str().map(str::to_owned)
    };
    let mut pairs: Vec<String> = whole.filter_map(prefix).collect();
    pairs.sort();
    pairs
}

fn file_name(prefix: &str) -> &str {
    Path::new(prefix).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["d1/train", "d1/held_out", "d2/train", "d3/part-1", "d3/part-2"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            for extension in ["idx", "bin"] {
                std::fs::write(path.with_extension(extension), "x").unwrap();
            }
        }
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        std::fs::write(folder.path().join("corpus.txt"), "words").unwrap();
        std::fs::write(folder.path().join("lone.bin"), "x").unwrap();
        let said = |key: &str, name: &str| check(key, &at(name)).unwrap_err().to_string();
        for (key, name, words) in [
            ("data.train", "d1", format!("did you mean data.train = {:?}?", at("d1/train"))),
            ("data.train", "d1/", format!("did you mean data.train = {:?}?", at("d1/train"))),
            ("data.held_out", "d1", format!("did you mean data.held_out = {:?}?", at("d1/held_out"))),
            ("data.held_out.wiki", "d1", format!("data.held_out.wiki = {:?}?", at("d1/held_out"))),
            ("data.held_out", "d2", "has no held-out documents".into()),
            ("data.train", "d3", format!("{}, {}: name one", at("d3/part-1"), at("d3/part-2"))),
            ("data.train", "d1/trian", format!("did you mean data.train = {:?}?", at("d1/train"))),
            ("data.train", "d1/tokens", format!("{}, {}: name one", at("d1/held_out"), at("d1/train"))),
            ("data.train", "corpus.txt", format!("data prepare {} --output", at("corpus.txt"))),
            ("data.train", "empty", "a folder without token files".into()),
            ("data.train", "absent/train", "make it with `polygram data prepare".into()),
            ("data.train", "lone", "beside".into()),
        ] {
            let text = said(key, name);
            assert!(text.contains(&words) && text.contains(key), "{name}: {text}");
        }
        for url in ["s3://bucket/train", "s3:/bucket/train", "https://x/train", "~/train"] {
            let text = check("data.held_out.wiki", url).unwrap_err().to_string();
            assert!(text.contains(&format!("data.held_out.wiki is {url:?}")), "{text}");
        }
        for name in ["d1/train", "d1/train.bin", "d1/train.idx"] {
            assert!(check("data.train", &at(name)).is_ok(), "{name}");
        }
    }
}
