//! The real model, on libtorch. The only file of this crate that knows there are tensors is the crate it calls.

use polygram_checkpoint::NamedTensor;
use polygram_domain::layout::ParameterSpec;
use polygram_domain::run_spec::{DeviceKind, RunSpec};
use polygram_model::{CellInput, Device, Model, Options, Update, square_sum};

use super::{CellResult, CellWork, Compute, ComputeError, DenseUpdate};

/// The model of a run and the gradient of the step in progress.
pub struct Torch {
    model: Model,
    layout: Vec<ParameterSpec>,
    gradient: Option<Vec<f32>>,
}

impl Torch {
    /// The run's model with its initial weights. Must be called, like everything after it, on the compute thread:
    /// threads of tensor arithmetic are counted per calling thread.
    pub fn new(spec: &RunSpec) -> Result<Torch, ComputeError> {
        let device = match spec.device.kind {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda => polygram_model::cuda_device(0)?,
        };
        polygram_model::set_threads(spec.device.threads);
        let mut model = Model::new(&spec.model, Options::of(&spec.training, device))?;
        model.init(spec.seed)?;
        Ok(Torch { model, layout: spec.dense_parameters(), gradient: None })
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
    fn forward_backward(&mut self, cell: &CellWork) -> Result<CellResult, ComputeError> {
        let output = self.model.forward_backward(&input(cell))?;
        Ok(CellResult {
            loss_sum: output.loss_sum,
            row_gradients_suw: output.row_grads_suw,
            routing_counts: output.routing_counts,
        })
    }

    fn gradient(&mut self) -> Result<&mut [f32], ComputeError> {
        let model = &mut self.model;
        Ok(self.gradient.get_or_insert_with(|| model.take_gradient()))
    }

    fn gradient_square_sum(&mut self) -> Result<f64, ComputeError> {
        self.gradient()?;
        Ok(square_sum(self.model.layout(), self.gradient.as_deref().unwrap_or_default()))
    }

    fn apply(&mut self, update: &DenseUpdate<'_>) -> Result<(), ComputeError> {
        self.gradient()?;
        let gradient = self.gradient.take().unwrap_or_default();
        self.model.apply(&gradient, Update { lr: update.lr, scale: update.scale, number: update.update })?;
        self.model.recycle(gradient);
        Ok(self.model.update_router_bias(update.routing_counts, update.bias_rate)?)
    }

    fn discard(&mut self) {
        let gradient = self.gradient.take().unwrap_or_else(|| self.model.take_gradient());
        self.model.recycle(gradient);
    }

    fn evaluate(&mut self, cell: &CellWork) -> Result<f64, ComputeError> {
        Ok(self.model.evaluate(&input(cell))?)
    }

    fn export(&self, keep: &dyn Fn(usize) -> bool) -> Result<Vec<NamedTensor>, ComputeError> {
        let kept: std::collections::HashSet<&str> = self
            .layout
            .iter()
            .enumerate()
            .filter(|(number, _)| keep(*number))
            .map(|(_, parameter)| parameter.name.as_str())
            .collect();
        Ok(self
            .model
            .state()
            .into_iter()
            .filter(|view| kept.contains(view.parameter))
            .map(|view| NamedTensor::whole(view.name, view.shape, view.values.to_vec()))
            .collect())
    }

    fn restore(&mut self, tensors: &mut dyn Iterator<Item = NamedTensor>) -> Result<(), ComputeError> {
        for tensor in tensors {
            let start = tensor.elements.start as usize;
            self.model.write_state(&tensor.name, &tensor.shape, start, &tensor.data)?;
        }
        Ok(self.model.state_written()?)
    }
}
