//! What one rank holds of the dense parameters, where it lies in the rank's flat buffers, and which part of it the rank
//! updates.
//!
//! ```text
//! flat buffer:  embedding | layer 0 | layer 0's own experts | layer 1 | … | final norm and head
//! ```
//! Each piece is a [`Bucket`]: the gradient of one is complete when backward has passed it, and is summed over the
//! ranks that hold it while backward goes on. Optimizer state is divided: within every bucket each of those ranks
//! updates one run of whole blocks ([`crate::square_sum::BLOCK`]) and has moments for no other (ZeRO stage 1,
//! Rajbhandari et al., 1910.02054, §5.1), so that the bits do not depend on the division.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::ids::Rank;
use crate::layout::{ParameterSpec, StatePart, dense_parameters, state_part};
use crate::model::ModelSpec;
use crate::square_sum::BLOCK;
use crate::topology::{SumGroup, Topology};
use crate::word_hash::{mix, word_hash};

/// One named tensor of a rank's flat buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name, shape and kind.
    pub spec: ParameterSpec,
    /// Its position among all dense parameters of the model, in canonical order.
    pub number: usize,
    /// Its elements in the flat buffer.
    pub range: Range<usize>,
}

/// A run of the flat buffer whose gradient is summed at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// Its elements.
    pub range: Range<usize>,
    /// Who has it too.
    pub group: SumGroup,
    /// Where the parts of the group's ranks begin and end, counted from the bucket's start: ranks + 1 numbers.
    pub edges: Vec<usize>,
    /// The part that this rank updates.
    pub own: Range<usize>,
}

/// The dense parameters of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct RankLayout {
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    buckets: Vec<Bucket>,
    experts: Range<u32>,
    /// Names of the parameters that only other ranks hold.
    elsewhere: HashSet<String>,
    /// Blocks of every dense parameter of the model, in canonical order.
    blocks: Vec<usize>,
    len: usize,
}

impl RankLayout {
    /// All parameters on one rank.
    ///
    /// # Errors
    /// As [`RankLayout::of`].
    pub fn whole(model: &ModelSpec) -> Result<RankLayout, String> {
        RankLayout::of(model, &Topology { workers: 1, expert_parallel: 1, shards: 1 }, Rank(0))
    }

    /// The parameters of `rank`: everything but the experts of other ranks.
    ///
    /// # Errors
    /// Where the parameters would not fit an address space.
    pub fn of(model: &ModelSpec, topology: &Topology, rank: Rank) -> Result<RankLayout, String> {
        let experts = topology.experts_of(rank, model.moe.experts);
        let all = dense_parameters(model);
        let blocks = all.iter().map(|spec| (spec.elements() as usize).div_ceil(BLOCK)).collect();
        // Embedding, layers, head; within a layer its experts last, while the canonical order has the router behind them.
        let mut below_layers = true;
        let (mut places, mut elsewhere) = (Vec::new(), HashSet::new());
        for (number, spec) in all.into_iter().enumerate() {
            let place = match spec.layer {
                Some(layer) => (u64::from(layer) + 1, spec.expert.is_some()),
                None if below_layers => (0, false),
                None => (u64::MAX, false),
            };
            below_layers &= spec.layer.is_none();
            if spec.expert.is_none_or(|expert| experts.contains(&expert)) {
                places.push((place, number, spec));
            } else {
                elsewhere.insert(spec.name);
            }
        }
        places.sort_by_key(|(place, number, _)| (*place, *number));

        let mut layout = RankLayout {
            entries: Vec::new(),
            by_name: HashMap::new(),
            buckets: Vec::new(),
            experts,
            elsewhere,
            blocks,
            len: 0,
        };
        let mut open = None;
        let mut starts = Vec::new();
        for (place, number, spec) in places {
            let len = layout.len;
            let end = usize::try_from(spec.elements())
                .ok()
                .and_then(|elements| len.checked_add(elements))
                .filter(|&end| end <= isize::MAX as usize / 4)
                .ok_or_else(|| {
                    format!("{} of shape {:?} does not fit an address space", spec.name, spec.shape)
                })?;
            if open != Some(place) {
                open = Some(place);
                starts.push((layout.entries.len(), place.1));
            }
            layout.by_name.insert(spec.name.clone(), layout.entries.len());
            layout.entries.push(Entry { spec, number, range: len..end });
            layout.len = end;
        }
        let ends = starts.iter().skip(1).map(|(first, _)| *first).chain([layout.entries.len()]);
        layout.buckets = starts
            .iter()
            .zip(ends)
            .map(|(&(first, of_experts), end)| {
                let group = if of_experts { SumGroup::SameExperts } else { SumGroup::Workers };
                let (ranks, seat) = topology.seat_in(group, rank);
                bucket(&layout.entries[first..end], group, (ranks, seat))
            })
            .collect();
        Ok(layout)
    }

    /// Values in the flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none; no legal model is so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors, in the order of the flat buffer.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor called `name`; `None` where this rank does not hold it.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&index| &self.entries[index])
    }

    /// Whether the model has a parameter called `name` that only other ranks hold.
    pub fn is_elsewhere(&self, name: &str) -> bool {
        self.elsewhere.contains(name)
    }

    /// The experts that this rank holds, of every layer.
    pub fn experts(&self) -> Range<u32> {
        self.experts.clone()
    }

    /// The buckets, in the order of the flat buffer: embedding, then each layer and its experts, then the head.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The bucket of the embedding.
    pub fn embedding_bucket(&self) -> usize {
        0
    }

    /// The bucket of `layer` without its experts; its experts' is the next one.
    pub fn layer_bucket(&self, layer: usize) -> usize {
        1 + 2 * layer
    }

    /// The bucket of the final norm and the head.
    pub fn head_bucket(&self) -> usize {
        self.buckets.len() - 1
    }

    /// Values that this rank updates, and has moments for.
    pub fn own_len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.own.len()).sum()
    }

    /// What `range` holds of each tensor, with the tensor's own elements, in order.
    pub fn within(&self, range: Range<usize>) -> impl Iterator<Item = (&Entry, Range<usize>)> {
        let first = self.entries.partition_point(|entry| entry.range.end <= range.start);
        self.entries[first..].iter().take_while(move |entry| entry.range.start < range.end).map(
            move |entry| {
                let start = entry.range.start;
                (entry, range.start.max(start) - start..range.end.min(entry.range.end) - start)
            },
        )
    }

    /// The elements that this rank needs of the state tensor called `name`: all of a weight that it holds, of a moment
    /// those that it updates, and none of what only others hold.
    pub fn needed(&self, name: &str) -> Option<Range<u64>> {
        let (part, parameter) = state_part(name);
        let entry = self.get(parameter)?;
        if part == StatePart::Weight {
            return Some(0..entry.range.len() as u64);
        }
        let bucket = self.buckets.iter().find(|bucket| bucket.range.contains(&entry.range.start));
        let own = bucket.map_or(0..0, |bucket| bucket.own.clone());
        let start = own.start.clamp(entry.range.start, entry.range.end) - entry.range.start;
        let end = own.end.clamp(entry.range.start, entry.range.end) - entry.range.start;
        (start < end).then_some(start as u64..end as u64)
    }

    /// The blocks that this rank updates: the tensor's canonical number and the blocks of it, in the order in which
    /// [`RankLayout::own_square_sums`] goes through them.
    pub fn own_blocks(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.buckets
            .iter()
            .flat_map(|bucket| self.within(bucket.own.clone()))
            .map(|(entry, elements)| (entry.number, elements.start / BLOCK..elements.end.div_ceil(BLOCK)))
    }

    /// Sums of squares of the blocks that this rank updates of bucket `index`, whose summed gradient is `gradient`.
    pub fn own_square_sums(&self, index: usize, gradient: &[f32]) -> Vec<f64> {
        let Bucket { range, own, .. } = &self.buckets[index];
        let mut sums = Vec::with_capacity(own.len().div_ceil(BLOCK));
        for (entry, elements) in self.within(own.clone()) {
            let start = entry.range.start - range.start;
            let values = &gradient[start + elements.start..start + elements.end];
            sums.extend(values.chunks(BLOCK).map(crate::square_sum::block_square_sum));
        }
        sums
    }

    /// Fingerprint of the blocks that this rank updates of the flat `weights`: a hash of each, named by its tensor and its
    /// place there, added up (wrapping). The sum over all ranks is that of the whole model, however it is divided.
    pub fn own_fingerprint(&self, weights: &[f32]) -> u64 {
        let mut sum = 0u64;
        for (entry, elements) in self.buckets.iter().flat_map(|bucket| self.within(bucket.own.clone())) {
            let start = entry.range.start;
            let values = &weights[start + elements.start..start + elements.end];
            for (block, values) in (elements.start / BLOCK..).zip(values.chunks(BLOCK)) {
                let name = mix((entry.number as u64) << 40 ^ block as u64);
                sum = sum.wrapping_add(mix(word_hash(bytemuck::cast_slice(values), name)));
            }
        }
        sum
    }

    /// Blocks of every dense parameter of the model, in canonical order.
    pub fn blocks(&self) -> &[usize] {
        &self.blocks
    }
}

/// Copies what `values`, elements `range` of a flat buffer, have of its part `own` to `kept`, where that part begins at
/// `at`.
pub fn copy_own(
    (range, values): (&Range<usize>, &[f32]),
    (own, at): (&Range<usize>, usize),
    kept: &mut [f32],
) {
    let (from, to) = (own.start.max(range.start), own.end.min(range.end));
    if from < to {
        kept[at + from - own.start..at + to - own.start]
            .copy_from_slice(&values[from - range.start..to - range.start]);
    }
}

/// The bucket of neighbouring `entries`, divided among `ranks`, of which this is number `seat`.
fn bucket(entries: &[Entry], group: SumGroup, (ranks, seat): (u32, u32)) -> Bucket {
    let range = entries[0].range.start..entries[entries.len() - 1].range.end;
    let edge = |rank: u32| {
        let wanted = range.start + (range.len() as u128 * u128::from(rank) / u128::from(ranks)) as usize;
        let entry = entries.iter().find(|entry| entry.range.contains(&wanted));
        let at =
            entry.map_or(range.end, |entry| entry.range.start + (wanted - entry.range.start) / BLOCK * BLOCK);
        at - range.start
    };
    let edges: Vec<usize> = (0..=ranks).map(edge).collect();
    let own = range.start + edges[seat as usize]..range.start + edges[seat as usize + 1];
    Bucket { range, group, edges, own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{EXP_AVG, EXP_AVG_SQ};
    use crate::run_file::RunFile;

    fn model() -> ModelSpec {
        let text = include_str!("../../../configs/tiny.toml");
        RunFile::parse(text, "tiny", &[]).and_then(|file| file.resolve()).unwrap().model
    }

    /// Whoever holds what, the sum over ranks is one number, and every element of every tensor counts in its place.
    #[test]
    fn fingerprints_add_up_to_that_of_the_whole_model() {
        let model = model();
        let value = |number: usize, element: usize| ((number * 7919 + element) as f32 * 0.37).sin();
        let fill = |layout: &RankLayout| -> Vec<f32> {
            let of =
                |entry: &Entry| (0..entry.range.len()).map(|e| value(entry.number, e)).collect::<Vec<_>>();
            layout.entries().iter().flat_map(of).collect()
        };
        let whole = RankLayout::whole(&model).unwrap();
        let weights = fill(&whole);
        let wanted = whole.own_fingerprint(&weights);
        for (workers, expert_parallel) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 4), (8, 1)] {
            let topology = Topology { workers, expert_parallel, shards: 1 };
            let layouts = (0..workers).map(|rank| RankLayout::of(&model, &topology, Rank(rank)).unwrap());
            let sum = layouts.map(|layout| layout.own_fingerprint(&fill(&layout)));
            assert_eq!(sum.fold(0, u64::wrapping_add), wanted, "{workers} workers, {expert_parallel}");
        }
        for at in (0..weights.len()).step_by(weights.len() / 97).chain([weights.len() - 1]) {
            let mut other = weights.clone();
            other[at] = f32::from_bits(other[at].to_bits() ^ 1);
            assert_ne!(whole.own_fingerprint(&other), wanted, "element {at}");
        }
        let mut swapped = weights.clone();
        swapped.swap(0, 1);
        assert_ne!(whole.own_fingerprint(&swapped), wanted);
    }

    /// Every parameter is held by somebody, and every trained block updated by exactly one rank.
    #[test]
    fn ranks_divide_blocks_exactly() {
        let model = model();
        let names: Vec<String> = dense_parameters(&model).into_iter().map(|spec| spec.name).collect();
        for (workers, expert_parallel) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 4), (8, 1)] {
            let topology = Topology { workers, expert_parallel, shards: 1 };
            let mut seen: Vec<Vec<u32>> = Vec::new();
            for rank in (0..workers).map(Rank) {
                let layout = RankLayout::of(&model, &topology, rank).unwrap();
                seen.resize(layout.blocks().len(), Vec::new());
                for (number, blocks) in layout.own_blocks() {
                    seen[number].resize(layout.blocks()[number], 0);
                    blocks.for_each(|block| seen[number][block] += 1);
                }
                assert_eq!(layout.buckets().last().unwrap().range.end, layout.len());
                assert!(names.iter().all(|name| layout.get(name).is_some() != layout.is_elsewhere(name)));
                assert!(!layout.is_elsewhere("model.layers.0.mlp.experts.99.up_proj.weight"));
                assert!(
                    layout.own_len() * workers as usize
                        <= layout.len() * expert_parallel as usize + 40 * BLOCK
                );
                for (entry, next) in layout.entries().iter().zip(&layout.entries()[1..]) {
                    assert_eq!(entry.range.end, next.range.start);
                }
            }
            for (name, blocks) in names.iter().zip(&seen) {
                assert!(
                    !blocks.is_empty() && blocks.iter().all(|&count| count == 1),
                    "{workers} {name}: {blocks:?}"
                );
            }
        }
    }

    /// Over all ranks moments are needed once, weights by everybody who holds them.
    #[test]
    fn what_ranks_need_is_what_they_hold() {
        let model = model();
        let topology = Topology { workers: 4, expert_parallel: 2, shards: 1 };
        let layouts: Vec<RankLayout> =
            (0..4).map(|rank| RankLayout::of(&model, &topology, Rank(rank)).unwrap()).collect();
        for spec in dense_parameters(&model) {
            let needed = |layout: &RankLayout, prefix: &str| layout.needed(&format!("{prefix}{}", spec.name));
            let mut moments: Vec<u64> = Vec::new();
            for layout in &layouts {
                let whole = (!layout.is_elsewhere(&spec.name)).then_some(0..spec.elements());
                assert_eq!(needed(layout, ""), whole);
                let own = needed(layout, EXP_AVG);
                assert_eq!(own, needed(layout, EXP_AVG_SQ));
                moments.extend(own.into_iter().flatten());
            }
            moments.sort_unstable();
            assert!(moments.into_iter().eq(0..spec.elements()), "{}", spec.name);
        }
        assert_eq!(layouts[0].needed("no.such.weight"), None);
    }

    #[test]
    fn buckets_are_embedding_layers_and_head() {
        let model = model();
        let layout = RankLayout::whole(&model).unwrap();
        let of = |name: &str| {
            let range = layout.get(name).unwrap().range.clone();
            layout.buckets().iter().position(|bucket| bucket.range.contains(&range.start)).unwrap()
        };
        assert_eq!(of("model.embed_tokens.weight"), layout.embedding_bucket());
        assert_eq!(of("model.layers.1.mlp.router.classifier.weight"), layout.layer_bucket(1));
        assert_eq!(of("model.layers.1.mlp.experts.0.down_proj.weight"), layout.layer_bucket(1) + 1);
        assert_eq!(of("lm_head.weight"), layout.head_bucket());
        assert_eq!(layout.buckets().len(), 2 * model.num_layers as usize + 2);
    }

    /// Sums of squares by rank, put together in canonical order, are those of the whole.
    #[test]
    fn square_sums_do_not_depend_on_the_division() {
        let model = model();
        let value =
            |number: usize, element: usize| ((number * 31 + element * 7919) % 1009) as f32 * 1e-3 - 0.5;
        let sums = |workers, expert_parallel| {
            let topology = Topology { workers, expert_parallel, shards: 1 };
            let mut sums: Vec<Vec<f64>> = Vec::new();
            for rank in (0..workers).map(Rank) {
                let layout = RankLayout::of(&model, &topology, rank).unwrap();
                sums.resize(layout.blocks().len(), Vec::new());
                let mut found = Vec::new();
                for (index, bucket) in layout.buckets().iter().enumerate() {
                    let mut gradient = vec![0.0; bucket.range.len()];
                    for (entry, elements) in layout.within(bucket.range.clone()) {
                        for element in elements {
                            gradient[entry.range.start - bucket.range.start + element] =
                                value(entry.number, element);
                        }
                    }
                    found.extend(layout.own_square_sums(index, &gradient));
                }
                let mut found = found.into_iter();
                for (number, blocks) in layout.own_blocks() {
                    sums[number].resize(layout.blocks()[number], 0.0);
                    blocks.for_each(|block| sums[number][block] = found.next().unwrap());
                }
                assert!(found.next().is_none());
            }
            sums
        };
        let whole = sums(1, 1);
        assert_eq!(whole, sums(4, 2));
        assert_eq!(whole, sums(8, 1));
    }
}
