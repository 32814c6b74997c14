//! Numbers with their nouns, in messages.

use std::fmt::Display;

/// A count with its noun: `1 step`, `2 steps`, `3 losses`, `0 retries`.
pub fn counted(count: u64, noun: &str) -> String {
    of_many(count, count, noun)
}

/// The same, the number written as `text`: `1,024 objects`.
pub fn of_many(count: u64, text: impl Display, noun: &str) -> String {
    if count == 1 { format!("{text} {noun}") } else { format!("{text} {}", plural(noun)) }
}

/// An integer with thousands separated: `68,562,459,648`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in three digits and binary units: `117 GiB`.
pub fn bytes(count: u64) -> String {
    let value = count as f64;
    for (unit, exponent) in [("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)] {
        let size = 1024f64.powi(exponent);
        if value >= size {
            return format!("{} {unit}", three_digits(value / size));
        }
    }
    format!("{value} B")
}

/// A number from 1 to below 1000 in three digits: `1.25`, `12.5`, `125`.
pub fn three_digits(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// The plural of an English noun that forms it by the rules.
fn plural(noun: &str) -> String {
    let ends = |endings: &[&str]| endings.iter().any(|ending| noun.ends_with(ending));
    match noun.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ if ends(&["s", "x", "ch", "sh"]) => format!("{noun}es"),
        _ => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_everything_else_is_plural() {
        for (count, noun, text) in [
            (0, "step", "0 steps"),
            (1, "step", "1 step"),
            (2, "worker", "2 workers"),
            (1, "loss", "1 loss"),
            (3, "loss", "3 losses"),
            (2, "retry", "2 retries"),
            (2, "day", "2 days"),
            (4, "batch", "4 batches"),
            (1, "written row", "1 written row"),
        ] {
            assert_eq!(counted(count, noun), text);
        }
        assert_eq!(of_many(1024, grouped(1024), "object"), "1,024 objects");
        assert_eq!([0, 999, 68_562_459_648].map(grouped), ["0", "999", "68,562,459,648"]);
        assert_eq!([512, 1 << 30, 4_510_000].map(bytes), ["512 B", "1.00 GiB", "4.30 MiB"]);
    }
}
