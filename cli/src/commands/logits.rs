//! `polygram logits`: the worker's own command, passed through, since only the worker links the tensor library.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use polygram_telemetry::passive_waits;

use crate::args::LogitsArgs;
use crate::exit::{Failure, Outcome};
use crate::launcher::program_check;
use crate::launcher::siblings::Program;

pub(crate) fn run(args: &LogitsArgs) -> Outcome {
    let (model, input) = (&args.model, &args.input);
    if !model.join("config.json").is_file() {
        return Err(Failure::usage(format!("{} has no config.json", model.display()))
            .hint("give --model a folder in the Hugging Face layout"));
    }
    // A pipe will do, too.
    if !input.exists() || input.is_dir() {
        return Err(Failure::usage(format!("there is no file {}", input.display()))
            .hint("give --input a safetensors file with the tensor input_ids, I64 of shape [B, T]"));
    }
    refuse_own_inputs(args)?;
    let worker = Program::Worker.find()?;
    let [loads] = program_check::check([worker.as_path()]);
    loads?;
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

/// Refuses an output that is the input, or a file of the model.
fn refuse_own_inputs(args: &LogitsArgs) -> Outcome<()> {
    let place = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(output) = place(&args.output).filter(|_| args.output.is_file()) else { return Ok(()) };
    let refused = |what: &str| {
        Failure::usage(format!("--output {} is {what}; it would be overwritten", args.output.display()))
            .hint("give --output another file")
    };
    if place(&args.input) == Some(output) {
        return Err(refused("the input"));
    }
    let files = fs::read_dir(&args.model).into_iter().flatten().flatten();
    if files.into_iter().any(|file| place(&file.path()) == Some(output)) {
        return Err(refused("a file of the model"));
    }
    Ok(())
}
