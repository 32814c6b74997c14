//! `bench`: measures a machine with the shard's own code and, in the same run and on the same ids, what the machine can
//! do at best. Ratios to that limit mean something on any machine, and noise hits both sides of a pair.
//!
//! * [`ids`]: which rows. `setup`: stores, lanes, duplicates. `race`: repetitions in turns. [`report`]: figures.
//! * `gather`, `commit` against `limit`; `exchange` over `process`es against `tcp`; `step` for other libraries' sake;
//!   `full`: a whole run file's tables.

pub mod args;
mod commit;
pub mod error;
mod exchange;
mod full;
mod gather;
pub mod ids;
mod limit;
mod pages;
mod process;
mod race;
pub mod report;
mod setup;
mod step;
mod tcp;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use args::BenchArgs;
use args::{ExchangeArgs, Section, Sizes};
pub use error::BenchError;
use report::Report;

/// Measures what `args` says and prints the report.
///
/// # Errors
/// When flags make no sense together, or the machine refuses memory, processes or connections.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    let sizes = &args.sizes;
    let mut report = Report::new();
    report.settings = settings(sizes)?;
    match &args.section {
        None => {
            gather::measure(sizes, &mut report)?;
            commit::measure(sizes, &mut report)?;
            exchange::measure(sizes, &ExchangeArgs::default(), &mut report)?;
        }
        Some(Section::Gather) => gather::measure(sizes, &mut report)?,
        Some(Section::Commit) => commit::measure(sizes, &mut report)?,
        Some(Section::Step(step)) => {
            step::measure(sizes, step, &mut report)?;
            if step.on_request {
                return Ok(());
            }
        }
        Some(Section::Exchange(exchange)) => exchange::measure(sizes, exchange, &mut report)?,
        Some(Section::Full(full)) => {
            report.settings.clear();
            full::measure(sizes, full, &mut report)?;
        }
        Some(Section::Serve) => return process::serve(),
    }
    report.print(sizes.output_format)
}

/// What the figures depend on.
fn settings(sizes: &Sizes) -> Result<BTreeMap<String, Value>, BenchError> {
    let tables = sizes.spec(&[])?.tables();
    let values = [
        ("tables", json!(tables.len())),
        ("rows", json!(tables.rows())),
        ("width", json!(sizes.width)),
        ("tokens", json!(sizes.tokens)),
        ("ids", json!(sizes.tokens * tables.len())),
        ("zipf_exponent", json!(sizes.exponent)),
        ("steps", json!(sizes.steps)),
        ("repetitions", json!(sizes.repetitions)),
        ("seed", json!(sizes.seed)),
        ("overrides", json!(sizes.overrides)),
    ];
    Ok(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
