//! `polygram`: the operator's hands, and the local launcher.

mod args;
mod byte_progress;
mod commands;
mod data_check;
mod data_files;
mod data_prepared;
mod device_check;
mod evaluations;
mod exit;
mod launcher;
mod lead_check;
mod machine_check;
mod printer;
mod resume_check;
mod settings;
mod stored;
mod suggestion;
mod train_on;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    polygram_process::limits::name_limits_on_panic();
    let cli = args::Cli::try_parse().unwrap_or_else(|error| suggestion::improve(error).exit());
    let mut printer = printer::Printer::new(cli.global.output_format, cli.global.verbose);
    let status = commands::run(&cli, &mut printer).unwrap_or_else(|failure| {
        printer.failure(&failure);
        failure.status
    });
    printer.end_line();
    status.into()
}
