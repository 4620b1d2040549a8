//! Who the containers talk to: counters by container and far end.
//!
//! Connections are followed from their events and the rows of the walks. What a connection has counted belongs to one
//! edge for its whole life, chosen when the edge is first shown or the connection ended: no counter falls, and the sum of
//! all edges is what the containers counted.
//!
//! An edge that has no series of its own ([`Budget`]) adds what it counts meanwhile to its container's `~other`, or, where that
//! has none either, to that of all such containers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    connection::{Direction, LISTEN, peer, rtt, since_ns},
    container::Container,
    edge::{EDGE_METRICS, EdgeCounts, EdgeNow},
    record::{
        self,
        event::{EVENT_CLOSE, EVENT_ESTABLISHED, EVENT_FAIL},
    },
};

use super::{
    budget::{Budget, Candidate, Claim, for_newcomers},
    family::LabelSet,
    history::{self, History},
    series::{Labels, OTHER, labels},
};
use crate::{
    answer::edges::{Edge as Told, EdgeId, Node, Side, sort},
    names::Called,
    peers::{self, Peers, SETTLED, Starts},
};

/// In how many walks a connection may be missing before it is taken for ended: one that opened meanwhile is in none.
const MISSED_WALKS: u32 = 2;

/// How much is remembered at most: edges of steps, some 100 bytes each.
const MOST_REMEMBERED: usize = 262_144;

/// Clients on other hosts that have no name: their addresses are too many to be labels.
const ELSEWHERE: &str = "~elsewhere";

/// What an edge counted within a step of the history.
type Added = history::Added<Ends, EdgeCounts>;

/// Whom to ask for names: the near end's container, the far end's address and port, when the connection opened (ns).
pub(crate) type NameOf<'a> = &'a dyn Fn(&Container, (IpAddr, u16), u64) -> Option<Called>;
/// Whose a cgroup is.
pub(crate) type OwnerOf<'a> = &'a dyn Fn(u64) -> Arc<Container>;

/// What tells edges apart: their labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    near: Labels,
    far: Labels,
    name: String,
    /// The server's.
    port: Option<u16>,
    direction: Option<Direction>,
}

impl Key {
    /// The same container's connections to whom there is no room for.
    fn of_others(self) -> Self {
        Self { far: others(), name: String::new(), port: None, ..self }
    }

    /// The connections of all containers that have no series of their own.
    fn of_nobody(self) -> Self {
        Self { near: others(), ..self.of_others() }
    }

    /// As it is in the metrics: the port of the own side is no label.
    fn in_metrics(&self) -> Self {
        let port = self.port.filter(|_| self.direction == Some(Direction::Active));
        Self { port, ..self.clone() }
    }

    fn labels(&self) -> LabelSet {
        let port = self.port.map(|port| port.to_string()).unwrap_or_default();
        LabelSet::new([
            ("container", self.near.container.as_str()),
            ("pod", &self.near.pod),
            ("namespace", &self.near.namespace),
            ("direction", self.direction.map_or("", Direction::name)),
            ("peer_container", &self.far.container),
            ("peer_pod", &self.far.pod),
            ("peer_namespace", &self.far.namespace),
            ("peer_name", &self.name),
            ("peer_port", &port),
        ])
    }
}

fn others() -> Labels {
    Labels { container: OTHER.to_owned(), ..Labels::default() }
}

/// Who an edge is between.
#[derive(Debug)]
pub(super) struct Ends {
    near: Arc<Container>,
    far: Node,
    /// The server's; absent where nobody saw which side began.
    port: Option<u16>,
    direction: Option<Direction>,
}

impl Ends {
    /// Whether the near one is the client. Where nobody saw who began, the lower one comes first, so that both sides tell of
    /// one edge.
    fn is_client(&self) -> bool {
        match self.direction {
            Some(direction) => direction == Direction::Active,
            None => Node::Container(Arc::clone(&self.near)).id() <= self.far.id(),
        }
    }

    /// The client and the server.
    fn nodes(&self) -> (Node, Node) {
        let (near, far) = (Node::Container(Arc::clone(&self.near)), self.far.clone());
        if self.is_client() { (near, far) } else { (far, near) }
    }
}

/// One edge.
struct Edge {
    /// It alone has this number.
    id: u64,
    /// Those that differ in the port of the own side alone have this one, and one set of series.
    group: u64,
    key: Key,
    ends: Arc<Ends>,
    /// What had been counted at the end of the last step of the history.
    remembered: EdgeCounts,
    /// The key's labels as they stand in the metrics.
    labels: Arc<LabelSet>,
    /// What connections counted that ended.
    ended: EdgeCounts,
    now: EdgeNow,
    /// What all of its connections had counted at the last look.
    last: EdgeCounts,
    /// What of that its own series have.
    own: EdgeCounts,
}

/// What edges without series of their own have together.
struct Others {
    labels: Arc<LabelSet>,
    counts: EdgeCounts,
    now: EdgeNow,
}

/// Which of the labels that may be left out are: edges that differ in them alone are one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LeftOut {
    pub(crate) peer_name: bool,
    pub(crate) peer_port: bool,
}

/// Edges that have no series of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FoldedEdges {
    /// Connections that found no edge of their own.
    pub(crate) connections: u64,
    /// Series that edges would have, and have not.
    pub(crate) series: u64,
    /// How many of these there were so far.
    pub(crate) ever: u64,
}

impl Edge {
    /// Containers that follow one another under one name have one edge: it tells of the latest.
    fn renew(&mut self, ends: Ends) {
        if ends.near.cgroup_id != self.ends.near.cgroup_id || ends.far.id() != self.ends.far.id() {
            self.ends = Arc::new(ends);
        }
    }
}

/// Joins what each side counted: a client's side and its server's are one edge. Both have counted all connections; the
/// client's is told where it is here.
fn join(sides: impl Iterator<Item = (Arc<Ends>, EdgeCounts, EdgeNow)>, seconds: Option<f64>) -> Vec<Told> {
    type OneSide = Option<(EdgeCounts, EdgeNow)>;
    let mut edges: BTreeMap<EdgeId, (Arc<Ends>, [OneSide; 2])> = BTreeMap::new();
    for (ends, counts, now) in sides {
        let (client, server) = ends.nodes();
        let of = usize::from(!ends.is_client());
        let (_, sides) = edges
            .entry((client.id(), server.id(), ends.port))
            .or_insert_with(|| (Arc::clone(&ends), [None, None]));
        let (all, all_now) = sides[of].get_or_insert_default();
        all.add(&counts);
        all_now.add(&now);
    }
    let edge = |(ends, [client_side, server_side]): (Arc<Ends>, [OneSide; 2])| {
        let (client, server) = ends.nodes();
        let (counts, now) = client_side.or(server_side).unwrap_or_default();
        let side = |side: OneSide| side.map(|(counts, now)| Side::of(&counts, &now));
        let mut edge = Told {
            client,
            server,
            port: ends.port,
            connections: now.connections,
            opened: Some(counts.established),
            failed: Some(counts.failed),
            rates: None,
            client_side: side(client_side),
            server_side: side(server_side),
        };
        edge.rates = seconds.filter(|seconds| *seconds > 0.0).map(|seconds| edge.rates_over(seconds));
        edge
    };
    let mut edges: Vec<_> = edges.into_values().map(edge).collect();
    sort(&mut edges);
    edges
}

/// A socket as it was seen last.
struct Socket {
    cgroup_id: u64,
    starts: Option<Starts>,
    direction: Option<Direction>,
    peer: IpAddr,
    local_port: u16,
    peer_port: u16,
    /// When it opened, or was first seen.
    at_ns: u64,
    counts: EdgeCounts,
    now: EdgeNow,
    has_ended: bool,
    /// The walk that it was in, or that came before it was first seen.
    walk: u32,
    /// Where it counts, once that was decided.
    edge: Option<usize>,
}

/// An edge as a scrape shows it.
#[derive(Clone, Debug)]
pub(crate) struct EdgeSample {
    pub(crate) labels: Arc<LabelSet>,
    pub(crate) counts: EdgeCounts,
    pub(crate) now: EdgeNow,
}

/// All edges.
pub(crate) struct Edges {
    most: usize,
    left_out: LeftOut,
    peers: Peers,
    /// By cookie.
    sockets: HashMap<u64, Socket>,
    /// Those that ended, the first to end first.
    ended: VecDeque<(Instant, u64)>,
    /// And those whose numbers are to be forgotten.
    gone: VecDeque<(Instant, Starts, u64)>,
    slots: Vec<Option<Edge>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    /// The numbers and labels of those in the metrics.
    groups: HashMap<Key, (u64, Arc<LabelSet>)>,
    last_id: u64,
    budget: Budget<u64>,
    others: HashMap<Key, Others>,
    /// The edges without series of their own at the last look.
    folded_ids: BTreeSet<u64>,
    folded: FoldedEdges,
    walk: u32,
    history: History<Ends, EdgeCounts>,
}

/// Series of one edge.
const SERIES: usize = EDGE_METRICS.len();

impl Edges {
    /// With so many edges at most, and one more for each container; remembers for so long.
    pub(crate) fn new(most: usize, left_out: LeftOut, keep: Duration) -> Self {
        Self {
            most,
            left_out,
            peers: Peers::default(),
            sockets: HashMap::new(),
            ended: VecDeque::new(),
            gone: VecDeque::new(),
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            groups: HashMap::new(),
            last_id: 0,
            budget: Budget::default(),
            others: HashMap::new(),
            folded_ids: BTreeSet::new(),
            folded: FoldedEdges::default(),
            walk: 0,
            history: History::new(keep, MOST_REMEMBERED, Instant::now()),
        }
    }

    /// Whose the far ends are.
    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// What has no series of its own.
    pub(crate) fn folded(&self) -> FoldedEdges {
        self.folded
    }

    /// A connection began, or ended.
    pub(crate) fn event(&mut self, r: &record::Connection) {
        let event = usize::from(r.event);
        // Of others a walk tells later.
        if [EVENT_ESTABLISHED, EVENT_CLOSE, EVENT_FAIL].contains(&event) {
            self.see(r, event != EVENT_ESTABLISHED);
        }
    }

    /// A connection was met by a walk.
    pub(crate) fn row(&mut self, r: &record::Connection) {
        self.see(r, false);
    }

    fn see(&mut self, r: &record::Connection, is_end: bool) {
        if r.flags & record::FLAG_LISTENER != 0 || r.state == LISTEN {
            return;
        }
        self.peers.note(r);
        let rtt = rtt(r);
        let socket = Socket {
            cgroup_id: r.cgroup_id,
            starts: Starts::of(r),
            direction: Direction::of(r.direction),
            peer: peer(r).address,
            local_port: r.local_port,
            peer_port: r.peer_port,
            at_ns: since_ns(r),
            counts: EdgeCounts {
                established: u64::from(r.established_ns != 0),
                failed: u64::from(is_end && usize::from(r.event) == EVENT_FAIL),
                sent_bytes: r.since.sent_bytes,
                received_bytes: r.since.received_bytes,
                sent_segments: r.since.segments_out.into(),
                retransmitted_segments: r.since.retransmits.into(),
            },
            now: EdgeNow {
                connections: 1,
                srtt_us: rtt.map_or(0, |rtt| rtt.srtt_us.into()),
                srtts: rtt.map_or(0, |_| 1),
                min_rtt_us: rtt.and_then(|rtt| rtt.min_us),
            },
            has_ended: is_end,
            walk: self.walk,
            edge: None,
        };
        match self.sockets.get_mut(&r.cookie) {
            // The end is the end, and a beginning that was fetched after a walk is of before it.
            Some(known) if known.has_ended || usize::from(r.event) == EVENT_ESTABLISHED => {}
            Some(known) => *known = Socket { edge: known.edge, at_ns: known.at_ns, ..socket },
            None => drop(self.sockets.insert(r.cookie, socket)),
        }
        if is_end {
            self.ended.push_back((Instant::now(), r.cookie));
        }
    }

    /// A walk begins.
    pub(crate) fn begin_walk(&mut self) {
        self.walk += 1;
    }

    /// Counts connections that ended so long ago that both ends have told of it. To be called several times a second.
    pub(crate) fn settle(&mut self, now: Instant, owner: OwnerOf<'_>, name: NameOf<'_>) {
        while let Some((at, cookie)) = self.ended.front().copied()
            && now.saturating_duration_since(at) >= SETTLED
        {
            self.ended.pop_front();
            self.finish(cookie, now, owner, name);
        }
        // The other end has settled, too, and asks no more.
        while let Some((at, starts, cookie)) = self.gone.front().copied()
            && now.saturating_duration_since(at) >= SETTLED
        {
            self.gone.pop_front();
            self.peers.forget(starts, cookie);
        }
    }

    fn finish(&mut self, cookie: u64, now: Instant, owner: OwnerOf<'_>, name: NameOf<'_>) {
        let Some(socket) = self.sockets.remove(&cookie) else { return };
        let edge = socket.edge.unwrap_or_else(|| self.edge_of(&socket, owner, name));
        if let Some(Some(edge)) = self.slots.get_mut(edge) {
            edge.ended.add(&socket.counts);
        }
        if let Some(starts) = socket.starts {
            self.gone.push_back((now, starts, cookie));
        }
    }

    /// The edges as of the last walk. `containers` are all that have series, and whether these are their own: edges of others
    /// end with them. `room` is for how many series there is room.
    pub(crate) fn samples(
        &mut self,
        containers: &BTreeMap<&Labels, bool>,
        room: usize,
        now: Instant,
        owner: OwnerOf<'_>,
        name: NameOf<'_>,
    ) -> Vec<EdgeSample> {
        let counts = self.count(now, owner, name);
        self.decide(&counts, containers, room, now);
        self.share(&counts, containers);
        // What they still had to give is given.
        self.drop_those_without(containers);
        self.shown(containers)
    }

    /// Brings all edges up to the last walk. What each has counted, by its place.
    fn count(&mut self, now: Instant, owner: OwnerOf<'_>, name: NameOf<'_>) -> Vec<EdgeCounts> {
        self.give_up(now, owner, name);
        self.settle(now, owner, name);
        // Connects that nobody answered yet have no numbers to find a far end by: they count when they do.
        let undecided: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.edge.is_none() && (socket.starts.is_some() || socket.has_ended))
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in undecided {
            let Some(mut socket) = self.sockets.remove(&cookie) else { continue };
            socket.edge = Some(self.edge_of(&socket, owner, name));
            self.sockets.insert(cookie, socket);
        }
        let mut counts: Vec<_> = self
            .slots
            .iter()
            .map(|edge| edge.as_ref().map_or_else(EdgeCounts::default, |edge| edge.ended))
            .collect();
        for edge in self.slots.iter_mut().flatten() {
            edge.now = EdgeNow::default();
        }
        for socket in self.sockets.values() {
            let Some(at) = socket.edge else { continue };
            counts[at].add(&socket.counts);
            if let (Some(edge), false) = (&mut self.slots[at], socket.has_ended) {
                edge.now.add(&socket.now);
            }
        }
        counts
    }

    /// Whether it is time to walk for [`Edges::remember`].
    pub(crate) fn is_step_due(&self, now: Instant) -> bool {
        self.history.is_due(now)
    }

    /// Ends a step of the history after a walk, all of which took so long.
    pub(crate) fn remember(&mut self, now: Instant, took: Duration, owner: OwnerOf<'_>, name: NameOf<'_>) {
        let counts = self.count(now, owner, name);
        let added = self.added(&counts);
        for (edge, counts) in self.slots.iter_mut().zip(counts) {
            if let Some(edge) = edge {
                edge.remembered = counts;
            }
        }
        self.history.push(now, took, added);
    }

    /// What edges have counted since the last step ended.
    fn added(&self, counts: &[EdgeCounts]) -> Vec<Added> {
        let edges = self.slots.iter().zip(counts).filter_map(|(edge, counts)| Some((edge.as_ref()?, counts)));
        edges
            .filter_map(|(edge, counts)| {
                let counts = counts.since(&edge.remembered);
                let added = Added { of: edge.id, who: Arc::clone(&edge.ends), counts };
                (counts != EdgeCounts::default()).then_some(added)
            })
            .collect()
    }

    /// Who talks to whom, as of the last walk: since then at the latest, or since the agent's start. With the time that is
    /// covered, and both sides joined where both are here.
    pub(crate) fn told(
        &mut self,
        since: Option<Duration>,
        now: Instant,
        owner: OwnerOf<'_>,
        name: NameOf<'_>,
    ) -> (Option<Duration>, Vec<Told>) {
        let counts = self.count(now, owner, name);
        let mut edges: BTreeMap<u64, (Arc<Ends>, EdgeCounts, EdgeNow)> = BTreeMap::new();
        for (edge, counts) in
            self.slots.iter().zip(&counts).filter_map(|(e, counts)| Some((e.as_ref()?, counts)))
        {
            let counts = if since.is_none() { *counts } else { EdgeCounts::default() };
            edges.insert(edge.id, (Arc::clone(&edge.ends), counts, edge.now));
        }
        let covered = since.map(|since| {
            let time = now.checked_sub(since).unwrap_or(now);
            let (began, added) = self.history.since(time, &self.added(&counts));
            for one in added {
                let entry = edges.entry(one.of).or_insert_with(|| (one.who, one.counts, EdgeNow::default()));
                entry.1 = one.counts;
            }
            now.saturating_duration_since(began)
        });
        // Of edges that only were, there is nothing to tell of a time in which nothing happened.
        edges.retain(|_, (_, counts, now)| now.connections > 0 || *counts != EdgeCounts::default());
        let seconds = covered.map(|covered| covered.as_secs_f64());
        (covered, join(edges.into_values(), seconds))
    }

    /// Decides which edges have series of their own.
    fn decide(
        &mut self,
        counts: &[EdgeCounts],
        containers: &BTreeMap<&Labels, bool>,
        room: usize,
        now: Instant,
    ) {
        let mut candidates: BTreeMap<u64, Candidate<u64>> = BTreeMap::new();
        let mut others: BTreeSet<(Option<&Labels>, u8)> = BTreeSet::new();
        let mut is_other_there = !self.others.is_empty();
        for (edge, counts) in self.slots.iter().zip(counts) {
            let Some(edge) = edge else { continue };
            let has_near = containers.get(&edge.key.near).is_none_or(|own| *own);
            others
                .insert((has_near.then_some(&edge.key.near), edge.key.direction.map_or(0, |d| 1 + d as u8)));
            if !has_near || edge.key.far.container == OTHER {
                is_other_there = true;
                continue;
            }
            let candidate = candidates.entry(edge.group).or_insert(Candidate {
                key: edge.group,
                activity: 0,
                open: 0,
                series: SERIES,
                claim: Claim::ByActivity,
            });
            candidate.activity += counts.sent_segments + counts.established + counts.failed;
            candidate.open += edge.now.connections;
        }
        let candidates: Vec<_> = candidates.into_values().collect();
        is_other_there |= candidates.len() * SERIES > for_newcomers(room);
        let reserved = if is_other_there { others.len().max(self.others.len()) * SERIES } else { 0 };
        self.budget.decide(&candidates, room.saturating_sub(reserved), now);
    }

    /// Gives what edges have counted since the last look to their own series, or to others'.
    fn share(&mut self, counts: &[EdgeCounts], containers: &BTreeMap<&Labels, bool>) {
        for others in self.others.values_mut() {
            others.now = EdgeNow::default();
        }
        let mut folded = BTreeSet::new();
        for (edge, counts) in self.slots.iter_mut().zip(counts) {
            let Some(edge) = edge else { continue };
            let grown = counts.since(&edge.last);
            edge.last = *counts;
            if self.budget.has_own(&edge.group) {
                edge.own.add(&grown);
                continue;
            }
            let has_near = containers.get(&edge.key.near).is_none_or(|own| *own);
            let key = edge.key.clone();
            let key = if has_near { key.of_others() } else { key.of_nobody() };
            let others = self.others.entry(key).or_insert_with_key(|key| Others {
                labels: key.labels().into(),
                counts: EdgeCounts::default(),
                now: EdgeNow::default(),
            });
            others.counts.add(&grown);
            others.now.add(&edge.now);
            if edge.key.far.container != OTHER {
                folded.insert(edge.group);
            }
        }
        let new = folded.difference(&self.folded_ids).count();
        self.folded.ever += (new * SERIES) as u64;
        self.folded.series = (folded.len() * SERIES) as u64;
        self.folded_ids = folded;
    }

    /// What there is to show: own series, and those of others, of containers with series of their own.
    fn shown(&self, containers: &BTreeMap<&Labels, bool>) -> Vec<EdgeSample> {
        let mut own: BTreeMap<u64, EdgeSample> = BTreeMap::new();
        for edge in self.slots.iter().flatten().filter(|edge| self.budget.has_own(&edge.group)) {
            let sample = own.entry(edge.group).or_insert_with(|| EdgeSample {
                labels: Arc::clone(&edge.labels),
                counts: EdgeCounts::default(),
                now: EdgeNow::default(),
            });
            sample.counts.add(&edge.own);
            sample.now.add(&edge.now);
        }
        let others = self.others.iter().filter(|(key, _)| containers.get(&key.near).is_none_or(|own| *own));
        let others = others.map(|(_, others)| EdgeSample {
            labels: Arc::clone(&others.labels),
            counts: others.counts,
            now: others.now,
        });
        own.into_values().chain(others).collect()
    }

    /// Takes for ended what two walks did not meet: its end found no room in the buffer.
    fn give_up(&mut self, now: Instant, owner: OwnerOf<'_>, name: NameOf<'_>) {
        let walk = self.walk;
        let is_lost = |socket: &Socket| !socket.has_ended && socket.walk + MISSED_WALKS <= walk;
        let lost: Vec<_> =
            self.sockets.iter().filter(|(_, socket)| is_lost(socket)).map(|(cookie, _)| *cookie).collect();
        for cookie in lost {
            self.finish(cookie, now, owner, name);
        }
    }

    /// Drops the edges of containers whose series ended, unless connections still count there.
    fn drop_those_without(&mut self, containers: &BTreeMap<&Labels, bool>) {
        let used = self.sockets.values().filter_map(|socket| self.slots.get(socket.edge?)?.as_ref());
        let used: BTreeSet<u64> = used.map(|edge| edge.group).collect();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if let Some(edge) = slot
                && !containers.contains_key(&edge.key.near)
                && !used.contains(&edge.group)
            {
                self.groups.remove(&edge.key.in_metrics());
                self.by_key.remove(&edge.key);
                self.free.push(at);
                *slot = None;
            }
        }
        let left: BTreeSet<&Labels> = self.slots.iter().flatten().map(|edge| &edge.key.near).collect();
        self.others.retain(|key, _| {
            key.near.container == OTHER || containers.contains_key(&key.near) || left.contains(&key.near)
        });
    }

    /// The edge of a socket: made if there is room for it.
    fn edge_of(&mut self, socket: &Socket, owner: OwnerOf<'_>, name: NameOf<'_>) -> usize {
        let near = owner(socket.cgroup_id);
        let far = socket.starts.and_then(|starts| self.peers.of(starts));
        let direction = peers::direction(socket.direction, far.as_ref());
        let port = direction.map(|direction| match direction {
            Direction::Active => peers::server_port(socket.peer_port, far.as_ref()),
            Direction::Passive => socket.local_port,
        });
        let called = name(&near, (socket.peer, socket.peer_port), socket.at_ns);
        let (called, pod) = called.map_or((None, None), |called| (Some(called.name), called.pod));
        let name = match (called, far) {
            (Some(name), _) => name,
            (None, Some(_)) => String::new(),
            (None, None) if direction == Some(Direction::Passive) => ELSEWHERE.to_owned(),
            (None, None) => socket.peer.to_string(),
        };
        let far_container = far.map(|end| owner(end.cgroup_id));
        let mut far_node = match &far_container {
            Some(container) => Node::Container(container.whole()),
            None if self.left_out.peer_name => Node::Name(ELSEWHERE.into()),
            None if name == socket.peer.to_string() => Node::Address(socket.peer),
            None => Node::Name(name.as_str().into()),
        };
        let far = match (&far_container, pod) {
            (Some(container), _) => labels(container),
            (None, Some((namespace, pod))) => {
                Labels { pod: pod.to_string(), namespace: namespace.to_string(), ..Labels::default() }
            }
            (None, None) => Labels::default(),
        };
        let name = if self.left_out.peer_name { String::new() } else { name };
        let port = port.filter(|_| !self.left_out.peer_port);
        let mut key = Key { near: labels(&near), far, name, port, direction };
        if !self.by_key.contains_key(&key) && self.by_key.len() >= self.most {
            self.folded.connections += 1;
            key = key.of_others();
            far_node = Node::Name(OTHER.into());
        }
        let ends = Ends { near: near.whole(), far: far_node, port: key.port, direction };
        if let Some(known) = self.by_key.get(&key) {
            if let Some(Some(edge)) = self.slots.get_mut(*known) {
                edge.renew(ends);
            }
            return *known;
        }
        self.last_id += 1;
        let id = self.last_id;
        let in_metrics = key.in_metrics();
        let (group, labels) =
            self.groups.entry(in_metrics).or_insert_with_key(|key| (id, key.labels().into()));
        let edge = Edge {
            id,
            group: *group,
            labels: Arc::clone(labels),
            key: key.clone(),
            ends: Arc::new(ends),
            remembered: EdgeCounts::default(),
            ended: EdgeCounts::default(),
            now: EdgeNow::default(),
            last: EdgeCounts::default(),
            own: EdgeCounts::default(),
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[at] = Some(edge);
        self.by_key.insert(key, at);
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn container(id: u64) -> Arc<Container> {
        Arc::new(Container::unknown(id))
    }

    /// Much more than there is.
    const PLENTY: usize = 1_000_000;

    /// One of a connection's two sockets, of this cgroup.
    fn socket(cookie: u64, cgroup_id: u64, event: usize, sent: u64) -> record::Connection {
        let active = cookie % 2 == 1;
        let (low, high) = (cookie as u32 & !1, (cookie as u32 & !1) + 1);
        record::Connection {
            cookie,
            cgroup_id,
            event: event as u8,
            state: 1,
            direction: if active { 1 } else { 2 },
            own_start: if active { low } else { high },
            peer_start: if active { high } else { low },
            local_port: if active { 40_000 } else { 80 },
            peer_port: if active { 8080 } else { 40_000 },
            established_ns: 1,
            since: record::Counters { sent_bytes: sent, ..record::Counters::default() },
            ..record::Connection::default()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const ROW: usize = record::event::EVENTS;

    /// `(labels, connections, established, sent bytes)`.
    fn shown(edges: &mut Edges, now: Instant, of: &[u64]) -> Vec<(String, u64, u64, u64)> {
        shown_in(edges, now, &of.iter().map(|id| (*id, true)).collect::<Vec<_>>(), PLENTY)
    }

    /// The same of containers that have series of their own, or not, in so much room.
    fn shown_in(
        edges: &mut Edges,
        now: Instant,
        of: &[(u64, bool)],
        room: usize,
    ) -> Vec<(String, u64, u64, u64)> {
        let all: Vec<_> = of.iter().map(|(id, own)| (labels(&container(*id)), *own)).collect();
        let containers = all.iter().map(|(labels, own)| (labels, *own)).collect();
        let samples = edges.samples(&containers, room, now, &container, &|_, _, _| None);
        let mut shown: Vec<_> = samples
            .into_iter()
            .map(|one| {
                (
                    one.labels.text().to_owned(),
                    one.now.connections,
                    one.counts.established,
                    one.counts.sent_bytes,
                )
            })
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn both_ends_have_their_edge() {
        let mut edges = Edges::new(10, LeftOut::default(), HOUR);
        for r in [socket(1, 7, EVENT_ESTABLISHED, 0), socket(0, 8, EVENT_ESTABLISHED, 0)] {
            edges.event(&r);
        }
        edges.begin_walk();
        edges.row(&socket(1, 7, ROW, 100));
        edges.row(&socket(0, 8, ROW, 30));
        // An event of before the walk that is fetched after it.
        edges.event(&socket(1, 7, EVENT_ESTABLISHED, 0));
        let now = Instant::now();
        let client = "container=\"cgroup:7\",pod=\"\",namespace=\"\",direction=\"active\",peer_container=\"cgroup:8\",\
                      peer_pod=\"\",peer_namespace=\"\",peer_name=\"\",peer_port=\"80\"";
        let server = "container=\"cgroup:8\",pod=\"\",namespace=\"\",direction=\"passive\",peer_container=\"cgroup:7\",\
                      peer_pod=\"\",peer_namespace=\"\",peer_name=\"\",peer_port=\"\"";
        let expected =
            |n, sent: [u64; 2]| vec![(client.to_owned(), n, 1, sent[0]), (server.to_owned(), n, 1, sent[1])];
        assert_eq!(shown(&mut edges, now, &[7, 8]), expected(1, [100, 30]));
        edges.event(&socket(1, 7, EVENT_CLOSE, 150));
        edges.event(&socket(0, 8, EVENT_CLOSE, 40));
        assert_eq!(shown(&mut edges, now, &[7, 8]), expected(0, [150, 40]));
        assert_eq!(shown(&mut edges, now + SETTLED + SETTLED, &[7, 8]), expected(0, [150, 40]));
        assert!(edges.sockets.is_empty());
        edges.settle(Instant::now() + 4 * SETTLED, &container, &|_, _, _| None);
        assert!(edges.gone.is_empty());
        assert_eq!(shown(&mut edges, now, &[8]).len(), 1, "the other container's series ended");
    }

    #[test]
    fn a_pod_elsewhere_is_told_by_its_labels() {
        let mut edges = Edges::new(10, LeftOut::default(), HOUR);
        edges.begin_walk();
        edges.row(&socket(1, 7, ROW, 1));
        let pod = |_: &Container, (_, port): (IpAddr, u16), _: u64| {
            let pod = Some(("shop".into(), "db-0".into()));
            (port == 8080).then(|| Called { name: "shop/db-0".to_owned(), pod })
        };
        let near = labels(&container(7));
        let samples =
            edges.samples(&BTreeMap::from([(&near, true)]), PLENTY, Instant::now(), &container, &pod);
        let labels = "peer_container=\"\",peer_pod=\"db-0\",peer_namespace=\"shop\",peer_name=\"shop/db-0\",peer_port=\"8080\"";
        assert!(samples[0].labels.text().ends_with(labels), "{:?}", samples[0].labels);
    }

    #[test]
    fn what_two_walks_did_not_meet_has_ended() {
        let mut edges = Edges::new(10, LeftOut::default(), HOUR);
        edges.begin_walk();
        edges.row(&socket(1, 7, ROW, 100));
        let mut sent = Vec::new();
        for _ in 0..3 {
            let all = shown(&mut edges, Instant::now(), &[7]);
            sent.push((all[0].1, all[0].3));
            edges.begin_walk();
        }
        assert_eq!(sent, [(1, 100), (1, 100), (0, 100)]);
        assert!(edges.sockets.is_empty());
    }

    #[test]
    fn clients_elsewhere_are_one_and_servers_are_told_apart() {
        // Ten servers, and all clients together.
        for (most, expected, folded) in [(11, 11, 0), (5, 5, 6)] {
            let mut edges = Edges::new(most, LeftOut::default(), HOUR);
            edges.begin_walk();
            for n in 0..20_u64 {
                let mut r = socket(n, 7, ROW, 1);
                // None is the other's far end.
                r.own_start += 1000 * n as u32;
                r.peer_address[15] = n as u8;
                edges.row(&r);
            }
            let all = shown(&mut edges, Instant::now(), &[7]);
            let count =
                |what: &str| all.iter().filter(|one| one.0.contains(what)).map(|one| one.1).sum::<u64>();
            let others = all.iter().filter(|one| one.0.contains("peer_container=\"~other\"")).count();
            assert_eq!(all.len() - others, expected, "{all:?}");
            assert_eq!(all.iter().map(|one| one.1).sum::<u64>(), 20);
            if folded == 0 {
                assert_eq!((count("peer_name=\"~elsewhere\""), others), (10, 0), "{all:?}");
            }
            assert!(edges.folded().connections >= folded, "{:?}", edges.folded());
        }
    }

    proptest! {
        /// Whatever the order, and however little room there is, for edges and for series, also of containers: all edges
        /// together, with what series had that ended, add up to what connections counted; no edge's counter falls, whether its
        /// series were there all the time or not; there are no more series than room.
        #[test]
        fn totals_are_those_of_the_connections(
            steps in prop::collection::vec((0_u64..12, 0_usize..4, 1_u64..100), 1..80),
            most in 0_usize..6,
            rooms in prop::collection::vec((0..12_usize, any::<[bool; 3]>()), 8),
        ) {
            let mut edges = Edges::new(most, LeftOut::default(), HOUR);
            let mut now = Instant::now();
            // By what is told apart: the cookie of the connection that is there, and what it sent.
            let mut live: HashMap<u64, (u64, u64)> = HashMap::new();
            let mut ended = 0;
            let mut last_cookie = 0;
            // As last shown.
            let mut before: HashMap<String, u64> = HashMap::new();
            let mut looks = 0;
            let record = |which: u64, cookie, event, sent| record::Connection {
                peer_address: std::array::from_fn(|at| if at == 15 { which as u8 } else { 0 }),
                ..socket(cookie, 1 + which % 3, event, sent)
            };
            for (which, step, bytes) in steps {
                let is_new = !live.contains_key(&which);
                let (cookie, sent) = live.entry(which).or_insert_with(|| {
                    last_cookie += 2;
                    (last_cookie + which % 2, 0)
                });
                if is_new {
                    edges.event(&record(which, *cookie, EVENT_ESTABLISHED, 0));
                }
                *sent += bytes;
                if step == 0 {
                    edges.event(&record(which, *cookie, EVENT_CLOSE, *sent));
                    ended += *sent;
                    live.remove(&which);
                    continue;
                }
                edges.begin_walk();
                for (which, (cookie, sent)) in &live {
                    edges.row(&record(*which, *cookie, ROW, *sent));
                }
                now += Duration::from_secs(bytes * bytes % 400);
                looks += 1;
                let (places, own) = rooms[looks % rooms.len()];
                let of: Vec<_> = (1..4).zip(own).collect();
                // Nine of others at most: of three containers and three directions, and three of nobody's.
                let all = shown_in(&mut edges, now, &of, (places + 12) * SERIES);
                prop_assert!(all.len() <= places + 12, "{} of {}", all.len(), places);
                for (labels, _, _, sent) in all {
                    prop_assert!(before.insert(labels, sent).unwrap_or(0) <= sent);
                }
                let total: u64 = before.values().sum();
                let expected = ended + live.values().map(|(_, sent)| sent).sum::<u64>();
                prop_assert_eq!(total, expected, "{:?}", before);
            }
            prop_assert!(edges.by_key.len() <= most + 6);
        }
    }
}
