//! `polygram train`: a whole run on this machine, from its configuration to its last commit.

use polygram_domain::plan::plan;
use polygram_faults::FaultInjection;

use crate::args::TrainArgs;
use crate::commands::plan::{check_memory, warnings};
use crate::commands::{block_on, train_result};
use crate::exit::Outcome;
use crate::launcher::{self, Claim, Plan};
use crate::machine_check;
use crate::printer::Printer;
use crate::settings::{Configuration, KeyScope, Root};
use crate::stored;
use crate::units::{self, counted};
use crate::{data_check, device_check, lead_check, resume_check};

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
    root.check_writable(&configuration.spec.name)?;
    let changed = block_on(resume_check::check(&configuration, &root))?;
    let faults = FaultInjection::from(args.fault_injection);
    if let (Some(idle), Claim::IfVacant, FaultInjection::Disabled) = (&changed.idle, claim, faults) {
        return train_result::of_idle(&configuration, &root, idle).print(printer);
    }
    polygram_checkpoint::create_root(&root.address()).map_err(|error| stored::refused(&root, error))?;
    introduce(&configuration, &root, printer);
    for line in &changed.lines {
        printer.say(line);
    }
    let warnings = warnings.into_iter().chain(machine_check::warnings(&configuration.spec));
    for warning in warnings.chain(data_warnings).chain(changed.warnings) {
        printer.warn(warning);
    }
    let plan = Plan { configuration: &configuration, kept_steps: 0, root: &root, claim, faults };
    let (ending, logs) = block_on(launcher::launch(&programs, plan, printer))?;
    train_result::of_session(&configuration, &root, &ending, &logs).print(printer)
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
