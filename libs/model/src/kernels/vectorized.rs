//! Functions compiled for the widest vectors of a processor.

/// A function compiled for the widest vectors of this processor, chosen when it is called. More of them change no bit:
/// lanes are independent, and sums have a fixed number of partial sums.
macro_rules! vectorized {
    ($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($argument: $type),*) $body
                #[target_feature(enable = "avx2")]
                fn with_avx2($($argument: $type),*) $body
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has these instructions.
                    return unsafe { with_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has these instructions.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            $body
        }
    };
}
pub(super) use vectorized;
