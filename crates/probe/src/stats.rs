//! What the programs themselves cost, as the kernel counts it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use crate::{
    error::Error,
    programs::{Program, Status},
    start::Measure,
};

/// From one measurement to the next, where they are samples. A call that ends one comes soon after the one that began it.
const PERIOD: Duration = Duration::from_secs(10);

/// One program, what became of it, and what it has cost.
#[derive(Debug, Clone)]
pub struct ProgramStats {
    /// Its row in the table.
    pub program: &'static Program,
    /// What became of it.
    pub status: Status,
    /// Its cost; `None` where it does not run.
    pub run: Option<RunStats>,
}

/// `struct bpf_prog_info`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Time spent in it, ns, while the [`crate::Monitor`] measured; since 5.1.
    pub run_time_ns: u64,
    /// How often it ran in that time.
    pub runs: u64,
    /// How often it did not run because it was running on this CPU already; since 5.12.
    pub missed: u64,
    /// Instructions the verifier looked at when it was loaded; since 5.16, else 0.
    pub verified_instructions: u32,
    /// Bytes of its machine code.
    pub machine_code_bytes: u32,
}

/// Time spent (ns) and runs, by program.
type Reading = BTreeMap<&'static str, (u64, u64)>;

/// What the programs have taken in the times that were measured: the kernel may measure for others as well.
#[derive(Default)]
pub(crate) struct Costs {
    /// In the times that are over.
    sums: Reading,
    measured: Duration,
    window: Option<Window>,
    last: Option<Instant>,
}

/// A time that is being measured.
struct Window {
    _measuring: OwnedFd,
    begun: Instant,
    before: Reading,
}

impl Costs {
    /// Begins a time or ends it, as is due. `read` says what the kernel counts now.
    pub(crate) fn tend(&mut self, when: Measure, read: impl Fn() -> Reading) -> Result<(), Error> {
        if let Some(window) = self.window.take_if(|_| when != Measure::Always) {
            add(&mut self.sums, &window.before, &read());
            self.measured += window.begun.elapsed();
        } else if when != Measure::Never
            && self.window.is_none()
            && self.last.is_none_or(|last| last.elapsed() >= PERIOD)
        {
            self.last = Some(Instant::now());
            let measuring = enable()?;
            self.window = Some(Window { _measuring: measuring, begun: Instant::now(), before: read() });
        }
        Ok(())
    }

    /// As of now, given what the kernel counts now: time spent and runs, and how long was measured.
    pub(crate) fn sums(&self, now: &Reading) -> (Reading, Duration) {
        let (mut sums, mut measured) = (self.sums.clone(), self.measured);
        if let Some(window) = &self.window {
            add(&mut sums, &window.before, now);
            measured += window.begun.elapsed();
        }
        (sums, measured)
    }
}

fn add(sums: &mut Reading, before: &Reading, now: &Reading) {
    for (name, (ns, runs)) in now {
        let (ns_before, runs_before) = before.get(name).copied().unwrap_or_default();
        let sum = sums.entry(name).or_default();
        sum.0 += ns.saturating_sub(ns_before);
        sum.1 += runs.saturating_sub(runs_before);
    }
}

/// Makes the kernel measure run times while it is held.
pub(crate) fn enable() -> Result<OwnedFd, Error> {
    // SAFETY: takes a number, returns a new file descriptor or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(Error::system("have the kernel measure BPF programs", io::Error::from_raw_os_error(-fd)));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn of(program: BorrowedFd<'_>) -> Result<RunStats, Error> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is writable and `len` bytes long; it holds no pointer, so the kernel fills in numbers only.
    let rc = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut len) };
    if rc < 0 {
        return Err(Error::system("ask about a BPF program", io::Error::from_raw_os_error(-rc)));
    }
    Ok(RunStats {
        run_time_ns: info.run_time_ns,
        runs: info.run_cnt,
        missed: info.recursion_misses,
        verified_instructions: info.verified_insns,
        machine_code_bytes: info.jited_prog_len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_before_is_not_counted() {
        let mut sums = Reading::new();
        let before = Reading::from([("a", (100, 10))]);
        add(&mut sums, &before, &Reading::from([("a", (150, 11)), ("b", (7, 1))]));
        add(&mut sums, &Reading::from([("a", (500, 20))]), &Reading::from([("a", (501, 22))]));
        assert_eq!(sums, Reading::from([("a", (51, 3)), ("b", (7, 1))]));
    }

    #[test]
    fn nothing_is_measured_unless_it_is_asked_for() {
        let mut costs = Costs::default();
        costs.tend(Measure::Never, || Reading::from([("a", (1, 1))])).unwrap();
        assert_eq!(costs.sums(&Reading::from([("a", (5, 5))])), (Reading::new(), Duration::ZERO));
    }
}
