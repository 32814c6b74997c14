//! How a model computes: everything beside its dimensions.

use polygram_domain::run_spec::{AdamWSpec, BalanceSpec, Determinism, TrainingSpec};
use tch::Device;

use crate::kernels::Products;

/// How a model computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How matrix products are computed; masters are f32 always.
    pub products: Products,
    /// Recompute each layer's activations in backward instead of keeping them. The bits are the same.
    pub recompute: bool,
    /// Whether sums follow the fixed tree over cells, or the order that costs least.
    pub determinism: Determinism,
    /// Auxiliary losses and the aim of the bias update.
    pub balance: BalanceSpec,
    /// Dense optimizer; `None` for a model that is only evaluated, which then has no optimizer state.
    pub adamw: Option<AdamWSpec>,
    /// Where tensors live.
    pub device: Device,
}

impl Options {
    /// As a run's training section says.
    pub fn of(training: &TrainingSpec, device: Device) -> Options {
        Options {
            products: Products::of(training.compute, device),
            recompute: training.recompute,
            determinism: training.determinism,
            balance: training.balance.clone(),
            adamw: Some(training.adamw.clone()),
            device,
        }
    }

    /// For evaluation in f32 on the CPU.
    pub fn evaluation() -> Options {
        Options {
            products: Products::F32,
            recompute: false,
            determinism: Determinism::Elastic,
            balance: BalanceSpec {
                bias_rate: 0.0,
                bias_rate_halving_steps: 1,
                bias_rate_min: 0.0,
                target_top_k: 1,
                loss_coefficient: 0.0,
                loss_groups: 1,
                router_z_coefficient: 0.0,
                hidden_z_coefficient: 0.0,
            },
            adamw: None,
            device: Device::Cpu,
        }
    }
}
