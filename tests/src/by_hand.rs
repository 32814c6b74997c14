//! A run whose processes a test starts itself: a coordinator, members that each reach it over a relay of their own, and
//! shards that workers reach over another. Whoever dies is started again by whoever waits here, as a supervisor would.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{Cluster, Finished, Relay, Running, Ways, program, wait_until};

/// A session ends long before this, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(240);

/// A run at work. Its root, and the questions about it, are its cluster's.
#[derive(Debug)]
pub struct ByHand<'a> {
    cluster: &'a Cluster,
    token: PathBuf,
    address: SocketAddr,
    coordinator: Running,
    members: Vec<Placed>,
    /// Whose, key and value.
    variables: Vec<(Slot, String, String)>,
}

/// The ways of a member.
#[derive(Debug)]
pub struct Links {
    /// To the coordinator.
    pub control: Relay,
    /// Where a shard listens, and the way of workers to it.
    data: Option<(SocketAddr, Relay)>,
}

impl Links {
    fn of((role, _): Slot, coordinator: SocketAddr) -> Result<Links> {
        let control = Relay::to(coordinator)?;
        if role != "shard" {
            return Ok(Links { control, data: None });
        }
        // A shard binds its address in each membership again: it is one that nobody else has.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed));
        let listen = SocketAddr::from((ip, 7000));
        Ok(Links { control, data: Some((listen, Relay::to(listen)?)) })
    }
}

impl Links {
    /// Tells all of them.
    pub fn tell(&self, ways: Ways) {
        self.control.tell(ways);
        self.data.iter().for_each(|(_, relay)| relay.tell(ways));
    }
}

/// A member, its ways, and how often it was started.
#[derive(Debug)]
struct Placed {
    slot: Slot,
    links: Links,
    running: Running,
    starts: u32,
}

/// A role and a rank or index: `("worker", 1)`.
pub type Slot = (&'static str, u32);

/// A process that was replaced in its slot while it lived.
#[derive(Debug)]
pub struct Zombie {
    /// Its ways.
    pub links: Links,
    /// Itself.
    pub running: Running,
}

/// A coordinator that a test started itself, and how members reach it.
pub(crate) struct Coordinator {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    pub(crate) token: PathBuf,
}

impl Coordinator {
    /// Starts `command` for `cluster`'s run, to listen on `listen`, and waits for its address.
    pub(crate) fn start(cluster: &Cluster, mut command: Command, listen: &str) -> Result<Coordinator> {
        let folder = cluster.folder();
        let [config, token, announcement] =
            ["by-hand.toml", "token", "coordinator.json"].map(|name| folder.join(name));
        std::fs::write(&config, cluster.effective_toml()?)?;
        std::fs::write(&token, "a-secret-of-this-test-alone\n")?;
        command.current_dir(folder).arg("--config").arg(&config).args(["--root", cluster.root_url()]);
        command.args(["--listen", listen]).arg("--token-file").arg(&token);
        command.arg("--announce-file").arg(&announcement);
        let mut running = Running::start(command, folder)?;
        let address = wait_until("the coordinator to listen", LIMIT, || {
            if let Some(finished) = running.poll()? {
                bail!("the coordinator ended: {}", finished.said());
            }
            let Ok(text) = std::fs::read_to_string(&announcement) else { return Ok(None) };
            let value: Value = serde_json::from_str(&text)?;
            let address = value["address"].as_str().context("no address is announced")?;
            Ok(Some(address.parse::<SocketAddr>()?))
        })?;
        Ok(Coordinator { running, address, token })
    }
}

impl<'a> ByHand<'a> {
    /// Starts the coordinator of `cluster`'s run, and so many members.
    pub fn start(cluster: &'a Cluster, members: (u32, u32)) -> Result<ByHand<'a>> {
        ByHand::start_with(cluster, members, &[])
    }

    /// The same, with variables of their own in the environment of some members.
    pub fn start_with(
        cluster: &'a Cluster,
        (workers, shards): (u32, u32),
        variables: &[(Slot, &str, &str)],
    ) -> Result<ByHand<'a>> {
        let mut command = Command::new(program("polygram-coordinator")?);
        command.envs(cluster.variables().iter().map(|(key, value)| (key, value)));
        let Coordinator { running: coordinator, address, token } =
            Coordinator::start(cluster, command, "127.0.0.1:0")?;
        let owned = |(slot, key, value): &(Slot, &str, &str)| (*slot, (*key).to_owned(), (*value).to_owned());
        let variables = variables.iter().map(owned).collect();
        let mut run = ByHand { cluster, token, address, coordinator, members: Vec::new(), variables };
        let slots =
            (0..shards).map(|index| ("shard", index)).chain((0..workers).map(|rank| ("worker", rank)));
        for slot in slots {
            let links = Links::of(slot, address)?;
            let running = run.member(slot, &links)?;
            run.members.push(Placed { slot, links, running, starts: 1 });
        }
        Ok(run)
    }

    fn member(&self, (role, index): Slot, links: &Links) -> Result<Running> {
        let (name, number) = match role {
            "worker" => ("polygram-worker", "--rank"),
            "shard" => ("polygram-embedding-shard", "--index"),
            other => bail!("{other} is no role of a member"),
        };
        let mut command = Command::new(program(name)?);
        command.current_dir(self.cluster.folder());
        command.envs(self.cluster.variables().iter().map(|(key, value)| (key, value)));
        let own = self.variables.iter().filter(|(slot, ..)| *slot == (role, index));
        command.envs(own.map(|(_, key, value)| (key, value)));
        command.args(["--coordinator", &links.control.address().to_string(), number, &index.to_string()]);
        if let Some((listen, relay)) = &links.data {
            command.args(["--listen", &listen.to_string(), "--advertise", &relay.address().to_string()]);
        }
        command.args(["--run", "tiny"]).arg("--token-file").arg(&self.token);
        Running::start(command, self.cluster.folder())
    }

    fn placed(&mut self, slot: Slot) -> Result<&mut Placed> {
        self.members.iter_mut().find(|placed| placed.slot == slot).with_context(|| format!("no {slot:?}"))
    }

    /// Tells the ways between the coordinator and the members of these slots; all of them if none is named.
    pub fn tell(&self, slots: &[Slot], ways: Ways) {
        let meant = |placed: &&Placed| slots.is_empty() || slots.contains(&placed.slot);
        self.members.iter().filter(meant).for_each(|placed| placed.links.control.tell(ways));
    }

    /// Tells the ways between workers and these shards; all of them if none is named.
    pub fn tell_data(&self, slots: &[Slot], ways: Ways) {
        let meant = |placed: &&Placed| slots.is_empty() || slots.contains(&placed.slot);
        let data = self.members.iter().filter(meant).filter_map(|placed| placed.links.data.as_ref());
        data.for_each(|(_, relay)| relay.tell(ways));
    }

    /// Bytes that were lost on the ways between workers and shards.
    pub fn swallowed_data(&self) -> u64 {
        let data = self.members.iter().filter_map(|placed| placed.links.data.as_ref());
        data.map(|(_, relay)| relay.swallowed()).sum()
    }

    /// What the first connection to a shard said first, as it passed.
    pub fn recorded_hello(&self, slot: Slot) -> Option<Vec<u8>> {
        let placed = self.members.iter().find(|placed| placed.slot == slot)?;
        let (_, relay) = placed.links.data.as_ref()?;
        relay.recorded().into_iter().find(|bytes| !bytes.is_empty())
    }

    /// The processes at work: the coordinator's slot has no index of its own.
    pub fn processes(&self) -> Vec<(Slot, u32)> {
        let members = self.members.iter().map(|placed| (placed.slot, placed.running.pid()));
        std::iter::once((("coordinator", 0), self.coordinator.pid())).chain(members).collect()
    }

    /// What the present process of a slot has logged so far.
    pub fn log(&mut self, slot: Slot) -> Result<String> {
        match slot.0 {
            "coordinator" => self.coordinator.log(),
            _ => self.placed(slot)?.running.log(),
        }
    }

    /// Sends a signal to the present process of a slot.
    pub fn signal(&mut self, slot: Slot, signal: Signal) -> Result<()> {
        let running = &self.placed(slot)?.running;
        running.signal(running.pid(), signal)
    }

    /// How often the process of a slot was started.
    pub fn starts(&mut self, slot: Slot) -> Result<u32> {
        Ok(self.placed(slot)?.starts)
    }

    /// Starts another process in the place of one that lives, with a way of its own.
    pub fn replace(&mut self, slot: Slot) -> Result<Zombie> {
        let links = Links::of(slot, self.address)?;
        let running = self.member(slot, &links)?;
        let placed = self.placed(slot)?;
        placed.starts += 1;
        let (links, running) =
            (std::mem::replace(&mut placed.links, links), std::mem::replace(&mut placed.running, running));
        Ok(Zombie { links, running })
    }

    /// Starts again what died. Says how the coordinator ended, once it has.
    pub fn tend(&mut self) -> Result<Option<Finished>> {
        if let Some(finished) = self.coordinator.poll()? {
            return Ok(Some(finished));
        }
        for at in 0..self.members.len() {
            // Who leaves in good order was told that the run is over.
            if self.members[at].running.poll()?.is_some_and(|finished| !finished.status.success()) {
                let Placed { slot, links, .. } = &self.members[at];
                let running = self.member(*slot, links)?;
                self.members[at].running = running;
                self.members[at].starts += 1;
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
            let asked = ["status", "tiny", "--root", self.cluster.root_url(), "-o", "json"];
            let answer = self.cluster.polygram(&asked)?;
            let Ok(status) = serde_json::from_str::<Value>(&answer.stdout) else { return Ok(None) };
            Ok(holds(&status).then_some(status))
        })
    }

    /// Waits for the run's end.
    pub fn ends(&mut self) -> Result<Finished> {
        wait_until("the end of the run", LIMIT, || self.tend())
    }

    /// Waits for its good end.
    pub fn completes(&mut self) -> Result<Finished> {
        let finished = self.ends()?;
        ensure!(finished.status.success(), "{}\n{}", finished.status, finished.said());
        Ok(finished)
    }
}
