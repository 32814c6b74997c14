//! How a preparation reports its progress, and how it is stopped.

/// What a preparation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reads all text once, to choose what the tokenizer is trained on.
    Survey,
    /// Trains the tokenizer. It ends without further progress.
    Train,
    /// Encodes all text.
    Encode,
    /// Gives the finished files their names. A stop request comes too late.
    Install,
}

/// How far a preparation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub stage: Stage,
    /// Bytes of the input files that this stage has read, as they lie on disk.
    pub bytes: u64,
    /// Bytes of all input files; a pipe counts as 0.
    pub total_bytes: u64,
    /// Documents that this stage has met.
    pub documents: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// Who follows a preparation. Both methods are called many times a second.
pub trait Monitor: Sync {
    /// Takes notice of the progress.
    fn progress(&self, progress: &Progress);

    /// Whether the work is to stop; it then ends with [`crate::DataError::Stopped`] and leaves nothing
    /// behind.
    fn stop_requested(&self) -> bool;
}

/// Nobody.
pub(crate) struct Unattended;

impl Monitor for Unattended {
    fn progress(&self, _progress: &Progress) {}

    fn stop_requested(&self) -> bool {
        false
    }
}
