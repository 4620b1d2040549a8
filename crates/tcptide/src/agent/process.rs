//! What the agent's own process takes: CPU time and memory.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// What the process has taken so far, and takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
    /// Bytes of memory that are resident; `None` if /proc does not tell.
    pub(crate) resident: Option<u64>,
}

impl Usage {
    pub(crate) fn now() -> Self {
        let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
        let statm = fs::read_to_string("/proc/self/statm").ok();
        Self { cpu, resident: statm.and_then(|text| resident(&text, rustix::param::page_size())) }
    }
}

/// The second number of /proc/PID/statm, which is of pages.
fn resident(statm: &str, page_size: usize) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(page_size as u64)
}

/// The CPU time that the calling thread has taken.
pub(super) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_pages_are_bytes() {
        assert_eq!(resident("90 7 3 1 0 2 0\n", 4096), Some(28_672));
        for other in ["", "90", "90 many", "1 18446744073709551615"] {
            assert_eq!(resident(other, 4096), None, "{other}");
        }
    }

    #[test]
    fn this_process_takes_something() {
        let before = Usage::now();
        let held = vec![1_u8; 32 << 20];
        let after = Usage::now();
        assert!(after.cpu > before.cpu);
        // Other tests of this process may let go of some meanwhile.
        assert!(after.resident.unwrap() >= before.resident.unwrap() + (16 << 20), "{before:?} {after:?}");
        drop(held);
    }
}
