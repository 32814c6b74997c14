//! Process-wide settings of libtorch.

use std::ffi::CStr;
use std::sync::Once;

use tch::Device;

use crate::error::{ModelError, Result};

/// Fixes the threads of tensor arithmetic in this process. Sums inside libtorch may depend on the number, so a run
/// keeps it for good. Call it before the first tensor operation; the inter-op pool, which nothing here uses, is set to
/// one thread the first time.
pub fn set_threads(threads: u32) {
    static INTEROP: Once = Once::new();
    tch::set_num_threads(threads.max(1) as i32);
    INTEROP.call_once(|| {
        if tch::get_num_interop_threads() != 1 {
            tch::set_num_interop_threads(1);
        }
    });
}

/// The CUDA device of a worker's local rank. Programs link only libtorch's CPU part; this opens the CUDA part of the same
/// installation, once, so call it before the first tensor. The error says what is missing.
///
/// # Errors
/// Where `libtorch_cuda.so` or a library beneath it is not there, or the machine has too few devices.
pub fn cuda_device(local_rank: usize) -> Result<Device> {
    open_cuda_library()?;
    let devices = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if local_rank >= devices {
        return Err(ModelError::input(
            "device",
            format!("CUDA device {local_rank}"),
            format!("one of this machine's {devices}; or set device.kind = \"cpu\""),
        ));
    }
    Ok(Device::Cuda(local_rank))
}

#[cfg(unix)]
fn open_cuda_library() -> Result<()> {
    const LIBRARY: &CStr = c"libtorch_cuda.so";
    // SAFETY: the name is a C string; opening runs the library's initialisers, which libtorch makes for being loaded at
    // any time. The handle is kept open for the life of the process.
    let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror gives this thread's last message as a C string or null; it is copied before any other call.
    let reason = unsafe {
        let message = libc::dlerror();
        if message.is_null() { None } else { Some(CStr::from_ptr(message).to_string_lossy().into_owned()) }
    };
    let reason = reason.unwrap_or_else(|| "unknown error".into());
    Err(ModelError::Torch(format!("cannot open the CUDA part: {reason}; or set device.kind = \"cpu\"")))
}

#[cfg(not(unix))]
fn open_cuda_library() -> Result<()> {
    Err(ModelError::Torch("the CUDA part can be opened on Unix only; set device.kind = \"cpu\"".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_may_be_made_twice() {
        for _ in 0..2 {
            set_threads(1);
        }
        assert_eq!(tch::get_num_threads(), 1);
    }

    /// With or without a GPU the answer is a device or words, never a panic.
    #[test]
    fn a_device_beyond_the_machine_is_refused() {
        let error = cuda_device(4096).unwrap_err().to_string();
        assert!(error.contains("cpu"), "{error}");
    }
}
