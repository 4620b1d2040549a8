//! Why the monitor cannot run, in sentences that say what to do.

use std::{fmt, io};

use thiserror::Error;

/// A capability that is needed, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// As in capabilities(7).
    pub name: &'static str,
    /// What tcptide does with it.
    pub purpose: &'static str,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.purpose)
    }
}

/// Why the monitor cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Capabilities are missing.
    #[error("missing privileges: {}; run it as root, or grant them", list(.0))]
    Privileges(Vec<Capability>),
    /// The kernel does not describe its types.
    #[error(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux cannot be read: {0}); tcptide needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, as those of current distributions are"
    )]
    NoBtf(io::Error),
    /// The kernel lacks what every signal is built on.
    #[error(
        "kernel {0} is too old: tcptide needs Linux 5.15 or newer (what it asks of a file's socket came with 5.11)"
    )]
    KernelTooOld(String),
    /// Kernel lockdown forbids BPF programs to read kernel memory.
    #[error(
        "kernel lockdown is in confidentiality mode, which forbids BPF programs to read kernel memory; boot with \
         lockdown=integrity or without lockdown"
    )]
    Lockdown,
    /// A program without which there is nothing to show was refused.
    #[error(
        "the kernel refused the BPF program '{program}': {reason}; `tcptide doctor` tells what this host allows, and a \
         container's seccomp profile or a security module may forbid BPF to root too"
    )]
    Refused {
        /// Name in the program table.
        program: String,
        /// The system's answer.
        reason: String,
    },
    /// An answer that was not expected.
    #[error("cannot {action}: {cause}")]
    System {
        /// What was tried.
        action: String,
        /// What the system answered.
        cause: String,
    },
}

impl Error {
    pub(crate) fn system(action: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self::System { action: action.into(), cause: cause.to_string() }
    }
}

fn list(capabilities: &[Capability]) -> String {
    capabilities.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
