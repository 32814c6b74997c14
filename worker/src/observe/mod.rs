//! What a worker tells whoever scrapes it: its latest step, and what it has exchanged since its membership began.
//!
//! The compute thread notes numbers between phases; a scrape reads them and costs it nothing. A process listens once and
//! answers all its life: which run and rank its numbers are of changes with the membership.

mod report;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polygram_domain::control::StepMetrics;
use polygram_domain::{Rank, RunName};
use polygram_telemetry::{Identity, Metrics, Page, Role, Sample, Source, endpoint, names};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::WorkerError;
use crate::memory::Resident;

pub use report::{StepReport, StepReporter};

/// Groups of ranks, as metrics name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// All workers: losses, agreement, evaluation.
    Workers,
    /// Sums of dense gradients, and the new weights.
    Gradients,
    /// The same of experts.
    ExpertGradients,
    /// Tokens to their experts and back.
    Experts,
}

impl Group {
    /// Every group.
    pub const ALL: [Group; 4] = [Group::Workers, Group::Gradients, Group::ExpertGradients, Group::Experts];

    fn as_str(self) -> &'static str {
        match self {
            Group::Workers => "workers",
            Group::Gradients => "gradients",
            Group::ExpertGradients => "expert_gradients",
            Group::Experts => "experts",
        }
    }
}

/// The numbers of one membership; clones are of the same ones.
#[derive(Clone, Debug, Default)]
pub struct WorkerView(Arc<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    latest: Mutex<Option<StepMetrics>>,
    row_bytes_received: AtomicU64,
    row_bytes_sent: AtomicU64,
    group_bytes: [AtomicU64; Group::ALL.len()],
    commit_wait_nanos: AtomicU64,
}

impl WorkerView {
    /// A step is done.
    pub fn step(&self, metrics: StepMetrics) {
        *self.0.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(metrics);
    }

    /// So many values of rows came, and so many of their gradients went.
    pub fn rows(&self, received: usize, sent: usize) {
        let bytes = |values: usize| (values * size_of::<f32>()) as u64;
        self.0.row_bytes_received.fetch_add(bytes(received), Ordering::Relaxed);
        self.0.row_bytes_sent.fetch_add(bytes(sent), Ordering::Relaxed);
    }

    /// A call of `group` was given so many bytes.
    pub fn brought(&self, group: Group, bytes: usize) {
        self.0.group_bytes[group as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What calls of `group` were given so far.
    pub fn bytes_brought(&self, group: Group) -> u64 {
        self.0.group_bytes[group as usize].load(Ordering::Relaxed)
    }

    /// A step boundary waited so long for a checkpoint to be committed.
    pub fn waited_for_commit(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.commit_wait_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Source for WorkerView {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let numbers = &self.0;
        let latest = *numbers.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |value: fn(&StepMetrics) -> f64| latest.as_ref().map(value).map(Sample::plain);
        page.counter(names::UPDATES_TOTAL, of(|m| m.step.next().0 as f64))?;
        page.gauge(names::LOSS_NATS, of(|m| m.loss))?;
        page.gauge(names::GRADIENT_NORM, of(|m| m.grad_norm))?;
        page.gauge(names::LEARNING_RATE, of(|m| m.lr))?;
        page.gauge(names::UPDATE_TOKENS, of(|m| m.tokens as f64))?;
        page.gauge(names::UPDATE_SECONDS, of(|m| m.seconds))?;
        page.gauge(names::BOUNDARY_SECONDS, of(|m| m.boundary_seconds))?;
        page.gauge(names::DATA_WAIT_SECONDS, of(|m| m.data_wait_seconds))?;
        page.gauge(names::EMBEDDING_WAIT_SECONDS, of(|m| m.embedding_wait_seconds))?;
        let phases = latest.map(|m| m.phases).into_iter().flat_map(|phases| {
            [
                ("lookup", phases.lookup),
                ("computing", phases.computing),
                ("pushing", phases.pushing),
                ("reducing", phases.reducing),
                ("updating", phases.updating),
            ]
        });
        page.gauge(names::PHASE_SECONDS, phases.map(|(phase, seconds)| Sample::of("phase", phase, seconds)))?;
        page.gauge(names::OPTIMIZER_BYTES, of(|m| m.optimizer_bytes as f64))?;
        page.gauge(names::SNAPSHOT_BYTES, of(|m| m.snapshot_bytes as f64))?;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let waited = count(&numbers.commit_wait_nanos) / 1e9;
        page.counter(names::COMMIT_WAIT_SECONDS_TOTAL, [Sample::plain(waited)])?;
        let rows = [("received", &numbers.row_bytes_received), ("sent", &numbers.row_bytes_sent)];
        page.counter(
            names::ROW_EXCHANGE_BYTES_TOTAL,
            rows.map(|(direction, bytes)| Sample::of("direction", direction, count(bytes))),
        )?;
        let brought = |group: Group| Sample::of("group", group.as_str(), self.bytes_brought(group) as f64);
        page.counter(names::COLLECTIVE_BYTES_TOTAL, Group::ALL.map(brought))
    }
}

/// What this process needs, whatever it is doing.
#[derive(Debug)]
struct Process;

impl Source for Process {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let Resident { bytes, peak_bytes } = Resident::now();
        page.gauge(names::RESIDENT_BYTES, [Sample::plain(bytes as f64)])?;
        page.gauge(names::PEAK_RESIDENT_BYTES, [Sample::plain(peak_bytes as f64)])
    }
}

/// Where a process tells its metrics, if it does; it begins a page for each membership.
#[derive(Clone, Debug)]
pub struct MetricsDesk(Arc<watch::Sender<Arc<Metrics>>>);

impl Default for MetricsDesk {
    fn default() -> MetricsDesk {
        MetricsDesk::new("")
    }
}

impl MetricsDesk {
    /// Of a process that is in no run yet; `run` is the name to tell until it is.
    pub fn new(run: &str) -> MetricsDesk {
        MetricsDesk(Arc::new(watch::Sender::new(MetricsDesk::in_no_run(run))))
    }

    fn in_no_run(run: &str) -> Arc<Metrics> {
        let identity = Identity { run: run.to_owned(), role: Role::Worker, index: None };
        Arc::new(Metrics::new(&identity).with(Arc::new(Process)))
    }

    /// The membership is over, and its numbers are told no more; `run` is as in [`MetricsDesk::new`].
    pub fn end(&self, run: &str) {
        self.0.send_replace(MetricsDesk::in_no_run(run));
    }

    /// Numbers of a new membership, which are told from now on.
    pub fn begin(&self, run: &RunName, rank: Rank) -> WorkerView {
        let view = WorkerView::default();
        let identity = Identity { run: run.to_string(), role: Role::Worker, index: Some(rank.0) };
        let metrics = Metrics::new(&identity).with(Arc::new(Process)).with(Arc::new(view.clone()));
        self.0.send_replace(Arc::new(metrics));
        view
    }

    /// Answers scrapes on `address`, where there is one, as long as the answer is kept.
    pub async fn listen(&self, address: Option<SocketAddr>) -> Result<JoinSet<()>, WorkerError> {
        let mut serving = JoinSet::new();
        let Some(address) = address else { return Ok(serving) };
        let cannot = |source| WorkerError::Io {
            what: format!(
                "cannot listen on {address} for metrics; choose another address, or port 0 for a free port"
            ),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        tracing::info!("metrics at http://{}/metrics", listener.local_addr().map_err(cannot)?);
        serving.spawn(self.serve(listener));
        Ok(serving)
    }

    fn serve(&self, listener: TcpListener) -> impl Future<Output = ()> + use<> {
        endpoint::serve_latest(listener, self.0.subscribe(), std::future::pending())
    }
}

#[cfg(test)]
mod tests {
    use polygram_domain::Step;
    use polygram_domain::control::PhaseSeconds;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn scrape(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn sample(text: &str, parts: &[&str]) -> Option<f64> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let line = lines.find(|line| parts.iter().all(|part| line.contains(part)))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    #[tokio::test]
    async fn one_listener_tells_one_membership_after_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let desk = MetricsDesk::new("pool");
        let serving = tokio::spawn(desk.serve(listener));
        let text = scrape(address).await;
        let resident = sample(&text, &["polygram_resident_bytes{", "run=\"pool\""]).unwrap();
        assert!(resident > 1e6, "{text}");
        assert_eq!(sample(&text, &["polygram_loss_nats"]), None, "{text}");

        let first = desk.begin(&RunName::new("first").unwrap(), Rank(3));
        let phases = PhaseSeconds { lookup: 0.25, computing: 1.5, ..PhaseSeconds::default() };
        let metrics = StepMetrics {
            step: Step(6),
            loss: 2.5,
            tokens: 64,
            seconds: 2.0,
            phases,
            ..StepMetrics::default()
        };
        first.step(StepMetrics { snapshot_bytes: 4096, ..metrics });
        first.rows(10, 3);
        first.rows(1, 0);
        first.brought(Group::Gradients, 800);
        first.waited_for_commit(Duration::from_millis(1500));
        let text = scrape(address).await;
        let who = ["run=\"first\"", "rank=\"3\"", "role=\"worker\""];
        for (parts, value) in [
            (["polygram_updates_total{", ""], 7.0),
            (["polygram_loss_nats{", ""], 2.5),
            (["polygram_update_tokens{", ""], 64.0),
            (["polygram_update_seconds{", ""], 2.0),
            (["polygram_phase_seconds{", "phase=\"computing\""], 1.5),
            (["polygram_phase_seconds{", "phase=\"reducing\""], 0.0),
            (["polygram_snapshot_bytes{", ""], 4096.0),
            (["polygram_commit_wait_seconds_total{", ""], 1.5),
            (["polygram_row_exchange_bytes_total{", "direction=\"received\""], 44.0),
            (["polygram_row_exchange_bytes_total{", "direction=\"sent\""], 12.0),
            (["polygram_collective_bytes_total{", "group=\"gradients\""], 800.0),
            (["polygram_collective_bytes_total{", "group=\"experts\""], 0.0),
        ] {
            let parts: Vec<&str> = parts.into_iter().chain(who).collect();
            assert_eq!(sample(&text, &parts), Some(value), "{parts:?}: {text}");
        }

        // Another run: nothing of the one before is told, and nothing of it is told later.
        let second = desk.begin(&RunName::new("second").unwrap(), Rank(0));
        first.rows(100, 100);
        second.rows(5, 0);
        let text = scrape(address).await;
        assert!(!text.contains("first"), "{text}");
        assert_eq!(sample(&text, &["direction=\"received\"", "rank=\"0\""]), Some(20.0), "{text}");
        desk.end("pool");
        let text = scrape(address).await;
        assert!(!text.contains("second") && !text.contains("rank="), "{text}");
        assert!(sample(&text, &["polygram_resident_bytes{", "run=\"pool\""]).is_some(), "{text}");
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
    }
}
