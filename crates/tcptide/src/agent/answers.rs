//! What the gauge's thread answers about connections, listeners and edges, whoever asks: the API, or this process itself.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    connection::LISTEN,
    container::Container,
    filter::{Filter, Subject},
    record,
};
use tokio::sync::mpsc::Receiver;

use super::{
    gauge::Worker,
    tails::{Told, Wanted},
};
use crate::{
    answer::{
        connections::Connections,
        edges::{Edge, Edges, Node, fold},
        listeners::{self, Listener, Listeners},
    },
    args::PeerArgs,
    peers::{Peers, Starts},
    session::{clock, connection, tell_far_end},
};

/// Whether either end is asked for, with the other one at the far end.
fn is_wanted(edge: &Edge, filter: &Filter, peer: &PeerArgs) -> bool {
    let matches = |near: &Node, far: &Node| {
        let subject = Subject {
            local_port: edge.port,
            peer_addr: if let Node::Address(address) = far { Some(*address) } else { None },
            ..near.container().map(Container::subject).unwrap_or_default()
        };
        filter.matches(&subject) && peer.matches(far.container())
    };
    (filter.is_empty() && peer.is_empty())
        || matches(&edge.client, &edge.server)
        || matches(&edge.server, &edge.client)
}

/// A row by what it has carried, then by its cookie.
struct Heavy(u64, Box<record::Connection>);

impl Heavy {
    fn key(&self) -> (u64, Reverse<u64>) {
        (self.0, Reverse(self.1.cookie))
    }
}

impl PartialEq for Heavy {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Heavy {}

impl PartialOrd for Heavy {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Heavy {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Worker {
    /// Live connections, those that have carried most first; or that one.
    pub(super) fn connections(
        &mut self,
        all: bool,
        cookie: Option<u64>,
        limit: usize,
        filter: &Filter,
        peer: &PeerArgs,
    ) -> anyhow::Result<Connections> {
        let is_wanted = |r: &record::Connection| {
            (all || r.state != LISTEN) && cookie.is_none_or(|cookie| cookie == r.cookie)
        };
        self.look(filter, Some(peer), limit, &is_wanted)
    }

    /// Listening sockets, the fullest first.
    pub(super) fn listeners(&mut self, filter: &Filter) -> anyhow::Result<Listeners> {
        let found = self.look(filter, None, usize::MAX, &|r| r.state == LISTEN)?;
        let of = |connection| Listener { connection, watched: None };
        let mut listeners: Vec<_> = found.connections.into_iter().map(of).collect();
        listeners::sort(&mut listeners);
        Ok(Listeners { listeners })
    }

    /// Who talks to whom, since a time or the start; `None`: nobody counts edges.
    pub(super) fn edges(
        &mut self,
        since: Option<Duration>,
        most: usize,
        filter: &Filter,
        peer: &PeerArgs,
    ) -> anyhow::Result<Option<Edges>> {
        let told = self.walk_edges(|edges, owner, name| edges.told(since, Instant::now(), owner, name))?;
        let Some((covered, mut edges)) = told else { return Ok(None) };
        edges.retain(|edge| is_wanted(edge, filter, peer));
        let matched = edges.len() as u64;
        let now = Timestamp::now();
        let seconds = covered.map(|covered| covered.as_secs_f64());
        let since = covered.and_then(|covered| now.checked_sub(covered).ok());
        Ok(Some(Edges { since, seconds, matched, edges: fold(edges, most) }))
    }

    /// Events from now on.
    pub(super) fn follow(&mut self, wanted: Wanted) -> Receiver<Told> {
        let told = self.tails.add(wanted);
        self.send_wanted_events();
        told
    }

    /// Calls `each` with the sockets asked for, once each. Where a far end is asked for, all are walked twice: no far end is
    /// known before all sockets are.
    pub(super) fn each(
        &mut self,
        filter: &Filter,
        peer: Option<&PeerArgs>,
        mut each: impl FnMut(&record::Connection, &Arc<Container>, Option<&Peers>),
    ) -> anyhow::Result<()> {
        let mut peers = Peers::default();
        if peer.is_some() {
            self.monitor.walk(Some(&mut |r| peers.note(r)))?;
        }
        self.take_notes()?;
        let peers = peer.map(|_| &peers);
        let mut seen = std::collections::HashSet::new();
        let directory = &self.directory;
        let wanted = peer.filter(|peer| !peer.is_empty());
        self.monitor.walk(Some(&mut |r| {
            let container = directory.resolve(r.cgroup_id);
            let is_far_end_wanted = wanted.is_none_or(|wanted| {
                let far = peers.zip(Starts::of(r)).and_then(|(peers, starts)| peers.of(starts));
                wanted.matches(far.map(|end| directory.resolve(end.cgroup_id)).as_deref())
            });
            // A walk in several parts may meet a socket again.
            if is_far_end_wanted
                && filter.matches(&model::connection::subject(r, &container))
                && seen.insert(r.cookie)
            {
                each(r, &container, peers);
            }
        }))?;
        Ok(())
    }

    /// The connections asked for, at most so many: those that have carried most. Far ends are told where they are asked for.
    fn look(
        &mut self,
        filter: &Filter,
        peer: Option<&PeerArgs>,
        limit: usize,
        is_wanted: &dyn Fn(&record::Connection) -> bool,
    ) -> anyhow::Result<Connections> {
        let mut heaviest: BinaryHeap<Reverse<Heavy>> = BinaryHeap::new();
        let mut far_ends = std::collections::HashMap::new();
        let mut matched = 0;
        self.each(filter, peer, |r, _, peers| {
            if !is_wanted(r) {
                return;
            }
            matched += 1;
            let carried = [&r.before, &r.since].map(|counters| counters.sent_bytes + counters.received_bytes);
            heaviest.push(Reverse(Heavy(carried.iter().sum(), Box::new(*r))));
            if let Some(end) = peers.zip(Starts::of(r)).and_then(|(peers, starts)| peers.of(starts)) {
                far_ends.insert(r.cookie, end.cgroup_id);
            }
            if heaviest.len() > limit
                && let Some(Reverse(Heavy(_, lightest))) = heaviest.pop()
            {
                far_ends.remove(&lightest.cookie);
            }
        })?;
        let clock = clock();
        let directory = &self.directory;
        let told = heaviest.into_sorted_vec().into_iter().map(|Reverse(Heavy(_, r))| {
            let container = directory.resolve(r.cgroup_id);
            let mut told = connection(&r, &container, &clock, false);
            let far = far_ends.get(&r.cookie).map(|cgroup| directory.resolve(*cgroup));
            tell_far_end(&mut told, far, (r.peer_port, clock.monotonic_ns), (&self.names, directory));
            told
        });
        Ok(Connections { matched, connections: told.collect() })
    }
}
