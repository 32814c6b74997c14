//! Experts divided over ranks: the same bits as on one rank, whatever the division, and what happens when ranks do not
//! fit each other.

use std::time::Duration;

use polygram_collective::{Local, Options as GroupOptions};
use polygram_domain::model::Placement;
use polygram_domain::{ModelSpec, Rank, RankLayout, Topology};
use polygram_model::{CellOutput, Model, ModelError, Options, Products};

use crate::fixture::{Golden, TestCell, bits, floats, options, relative_error};
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

/// Fills a model's weights.
type Fill<'a> = dyn Fn(&mut Model) + Sync + 'a;

fn initial(model: &mut Model) {
    model.init(3).unwrap();
}

fn run_rank(
    (spec, fill): (&ModelSpec, &Fill<'_>),
    options: Options,
    (ranks, seat): (u32, Local),
    (cells, global): (&[Option<TestCell>], u64),
) -> Result<RankResult, ModelError> {
    let topology = Topology { workers: ranks, expert_parallel: ranks, shards: 1 };
    let rank = Rank(polygram_collective::Collective::rank(&seat).0);
    let layout = RankLayout::of(spec, &topology, rank).unwrap();
    let mut model = Model::of_rank(spec, options, layout.clone())?;
    fill(&mut model);
    if ranks > 1 {
        model.join(Box::new(seat), Box::new(|_| ()))?;
    }
    let (mut sums, mut outputs, mut evaluated) = (Sums::new(), Vec::new(), Vec::new());
    for (index, cell) in cells.iter().enumerate() {
        let mut take = |bucket: usize, sum: Vec<f32>| sums.push((bucket, sum));
        let last = index + 1 == cells.len();
        let take = last.then_some(&mut take as &mut polygram_model::TakeBucket<'_>);
        outputs.push(match cell {
            Some(cell) => Some(model.forward_backward(&cell.input(global), take)?),
            None => {
                model.assist(take)?;
                None
            }
        });
    }
    for cell in cells {
        match cell {
            Some(cell) => evaluated.push(model.evaluate(&cell.input(global))?),
            None => model.assist_evaluation()?,
        }
    }
    Ok(RankResult { layout, outputs, sums, evaluated })
}

/// `cells` over `ranks`, in runs.
fn run(spec: &ModelSpec, options: &Options, ranks: u32, cells: &[Option<TestCell>]) -> Vec<RankResult> {
    run_with((spec, &initial), options, ranks, (cells, GLOBAL))
}

fn run_with(
    model: (&ModelSpec, &Fill<'_>),
    options: &Options,
    ranks: u32,
    (cells, global): (&[Option<TestCell>], u64),
) -> Vec<RankResult> {
    let group = GroupOptions::new("experts", Duration::from_secs(20));
    let seats = Local::ranks(ranks, &group);
    let each = cells.len() / ranks as usize;
    std::thread::scope(|scope| {
        let threads: Vec<_> = seats
            .into_iter()
            .zip(cells.chunks(each))
            .map(|(seat, cells)| {
                let options = options.clone();
                scope.spawn(move || run_rank(model, options, (ranks, seat), (cells, global)).unwrap())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The bits of [`values`].
fn gradient(ranks: &[RankResult]) -> Vec<(String, Vec<u32>)> {
    values(ranks).into_iter().map(|(name, values)| (name, bits(&values))).collect()
}

/// The gradient of every tensor, by name: dense parts summed over ranks along the tree.
fn values(ranks: &[RankResult]) -> Vec<(String, Vec<f32>)> {
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
    found
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
        for (products, recompute) in [(Products::F32, false), (Products::F32, true), (Products::Bf16, false)]
        {
            let spec = small(placement);
            let options = Options { products, recompute, ..options(2) };
            // Uneven cells.
            let cell =
                |seed: u64| Some(TestCell::new(&spec, sites(&spec), 40 + seed, (1 + seed as usize % 3, 9)));
            let cells: Vec<_> = (0..4).map(cell).collect();
            let alone = run(&spec, &options, 1, &cells);
            let wanted = gradient(&alone);
            for ranks in [2, 4] {
                let case = format!("{placement:?}, {products:?}, recompute {recompute}, {ranks} ranks");
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
    let cells = [Some(TestCell::new(&spec, 1, 7, (2, 9)))];
    let ranks = run(&spec, &options(2), 1, &cells);
    let order: Vec<usize> = ranks[0].sums.iter().map(|(bucket, _)| *bucket).collect();
    assert_eq!(order, [5, 4, 3, 2, 1, 0]);
}

/// A rank without a cell still computes its experts for the others.
#[test]
fn a_rank_without_a_cell_assists() {
    let spec = small(Placement::Input);
    let cells: Vec<_> = (0..3).map(|seed| Some(TestCell::new(&spec, 1, 60 + seed, (2, 9)))).collect();
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
    let error = whole.join(Box::new(seats.remove(0)), Box::new(|_| ())).unwrap_err().to_string();
    assert!(error.contains("0..4 of 4") && error.contains("seat 0 of 2"), "{error}");
    let topology = Topology { workers: 2, expert_parallel: 2, shards: 1 };
    let layout = RankLayout::of(&spec, &topology, Rank(0)).unwrap();
    let mut first = Model::of_rank(&spec, options(2), layout).unwrap();
    assert!(
        first.join(Box::new(seats.remove(0)), Box::new(|_| ())).is_err(),
        "the experts of seat 0 on seat 1"
    );
}

/// A rank of another precision is found out by what it sends, on both sides.
#[test]
fn ranks_of_another_configuration_are_found_out() {
    let spec = small(Placement::Input);
    let group = GroupOptions::new("experts", Duration::from_secs(20));
    let cell = [Some(TestCell::new(&spec, 1, 7, (2, 9)))];
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = Local::ranks(2, &group)
            .into_iter()
            .zip([Products::F32, Products::Bf16])
            .map(|(seat, products)| {
                let (spec, cell) = (&spec, &cell);
                scope.spawn(move || {
                    let options = Options { products, ..options(2) };
                    run_rank((spec, &initial), options, (2, seat), (cell, GLOBAL)).err()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.unwrap().to_string();
        assert!(error.contains(&format!("rank {}", 1 - rank)), "{error}");
    }
}

/// The published model's gradients, with the sequences divided over two ranks and the experts too. B has three: one rank
/// has a cell less.
#[test]
fn golden_gradients_agree_with_experts_on_two_ranks() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let spec = golden.directory.spec();
        let whole = golden.directory.load(options(1)).unwrap();
        let (layout, weights) = (whole.layout().clone(), whole.weights().to_vec());
        let fill = |model: &mut Model| {
            let copy = |name: &str, _: &[u64], values: &mut [f32]| {
                values.copy_from_slice(&weights[layout.get(name).unwrap().range.clone()]);
                Ok::<_, ModelError>(())
            };
            model.load_weights(copy).unwrap();
        };
        let mut cells: Vec<Option<TestCell>> = golden.sequences().into_iter().map(Some).collect();
        let sequences = cells.len();
        cells.resize_with(sequences.next_multiple_of(2), || None);
        let global = golden.batch.target_count();
        let ranks = run_with((spec, &fill), &options(1), 2, (&cells, global));
        let loss: f64 =
            ranks.iter().flat_map(|rank| rank.outputs.iter().flatten()).map(|out| out.loss_sum).sum();
        let wanted = whole_loss(&golden);
        assert!((loss / wanted - 1.0).abs() < 1e-6, "{name}: {loss} against {wanted}");
        let file = golden.file("grads.safetensors");
        let mut worst = (0.0, String::new());
        for (tensor, found) in values(&ranks) {
            if tensor.ends_with("e_score_correction_bias") {
                continue;
            }
            let error = relative_error(&found, &floats(&file, &tensor));
            assert!(error <= 1e-4, "{name}: {tensor} is off by {error:e}");
            worst = if error > worst.0 { (error, tensor) } else { worst };
        }
        println!("{name}: {sequences} sequences on two ranks, worst {:e} at {}", worst.0, worst.1);
        let mut rows = vec![0.0f32; golden.rows_suw.len()];
        for output in ranks.iter().flat_map(|rank| rank.outputs.iter().flatten()) {
            rows.iter_mut().zip(&output.row_grads_suw).for_each(|(sum, value)| *sum += value);
        }
        for table in 0..spec.ngram.tables_per_site() as usize {
            let tensor = format!("model.ngram_embeddings.embedders.{table}.weight");
            let error = relative_error(&golden.dense_row_gradient(table, &rows), &floats(&file, &tensor));
            assert!(error <= 1e-4, "{name}: {tensor} is off by {error:e}");
        }
    }
}

/// Σ nll of golden's cell in one piece.
fn whole_loss(golden: &Golden) -> f64 {
    golden.directory.load(options(1)).unwrap().evaluate(&golden.input()).unwrap()
}
