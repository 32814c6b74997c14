//! Answers of a state machine's numbers to whoever scrapes.

use std::sync::Arc;
use std::time::Duration;

use polygram_telemetry::{Metrics, endpoint};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

/// How old the numbers of a scrape may be.
const REFRESH: Duration = Duration::from_secs(1);

/// Answers scrapes of `metrics` on `listener` until it is dropped. What they are made from comes through `latest`, and is
/// asked for by an input that `ask` makes and the owner of the state takes from `inbox`.
pub(crate) async fn serve<I, T>(
    (listener, metrics): (TcpListener, Metrics),
    latest: watch::Sender<T>,
    inbox: mpsc::Sender<I>,
    ask: impl Fn(oneshot::Sender<T>) -> I,
) {
    let refresh = async {
        let mut beat = tokio::time::interval(REFRESH);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let (answer, numbers) = oneshot::channel();
            if inbox.send(ask(answer)).await.is_err() {
                return std::future::pending().await;
            }
            if let Ok(numbers) = numbers.await {
                latest.send_replace(numbers);
            }
        }
    };
    tokio::select! {
        () = endpoint::serve(listener, Arc::new(metrics), std::future::pending()) => {}
        () = refresh => {}
    }
}
