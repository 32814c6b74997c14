//! The ledger in a store: its objects written, read, and held against what checkpoints say of it.

use bytes::Bytes;
use polygram_domain::Step;

use super::page::{Heading, Page};
use super::{Chain, ChainHash, Entry, Faults};
use crate::config::ConfigHash;
use crate::error::CheckpointError;
use crate::events::seal_lines;
use crate::keys;
use crate::segments::{Segment, SegmentId, StepSpan};
use crate::store::RunStore;

impl RunStore {
    /// Writes a segment of `attempt`'s ledger and answers its name. Writing the same again is no error; writing another is.
    ///
    /// Errors: [`CheckpointError::Input`] for lines that do not follow one another from the heading.
    pub async fn append_ledger(
        &self,
        attempt: u64,
        id: impl Into<SegmentId>,
        heading: &Heading,
        entries: &[Entry],
    ) -> Result<String, CheckpointError> {
        let first = heading.after.0.saturating_add(1);
        let span = StepSpan { first, last: entries.last().map_or(first, |entry| entry.step) };
        let key = Segment { attempt, id: id.into(), span }.key(keys::LEDGER);
        let refuse = |reason: String| CheckpointError::input(&key, reason);
        let mut last = (heading.after.0, heading.head);
        let mut text = serde_json::to_string(heading).map_err(|e| refuse(e.to_string()))? + "\n";
        for entry in entries {
            if (entry.step, entry.prev) != (last.0 + 1, last.1) {
                return Err(refuse(format!(
                    "the line of step {} does not follow that of step {}",
                    entry.step, last.0
                )));
            }
            last = (entry.step, entry.hash());
            text.push_str(&entry.line());
            text.push('\n');
        }
        self.put_once(&key, Bytes::from(seal_lines(&text))).await?;
        Ok(key)
    }

    /// Writes that the run has a checkpoint of version `after` from another run, in whose ledger the line with the hash `head`
    /// is. `config` is the configuration of that checkpoint. Writing it again is no error.
    ///
    /// The attempt of such an object is 0, which no coordinator has: the chain knows it before it reads lines.
    pub async fn import_ledger(
        &self,
        after: Step,
        head: ChainHash,
        config: ConfigHash,
    ) -> Result<(), CheckpointError> {
        let (chain, _) = self.read_ledger().await?;
        if chain.hash_at(after) == Some(head) {
            return Ok(());
        }
        let imports = self.segments(keys::LEDGER).await?.into_iter().filter(|segment| segment.attempt == 0);
        let seq = imports.map(|segment| segment.id.seq.saturating_add(1)).max().unwrap_or(0);
        let heading = Heading { after, head, config, imported: true };
        self.append_ledger(0, seq, &heading, &[]).await.map(drop)
    }

    /// The lines of the segment of the ledger that is named `key`, each as it was written; one that was cut or altered is
    /// an error.
    pub async fn read_ledger_lines(&self, key: &str) -> Result<Vec<Entry>, CheckpointError> {
        Ok(Page::read(key, &self.get(key).await?)?.entries)
    }

    /// Whether nothing of a ledger is there.
    pub async fn has_no_ledger(&self) -> Result<bool, CheckpointError> {
        Ok(self.segments(keys::LEDGER).await?.is_empty())
    }

    /// Reads the whole ledger: of every step the line that counts, and everything that is wrong, with its place. Where a
    /// line is missing, the chain goes on behind it. A store that fails is an error, not a fault.
    pub async fn read_ledger(&self) -> Result<(Chain, Faults), CheckpointError> {
        let read = |key: &str, bytes: Bytes| Page::read(key, &bytes);
        let (mut chain, mut faults) = (Chain::default(), Faults::default());
        let mut expected = (0, 0);
        for (segment, page) in self.read_segments(keys::LEDGER, |_| true, read).await? {
            let (key, Segment { attempt, id, .. }) = (segment.key(keys::LEDGER), segment);
            let wanted = if attempt == expected.0 { expected.1 } else { 0 };
            for seq in wanted..id.seq {
                let missing = Segment { attempt, id: seq.into(), span: StepSpan::ALL }.key(keys::LEDGER);
                faults.note(&missing, format!("it is missing, though {key} is there"));
            }
            expected = (attempt, id.seq.saturating_add(1));
            match page {
                Ok(page) => chain.take(&page, &mut faults),
                Err(error) => faults.note(&key, error.to_string()),
            }
        }
        Ok((chain, faults))
    }

    /// What is wrong with the run's ledger, and with what its checkpoints say of it.
    pub async fn verify_ledger(&self) -> Result<(Chain, Faults), CheckpointError> {
        // Checkpoints first: what they name is in the store by then.
        let mut heads = Vec::new();
        for step in self.committed_steps().await? {
            match self.read_manifest(step).await {
                // The ledger of recovery points lies in the run's own root.
                Ok(manifest) if !manifest.kind.is_commit() => {}
                Ok(manifest) => heads.extend(manifest.ledger.map(|head| (step, head))),
                // Retention may take it meanwhile, and damage of manifests is told where they are verified.
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        let (chain, mut faults) = self.read_ledger().await?;
        for (step, head) in heads {
            let key = keys::manifest(step);
            match chain.hash_at(step) {
                Some(found) if found == head => {}
                Some(found) => faults.note(
                    &key,
                    format!(
                        "it names {head} as the hash of the ledger's line of step {step}, which is {found}"
                    ),
                ),
                None => faults.note(&key, format!("the ledger has no line of its step {step}")),
            }
        }
        Ok((chain, faults))
    }
}
