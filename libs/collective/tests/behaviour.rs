//! One suite, all implementations.

mod suite;

use polygram_collective::Options;
use proptest::prelude::*;
use suite::{
    claims, failures, local, options, part_of_local, part_of_shared, part_of_tcp, shared, solo, sums, tcp,
};

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
    failures::silent_ranks_are_named(local, &[2, 3, 4, 8]);
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
    failures::silent_ranks_are_named(tcp, &[2, 3, 4, 8]);
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
    failures::silent_ranks_are_named(shared, &[2, 3, 4, 8]);
}

#[test]
fn groups_within_a_group_hold() {
    for world_size in [1, 3, 4] {
        claims::hold(part_of_local, world_size);
        claims::hold(part_of_tcp, world_size);
    }
    claims::hold(part_of_shared, 4);
}

#[test]
fn failures_within_groups_within_a_group_are_named_by_the_ranks_of_the_run() {
    for world_size in [1, 3, 4] {
        failures::are_named(part_of_local, world_size);
        failures::are_named(part_of_tcp, world_size);
    }
    failures::are_named(part_of_shared, 4);
    failures::silent_ranks_are_named(part_of_local, &[2, 4]);
    failures::silent_ranks_are_named(part_of_tcp, &[2, 4]);
    failures::silent_ranks_are_named(part_of_shared, &[2, 4]);
}

/// `cargo test --release -p polygram-collective --features nccl -- --ignored`
#[cfg(feature = "nccl")]
#[test]
#[ignore = "needs two GPUs"]
fn nccl_holds() {
    claims::hold(suite::nccl, 2);
    failures::are_named(suite::nccl, 2);
    failures::silent_ranks_are_named(suite::nccl, &[2]);
}

/// Without CUDA or NCCL all ranks are told so, and none hangs.
#[cfg(feature = "nccl")]
#[test]
fn nccl_is_refused_everywhere_or_nowhere() {
    use polygram_collective::NcclError;
    let ranks = suite::tcp_ranks(2, &options());
    let refused: Vec<_> = std::thread::scope(|scope| {
        let joins: Vec<_> =
            ranks.into_iter().map(|rank| scope.spawn(move || rank.with_nccl(4096).err())).collect();
        joins.into_iter().map(|join| join.join().unwrap()).collect()
    });
    // There is no device of that number; where there is not even a driver, the driver is named.
    for error in refused {
        let error = error.expect("no machine has so many devices");
        assert!(matches!(error, NcclError::Absent { .. } | NcclError::Refused { .. }), "{error}");
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
