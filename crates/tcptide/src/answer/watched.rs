//! One connection that is watched.

use jiff::Timestamp;
use model::{
    connection::Connection,
    histogram::{Histogram, Scale},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::totals::{self, distribution};

/// What an agent tells of one connection that it was asked about before, and of which it has kept this since.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Watched {
    /// Since when its round trips are counted and its states are noted: since it was first asked about.
    #[schemars(with = "String")]
    pub(crate) since: Timestamp,
    /// As it is now; absent: it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connection: Option<Connection>,
    /// RTT samples since then: of a round trip at most one, as everywhere, and one in a millisecond at most.
    #[serde(deserialize_with = "round_trips")]
    #[schemars(with = "totals::Histogram")]
    pub(crate) rtt: Histogram,
    /// The states it has been in, the first one first.
    pub(crate) states: Vec<Entered>,
}

/// A state that a connection came into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Entered {
    /// TCP state, as in `connection`; `close` is the end.
    pub(crate) state: String,
    /// When; absent: before anybody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(crate) at: Option<Timestamp>,
}

fn round_trips<'de, D: Deserializer<'de>>(from: D) -> Result<Histogram, D::Error> {
    distribution(from, &Scale::RTT)
}
