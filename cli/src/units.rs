//! Numbers for eyes.

use polygram_domain::words::{self, three_digits};

pub(crate) use polygram_domain::words::{bytes, grouped};

/// A grouped integer with its noun: `1 step`, `68,562 objects`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    words::of_many(count, grouped(count), noun)
}

/// A count in three digits: `68.6 B`, `21.4 M`, `8.19 k`, `17`.
pub(crate) fn count(value: f64) -> String {
    for (unit, size) in [("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)] {
        if value >= size {
            return format!("{} {unit}", three_digits(value / size));
        }
    }
    if value.fract() == 0.0 { format!("{value}") } else { three_digits(value) }
}

/// A span of time: `0.8s`, `42s`, `3m 07s`, `5h 12m`, `3d 04h`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A short span of time in three digits: `12 µs`, `5.30 ms`, `1.25 s`.
pub(crate) fn latency(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s < 0.0 => "?".into(),
        s if s >= 0.9995 => format!("{} s", three_digits(s)),
        s if s >= 0.9995e-3 => format!("{} ms", three_digits(s * 1e3)),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// A moment, given in milliseconds since 1970: `2026-11-22 10:30:05`, in UTC.
pub(crate) fn moment(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Counted in 400-year cycles of years that begin in March, so that the leap day is a year's last.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (cycle * 400 + year, month + 3),
        _ => (cycle * 400 + year + 1, month - 9),
    };
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

/// A share as whole percents: `3%`.
pub(crate) fn percent(ratio: f64) -> String {
    if ratio.is_finite() { format!("{:.0}%", ratio * 100.0) } else { "?".into() }
}

/// A difference in percents with its sign: `+1.2%`, and `0.0%` for what rounds to nothing.
pub(crate) fn signed_percent(ratio: f64) -> String {
    let text = format!("{:+.1}%", 100.0 * ratio);
    if matches!(text.as_str(), "+0.0%" | "-0.0%") { "0.0%".to_owned() } else { text }
}

/// A positive number in at most six digits, in the form that a run file takes: `3e-4`, `0.0125`.
pub(crate) fn short_number(value: f64) -> String {
    let rounded = format!("{value:.5e}").parse().unwrap_or(value);
    if (1e-3..1e6).contains(&rounded) { format!("{rounded}") } else { format!("{rounded:e}") }
}

/// Columns of text, the first aligned left and the others right, two spaces apart.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0))
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            if index == 0 {
                line.push_str(cell);
                line.push_str(&pad);
            } else {
                line.push_str("  ");
                line.push_str(&pad);
                line.push_str(cell);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(68_562_459_648.0), "68.6 B");
        assert_eq!(count(8192.0), "8.19 k");
        assert_eq!(count(17.0), "17");
        assert_eq!(count(999_999.0), "1000 k");
        assert_eq!(bytes(1 << 30), "1.00 GiB");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(duration(0.84), "0.8s");
        assert_eq!(duration(59.6), "1m 00s");
        assert_eq!(duration(187.0), "3m 07s");
        assert_eq!(duration(f64::NAN), "?");
        assert_eq!(percent(0.034), "3%");
        assert_eq!(
            [0.0, 12e-6, 5.3e-3, 0.9996, 12.0].map(latency),
            ["0 µs", "12 µs", "5.30 ms", "1.00 s", "12.0 s"]
        );
        assert_eq!(latency(-1.0), "?");
        assert_eq!([0.0123, -0.5, 1e-6, -1e-6].map(signed_percent), ["+1.2%", "-50.0%", "0.0%", "0.0%"]);
        assert_eq!(
            [3e-3 * 0.1, 0.1 + 0.2, 1e-3, 2.5e-5, 12.5, 1.0 / 3.0].map(short_number),
            ["3e-4", "0.3", "0.001", "2.5e-5", "12.5", "0.333333"]
        );
        assert_eq!((counted(1, "step"), counted(1024, "object")), ("1 step".into(), "1,024 objects".into()));
    }

    #[test]
    fn moments_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_700_000_000, "2023-11-14 22:13:20"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(moment(seconds * 1000 + 999), text);
        }
    }

    #[test]
    fn columns_align() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "22".to_owned()]];
        assert_eq!(columns(&rows), "a     1\nbcd  22\n");
    }
}
