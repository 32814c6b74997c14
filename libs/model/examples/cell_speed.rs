//! Times one cell of a run file's model: forward and backward, evaluation, and the optimizer.
//!
//! `cargo run --release -p polygram-model --example cell_speed -- RUNFILE [THREADS] [default|tuned] [REPETITIONS] [f32|bf16]`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use polygram_domain::{CellBatch, RunFile, TableSet};
use polygram_model::{CellInput, Device, Model, Options, Update, set_threads};
use polygram_telemetry::keep_freed_memory;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().map_or("configs/demo.toml", String::as_str);
    let threads = arguments.get(1).map_or(1, |text| text.parse().unwrap());
    if arguments.get(2).is_none_or(|text| text == "tuned") {
        keep_freed_memory();
    }
    set_threads(threads);
    let repetitions = arguments.get(3).map_or(24, |text| text.parse().unwrap());
    let text = std::fs::read_to_string(path).unwrap();
    let sets: Vec<String> =
        arguments.get(4).map(|compute| format!("training.compute={compute}")).into_iter().collect();
    let spec = RunFile::parse(&text, path, &sets).and_then(|file| file.resolve()).unwrap();
    let mut model = Model::new(&spec.model, Options::of(&spec.training, Device::Cpu)).unwrap();
    let start = Instant::now();
    model.init(spec.seed).unwrap();
    println!("init of {} parameters: {:.3} s", model.layout().len(), start.elapsed().as_secs_f64());

    let (batch, seq_len) = (spec.training.micro_batch_size as usize, spec.training.seq_len as usize);
    let token = |i: usize| (i * 7919 % spec.model.vocab_size as usize) as u32;
    let samples: Vec<u32> = (0..batch * (seq_len + 1)).map(token).collect();
    let cell = CellBatch::from_samples(&samples, batch, seq_len).unwrap();
    let tables = TableSet::of(&spec.model);
    let (per_site, sites) = (tables.tables_per_site() as usize, tables.sites());
    let width = tables.iter().next().map_or(0, |table| table.width as usize);
    let unique = batch * seq_len * per_site;
    let inverse: Vec<u32> = (0..unique as u32).collect();
    let rows = vec![0.02f32; sites * unique * width];
    let global_targets = spec.tokens_per_step();
    let input = CellInput { batch: &cell, inverse_pc: &inverse, rows_suw: &rows, unique, global_targets };

    let (mut forward_backward, mut update) = (Vec::new(), Vec::new());
    let mut processor = Vec::new();
    for number in 1..=repetitions {
        let start = Instant::now();
        let used = processor_seconds();
        model.forward_backward(&input, None).unwrap();
        processor.push(processor_seconds() - used);
        forward_backward.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let gradient = model.take_gradient();
        model.apply(|range| &gradient[range], Update { lr: 1e-4, scale: 1.0, number }).unwrap();
        update.push(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    model.evaluate(&input).unwrap();
    let evaluate = start.elapsed().as_secs_f64();
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let cell = median(&mut forward_backward);
    println!(
        "{threads} threads: cell {:.1} ms ({:.0} tokens/s; processor time {:.1} ms), evaluation {:.1} ms, update {:.1} ms",
        cell * 1e3,
        (batch * seq_len) as f64 / cell,
        median(&mut processor) * 1e3,
        evaluate * 1e3,
        median(&mut update) * 1e3
    );
}

/// Processor time of the process: what a cell costs, whoever else is using the machine.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux and `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
