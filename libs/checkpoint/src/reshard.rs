//! A checkpoint written again as another topology would have written it, so that its members load whole objects.
//!
//! The logical state stays: its digest is taken of what was written, before the commit, and must be the old one.

use std::ops::Range;

use futures::TryStreamExt;
use polygram_domain::layout::{EXP_AVG, EXP_AVG_SQ};
use polygram_domain::tables::buckets_of;
use polygram_domain::{Rank, RankLayout, RunSpec, ShardIndex};

use crate::commit::Committed;
use crate::cover::expected_tables;
use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::manifest::{Manifest, ManifestHeader};
use crate::object::{Content, ObjectEntry, Part, PartRef, RowScope};
use crate::row_io::{OwnedRow, RowWriter};
use crate::rows::{RowRecord, RowSet, TableShape};
use crate::store::RunStore;
use crate::tensors::NamedTensor;

/// Where a checkpoint goes that is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Into a run that has no checkpoint of this step.
    Beside,
    /// Over the one it was made from: its manifest is replaced by one write, its objects become garbage. Nobody may lead
    /// the run meanwhile, for retention would take the new objects for garbage.
    InPlace,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resharded {
    /// The new checkpoint.
    pub manifest: Manifest,
    /// Its logical digest, which is the old one's.
    pub digest: Digest,
    /// Whether it was there before.
    pub committed: Committed,
}

/// Where a checkpoint is written in another topology.
#[derive(Debug)]
pub struct ReshardTarget<'a> {
    /// The run that gets it; its configuration is there already.
    pub store: &'a RunStore,
    /// Whether it replaces a checkpoint there.
    pub placement: Placement,
    /// The run's specification there, with its topology.
    pub spec: &'a RunSpec,
    /// Head of the manifest that is committed there.
    pub header: ManifestHeader,
}

impl RunStore {
    /// Writes the checkpoint `manifest` of this run to `target` as the topology there divides it, and commits it there.
    ///
    /// Memory holds the part of one object that a member needs, about 128 MiB.
    ///
    /// Errors: as reading and committing; [`CheckpointError::Input`] if what was written has another digest.
    pub async fn reshard(
        &self,
        manifest: &Manifest,
        target: ReshardTarget<'_>,
    ) -> Result<Resharded, CheckpointError> {
        let ReshardTarget { store: target, placement, spec, header } = target;
        let mut parts = Vec::new();
        for rank in (0..spec.topology.workers).map(Rank) {
            parts.push(self.copy_dense(manifest, target, spec, rank).await?);
        }
        for shard in (0..spec.topology.shards).map(ShardIndex) {
            parts.push(self.copy_rows(manifest, target, spec, shard).await?);
        }
        if let Some(first) = parts.first_mut() {
            first.cursor = Some(manifest.cursor);
            first.table_decay = manifest.table_decay;
        }
        let written = Manifest::assemble(spec, header, &parts)?;
        let (before, digest) = (self.digest(manifest).await?, target.digest(&written).await?);
        if before != digest {
            let reason =
                format!("what was written has digest {}, the original {}", digest.digest, before.digest);
            return Err(CheckpointError::input(format!("the checkpoint of step {}", manifest.step), reason));
        }
        let committed = match placement {
            Placement::Beside => {
                // The line that the manifest names stays in the ledger of the run that has trained the step.
                if let Some(head) = written.ledger {
                    target.import_ledger(written.step, head, written.config.clone()).await?;
                }
                target.commit(&written).await?
            }
            Placement::InPlace => target.replace(&written).await?,
        };
        Ok(Resharded { manifest: written, digest, committed })
    }

    /// What `rank` updates: that part of the weights and their moments, object by object.
    async fn copy_dense(
        &self,
        manifest: &Manifest,
        target: &RunStore,
        spec: &RunSpec,
        rank: Rank,
    ) -> Result<Part, CheckpointError> {
        let what = || format!("the part of rank {rank}");
        let layout = RankLayout::of(&spec.model, &spec.topology, rank)
            .map_err(|reason| CheckpointError::input(what(), reason))?;
        let member = format!("worker-{rank}");
        let mut objects = Vec::new();
        for entry in manifest.objects.iter().filter(|e| matches!(e.content, Content::Tensors { .. })) {
            let own = |name: &str| own_elements(&layout, name);
            let tensors: Vec<NamedTensor> =
                self.tensor_parts(entry, |tensor| own(&tensor.name)).try_collect().await?;
            objects.extend(target.write_tensors(manifest.step, &member, tensors).await?);
        }
        Ok(Part { member, step: manifest.step, objects, cursor: None, table_decay: None })
    }

    /// The rows of the buckets of `shard`, object by object.
    async fn copy_rows(
        &self,
        manifest: &Manifest,
        target: &RunStore,
        spec: &RunSpec,
        shard: ShardIndex,
    ) -> Result<Part, CheckpointError> {
        let (member, buckets) = (format!("shard-{shard}"), buckets_of(shard, spec.topology.shards));
        let mut objects = Vec::new();
        for shape in expected_tables(spec) {
            let part = PartRef { step: manifest.step, member: &member };
            let rows = RowSet { shape, scope: RowScope::All };
            let mut writer = RowWriter::new(target, part, rows, buckets.clone())?;
            for piece in pieces(manifest, &shape, &buckets) {
                let mut rows: Vec<OwnedRow> = Vec::new();
                self.read_rows::<CheckpointError>(manifest, shape.table, piece, |record| {
                    let RowRecord { row, updates, values } = record;
                    rows.push(OwnedRow { row, updates, values: values.to_vec() });
                    Ok(())
                })
                .await?;
                for OwnedRow { row, updates, values } in &rows {
                    writer.push(RowRecord { row: *row, updates: *updates, values }).await?;
                }
            }
            objects.extend(writer.finish().await?);
        }
        Ok(Part { member, step: manifest.step, objects, cursor: None, table_decay: None })
    }
}

/// The elements of a state tensor that a rank writes into checkpoints: of a weight those whose moments it has.
fn own_elements(layout: &RankLayout, name: &str) -> Option<Range<u64>> {
    let is_moment = name.starts_with(EXP_AVG) || name.starts_with(EXP_AVG_SQ);
    if is_moment { layout.needed(name) } else { layout.needed(&format!("{EXP_AVG}{name}")) }
}

/// `buckets` cut where the objects that hold them end, so that one object's rows are in memory at a time.
fn pieces(manifest: &Manifest, shape: &TableShape, buckets: &Range<u32>) -> Vec<Range<u32>> {
    let mut pieces = Vec::new();
    let mut next = buckets.start;
    let ends = manifest.row_objects(shape.table).into_iter().map(|(range, _): (_, &ObjectEntry)| range.end);
    for end in ends.chain([buckets.end]) {
        let end = end.min(buckets.end);
        if end > next {
            pieces.push(next..end);
            next = end;
        }
    }
    pieces
}
