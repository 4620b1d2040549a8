//! Sockets by container and TCP state.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::Arc,
};

use model::{
    connection::STATE_NAMES,
    container::Container,
    record::{self, STATES},
};
use probe::network_namespaces;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const SYN_RECV: usize = 3;
const TIME_WAIT: usize = 6;

/// A container's sockets.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Row {
    pub(crate) container: Arc<Container>,
    /// How many there are in each state that any is in.
    pub(crate) states: BTreeMap<String, u64>,
    pub(crate) total: u64,
}

impl Row {
    fn new(container: Arc<Container>, counts: &[u64; STATES]) -> Self {
        let states = STATE_NAMES
            .iter()
            .zip(counts)
            .filter(|(_, n)| **n > 0)
            .filter_map(|(name, n)| name.map(|name| (name.to_owned(), *n)))
            .collect();
        Self { container, states, total: counts.iter().sum() }
    }

    /// How many are in this state, by the kernel's number.
    pub(crate) fn in_state(&self, state: usize) -> u64 {
        let name = STATE_NAMES.get(state).copied().flatten();
        name.and_then(|name| self.states.get(name)).copied().unwrap_or(0)
    }
}

/// What a walk brings.
#[derive(Default)]
pub(crate) struct States {
    containers: BTreeMap<u64, (Arc<Container>, [u64; STATES])>,
    /// A walk in several parts may meet a socket again.
    seen: HashSet<u64>,
}

impl States {
    /// Counts a socket.
    pub(crate) fn see(&mut self, r: &record::Connection, container: &Arc<Container>) {
        if !self.seen.insert(r.cookie) {
            return;
        }
        let of = self.containers.entry(container.cgroup_id);
        let (_, counts) = of.or_insert_with(|| (container.whole(), [0; STATES]));
        if let Some(count) = counts.get_mut(usize::from(r.state)) {
            *count += 1;
            counts[SYN_RECV] += u64::from(r.syn_queue);
        }
    }

    /// By container, those with the most sockets first.
    pub(crate) fn rows(self) -> Vec<Row> {
        let rows = self.containers.into_values();
        let mut rows: Vec<_> = rows.map(|(container, counts)| Row::new(container, &counts)).collect();
        rows.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.container.name.cmp(&b.container.name)));
        rows
    }
}

/// The sockets of this host in TIME_WAIT, if there are any: no full socket is left of them, and so no owner.
pub(crate) fn time_wait(unattributed: impl FnOnce() -> Arc<Container>) -> Option<Row> {
    let waiting = count_time_wait();
    let mut counts = [0; STATES];
    counts[TIME_WAIT] = waiting;
    (waiting > 0).then(|| Row::new(unattributed(), &counts))
}

/// TIME_WAIT sockets of all network namespaces: `/proc/net/sockstat`.
fn count_time_wait() -> u64 {
    network_namespaces()
        .values()
        // A namespace that only a mount holds has no /proc; what waits there is missed.
        .filter_map(|path| {
            path.to_str()?.strip_suffix("/ns/net").map(|process| format!("{process}/net/sockstat"))
        })
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| tw(&text))
        .sum()
}

fn tw(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = tcp.split_whitespace().skip_while(|&word| word != "tw");
    words.nth(1)?.parse().ok()
}

/// What an agent tells of states.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Rows {
    pub(crate) states: Vec<Row>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sockstat() {
        let text = "sockets: used 290\nTCP: inuse 8 orphan 0 tw 37 alloc 12 mem 1\nUDP: inuse 4 mem 2\n";
        assert_eq!(tw(text), Some(37));
        assert_eq!(tw("TCP: inuse 8"), None);
        assert_eq!(tw(""), None);
    }
}
