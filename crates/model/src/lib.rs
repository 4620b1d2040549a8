//! What tcptide knows about TCP and containers, as pure functions of data.
//!
//! Nothing here does I/O or needs a privilege: kernel records come in, meaning goes out.
//!
//! * [`record`]: the bytes the kernel side hands over, generated from `record.h`
//! * [`connection`]: one connection as people and programs meet it
//! * [`histogram`]: bucketed distributions and their quantiles
//! * [`container`]: a cgroup path to the container it belongs to
//! * [`mod@drop`]: why packets are dropped
//! * [`edge`]: what is counted of a container and whom it talks to
//! * [`explain`]: what holds a connection back
//! * [`filter`]: which connections a person asked for
//! * [`metrics`]: the table of every metric
//! * [`namespace`]: what the kernel counts by network namespace only
//! * [`snmp`]: the kernel's own counters
#![forbid(unsafe_code)]

pub mod connection;
pub mod container;
pub mod drop;
pub mod edge;
pub mod explain;
pub mod filter;
pub mod histogram;
pub mod metrics;
pub mod mountinfo;
pub mod namespace;
pub mod record;
pub mod snmp;
