//! How operands of matrix products lie in memory.

use crate::processor::has_matrix_units;
use crate::run_spec::{ComputeType, DeviceKind, RunSpec};

/// How operands of matrix products lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// f32.
    Single,
    /// bf16.
    Bf16,
    /// Rounded to bf16 and kept in f32: processors without units for bf16 matrices.
    RoundedBf16,
}

impl Operands {
    /// Those of `spec` on this machine.
    pub fn of(spec: &RunSpec) -> Operands {
        match (spec.training.compute, spec.device.kind) {
            (ComputeType::F32, _) => Operands::Single,
            (ComputeType::Bf16, DeviceKind::Cpu) if !has_matrix_units() => Operands::RoundedBf16,
            (ComputeType::Bf16, _) => Operands::Bf16,
        }
    }

    /// Bytes of one value.
    pub fn bytes(self) -> u128 {
        match self {
            Operands::Single | Operands::RoundedBf16 => 4,
            Operands::Bf16 => 2,
        }
    }
}
