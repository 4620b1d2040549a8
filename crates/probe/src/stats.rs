//! What the programs themselves cost, as the kernel counts it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::{
    error::Error,
    programs::{Program, Status},
};

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
    /// Time spent in it, ns, while `kernel.bpf_stats_enabled` is on or a [`crate::Monitor`] measures; since 5.1.
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
