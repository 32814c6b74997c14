//! `polygram bench shard`: the shard program's own measurements, passed through, since only it has the rows.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::args::{BenchShardArgs, OutputFormat};
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::siblings::Program;
use crate::printer::Printer;

/// Runs the shard program's `bench` with the same arguments, output and exit status.
pub(crate) fn shard(args: &BenchShardArgs, printer: &Printer) -> Outcome {
    let program = Program::EmbeddingShard.find()?;
    let mut command = Command::new(&program);
    command.arg("bench");
    // Given before the section, the form of results is this program's flag; the shard program has the same one.
    match printer.format() {
        OutputFormat::Human => {}
        OutputFormat::Json => drop(command.args(["-o", "json"])),
        OutputFormat::Jsonl => drop(command.args(["-o", "jsonl"])),
    }
    let status = command
        .args(&args.arguments)
        .status()
        .map_err(|error| Failure::failed(format!("cannot start {}", program.display())).because(error))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(ExitStatus::Passed(u8::try_from(code).unwrap_or(1))),
        (None, signal) => {
            let how = signal.map_or("ended".to_owned(), |signal| format!("was killed by signal {signal}"));
            Err(Failure::failed(format!("{} {how}", Program::EmbeddingShard.file_name())))
        }
    }
}
