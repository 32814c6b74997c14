//! Exact cover: any piece dropped, doubled or changed is found and named.

use std::sync::OnceLock;

use polygram_checkpoint::{Content, CoverError, Manifest, Part, expected_tensors};
use polygram_domain::{RunSpec, Step};
use proptest::prelude::*;

use crate::support::{Backend, Split, State, block_on, header, spec};

fn parts(spec: &RunSpec, split: Split) -> Vec<Part> {
    block_on(async { State::new(spec, 1, 7).write(&Backend::memory().run(spec), split).await })
}

/// The parts of one state by [`SPLIT`], written once for all cases.
fn sample() -> (&'static RunSpec, Vec<Part>) {
    static SAMPLE: OnceLock<(RunSpec, Vec<Part>)> = OnceLock::new();
    let (spec, parts) = SAMPLE.get_or_init(|| {
        let spec = spec(&[]);
        let parts = parts(&spec, SPLIT);
        (spec, parts)
    });
    (spec, parts.clone())
}

fn assemble(spec: &RunSpec, parts: &[Part]) -> Result<Manifest, CoverError> {
    Manifest::assemble(spec, header(Step(7)), parts)
}

/// One tensor entry or one row object: (part, object, tensor).
fn pieces(parts: &[Part]) -> Vec<(usize, usize, Option<usize>)> {
    let mut pieces = Vec::new();
    for (p, part) in parts.iter().enumerate() {
        for (o, object) in part.objects.iter().enumerate() {
            match &object.content {
                Content::Tensors { tensors } => pieces.extend((0..tensors.len()).map(|t| (p, o, Some(t)))),
                Content::Rows { .. } => pieces.push((p, o, None)),
            }
        }
    }
    pieces
}

fn tensors_of(parts: &mut [Part], at: (usize, usize)) -> &mut Vec<polygram_checkpoint::TensorEntry> {
    match &mut parts[at.0].objects[at.1].content {
        Content::Tensors { tensors } => tensors,
        Content::Rows { .. } => panic!("a row object"),
    }
}

const SPLIT: Split = Split { workers: 2, shards: 3, object_bytes: 1 << 16 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_dropped_piece_is_named(choice in any::<prop::sample::Index>()) {
        let (spec, mut parts) = sample();
        prop_assert!(assemble(spec, &parts).is_ok());
        let (p, o, t) = *choice.get(&pieces(&parts));
        let (name, words) = match t {
            Some(t) => {
                let dropped = tensors_of(&mut parts, (p, o)).remove(t);
                (dropped.name, "nobody wrote".to_owned())
            }
            None => match parts[p].objects.remove(o).content {
                Content::Rows { table, buckets, .. } => {
                    (format!("table {table}"), format!("{}..{}", buckets.start, buckets.end))
                }
                Content::Tensors { .. } => panic!("a tensor object"),
            },
        };
        let error = assemble(spec, &parts).unwrap_err();
        prop_assert!(matches!(
            error,
            CoverError::MissingTensor { .. } | CoverError::MissingElements { .. }
                | CoverError::ParameterWithoutState { .. } | CoverError::MissingBuckets { .. }
                | CoverError::IllegalObject { .. }
        ), "{}", error);
        if !matches!(error, CoverError::ParameterWithoutState { .. } | CoverError::IllegalObject { .. }) {
            prop_assert!(error.to_string().contains(&name) && error.to_string().contains(&words), "{}", error);
        }
    }

    #[test]
    fn a_doubled_piece_is_named_with_both_members(
        choice in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
    ) {
        let (spec, mut parts) = sample();
        let (p, o, t) = *choice.get(&pieces(&parts));
        let first = parts[p].member.clone();
        let mut doubled = parts[p].objects[o].clone();
        doubled.key.push_str("-again");
        if let (Content::Tensors { tensors }, Some(t)) = (&mut doubled.content, t) {
            *tensors = vec![tensors[t].clone()];
        }
        let target = place.index(parts.len());
        parts[target].objects.push(doubled);
        let error = assemble(spec, &parts).unwrap_err();
        match &error {
            CoverError::ElementsTwice { first: a, second: b, .. }
            | CoverError::BucketsTwice { first: a, second: b, .. } => {
                let mut found = [a.clone(), b.clone()];
                found.sort();
                let mut wanted = [first, parts[target].member.clone()];
                wanted.sort();
                prop_assert_eq!(found, wanted);
            }
            other => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_moved_edge_is_found(choice in any::<prop::sample::Index>(), up in any::<bool>(), end in any::<bool>()) {
        let (spec, mut parts) = sample();
        let (p, o, t) = *choice.get(&pieces(&parts));
        let shift = |value: u64| if up { value + 1 } else { value.wrapping_sub(1) };
        match (&mut parts[p].objects[o].content, t) {
            (Content::Tensors { tensors }, Some(t)) => {
                let range = &mut tensors[t].elements;
                if end { range.end = shift(range.end) } else { range.start = shift(range.start) }
            }
            (Content::Rows { buckets, .. }, _) => {
                let edge = if end { &mut buckets.end } else { &mut buckets.start };
                *edge = shift(u64::from(*edge)) as u32;
            }
            _ => {}
        }
        prop_assert!(assemble(spec, &parts).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_split_covers(workers in 1u64..5, shards in 1u32..9, size in 12usize..22) {
        let spec = spec(&[]);
        let parts = parts(&spec, Split { workers, shards, object_bytes: 1 << size });
        let manifest = assemble(&spec, &parts).unwrap();
        prop_assert_eq!(manifest.objects.len(), parts.iter().map(|p| p.objects.len()).sum::<usize>());
        let other = RunSpec { topology: polygram_domain::Topology { workers: 4, ..spec.topology }, ..spec };
        manifest.check_cover(&other).unwrap();
    }
}

fn faulty(change: impl FnOnce(&mut Vec<Part>)) -> CoverError {
    let spec = spec(&[]);
    let mut parts = parts(&spec, Split { workers: 1, shards: 1, object_bytes: 1 << 30 });
    change(&mut parts);
    assemble(&spec, &parts).unwrap_err()
}

#[test]
fn each_fault_has_its_name() {
    let rename =
        |name: &'static str| move |parts: &mut Vec<Part>| tensors_of(parts, (0, 0))[0].name = name.into();
    assert!(matches!(faulty(rename("model.surprise")), CoverError::UnknownTensor { member, name }
        if member == "worker-0" && name == "model.surprise"));
    assert!(matches!(faulty(rename("optimizer.exp_avg.model.surprise")),
        CoverError::StateWithoutParameter { parameter, .. } if parameter == "model.surprise"));
    let bias = "optimizer.exp_avg_sq.model.layers.0.mlp.router.e_score_correction_bias";
    assert!(matches!(faulty(rename(bias)), CoverError::StateWithoutParameter { .. }));
    assert!(matches!(faulty(|parts| { tensors_of(parts, (0, 0)).remove(0); }),
        CoverError::MissingTensor { name } if name == "model.embed_tokens.weight"));
    assert!(matches!(faulty(|parts| { tensors_of(parts, (0, 0)).remove(2); }),
        CoverError::ParameterWithoutState { parameter, name }
            if parameter == "model.embed_tokens.weight" && name.starts_with("optimizer.exp_avg_sq.")));
    assert!(matches!(
        faulty(|parts| tensors_of(parts, (0, 0))[0].shape.reverse()),
        CoverError::TensorShape { .. }
    ));
    assert!(matches!(faulty(|parts| parts[0].cursor = None), CoverError::MissingCursor));
    assert!(matches!(
        faulty(|parts| {
            parts[1].cursor =
                parts[0].cursor.map(|c| polygram_checkpoint::Cursor { samples: c.samples + 1, ..c });
        }),
        CoverError::CursorsDiffer { .. }
    ));
    assert!(matches!(faulty(|parts| parts[1].step = Step(8)),
        CoverError::AnotherStep { member, found: Step(8), .. } if member == "shard-0"));
    assert!(matches!(faulty(|parts| { let again = parts[1].clone(); parts.push(again); }),
        CoverError::MemberTwice { member } if member == "shard-0"));
    assert!(matches!(
        faulty(|parts| {
            let again = parts[1].objects[0].clone();
            parts[0].objects.push(again);
        }),
        CoverError::ObjectTwice { .. }
    ));
    let rows =
        |change: fn(&mut Content)| move |parts: &mut Vec<Part>| change(&mut parts[1].objects[0].content);
    assert!(matches!(
        faulty(rows(|c| if let Content::Rows { table, .. } = c {
            *table = 99
        })),
        CoverError::UnknownTable { table: 99, .. }
    ));
    assert!(matches!(
        faulty(rows(|c| if let Content::Rows { width, state_values, .. } = c {
            (*width, *state_values) = (*width + 1, *state_values - 1);
        })),
        CoverError::TableShape { .. }
    ));
    assert!(matches!(
        faulty(rows(|c| if let Content::Rows { rows, .. } = c {
            *rows += 1
        })),
        CoverError::IllegalObject { .. }
    ));
    assert!(matches!(
        faulty(|parts| {
            parts[1].objects.remove(0);
        }),
        CoverError::MissingBuckets { table: 0, start: 0, end: 4096 }
    ));
    assert!(matches!(faulty(|parts| parts[1].objects[0].blake3.clear()), CoverError::IllegalObject { .. }));
}

#[test]
fn a_changed_model_does_not_fit_an_old_checkpoint() {
    let old = spec(&[]);
    let manifest = assemble(&old, &parts(&old, SPLIT)).unwrap();
    let deeper = manifest.check_cover(&spec(&["model.num_layers=3"])).unwrap_err();
    assert!(deeper.to_string().contains("model.layers.2."), "{deeper}");
    let other_rule = manifest.check_cover(&spec(&["embedding.optimizer=\"sgd\""])).unwrap_err();
    assert!(matches!(other_rule, CoverError::TableShape { .. }), "{other_rule}");
    let larger = manifest.check_cover(&spec(&["ngram.base_rows=2003"])).unwrap_err();
    assert!(matches!(larger, CoverError::TableShape { .. }), "{larger}");
}

#[test]
fn a_model_without_tables_needs_no_rows() {
    let spec = spec(&["model.placement=\"per_layer\""]);
    assert!(spec.tables().is_empty());
    let parts = parts(&spec, SPLIT);
    assert!(parts[2..].iter().all(|part| part.objects.is_empty()));
    assemble(&spec, &parts).unwrap();
}

#[test]
fn trained_parameters_have_moments_and_biases_have_none() {
    let names: Vec<String> = expected_tensors(&spec(&[])).into_iter().map(|t| t.name).collect();
    let bias = "model.layers.0.mlp.router.e_score_correction_bias";
    assert!(names.iter().any(|n| n == bias));
    assert!(!names.iter().any(|n| n.starts_with("optimizer.") && n.ends_with(bias)));
    let (state, weights): (Vec<_>, Vec<_>) = names.iter().partition(|n| n.starts_with("optimizer."));
    let biases = weights.iter().filter(|n| n.ends_with("e_score_correction_bias")).count();
    assert_eq!(state.len(), 2 * (weights.len() - biases));
}
