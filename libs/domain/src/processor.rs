//! What the processor of this machine offers to matrix products.

/// Whether this processor multiplies bf16 matrices in units of their own (AMX), an order faster than by vectors. Where
/// it does not, operands of `training.compute = "bf16"` stay f32.
pub fn has_matrix_units() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const EXTENDED_FEATURES: u32 = 7;
        const AMX_BF16: u32 = 1 << 22;
        __cpuid(0).eax >= EXTENDED_FEATURES && __cpuid_count(EXTENDED_FEATURES, 0).edx & AMX_BF16 != 0
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
