//! Paths as users write them: those that name no file or folder of this machine, and what to write instead.

use std::path::{Component, Path};

use polygram_domain::store_address::scheme_of;

/// Why `path` names no file or folder of this machine, and what to do; `None` where it does. Ask about what
/// is read only if it does not exist, and about what is written always: an earlier mistake may have made a
/// folder `s3:`.
pub fn problem_of(path: &Path) -> Option<String> {
    if path == Path::new("-") {
        return Some("it is not taken for standard input or output; standard input is /dev/stdin".into());
    }
    let first = match path.components().next() {
        Some(Component::Normal(first)) => first.to_string_lossy().into_owned(),
        _ => String::new(),
    };
    // `~backup` may be a file's own name.
    if first == "~" || (first.starts_with('~') && !Path::new(&first).exists()) {
        return Some(format!(
            "{first} is not expanded here; write the whole path, or ./{} for that very name",
            path.display()
        ));
    }
    // A single letter may be a folder's own name.
    let text = path.to_string_lossy();
    if let Some((scheme, _)) = scheme_of(&text).filter(|(scheme, _)| scheme.len() > 1) {
        let what = match scheme {
            "file" => "write the path alone, without file://".to_owned(),
            _ => format!(
                "it is an address ({scheme}:), and data is read from and written to files of this machine only; \
                 copy the files, or write ./{} for a folder of that very name",
                path.display()
            ),
        };
        return Some(what);
    }
    if path.is_relative() && std::env::current_dir().is_err() {
        return Some(
            "the current directory cannot be used: it may have been removed; change to another one, or give \
             absolute paths"
                .into(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nothing_here_is_told_from_paths() {
        for (path, words) in [
            ("s3://b/x", "it is an address (s3:)"),
            ("s3:/b/x", "write ./s3:/b/x"),
            ("hf://datasets/x", "copy the files"),
            ("https://x.org/a.txt", "(https:)"),
            ("az+blob.v2://x", "(az+blob.v2:)"),
            ("s3:bucket", "(s3:)"),
            ("file:x", "without file://"),
            ("file:///data/x", "without file://"),
            ("~", "~ is not expanded"),
            ("~/x", "write the whole path, or ./~/x"),
            ("~nobody-of-that-name/x", "~nobody-of-that-name is not expanded"),
            ("-", "standard input is /dev/stdin"),
        ] {
            let problem = problem_of(Path::new(path)).unwrap_or_else(|| panic!("{path} is taken"));
            assert!(problem.contains(words), "{path}: {problem}");
        }
        for path in
            ["a", "a/b.txt", "./s3:/x", "./~/x", "./-", "/s3://x", "a:b", "10:30/x", "../~", "x:/y", "data:"]
        {
            assert_eq!(problem_of(Path::new(path)), None, "{path}");
        }
    }
}
