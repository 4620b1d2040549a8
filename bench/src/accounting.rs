//! What a process costs, as the kernel accounts for it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, anyhow};
use rustix::param::clock_ticks_per_second;

/// CPU time of a running process, to the nanosecond: the sum over its threads. Threads that have ended are not in it.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    let ns = tasks.flatten().filter_map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(ns.sum()))
}

/// CPU time of all children of this process that have ended and were waited for, in clock ticks of usually 10 ms.
pub(crate) fn cpu_of_ended_children() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    ended_children(&stat, clock_ticks_per_second())
        .ok_or_else(|| anyhow!("no times in /proc/self/stat: {stat}"))
}

/// Fields 16 and 17 of `proc(5)`, `cutime` and `cstime`.
fn ended_children(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // A name may hold blanks and parentheses; the state, field 3, comes after the last one.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 = fields.get(13..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

/// The most memory a running process had resident so far (`VmHWM`), and has now (`VmRSS`), in bytes.
pub(crate) fn resident(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((kib(&status, "VmHWM:")? << 10, kib(&status, "VmRSS:")? << 10))
}

/// The kernel's memory that it cannot give back, such as sockets and their storage, in bytes.
pub(crate) fn kernel_memory() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    kib(&meminfo, "SUnreclaim:").map(|kib| kib << 10).context("no SUnreclaim in /proc/meminfo")
}

fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found_behind_any_name() {
        let stat = "1 (a) b (c) S 0 1 1 0 -1 4194560 27 3 0 0 1 2 30 12 20 0 1 0 9 8 7";
        assert_eq!(ended_children(stat, 100), Some(Duration::from_millis(420)));
        assert_eq!(ended_children("1 (a) S 0", 100), None);
    }

    #[test]
    fn sizes_are_read_from_the_kernels_lists() {
        let text = "VmPeak:\t    2048 kB\nVmHWM:\t    1024 kB\nThreads:\t1\n";
        assert_eq!(kib(text, "VmHWM:"), Some(1024));
        assert_eq!((kib(text, "VmRSS:"), kib(text, "Threads:")), (None, None));
    }

    #[test]
    fn an_own_burden_is_seen() {
        let before = cpu_of(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::black_box(0);
        }
        assert!(cpu_of(std::process::id()).unwrap() > before);
        assert!(resident(std::process::id()).unwrap().0 > 0);
        assert_eq!(resident(u32::MAX), None);
    }
}
