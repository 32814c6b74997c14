//! Eight training steps on golden B, as the published model's own training gave them (train_steps_B.json).

use polygram_domain::run_spec::AdamWSpec;
use polygram_domain::square_sum::tensor_square_sum;
use polygram_model::{AdamW, Group, Options, Update};

use crate::fixture::{Golden, adamw, floats, golden_path, options, square_sum};

const STEPS: u64 = 8;

fn wanted(run: &str) -> serde_json::Value {
    let text = std::fs::read(golden_path("train_steps_B.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()[run].clone()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn check_norms<'a>(wanted: &serde_json::Value, tensors: impl Iterator<Item = (String, &'a [f32])>) {
    let mut seen = 0;
    for (name, values) in tensors {
        let Some(wanted) = wanted["final_param_norms"][&name].as_f64() else { continue };
        let found = tensor_square_sum(values).sqrt();
        assert!((found / wanted - 1.0).abs() < 1e-4, "{name}: {found} against {wanted}");
        seen += 1;
    }
    assert!(seen > 50, "only {seen} norms compared");
}

/// Dense tables through the same AdamW, weight decay on them too.
#[test]
fn plain_adamw() {
    let mut golden = Golden::open("B");
    let wanted = wanted("plain_adamw");
    let mut model = golden.directory.load(options(3)).unwrap();
    let spec = model.spec().clone();
    let tables = spec.ngram.tables_per_site() as usize;
    let width = spec.hidden_size as usize / tables;
    let mut flat: Vec<f32> = (0..tables).flat_map(|i| golden.directory.table(i).unwrap()).collect();
    let starts: Vec<usize> = (0..tables)
        .scan(0, |next, i| {
            let start = *next;
            *next += spec.ngram.rows_of(i as u32) as usize * width;
            Some(start)
        })
        .collect();
    let all = Group { range: 0..flat.len(), lr_multiplier: 1.0, weight_decay: 0.1 };
    let mut table_adamw = AdamW::of_groups(&adamw(), vec![all]).unwrap();
    let mut losses = Vec::new();
    for number in 1..=STEPS {
        for (table, first) in starts.iter().enumerate() {
            for index in golden.unique.offsets[table]..golden.unique.offsets[table + 1] {
                let start = first + golden.unique.rows[index] as usize * width;
                golden.rows_suw[index * width..(index + 1) * width]
                    .copy_from_slice(&flat[start..start + width]);
            }
        }
        let output = model.forward_backward(&golden.input(), None).unwrap();
        losses.push(output.loss_sum / output.targets as f64);
        let update = Update { lr: 1e-3, scale: 1.0, number };
        let gradient = model.take_gradient();
        model.apply(|range| &gradient[range], update).unwrap();
        let rows: Vec<f32> =
            (0..tables).flat_map(|table| golden.dense_row_gradient(table, &output.row_grads_suw)).collect();
        table_adamw.step(&mut flat, |range| &rows[range], update).unwrap();
    }
    println!("plain_adamw: {losses:?}");
    for (found, wanted) in losses.iter().zip(numbers(&wanted["losses"])) {
        assert!((found - wanted).abs() <= 1e-4, "{found} against {wanted}");
    }
    let ends = starts.iter().skip(1).copied().chain([flat.len()]);
    let table_views = starts.iter().zip(ends).enumerate().map(|(i, (&start, end))| {
        (format!("model.ngram_embeddings.embedders.{i}.weight"), &flat[start..end])
    });
    check_norms(&wanted, model.state().into_iter().map(|view| (view.name, view.values)).chain(table_views));
}

/// Adam of rows with a count of updates for each: a row of the cell is hit by every step, so its count is the step's.
struct RowAdam {
    first: Vec<f32>,
    second: Vec<f32>,
    updates: Vec<u32>,
    width: usize,
}

impl RowAdam {
    fn step(&mut self, rows: &mut [f32], gradient: &[f32], lr: f32, scale: f32) {
        for (index, updates) in self.updates.iter_mut().enumerate() {
            *updates += 1;
            let correction = |beta: f64| (1.0 - beta.powi(*updates as i32)) as f32;
            for i in index * self.width..(index + 1) * self.width {
                let g = gradient[i] * scale;
                self.first[i] = 0.9 * self.first[i] + 0.1 * g;
                self.second[i] = 0.95 * self.second[i] + 0.05 * (g * g);
                let root = (self.second[i] / correction(0.95)).sqrt() + 1e-16;
                rows[i] -= lr * ((self.first[i] / correction(0.9)) / root);
            }
        }
    }
}

/// Sparse rows, clipping by the global norm, bias updates from counts.
#[test]
fn recipe_adamw() {
    let mut golden = Golden::open("B");
    let wanted = wanted("recipe_adamw");
    let multiplier = 16.0 / 3.0;
    let recipe =
        AdamWSpec { word_embedding_lr_multiplier: multiplier, word_embedding_weight_decay: 0.0, ..adamw() };
    let mut model = golden.directory.load(Options { adamw: Some(recipe), ..options(3) }).unwrap();
    let unique = golden.unique.rows.len();
    let len = golden.rows_suw.len();
    let mut row_adam = RowAdam {
        first: vec![0.0; len],
        second: vec![0.0; len],
        updates: vec![0; unique],
        width: len / unique,
    };
    let layers = model.spec().num_layers as usize;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for number in 1..=STEPS {
        let output = model.forward_backward(&golden.input(), None).unwrap();
        losses.push(output.loss_sum / output.targets as f64);
        let gradient = model.take_gradient();
        let norm = (square_sum(&model, &gradient) + tensor_square_sum(&output.row_grads_suw)).sqrt();
        norms.push(norm);
        let scale = (1.0 / (norm + 1e-6)).min(1.0) as f32;
        model.apply(|range| &gradient[range], Update { lr: 1e-3, scale, number }).unwrap();
        row_adam.step(&mut golden.rows_suw, &output.row_grads_suw, (1e-3 * multiplier) as f32, scale);
        let counts = &output.routing_counts;
        let per_layer = counts.len() / layers;
        for (layer, wanted) in numbers_of_step(&wanted, number).into_iter().enumerate() {
            let ffn: u64 = counts[layer * per_layer..][..model.spec().moe.experts as usize].iter().sum();
            let mean = ffn as f64 / golden.batch.tokens_bt().len() as f64;
            assert!((mean - wanted).abs() < 1e-9, "step {number}, layer {layer}: {mean} against {wanted}");
        }
        model.update_router_bias(counts, 0.1).unwrap();
    }
    println!("recipe_adamw: {losses:?}, norms {norms:?}");
    for (found, wanted) in losses.iter().zip(numbers(&wanted["losses"])) {
        assert!((found - wanted).abs() <= 1e-4, "{found} against {wanted}");
    }
    for (found, wanted) in norms.iter().zip(numbers(&wanted["grad_norms_before_clip"])) {
        assert!((found / wanted - 1.0).abs() <= 1e-3, "{found} against {wanted}");
    }
    for layer in 0..layers {
        let name = format!("model.layers.{layer}.mlp.router.e_score_correction_bias");
        let range = model.layout().get(&name).unwrap().range.clone();
        let wanted = numbers(&wanted["final_bias"][layer.to_string()]);
        for (found, wanted) in model.weights()[range].iter().zip(wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-6, "{name}: {found} against {wanted}");
        }
    }
    check_norms(&wanted, model.state().into_iter().map(|view| (view.name, view.values)));
}

fn numbers_of_step(wanted: &serde_json::Value, number: u64) -> Vec<f64> {
    numbers(&wanted["mean_ffn_experts_per_token"][number as usize - 1])
}

/// State goes out and comes back, and training goes on with the same bits.
#[test]
fn restored_state_trains_on_with_the_same_bits() {
    let golden = Golden::open("A");
    let steps = |model: &mut polygram_model::Model, numbers: std::ops::RangeInclusive<u64>| {
        for number in numbers {
            model.forward_backward(&golden.input(), None).unwrap();
            let gradient = model.take_gradient();
            model.apply(|range| &gradient[range], Update { lr: 1e-3, scale: 0.5, number }).unwrap();
        }
    };
    let mut whole = golden.directory.load(options(1)).unwrap();
    steps(&mut whole, 1..=4);
    let mut first = golden.directory.load(options(1)).unwrap();
    steps(&mut first, 1..=2);
    let saved = crate::fixture::state_of(&first);
    let mut second = golden.directory.load(options(1)).unwrap();
    second.import_state(saved.clone()).unwrap();
    steps(&mut second, 3..=4);
    assert_eq!(crate::fixture::state_of(&whole), crate::fixture::state_of(&second));

    let mut missing = saved.clone();
    missing.remove("optimizer.exp_avg.model.norm.weight");
    assert!(second.import_state(missing).unwrap_err().to_string().contains("exp_avg.model.norm.weight"));
    let mut surplus = saved.clone();
    surplus.insert("model.extra".into(), vec![]);
    assert!(second.import_state(surplus).unwrap_err().to_string().contains("model.extra"));
    let mut short = saved;
    short.insert("model.norm.weight".into(), vec![1.0]);
    assert!(second.import_state(short).is_err());
    let file = golden.file("model.safetensors");
    assert_eq!(floats(&file, "model.norm.weight").len(), model_width(&second));
}

fn model_width(model: &polygram_model::Model) -> usize {
    model.spec().hidden_size as usize
}

/// State written in pieces, in any order, is the same state; pieces that do not fit are refused.
#[test]
fn state_may_be_written_in_pieces() {
    let golden = Golden::open("A");
    let mut source = golden.directory.load(options(1)).unwrap();
    source.forward_backward(&golden.input(), None).unwrap();
    let gradient = source.take_gradient();
    source.apply(|range| &gradient[range], Update { lr: 1e-3, scale: 1.0, number: 1 }).unwrap();
    let mut target = polygram_model::Model::new(source.spec(), options(1)).unwrap();
    for view in source.state().into_iter().rev() {
        let middle = view.values.len() / 3;
        target.write_state(&view.name, view.shape, middle, &view.values[middle..]).unwrap();
        target.write_state(&view.name, view.shape, 0, &view.values[..middle]).unwrap();
    }
    target.state_written().unwrap();
    assert_eq!(crate::fixture::state_of(&source), crate::fixture::state_of(&target));
    let width = target.spec().hidden_size as usize;
    let refused = |target: &mut polygram_model::Model, name: &str, shape: &[u64], start: usize| {
        target.write_state(name, shape, start, &[0.0; 2]).unwrap_err().to_string()
    };
    let (norm, shape) = ("model.norm.weight", [width as u64]);
    assert!(refused(&mut target, "model.nothing", &shape, 0).contains("model.nothing"));
    assert!(refused(&mut target, norm, &[1], 0).contains("shape [1]"));
    assert!(refused(&mut target, norm, &shape, width - 1).contains("do not fit"));
    assert!(refused(&mut target, norm, &shape, usize::MAX).contains("do not fit"));
    let bias = "optimizer.exp_avg.model.layers.0.mlp.router.e_score_correction_bias";
    assert!(refused(&mut target, bias, &[6], 0).contains("no moments"));
}
