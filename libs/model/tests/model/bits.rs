//! Same bits: of two runs, with and without recomputation, and of a cell wherever it is computed. And bf16 beside f32.

use polygram_domain::model::Placement;
use polygram_domain::run_spec::BalanceSpec;
use polygram_model::{CellOutput, Model, Options, Products, Update};

use crate::fixture::{Golden, TestCell, bits, options, relative_error};
use crate::placements::{sites, small};

fn balanced() -> Options {
    let balance = BalanceSpec {
        loss_coefficient: 1e-2,
        loss_groups: 2,
        router_z_coefficient: 1e-3,
        hidden_z_coefficient: 1e-5,
        ..options(2).balance
    };
    Options { balance, ..options(2) }
}

fn output_bits(output: &CellOutput) -> (u64, u64, Vec<u32>, Vec<u64>) {
    (
        output.loss_sum.to_bits(),
        output.objective.to_bits(),
        bits(&output.row_grads_suw),
        output.routing_counts.clone(),
    )
}

#[test]
fn two_runs_and_recomputation_give_the_same_bits() {
    for products in [Products::F32, Products::Bf16, Products::RoundedBf16] {
        for placement in [Placement::Input, Placement::PerLayer, Placement::PerLayerNgram] {
            let spec = small(placement);
            let cell = TestCell::new(&spec, sites(&spec), 7, (2, 9));
            let run = |recompute: bool| {
                let mut model = Model::new(&spec, Options { products, recompute, ..balanced() }).unwrap();
                model.init(1).unwrap();
                let mut seen = Vec::new();
                for number in 1..=3 {
                    let output = model.forward_backward(&cell.input(18), None).unwrap();
                    let gradient = model.take_gradient();
                    seen.push((output_bits(&output), bits(&gradient)));
                    model.apply(|range| &gradient[range], Update { lr: 1e-2, scale: 1.0, number }).unwrap();
                    model.update_router_bias(&output.routing_counts, 0.1).unwrap();
                }
                (seen, bits(model.weights()))
            };
            let first = run(false);
            assert!(first == run(false), "two runs differ: {products:?}, {placement:?}");
            assert!(first == run(true), "recomputation differs: {products:?}, {placement:?}");
        }
    }
}

/// Four cells on one model, or two on each of two: the sums are the same tree.
#[test]
fn cells_are_summed_along_one_tree_whoever_computes_them() {
    let spec = small(Placement::Input);
    let cells: Vec<TestCell> =
        (0..4).map(|seed| TestCell::new(&spec, sites(&spec), 100 + seed, (2, 9))).collect();
    let run = |cells: &[TestCell]| {
        let mut model = Model::new(&spec, balanced()).unwrap();
        model.init(1).unwrap();
        let outputs: Vec<_> = cells
            .iter()
            .map(|cell| output_bits(&model.forward_backward(&cell.input(72), None).unwrap()))
            .collect();
        (outputs, model.take_gradient())
    };
    let (outputs, whole) = run(&cells);
    let (left_outputs, left) = run(&cells[..2]);
    let (right_outputs, right) = run(&cells[2..]);
    assert!(outputs == [left_outputs, right_outputs].concat());
    let joined: Vec<f32> = left.iter().zip(&right).map(|(a, b)| a + b).collect();
    assert!(bits(&whole) == bits(&joined));
    // And each cell's leaf is its own gradient.
    let singles: Vec<Vec<f32>> = cells.iter().map(|cell| run(std::slice::from_ref(cell)).1).collect();
    let tree = |i: usize| (singles[0][i] + singles[1][i]) + (singles[2][i] + singles[3][i]);
    assert!((0..whole.len()).all(|i| whole[i].to_bits() == tree(i).to_bits()));
}

#[test]
fn bf16_is_close_to_f32() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let run = |products| {
            let mut model = golden.directory.load(Options { products, ..options(1) }).unwrap();
            let output = model.forward_backward(&golden.input(), None).unwrap();
            (output, model.take_gradient())
        };
        let (single, single_gradient) = run(Products::F32);
        let (half, half_gradient) = run(Products::Bf16);
        let loss = (half.loss_sum / single.loss_sum - 1.0).abs();
        let dense = relative_error(&half_gradient, &single_gradient);
        let rows = relative_error(&half.row_grads_suw, &single.row_grads_suw);
        println!("{name}: loss {loss:e}, dense gradient {dense:e}, row gradient {rows:e}");
        assert!(half.loss_sum != single.loss_sum, "bf16 must have been used");
        assert!(loss < 1e-2 && dense < 0.2 && rows < 0.2);
    }
}

#[test]
fn masters_stay_f32_under_bf16() {
    let spec = small(Placement::Input);
    let mut model = Model::new(&spec, Options { products: Products::Bf16, ..balanced() }).unwrap();
    model.init(1).unwrap();
    let cell = TestCell::new(&spec, 1, 7, (2, 9));
    let before = model.weights().to_vec();
    model.forward_backward(&cell.input(18), None).unwrap();
    let gradient = model.take_gradient();
    model.apply(|range| &gradient[range], Update { lr: 1e-6, scale: 1.0, number: 1 }).unwrap();
    let moved = before.iter().zip(model.weights()).filter(|(a, b)| a != b).count();
    assert!(moved > before.len() / 2, "an update far below bf16's resolution must be kept: {moved} moved");
}

/// What does not fit the model is refused with words, and the sum of gradients stays as it was.
#[test]
fn illegal_cells_are_refused() {
    let spec = small(Placement::Input);
    let mut model = Model::new(&spec, balanced()).unwrap();
    model.init(1).unwrap();
    let cell = TestCell::new(&spec, 1, 7, (2, 9));
    let input = cell.input(18);
    let refused = |model: &mut Model, input: polygram_model::CellInput<'_>, word: &str| {
        let error = model.forward_backward(&input, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    let short = &cell.rows_suw[1..];
    refused(&mut model, polygram_model::CellInput { rows_suw: short, ..input }, "rows_suw");
    refused(&mut model, polygram_model::CellInput { inverse_pc: &[0], ..input }, "inverse_pc");
    let far = vec![99; cell.unique.inverse_pc.len()];
    refused(&mut model, polygram_model::CellInput { inverse_pc: &far, ..input }, "row 99");
    refused(&mut model, polygram_model::CellInput { global_targets: 17, ..input }, "global_targets");
    let foreign = polygram_domain::CellBatch::from_samples(&[1, 2, 13, 0], 1, 3).unwrap();
    refused(&mut model, polygram_model::CellInput { batch: &foreign, ..input }, "13 at position 2");
    let target = polygram_domain::CellBatch::from_samples(&[1, 2, 3, 13], 1, 3).unwrap();
    refused(&mut model, polygram_model::CellInput { batch: &target, ..input }, "target");
    assert!(model.take_gradient().iter().all(|&g| g == 0.0));
    assert!(model.update_router_bias(&[1, 2], 0.1).is_err());
    assert!(model.apply(|_| &[0.0], Update { lr: 0.1, scale: 1.0, number: 1 }).is_err());
}

/// A number that is none goes through to the loss and the norm, where the step is judged; nothing panics.
#[test]
fn a_nan_reaches_the_loss_and_the_norm() {
    let spec = small(Placement::Input);
    let mut model = Model::new(&spec, balanced()).unwrap();
    model.init(1).unwrap();
    let cell = TestCell::new(&spec, 1, 7, (2, 9));
    let mut poisoned = cell.clone();
    poisoned.rows_suw[3] = f32::NAN;
    let output = model.forward_backward(&poisoned.input(18), None).unwrap();
    assert!(output.loss_sum.is_nan());
    assert_eq!(output.routing_counts.iter().sum::<u64>(), 2 * 18 * 3, "every token still has its choices");
    let gradient = model.take_gradient();
    assert!(!crate::fixture::square_sum(&model, &gradient).is_finite());
    // The next cell is untouched by it.
    assert!(model.forward_backward(&cell.input(18), None).unwrap().loss_sum.is_finite());
    let gradient = model.take_gradient();
    assert!(crate::fixture::square_sum(&model, &gradient).is_finite());
}
