//! One suite, all implementations.

mod suite;

use polygram_collective::Options;
use proptest::prelude::*;
use suite::{claims, failures, local, options, shared, solo, sums, tcp};

#[test]
fn solo_holds() {
    claims::hold(solo, 1);
    failures::are_named(solo, 1);
}

#[test]
fn local_holds() {
    for world_size in [1, 2, 3, 4, 5, 8] {
        claims::hold(local, world_size);
    }
}

#[test]
fn local_failures_are_named() {
    for world_size in [1, 2, 3, 4, 8] {
        failures::are_named(local, world_size);
    }
}

#[test]
fn tcp_holds() {
    for world_size in [1, 2, 3, 4, 8] {
        claims::hold(tcp, world_size);
    }
}

#[test]
fn tcp_failures_are_named() {
    for world_size in [1, 2, 3, 4, 8] {
        failures::are_named(tcp, world_size);
    }
}

#[test]
fn shared_memory_holds() {
    for world_size in [1, 2, 3, 4, 8] {
        claims::hold(shared, world_size);
    }
}

#[test]
fn shared_memory_failures_are_named() {
    for world_size in [1, 2, 3, 4, 8] {
        failures::are_named(shared, world_size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any length, any boundary between the forms, any number of ranks: the bits of the tree.
    #[test]
    fn any_length_has_the_bits_of_the_tree(
        seed: u64,
        length in prop_oneof![0_usize..70, 0_usize..300_000],
        ranks_log2 in 0_u32..5,
        short_bytes in prop_oneof![Just(0_usize), Just(usize::MAX), 0_usize..200_000],
    ) {
        let options = Options { short_bytes, ..options() };
        sums::reduces(local, 1 << ranks_log2, &options, (seed, length));
        if ranks_log2 < 3 {
            sums::reduces(tcp, 1 << ranks_log2, &options, (seed, length));
            sums::reduces(shared, 1 << ranks_log2, &options, (seed, length));
        }
    }
}
