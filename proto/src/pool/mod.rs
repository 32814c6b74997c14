//! The pool: members that offer themselves, and the queue of jobs that they are placed in.
//!
//! gRPC service `polygram.pool.v1.Pool` (schema/pool.proto). The generated types ([`wire`]) stop here and in the
//! coordinator's `pool/service.rs`. A member of a pool holds a [`PoolOffer`], which brings it from one run to the next;
//! inside a run it holds the session of [`crate::control`]. The operator holds a [`PoolClient`].

pub mod announcement;
pub mod client;
pub mod offer;
pub mod types;

mod convert;

pub use announcement::PoolAnnouncement;
pub use client::PoolClient;
pub use offer::{Engagement, OfferOptions, PoolOffer};
pub use types::{
    JobId, JobState, JobStatus, MemberWord, Offering, Placement, PoolMemberId, PoolMemberStatus, PoolWord,
    Seat, Submission,
};

/// Types generated from the schema. Only the conversions here and the coordinator's `pool/service.rs` name them.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("polygram.pool.v1");
}
