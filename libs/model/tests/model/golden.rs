//! Golden vectors A and B (tests/golden/README.md): the published modeling code in f32, and its f64 reference.

use polygram_domain::model::{Amplification, Normalizer};
use polygram_domain::run_spec::BalanceSpec;
use polygram_model::balance::bias_delta;
use polygram_model::{Model, Options};

use crate::fixture::{Golden, floats, integers, largest_difference, names, options, relative_error};

#[test]
fn forward_agrees() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let mut model = golden.directory.load(Options::evaluation()).unwrap();
        let found = model.inspect(&golden.input()).unwrap();
        let forward = golden.file("forward.safetensors");
        let embedding = largest_difference(&found.embedding_btd, &floats(&forward, "embedding"));
        let logits = largest_difference(&found.logits_btv, &floats(&forward, "logits"));
        let exact = largest_difference(&found.logits_btv, &floats(&forward, "logits_f64"));
        let loss = (found.loss - f64::from(floats(&forward, "loss")[0])).abs();
        println!("{name}: embedding {embedding:e}, logits {logits:e} (f64 {exact:e}), loss {loss:e}");
        assert!(embedding <= 1e-5 && logits <= 1e-4 && exact <= 1e-4 && loss <= 1e-5);
        let k = model.spec().moe.top_k as usize;
        for (layer, trace) in found.routing.iter().enumerate() {
            let (_, chosen) = integers(&forward, &format!("router.{layer}.topk_idx"));
            let gates = floats(&forward, &format!("router.{layer}.topk_weight"));
            for token in 0..chosen.len() / k {
                let range = token * k..(token + 1) * k;
                let pairs = |chosen: &[u32], gates: &[f32]| {
                    let mut pairs: Vec<_> =
                        chosen[range.clone()].iter().copied().zip(gates[range.clone()].to_vec()).collect();
                    pairs.sort_by_key(|(expert, _)| *expert);
                    pairs
                };
                for (found, wanted) in
                    pairs(&trace.chosen_pk, &trace.gates_pk).iter().zip(pairs(&chosen, &gates))
                {
                    assert_eq!(found.0, wanted.0, "{name}, layer {layer}, token {token}");
                    assert!((found.1 - wanted.1).abs() <= 1e-5, "{found:?} against {wanted:?}");
                }
            }
        }
        let sum = model.evaluate(&golden.input()).unwrap();
        assert!((sum / golden.batch.target_count() as f64 - found.loss).abs() < 1e-12);
    }
}

#[test]
fn every_gradient_agrees() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let mut model = golden.directory.load(options(1)).unwrap();
        let output = model.forward_backward(&golden.input(), None).unwrap();
        let gradient = model.take_gradient();
        let wanted = golden.file("grads.safetensors");
        let mut worst = (0.0, String::new());
        let mut seen = 0;
        for tensor in names(&wanted) {
            let values = floats(&wanted, &tensor);
            let found = match table_of(&tensor) {
                Some(table) => golden.dense_row_gradient(table, &output.row_grads_suw),
                None => gradient[model.layout().get(&tensor).unwrap().range.clone()].to_vec(),
            };
            let error = relative_error(&found, &values);
            assert!(error <= 1e-4, "{name}: {tensor} is off by {error:e}");
            seen += 1;
            if error > worst.0 {
                worst = (error, tensor);
            }
        }
        println!("{name}: {seen} gradients, worst {:e} at {}", worst.0, worst.1);
        let tables = model.spec().ngram.tables_per_site() as usize;
        let trained = model.layout().entries().iter().filter(|entry| entry.spec.is_trained()).count();
        assert_eq!(seen, trained + tables);
    }
}

fn table_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("model.ngram_embeddings.embedders.")?.strip_suffix(".weight")?.parse().ok()
}

#[test]
fn auxiliary_losses_and_bias_updates_agree() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let aux = golden.json("aux.json");
        let spec = golden.directory.spec().clone();
        // A has no zero experts, and of the values per layer its file has none.
        let target_top_k = aux["layer0"]["target_topk"].as_u64().unwrap_or(2) as u32;
        let layers = if name == "A" { 0 } else { spec.num_layers as usize };
        for (groups, key) in [(spec.moe.experts, "lb_loss_expert"), (2, "lb_loss_device_2groups")] {
            let balance = BalanceSpec { loss_groups: groups, ..options(target_top_k).balance };
            let mut model = golden.directory.load(Options { balance, ..options(target_top_k) }).unwrap();
            let output = model.forward_backward(&golden.input(), None).unwrap();
            let routed = spec.routed_experts() as usize;
            for layer in 0..layers {
                let wanted = &aux[format!("layer{layer}")];
                let number = |key: &str| wanted[key].as_f64().unwrap();
                let close = |found: f64, wanted: f64, limit: f64| {
                    assert!((found - wanted).abs() <= limit, "{name}: {key} {found} against {wanted}");
                };
                close(output.auxiliary.balance[layer], number(key), 1e-6);
                close(output.auxiliary.router_z[layer], number("router_z_loss"), 1e-6);
                let counts = &output.routing_counts[layer * routed..(layer + 1) * routed];
                assert_eq!(serde_json::json!(counts), wanted["counts"], "{name}, layer {layer}");
                let rate = number("bias_rate");
                for (found, wanted) in bias_delta(counts, &spec.moe, target_top_k, rate)
                    .iter()
                    .zip(wanted["bias_delta"].as_array().unwrap())
                {
                    assert!((found - wanted.as_f64().unwrap()).abs() < 1e-15);
                }
            }
            let hidden = aux["hidden_z_loss_coeff_1e-7"].as_f64().unwrap();
            assert!((output.auxiliary.hidden_z * 1e-7 - hidden).abs() <= 1e-10, "{name}");
        }
    }
}

#[test]
fn input_embedding_variants_agree() {
    for name in ["A", "B"] {
        let golden = Golden::open(name);
        let aux = golden.json("aux.json");
        for (key, normalizer, amplification) in [
            ("mean", Normalizer::Mean, Amplification::None),
            ("sqrt", Normalizer::Sqrt, Amplification::None),
            ("mean*sqrt(D)", Normalizer::Mean, Amplification::SqrtD),
            ("mean+layernorm", Normalizer::Mean, Amplification::LayerNorm),
        ] {
            let mut spec = golden.directory.spec().clone();
            spec.ngram.normalizer = normalizer;
            spec.ngram.amplification = amplification;
            let mut model = Model::new(&spec, Options::evaluation()).unwrap();
            let file = golden.file("model.safetensors");
            model
                .load_weights(|tensor, _, values| {
                    values.copy_from_slice(&floats(&file, tensor));
                    Ok::<_, polygram_model::ModelError>(())
                })
                .unwrap();
            let found = model.inspect(&golden.input()).unwrap().embedding_btd;
            let square = found.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / found.len() as f64;
            let wanted = &aux["input_embedding_variants"][key];
            let rms = wanted["rms"].as_f64().unwrap();
            assert!((square.sqrt() - rms).abs() <= 1e-5, "{name}, {key}: {} against {rms}", square.sqrt());
            let start = 3 * spec.hidden_size as usize;
            for (found, wanted) in found[start..start + 4].iter().zip(wanted["first4"].as_array().unwrap()) {
                assert!((f64::from(*found) - wanted.as_f64().unwrap()).abs() <= 1e-5, "{name}, {key}");
            }
        }
    }
}
