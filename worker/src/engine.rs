//! Which engine computes: the one that the run's device names.

use polygram_domain::run_spec::{Engine, RunSpec};
use polygram_domain::{Rank, RankLayout};

use crate::compute::drill::Drill;
use crate::compute::{Compute, ComputeError};

/// The engine of `rank`, with its initial parameters.
pub fn engine_of(spec: &RunSpec, rank: Rank) -> Result<Box<dyn Compute>, ComputeError> {
    let layout = RankLayout::of(&spec.model, &spec.topology, rank).map_err(ComputeError::Size)?;
    match spec.device.engine {
        Engine::Drill => Ok(Box::new(Drill::new(spec, layout))),
        #[cfg(feature = "torch")]
        Engine::Torch => Ok(Box::new(crate::compute::torch::Torch::new(spec, layout)?)),
        #[cfg(not(feature = "torch"))]
        Engine::Torch => Err(ComputeError::NoTorch),
    }
}
