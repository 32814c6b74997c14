//! How programs print results: `polygram` passes its choice on to the programs that it starts.

/// Form of results on standard output. With the feature `clap` it is a value of command lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum OutputFormat {
    /// For eyes
    #[default]
    Human,
    /// One JSON document
    Json,
    /// One JSON object per line
    Jsonl,
}
