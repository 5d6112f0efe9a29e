//! What this process may take of the machine: memory and cores, as the system and its control group allow.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes, where the system says them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Of the machine.
    pub total: Option<u64>,
    /// That can be taken without swapping.
    pub available: Option<u64>,
    /// Of the control group (a container, a Slurm job), and what it has taken of it.
    pub group: Option<u64>,
    pub group_used: Option<u64>,
}

impl MemoryLimits {
    pub fn read() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (group, group_used) = tightest(&groups, Path::new("/sys/fs/cgroup"));
        let bytes = |name: &str| kib(name).map(|kib| 1024 * kib);
        Self { total: bytes("MemTotal:"), available: bytes("MemAvailable:"), group, group_used }
    }

    /// What can be taken now; everything where nobody says.
    pub fn free(&self) -> u64 {
        let in_group = self.group.map(|group| group.saturating_sub(self.group_used.unwrap_or(0)));
        self.available.into_iter().chain(in_group).min().unwrap_or(u64::MAX)
    }
}

/// The smallest limit of the groups that the process is in, from its own up, with what is used of it.
fn tightest(groups: &str, mounted: &Path) -> (Option<u64>, Option<u64>) {
    let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let mut found: Option<(u64, Option<u64>)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        // Version 2 has one hierarchy without names, version 1 one for memory.
        let (root, limit, used) = match controllers {
            "" => (mounted.to_owned(), "memory.max", "memory.current"),
            names if names.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        for folder in root.join(path.trim_start_matches('/')).ancestors().take_while(|folder| folder.starts_with(&root)) {
            // Version 1 says "none" as a number that no machine has.
            let most = number(folder.join(limit)).filter(|&most| most < 1 << 60);
            if let Some(most) = most.filter(|&most| found.is_none_or(|(least, _)| most < least)) {
                found = Some((most, number(folder.join(used))));
            }
        }
    }
    (found.map(|(most, _)| most), found.and_then(|(_, used)| used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_above_counts() {
        let mounted = tempfile::tempdir().unwrap();
        let inner = mounted.path().join("job/step");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(tightest("0::/job/step\n", mounted.path()), (None, None));
        fs::write(mounted.path().join("job/memory.max"), "4096\n").unwrap();
        fs::write(mounted.path().join("job/memory.current"), "1000\n").unwrap();
        assert_eq!(tightest("0::/job/step\n", mounted.path()), (Some(4096), Some(1000)));
        assert_eq!(tightest("4:cpu,memory:/\n", mounted.path()), (None, None));
    }

    #[test]
    fn what_is_free_is_the_least_that_is_said() {
        let limits = MemoryLimits { total: Some(100), available: Some(50), group: Some(40), group_used: Some(30) };
        assert_eq!(limits.free(), 10);
        assert_eq!(MemoryLimits::default().free(), u64::MAX);
    }
}
