//! The gRPC door: checks sizes, turns messages into ours and back. The only place here that names generated types. Tokens
//! have been checked when a call comes here ([`Guarded`](polygram_proto::control::Guarded)).

use std::sync::Arc;
use std::time::Duration;

use polygram_proto::control::Malformed;
use polygram_proto::rows::wire::row_service_server::RowService;
use polygram_proto::rows::{
    Description, Distribution, Looked, Lookup, OwnedTable, Stats, TableFingerprint, TableStats, VALUES_LIMIT,
    wire,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::config::rows_of_buckets;
use crate::observe::{LogHistogram, ShardView};
use crate::query::reader::{PeekError, ShardReader};

/// A read that takes longer is given up: the shard is not serving, or stuck.
const PATIENCE: Duration = Duration::from_secs(8);

/// The service over a shard's lanes.
pub(super) struct Door {
    pub(super) reader: ShardReader,
    pub(super) view: ShardView,
    pub(super) reads: Arc<Semaphore>,
}

impl Door {
    async fn look(&self, lookup: Lookup) -> Result<Looked, Status> {
        let (rows, width) = (lookup.rows.len(), self.view.config().width());
        if rows * width > VALUES_LIMIT {
            let most = VALUES_LIMIT / width.max(1);
            let text = format!("{rows} rows of {width} values in one call; ask for at most {most}");
            return Err(Status::invalid_argument(text));
        }
        let stuck = || Status::unavailable(format!("no answer by the lanes within {} s", PATIENCE.as_secs()));
        let read = async {
            let ended = || Status::unavailable(PeekError::Ended.to_string());
            let _turn = self.reads.acquire().await.map_err(|_closed| ended())?;
            self.reader.peek(lookup.table, &lookup.rows).await.map_err(|error| match error {
                PeekError::Table { .. } | PeekError::Row { .. } => Status::out_of_range(error.to_string()),
                PeekError::Ended => ended(),
                PeekError::Busy => Status::aborted(error.to_string()),
            })
        };
        let peeked = timeout(PATIENCE, read).await.map_err(|_elapsed| stuck())??;
        Ok(Looked { version: peeked.version, values_rw: peeked.values_rw })
    }

    fn description(&self) -> Description {
        let config = self.view.config();
        let stats = self.view.stats();
        let tables = config.tables.iter().map(|spec| OwnedTable {
            table: spec.index,
            name: spec.name.clone(),
            order: spec.order,
            rows: spec.rows,
            width: spec.width,
            owned: rows_of_buckets(spec, &config.buckets()),
        });
        Description {
            run: config.run.to_string(),
            generation: config.generation,
            shard: config.index,
            shards: config.topology.shards,
            version: stats.version,
            optimizer: config.embedding.optimizer.to_string(),
            storage: config.embedding.storage.to_string(),
            lanes: config.embedding.lanes.max(1),
            record_bytes: stats.record_bytes,
            tables: tables.collect(),
        }
    }

    fn stats_now(&self) -> Stats {
        let stats = self.view.stats();
        let distribution = |histogram: &LogHistogram| Distribution {
            sum: histogram.sum(),
            buckets: histogram.buckets().collect(),
        };
        let tables = stats.tables.iter().map(|table| TableStats {
            table: table.table,
            owned_rows: table.owned_rows,
            touched_rows: table.touched_rows,
            updates: table.updates,
            fingerprint: table.fingerprint.map(|f| TableFingerprint { step: f.step, chain: f.chain }),
        });
        Stats {
            version: stats.version,
            since: stats.since,
            record_bytes: stats.record_bytes,
            tables: tables.collect(),
            declared_rows: stats.declared_rows,
            step_rows: stats.step_rows,
            row_norms: distribution(&stats.norms),
            park_seconds: distribution(&stats.park),
            hot_rows: stats.hot.clone(),
            lane_busy_seconds: stats.lane_busy.iter().map(Duration::as_secs_f64).collect(),
        }
    }
}

#[tonic::async_trait]
impl RowService for Door {
    async fn lookup(
        &self,
        request: Request<wire::LookupRequest>,
    ) -> Result<Response<wire::LookupReply>, Status> {
        let malformed = |error: Malformed| Status::invalid_argument(error.to_string());
        let lookup = Lookup::try_from(request.into_inner()).map_err(malformed)?;
        Ok(Response::new(self.look(lookup).await?.into()))
    }

    async fn describe(
        &self,
        _request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeReply>, Status> {
        Ok(Response::new(self.description().into()))
    }

    async fn stats(
        &self,
        _request: Request<wire::StatsRequest>,
    ) -> Result<Response<wire::StatsReply>, Status> {
        Ok(Response::new(self.stats_now().into()))
    }
}
