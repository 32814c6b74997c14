//! `GET /metrics`: the only page of a small HTTP server.
//!
//! It answers whoever can connect, a few connections at a time and each for a short while, and never fails a run: what
//! goes wrong on a connection ends that connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;

/// Connections that are answered at one time; further ones wait to be accepted.
const CONNECTIONS: usize = 8;
/// A request must be here within this.
const REQUEST: Duration = Duration::from_secs(5);
/// A connection is kept no longer.
const CONNECTION: Duration = Duration::from_secs(60);
/// Pause after a failed accept: the process is out of files, most likely.
const PAUSE: Duration = Duration::from_millis(200);

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on `listener` until `shutdown`, then drops every connection.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, shutdown: impl Future<Output = ()>) {
    let (_sender, latest) = watch::channel(metrics);
    serve_latest(listener, latest, shutdown).await;
}

/// The same with metrics that others take the place of: each request is answered with the newest.
pub async fn serve_latest(
    listener: TcpListener,
    metrics: watch::Receiver<Arc<Metrics>>,
    shutdown: impl Future<Output = ()>,
) {
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _peer)) => drop(connections.spawn(answer(stream, metrics.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    sleep(PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection for metrics ended abnormally");
                }
            }
        }
    }
}

async fn answer(stream: TcpStream, metrics: watch::Receiver<Arc<Metrics>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let newest = Arc::clone(&metrics.borrow());
        let reply = page(&request, &newest);
        async move { Ok::<_, Infallible>(reply) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics broke"),
    }
}

fn page<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if request.method() != Method::GET {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    match metrics.text() {
        Ok(text) => {
            let mut reply = Response::new(Full::from(text));
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
            reply
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::from(text));
    *reply.status_mut() = status;
    reply
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;
    use crate::identity::{Identity, Role};
    use crate::metrics::{Page, Sample, Source};
    use crate::names;

    #[derive(Debug)]
    struct One;

    impl Source for One {
        fn write(&self, page: &mut Page<'_>) -> std::fmt::Result {
            page.gauge(names::LIVE_MEMBERS, [Sample::plain(3.0)])
        }
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut reply)).await.unwrap().unwrap();
        reply
    }

    fn request(method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn one_page_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity { run: "demo".into(), role: Role::Coordinator, index: None };
        let metrics = Arc::new(Metrics::new(&identity).with(Arc::new(One)));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, metrics, async {
            stopped.await.ok();
        }));

        // Connections that say nothing do not keep the others out, up to the limit.
        let mut silent = Vec::new();
        for _ in 1..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let good = ask(address, &request("GET", "/metrics?x=1")).await;
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        assert!(good.contains("openmetrics-text; version=1.0.0"), "{good}");
        assert!(good.contains("polygram_live_members{") && good.ends_with("# EOF\n"), "{good}");
        for (method, path, status) in
            [("GET", "/", "404"), ("POST", "/metrics", "405"), ("GET", "/metrics/", "404")]
        {
            let reply = ask(address, &request(method, path)).await;
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {reply}");
        }
        assert!(ask(address, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));

        drop(stop);
        timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
