//! What the end-to-end tests share: finding the programs, running clusters of real processes in folders of their own,
//! asking them questions through `polygram`, and waiting with deadlines.
//!
//! The tests run the programs in `target/release`, so build them first (`make build`; `make test` does). A cluster is the
//! local launcher with everything it starts. Each lives in a temporary folder, listens on ports that the system
//! chooses, and is gone when its [`Running`] is dropped, whatever the test did to it.

mod by_hand;
mod cluster;
pub mod covering;
mod folder;
mod hosts;
mod manifests;
mod moto;
mod pool;
mod process;
mod programs;
mod relay;
mod rude_proxy;
pub mod segment;
pub mod tensors;
mod trace;
mod wait;

pub use by_hand::{ByHand, Links, Slot, Zombie};
pub use cluster::{Cluster, Digest, Engine, Member, Status};
pub use folder::Contents;
pub use hosts::{Hosts, OnHosts};
pub use manifests::manifests;
pub use moto::Moto;
pub use pool::{Job, PoolCluster, PoolMember};
pub use process::{Finished, Running};
pub use programs::{program, repository};
pub use relay::{Relay, Way, Ways};
pub use rude_proxy::{RudeProxy, Rudeness};
pub use trace::{Trace, Undisturbed};
pub use wait::wait_until;
