//! The manifest: one small sealed JSON object that makes a checkpoint exist.

use polygram_domain::spikes::PolicyState;
use polygram_domain::{CheckpointKind, RunName, RunSpec, SCHEMA_VERSION, Step};
use serde::{Deserialize, Serialize};

use crate::config::ConfigHash;
use crate::cover::{check_cover, check_entry};
use crate::cover_error::CoverError;
use crate::cursor::Cursor;
use crate::error::CheckpointError;
use crate::ledger::ChainHash;
use crate::object::{Content, ObjectEntry, Part};
use crate::sealed::{seal, unseal};

/// What a checkpoint is and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this object and of all objects it names.
    pub schema: u32,
    /// Run.
    pub run: String,
    /// State version: updates applied.
    pub step: Step,
    /// What it is for.
    #[serde(default, skip_serializing_if = "CheckpointKind::is_commit")]
    pub kind: CheckpointKind,
    /// Seed of the run.
    pub seed: u64,
    /// The frozen configuration that wrote it.
    pub config: ConfigHash,
    /// Position in the data.
    pub cursor: Cursor,
    /// As [`Part::table_decay`]; `None` where rows do not decay untouched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_decay: Option<u64>,
    /// Hash of the ledger's line of this step; `None` where no run has trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<ChainHash>,
    /// What the run remembers of spikes, and what it leaves out.
    #[serde(default, skip_serializing_if = "PolicyState::is_empty")]
    pub policy: PolicyState,
    /// When the manifest was made, milliseconds since 1970 UTC.
    pub created_unix_ms: u64,
    /// Every object, sorted by key.
    pub objects: Vec<ObjectEntry>,
}

/// What the coordinator adds to the members' parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHeader {
    /// State version: updates applied.
    pub step: Step,
    /// What it is for.
    pub kind: CheckpointKind,
    /// The frozen configuration.
    pub config: ConfigHash,
    /// Hash of the ledger's line of this step.
    pub ledger: Option<ChainHash>,
    /// What the run remembers of spikes, and what it leaves out.
    pub policy: PolicyState,
    /// Now, milliseconds since 1970 UTC.
    pub created_unix_ms: u64,
}

impl Manifest {
    /// Makes one checkpoint of the members' parts, if together they hold exactly the state of `spec`: every element
    /// of every tensor once, both moments of every trained parameter and of nothing else, every bucket of every table
    /// once, and one position in the data.
    pub fn assemble(spec: &RunSpec, header: ManifestHeader, parts: &[Part]) -> Result<Manifest, CoverError> {
        let (cursor, table_decay) = check_cover(spec, header.step, parts)?;
        let mut objects: Vec<ObjectEntry> = parts.iter().flat_map(|part| part.objects.clone()).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Manifest {
            schema: SCHEMA_VERSION,
            run: spec.name.as_str().to_owned(),
            step: header.step,
            kind: header.kind,
            seed: spec.seed,
            config: header.config,
            cursor,
            table_decay,
            ledger: header.ledger,
            policy: header.policy,
            created_unix_ms: header.created_unix_ms,
            objects,
        })
    }

    /// Whether this checkpoint holds exactly the state of `spec`, which may have another topology than the one that
    /// wrote it. To be called before a restore: a changed model is found here, by name.
    pub fn check_cover(&self, spec: &RunSpec) -> Result<(), CoverError> {
        let part = Part {
            member: format!("checkpoint {}", self.step),
            step: self.step,
            objects: self.objects.clone(),
            cursor: Some(self.cursor),
            table_decay: self.table_decay,
        };
        check_cover(spec, self.step, &[part]).map(|_| ())
    }

    /// Length of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().fold(0, |sum, object| sum.saturating_add(object.bytes))
    }

    /// Names of all tensors, sorted, each once.
    pub fn tensor_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().map(|t| t.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &crate::object::TensorEntry> {
        self.objects.iter().flat_map(|object| match &object.content {
            Content::Tensors { tensors } => tensors.as_slice(),
            Content::Rows { .. } => &[],
        })
    }

    /// Shape of a tensor.
    pub fn shape_of(&self, name: &str) -> Option<&[u64]> {
        self.tensors().find(|t| t.name == name).map(|t| t.shape.as_slice())
    }

    pub(crate) fn encode(&self, key: &str) -> Result<Vec<u8>, CheckpointError> {
        seal(key, self)
    }

    /// Opens a manifest's bytes; it must be the one of `run` and `step`.
    pub(crate) fn decode(
        key: &str,
        bytes: &[u8],
        run: &RunName,
        step: Step,
    ) -> Result<Manifest, CheckpointError> {
        let manifest: Manifest = unseal(key, bytes)?;
        if manifest.step != step {
            return Err(CheckpointError::damaged(
                key,
                format!("it is the manifest of step {}", manifest.step),
            ));
        }
        if manifest.run != run.as_str() {
            let (key, run) = (key.to_owned(), run.to_string());
            return Err(CheckpointError::OtherRun { key, run, found: manifest.run });
        }
        for object in &manifest.objects {
            check_entry(object)
                .map_err(|reason| CheckpointError::damaged(key, format!("{}: {reason}", object.key)))?;
        }
        Ok(manifest)
    }
}
