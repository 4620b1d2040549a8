//! Which CPU a process runs on: its parent's choice.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPUs that this process may use, by number.
pub(crate) fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("asking which CPUs there are")?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// Does something that starts a process; that one, and what it starts, stays on that CPU.
pub(crate) fn on<T>(cpu: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None).context("asking which CPUs there are")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).with_context(|| format!("choosing CPU {cpu}"))?;
    let started = start();
    sched_setaffinity(None, &before).context("choosing all CPUs again")?;
    started
}
