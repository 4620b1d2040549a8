//! Live connections.

use model::connection::Connection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an agent tells of connections.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Connections {
    /// How many there are that were asked for; `connections` may have fewer.
    pub(crate) matched: u64,
    pub(crate) connections: Vec<Connection>,
}

impl Connections {
    /// Whether all of them are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.connections.len() as u64 >= self.matched
    }
}
