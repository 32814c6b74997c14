//! What a group of ranks can do together.
//!
//! [`Collective`] is the whole vocabulary: reduce, gather, exchange, broadcast, barrier, abort. It blocks, so it
//! belongs to the compute thread; [`AbortHandle`] and [`Progress`] are what other threads hold of it.
//!
//! | type | ranks are |
//! |---|---|
//! | [`Solo`] | one, alone |
//! | [`Local`] | threads of this process; faults can be ordered at (rank, sequence) |
//! | `Nccl` | those, with a GPU each (feature `nccl`) |
//! | [`Tcp`] | processes, in a full mesh of TCP connections, with shared memory between those of one host |
//!
//! `Local` and `Tcp` are the same algorithms ([`Group`]) over two transports ([`link::Link`]). A group of any of the
//! first two and `Tcp` divides into smaller ones of its kind ([`Split`]).
//!
//! What always holds:
//! * A sum over ranks follows the binary tree of [`polygram_domain::sum_tree`] with ranks as leaves, element by
//!   element, in every implementation and for every message size, and every rank ends with the same bits. (Where
//!   a result is NaN it is NaN everywhere; which NaN is not promised.)
//! * All ranks make the same calls in the same order. A rank that does not is found out: the error names both
//!   sides, and no rank is handed another call's bytes.
//! * Every wait ends: with an answer, when an [`AbortHandle`] is used, when a peer is lost, or when nothing has
//!   moved for `failure_detection`. The error says which rank was not heard from.
//! * The first error is final: later calls fail at once with its words. A run recovers by building a new group
//!   under a higher generation.

mod abort;
mod call;
mod collective;
mod element;
mod error;
mod group;
pub mod link;
mod local;
mod members;
#[cfg(feature = "nccl")]
mod nccl;
mod progress;
pub mod sink;
mod solo;
mod split;
mod tcp;
mod wire;

pub use abort::{AbortHandle, AbortTarget};
pub use call::{Call, Op};
pub use collective::Collective;
pub use element::{chunk_of, even_edges};
pub use error::{CollectiveError, JoinError, Place};
pub use group::{Group, Options};
pub use local::{Fault, InjectedFault, Local, LocalLink};
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclError, NcclLink};
pub use progress::{Progress, RankProgress, Stage};
pub use solo::Solo;
pub use split::Split;
pub use tcp::{Bound, Membership, Tcp, TcpLink};
