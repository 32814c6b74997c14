//! The programs that a launch starts.

use std::path::PathBuf;

use super::program_check::{self, Version};
use super::siblings::{Executable, Program, Startable};
use crate::exit::{Failure, Outcome};

/// The programs of a run.
#[derive(Debug)]
pub(crate) struct Programs {
    coordinator: Executable,
    embedding_shard: Executable,
    worker: Executable,
    worker_version: Version,
}

impl Programs {
    /// Finds them beside the running program, and refuses those that cannot be started or are of another version.
    pub(crate) fn find() -> Outcome<Programs> {
        let find = |program: Program| {
            let path = program.find()?;
            let cannot = format!("cannot open {}", path.display());
            Executable::open(path).map_err(|error| Failure::failed(cannot).because(error))
        };
        let coordinator = find(Program::Coordinator)?;
        let embedding_shard = find(Program::EmbeddingShard)?;
        let worker = find(Program::Worker)?;
        let [leads, serves, works] =
            program_check::check([coordinator.path(), embedding_shard.path(), worker.path()]);
        let (_, _, worker_version) = (leads?, serves?, works?);
        Ok(Programs { coordinator, embedding_shard, worker, worker_version })
    }

    /// What the worker says of itself.
    pub(crate) fn worker_version(&self) -> &Version {
        &self.worker_version
    }

    /// How `program` is started now, and a warning where it was replaced.
    pub(crate) fn startable(&self, program: Program) -> Outcome<(PathBuf, Option<String>)> {
        let executable = match program {
            Program::Coordinator => &self.coordinator,
            Program::EmbeddingShard => &self.embedding_shard,
            Program::Worker => &self.worker,
            Program::Collective => return Ok((program.find()?, None)),
        };
        let Startable { path, is_replaced } = executable.startable();
        let warning = is_replaced.then(|| {
            format!(
                "{} was replaced or removed since this launch began; the program that it began with is started",
                executable.path().display()
            )
        });
        Ok((path, warning))
    }
}
