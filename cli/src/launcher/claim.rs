//! A launch's claim to lead the run.

/// What becomes of another coordinator that leads the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The launch is refused.
    IfVacant,
    /// It ends.
    TakeOver,
}
