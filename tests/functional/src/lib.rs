//! What the functional tests are told with: namespaces, cgroups, an impaired path between two
//! namespaces, TCP workloads that count, real container runtimes, and second witnesses.
//!
//! A story makes what it needs, lets real TCP happen, and compares what tcptide says with what
//! somebody else counted: the workload itself, `ss`, the namespace's own counters, or the path's.
//!
//! | module | what it gives |
//! |---|---|
//! | [`netns`] | network namespaces, veth pairs |
//! | [`cgroup`] | cgroups, and processes started inside them |
//! | [`forwarder`] | a path with delay, loss, duplication, reordering, corruption, congestion marks, a rate, a blackhole |
//! | [`packet`] | just enough of IP and TCP to pick packets on that path, and to answer them |
//! | [`workload`] | TCP clients and a server that count every connection and byte |
//! | [`dns`] | a DNS server, and lookups of it |
//! | [`runtime`] | Docker, Podman and containerd, and a small image to run |
//! | [`docker_api`] | Docker's API without Docker, for names that no Docker would give |
//! | [`nginx`], [`prometheus`] | a real server, and a real reader of metrics |
//! | [`tcptide`] | the binary under test |
//! | [`terminal`] | a terminal to run it on: its screen, its keys and its mouse |
//! | [`connections`] | the connections that it tells of |
//! | [`witness`] | `ss` and the kernel's counters, parsed |
//!
//! Everything made here is named after the process that made it, is removed on `Drop` (also when
//! a story panics), and what a killed run left behind is removed by the next one ([`sweep`]).
//! Traffic stays on loopback and inside namespaces made here, on addresses for documentation and
//! benchmarks (198.18.0.0/15, `fd00::/8`).
//!
//! A missing program is an error that names the package to install. No story is skipped.

use std::fs::File;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

pub mod cgroup;
pub mod connections;
pub mod dns;
pub mod docker_api;
pub mod forwarder;
pub mod http;
pub mod netns;
pub mod nginx;
pub mod packet;
pub mod process;
pub mod prometheus;
pub mod runtime;
pub mod samples;
pub mod sweep;
pub mod tcptide;
pub mod terminal;
pub mod witness;
pub mod workload;

/// Fails with a sentence saying what to do when the tests do not run as root.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "these tests make network namespaces, cgroups and containers: run them as root, for example with `sudo -E cargo test -p functional`"
    )
}

/// Held while a story uses something of which the machine has only one.
#[derive(Debug)]
pub struct Serial {
    _lock: File,
}

/// Waits until no other story, of this or another test process, holds `what`, and holds it.
///
/// The lock is a file's and goes with the process, so a killed run blocks nobody.
pub fn serial(what: &str) -> Result<Serial> {
    let path = std::env::temp_dir().join(format!("tcptide-{what}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening the lock file {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("waiting for the lock {}", path.display()))?;
    Ok(Serial { _lock: file })
}
