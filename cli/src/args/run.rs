//! Arguments that name a run and where it is stored.

use clap::Args;

/// Where runs are stored.
#[derive(Clone, Debug, Args)]
pub(crate) struct RootArgs {
    /// Root of the runs: a folder, s3://bucket/prefix, gs://… or az://… [default: ./polygram-root]
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) root: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of the run
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) root: RootArgs,
}
