//! Arguments of `polygram keys`.

use clap::Args;

/// Which keys are described.
#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// A section such as training.optimizer, or one key [default: all]
    #[arg(value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Print a small run file to begin from instead: it trains on made-up data
    #[arg(long, conflicts_with = "key")]
    pub(crate) example: bool,
}
