//! Whether workers can compute on the device that the run file asks for, checked before anything starts. Only
//! the worker links libtorch, so it is asked.

use std::process::{Command, Stdio};

use polygram_domain::run_spec::{DeviceKind, Engine, RunSpec};

use crate::exit::{Failure, Outcome};
use crate::launcher::Programs;
use crate::launcher::siblings::Program;

/// How the worker's own message ends.
const OTHERWISE: &str = "; or set device.kind = \"cpu\"";

/// Asks the worker of `programs` for the device of `spec`. A CPU is always there, but not libtorch.
pub(crate) fn check(spec: &RunSpec, programs: &Programs) -> Outcome<()> {
    if spec.device.engine != Engine::Torch {
        return Ok(());
    }
    if programs.worker_version().is_without_libtorch() {
        return Err(Failure::usage("device.engine is \"torch\", but the worker was built without libtorch")
            .hint("build all programs with `make build`"));
    }
    if spec.device.kind == DeviceKind::Cpu {
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
    let reason = reason.strip_suffix(OTHERWISE).unwrap_or(reason);
    Err(Failure::usage(format!("device.kind is \"cuda\", which the worker cannot use: {reason}"))
        .hint("install libtorch with CUDA and the driver of the device, or set device.kind = \"cpu\""))
}
