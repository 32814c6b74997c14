//! What a session of `polygram train` came to: the result that is printed, for eyes and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use polygram_checkpoint::{Chain, RunStore, keys};
use polygram_domain::Step;
use polygram_domain::control::{Evaluation, RunStatus};
use polygram_domain::run_spec::RunSpec;
use serde::Serialize;

use crate::commands::block_on;
use crate::evaluations::{self, Comparison};
use crate::exit::{ExitStatus, Outcome};
use crate::launcher::Ending;
use crate::launcher::progress::MeanLoss;
use crate::printer::Printer;
use crate::resume_check::Idle;
use crate::settings::{Configuration, Root, RunPlace};
use crate::stored;
use crate::train_on;
use crate::units::{self, counted};

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
    /// `null` where no process was started.
    logs: Option<String>,
}

/// The result of a held-out set.
#[derive(Serialize)]
struct HeldOut {
    #[serde(flatten)]
    evaluation: Evaluation,
    /// Entropy of the evaluated tokens: no model without context has a smaller loss on them. `null` where the data cannot be
    /// read any more, or is other data.
    unigram_entropy: Option<f64>,
    /// Whether the set held other data when it was evaluated.
    is_of_other_data: bool,
}

/// A result, and what it advises.
pub(crate) struct TrainResult {
    document: TrainDocument,
    advice: Vec<String>,
    /// Of the root.
    option: String,
    status: ExitStatus,
}

/// The result of a session whose processes are gone.
pub(crate) fn of_session(
    configuration: &Configuration,
    root: &Root,
    ending: &Ending,
    logs: &Path,
) -> TrainResult {
    let spec = &configuration.spec;
    let logs = Some(logs.display().to_string());
    let document = match ending {
        Ending::AlreadyOver(announcement) => {
            let step = announcement.resume_step;
            let earlier = recorded_status(configuration, root);
            TrainDocument {
                loss: earlier.as_ref().and_then(|status| Some(status.last_metrics?.loss)),
                held_out: earlier
                    .map(|status| held_out(configuration, root, &status.evaluations, Step(step)))
                    .unwrap_or_default(),
                state: announcement.state.to_string(),
                message: announcement.message.clone(),
                step,
                resume_step: step,
                logs,
                ..committed(spec, root, Some(step))
            }
        }
        Ending::Over(last) => {
            let status = &last.status;
            let nothing =
                if ending.is_stopped() && last.steps.is_empty() { "; nothing was trained" } else { "" };
            TrainDocument {
                state: status.state.to_string(),
                message: format!("{}{nothing}", status.message),
                step: status.step.0,
                resume_step: status.resume_step.0,
                loss: status.last_metrics.map(|metrics| metrics.loss),
                mean_loss: last.mean_loss,
                held_out: held_out(configuration, root, &status.evaluations, status.resume_step),
                seconds: last.seconds,
                goodput: last.goodput,
                logs,
                ..committed(spec, root, status.last_commit.map(|step| step.0))
            }
        }
    };
    let advice = train_on::advice(spec, document.step);
    TrainResult { document, advice, option: root.as_option(), status: ending.exit_status() }
}

/// The result where nothing is left to train: no process was started, and the run is as it was.
pub(crate) fn of_idle(configuration: &Configuration, root: &Root, idle: &Idle) -> TrainResult {
    let Idle { step, status, before, .. } = idle;
    let document = TrainDocument {
        state: status.state.to_string(),
        message: format!("{}; {}", status.message, idle.reason()),
        step: *step,
        resume_step: *step,
        total_steps: status.total_steps,
        loss: status.last_metrics.map(|metrics| metrics.loss),
        held_out: held_out(configuration, root, &status.evaluations, Step(*step)),
        ..committed(&configuration.spec, root, Some(*step))
    };
    let advice = match *step >= before.training.steps {
        true => train_on::advice(before, *step),
        false => vec![idle.cure()],
    };
    TrainResult { document, advice, option: root.as_option(), status: ExitStatus::Success }
}

/// A document that says nothing but where the run is, and its newest commit.
fn committed(spec: &RunSpec, root: &Root, step: Option<u64>) -> TrainDocument {
    let manifest = |step: u64| format!("{root}/runs/{}/{}", spec.name, keys::manifest(Step(step)));
    TrainDocument {
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
        committed_step: step,
        manifest: step.map(manifest),
        seconds: 0.0,
        goodput: 0.0,
        logs: None,
    }
}

/// The status of the run that the store has, if it can be read: a run that is complete shows its losses again.
fn recorded_status(configuration: &Configuration, root: &Root) -> Option<RunStatus> {
    let read = async {
        let run = stored::open(&place(configuration, root)).await?;
        run.store.read_status().await.map_err(|error| stored::refused(root, error))
    };
    block_on(read).ok().flatten()
}

fn place(configuration: &Configuration, root: &Root) -> RunPlace {
    RunPlace { name: configuration.spec.name.clone(), root: root.clone() }
}

/// The results of the held-out sets by name, of a session that began at version `resume_step`.
fn held_out(
    configuration: &Configuration,
    root: &Root,
    evaluations: &[Evaluation],
    resume_step: Step,
) -> BTreeMap<String, HeldOut> {
    let compared = async {
        // Evaluations of earlier sessions may be of other data; the ledger says with which settings they were made.
        let has_earlier = evaluations.iter().any(|evaluation| evaluation.step <= resume_step);
        let past = if has_earlier { past(configuration, root).await } else { None };
        let past = past.as_ref().map(|(store, chain)| (store, chain));
        let mut results = BTreeMap::new();
        for evaluation in evaluations {
            let comparison = evaluations::compare(evaluation, configuration, resume_step, past).await;
            let result = HeldOut {
                evaluation: evaluation.clone(),
                unigram_entropy: match comparison {
                    Comparison::Entropy(entropy) => Some(entropy),
                    Comparison::OtherData | Comparison::None => None,
                },
                is_of_other_data: comparison == Comparison::OtherData,
            };
            results.insert(evaluation.set.clone(), result);
        }
        Ok(results)
    };
    block_on(compared).unwrap_or_default()
}

async fn past(configuration: &Configuration, root: &Root) -> Option<(RunStore, Chain)> {
    let store = stored::open(&place(configuration, root)).await.ok()?.store;
    let (chain, _) = store.read_ledger().await.ok()?;
    Some((store, chain))
}

impl TrainResult {
    /// Prints the result, and answers the status with which the command ends.
    pub(crate) fn print(&self, printer: &mut Printer) -> Outcome {
        printer.result(&self.document, || self.human())?;
        Ok(self.status)
    }

    fn human(&self) -> String {
        let TrainResult { document, option, .. } = self;
        let TrainDocument { run, step, .. } = document;
        let mut text = format!("run {run} {}: {}\n", document.state, document.message);
        if let Some(loss) = document.loss {
            text.push_str(&format!("loss {loss:.4} nats per token in step {step}"));
            if let Some(MeanLoss { loss, steps }) = document.mean_loss.filter(|mean| mean.steps > 1) {
                text.push_str(&format!(
                    ", {loss:.4} on average over the last {}",
                    counted(steps as u64, "step")
                ));
            }
            text.push('\n');
        }
        for HeldOut { evaluation, unigram_entropy, is_of_other_data } in document.held_out.values() {
            text.push_str(&evaluations::line(evaluation));
            if let Some(entropy) = unigram_entropy {
                text.push_str(&format!(
                    ";\n  a model without context reaches {entropy:.4} on these tokens at best (their unigram entropy)"
                ));
            }
            if *is_of_other_data {
                text.push_str(";\n  it is of the data that the set had then, which is other data now");
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
        let commands = match document.manifest {
            Some(_) => &["metrics", "digest", "status"][..],
            None => &["status", "why"],
        };
        let commands: Vec<String> =
            commands.iter().map(|command| format!("polygram {command} {run}{option}")).collect();
        text.push_str(&format!("next: {}\n", commands.join("   ·   ")));
        for line in &self.advice {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
