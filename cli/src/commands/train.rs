//! `polygram train`: a whole run on this machine, from its configuration to its last commit.

use std::collections::BTreeMap;
use std::path::Path;

use polygram_domain::plan::plan;
use polygram_domain::run_spec::DataSpec;
use polygram_faults::FaultInjection;
use polygram_proto::control::{Evaluation, RunStatus};
use serde::Serialize;

use crate::args::TrainArgs;
use crate::commands::block_on;
use crate::commands::plan::{check_memory, machine_warning, warnings};
use crate::evaluations;
use crate::exit::{ExitStatus, Outcome};
use crate::launcher::progress::MeanLoss;
use crate::launcher::{self, Claim, Ending, Plan};
use crate::printer::Printer;
use crate::settings::{Configuration, KeyScope, Root, RunPlace};
use crate::stored;
use crate::units::{self, counted};
use crate::{data_check, device_check, lead_check, resume_check, train_on};

/// The result of a session that ended well.
#[derive(Serialize)]
struct TrainDocument {
    run: String,
    root: String,
    state: String,
    message: String,
    step: u64,
    total_steps: u64,
    resume_step: u64,
    /// Of the last step.
    loss: Option<f64>,
    /// Of the session's newest steps.
    mean_loss: Option<MeanLoss>,
    /// The newest evaluation of every held-out set.
    held_out: BTreeMap<String, HeldOut>,
    committed_step: Option<u64>,
    manifest: Option<String>,
    seconds: f64,
    goodput: f64,
    logs: String,
}

/// The result of a held-out set.
#[derive(Serialize)]
struct HeldOut {
    #[serde(flatten)]
    evaluation: Evaluation,
    /// What `data prepare` noted of its text: the loss that a model without context could reach at best.
    unigram_entropy: Option<f64>,
}

pub(crate) fn run(args: &TrainArgs, printer: &mut Printer) -> Outcome {
    let mut configuration = Configuration::load(&args.file, args.run.as_deref())?;
    let root = Root::resolve(&args.root)?;
    check_memory(&configuration)?;
    let warnings = warnings(&configuration)?;
    let data_warnings = data_check::check(&mut configuration)?;
    let programs = launcher::Programs::find()?;
    device_check::check(&configuration.spec, &programs)?;
    let claim = if args.take_over { Claim::TakeOver } else { Claim::IfVacant };
    if claim == Claim::IfVacant {
        block_on(lead_check::check(&root, &configuration.spec.name))?;
    }
    let changed = block_on(resume_check::check(&configuration, &root))?;
    polygram_checkpoint::create_root(&root.address()).map_err(|error| stored::refused(&root, error))?;
    introduce(&configuration, &root, printer);
    for line in &changed.lines {
        printer.say(line);
    }
    let warnings = warnings.into_iter().chain(machine_warning(&configuration));
    for warning in warnings.chain(data_warnings).chain(changed.warnings) {
        printer.warn(warning);
    }
    let faults = FaultInjection::from(args.fault_injection);
    let plan = Plan { configuration: &configuration, kept_steps: 0, root: &root, claim, faults };
    let (ending, logs) = block_on(launcher::launch(&programs, plan, printer))?;
    let (document, status) = conclude(&configuration, &root, &ending, &logs);
    printer.result(&document, || human(&document, &configuration, &root))?;
    Ok(status)
}

/// Says what is about to happen: configuration with origins, token arithmetic, sizes.
fn introduce(configuration: &Configuration, root: &Root, printer: &mut Printer) {
    let spec = &configuration.spec;
    let scope = if printer.is_verbose() { KeyScope::All } else { KeyScope::Written };
    let defaults = match scope {
        KeyScope::All => "",
        KeyScope::Written => " (defaults are left out; -v shows them)",
    };
    printer.say(format!("configuration of run {} in {root}{defaults}:", spec.name));
    printer.say(configuration.describe(scope));
    let costs = plan(spec);
    let training = &spec.training;
    printer.say(format!(
        "{} a step = {} × {} × {}; {}, {} tokens in all",
        counted(costs.tokens_per_step, "token"),
        counted(training.cells.into(), "cell"),
        counted(training.micro_batch_size.into(), "sample"),
        counted(training.seq_len.into(), "position"),
        counted(training.steps, "step"),
        units::count(costs.tokens as f64),
    ));
    let parameters = &costs.parameters;
    printer.say(format!(
        "{} parameters, {} of them in {}; {} to {} active for a token",
        units::count(parameters.total as f64),
        units::count(parameters.ngram_tables as f64),
        counted(costs.tables, "n-gram table"),
        units::count(parameters.activated_min as f64),
        units::count(parameters.activated_max as f64),
    ));
}

fn conclude(
    configuration: &Configuration,
    root: &Root,
    ending: &Ending,
    logs: &Path,
) -> (TrainDocument, ExitStatus) {
    let spec = &configuration.spec;
    let manifest = |step: u64| {
        format!(
            "{root}/runs/{}/{}",
            spec.name,
            polygram_checkpoint::keys::manifest(polygram_domain::Step(step))
        )
    };
    let empty = TrainDocument {
        run: spec.name.to_string(),
        root: root.to_string(),
        state: String::new(),
        message: String::new(),
        step: 0,
        total_steps: spec.training.steps,
        resume_step: 0,
        loss: None,
        mean_loss: None,
        held_out: BTreeMap::new(),
        committed_step: None,
        manifest: None,
        seconds: 0.0,
        goodput: 0.0,
        logs: logs.display().to_string(),
    };
    match ending {
        Ending::AlreadyOver(announcement) => {
            let step = announcement.resume_step;
            let earlier = recorded_status(configuration, root);
            let document = TrainDocument {
                loss: earlier.as_ref().and_then(|status| Some(status.last_metrics?.loss)),
                held_out: earlier
                    .map(|status| held_out(configuration, &status.evaluations))
                    .unwrap_or_default(),
                state: announcement.state.to_string(),
                message: announcement.message.clone(),
                step,
                resume_step: step,
                committed_step: Some(step),
                manifest: Some(manifest(step)),
                ..empty
            };
            (document, ending.exit_status())
        }
        Ending::Over(last) => {
            let status = &last.status;
            let committed = status.last_commit.map(|step| step.0);
            let nothing =
                if ending.is_stopped() && last.steps.is_empty() { "; nothing was trained" } else { "" };
            let document = TrainDocument {
                state: status.state.to_string(),
                message: format!("{}{nothing}", status.message),
                step: status.step.0,
                resume_step: status.resume_step.0,
                loss: status.last_metrics.map(|metrics| metrics.loss),
                mean_loss: last.mean_loss,
                held_out: held_out(configuration, &status.evaluations),
                committed_step: committed,
                manifest: committed.map(manifest),
                seconds: last.seconds,
                goodput: last.goodput,
                ..empty
            };
            (document, ending.exit_status())
        }
    }
}

/// The status of the run that the store has, if it can be read: a run that is complete shows its losses again.
fn recorded_status(configuration: &Configuration, root: &Root) -> Option<RunStatus> {
    let place = RunPlace { name: configuration.spec.name.clone(), root: root.clone() };
    let read = async {
        let run = stored::open(&place).await?;
        run.store.read_status().await.map_err(|error| stored::refused(root, error))
    };
    block_on(read).ok().flatten()
}

/// The results of the held-out sets, by name.
fn held_out(configuration: &Configuration, evaluations: &[Evaluation]) -> BTreeMap<String, HeldOut> {
    let result = |evaluation: &Evaluation| {
        let unigram_entropy = unigram_entropy(configuration, &evaluation.set);
        (evaluation.set.clone(), HeldOut { evaluation: evaluation.clone(), unigram_entropy })
    };
    evaluations.iter().map(result).collect()
}

/// The entropy of a held-out set in the `meta.json` beside its files, if `data prepare` has made them.
fn unigram_entropy(configuration: &Configuration, set: &str) -> Option<f64> {
    let DataSpec::Segments { held_out, .. } = &configuration.spec.data else { return None };
    let (_, prefix) = held_out.iter().find(|(name, _)| *name == set)?;
    let (_, _, part) = data_check::report_beside(prefix)?;
    Some(part.unigram_entropy_nats)
}

fn human(document: &TrainDocument, configuration: &Configuration, root: &Root) -> String {
    let TrainDocument { run, step, .. } = document;
    let mut text = format!("run {run} {}: {}\n", document.state, document.message);
    if let Some(loss) = document.loss {
        text.push_str(&format!("loss {loss:.4} nats per token in step {step}"));
        if let Some(MeanLoss { loss, steps }) = document.mean_loss.filter(|mean| mean.steps > 1) {
            text.push_str(&format!(", {loss:.4} on average over the last {}", counted(steps as u64, "step")));
        }
        text.push('\n');
    }
    for HeldOut { evaluation, unigram_entropy } in document.held_out.values() {
        text.push_str(&evaluations::line(evaluation));
        if let Some(entropy) = unigram_entropy {
            text.push_str(&format!(
                ";\n  a model without context reaches {entropy:.4} there at best (unigram entropy)"
            ));
        }
        text.push('\n');
    }
    if document.seconds > 0.0 {
        let (took, goodput) = (units::duration(document.seconds), units::percent(document.goodput));
        text.push_str(&format!("took {took}, goodput {goodput}\n"));
    }
    if let Some(manifest) = &document.manifest {
        text.push_str(&format!("committed {manifest}\n"));
    }
    let option = root.as_option();
    text.push_str(&format!(
        "next: polygram metrics {run}{option}   ·   polygram digest {run}{option}   ·   polygram status {run}{option}\n"
    ));
    for line in train_on::advice(&configuration.spec, *step) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}
