//! Flags that every member has.

use std::net::SocketAddr;
use std::path::PathBuf;

use polygram_domain::control::{MemberRef, Role as RoleKind};
use polygram_faults::FaultInjection;
use polygram_proto::control::{Recall, Token};

use crate::error::MemberError;
use crate::options::MemberOptions;
use crate::pool::{self, PoolOptions};
use crate::runtime::{Role, run};

/// Taking part in a run, or in a pool.
#[derive(Clone, Debug, clap::Args)]
pub struct MemberArgs {
    /// The coordinator's host:port.
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "pool", conflicts_with = "pool")]
    pub coordinator: Option<String>,
    /// The host:port of a pool to offer this process to, instead of a place in one run.
    #[arg(long, value_name = "HOST:PORT")]
    pub pool: Option<String>,
    /// File with the run's secret.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// The run's name, for log lines.
    #[arg(long, default_value = "")]
    pub run: String,
    /// Address to serve metrics on, at /metrics; none unless given.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Inject the faults that POLYGRAM_FAULT orders; for tests of Polygram itself.
    #[arg(long, hide = true)]
    pub fault_injection: bool,
}

impl MemberArgs {
    /// Takes part in the run or the pool that the flags name: in a run as `kind` number `index`.
    ///
    /// # Errors
    /// A token or faults that cannot be read, and why the member left.
    pub async fn take_part<R: Role>(
        self,
        (kind, index): (RoleKind, Option<u32>),
        role: &mut R,
    ) -> Result<(), R::Error> {
        let token = Token::read(&self.token_file).map_err(MemberError::from)?;
        let faults = FaultInjection::from(self.fault_injection);
        match (self.pool, self.coordinator, index) {
            (Some(pool), _, _) => pool::serve(PoolOptions { pool, token, kind, faults }, role).await,
            (None, Some(coordinator), Some(index)) => {
                faults.expect(&kind.to_string(), index).map_err(MemberError::from)?;
                let (member, recall) = (MemberRef { role: kind, index }, Recall::default());
                run(&MemberOptions { coordinator, member, token, recall }, role).await
            }
            _ => Err(MemberError::NoPlace.into()),
        }
    }
}
