//! A real storm: a proxy between the S3 client and its server that answers 503 for a while, or dribbles.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use polygram_checkpoint::{Committed, RunStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Backend, Split, State, spec};

const SLOW_DOWN: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What the proxy does to its connections.
struct Weather {
    /// Connections of this time are answered 503.
    storm: Duration,
    /// Bytes of an answer that pass at a time, and the pause between.
    drip: Option<(usize, Duration)>,
    refused: AtomicU64,
}

/// Listens on a free port until the test's runtime ends.
async fn proxy(to: &'static str, weather: Arc<Weather>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let start = Instant::now();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let in_storm = start.elapsed() < weather.storm;
            tokio::spawn(pass(client, to, Arc::clone(&weather), in_storm));
        }
    });
    address
}

async fn pass(mut client: TcpStream, to: &str, weather: Arc<Weather>, in_storm: bool) {
    if in_storm {
        weather.refused.fetch_add(1, Ordering::Relaxed);
        // What was asked is read first, so that the answer is not lost in a reset.
        let mut request = [0; 1 << 16];
        let _ = client.read(&mut request).await;
        let _ = client.write_all(SLOW_DOWN.as_bytes()).await;
        return;
    }
    let mut server = TcpStream::connect(to).await.unwrap();
    let Some((piece, pause)) = weather.drip else {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.split(), server.split());
    let down = async {
        let mut bytes = vec![0; piece];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
    };
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    tokio::select! { () = down => {}, _ = up => {} }
}

async fn commit_through(weather: Weather) -> (Arc<Weather>, Duration) {
    let spec = spec(&[]);
    let weather = Arc::new(weather);
    let address = proxy(Backend::server().address(), Arc::clone(&weather)).await;
    let root = Backend::s3_at(&format!("http://{address}"));
    root.probe_conditional_create().await.unwrap();
    let store = RunStore::at(root, &spec.name);
    let split = Split { workers: 2, shards: 1, object_bytes: 1 << 18 };
    let start = Instant::now();
    let manifest = State::new(&spec, 1, 20).manifest(&store, &spec, split).await;
    assert_eq!(store.commit(&manifest).await.unwrap(), Committed::Now);
    let latest = store.latest_manifest().await.unwrap();
    assert_eq!(latest.manifest.as_ref(), Some(&manifest));
    store.digest(&manifest).await.unwrap();
    (weather, start.elapsed())
}

#[tokio::test]
async fn a_storm_of_503_is_outlasted() {
    let storm = Duration::from_secs(6);
    let (weather, _) = commit_through(Weather { storm, drip: None, refused: AtomicU64::new(0) }).await;
    let refused = weather.refused.load(Ordering::Relaxed);
    assert!(refused >= 8, "only {refused} requests met the storm");
}

#[tokio::test]
async fn slow_answers_are_awaited() {
    let drip = Some((64 << 10, Duration::from_millis(20)));
    let (_, took) = commit_through(Weather { storm: Duration::ZERO, drip, refused: AtomicU64::new(0) }).await;
    assert!(took < Duration::from_secs(120), "{took:?}");
}
