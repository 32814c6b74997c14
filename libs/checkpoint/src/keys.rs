//! Names of objects, relative to `<root>/runs/<run>/`, and the way back from a name to what it names.
//!
//! Steps are written with 12 digits, terms with 12, attempts with 6 and sequence numbers with 8, so that names sort
//! as numbers do.

use polygram_domain::Step;

/// Folder of manifests.
pub const COMMIT: &str = "ckpt/commit";
/// Folder of data objects.
pub const DATA: &str = "ckpt/data";
/// Folder of pins.
pub const PIN: &str = "ckpt/pin";
/// Folder of manifests that were set aside.
pub const DAMAGED: &str = "ckpt/damaged";
/// Folder of coordinator terms.
pub const COORD: &str = "coord";
/// The leader's lease.
pub const LEASE: &str = "coord/leader.json";
/// Folder of the ledger.
pub const LEDGER: &str = "ledger";
/// Folder of ways back from spikes.
pub const ROLLBACK: &str = "roll_back";
/// Role under which metrics lie among the events.
pub const METRICS_ROLE: &str = "metrics";
/// Role under which the failure log lies among the events.
pub const FAILURE_ROLE: &str = "recovery";
/// The status object.
pub const STATUS: &str = "status.json";

/// The manifest of `step`.
pub fn manifest(step: Step) -> String {
    format!("{COMMIT}/{:012}.json", step.0)
}

/// The step of a manifest's key, or `None` for another object.
pub fn step_of_manifest(key: &str) -> Option<Step> {
    let name = key.strip_prefix(COMMIT)?.strip_prefix('/')?.strip_suffix(".json")?;
    parse_digits(name, 12).map(Step)
}

/// The pin of the checkpoint of `step`.
pub fn pin(step: Step) -> String {
    format!("{PIN}/{:012}", step.0)
}

/// The step of a pin's key, or `None` for another object.
pub fn step_of_pin(key: &str) -> Option<Step> {
    parse_digits(key.strip_prefix(PIN)?.strip_prefix('/')?, 12).map(Step)
}

/// Where a damaged manifest of `step` with content hash `blake3` (hex) is set aside.
pub fn damaged(step: Step, blake3: &str) -> String {
    format!("{DAMAGED}/{:012}-{}.json", step.0, short(blake3))
}

/// The step of the key of a manifest that was set aside, or `None` for another object.
pub fn step_of_damaged(key: &str) -> Option<Step> {
    let name = key.strip_prefix(DAMAGED)?.strip_prefix('/')?.strip_suffix(".json")?;
    parse_digits(name.split_once('-')?.0, 12).map(Step)
}

/// A data object: spread by the first two digits of its hash. `number` tells a member's objects apart; `kind` is
/// the extension.
pub(crate) fn data(step: Step, member: &str, number: &str, hash: &str, kind: &str) -> String {
    let hash = short(hash);
    format!("{DATA}/{}/{:012}-{member}-{number}-{hash}.{kind}", &hash[..2], step.0)
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// The step of a data object's key, or `None` for another object.
pub fn step_of_data(key: &str) -> Option<Step> {
    let name = key.strip_prefix(DATA)?.strip_prefix('/')?;
    let (_, name) = name.split_once('/')?;
    parse_digits(name.split_once('-')?.0, 12).map(Step)
}

/// The member that wrote a data object, or `None` for another object.
pub fn member_of_data(key: &str) -> Option<&str> {
    let (_, name) = key.strip_prefix(DATA)?.strip_prefix('/')?.split_once('/')?;
    let (_, name) = name.split_once('-')?;
    Some(name.rsplitn(3, '-').nth(2)?).filter(|member| !member.is_empty())
}

/// The frozen configuration of this hash.
pub fn config(hash: &str) -> String {
    format!("config/{hash}.toml")
}

/// A coordinator's term.
pub fn term(term: u64) -> String {
    format!("{COORD}/{term:012}.json")
}

/// The term of a term object's key.
pub fn term_of(key: &str) -> Option<u64> {
    parse_digits(key.strip_prefix(COORD)?.strip_prefix('/')?.strip_suffix(".json")?, 12)
}

/// Folder of the events of `role`.
pub fn events(role: &str) -> String {
    format!("events/{role}")
}

/// A way back.
pub fn rollback(number: u64) -> String {
    format!("{ROLLBACK}/{number:08}.json")
}

/// The number of a way back's key.
pub fn rollback_of(key: &str) -> Option<u64> {
    parse_digits(key.strip_prefix(ROLLBACK)?.strip_prefix('/')?.strip_suffix(".json")?, 8)
}

/// Digits only, at least `width` of them, and longer only where the number needs it.
pub(crate) fn parse_digits(text: &str, width: usize) -> Option<u64> {
    let legal = text.len() >= width
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text.len() == width || !text.starts_with('0'));
    legal.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_what_they_name() {
        for step in [0, 7, 999_999_999_999, 1_000_000_000_000, u64::MAX] {
            assert_eq!(step_of_manifest(&manifest(Step(step))), Some(Step(step)));
            assert_eq!(step_of_pin(&pin(Step(step))), Some(Step(step)));
            assert_eq!(step_of_damaged(&damaged(Step(step), &"cd".repeat(32))), Some(Step(step)));
            let key = data(Step(step), "worker-0", "t0001", &"ab".repeat(32), "safetensors");
            assert_eq!(step_of_data(&key), Some(Step(step)), "{key}");
            assert_eq!(member_of_data(&key), Some("worker-0"), "{key}");
            assert_eq!(term_of(&term(step)), Some(step));
            assert_eq!(rollback_of(&rollback(step)), Some(step));
        }
    }

    #[test]
    fn foreign_names_are_no_numbers() {
        for key in ["ckpt/commit/12.json", "ckpt/commit/0000000000012.json", "ckpt/commit/00000000001x.json"]
        {
            assert_eq!(step_of_manifest(key), None, "{key}");
        }
    }
}
