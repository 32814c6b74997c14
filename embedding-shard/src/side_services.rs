//! What a shard serves and reports beside its rows: metrics, reads, and now and then its counts to the coordinator.
//!
//! None of it can fail the run: what goes wrong here is logged, and the shard goes on without it.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use polygram_domain::control::{MemberReport, ShardReport};
use polygram_member::{MemberError, Membership, bind};
use polygram_proto::control::Reporter;
use polygram_telemetry::{Identity, Metrics, Role, endpoint};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::observe::{Addresses, ShardSource, ShardView, shard_report};
use crate::query::server::QueryServerError;
use crate::query::{self, QueryServer};
use crate::shard::Shard;

/// Counts go to the coordinator this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bound listeners, nothing served yet.
pub(crate) struct Services {
    query: Option<(TcpListener, SocketAddr)>,
    metrics: Option<(TcpListener, SocketAddr)>,
}

impl Services {
    /// Binds what was asked for.
    pub(crate) async fn bind(
        query: Option<SocketAddr>,
        metrics: Option<SocketAddr>,
    ) -> Result<Services, MemberError> {
        let query = match query {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let metrics = match metrics {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        Ok(Services { query, metrics })
    }

    /// The same, reported as at `ip` where they listen on every address of this machine.
    fn reached_at(mut self, ip: IpAddr) -> Services {
        let services = [&mut self.query, &mut self.metrics].into_iter().flatten();
        services.filter(|(_, at)| at.ip().is_unspecified()).for_each(|(_, at)| at.set_ip(ip));
        self
    }

    /// Serves `shard`, which is about to serve workers.
    pub(crate) fn start(self, shard: &Shard, membership: &Membership) -> SideServices {
        let services = self.reached_at(membership.address.ip());
        let view = shard.view();
        let mut addresses = Addresses::default();
        let mut tasks = JoinSet::new();
        if let Some((listener, address)) = services.query {
            tracing::info!(%address, "reads are answered");
            addresses.query = Some(address);
            let served =
                QueryServer { reader: shard.reader(), view: view.clone(), token: membership.token.clone() };
            tasks.spawn(query::serve(served, listener, pending()));
        }
        if let Some((listener, address)) = services.metrics {
            tracing::info!("metrics at http://{address}/metrics");
            addresses.metrics = Some(address);
            let config = shard.config();
            let index = Some(config.index.0);
            let identity = Identity { run: config.run.to_string(), role: Role::Shard, index };
            let metrics = Arc::new(Metrics::new(&identity).with(Arc::new(ShardSource(view.clone()))));
            tasks.spawn(async move {
                endpoint::serve(listener, metrics, pending()).await;
                Ok(())
            });
        }
        let mut beat = interval(INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reporter = membership.reporter.clone();
        SideServices { view, addresses, reporter, tasks, beat, told: None }
    }
}

/// The services at work. They end with it.
pub(crate) struct SideServices {
    view: ShardView,
    addresses: Addresses,
    reporter: Reporter,
    tasks: JoinSet<Result<(), QueryServerError>>,
    beat: Interval,
    told: Option<ShardReport>,
}

impl SideServices {
    /// Does the next thing that is due. Dropping the future loses nothing but time.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Ok(())) => tracing::warn!("a service beside the run ended"),
                Ok(Err(error)) => tracing::error!(%error, "a service beside the run failed"),
                Err(error) => tracing::error!(%error, "a service beside the run ended abnormally"),
            },
            _instant = self.beat.tick() => self.report().await,
        }
    }

    /// Ends the services.
    pub(crate) async fn end(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Tells the coordinator what has changed since it was told last.
    pub(crate) async fn report(&mut self) {
        let report = shard_report(&self.view.stats(), self.addresses);
        if self.told.as_ref() == Some(&report) {
            return;
        }
        // A session that is over says so to whoever listens to it.
        if let Err(error) = self.reporter.report(MemberReport::Shard(Box::new(report.clone()))).await {
            tracing::debug!(%error, "counts were not reported");
        }
        self.told = Some(report);
    }
}
