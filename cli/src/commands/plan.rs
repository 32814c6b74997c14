//! `polygram plan`: what a run file costs, before anything starts, and whether it fits.

use polygram_domain::Topology;
use polygram_domain::plan::{MemoryPlan, Misfit, Operands, Plan, WorkerPart, misfit, plan};
use polygram_domain::run_spec::{DeviceKind, RunSpec};
use serde::Serialize;

use crate::args::PlanArgs;
use crate::data_check;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::machine_check;
use crate::printer::Printer;
use crate::settings::{Configuration, KeyScope};
use crate::units::{self, counted, grouped};

#[derive(Serialize)]
struct PlanDocument<'a> {
    run: &'a str,
    steps: u64,
    topology: Topology,
    device: DeviceKind,
    #[serde(flatten)]
    plan: &'a Plan,
    /// Memory of the machine that plans; absent where the system does not say.
    machine_memory_bytes: Option<u64>,
    /// A worker that does not fit its memory, and the settings that make it fit.
    misfit: Option<&'a Misfit>,
    warnings: &'a [String],
}

pub(crate) fn run(args: &PlanArgs, printer: &mut Printer) -> Outcome {
    let configuration = Configuration::load(&args.file, None)?;
    let spec = &configuration.spec;
    let mut warnings = warnings(&configuration)?;
    warnings.extend(data_check::warnings(spec));
    warnings.extend(machine_check::warnings(spec));
    let plan = plan(spec);
    let misfit = misfit(spec, Operands::of(spec));
    let document = PlanDocument {
        run: spec.name.as_str(),
        steps: spec.training.steps,
        topology: spec.topology,
        device: spec.device.kind,
        plan: &plan,
        machine_memory_bytes: machine_check::memory_bytes(),
        misfit: misfit.as_ref(),
        warnings: &warnings,
    };
    if printer.is_verbose() {
        printer.say(configuration.describe(KeyScope::All));
    }
    printer.result(&document, || human(&document))?;
    for warning in &warnings {
        printer.warn(warning);
    }
    // The plan is the answer also where it does not fit; the status says that it does not.
    match misfit {
        Some(misfit) => Err(refusal(spec.device.kind, &misfit)),
        None => Ok(ExitStatus::Success),
    }
}

/// Refuses a run whose workers do not fit the memory that `device.memory_gib` says they have.
pub(crate) fn check_memory(configuration: &Configuration) -> Outcome<()> {
    let spec = &configuration.spec;
    match misfit(spec, Operands::of(spec)) {
        Some(misfit) => Err(refusal(spec.device.kind, &misfit)),
        None => Ok(()),
    }
}

fn refusal(device: DeviceKind, misfit: &Misfit) -> Failure {
    let Misfit { needed_bytes, limit_bytes, cure, cured_bytes } = misfit;
    let place = match device {
        DeviceKind::Cpu => "memory",
        DeviceKind::Cuda => "device memory",
    };
    let failure = Failure::usage(format!(
        "each worker needs {} of {place}, but device.memory_gib allows {}",
        units::bytes(*needed_bytes),
        units::bytes(*limit_bytes)
    ));
    match cure.as_slice() {
        [] => failure.hint(
            "no change of training.recompute, training.micro_batch_size, topology.expert_parallel or topology.workers \
             makes it fit: make the model smaller",
        ),
        sets => {
            let sets: Vec<String> = sets.iter().map(|set| format!("--set {set}")).collect();
            failure.hint(format!("with {} it needs {}", sets.join(" "), units::bytes(*cured_bytes)))
        }
    }
}

/// Warnings about a configuration: sizes of the n-gram tables and their share of the parameters, rows that do not fit a
/// shard, and commits that do not come. Equal or illegal sizes are an error.
pub(crate) fn warnings(configuration: &Configuration) -> Outcome<Vec<String>> {
    let spec = &configuration.spec;
    let mut warnings = Vec::new();
    if !spec.tables().is_empty() {
        let sizes = polygram_ngram::check_tables(&spec.model.ngram)
            .map_err(|error| Failure::usage("the n-gram tables are not legal").because(error))?;
        warnings.extend(sizes.iter().map(ToString::to_string));
        warnings.extend(polygram_domain::plan::count_parameters(&spec.model).table_share_warning());
    }
    warnings.extend(rows_warning(&plan(spec).memory));
    warnings.extend(commit_warning(spec));
    Ok(warnings)
}

/// A warning where a shard may not keep all its rows.
fn rows_warning(memory: &MemoryPlan) -> Option<String> {
    let all = memory.shard_index_bytes.saturating_add(memory.shard_all_rows_bytes);
    (memory.shard_limit_bytes < all).then(|| {
        format!(
            "embedding.memory_limit_gib lets each shard keep {} of rows, and every row takes {}: the run fails when more \
             rows are written than fit; raise it, or topology.shards",
            units::bytes(memory.shard_limit_bytes),
            units::bytes(all)
        )
    })
}

/// A warning where nothing is committed before the end of the run, or of this session.
fn commit_warning(spec: &RunSpec) -> Option<String> {
    let last = spec.last_step();
    let why = match spec.checkpoint.every_steps {
        None => "checkpoint.every_steps is not set".to_owned(),
        Some(every) if every > last => format!("checkpoint.every_steps is {every}"),
        Some(_) => return None,
    };
    let meanwhile = match spec.recovery_points {
        Some(_) => "a run that is lost goes on from its newest recovery point only",
        None => "a run that is lost before begins anew",
    };
    Some(format!(
        "nothing is committed before step {last}, the last one, since {why}: {meanwhile}; set checkpoint.every_steps to a \
         part of it"
    ))
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
    let mut memory = worker_rows(document);
    let shard = |what: &str, bytes: u64, words: String| [what.into(), units::bytes(bytes), words];
    memory.push(shard(
        "each shard, first step",
        m.shard_index_bytes.saturating_add(m.shard_first_step_bytes),
        format!(
            "row index {}, then {} for each row once it is written",
            units::bytes(m.shard_index_bytes),
            units::bytes(m.row_record_bytes)
        ),
    ));
    memory.push(shard(
        "each shard, every row",
        m.shard_index_bytes.saturating_add(m.shard_all_rows_bytes),
        format!("records stop at embedding.memory_limit_gib: {}", units::bytes(m.shard_limit_bytes)),
    ));
    let width = |column: usize| memory.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let memory: String = memory
        .iter()
        .map(|[name, size, what]| {
            format!("{name:first$}  {size:>second$}  {what}").trim_end().to_owned() + "\n"
        })
        .collect();
    format!(
        "run {run}: {} × {} = {} tokens, {}, {}\n\n{}\n{memory}\n\
         {} of {} together, {} in f32 were every row written; {} a step\n",
        counted(*steps, "step"),
        counted(plan.tokens_per_step, "token"),
        units::count(plan.tokens as f64),
        counted(topology.workers.into(), "worker"),
        counted(topology.shards.into(), "shard"),
        units::columns(&rows),
        counted(plan.tables, "table"),
        counted(plan.table_rows, "row"),
        units::bytes(plan.table_bytes),
        counted(plan.lookups_per_step, "row lookup"),
    )
}

/// A worker's memory: the sum, then part by part. With a device each size says where it is.
fn worker_rows(document: &PlanDocument<'_>) -> Vec<[String; 3]> {
    let MemoryPlan { worker, worker_host_bytes, worker_device_bytes, worker_limit_bytes, .. } =
        &document.plan.memory;
    let size = |host: u64, device: u64| match document.device {
        DeviceKind::Cpu => units::bytes(host),
        DeviceKind::Cuda => format!("{} device, {} host", units::bytes(device), units::bytes(host)),
    };
    let limit = match (worker_limit_bytes, document.machine_memory_bytes) {
        (Some(limit), _) => {
            format!("of {} (device.memory_gib); the process itself on top", units::bytes(*limit))
        }
        (None, Some(machine)) => {
            format!("the process itself on top; this machine has {}", units::bytes(machine))
        }
        (None, None) => "the process itself on top".to_owned(),
    };
    let mut rows = vec![["each worker".to_owned(), size(*worker_host_bytes, *worker_device_bytes), limit]];
    for part in worker {
        if part.part == WorkerPart::Exchange && part.host_bytes == 0 {
            continue; // no expert parallelism
        }
        let (name, what) = match part.part {
            WorkerPart::Weights => ("weights", "f32, and a copy for training.compute = \"bf16\""),
            WorkerPart::Gradients => ("gradients", "f32 sums over micro-batches"),
            WorkerPart::Optimizer => ("optimizer", "Adam's moments, divided over the workers"),
            WorkerPart::Staging => ("staging", "for checkpoints, divided over the workers"),
            WorkerPart::Activations => ("activations", "of one micro-batch"),
            WorkerPart::Exchange => ("exchange", "of tokens between the ranks of an expert group"),
            WorkerPart::Rows => ("rows", "of n-gram tables in flight, at most"),
        };
        rows.push([format!("  {name}"), size(part.host_bytes, part.device_bytes), what.to_owned()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn spec(sets: &[&str]) -> RunSpec {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunFile::parse(include_str!("../../../configs/tiny.toml"), "tiny", &sets)
            .and_then(|file| file.resolve())
            .unwrap()
    }

    #[test]
    fn a_run_that_commits_at_its_end_only_is_warned_of() {
        for (sets, words) in [
            (
                &["checkpoint.every_steps="][..],
                "before step 60, the last one, since checkpoint.every_steps is not set",
            ),
            (
                &["checkpoint.every_steps=61"],
                "since checkpoint.every_steps is 61: a run that is lost before begins anew",
            ),
            (
                &["training.stop_at_step=10"],
                "before step 10, the last one, since checkpoint.every_steps is 20",
            ),
            (&["checkpoint.every_steps=", "recovery_points.every_steps=5"], "newest recovery point only"),
        ] {
            let warning = commit_warning(&spec(sets)).unwrap();
            assert!(warning.contains(words), "{sets:?}: {warning}");
        }
        for sets in [&[][..], &["checkpoint.every_steps=60"], &["training.stop_at_step=20"]] {
            assert_eq!(commit_warning(&spec(sets)), None, "{sets:?}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_a_shard_are_warned_of() {
        let warned = |sets: &[&str]| rows_warning(&plan(&spec(sets)).memory);
        assert_eq!(warned(&[]), None);
        let warning = warned(&["embedding.memory_limit_gib=0.0001"]).unwrap();
        assert!(
            warning.contains("embedding.memory_limit_gib") && warning.contains("topology.shards"),
            "{warning}"
        );
        // Twice the rows in as much memory.
        let tight = format!("embedding.memory_limit_gib={}", {
            let memory = plan(&spec(&[])).memory;
            1.5 * (memory.shard_index_bytes + memory.shard_all_rows_bytes) as f64 / f64::from(1 << 30)
        });
        assert_eq!(warned(&[&tight]), None);
        assert!(warned(&[&tight, "topology.shards=1"]).is_some());
    }
}
