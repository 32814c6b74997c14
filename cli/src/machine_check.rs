//! Whether this machine has what the processes of a run ask for, where all of them are started here. What it lacks makes a run
//! slow or ends it; it is no reason to refuse, since a plan may be for another machine.

use polygram_domain::plan::plan;
use polygram_domain::run_spec::{DeviceKind, RunSpec};

use crate::units::{self, counted};

/// Warnings about a run whose processes all start on this machine. A run on CUDA devices is one of many machines, of which
/// this one may be none.
pub(crate) fn warnings(spec: &RunSpec) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(u64::MAX, |cores| cores.get() as u64);
    let mut warnings: Vec<String> = memory_warning(spec, memory_bytes()).into_iter().collect();
    if spec.device.kind == DeviceKind::Cpu {
        warnings.extend(thread_warnings(spec, cores));
    }
    warnings
}

/// A warning where the workers need more memory than the machine has.
fn memory_warning(spec: &RunSpec, has: Option<u64>) -> Option<String> {
    if spec.device.kind != DeviceKind::Cpu {
        return None;
    }
    let workers = u64::from(spec.topology.workers);
    let needed = plan(spec).memory.worker_host_bytes.saturating_mul(workers);
    let has = has.filter(|has| needed > *has)?;
    Some(format!(
        "{} together take about {} of memory, this machine has {}; `polygram plan` shows the parts",
        counted(workers, "worker"),
        units::bytes(needed),
        units::bytes(has)
    ))
}

/// Warnings where there are more threads of one kind than the machine has cores.
fn thread_warnings(spec: &RunSpec, cores: u64) -> Vec<String> {
    let (topology, device, embedding) = (&spec.topology, &spec.device, &spec.embedding);
    let busy = |of: (u32, &str), each: (u32, &str)| {
        let ((count, noun), (threads, key)) = (of, each);
        let all = u64::from(count) * u64::from(threads);
        let these = counted(count.into(), noun);
        (all > cores).then(|| {
            format!(
                "{these} with {key} = {threads} make {}, and this machine has {}: they take turns, and every step takes \
                 longer",
                counted(all, "busy thread"),
                counted(cores, "core")
            )
        })
    };
    let workers = busy((topology.workers, "worker"), (device.threads, "device.threads"));
    let shards = busy((topology.shards, "shard"), (embedding.lanes, "embedding.lanes"));
    let shards = shards.filter(|_| !spec.tables().is_empty());
    workers.into_iter().chain(shards).collect()
}

/// Memory of this machine, where the system says.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use polygram_domain::RunFile;

    use super::*;

    fn spec(sets: &[&str]) -> RunSpec {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunFile::parse(include_str!("../../configs/tiny.toml"), "tiny", &sets)
            .and_then(|file| file.resolve())
            .unwrap()
    }

    #[test]
    fn more_threads_than_cores_are_warned_of() {
        let threads = |sets: &[&str], cores| thread_warnings(&spec(sets), cores).join("\n");
        assert_eq!(threads(&[], 2), "");
        assert!(
            threads(&["device.threads=64"], 2)
                .contains("1 worker with device.threads = 64 make 64 busy threads")
        );
        assert!(threads(&["topology.workers=4"], 2).contains("4 workers with device.threads = 1"));
        assert!(threads(&["topology.shards=8"], 2).contains("8 shards with embedding.lanes = 1"));
        assert!(
            threads(&["embedding.lanes=4"], 4)
                .contains("2 shards with embedding.lanes = 4 make 8 busy threads")
        );
        let both = threads(&["topology.workers=4", "topology.shards=8"], 2);
        assert_eq!(both.lines().count(), 2, "{both}");
        assert_eq!(threads(&["topology.workers=4", "topology.shards=8"], 8), "");
    }

    #[test]
    fn workers_that_need_more_memory_than_there_is_are_warned_of() {
        let spec = spec(&["topology.workers=2"]);
        let needed = 2 * plan(&spec).memory.worker_host_bytes;
        assert_eq!(memory_warning(&spec, Some(needed)), None);
        assert_eq!(memory_warning(&spec, None), None);
        let warning = memory_warning(&spec, Some(needed - 1)).unwrap();
        assert!(warning.starts_with("2 workers together take about "), "{warning}");
        assert!(memory_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
