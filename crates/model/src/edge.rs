//! Edges: a container and whom it talks to. What is counted of each, and the metrics of it.

use crate::metrics::Kind;

/// The labels of an edge's metrics. The port is the server's, where this container is the client; the client's own means
/// nothing and would be another one for each connection.
pub const EDGE_LABELS: [&str; 9] = [
    "container",
    "pod",
    "namespace",
    "direction",
    "peer_container",
    "peer_pod",
    "peer_namespace",
    "peer_name",
    "peer_port",
];

/// What the connections of an edge have counted, on this container's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounts {
    /// Connections that were seen to be established.
    pub established: u64,
    /// Connects that ended without being established.
    pub failed: u64,
    /// Payload bytes sent, each once.
    pub sent_bytes: u64,
    /// Payload bytes received in order.
    pub received_bytes: u64,
    /// Segments sent.
    pub sent_segments: u64,
    /// Segments sent again.
    pub retransmitted_segments: u64,
}

impl EdgeCounts {
    /// Adds what others have counted.
    pub fn add(&mut self, other: &Self) {
        let Self { established, failed, sent_bytes, received_bytes, sent_segments, retransmitted_segments } =
            other;
        self.established += established;
        self.failed += failed;
        self.sent_bytes += sent_bytes;
        self.received_bytes += received_bytes;
        self.sent_segments += sent_segments;
        self.retransmitted_segments += retransmitted_segments;
    }

    /// What has come since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            established: self.established.saturating_sub(earlier.established),
            failed: self.failed.saturating_sub(earlier.failed),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            sent_segments: self.sent_segments.saturating_sub(earlier.sent_segments),
            retransmitted_segments: self
                .retransmitted_segments
                .saturating_sub(earlier.retransmitted_segments),
        }
    }
}

/// How the connections of an edge are that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeNow {
    /// How many.
    pub connections: u64,
    /// Their smoothed round-trip times, us, added up.
    pub srtt_us: u64,
    /// How many have one.
    pub srtts: u64,
    /// The least of their windowed minima, us.
    pub min_rtt_us: Option<u32>,
}

impl EdgeNow {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.srtt_us += other.srtt_us;
        self.srtts += other.srtts;
        self.min_rtt_us = self.min_rtt_us.into_iter().chain(other.min_rtt_us).min();
    }
}

/// A metric's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A count.
    Whole(u64),
    /// Seconds.
    Seconds(f64),
}

impl Number {
    fn of_us(us: u64) -> Self {
        Self::Seconds(us as f64 / 1e6)
    }
}

/// A metric of edges.
#[derive(Clone, Copy, Debug)]
pub struct EdgeMetric {
    /// Its whole name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it counts, and its unit.
    pub help: &'static str,
    /// Reads it; `None`: there is nothing to tell.
    pub read: fn(&EdgeCounts, &EdgeNow) -> Option<Number>,
}

/// One row for each metric of edges.
pub const EDGE_METRICS: &[EdgeMetric] = &[
    EdgeMetric {
        name: "tcptide_edge_connections",
        kind: Kind::Gauge,
        help: "Connections that are there.",
        read: |_, now| Some(Number::Whole(now.connections)),
    },
    EdgeMetric {
        name: "tcptide_edge_established_total",
        kind: Kind::Counter,
        help: "Connections that were established.",
        read: |counts, _| Some(Number::Whole(counts.established)),
    },
    EdgeMetric {
        name: "tcptide_edge_connect_failures_total",
        kind: Kind::Counter,
        help: "Connects that ended without being established.",
        read: |counts, _| Some(Number::Whole(counts.failed)),
    },
    EdgeMetric {
        name: "tcptide_edge_sent_bytes_total",
        kind: Kind::Counter,
        help: "Payload bytes that the container sent, each once.",
        read: |counts, _| Some(Number::Whole(counts.sent_bytes)),
    },
    EdgeMetric {
        name: "tcptide_edge_received_bytes_total",
        kind: Kind::Counter,
        help: "Payload bytes that the container received in order.",
        read: |counts, _| Some(Number::Whole(counts.received_bytes)),
    },
    EdgeMetric {
        name: "tcptide_edge_sent_segments_total",
        kind: Kind::Counter,
        help: "Segments that the container sent, empty and repeated ones too.",
        read: |counts, _| Some(Number::Whole(counts.sent_segments)),
    },
    EdgeMetric {
        name: "tcptide_edge_retransmitted_segments_total",
        kind: Kind::Counter,
        help: "Segments that the container sent again.",
        read: |counts, _| Some(Number::Whole(counts.retransmitted_segments)),
    },
    EdgeMetric {
        name: "tcptide_edge_srtt_seconds",
        kind: Kind::Gauge,
        help: "Smoothed round-trip time, mean of the connections that are there; absent before the first sample.",
        read: |_, now| now.srtt_us.checked_div(now.srtts).map(Number::of_us),
    },
    EdgeMetric {
        name: "tcptide_edge_min_rtt_seconds",
        kind: Kind::Gauge,
        help: "The least windowed minimum of the round-trip time of the connections that are there; absent before the first sample.",
        read: |_, now| now.min_rtt_us.map(|us| Number::of_us(us.into())),
    },
];
