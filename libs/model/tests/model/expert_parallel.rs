//! Experts divided over ranks: the same bits as on one rank, whatever the division, and what happens when ranks do not
//! fit each other.

use std::time::Duration;

use polygram_collective::{Local, Options as GroupOptions};
use polygram_domain::model::Placement;
use polygram_domain::run_spec::ComputeType;
use polygram_domain::{ModelSpec, Rank, RankLayout, Topology};
use polygram_model::{CellOutput, Model, ModelError, Options};

use crate::fixture::{RandomCell, bits, options};
use crate::placements::{sites, small};

/// Targets of the step.
const GLOBAL: u64 = 120;

/// Sums of buckets as they left a rank.
type Sums = Vec<(usize, Vec<f32>)>;

struct RankResult {
    layout: RankLayout,
    outputs: Vec<Option<CellOutput>>,
    sums: Sums,
    evaluated: Vec<f64>,
}

fn run_rank(
    spec: &ModelSpec,
    options: Options,
    (ranks, seat): (u32, Local),
    cells: &[Option<RandomCell>],
) -> Result<RankResult, ModelError> {
    let topology = Topology { workers: ranks, expert_parallel: ranks, shards: 1 };
    let rank = Rank(polygram_collective::Collective::rank(&seat).0);
    let layout = RankLayout::of(spec, &topology, rank).unwrap();
    let mut model = Model::of_rank(spec, options, layout.clone())?;
    model.init(3)?;
    if ranks > 1 {
        model.join(Box::new(seat))?;
    }
    let (mut sums, mut outputs, mut evaluated) = (Sums::new(), Vec::new(), Vec::new());
    for (index, cell) in cells.iter().enumerate() {
        let mut take = |bucket: usize, sum: Vec<f32>| sums.push((bucket, sum));
        let last = index + 1 == cells.len();
        let take = last.then_some(&mut take as &mut polygram_model::TakeBucket<'_>);
        outputs.push(match cell {
            Some(cell) => Some(model.forward_backward(&cell.input(GLOBAL), take)?),
            None => {
                model.assist(take)?;
                None
            }
        });
    }
    for cell in cells {
        match cell {
            Some(cell) => evaluated.push(model.evaluate(&cell.input(GLOBAL))?),
            None => model.assist_evaluation()?,
        }
    }
    Ok(RankResult { layout, outputs, sums, evaluated })
}

/// `cells` over `ranks`, in runs.
fn run(spec: &ModelSpec, options: &Options, ranks: u32, cells: &[Option<RandomCell>]) -> Vec<RankResult> {
    let group = GroupOptions::new("experts", Duration::from_secs(20));
    let seats = Local::ranks(ranks, &group);
    let each = cells.len() / ranks as usize;
    std::thread::scope(|scope| {
        let threads: Vec<_> = seats
            .into_iter()
            .zip(cells.chunks(each))
            .map(|(seat, cells)| {
                let options = options.clone();
                scope.spawn(move || run_rank(spec, options, (ranks, seat), cells).unwrap())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The gradient of every tensor, by name: dense parts summed over ranks along the tree.
fn gradient(ranks: &[RankResult]) -> Vec<(String, Vec<u32>)> {
    let mut found: Vec<(String, Vec<f32>)> = Vec::new();
    let of_rank = |rank: &RankResult| {
        let mut flat = vec![f32::NAN; rank.layout.len()];
        for (bucket, sum) in &rank.sums {
            flat[rank.layout.buckets()[*bucket].range.clone()].copy_from_slice(sum);
        }
        flat
    };
    let flats: Vec<Vec<f32>> = ranks.iter().map(of_rank).collect();
    for (rank, flat) in ranks.iter().zip(&flats) {
        for entry in rank.layout.entries() {
            if found.iter().any(|(name, _)| *name == entry.spec.name) {
                continue;
            }
            let own = flat[entry.range.clone()].to_vec();
            let values = if entry.spec.expert.is_some() || ranks.len() == 1 {
                own
            } else {
                let part = |index: usize| {
                    let range = ranks[index].layout.get(&entry.spec.name).unwrap().range.clone();
                    flats[index][range].to_vec()
                };
                tree((0..ranks.len()).map(part).collect())
            };
            found.push((entry.spec.name.clone(), values));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.into_iter().map(|(name, values)| (name, bits(&values))).collect()
}

fn tree(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    while parts.len() > 1 {
        let add = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect();
        parts = parts.chunks(2).map(add).collect();
    }
    parts.remove(0)
}

#[test]
fn any_division_of_the_experts_gives_the_same_bits() {
    for placement in [Placement::Input, Placement::PerLayerNgram] {
        for (compute, recompute) in
            [(ComputeType::F32, false), (ComputeType::F32, true), (ComputeType::Bf16, false)]
        {
            let spec = small(placement);
            let options = Options { compute, recompute, ..options(2) };
            // Uneven cells.
            let cell =
                |seed: u64| Some(RandomCell::new(&spec, sites(&spec), 40 + seed, (1 + seed as usize % 3, 9)));
            let cells: Vec<_> = (0..4).map(cell).collect();
            let alone = run(&spec, &options, 1, &cells);
            let wanted = gradient(&alone);
            for ranks in [2, 4] {
                let case = format!("{placement:?}, {compute:?}, recompute {recompute}, {ranks} ranks");
                let divided = run(&spec, &options, ranks, &cells);
                let outputs: Vec<_> = divided.iter().flat_map(|rank| rank.outputs.iter().flatten()).collect();
                assert!(outputs.into_iter().eq(alone[0].outputs.iter().flatten()), "{case}: outputs");
                let evaluated: Vec<f64> = divided.iter().flat_map(|rank| rank.evaluated.clone()).collect();
                assert_eq!(evaluated, alone[0].evaluated, "{case}");
                let found = gradient(&divided);
                assert_eq!(found.len(), wanted.len(), "{case}");
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert!(found == wanted, "{case}: gradient of {}", wanted.0);
                }
            }
        }
    }
}

/// Every bucket leaves once, from the head down, while the cell is still in backward.
#[test]
fn buckets_leave_in_the_order_of_backward() {
    let spec = small(Placement::Input);
    let cells = [Some(RandomCell::new(&spec, 1, 7, (2, 9)))];
    let ranks = run(&spec, &options(2), 1, &cells);
    let order: Vec<usize> = ranks[0].sums.iter().map(|(bucket, _)| *bucket).collect();
    assert_eq!(order, [5, 4, 3, 2, 1, 0]);
}

/// A rank without a cell still computes its experts for the others.
#[test]
fn a_rank_without_a_cell_assists() {
    let spec = small(Placement::Input);
    let cells: Vec<_> = (0..3).map(|seed| Some(RandomCell::new(&spec, 1, 60 + seed, (2, 9)))).collect();
    let alone = run(&spec, &options(2), 1, &cells);
    let mut with_nothing = cells;
    with_nothing.push(None);
    let divided = run(&spec, &options(2), 2, &with_nothing);
    let outputs: Vec<_> = divided.iter().flat_map(|rank| rank.outputs.iter().flatten()).collect();
    assert!(outputs.into_iter().eq(alone[0].outputs.iter().flatten()));
    for (found, wanted) in gradient(&divided).into_iter().zip(gradient(&alone)) {
        // Zeros may lose their sign.
        let value = |bits: &u32| f32::from_bits(*bits);
        assert!(found.1.iter().map(value).eq(wanted.1.iter().map(value)), "{}", wanted.0);
    }
}

#[test]
fn a_seat_that_does_not_fit_the_experts_is_refused() {
    let spec = small(Placement::Input);
    let group = GroupOptions::new("experts", Duration::from_secs(20));
    let mut seats = Local::ranks(2, &group);
    let mut whole = Model::new(&spec, options(2)).unwrap();
    let error = whole.join(Box::new(seats.remove(0))).unwrap_err().to_string();
    assert!(error.contains("0..4 of 4") && error.contains("seat 0 of 2"), "{error}");
    let topology = Topology { workers: 2, expert_parallel: 2, shards: 1 };
    let layout = RankLayout::of(&spec, &topology, Rank(0)).unwrap();
    let mut first = Model::of_rank(&spec, options(2), layout).unwrap();
    assert!(first.join(Box::new(seats.remove(0))).is_err(), "the experts of seat 0 on seat 1");
}

/// A rank of another precision is found out by what it sends, on both sides.
#[test]
fn ranks_of_another_configuration_are_found_out() {
    let spec = small(Placement::Input);
    let group = GroupOptions::new("experts", Duration::from_secs(20));
    let cell = [Some(RandomCell::new(&spec, 1, 7, (2, 9)))];
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = Local::ranks(2, &group)
            .into_iter()
            .zip([ComputeType::F32, ComputeType::Bf16])
            .map(|(seat, compute)| {
                let (spec, cell) = (&spec, &cell);
                scope.spawn(move || run_rank(spec, Options { compute, ..options(2) }, (2, seat), cell).err())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.unwrap().to_string();
        assert!(error.contains(&format!("rank {}", 1 - rank)), "{error}");
    }
}
