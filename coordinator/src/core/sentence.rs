//! Waiting reasons in plain words.

use std::collections::BTreeSet;

use polygram_domain::control::{MemberRef, Role};
use polygram_domain::words;

use super::state::State;

/// Members named before the rest is only counted.
const NAMED: usize = 4;

impl State {
    /// "waiting for 1 of 2 shards: shard 1".
    pub(super) fn waiting_to_join(&self) -> String {
        let missing = self.slots().filter(|slot| self.membership.get(*slot).is_none()).collect();
        format!("waiting for {}", self.some_of(&missing, ""))
    }

    /// "waiting for 1 of 2 shards to be ready: shard 1", for members that are not `done`.
    pub(super) fn waiting_for(&self, verb: &str, done: impl Fn(&MemberRef) -> bool) -> String {
        let missing = self.slots().filter(|slot| !done(slot)).collect();
        format!("waiting for {}", self.some_of(&missing, &format!(" {verb}")))
    }

    fn some_of(&self, missing: &BTreeSet<MemberRef>, verb: &str) -> String {
        let topology = self.settings.topology;
        let role = |role: Role, all: u32| {
            let names: Vec<String> =
                missing.iter().filter(|m| m.role == role).map(MemberRef::to_string).collect();
            if names.is_empty() {
                return None;
            }
            let of_all = words::counted(all.into(), &role.to_string());
            let rest = names.len().saturating_sub(NAMED);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            let named = names[..names.len() - rest].join(", ");
            Some(format!("{} of {of_all}{verb}: {named}{more}", names.len()))
        };
        let parts: Vec<String> = [role(Role::Worker, topology.workers), role(Role::Shard, topology.shards)]
            .into_iter()
            .flatten()
            .collect();
        parts.join(" and ")
    }
}
