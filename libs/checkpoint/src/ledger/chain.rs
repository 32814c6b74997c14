//! Lines put together to one chain. Without I/O.

use std::collections::BTreeMap;

use polygram_domain::Step;

use super::page::Page;
use super::{ChainHash, Entry};
use crate::config::ConfigHash;
use crate::fault::Fault;

/// Everything wrong that was found, in the order of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub(crate) fn note(&mut self, key: &str, reason: String) {
        self.0.push(Fault { key: key.to_owned(), reason });
    }
}

/// The lines that count, each step once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What it begins behind: a state version and its hash; 0 and the genesis for a whole run.
    base: Option<(u64, ChainHash)>,
    /// Versions with their hashes whose lines are in the ledgers of other runs, from which checkpoints were taken.
    imported: BTreeMap<u64, ChainHash>,
    /// Each with its configuration's place in the list.
    entries: BTreeMap<u64, (Entry, usize)>,
    configs: Vec<ConfigHash>,
}

impl Chain {
    /// The lines, ascending by step.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|(entry, _)| entry)
    }

    /// The line of the step that made version `step`.
    pub fn at(&self, step: Step) -> Option<&Entry> {
        self.entries.get(&step.0).map(|(entry, _)| entry)
    }

    /// The configuration that the step was done with.
    pub fn config_at(&self, step: Step) -> Option<&ConfigHash> {
        self.entries.get(&step.0).and_then(|(_, config)| self.configs.get(*config))
    }

    /// The hash of the line of version `step`, or of a checkpoint that the run began from.
    pub fn hash_at(&self, step: Step) -> Option<ChainHash> {
        match (self.at(step), self.base) {
            (Some(entry), _) => Some(entry.hash()),
            (None, Some((base, hash))) if base == step.0 => Some(hash),
            (None, None) if step.0 == 0 => Some(ChainHash::genesis()),
            _ => self.imported.get(&step.0).copied(),
        }
    }

    /// The newest version.
    pub fn last(&self) -> Step {
        let last = self.entries.last_key_value().map(|(step, _)| *step);
        Step(last.or(self.base.map(|(base, _)| base)).unwrap_or(0))
    }

    /// Takes an object's lines. Those that cannot be where they are said to be are told, and the chain goes on.
    pub(super) fn take(&mut self, page: &Page, faults: &mut Faults) {
        let Page { key, heading, entries } = page;
        let after = heading.after;
        if heading.imported || after.0 == 0 {
            // A run that began from another one's checkpoint, or anew.
            if after.0 == 0 && heading.head != ChainHash::genesis() {
                faults.note(key, "it begins with another hash than every ledger".into());
            }
            if heading.imported && !self.entries.is_empty() && self.hash_at(after) != Some(heading.head) {
                faults.note(key, format!("it begins anew from step {after}, behind lines of another past"));
            }
            if self.hash_at(after).is_none() {
                self.entries.clear();
                self.base = Some((after.0, heading.head));
            }
            if heading.imported {
                self.imported.insert(after.0, heading.head);
            }
        } else {
            match self.hash_at(after) {
                Some(found) if found == heading.head => {}
                Some(found) => faults.note(
                    key,
                    format!(
                        "the chain is broken: it continues step {after} with hash {}, but that line's hash is {found}",
                        heading.head
                    ),
                ),
                None => faults.note(
                    key,
                    format!("steps {} to {after} are missing before it", self.last().0.min(after.0) + 1),
                ),
            }
        }
        self.entries.split_off(&after.0.saturating_add(1));
        let known = self.configs.iter().position(|config| *config == heading.config);
        let config = known.unwrap_or_else(|| {
            self.configs.push(heading.config.clone());
            self.configs.len() - 1
        });
        let mut last = (after.0, heading.head);
        for entry in entries {
            let step = entry.step;
            if step <= last.0 {
                faults.note(key, format!("step {step} is there twice"));
                continue;
            }
            if step > last.0 + 1 {
                let (first, end) = (last.0 + 1, step - 1);
                let what = if first == end {
                    format!("step {first} is")
                } else {
                    format!("steps {first} to {end} are")
                };
                faults.note(key, format!("{what} missing before step {step}"));
            } else if entry.prev != last.1 {
                faults.note(
                    key,
                    format!(
                        "the chain is broken at step {step}: it names {} as the hash of the line before, which is {}",
                        entry.prev, last.1
                    ),
                );
            }
            self.entries.insert(step, (*entry, config));
            last = (step, entry.hash());
        }
    }
}
