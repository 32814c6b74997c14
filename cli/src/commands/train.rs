//! `polygram train`: a whole run on this machine, from its configuration to its last commit.

use std::path::Path;

use polygram_domain::plan::plan;
use polygram_domain::run_spec::DataSpec;
use polygram_proto::control::{Reason, RunState};
use serde::Serialize;

use crate::args::TrainArgs;
use crate::commands::plan::{check_memory, machine_warning, warnings};
use crate::commands::{block_on, stored};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::{self, Ending};
use crate::printer::Printer;
use crate::settings::{Configuration, KeyScope, Root};
use crate::units::{self, grouped};

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
    loss: Option<f64>,
    held_out_loss: Option<f64>,
    held_out_unigram_entropy: Option<f64>,
    committed_step: Option<u64>,
    manifest: Option<String>,
    seconds: f64,
    goodput: f64,
    logs: String,
}

pub(crate) fn run(args: &TrainArgs, printer: &mut Printer) -> Outcome {
    let configuration = Configuration::load(&args.file, args.run.as_deref())?;
    let root = Root::resolve(&args.root)?;
    check_data(&configuration)?;
    check_memory(&configuration)?;
    let warnings = warnings(&configuration)?;
    let programs = launcher::Programs::find()?;
    polygram_checkpoint::create_root(&root.address()).map_err(|error| stored::refused(&root, error))?;
    introduce(&configuration, &root, printer);
    for warning in warnings.into_iter().chain(machine_warning(&configuration)) {
        printer.warn(warning);
    }
    let (ending, logs) = block_on(launcher::launch(&programs, (&configuration, 0), &root, printer))?;
    let (document, status) = conclude(&configuration, &root, &ending, &logs);
    printer.result(&document, || human(&document, &configuration, &root))?;
    Ok(status)
}

/// Data that is not there is found before processes are started.
pub(super) fn check_data(configuration: &Configuration) -> Outcome<()> {
    let DataSpec::Segments { train, held_out } = &configuration.spec.data else { return Ok(()) };
    for (key, prefix) in [("data.train", Some(train)), ("data.held_out", held_out.as_ref())] {
        for extension in ["idx", "bin"] {
            if let Some(file) = prefix.map(|prefix| format!("{prefix}.{extension}"))
                && !Path::new(&file).is_file()
            {
                return Err(Failure::usage(format!("{key}: there is no file {file}"))
                    .hint("make it with `polygram data prepare TEXT --output DIR`"));
            }
        }
    }
    Ok(())
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
        "{} tokens a step = {} cells × {} samples × {} positions; {} steps, {} tokens in all",
        grouped(costs.tokens_per_step),
        training.cells,
        training.micro_batch_size,
        training.seq_len,
        grouped(training.steps),
        units::count(costs.tokens as f64),
    ));
    let parameters = &costs.parameters;
    printer.say(format!(
        "{} parameters, {} of them in {} n-gram tables; {} to {} active for a token",
        units::count(parameters.total as f64),
        units::count(parameters.ngram_tables as f64),
        costs.tables,
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
        held_out_loss: None,
        held_out_unigram_entropy: None,
        committed_step: None,
        manifest: None,
        seconds: 0.0,
        goodput: 0.0,
        logs: logs.display().to_string(),
    };
    match ending {
        Ending::AlreadyOver(announcement) => {
            let step = announcement.resume_step;
            let document = TrainDocument {
                state: announcement.state.to_string(),
                message: announcement.message.clone(),
                step,
                resume_step: step,
                committed_step: Some(step),
                manifest: Some(manifest(step)),
                ..empty
            };
            (document, ExitStatus::Success)
        }
        Ending::Over(last) => {
            let status = &last.status;
            let committed = status.last_commit.map(|step| step.0);
            let document = TrainDocument {
                state: status.state.to_string(),
                message: status.message.clone(),
                step: status.step.0,
                resume_step: status.resume_step.0,
                loss: status.last_metrics.map(|metrics| metrics.loss),
                held_out_loss: status.last_evaluation.map(|evaluation| evaluation.loss),
                held_out_unigram_entropy: unigram_entropy(configuration),
                committed_step: committed,
                manifest: committed.map(manifest),
                seconds: last.seconds,
                goodput: last.goodput,
                ..empty
            };
            let asked = status.state == RunState::Stopped && status.reason != Reason::StopAtStep;
            (document, if asked { ExitStatus::Stopped } else { ExitStatus::Success })
        }
    }
}

/// What `data prepare` noted of the held-out text: the loss that a model without context could reach at best.
fn unigram_entropy(configuration: &Configuration) -> Option<f64> {
    let DataSpec::Segments { held_out, .. } = &configuration.spec.data else { return None };
    let text = std::fs::read_to_string(Path::new(held_out.as_ref()?).with_file_name("meta.json")).ok()?;
    let report: polygram_data::PrepareReport = serde_json::from_str(&text).ok()?;
    Some(report.held_out?.unigram_entropy_nats)
}

fn human(document: &TrainDocument, configuration: &Configuration, root: &Root) -> String {
    let TrainDocument { run, step, .. } = document;
    let mut text = format!("run {run} {}: {}\n", document.state, document.message);
    if let Some(loss) = document.loss {
        text.push_str(&format!("loss {loss:.4} nats per token after {step} steps\n"));
    }
    if let Some(loss) = document.held_out_loss {
        text.push_str(&format!("held-out loss {loss:.4} nats per token"));
        if let Some(entropy) = document.held_out_unigram_entropy {
            text.push_str(&format!("; unigram entropy of the held-out text {entropy:.4}"));
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
    let (done, total) = (*step, configuration.spec.training.steps);
    if done < total {
        text.push_str("the same command continues the run\n");
    } else {
        text.push_str(&format!("to train on: the same command with --set training.steps={}\n", total * 2));
    }
    text
}
