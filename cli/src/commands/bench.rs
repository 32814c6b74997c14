//! `polygram bench`: measurements of the programs that can make them, passed through: only the shard program has rows, and
//! only `polygram-collective` links collectives.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use polygram_domain::OutputFormat;
use polygram_process::end_with_parent;

use crate::args::BenchArgs;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::siblings::Program;
use crate::printer::Printer;

/// Runs the `bench` of `program` with the same arguments, output and exit status.
pub(crate) fn pass(program: Program, args: &BenchArgs, printer: &Printer) -> Outcome {
    let path = program.find()?;
    let mut command = Command::new(&path);
    command.arg("bench");
    // Given before the section, the form of results is this program's flag; the other has the same one.
    match printer.format() {
        OutputFormat::Human => {}
        OutputFormat::Json => drop(command.args(["-o", "json"])),
        OutputFormat::Jsonl => drop(command.args(["-o", "jsonl"])),
    }
    let status = end_with_parent(&mut command)
        .args(&args.arguments)
        .status()
        .map_err(|error| Failure::failed(format!("cannot start {}", path.display())).because(error))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(ExitStatus::Passed(u8::try_from(code).unwrap_or(1))),
        (None, signal) => {
            let how = signal.map_or("ended".to_owned(), |signal| format!("was killed by signal {signal}"));
            Err(Failure::failed(format!("{} {how}", program.file_name())))
        }
    }
}
