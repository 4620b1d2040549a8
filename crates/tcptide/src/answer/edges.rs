//! Edges: who talks to whom, from a client to a port of a server.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use model::{
    container::{Container, sanitize},
    edge::{EdgeCounts, EdgeNow},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::command::owner;

/// The name of those that are no edges of their own.
const OTHER: &str = "~other";

/// What tells edges apart.
pub(crate) type EdgeId = (NodeId, NodeId, Option<u16>);

/// Who is at one end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Node {
    /// A container of this host.
    Container(Arc<Container>),
    /// An address: that end is elsewhere, or its socket was not found.
    Address(IpAddr),
    /// The same, where the address has a name: all addresses of that name.
    Name(Arc<str>),
}

/// What tells nodes apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum NodeId {
    Cgroup(u64),
    Address(IpAddr),
    Name(Arc<str>),
}

impl Node {
    /// The container, if it is one of this host.
    pub(crate) fn container(&self) -> Option<&Container> {
        match self {
            Self::Container(container) => Some(container),
            Self::Address(_) | Self::Name(_) => None,
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        match self {
            Self::Container(container) => NodeId::Cgroup(container.cgroup_id),
            Self::Address(address) => NodeId::Address(*address),
            Self::Name(name) => NodeId::Name(Arc::clone(name)),
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Container(container) => owner(container),
            Self::Address(address) => address.to_string(),
            Self::Name(name) => sanitize(name).into_owned(),
        }
    }
}

/// What the sockets of one side of an edge tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Side {
    /// Payload bytes sent, each once.
    pub(crate) sent_bytes: u64,
    /// Payload bytes received in order.
    pub(crate) received_bytes: u64,
    /// Segments sent.
    pub(crate) segments_out: u64,
    /// Segments sent again.
    pub(crate) retransmits: u64,
    /// Smoothed round-trip time, us: the mean of the connections that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) srtt_us: Option<u64>,
    /// The least windowed minimum of the round-trip time, us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_rtt_us: Option<u32>,
    #[serde(skip)]
    pub(crate) srtt_sum: u64,
    #[serde(skip)]
    pub(crate) srtts: u64,
}

impl Side {
    /// What an edge's metrics tell.
    pub(crate) fn of(counts: &EdgeCounts, now: &EdgeNow) -> Self {
        Self {
            sent_bytes: counts.sent_bytes,
            received_bytes: counts.received_bytes,
            segments_out: counts.sent_segments,
            retransmits: counts.retransmitted_segments,
            srtt_us: now.srtt_us.checked_div(now.srtts),
            min_rtt_us: now.min_rtt_us,
            srtt_sum: now.srtt_us,
            srtts: now.srtts,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.segments_out += other.segments_out;
        self.retransmits += other.retransmits;
        self.srtt_sum += other.srtt_sum;
        self.srtts += other.srtts;
        self.srtt_us = self.srtt_sum.checked_div(self.srtts);
        self.min_rtt_us = self.min_rtt_us.into_iter().chain(other.min_rtt_us).min();
    }
}

/// What happened per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Rates {
    /// Connections established.
    pub(crate) opened: f64,
    /// Connects that failed.
    pub(crate) failed: f64,
    /// Payload bytes from the client to the server.
    pub(crate) sent_bytes: f64,
    /// Payload bytes back.
    pub(crate) received_bytes: f64,
}

/// All connections from one client to one port of one server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Edge {
    pub(crate) client: Node,
    pub(crate) server: Node,
    /// The server's; absent where nobody saw which side began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    /// Those that are there, each once.
    pub(crate) connections: u64,
    /// Those that were established meanwhile; only where a time was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) opened: Option<u64>,
    /// Connects that failed meanwhile; only where a time was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<u64>,
    /// Per second of the time watched; only where a time was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rates: Option<Rates>,
    /// What the client's sockets tell; absent where they are elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_side: Option<Side>,
    /// What the server's sockets tell; absent where they are elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_side: Option<Side>,
}

impl Edge {
    pub(crate) fn add(&mut self, other: &Self) {
        let add = |to: &mut Option<Side>, side: Option<&Side>| {
            if let Some(side) = side {
                to.get_or_insert_default().add(side);
            }
        };
        let sum = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a + b).or(a).or(b);
        self.connections += other.connections;
        self.opened = sum(self.opened, other.opened);
        self.failed = sum(self.failed, other.failed);
        add(&mut self.client_side, other.client_side.as_ref());
        add(&mut self.server_side, other.server_side.as_ref());
    }

    /// The same numbers as those of ~other.
    pub(crate) fn of_others(self) -> Self {
        let other = Node::Name(OTHER.into());
        Self { client: other.clone(), server: other, port: None, ..self }
    }

    pub(crate) fn id(&self) -> EdgeId {
        (self.client.id(), self.server.id(), self.port)
    }

    /// Whether it stands for those without an edge of their own.
    pub(crate) fn is_other(&self) -> bool {
        matches!(&self.client, Node::Name(name) if **name == *OTHER)
    }

    pub(crate) fn size(&self) -> u64 {
        self.connections + self.opened.unwrap_or(0) + self.failed.unwrap_or(0)
    }

    /// The side that tells of it: the client's, if it is here.
    pub(crate) fn side(&self) -> Option<&Side> {
        self.client_side.as_ref().or(self.server_side.as_ref())
    }

    /// What that was per second.
    pub(crate) fn rates_over(&self, seconds: f64) -> Rates {
        let (sent, received) = self.bytes().unwrap_or_default();
        let rate = |n: u64| n as f64 / seconds;
        Rates {
            opened: rate(self.opened.unwrap_or(0)),
            failed: rate(self.failed.unwrap_or(0)),
            sent_bytes: rate(sent),
            received_bytes: rate(received),
        }
    }

    /// Bytes from the client to the server, and back.
    pub(crate) fn bytes(&self) -> Option<(u64, u64)> {
        let client = self.client_side.map(|side| (side.sent_bytes, side.received_bytes));
        client.or(self.server_side.map(|side| (side.received_bytes, side.sent_bytes)))
    }
}

/// Adds up those beyond the most.
pub(crate) fn fold(mut edges: Vec<Edge>, most: usize) -> Vec<Edge> {
    if edges.len() <= most {
        return edges;
    }
    let mut rest = edges.split_off(most).into_iter();
    if let Some(first) = rest.next() {
        let mut other = first.of_others();
        for edge in rest {
            other.add(&edge);
        }
        edges.push(other);
    }
    edges
}

/// Those of both sides, as far as they are here.
pub(crate) fn retransmits(edge: &Edge) -> u64 {
    edge.client_side.iter().chain(&edge.server_side).map(|side| side.retransmits).sum()
}

/// What an agent tells of edges.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::struct_field_names)] // as it is called in JSON
pub(crate) struct Edges {
    /// Since when it was counted, where a time was asked for: what is known may begin later, and a step of it earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    /// How long that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<f64>,
    /// How many edges there are that were asked for.
    pub(crate) matched: u64,
    pub(crate) edges: Vec<Edge>,
}

/// Sorts those with the most connections first.
pub(crate) fn sort(edges: &mut [Edge]) {
    edges.sort_by_cached_key(|edge| {
        (edge.is_other(), Reverse(edge.size()), edge.client.name(), edge.server.name(), edge.port)
    });
}
