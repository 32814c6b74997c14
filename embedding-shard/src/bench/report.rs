//! Figures: what was measured, as text for eyes and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use polygram_domain::OutputFormat;
use serde::Serialize;
use serde_json::Value;

use super::error::BenchError;

/// The middle value; the mean of the two middle ones where their number is even. Zero for none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Median, smallest and largest of some repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) minimum: f64,
    pub(super) maximum: f64,
}

impl Spread {
    /// Of `values`; zeros for none.
    pub(super) fn of(values: &[f64]) -> Spread {
        let least = values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let most = values.iter().copied().reduce(f64::max).unwrap_or(0.0);
        Spread { median: median(values), minimum: least, maximum: most }
    }
}

/// One thing measured several times.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    /// Rows of one repetition.
    pub(super) rows: u64,
    /// Bytes of one repetition: what they are stands with the section.
    pub(super) bytes: u64,
    pub(super) repetitions: usize,
    pub(super) seconds: Spread,
    pub(super) rows_per_second: Spread,
    pub(super) gigabytes_per_second: Spread,
}

impl Figure {
    /// From the seconds, rows and bytes of each repetition.
    pub(super) fn new(name: impl Into<String>, samples: &[Sample]) -> Figure {
        let of = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<f64>>();
        let middle = |value: fn(&Sample) -> f64| median(&of(value)).round() as u64;
        Figure {
            name: name.into(),
            rows: middle(|sample| sample.rows as f64),
            bytes: middle(|sample| sample.bytes as f64),
            repetitions: samples.len(),
            seconds: Spread::of(&of(|sample| sample.seconds)),
            rows_per_second: Spread::of(&of(|sample| sample.rows as f64 / sample.seconds)),
            gigabytes_per_second: Spread::of(&of(|sample| sample.bytes as f64 / 1e9 / sample.seconds)),
        }
    }
}

/// One repetition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Everything measured in one run.
#[derive(Debug, Serialize)]
pub struct Report {
    program: String,
    machine: Machine,
    /// Flags and derived sizes.
    pub(super) settings: BTreeMap<String, Value>,
    /// Ours over the machine's limit, medians of paired repetitions: 1 is as fast as the machine.
    pub(super) ratios: BTreeMap<String, f64>,
    pub(super) figures: Vec<Figure>,
    /// What is no rate: memory, start-up, messages.
    pub(super) facts: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
}

impl Machine {
    fn this() -> Machine {
        let field = |path: &str, key: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.split_once(':').map(|(_, v)| v.to_owned()));
            line.unwrap_or_default().trim().to_owned()
        };
        let kibibytes = field("/proc/meminfo", "MemTotal");
        Machine {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: 1024 * kibibytes.trim_end_matches(" kB").parse::<u64>().unwrap_or(0),
        }
    }
}

impl Report {
    /// An empty report of this machine.
    pub(super) fn new() -> Report {
        Report {
            program: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
            machine: Machine::this(),
            settings: BTreeMap::new(),
            ratios: BTreeMap::new(),
            figures: Vec::new(),
            facts: BTreeMap::new(),
        }
    }

    /// A pair of figures measured in turns, and their ratio: the median of the repetitions' own ratios. The ratio goes
    /// under `key` and the pair's name; under `key` alone stays the least of all pairs.
    pub(super) fn pair(&mut self, key: &str, name: &str, ours: &[Sample], limit: &[Sample]) {
        let rate = |sample: &Sample| sample.bytes as f64 / sample.seconds;
        let ratios: Vec<f64> = ours.iter().zip(limit).map(|(ours, limit)| rate(ours) / rate(limit)).collect();
        let ratio = median(&ratios);
        self.ratios.insert(format!("{key}_{name}"), ratio);
        let least = self.ratios.get(key).copied().unwrap_or(f64::INFINITY);
        self.ratios.insert(key.to_owned(), ratio.min(least));
        self.figures.push(Figure::new(format!("{key}_{name}: ours"), ours));
        self.figures.push(Figure::new(format!("{key}_{name}: limit"), limit));
    }

    /// Notes something that is no rate.
    pub(super) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Writes the report to standard output.
    pub(super) fn print(&self, format: OutputFormat) -> Result<(), BenchError> {
        let text = match format {
            OutputFormat::Human => self.text(),
            OutputFormat::Json => serde_json::to_string_pretty(self)? + "\n",
            OutputFormat::Jsonl => serde_json::to_string(self)? + "\n",
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // The reader has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(BenchError::io("cannot write to standard output")),
        }
    }

    fn text(&self) -> String {
        let Machine { processor, cores, memory_bytes } = &self.machine;
        let mut text =
            format!("{processor}, {cores} cores, {:.1} GiB\n", *memory_bytes as f64 / (1u64 << 30) as f64);
        let mut line = |args: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _infallible = text.write_fmt(args);
        };
        if !self.figures.is_empty() {
            line(format_args!(
                "\n{:<52} {:>10} {:>20} {:>8} {:>15}  times\n",
                "median (minimum to maximum)", "ms", "M rows/s", "GB/s", ""
            ));
        }
        for figure in &self.figures {
            let (rows, rate) = (&figure.rows_per_second, &figure.gigabytes_per_second);
            line(format_args!(
                "{:<52} {:>10.3} {:>8.2} {:>13} {:>6.2} {:>15}  {}\n",
                figure.name,
                figure.seconds.median * 1e3,
                rows.median / 1e6,
                format!("({:.2} to {:.2})", rows.minimum / 1e6, rows.maximum / 1e6),
                rate.median,
                format!("({:.2} to {:.2})", rate.minimum, rate.maximum),
                figure.repetitions
            ));
        }
        if !self.ratios.is_empty() {
            line(format_args!("\nours / limit\n"));
        }
        for (name, ratio) in &self.ratios {
            line(format_args!("{name:<52} {ratio:>10.3}\n"));
        }
        if !self.facts.is_empty() {
            line(format_args!("\n"));
        }
        for (name, fact) in &self.facts {
            line(format_args!("{name:<36} {fact}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_ratio_is_the_median_of_pairs_and_the_least_pair_stays() {
        let sample = |seconds: f64| Sample { seconds, rows: 10, bytes: 1000 };
        let mut report = Report::new();
        // Noise that slows both sides of a pair leaves its ratio alone.
        report.pair(
            "x",
            "a",
            &[sample(2.0), sample(20.0), sample(2.0)],
            &[sample(1.0), sample(10.0), sample(1.0)],
        );
        report.pair("x", "b", &[sample(1.0)], &[sample(0.9)]);
        assert_eq!(report.ratios["x_a"], 0.5);
        assert_eq!(report.ratios["x_b"], 0.9);
        assert_eq!(report.ratios["x"], 0.5);
        let value: Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(value["figures"][0]["repetitions"], 3);
        assert_eq!(value["figures"][0]["rows_per_second"]["maximum"], 5.0);
        assert!(report.text().contains("x_b"));
    }
}
