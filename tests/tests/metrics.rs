//! Every process of a run tells its metrics, while it trains: started by hand, as a cluster's operator does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use polygram_domain::RunFile;
use polygram_tests::{Running, program, repository, wait_until};
use rustix::process::Signal;

/// Nothing here takes so long, on a busy machine either.
const LIMIT: Duration = Duration::from_secs(60);

/// The samples of one page, by name and labels as they are written.
fn scrape(address: &str) -> Result<BTreeMap<String, f64>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nobody answers at {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_head, page) = text.split_once("\r\n\r\n").context("an answer without a page")?;
    let lines = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?} is no sample"))?;
        Ok((name.to_owned(), value.parse().with_context(|| line.to_owned())?))
    };
    lines.map(sample).collect()
}

/// The value of the sample whose name and labels have all of `parts`.
fn value(page: &BTreeMap<String, f64>, parts: &[&str]) -> Option<f64> {
    page.iter().find(|(name, _)| parts.iter().all(|part| name.contains(part))).map(|(_, value)| *value)
}

/// Where a process says that it tells its metrics: the system chose the port.
fn metrics_address(process: &Running) -> Result<String> {
    wait_until("the address of metrics", LIMIT, || {
        let said = process.stderr()?;
        let after = said.split_once("metrics at http://").map(|(_, after)| after.to_owned());
        Ok(after.and_then(|after| after.split_once("/metrics").map(|(address, _)| address.to_owned())))
    })
}

struct Run {
    coordinator: Running,
    members: Vec<(&'static str, Running)>,
}

fn start(folder: &Path, placement: &str) -> Result<Run> {
    let text = fs::read_to_string(repository().join("configs/tiny.toml"))?;
    let placement = format!("model.placement={placement}");
    let sets = [
        "device.engine=drill",
        placement.as_str(),
        "topology.workers=2",
        "topology.expert_parallel=2",
        "topology.shards=1",
        "training.steps=10000000",
        "evaluation.every_steps=10000000",
        "checkpoint.every_steps=5",
    ];
    let file = RunFile::parse(&text, "configs/tiny.toml", &sets.map(str::to_owned))?;
    let (config, token, announcement) =
        (folder.join("run.toml"), folder.join("token"), folder.join("announced"));
    fs::write(&config, file.to_toml()?)?;
    fs::write(&token, "0123456789abcdef")?;
    let mut command = Command::new(program("polygram-coordinator")?);
    command.arg("--config").arg(config).arg("--root").arg(folder.join("root"));
    command.arg("--announce-file").arg(&announcement).arg("--token-file").arg(&token);
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    let coordinator = Running::start(command, folder)?;
    let announced = wait_until("the coordinator", LIMIT, || Ok(fs::read_to_string(&announcement).ok()))?;
    let announced: serde_json::Value = serde_json::from_str(&announced)?;
    let address = announced["address"].as_str().context("an announcement without an address")?;
    let mut members = Vec::new();
    for (name, slot, number) in [
        ("polygram-embedding-shard", "--index", "0"),
        ("polygram-worker", "--rank", "0"),
        ("polygram-worker", "--rank", "1"),
    ] {
        let mut command = Command::new(program(name)?);
        command.args(["--coordinator", address, slot, number, "--metrics-listen", "127.0.0.1:0"]);
        command.arg("--token-file").arg(&token);
        members.push((name, Running::start(command, folder)?));
    }
    Ok(Run { coordinator, members })
}

/// Stops the run; every process of it ends well.
fn end(mut run: Run) -> Result<()> {
    run.coordinator.signal(run.coordinator.pid(), Signal::TERM)?;
    ensure!(run.coordinator.wait(LIMIT)?.status.success(), "{}", run.coordinator.stderr()?);
    for (name, mut process) in run.members {
        let ended = process.wait(LIMIT)?;
        ensure!(ended.status.success(), "{name}: {}", ended.said());
    }
    Ok(())
}

#[test]
fn every_process_of_a_run_tells_its_metrics() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = start(folder.path(), "input")?;
    let whole = metrics_address(&run.coordinator)?;
    let mut pages = Vec::new();
    for (name, process) in &run.members {
        let address = metrics_address(process)?;
        // Some commits are awaited by then, and steps counted.
        let page = wait_until("twenty steps", LIMIT, || {
            let page = scrape(&address)?;
            let is_far = value(&page, &["polygram_updates_total{"]).is_some_and(|updates| updates >= 20.0);
            Ok(is_far.then_some(page))
        });
        pages.push((name, page.with_context(|| format!("metrics of {name}"))?));
    }
    for (rank, (_, page)) in pages.iter().filter(|(name, _)| **name == "polygram-worker").enumerate() {
        let of = |parts: &[&str]| {
            let who = [format!("rank=\"{rank}\""), "role=\"worker\"".to_owned(), "run=\"tiny\"".to_owned()];
            let parts: Vec<&str> = parts.iter().copied().chain(who.iter().map(String::as_str)).collect();
            value(page, &parts).with_context(|| format!("{parts:?} is not in {page:#?}"))
        };
        ensure!(of(&["polygram_loss_nats{"])?.is_finite());
        ensure!(of(&["polygram_update_tokens{"])? > 0.0 && of(&["polygram_resident_bytes{"])? > 1e6);
        let phases = ["lookup", "computing", "pushing", "reducing", "updating"];
        let phases: Vec<String> = phases.iter().map(|phase| format!("phase=\"{phase}\"")).collect();
        let mut sum = 0.0;
        for phase in &phases {
            sum += of(&["polygram_phase_seconds{", phase])?;
        }
        let step = of(&["polygram_update_seconds{"])?;
        ensure!(sum > 0.0 && sum <= 1.01 * step, "phases of {sum} s in a step of {step} s");
        ensure!(
            of(&["polygram_snapshot_bytes{"])? > 0.0 && of(&["polygram_commit_wait_seconds_total{"])? > 0.0
        );
        // Every step asks for rows and gives their gradients back; what was asked for and not computed yet is not counted.
        let [received, sent] = ["received", "sent"].map(|direction| {
            of(&["polygram_row_exchange_bytes_total{", &format!("direction=\"{direction}\"")])
        });
        ensure!(received? > 0.0 && sent? > 0.0);
        for group in ["workers", "gradients", "experts"] {
            let bytes = of(&["polygram_collective_bytes_total{", &format!("group=\"{group}\"")]);
            // The stand-in has no experts to send tokens to.
            ensure!(bytes? > 0.0 || group == "experts", "{group}: {page:#?}");
        }
    }
    // The coordinator counts once a second.
    wait_until("the coordinator's three members", LIMIT, || {
        let live = value(&scrape(&whole)?, &["polygram_live_members{", "role=\"coordinator\""]);
        Ok((live == Some(3.0)).then_some(()))
    })?;
    end(run)
}

/// A model without n-gram tables: the pages have the steps, no rows, and every value is a number.
#[test]
fn a_run_without_tables_tells_its_metrics() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = start(folder.path(), "per_layer")?;
    for (name, process) in &run.members {
        let address = metrics_address(process)?;
        let page = wait_until("twenty steps", LIMIT, || {
            let page = scrape(&address)?;
            let is_far = value(&page, &["polygram_updates_total{"]).is_some_and(|updates| updates >= 20.0);
            Ok(is_far.then_some(page))
        });
        let page = page.with_context(|| format!("metrics of {name}"))?;
        let strange = page.iter().find(|(_, value)| !value.is_finite());
        ensure!(strange.is_none(), "{name}: {strange:?}");
        if *name == "polygram-worker" {
            for direction in ["direction=\"received\"", "direction=\"sent\""] {
                let bytes = value(&page, &["polygram_row_exchange_bytes_total{", direction]);
                ensure!(bytes == Some(0.0), "{name}: {direction} {bytes:?}");
            }
        }
    }
    end(run)
}
