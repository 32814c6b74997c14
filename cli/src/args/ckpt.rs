//! Arguments of `polygram ckpt`, and of commands that take one checkpoint.

use clap::{Args, Subcommand};

use super::run::RunArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum CkptCommand {
    /// Checkpoints of a run: step, time, bytes, pins, and whether they look whole
    Ls(RunArgs),
    /// What a checkpoint holds: members, tensors, rows, objects (all of them with -v or as JSON)
    Show(CheckpointArgs),
    /// Read everything and name every object that is missing, cut or altered
    Verify(CkptVerifyArgs),
    /// Tensors and tables in which two checkpoints differ
    Diff(CkptDiffArgs),
    /// Keep a checkpoint whatever retention does
    Pin(CkptPinArgs),
    /// Let retention treat a checkpoint as any other
    Unpin(CkptPinArgs),
    /// Remove a checkpoint and what it alone needs; works where no room is left
    Rm(CkptRmArgs),
    /// Objects that no checkpoint needs; removes them only with --yes
    Gc(CkptGcArgs),
    /// Write a checkpoint as another topology would, with the same state
    Reshard(CkptReshardArgs),
}

/// A checkpoint of a run.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Committed step [default: the newest]
    #[arg(long, value_name = "N")]
    pub(crate) step: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct CkptVerifyArgs {
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Every checkpoint of the run
    #[arg(long, conflicts_with = "step")]
    pub(crate) all: bool,
    /// Move the manifests of damaged ones to ckpt/damaged/, so that the run continues from an older one
    #[arg(long)]
    pub(crate) set_aside: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CkptDiffArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Step of the first checkpoint
    #[arg(value_name = "A")]
    pub(crate) first: u64,
    /// Step of the second checkpoint
    #[arg(value_name = "B")]
    pub(crate) second: u64,
    /// Run of the second checkpoint, if it is another
    #[arg(long, value_name = "RUN")]
    pub(crate) other_run: Option<String>,
    /// Root of the second checkpoint, if it is another
    #[arg(long, value_name = "URL")]
    pub(crate) other_root: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CkptPinArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Committed step
    #[arg(value_name = "STEP")]
    pub(crate) step: u64,
}

#[derive(Debug, Args)]
pub(crate) struct CkptRmArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Committed step
    #[arg(value_name = "STEP")]
    pub(crate) step: u64,
    /// Remove it though it is pinned, or the newest one
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CkptGcArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Remove them
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CkptReshardArgs {
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
    /// Workers that will load it
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) workers: u32,
    /// Ranks that hold all experts together
    #[arg(long, value_name = "E", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) expert_parallel: u32,
    /// Embedding shards that will load it
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) shards: u32,
    /// Run to write to [default: the same; its checkpoint is replaced, which nobody may be training]
    #[arg(long, value_name = "RUN")]
    pub(crate) to_run: Option<String>,
    /// Root to write to [default: the same]
    #[arg(long, value_name = "URL")]
    pub(crate) to_root: Option<String>,
}
