//! TCP clients and a server that count what they do: connections, failures, bytes.
//!
//! Usable from a story's threads ([`Server`], [`churn`], [`Held`], [`ping_pong`], [`stream`], [`speak`]) and
//! as the program `workload`, which runs where a thread cannot: in a cgroup, in a container, or in
//! several processes when one may not open enough files. [`Running`] drives that program.
//!
//! They speak in frames: eight bytes that tell the whole frame's length (big endian), then filler.
//! A client sends a frame and the server answers with one. Both count the bytes that `read` and
//! `write` said they moved, so what one side sent the other received, to the byte, unless a
//! connection was reset.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod client;
mod passing;
mod running;
mod server;

pub use client::{
    Churn, Client, Held, PingPong, Stream, churn, connections_per_process, ping_pong, speak, stream,
};
pub use passing::{Taker, pass};
pub use running::{Running, command, program};
pub use server::{ServeOptions, Server};

/// The length of the length, and so of the smallest frame, in bytes.
pub const SMALLEST_FRAME: u64 = 8;

/// What one side of a workload did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Connections that this side established by `connect`.
    pub opened: u64,
    /// Connections that this side took with `accept`.
    pub accepted: u64,
    /// Connections that this side closed after the peer and it had said all they wanted.
    pub closed: u64,
    /// Connections that failed or broke, by the name of the errno.
    pub failed: BTreeMap<String, u64>,
    /// Bytes that `write` accepted.
    pub bytes_sent: u64,
    /// Bytes that `read` returned.
    pub bytes_received: u64,
    /// Requests sent by a client, or answered by a server.
    pub requests: u64,
    /// From start to end, in seconds.
    pub seconds: f64,
    /// CPU time of the program `workload` between its start and its end, in seconds; 0 of a story's own threads.
    pub cpu_seconds: f64,
    /// Duration of `connect`, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<Quantiles>,
    /// From sending a request until its answer was complete, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<Quantiles>,
}

impl Counts {
    /// All failures together.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds another process's or thread's counts. Quantiles cannot be added: the worst stay.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.accepted += other.accepted;
        self.closed += other.closed;
        for (errno, count) in &other.failed {
            *self.failed.entry(errno.clone()).or_default() += count;
        }
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.requests += other.requests;
        self.seconds = self.seconds.max(other.seconds);
        self.cpu_seconds += other.cpu_seconds;
        self.connect_us = Quantiles::worst(self.connect_us, other.connect_us);
        self.round_trip_us = Quantiles::worst(self.round_trip_us, other.round_trip_us);
    }

    pub(crate) fn fail(&mut self, error: &io::Error) {
        *self.failed.entry(errno_name(error)).or_default() += 1;
    }
}

/// A distribution of durations, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Quantiles {
    /// `None` if there is nothing to tell of.
    pub fn of(mut durations: Vec<Duration>) -> Option<Self> {
        durations.sort_unstable();
        let at = |share: f64| {
            let index = ((durations.len() - 1) as f64 * share).round() as usize;
            durations[index].as_secs_f64() * 1e6
        };
        (!durations.is_empty()).then(|| Self { min: at(0.0), p50: at(0.5), p99: at(0.99), max: at(1.0) })
    }

    fn worst(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
        let (p50, p99) = (a.p50.max(b.p50), a.p99.max(b.p99));
        Some(Self { min: a.min.min(b.min), p50, p99, max: a.max.max(b.max) })
    }
}

/// The errno's name as `errno(3)` spells it; `timeout` if the workload itself gave up waiting.
fn errno_name(error: &io::Error) -> String {
    use rustix::io::Errno;
    let Some(errno) = Errno::from_io_error(error) else {
        return match error.kind() {
            io::ErrorKind::TimedOut => "timeout".to_owned(),
            io::ErrorKind::UnexpectedEof => "early-end".to_owned(),
            kind => kind.to_string(),
        };
    };
    let name = match errno {
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::CONNRESET => "ECONNRESET",
        Errno::CONNABORTED => "ECONNABORTED",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::ADDRINUSE => "EADDRINUSE",
        Errno::PIPE => "EPIPE",
        Errno::MFILE => "EMFILE",
        // A socket's own timeout: SO_SNDTIMEO ends a connect with the first, a read with the second.
        Errno::INPROGRESS | Errno::AGAIN => "timeout",
        _ => return format!("errno {}", errno.raw_os_error()),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_durations() {
        let durations = (1..=100).rev().map(Duration::from_micros).collect();
        let quantiles = Quantiles::of(durations).unwrap();
        assert_eq!((quantiles.min, quantiles.max), (1.0, 100.0));
        assert!((49.0..=52.0).contains(&quantiles.p50) && (98.0..=100.0).contains(&quantiles.p99));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn counts_survive_json_and_add_up() {
        let failed = BTreeMap::from([("ECONNREFUSED".to_owned(), 2)]);
        let one = Counts { opened: 3, failed, bytes_sent: 5, seconds: 1.5, ..Counts::default() };
        let text = serde_json::to_string(&one).unwrap();
        let mut two: Counts = serde_json::from_str(&text).unwrap();
        assert_eq!(one, two);
        two.add(&one);
        assert_eq!((two.opened, two.bytes_sent, two.failures()), (6, 10, 4));
    }
}
