//! Words that become parts of keys.

use crate::error::CheckpointError;

/// Members and roles become parts of keys: 1 to 63 of `a-z`, `0-9` and `-`.
pub(crate) fn check_word(what: &str, word: &str) -> Result<(), CheckpointError> {
    let legal = (1..=63).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if legal {
        Ok(())
    } else {
        Err(CheckpointError::input(
            format!("for {what} {word:?}"),
            "use 1 to 63 characters of a-z, 0-9 and '-'",
        ))
    }
}
