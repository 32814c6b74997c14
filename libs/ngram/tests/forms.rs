//! The batch, packed and streaming forms agree with each other and with the definition, written out naively.

use polygram_domain::model::{Amplification, NgramSpec, Normalizer};
use polygram_ngram::{Hasher, NgramError, Stream, batch_ids};
use proptest::prelude::*;

/// The definition, in u128 and with division: `starts` begin segments besides position 0 and those after an EOS.
fn by_definition(spec: &NgramSpec, eos: u32, tokens: &[u32], starts: &[usize]) -> Vec<u32> {
    let ignored = |t: u32| spec.ignored_tokens.contains(&t);
    let mut ids = Vec::new();
    for p in 0..tokens.len() {
        let segment = (1..=p)
            .rev()
            .find(|&q| tokens[q - 1] == eos || ignored(tokens[q - 1]) || starts.contains(&q))
            .unwrap_or(0);
        for table in 0..spec.tables_per_site() {
            let rows = u128::from(spec.rows_of(table));
            let mut sum = u128::from(tokens[p]);
            let mut power = 1;
            for d in 1..spec.order_of(table) as usize {
                power = power * u128::from(spec.hash_vocab_size) % rows;
                if p >= segment + d {
                    sum += u128::from(tokens[p - d]) * power;
                }
            }
            ids.push(if ignored(tokens[p]) { 0 } else { (sum % rows) as u32 });
        }
    }
    ids
}

fn spec_of(orders: u32, heads: u32, vocab: u32, ratio: f64) -> NgramSpec {
    NgramSpec {
        max_order: orders,
        heads,
        ratio,
        hash_vocab_size: vocab,
        ignored_tokens: Vec::new(),
        normalizer: Normalizer::Mean,
        amplification: Amplification::None,
    }
}

prop_compose! {
    /// Small, real and extreme vocabularies; ids reach both ends of each.
    fn any_spec()(orders in 2u32..=16, heads in 1u32..5, vocab in prop_oneof![3u32..50, 1000u32..200_000, (1u32 << 31)..u32::MAX], share in 0.0f64..1.0) -> NgramSpec {
        let largest = (f64::from(u32::MAX) - 200.0) / f64::from(vocab);
        spec_of(orders, heads, vocab, (share * 40.0).min(share * largest).max(1e-9))
    }
}

fn token_of(raw: u32, vocab: u32) -> u32 {
    match raw % 8 {
        0 | 1 => 2,
        2 => vocab - 1,
        3 => 0,
        4 => (raw >> 3) % vocab.min(7),
        _ => (raw >> 3) % vocab,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn all_forms_agree(spec in any_spec(), raw in prop::collection::vec(any::<u32>(), 1..60), ignore: bool, cuts in prop::collection::btree_set(0usize..60, 0..5)) {
        let mut spec = spec;
        let tokens: Vec<u32> = raw.iter().map(|&r| token_of(r, spec.hash_vocab_size)).collect();
        if ignore {
            spec.ignored_tokens = vec![0, tokens[tokens.len() / 2]];
        }
        let hasher = Hasher::new(&spec, 2).unwrap();

        let whole = hasher.ids(&tokens).unwrap();
        prop_assert_eq!(&whole, &by_definition(&spec, 2, &tokens, &[]));

        let mut stream = Stream::new(&hasher);
        let streamed: Vec<u32> = tokens.iter().flat_map(|&t| stream.push(t).unwrap()).collect();
        prop_assert_eq!(&streamed, &whole);

        let after_eos: Vec<usize> = (1..tokens.len()).filter(|&p| tokens[p - 1] == 2).collect();
        let mut packed = vec![0; whole.len()];
        hasher.packed_ids_into(&tokens, &after_eos, &mut packed).unwrap();
        prop_assert_eq!(&packed, &whole);

        let starts: Vec<usize> = cuts.into_iter().filter(|&p| p < tokens.len()).collect();
        hasher.packed_ids_into(&tokens, &starts, &mut packed).unwrap();
        prop_assert_eq!(&packed, &by_definition(&spec, 2, &tokens, &starts));
        let mut stream = Stream::new(&hasher);
        let mut streamed = vec![0; whole.len()];
        for ((p, token), ids) in tokens.iter().enumerate().zip(streamed.chunks_exact_mut(hasher.tables())) {
            if starts.contains(&p) {
                stream.cut();
            }
            stream.push_all(&[*token], ids).unwrap();
        }
        prop_assert_eq!(&streamed, &packed);
    }

    #[test]
    fn a_batch_is_its_sequences(spec in any_spec(), raw in prop::collection::vec(any::<u32>(), 1..60), seq_len in 1usize..9) {
        let tokens: Vec<u32> = raw.iter().map(|&r| token_of(r, spec.hash_vocab_size)).collect();
        let tokens = &tokens[..tokens.len() / seq_len * seq_len];
        let hasher = Hasher::new(&spec, 2).unwrap();
        let each: Vec<u32> = tokens.chunks(seq_len).flat_map(|row| hasher.ids(row).unwrap()).collect();
        prop_assert_eq!(batch_ids(&hasher, tokens, seq_len).unwrap(), each);
    }
}

#[test]
fn refuses_tokens_outside_the_vocabulary() {
    let mut spec = spec_of(3, 2, 100, 5.0);
    let hasher = Hasher::new(&spec, 2).unwrap();
    let error = batch_ids(&hasher, &[1, 2, 3, 4, 100, 6], 3).unwrap_err();
    assert_eq!(error, NgramError::TokenOutOfRange { position: 4, token: 100, vocab: 100 });
    let mut stream = Stream::new(&hasher);
    stream.push(7).unwrap();
    assert!(stream.push(u32::MAX).is_err());
    assert_eq!(stream.push(8).unwrap(), hasher.ids(&[7, 8]).unwrap()[4..], "a refusal changes nothing");

    // Listed as ignored, tokens beyond the hash vocabulary are legal: they take no part in n-grams.
    spec.ignored_tokens = vec![100];
    let hasher = Hasher::new(&spec, 2).unwrap();
    assert!(hasher.ignores(100) && !hasher.ignores(99) && !hasher.ignores(u32::MAX));
    let ids = hasher.ids(&[5, 100, 6]).unwrap();
    assert_eq!(ids[4..8], [0; 4]);
    assert_eq!(ids[8..], [6; 4]);
}

#[test]
fn refuses_buffers_that_do_not_fit() {
    let hasher = Hasher::new(&spec_of(3, 2, 100, 5.0), 2).unwrap();
    assert!(matches!(hasher.ids_into(&[1, 2], &mut [0; 7]), Err(NgramError::Shape { expected: 8, .. })));
    assert!(batch_ids(&hasher, &[1, 2, 3], 2).is_err());
    assert!(batch_ids(&hasher, &[1], 0).is_err());
    assert_eq!(batch_ids(&hasher, &[], 4), Ok(Vec::new()));
    for starts in [&[2, 2][..], &[2, 1], &[3]] {
        let error = hasher.packed_ids_into(&[1, 2, 3], starts, &mut [0; 12]).unwrap_err();
        assert!(matches!(error, NgramError::SegmentStart { .. }), "{error}");
    }
}
