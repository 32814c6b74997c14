//! Why a group cannot use NCCL, and what its libraries say.

use std::fmt;

use polygram_domain::Rank;

use crate::error::CollectiveError;

/// Why a group cannot use NCCL.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// A library cannot be loaded here: install it, or stay with TCP.
    #[error(
        "{library} cannot be loaded; install it and put its folder into LD_LIBRARY_PATH, or run without NCCL"
    )]
    Absent {
        /// What is missing.
        library: &'static str,
    },
    /// Other ranks cannot use NCCL, so this one does not either.
    #[error("NCCL cannot be used on {}; their own errors say why", crate::error::ranks(ranks))]
    Peers {
        /// Those ranks.
        ranks: Vec<Rank>,
    },
    /// CUDA or NCCL refused something.
    #[error("{doing}: {detail}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What the library said.
        detail: String,
    },
    /// The group failed while it prepared.
    #[error(transparent)]
    Group(#[from] CollectiveError),
}

impl NcclError {
    pub(super) fn refused(doing: &'static str) -> impl Fn(Detail) -> NcclError {
        move |Detail(detail)| NcclError::Refused { doing, detail }
    }
}

/// The words of a library's error.
pub(super) struct Detail(pub(super) String);

impl<E: fmt::Debug> From<E> for Detail {
    fn from(error: E) -> Detail {
        Detail(format!("{error:?}"))
    }
}
