//! Whether workers can compute on the device that the run file asks for, checked before anything starts. Only
//! the worker links libtorch, so it is asked.

use std::process::{Command, Stdio};

use polygram_domain::run_spec::{DeviceKind, Engine, RunSpec};

use crate::exit::{Failure, Outcome};
use crate::launcher::siblings::Program;

/// Asks the worker for the device of `spec`. A CPU is always there.
pub(crate) fn check(spec: &RunSpec) -> Outcome<()> {
    if spec.device.engine != Engine::Torch || spec.device.kind == DeviceKind::Cpu {
        return Ok(());
    }
    let worker = Program::Worker.find()?;
    let asked = Command::new(&worker).arg("check-device").stdin(Stdio::null()).output();
    let answer = asked
        .map_err(|error| Failure::failed(format!("cannot start {}", worker.display())).because(error))?;
    if answer.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let reason = said.trim().trim_start_matches("error: ");
    Err(Failure::usage(format!("device.kind is \"cuda\", which the worker cannot use: {reason}"))
        .hint("install libtorch with CUDA and the driver of the device"))
}
