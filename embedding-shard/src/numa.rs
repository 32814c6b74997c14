//! Memory nodes: which there are, and binding lanes and their rows to them.
//!
//! Lane i belongs to node i mod n, thread and memory alike, so that a lane's rows are never on the other side of the
//! machine. Where there is one node nothing is bound, and no lane leaves the processors that this process was given (taskset,
//! a cpuset). Failures cost speed only and are logged.

use std::io;
use std::path::Path;

use polygram_domain::embedding::Numa;

/// Where Linux lists its memory nodes.
const NODES: &str = "/sys/devices/system/node";

/// One memory node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its processors.
    pub cpus: Vec<usize>,
}

/// The nodes that lanes are bound to: those with processors, ascending; none where lanes are not to be bound, the system
/// does not say, or has only one.
pub fn nodes(numa: Numa) -> Vec<Node> {
    if numa == Numa::Off {
        return Vec::new();
    }
    match read_nodes(Path::new(NODES)) {
        Ok(nodes) if nodes.len() > 1 => nodes,
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::debug!(%error, "memory nodes are not listed");
            Vec::new()
        }
    }
}

/// The node of lane `lane`.
pub fn node_of_lane(nodes: &[Node], lane: usize) -> Option<&Node> {
    nodes.get(lane.checked_rem(nodes.len())?)
}

fn read_nodes(folder: &Path) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok()) else {
            continue;
        };
        let cpus = parse_cpus(std::fs::read_to_string(entry.path().join("cpulist"))?.trim());
        if !cpus.is_empty() {
            nodes.push(Node { number, cpus });
        }
    }
    nodes.sort_by_key(|node| node.number);
    Ok(nodes)
}

/// Linux's list format: `0-3,8,10-11`. What does not parse is left out.
fn parse_cpus(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|part| match part.split_once('-') {
            Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
            None => part.parse().ok().map(|cpu| cpu..=cpu),
        })
        .flatten()
        .collect()
}

/// Keeps the calling thread on a node's processors.
pub fn pin_thread(node: &Node) {
    #[cfg(target_os = "linux")]
    {
        let allowed = allowed_cpus();
        if allowed.as_ref().is_some_and(|allowed| !node.cpus.iter().any(|cpu| allowed.contains(cpu))) {
            return tracing::debug!(node = node.number, "none of the node's processors is this process's");
        }
        // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        let bits = 8 * size_of::<libc::cpu_set_t>();
        let is_allowed = |cpu: &&usize| allowed.as_ref().is_none_or(|allowed| allowed.contains(*cpu));
        for &cpu in node.cpus.iter().filter(|&&cpu| cpu < bits).filter(is_allowed) {
            // SAFETY: `cpu` is below the number of bits of `set`.
            unsafe { libc::CPU_SET(cpu, &mut set) };
        }
        // SAFETY: 0 is the calling thread, and `set` lives through the call with the size that is given.
        let refused = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0;
        if refused {
            let error = io::Error::last_os_error();
            tracing::warn!(node = node.number, %error, "a lane is not bound to its memory node");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = node;
}

/// The processors that this thread may run on, as its process was given them; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Option<Vec<usize>> {
    // SAFETY: a cpu_set_t is plain bits, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread, and `set` lives through the call with the size that is given.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0;
    let bits = 0..8 * size_of::<libc::cpu_set_t>();
    // SAFETY: every number is below the number of bits of `set`.
    (!failed).then(|| bits.filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Asks for the pages of `memory`, none of them touched yet, from `node` as long as it has some.
pub(crate) fn prefer_node(memory: &mut [u8], node: u32) {
    #[cfg(target_os = "linux")]
    {
        const MASK_WORDS: usize = 16;
        let mut mask = [0u64; MASK_WORDS];
        let Some(word) = mask.get_mut(node as usize / 64) else { return };
        *word = 1 << (node % 64);
        // SAFETY: the range is one mapping of this process, `mask` has the number of bits that is given, and the call
        // changes only where pages are put, not what they hold.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                memory.as_mut_ptr(),
                memory.len(),
                libc::MPOL_PREFERRED,
                mask.as_ptr(),
                64 * MASK_WORDS,
                0,
            )
        } != 0;
        if refused {
            let error = io::Error::last_os_error();
            tracing::warn!(node, %error, "rows are not bound to their memory node");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (memory, node);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_linux_writes_them() {
        assert_eq!(parse_cpus("0-3,8,10-11"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_cpus("5"), [5]);
        assert_eq!(parse_cpus(""), [0usize; 0]);
        assert_eq!(parse_cpus("3-x,2"), [2]);
    }

    #[test]
    fn nodes_without_processors_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for (name, cpus) in [("node1", "2-3\n"), ("node0", "0-1\n"), ("node2", "\n"), ("possible", "0-2\n")] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("cpulist"), cpus).unwrap();
        }
        let nodes = read_nodes(folder.path()).unwrap();
        assert_eq!(nodes, [Node { number: 0, cpus: vec![0, 1] }, Node { number: 1, cpus: vec![2, 3] }]);
    }

    /// As `taskset` before the start of the process would have it.
    #[cfg(target_os = "linux")]
    #[test]
    fn no_lane_leaves_the_processors_that_its_process_was_given() {
        std::thread::spawn(|| {
            let given = allowed_cpus().unwrap();
            let only = |cpu: usize| pin_thread(&Node { number: 0, cpus: vec![cpu] });
            only(given[0]);
            assert_eq!(allowed_cpus().unwrap(), given[..1]);
            // All of the machine, and then a node that has nothing of what was given.
            pin_thread(&Node { number: 1, cpus: (0..1024).collect() });
            assert_eq!(allowed_cpus().unwrap(), given[..1]);
            only(given[0] + 1);
            assert_eq!(allowed_cpus().unwrap(), given[..1]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn binding_to_the_only_node_changes_nothing_else() {
        let all = Node { number: 0, cpus: (0..1024).collect() };
        std::thread::spawn(move || pin_thread(&all)).join().unwrap();
        let mut memory = memmap2::MmapMut::map_anon(1 << 16).unwrap();
        prefer_node(&mut memory, 0);
        memory.fill(7);
        assert!(memory.iter().all(|&byte| byte == 7));
    }
}
