//! Golden B's eight recipe steps (tests/golden/train_steps_B.json): the losses and norms are those of the published model's
//! own training.

use std::ops::Range;

use polygram_domain::Step;
use polygram_row_exchange::{Commit, RowExchange, SnapshotOrder};

use super::{Golden, Member, json, on_ranks, run_of};
use crate::compute::{Compute, DenseUpdate};
use crate::norm::{self, RowSummary};
use crate::summary::StepSummary;

/// The recipe's settings; its file says the rest.
const RECIPE: [&str; 4] = [
    "training.optimizer.word_embedding_lr_multiplier=5.333333333333333",
    "training.optimizer.word_embedding_weight_decay=0.0",
    "training.balance.target_top_k=3",
    "embedding.lr_multiplier=5.333333333333333",
];

/// The eight steps of one rank.
fn train(mut member: Member, golden: &Golden) {
    let (spec, wanted) = (&golden.spec, json("train_steps_B.json"));
    let wanted = &wanted["recipe_adamw"];
    for number in 0..8u64 {
        let step = Step(number);
        let (result, prepared, summed) = member.differentiate(step);
        let summary = StepSummary {
            step,
            loss_sum: result.loss_sum,
            rows: RowSummary::from(&prepared),
            square_sums: summed.square_sums.clone(),
            routing_counts: result.routing_counts,
            stop: false,
            is_writing: false,
        };
        let consensus = summary.exchange(member.workers.as_mut(), &member.square_sums).unwrap();
        let gradient = norm::clip(&spec.training, consensus.dense_square_sum, &consensus.rows);
        assert!(gradient.finite);
        let loss = consensus.loss_sum / member.global_targets as f64;
        let lr = spec.training.schedule.lr(number);
        let commit = Commit {
            scale: gradient.table_scale,
            lr: (lr * spec.embedding.lr_multiplier) as f32,
            snapshot: SnapshotOrder::None,
        };
        member.runtime.block_on(member.client.commit(step, commit)).unwrap();
        let update = DenseUpdate {
            update: number + 1,
            lr,
            scale: gradient.dense_scale,
            routing_counts: &consensus.routing_counts,
            bias_rate: spec.training.balance.bias_rate_at(number),
        };
        member.gradients.spread(member.compute.apply(&update, &summed).unwrap()).unwrap();
        member.compute.applied(&update).unwrap();
        member.compute.recycle(summed);
        let wanted_loss = wanted["losses"][number as usize].as_f64().unwrap();
        assert!((loss - wanted_loss).abs() <= 1e-4, "step {number}: loss {loss}, wanted {wanted_loss}");
        let wanted_norm = wanted["grad_norms_before_clip"][number as usize].as_f64().unwrap();
        assert!(
            (gradient.norm / wanted_norm - 1.0).abs() <= 1e-4,
            "step {number}: norm {}, wanted {wanted_norm}",
            gradient.norm
        );
    }
    member.runtime.block_on(member.client.close()).unwrap();
}

/// Trains on ranks whose cells are these runs of golden B's three sequences.
async fn train_on(sequences: &[Range<usize>]) {
    let spec = run_of("B", sequences.len() as u32, &RECIPE);
    for shard in on_ranks("B", spec, sequences, train).await {
        assert_eq!(shard.version(), Step(8));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipe_through_real_shards() {
    train_on(std::slice::from_ref(&(0..3))).await;
}

/// Two ranks with half of the experts each, and cells of unequal size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipe_on_two_ranks_that_divide_the_experts() {
    train_on(&[0..2, 2..3]).await;
}
