//! How an agent is.

use std::time::Instant;

use model::record::loss::{
    LOSS_CGROUP_EVENT, LOSS_CONNECTION_EVENT, LOSS_DNS, LOSS_OWNER, LOSS_STORAGE, LOSS_TOTALS, LOSSES,
};
use probe::Walk;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{agent::process::Usage, command::runtime, identity::Directory};

/// How the agent is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// `ok`: it is attached, and answers.
    pub(crate) status: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// For how long it has been attached, seconds.
    pub(crate) uptime_seconds: f64,
    /// What found no room, or no owner.
    pub(crate) lost: Lost,
    /// What it costs.
    pub(crate) cost: Cost,
    /// How each container runtime answers, in words.
    pub(crate) runtimes: Vec<String>,
    /// How Kubernetes does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kubernetes: Option<String>,
}

/// What was lost since the start; each has a metric.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Lost {
    /// Events of connections: the buffer was full.
    pub(crate) connection_events: u64,
    /// Cgroups made or removed: the buffer was full. They are found otherwise, later.
    pub(crate) cgroup_events: u64,
    /// DNS answers: the buffer was full.
    pub(crate) dns_answers: u64,
    /// Sockets that could not be followed: no room, or no memory.
    pub(crate) sockets: u64,
    /// Times that a cgroup found no room for totals of its own: it counts for ~other.
    pub(crate) totals: u64,
    /// Sockets without an owner: they count for ~unattributed.
    pub(crate) owners: u64,
}

/// What the agent costs; each has a metric.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct Cost {
    /// User and system time of all its threads, seconds.
    pub(crate) cpu_seconds: f64,
    /// Bytes of memory that are resident.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes: Option<u64>,
    /// How many sockets the last walk looked at, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) walk_sockets: Option<u64>,
    /// How long that took, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) walk_seconds: Option<f64>,
}

impl Cost {
    pub(crate) fn of(usage: Usage, walk: Option<Walk>) -> Self {
        Self {
            cpu_seconds: usage.cpu.as_secs_f64(),
            resident_bytes: usage.resident,
            walk_sockets: walk.map(|walk| walk.sockets),
            walk_seconds: walk.map(|walk| walk.took.as_secs_f64()),
        }
    }
}

impl Lost {
    /// By [`model::record::loss`].
    pub(crate) fn of(losses: &[u64; LOSSES]) -> Self {
        Self {
            connection_events: losses[LOSS_CONNECTION_EVENT],
            cgroup_events: losses[LOSS_CGROUP_EVENT],
            dns_answers: losses[LOSS_DNS],
            sockets: losses[LOSS_STORAGE],
            totals: losses[LOSS_TOTALS],
            owners: losses[LOSS_OWNER],
        }
    }
}

impl Health {
    pub(crate) fn new(kernel: String, began: Instant, lost: Lost, cost: Cost, directory: &Directory) -> Self {
        Self {
            status: "ok",
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            uptime_seconds: began.elapsed().as_secs_f64(),
            lost,
            cost,
            runtimes: directory.statuses().iter().map(runtime).collect(),
            kubernetes: directory.kubernetes().map(|status| status.to_string()),
        }
    }
}
