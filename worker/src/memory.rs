//! How much memory this process holds.

/// Resident bytes of this process; 0 where the system does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// Now.
    pub bytes: u64,
    /// The most that it ever was.
    pub peak_bytes: u64,
}

impl Resident {
    /// From `/proc/self/status`.
    pub fn now() -> Resident {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.unwrap_or(0) << 10
        };
        Resident { bytes: bytes("VmRSS:"), peak_bytes: bytes("VmHWM:") }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_somewhere() {
        let resident = super::Resident::now();
        assert!(resident.bytes > 1 << 16);
        // Pages of other processors' lists may not be counted in one of them yet.
        assert!(resident.peak_bytes + (1 << 20) > resident.bytes);
    }
}
