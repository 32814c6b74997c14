//! `polygram plan`: what a run file costs, before anything starts.

use polygram_domain::Topology;
use polygram_domain::plan::{Plan, plan};
use serde::Serialize;

use crate::args::PlanArgs;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::printer::Printer;
use crate::settings::{Configuration, KeyScope};
use crate::units::{self, grouped};

#[derive(Serialize)]
struct PlanDocument<'a> {
    run: &'a str,
    steps: u64,
    topology: Topology,
    #[serde(flatten)]
    plan: &'a Plan,
    warnings: &'a [String],
}

pub(crate) fn run(args: &PlanArgs, printer: &mut Printer) -> Outcome {
    let configuration = Configuration::load(&args.file, None)?;
    let spec = &configuration.spec;
    let warnings = table_warnings(&configuration)?;
    let plan = plan(spec);
    let document = PlanDocument {
        run: spec.name.as_str(),
        steps: spec.training.steps,
        topology: spec.topology,
        plan: &plan,
        warnings: &warnings,
    };
    if printer.is_verbose() {
        printer.say(configuration.describe(KeyScope::All));
    }
    printer.result(&document, || human(&document))?;
    for warning in &warnings {
        printer.warn(warning);
    }
    Ok(ExitStatus::Success)
}

/// Warnings about the sizes of the n-gram tables; equal or illegal sizes are an error.
pub(crate) fn table_warnings(configuration: &Configuration) -> Outcome<Vec<String>> {
    if configuration.spec.tables().is_empty() {
        return Ok(Vec::new());
    }
    let warnings = polygram_ngram::check_tables(&configuration.spec.model.ngram)
        .map_err(|error| Failure::usage("the n-gram tables are not legal").because(error))?;
    Ok(warnings.iter().map(ToString::to_string).collect())
}

fn human(document: &PlanDocument<'_>) -> String {
    let PlanDocument { run, steps, topology, plan, .. } = document;
    let (p, m) = (&plan.parameters, &plan.memory);
    let share = |value: u64| format!("{:.1}%", 100.0 * value as f64 / p.total.max(1) as f64);
    let mut rows =
        vec![vec!["parameters".to_owned(), grouped(p.total), units::count(p.total as f64), "100%".into()]];
    for (name, value) in [
        ("n-gram tables", p.ngram_tables),
        ("n-gram projections", p.ngram_projections),
        ("word embedding", p.embedding),
        ("attention", p.attention),
        ("dense FFN", p.dense_ffn),
        ("experts", p.experts),
        ("routers", p.routers),
        ("norms", p.norms),
        ("output head", p.lm_head),
    ] {
        rows.push(vec![format!("  {name}"), grouped(value), units::count(value as f64), share(value)]);
    }
    for (name, value) in [("activated, least", p.activated_min), ("activated, most", p.activated_max)] {
        rows.push(vec![name.to_owned(), grouped(value), units::count(value as f64), share(value)]);
    }
    let worker = m.worker_weights_bytes
        + m.worker_gradients_bytes
        + m.worker_optimizer_bytes
        + m.worker_snapshot_bytes;
    let memory = [
        (
            "each worker".to_owned(),
            units::bytes(worker),
            format!(
                "weights {}, gradients {}, optimizer {}, snapshots {}; activations aside",
                units::bytes(m.worker_weights_bytes),
                units::bytes(m.worker_gradients_bytes),
                units::bytes(m.worker_optimizer_bytes),
                units::bytes(m.worker_snapshot_bytes)
            ),
        ),
        (
            "each shard, first step".to_owned(),
            units::bytes(m.shard_index_bytes + m.shard_first_step_bytes),
            format!(
                "row index {}, then {} for each row once it is written",
                units::bytes(m.shard_index_bytes),
                units::bytes(m.row_record_bytes)
            ),
        ),
        (
            "each shard, every row".to_owned(),
            units::bytes(m.shard_index_bytes + m.shard_all_rows_bytes),
            format!("records stop at embedding.memory_limit_gib: {}", units::bytes(m.shard_limit_bytes)),
        ),
    ];
    let width = memory.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let memory: String =
        memory.iter().map(|(name, size, what)| format!("{name:width$}  {size:>8}  {what}\n")).collect();
    format!(
        "run {run}: {} steps × {} tokens = {} tokens, {} workers, {} shards\n\n{}\n{memory}\n\
         {} tables of {} rows together, {} in f32 were every row written; {} row lookups a step\n",
        grouped(*steps),
        grouped(plan.tokens_per_step),
        units::count(plan.tokens as f64),
        topology.workers,
        topology.shards,
        units::columns(&rows),
        plan.tables,
        grouped(plan.table_rows),
        units::bytes(plan.table_bytes),
        grouped(plan.lookups_per_step),
    )
}
