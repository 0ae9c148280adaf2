//! How much memory this process may use: the least of the limits of its control groups and of the machine's memory.

use std::io;
use std::path::{Path, PathBuf};

/// The memory that this process may use, in bytes; `None`: the system does not say.
#[must_use]
pub fn limit() -> Option<u64> {
    limit_of(&|path| std::fs::read_to_string(path))
}

/// The same, with the files of the system read by `read`.
fn limit_of(read: &dyn Fn(&Path) -> io::Result<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files);
    let limits = limits.filter_map(|file| read(&file).ok()?.trim().parse::<u64>().ok());
    limits.chain(machine_memory(read)).filter(|bytes| *bytes > 0).min()
}

/// The files that may hold a memory limit of the control group in a line of `/proc/self/cgroup`, from the group itself up to
/// the root: each limit bounds all groups below. In a container the root is the container's own group.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    // Version 2 lists no controllers (cgroups(7)).
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        list if list.split(',').any(|name| name == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let group = Path::new(group.trim_start_matches('/'));
    group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
}

/// The machine's memory, in bytes (proc(5)).
fn machine_memory(read: &dyn Fn(&Path) -> io::Result<String>) -> Option<u64> {
    let text = read(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:        1024 kB\nMemFree: 1 kB\n");

    fn check(files: &[(&str, &str)], limit: Option<u64>) {
        let files: BTreeMap<PathBuf, &str> =
            files.iter().map(|(path, text)| (PathBuf::from(path), *text)).collect();
        let read = |path: &Path| {
            files.get(path).map(ToString::to_string).ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        assert_eq!(limit_of(&read), limit, "{files:?}");
    }

    #[test]
    fn without_control_groups_the_machines_memory_is_the_limit() {
        check(&[MEMINFO], Some(1 << 20));
        check(&[], None);
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let group = ("/proc/self/cgroup", "0::/pod/container\n");
        let unlimited = ("/sys/fs/cgroup/pod/container/memory.max", "max\n");
        check(&[MEMINFO, group, unlimited], Some(1 << 20));
        let pod = ("/sys/fs/cgroup/pod/memory.max", "65536\n");
        check(&[MEMINFO, group, unlimited, pod], Some(65_536));
        let own = ("/sys/fs/cgroup/pod/container/memory.max", "4096\n");
        check(&[MEMINFO, group, own, pod], Some(4096));
    }

    #[test]
    fn in_a_container_the_root_has_the_limit() {
        let files =
            [MEMINFO, ("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "9\n")];
        check(&files, Some(9));
    }

    #[test]
    fn version_1_has_a_hierarchy_for_memory() {
        let groups = "7:cpu,cpuacct:/x\n6:memory:/docker/1\n0::/y\n";
        let file = ("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "2048\n");
        check(&[MEMINFO, ("/proc/self/cgroup", groups), file], Some(2048));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for line in ["", "0", "0::", "x:y", "0::/\0"] {
            check(&[MEMINFO, ("/proc/self/cgroup", line)], Some(1 << 20));
        }
    }
}
