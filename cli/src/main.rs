//! `polygram`: the operator's hands, and the local launcher.

mod args;
mod commands;
mod exit;
mod launcher;
mod printer;
mod settings;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    polygram_process::limits::name_limits_on_panic();
    let cli = args::Cli::parse();
    let mut printer = printer::Printer::new(cli.global.output_format, cli.global.verbose);
    let status = commands::run(&cli.command, &mut printer).unwrap_or_else(|failure| {
        printer.failure(&failure);
        failure.status
    });
    printer.end_line();
    status.into()
}
