//! A whole run file's tables served on this machine: how long shards take to start, what they need, and how long a
//! training can go on. Steps of real lookups and commits run until the memory ceiling refuses one.

use std::io::Write;

use polygram_domain::RunFile;

use super::args::{FullArgs, Sizes};
use super::error::BenchError;
use super::exchange::{Parts, cells_of, connect, runtime, step, width_of};
use super::ids::{Distribution, Ids};
use super::process::Process;
use super::report::{Figure, Report, Sample};

/// Steps between two lines of progress.
const PROGRESS_STEPS: u64 = 10;

/// Serves the run file's tables and trains on them until the ceiling.
pub(super) fn measure(sizes: &Sizes, args: &FullArgs, report: &mut Report) -> Result<(), BenchError> {
    let path = args.config.display();
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| BenchError::Usage(format!("cannot read {path}: {error}")))?;
    let mut overrides = vec![
        "topology.workers=1".to_owned(),
        format!("topology.shards={}", args.shards),
        "training.cells=1".to_owned(),
        "embedding.lanes=1".to_owned(),
        format!("embedding.memory_limit_gib={}", args.memory_limit_gib / f64::from(args.shards.max(1))),
    ];
    overrides.extend_from_slice(&sizes.overrides);
    let file = RunFile::parse(&text, &path.to_string(), &overrides)?;
    let spec = file.resolve()?;
    let tables = spec.tables();
    let processes = Process::start_all(&file, args.shards)?;
    let start = processes.iter().map(|process| process.start_seconds).fold(0.0, f64::max);
    let resident = || processes.iter().map(Process::resident_bytes).sum::<u64>();
    report.fact("start_seconds", start);
    report.fact("resident_bytes_after_start", resident());
    report.fact("rows_of_all_tables", tables.rows());
    let distribution = sizes.ids.last().copied().unwrap_or(Distribution::Zipf);
    let ids = Ids::new(sizes.seed, &tables, distribution, sizes.exponent);
    let mut parts: Vec<(Parts, u64)> = Vec::new();
    let mut resident_at_end = 0;
    let refusal = runtime()?.block_on(async {
        let client = connect(&spec, &processes).await?;
        for number in 0..args.most_steps {
            let cells = cells_of(&ids, number, sizes.tokens, spec.training.cells);
            let rows = cells.iter().map(|cell| cell.rows.len() as u64).sum();
            match step(&client, number, &cells).await {
                Ok(seconds) => parts.push((seconds, rows)),
                Err(BenchError::Rows(error)) => return Ok(Some(error.to_string())),
                Err(error) => return Err(error),
            }
            resident_at_end = resident();
            if number % PROGRESS_STEPS == 0 {
                let gib = resident_at_end as f64 / (1u64 << 30) as f64;
                // Progress is for whoever looks.
                let _closed = writeln!(std::io::stderr(), "step {number}: shards use {gib:.2} GiB");
            }
        }
        client.close().await?;
        Ok::<_, BenchError>(None)
    })?;
    let mut written = 0;
    for process in processes {
        written += process.end()?.written_rows;
    }
    let record_bytes = spec.embedding.record_bytes(width_of(&tables)) as u64;
    let index_bytes = 4 * tables.rows();
    report.fact("steps", parts.len());
    report.fact("stopped_by", refusal.unwrap_or_else(|| "--most-steps".to_owned()));
    report.fact("written_rows", written);
    report.fact("record_bytes", record_bytes);
    report.fact("index_bytes", index_bytes);
    report.fact("resident_bytes_at_end", resident_at_end);
    let over = resident_at_end.saturating_sub(index_bytes) as f64 / (written * record_bytes).max(1) as f64;
    report.ratios.insert("resident_without_index_vs_records".to_owned(), over);
    let row_bytes = 4 * width_of(&tables) as u64;
    for (name, seconds) in [
        ("lookup", (|parts: &Parts| parts.lookup) as fn(&Parts) -> f64),
        ("push and prepare", |parts| parts.push),
        ("commit", |parts| parts.commit),
        ("whole", |parts| parts.lookup + parts.push + parts.commit),
    ] {
        let sample = |(parts, rows): &(Parts, u64)| Sample {
            seconds: seconds(parts),
            rows: *rows,
            bytes: rows * row_bytes,
        };
        let samples: Vec<Sample> = parts.iter().map(sample).collect();
        report.figures.push(Figure::new(format!("full size, {}: {name}", distribution.name()), &samples));
    }
    Ok(())
}
