//! The engines that this program was built with.

use polygram_domain::run_spec::{Engine, RunSpec};
use polygram_domain::{Rank, RankLayout};

#[cfg(feature = "torch")]
use super::torch;
use super::{Compute, ComputeError, drill};

/// The engine of `rank`, with its initial parameters.
pub fn engine_of(spec: &RunSpec, rank: Rank) -> Result<Box<dyn Compute>, ComputeError> {
    let layout = RankLayout::of(&spec.model, &spec.topology, rank).map_err(ComputeError::Size)?;
    match spec.device.engine {
        Engine::Drill => Ok(Box::new(drill::Drill::new(spec, layout))),
        #[cfg(feature = "torch")]
        Engine::Torch => Ok(Box::new(torch::Torch::new(spec, layout)?)),
        #[cfg(not(feature = "torch"))]
        Engine::Torch => Err(ComputeError::NoTorch),
    }
}
