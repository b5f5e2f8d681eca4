//! The memory limit of live documents. Above it idle rooms unload (`room::shared`), and if that is
//! not enough no document is opened.

#![allow(clippy::disallowed_methods, reason = "/proc and /sys are in memory")]

use std::{fs, path::Path, sync::Mutex};

use crate::{base::lock::lock, config::MemoryLimit};

/// The limit in effect, with the bytes that it means on this machine.
#[derive(Default)]
pub struct Budget(Mutex<Option<(MemoryLimit, u64)>>);

impl Budget {
    /// Whether the process uses more memory than `of`.
    pub fn is_exceeded(&self, of: MemoryLimit) -> bool {
        let mut known = lock(&self.0);
        let (_, bytes) = match *known {
            Some(known) if known.0 == of => known,
            _ => *known.insert((of, limit(of))),
        };
        drop(known);
        used().is_some_and(|used| used > bytes)
    }
}

/// The bytes that `limit` means on this machine. A percentage is one of the RAM, or of systemd's
/// `MemoryMax` (or a container's limit) if that is less.
pub fn limit(limit: MemoryLimit) -> u64 {
    match limit {
        MemoryLimit::Bytes(size) => size.0,
        MemoryLimit::Percent(percent) => {
            let ram = ram();
            let of = cgroup_limit().map_or(ram, |limit| limit.min(ram));
            of / 100 * u64::from(percent)
        }
    }
}

/// Bytes of memory of the process that are not backed by files (`proc(5)`, `/proc/self/statm`).
fn used() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// Bytes of RAM. The sandbox of the unit hides `/proc/meminfo`.
fn ram() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// The lowest limit of this process's control group and those above it (`cgroups(7)`).
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(group_limit).min()
}

/// The limit of one line of `/proc/self/cgroup`: `0::/system.slice/x.service`, or `9:memory:/...`
/// in the old hierarchy.
fn group_limit(line: &str) -> Option<u64> {
    let (mount, file, path) = match line.splitn(3, ':').collect::<Vec<_>>().as_slice() {
        ["0", "", path] => ("/sys/fs/cgroup", "memory.max", *path),
        [_, "memory", path] => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", *path),
        _ => return None,
    };
    let group = Path::new(mount).join(path.trim_start_matches('/'));
    let above = group.ancestors().take_while(|above| above.starts_with(mount));
    // "max" is not a number: there is no limit.
    let limits = above.filter_map(|group| fs::read_to_string(group.join(file)).ok());
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;

    #[test]
    fn a_percentage_is_of_what_there_is() {
        let all = limit(MemoryLimit::Percent(100));
        let half = limit(MemoryLimit::Percent(50));
        assert!(all > 64 << 20 && half.abs_diff(all / 2) < 100, "{half} of {all}");
        assert_eq!(limit(MemoryLimit::Bytes(Size::mib(7))), 7 << 20);
        assert!(used().expect("this process") > 1 << 20);
        let budget = Budget::default();
        assert!(budget.is_exceeded(MemoryLimit::Bytes(Size(1))));
        assert!(!budget.is_exceeded(MemoryLimit::Percent(100)));
        assert_eq!(group_limit("4:cpu:/a"), None);
        assert_eq!(group_limit("garbage"), None);
    }
}
