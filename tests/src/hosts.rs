//! Hosts as network namespaces on one bridge, each with an address of its own, and a run whose processes live on them.
//! Making them needs root and `ip` of iproute2. What was made is removed when it is dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::by_hand::Coordinator;
use crate::{Cluster, Finished, Running, Slot, program, wait_until};

/// A session ends long before this, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(400);
/// A hardware address that nobody has: what is sent there is lost, and the sender is told nothing.
const NOBODY: &str = "02:00:00:00:00:99";

/// Namespaces `PREFIX-0` to `PREFIX-n`, and one for the bridge between them.
#[derive(Debug)]
pub struct Hosts {
    prefix: String,
    count: usize,
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip (iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

impl Hosts {
    /// Whether this process may make hosts.
    pub fn are_possible() -> bool {
        rustix::process::geteuid().is_root() && Command::new("ip").arg("-V").output().is_ok()
    }

    /// Makes `count` hosts; `name` and this process tell them from those of other tests.
    pub fn make(name: &str, count: usize) -> Result<Hosts> {
        let prefix = format!("pg-{name}-{}", std::process::id());
        let hosts = Hosts { prefix, count };
        let hub = hosts.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for host in 0..count {
            let (namespace, port, address) =
                (hosts.namespace(host), format!("port{host}"), format!("{}/24", Hosts::address(host)));
            ip(&["netns", "add", &namespace])?;
            ip(&[
                "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The address of a host.
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// A command on a host.
    pub fn command(&self, host: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// Loses all that `from` sends to `to` from now on.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        let (namespace, to) = (self.namespace(from), Hosts::address(to));
        ip(&["-n", &namespace, "neigh", "replace", &to, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"])
    }

    /// Undoes [`Hosts::cut`].
    pub fn heal(&self, from: usize, to: usize) -> Result<()> {
        ip(&["-n", &self.namespace(from), "neigh", "del", &Hosts::address(to), "dev", "eth0"])
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let namespaces = (0..self.count).map(|host| self.namespace(host)).chain([self.hub()]);
        for namespace in namespaces {
            // One that was not made cannot be removed.
            let _gone_or_never_made = ip(&["netns", "del", &namespace]);
        }
    }
}

/// A run whose coordinator lives on host 0, and whose shards and workers, in this order, live on the others.
#[derive(Debug)]
pub struct OnHosts<'a> {
    cluster: &'a Cluster,
    hosts: &'a Hosts,
    token: PathBuf,
    coordinator: Running,
    address: SocketAddr,
    members: Vec<(Slot, usize, Running)>,
}

impl<'a> OnHosts<'a> {
    /// Starts all of them.
    pub fn start(
        cluster: &'a Cluster,
        hosts: &'a Hosts,
        (workers, shards): (u32, u32),
    ) -> Result<OnHosts<'a>> {
        let command = hosts.command(0, &program("polygram-coordinator")?);
        let listen = format!("{}:0", Hosts::address(0));
        let Coordinator { running: coordinator, address, token } =
            Coordinator::start(cluster, command, &listen)?;
        let mut run = OnHosts { cluster, hosts, token, coordinator, address, members: Vec::new() };
        let slots =
            (0..shards).map(|index| ("shard", index)).chain((0..workers).map(|rank| ("worker", rank)));
        for (host, slot) in (1..).zip(slots) {
            let running = run.member(slot, host)?;
            run.members.push((slot, host, running));
        }
        Ok(run)
    }

    fn member(&self, (role, index): Slot, host: usize) -> Result<Running> {
        let (name, number, listen) = match role {
            "worker" => ("polygram-worker", "--rank", "0.0.0.0"),
            _ => ("polygram-embedding-shard", "--index", "0.0.0.0:7000"),
        };
        let mut command = self.hosts.command(host, &program(name)?);
        command.current_dir(self.cluster.folder());
        command.args(["--coordinator", &self.address.to_string(), number, &index.to_string()]);
        command.args(["--listen", listen, "--run", "tiny"]).arg("--token-file").arg(&self.token);
        Running::start(command, self.cluster.folder())
    }

    /// The host of a slot.
    pub fn host(&self, slot: Slot) -> Result<usize> {
        let member = self.members.iter().find(|(known, ..)| *known == slot);
        Ok(member.with_context(|| format!("no {slot:?}"))?.1)
    }

    /// Starts again what died. Says how the coordinator ended, once it has.
    fn tend(&mut self) -> Result<Option<Finished>> {
        if let Some(finished) = self.coordinator.poll()? {
            return Ok(Some(finished));
        }
        for at in 0..self.members.len() {
            let (slot, host, running) = &mut self.members[at];
            let (slot, host) = (*slot, *host);
            if running.poll()?.is_some_and(|finished| !finished.status.success()) {
                self.members[at].2 = self.member(slot, host)?;
            }
        }
        Ok(None)
    }

    /// Waits until `holds` of the run's status, as JSON. The end of the run is an error.
    pub fn await_status(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(what, LIMIT, || {
            if let Some(finished) = self.tend()? {
                bail!("the run ended before {what}: {}\n{}", finished.status, finished.said());
            }
            let mut command = self.hosts.command(0, &program("polygram")?);
            command.args(["status", "tiny", "--root", self.cluster.root_url(), "-o", "json"]);
            let answer = command.current_dir(self.cluster.folder()).output()?;
            let Ok(status) = serde_json::from_slice::<Value>(&answer.stdout) else { return Ok(None) };
            Ok(holds(&status).then_some(status))
        })
    }

    /// Waits for the run's good end.
    pub fn completes(&mut self) -> Result<Finished> {
        let finished = wait_until("the end of the run", LIMIT, || self.tend())?;
        ensure!(finished.status.success(), "{}\n{}", finished.status, finished.said());
        Ok(finished)
    }
}
