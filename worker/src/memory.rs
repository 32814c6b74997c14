//! How much memory this process holds.

/// Resident bytes of this process, from `/proc/self/statm`; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    // SAFETY: sysconf takes a constant and touches no memory of ours.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0) * u64::try_from(page_bytes).unwrap_or(0)
}

/// The most resident bytes that this process ever had, from `/proc/self/status`; 0 where the system does not tell.
pub fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_somewhere() {
        assert!(super::resident_bytes() > 1 << 16);
        // Pages of other processors' lists may not be counted in one of them yet.
        assert!(super::peak_resident_bytes() + (1 << 20) > super::resident_bytes());
    }
}
