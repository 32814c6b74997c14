//! The run's numbers as metrics, from a status that is asked for every second while somebody may scrape.

use std::fmt;
use std::sync::Arc;

use polygram_domain::control::{CollisionStatus, RunStatus, StepMetrics};
use polygram_telemetry::{Identity, Metrics, Page, Role, Sample, Source, names};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::messages::Input;
use crate::scrapes;

/// Answers scrapes on `listener` until it is dropped.
pub(crate) async fn serve(listener: TcpListener, first: RunStatus, inbox: mpsc::Sender<Input>) {
    let identity = Identity { run: first.run.clone(), role: Role::Coordinator, index: None };
    let (sender, latest) = watch::channel(first);
    let metrics = Metrics::new(&identity).with(Arc::new(StatusSource(latest)));
    scrapes::serve((listener, metrics), sender, inbox, |answer| Input::Status { answer }).await;
}

#[derive(Debug)]
struct StatusSource(watch::Receiver<RunStatus>);

impl Source for StatusSource {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = self.0.borrow().clone();
        let members = status.members.iter().filter(|member| member.alive).count();
        page.gauge(names::LIVE_MEMBERS, [Sample::plain(members as f64)])?;
        page.counter(names::UPDATES_TOTAL, [Sample::plain(status.step.0 as f64)])?;
        let committed = status.last_commit.map(|step| Sample::plain(step.0 as f64));
        page.counter(names::COMMITTED_UPDATES_TOTAL, committed)?;
        let latest = |of: fn(&StepMetrics) -> f64| status.last_metrics.as_ref().map(of).map(Sample::plain);
        page.gauge(names::LOSS_NATS, latest(|m| m.loss))?;
        let held_out = status.evaluations.iter().map(|of| Sample::of("set", &of.set, of.loss));
        page.gauge(names::HELD_OUT_LOSS_NATS, held_out)?;
        page.gauge(names::GRADIENT_NORM, latest(|m| m.grad_norm))?;
        page.gauge(names::LEARNING_RATE, latest(|m| m.lr))?;
        page.gauge(names::UPDATE_TOKENS, latest(|m| m.tokens as f64))?;
        page.gauge(names::UPDATE_SECONDS, latest(|m| m.seconds))?;
        page.gauge(names::DATA_WAIT_SECONDS, latest(|m| m.data_wait_seconds))?;
        page.gauge(names::EMBEDDING_WAIT_SECONDS, latest(|m| m.embedding_wait_seconds))?;
        let unique = status.rows.input.and_then(|input| input.unique_ratio());
        page.gauge(names::UNIQUE_ROWS_RATIO, unique.map(Sample::plain))?;
        let tables = || status.rows.tables.iter().enumerate();
        page.gauge(
            names::TOUCHED_ROWS,
            tables().map(|(table, t)| Sample::of("table", table, t.touched_rows as f64)),
        )?;
        let judged = || tables().filter_map(|(number, table)| Some((number, table, table.collisions?)));
        // Tables of one order have their n-grams in common.
        let mut orders: Vec<(u32, f64)> =
            judged().map(|(_, table, judged)| (table.order, judged.distinct_ngrams)).collect();
        orders.sort_by_key(|(order, _)| *order);
        orders.dedup_by_key(|(order, _)| *order);
        page.gauge(
            names::DISTINCT_NGRAMS,
            orders.into_iter().map(|(order, distinct)| Sample::of("order", order, distinct)),
        )?;
        page.gauge(
            names::IDEAL_ROWS,
            judged().map(|(number, _, judged)| Sample::of("table", number, judged.ideal_rows)),
        )?;
        page.gauge(
            names::EXCESS_COLLISIONS_RATIO,
            judged()
                .filter_map(|(number, _, judged)| Some(Sample::of("table", number, judged.excess_ratio?))),
        )?;
        page.gauge(
            names::NGRAMS_PER_ROW,
            judged()
                .filter_map(|(number, _, judged)| Some(Sample::of("table", number, judged.ngrams_per_row?))),
        )?;
        let shared = |judged: CollisionStatus| judged.shared_lookups_ratio;
        page.gauge(
            names::SHARED_LOOKUPS_RATIO,
            judged().filter_map(|(number, _, judged)| Some(Sample::of("table", number, shared(judged)?))),
        )
    }
}
