//! `polygram logits`: the worker's own command, passed through, since only the worker links the tensor library.

use std::os::unix::process::CommandExt;
use std::process::Command;

use polygram_telemetry::passive_waits;

use crate::args::LogitsArgs;
use crate::exit::{Failure, Outcome};
use crate::launcher::siblings::Program;

pub(crate) fn run(args: &LogitsArgs) -> Outcome {
    let (model, input) = (&args.model, &args.input);
    if !model.join("config.json").is_file() {
        return Err(Failure::usage(format!("{} has no config.json", model.display()))
            .hint("give --model a folder in the Hugging Face layout"));
    }
    // A pipe will do, too.
    if !input.exists() || input.is_dir() {
        return Err(Failure::usage(format!("there is no file {}", input.display())));
    }
    let worker = Program::Worker.find()?;
    // The worker takes this process's place: signals reach it, and its status is the command's.
    let error = Command::new(&worker)
        .arg("logits")
        .arg("--model")
        .arg(model)
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(&args.output)
        .envs(passive_waits::missing_variables().iter().copied())
        .exec();
    Err(Failure::failed(format!("cannot start {}", worker.display())).because(error))
}
