//! Listening sockets.

use std::cmp::Reverse;

use model::{
    connection::{Connection, Queues},
    histogram::Histogram,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A listener, and what happened there between two looks.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Listener {
    #[serde(flatten)]
    pub(crate) connection: Connection,
    /// Only where it was watched, which is no look.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    #[schemars(skip)]
    pub(crate) watched: Option<Watched>,
}

impl Listener {
    /// Its queues; a connection has none.
    pub(crate) fn queues(&self) -> Queues {
        self.connection.queues.unwrap_or_default()
    }
}

/// Sorts the fullest first, then by name and port.
pub(crate) fn sort(listeners: &mut [Listener]) {
    listeners.sort_by_cached_key(|l| {
        let queues = l.queues();
        let c = &l.connection;
        (Reverse((queues.accept, queues.drops)), c.container.name.clone(), c.local.port, c.cookie)
    });
}

#[derive(Serialize)]
pub(crate) struct Watched {
    /// Packets turned away.
    pub(crate) drops: u32,
    /// Times that the accept queue was full when somebody came; absent where that is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overflows: Option<u32>,
    /// From the completed handshake to `accept()`, of connections that were made and accepted meanwhile.
    pub(crate) accept_wait: Histogram,
    /// Whether these times are upper bounds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) accept_wait_is_bound: bool,
}

/// What an agent tells of listeners.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Listeners {
    pub(crate) listeners: Vec<Listener>,
}
