//! The run's metrics over a real socket.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use common::{Lead, PATIENCE, started, tiny};
use polygram_coordinator::{Claim, Origin, open, serve};
use polygram_domain::Step;
use polygram_domain::control::{Fingerprint, Mark, MemberReport, ShardReport, TableRows};
use polygram_proto::control::OperatorClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

async fn scrape(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: run\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The value of the sample that contains all of `parts`.
fn sample(text: &str, parts: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = lines.find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn the_status_is_told_as_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, scraped) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = scraped.local_addr().unwrap();
    let root = folder.path().display().to_string();
    let origin = Origin {
        config_toml: tiny(&[]),
        config_name: "test".into(),
        root: root.clone(),
        claim: Claim::IfVacant,
    };
    let opened = open(origin, listener.local_addr().unwrap()).await.unwrap();
    let (announcement, spec) = (opened.announcement(), opened.spec().clone());
    let (interrupts, receiver) = mpsc::channel(4);
    let ended = tokio::spawn(serve(opened.with_metrics(scraped), listener, common::token(), receiver));
    let lead = Lead { announcement, interrupts, ended, spec, root };

    let mut members = lead.members().await;
    started(&mut members).await;
    members[0].metrics(0, 3.5).await;
    let tables = lead.spec.tables();
    for (number, member) in members[1..].iter().enumerate() {
        let half = |rows: u32| TableRows { owned_rows: u64::from(rows) / 2, touched_rows: 5 };
        let fingerprint = Fingerprint(40 + number as u64);
        let report = ShardReport {
            version: Step(1),
            since: Step(0),
            record_bytes: 128,
            tables: tables.iter().map(|table| half(table.rows)).collect(),
            declared_rows: 10,
            step_rows: 5,
            parked_lookups: 1,
            parked_seconds: 0.5,
            lane_skew_ratio: Some(0.25),
            marks: vec![Mark { version: Step(1), fingerprint }],
            query_address: None,
            metrics_address: None,
        };
        member.reporter.report(MemberReport::Shard(Box::new(report))).await.unwrap();
    }

    let all_told = async {
        loop {
            let text = scrape(address).await;
            let touched = sample(&text, &["polygram_touched_rows{", "table=\"1\""]);
            let loss = sample(&text, &["polygram_loss_nats{", "role=\"coordinator\"", "run=\"tiny\""]);
            if let (Some(touched), Some(loss)) = (touched, loss) {
                return (touched, loss, text);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let (touched, loss, text) = tokio::time::timeout(PATIENCE, all_told).await.expect("numbers arrive");
    assert_eq!((touched, loss), (10.0, 3.5), "{text}");
    assert_eq!(sample(&text, &["polygram_live_members{"]), Some(3.0), "{text}");
    assert_eq!(sample(&text, &["polygram_excess_collisions_ratio{"]), None, "nobody counted n-grams: {text}");

    let mut operator = OperatorClient::connect(&lead.address(), None).await.unwrap();
    let status = operator.status().await.unwrap();
    assert_eq!(status.rows.tables.len(), tables.len());
    assert_eq!(status.rows.fingerprint.map(|f| f.mark.fingerprint), Some(Fingerprint(81)));
    let shard = status.members[1].shard.as_ref().unwrap();
    assert_eq!((shard.touched_rows(), shard.overlap_ratio()), (5 * tables.len() as u64, Some(0.5)));

    lead.ended.abort();
    assert!(lead.ended.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(address).await.is_err(), "the endpoint ends with the run");
}
