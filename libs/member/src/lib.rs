//! The membership of any member in a run, written once for every role.
//!
//! [`run`] joins a run, lets the role prepare and run, reports a failure, and joins again or returns; [`pool::serve`] does
//! the same for one run after another. What a member does in a run is its [`Role`]: worker, shard, or the scripted role
//! of the coordinator's tests.
//!
//! * [`runtime`]: the sequence of a membership. [`inbox`]: what may end it. [`signals`]: SIGINT and SIGTERM.
//! * [`failure`]: where a failure comes from, and what follows from it. [`error`]: failures that every role can have.
//! * [`stores`]: the checkpoint that the run resumes from. [`args`]: flags that every role has.

pub mod args;
pub mod error;
pub mod failure;
pub mod inbox;
pub mod options;
pub mod pool;
pub mod runtime;
pub mod signals;
pub mod stores;

pub use error::{MemberError, RoleError, bind};
pub use failure::{Disposition, FailureCause, FailureOrigin, FailureReply, MemberFailure};
pub use inbox::{Inbox, MemberEvent};
pub use options::MemberOptions;
pub use runtime::{Listening, Membership, Role, Stage, run};
pub use stores::{RestoreError, Stores};
