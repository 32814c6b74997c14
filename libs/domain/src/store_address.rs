//! Addresses of stores and paths as people type them: what only looks like one is refused with what was meant.
//!
//! A shell expands `~` only at the beginning of a word (`--root=~/x` reaches a program as it is), and a URL with one
//! slash is a legal name of a folder. Neither is ever taken for a folder by accident.

/// Schemes that are written without `//` by mistake only.
const SCHEMES: &[&str] = &["file", "s3", "gs", "az", "http", "https", "hf", "memory", "abfs", "gcs"];

/// Refuses an address that is empty, begins with `~`, or is a URL with too few slashes. The error is the end of a
/// sentence that begins with the key or option.
pub fn check_store_address(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("is empty; give a folder, file:///path or s3://bucket/prefix".into());
    }
    if text.contains("://") {
        return Ok(());
    }
    check_home(text)?;
    match scheme_of(text) {
        Some((scheme @ "file", rest)) => {
            Err(format!("is {text:?}; write {scheme}:///{}, or a plain path", rest.trim_start_matches('/')))
        }
        Some((scheme, rest)) => Err(format!(
            "is {text:?}; write {scheme}://{}, or ./{text} for a folder of that name",
            rest.trim_start_matches('/')
        )),
        None => Ok(()),
    }
}

fn check_home(text: &str) -> Result<(), String> {
    if !text.starts_with('~') {
        return Ok(());
    }
    Err(format!(
        "is {text:?}; ~ is not expanded here: write the whole path, or ./{text} for a file of that name"
    ))
}

/// Scheme and rest of a URL, and of what looks like one without `//`: `s3` of `s3://bucket`, `s3:/bucket` and `s3:bucket`.
pub fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut letters = scheme.chars();
    let is_scheme = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    (is_scheme && (rest.starts_with('/') || SCHEMES.contains(&scheme))).then_some((scheme, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_looks_like_an_address_is_refused_with_what_was_meant() {
        for (text, meant) in [
            ("s3:/bucket/x", "write s3://bucket/x"),
            ("s3:bucket", "write s3://bucket"),
            ("gs:/b", "write gs://b"),
            ("file:/tmp/x", "write file:///tmp/x"),
            ("file:x", "write file:///x"),
            ("ftp:/x", "write ftp://x"),
            ("~", "~ is not expanded"),
            ("~/runs", "./~/runs"),
            ("~ada/runs", "~ is not expanded"),
            ("  ", "is empty"),
        ] {
            let error = check_store_address(text).unwrap_err();
            assert!(error.contains(meant), "{text}: {error}");
        }
        for text in
            ["x", "./s3:/x", "./~", "/a/b", "runs:2026", "a b", "s3://b/x", "file:///x", "ftp://x", "x~"]
        {
            assert_eq!(check_store_address(text), Ok(()), "{text}");
        }
    }
}
