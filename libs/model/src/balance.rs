//! Load balance of the mixture of experts: the selection bias's update from global counts, and the balance loss's
//! coefficients.

use polygram_domain::model::MoeSpec;

/// Change of each selection bias after a step: `rate · (target_k / (k·n) − count_i / Σ count)` for FFN experts, 0 for zero
/// experts (LongCat-Flash report, 2509.01322, §2.1.1). `counts` has n + z numbers, over all cells of the step. All
/// zero where nothing was routed.
pub fn bias_delta(counts: &[u64], moe: &MoeSpec, target_top_k: u32, rate: f64) -> Vec<f64> {
    let total: u64 = counts.iter().sum();
    let wanted = f64::from(target_top_k) / (f64::from(moe.top_k) * f64::from(moe.experts));
    let delta = |(expert, &count): (usize, &u64)| {
        if expert >= moe.experts as usize || total == 0 {
            return 0.0;
        }
        rate * (wanted - count as f64 / total as f64)
    };
    counts.iter().enumerate().map(delta).collect()
}

/// What multiplies each expert's mean probability in the balance loss of one cell of `positions` tokens:
///
/// ```text
/// loss = Σ_g (G/target_k)·hits_g·P_g + hits_zero/(k − target_k)·P_zero
/// ```
/// with G groups of FFN experts and one group of all zero experts, hits the choices per token that fell on the group and
/// P the mean over tokens of its probability (report 2509.01322, §2.1.1). With as many groups as experts this is the
/// per-expert form of later models. The zero group has no term where every choice is meant for FFN experts.
pub(crate) fn loss_coefficients(
    counts: &[u64],
    moe: &MoeSpec,
    aim: BalanceAim,
    positions: usize,
) -> Vec<f32> {
    let n = moe.experts as usize;
    let groups = aim.groups.clamp(1, moe.experts) as usize;
    let per_token = |hits: u64| hits as f64 / positions.max(1) as f64;
    let group_of = |expert: usize| expert * groups / n;
    let mut hits = vec![0u64; groups];
    for (expert, &count) in counts.iter().take(n).enumerate() {
        hits[group_of(expert)] += count;
    }
    let zero_aim = f64::from(moe.top_k) - f64::from(aim.target_top_k);
    let zero_hits: u64 = counts.iter().skip(n).sum();
    let zero = if zero_aim > 0.0 { per_token(zero_hits) / zero_aim } else { 0.0 };
    let ffn = groups as f64 / f64::from(aim.target_top_k.max(1));
    (0..counts.len())
        .map(|expert| if expert < n { (ffn * per_token(hits[group_of(expert)])) as f32 } else { zero as f32 })
        .collect()
}

/// What the balance loss aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BalanceAim {
    /// FFN experts wanted per token.
    pub(crate) target_top_k: u32,
    /// Groups of FFN experts.
    pub(crate) groups: u32,
}

/// What the auxiliary losses of a layer are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct AuxiliaryScale {
    pub(crate) balance: f64,
    pub(crate) router_z: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moe() -> MoeSpec {
        MoeSpec { experts: 4, zero_experts: 2, top_k: 3, expert_hidden_size: 1, routed_scaling_factor: 1.0 }
    }

    #[test]
    fn bias_follows_the_counts() {
        let delta = bias_delta(&[10, 20, 0, 10, 15, 5], &moe(), 2, 0.1);
        let wanted = [0.0, -0.1 / 6.0, 0.1 / 6.0, 0.0, 0.0, 0.0];
        for (found, wanted) in delta.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-12, "{delta:?}");
        }
        assert_eq!(bias_delta(&[0; 6], &moe(), 2, 0.1), [0.0; 6]);
    }

    #[test]
    fn coefficients_are_shared_in_a_group() {
        let aim = BalanceAim { target_top_k: 2, groups: 2 };
        let found = loss_coefficients(&[4, 0, 8, 8, 6, 4], &moe(), aim, 10);
        assert_eq!(found, [0.4, 0.4, 1.6, 1.6, 1.0, 1.0]);
        let all = BalanceAim { target_top_k: 3, groups: 1 };
        assert_eq!(loss_coefficients(&[0, 0, 0, 0, 30, 0], &moe(), all, 10)[4..], [0.0, 0.0]);
    }
}
