//! The kernel side of tcptide: the BPF programs, and what loads, attaches and reads them.
//!
//! A [`Monitor`] gives every TCP socket of the host a gauge of its own, in the kernel, and reads it when someone
//! looks:
//!
//! * [`Monitor::events`]: connections as they open, fail and close, if asked for in [`Options::events`]
//! * [`Monitor::walk`]: the connections that live now
//! * [`Monitor::each_total`]: what the sockets of each cgroup have done
//!
//! ```no_run
//! use model::record::event;
//! use probe::{Monitor, Options};
//!
//! let mut monitor = Monitor::start(&Options { events: 1 << event::EVENT_FAIL, ..Options::default() })?;
//! loop {
//!     std::thread::sleep(std::time::Duration::from_millis(100));
//!     monitor.events(&mut |connection| println!("{connection:?}"))?;
//! }
//! # Ok::<(), probe::Error>(())
//! ```
//!
//! This is the only crate with `unsafe`, libbpf or clang in it.
#![allow(unsafe_code)]

mod batch;
mod error;
mod floor;
mod kernel;
mod monitor;
mod namespaces;
mod programs;
mod read;
mod rows;
mod skel;
mod start;
mod stats;

pub use error::{Capability, Error};
pub use floor::Floor;
pub use kernel::{Kernel, check_privileges};
pub use monitor::{CgroupEvent, Monitor, NamespaceOwner, Walk};
pub use namespaces::{in_network_namespaces, network_namespaces};
pub use programs::{PROGRAMS, Program, Status};
pub use start::{MAX_SOCKETS, Measure, Options, Owner};
pub use stats::{ProgramStats, RunStats};
