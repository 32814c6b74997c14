//! Whether a run may resume from a checkpoint with the configuration that it has now.

use polygram_checkpoint::{CheckpointError, ConfigHash, Manifest, RunStore, keys};
use polygram_domain::run_file::Change;
use polygram_domain::{RunFile, RunSpec};

use crate::compatibility;
use crate::opening_error::OpeningError;

/// Checks that the run may go on from `manifest`, and answers which settings changed since it was made.
pub(crate) async fn check_fit(
    store: &RunStore,
    manifest: &Manifest,
    file: &RunFile,
    spec: &RunSpec,
) -> Result<Vec<Change>, OpeningError> {
    let run = || spec.name.to_string();
    let before = match store.read_config(&manifest.config).await {
        Ok(before) => before,
        Err(CheckpointError::Missing { key }) => {
            // The same configuration again needs no comparison, and is written again.
            let given = file.to_toml()?;
            if ConfigHash::of(&given) != manifest.config {
                return Err(OpeningError::ConfigGone { run: run(), step: manifest.step.0, key });
            }
            given
        }
        Err(error) => return Err(error.into()),
    };
    let before = RunFile::parse(&before, &keys::config(&manifest.config.0), &[])?;
    let changes = compatibility::check(&before, file, manifest.step.0)
        .map_err(|source| OpeningError::Incompatible { run: run(), source })?;
    manifest.check_cover(spec).map_err(|source| OpeningError::Cover {
        run: run(),
        step: manifest.step.0,
        source,
    })?;
    Ok(changes)
}
