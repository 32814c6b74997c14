//! The real model, on libtorch. The only file of this crate that knows there are tensors is the crate it calls.

use polygram_checkpoint::NamedTensor;
use polygram_collective::Collective;
use polygram_domain::RankLayout;
use polygram_domain::layout::{StateView, state_part};
use polygram_domain::run_spec::{DeviceKind, RunSpec};
use polygram_model::{CellInput, Device, Model, Options, Update};

use super::{CellResult, CellWork, Compute, ComputeError, DenseUpdate, ExchangeWatch, TakeBucket};
use crate::gradients::SummedGradient;

/// A rank's part of the model of a run.
pub struct Torch {
    model: Model,
}

impl Torch {
    /// The run's model with its initial weights. Must be called, like everything after it, on the compute thread:
    /// threads of tensor arithmetic are counted per calling thread.
    pub fn new(spec: &RunSpec, layout: RankLayout) -> Result<Torch, ComputeError> {
        let device = match spec.device.kind {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda => polygram_model::cuda_device(0)?,
        };
        polygram_model::set_threads(spec.device.threads);
        let mut model = Model::of_rank(&spec.model, Options::of(&spec.training, device), layout)?;
        model.init(spec.seed)?;
        Ok(Torch { model })
    }
}

fn input(cell: &CellWork) -> CellInput<'_> {
    CellInput {
        batch: &cell.batch,
        inverse_pc: &cell.unique.inverse_pc,
        rows_suw: &cell.rows_suw,
        unique: cell.unique.len(),
        global_targets: cell.global_targets,
    }
}

impl Compute for Torch {
    fn layout(&self) -> &RankLayout {
        self.model.layout()
    }

    fn join(&mut self, ranks: Box<dyn Collective>, watch: ExchangeWatch) -> Result<(), ComputeError> {
        Ok(self.model.join(ranks, watch)?)
    }

    fn forward_backward(
        &mut self,
        cell: &CellWork,
        take: Option<&mut TakeBucket<'_>>,
    ) -> Result<CellResult, ComputeError> {
        let output = self.model.forward_backward(&input(cell), take)?;
        Ok(CellResult {
            loss_sum: output.loss_sum,
            row_gradients_suw: output.row_grads_suw,
            routing_counts: output.routing_counts,
        })
    }

    fn apply(
        &mut self,
        update: &DenseUpdate<'_>,
        gradient: &SummedGradient,
    ) -> Result<&mut [f32], ComputeError> {
        let update = Update { lr: update.lr, scale: update.scale, number: update.update };
        self.model.apply_own(|range| gradient.values(range), update)?;
        Ok(self.model.weights_mut())
    }

    fn applied(&mut self, update: &DenseUpdate<'_>) -> Result<(), ComputeError> {
        Ok(self.model.update_router_bias(update.routing_counts, update.bias_rate)?)
    }

    fn recycle(&mut self, gradient: SummedGradient) {
        gradient.into_buckets().for_each(|(index, values)| self.model.recycle(index, values));
    }

    fn evaluate(&mut self, cell: &CellWork) -> Result<f64, ComputeError> {
        Ok(self.model.evaluate(&input(cell))?)
    }

    fn assist_evaluation(&mut self) -> Result<(), ComputeError> {
        Ok(self.model.assist_evaluation()?)
    }

    fn state(&self) -> Vec<StateView<'_>> {
        self.model.state()
    }

    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError> {
        for tensor in tensors {
            if self.model.layout().is_elsewhere(state_part(&tensor.name).1) {
                continue;
            }
            let start = tensor.elements.start as usize;
            self.model.write_state(&tensor.name, &tensor.shape, start, &tensor.data)?;
        }
        Ok(self.model.state_written()?)
    }

    fn fingerprint(&self) -> u64 {
        self.model.layout().own_fingerprint(self.model.weights())
    }

    fn optimizer_bytes(&self) -> u64 {
        self.model.optimizer_bytes()
    }
}
