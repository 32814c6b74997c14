//! What a run leaves behind, to be compared with what another one left.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::Result;

use crate::{Cluster, Digest, Engine};

/// What a run leaves: its digest, every recorded step, and its ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Of its newest commit.
    pub digest: Digest,
    /// The bits of loss, gradient norm and rate of every step, by the state version it made.
    pub metrics: BTreeMap<u64, [u64; 3]>,
    /// Its lines.
    pub ledger: Vec<String>,
}

impl Cluster {
    /// What the run has left by now.
    pub fn trace(&self) -> Result<Trace> {
        Ok(Trace { digest: self.digest()?, metrics: self.metrics()?, ledger: self.ledger()? })
    }
}

/// What a run of one configuration leaves that nothing disturbs, by each engine: trained when it is first asked for.
#[derive(Debug)]
pub struct Undisturbed {
    sets: &'static [&'static str],
    drill: OnceLock<Trace>,
    torch: OnceLock<Trace>,
}

impl Undisturbed {
    /// Of the tiny run with these settings.
    pub const fn of(sets: &'static [&'static str]) -> Undisturbed {
        Undisturbed { sets, drill: OnceLock::new(), torch: OnceLock::new() }
    }

    /// What it leaves.
    ///
    /// # Panics
    ///
    /// If even this run fails: then there is nothing to compare with.
    #[allow(clippy::unwrap_used)] // see above
    pub fn trace(&self, engine: Engine) -> &Trace {
        let cell = match engine {
            Engine::Drill => &self.drill,
            Engine::Torch => &self.torch,
        };
        cell.get_or_init(|| {
            let cluster = Cluster::tiny(engine).unwrap().with(self.sets);
            cluster.train(&[]).unwrap().success().unwrap();
            cluster.trace().unwrap()
        })
    }
}
