//! `polygram logits`: the worker's own command, passed through, since only the worker links the tensor library.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use polygram_telemetry::passive_waits;

use crate::args::LogitsArgs;
use crate::exit::{ExitStatus, Failure, Outcome};
use crate::launcher::siblings::Program;

pub(crate) fn run(args: &LogitsArgs) -> Outcome {
    let (model, input) = (&args.model, &args.input);
    if !model.join("config.json").is_file() {
        return Err(Failure::usage(format!("{} has no config.json", model.display()))
            .hint("give --model a folder in the Hugging Face layout"));
    }
    if !input.is_file() {
        return Err(Failure::usage(format!("there is no file {}", input.display())));
    }
    let worker = Program::Worker.find()?;
    let status = Command::new(&worker)
        .arg("logits")
        .arg("--model")
        .arg(model)
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(&args.output)
        .envs(passive_waits::missing_variables().iter().copied())
        .status()
        .map_err(|error| Failure::failed(format!("cannot start {}", worker.display())).because(error))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(ExitStatus::Passed(u8::try_from(code).unwrap_or(1))),
        (None, signal) => {
            let how = signal.map_or("ended".to_owned(), |signal| format!("was killed by signal {signal}"));
            Err(Failure::failed(format!("{} {how}", Program::Worker.file_name())))
        }
    }
}
