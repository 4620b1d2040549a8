//! What is made of two answers, one after the other: rows with rates.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    iter, mem,
    sync::{Arc, LazyLock},
};

use foldhash::fast::RandomState;
use jiff::Timestamp;
use model::{
    connection::{Connection, Direction, Event, LISTEN},
    container::Container,
    histogram::{Histogram, Scale},
};

use super::{
    list::{Far, Id, Opens, Row, Unit, Value},
    source::Of,
};
use crate::{
    answer::{
        connections::Connections,
        edges::{self, Edge, Edges, Node, NodeId},
        listeners::Listeners,
        totals::{Counted, Metrics, Totals},
    },
    command::{
        conns::{arrow, process},
        endpoint, far_end, owner,
    },
    output::style::Role,
};

/// How many looks a curve goes back at most.
pub(super) const CURVE: usize = 60;
/// How many events are kept.
const EVENTS: usize = 2000;
/// From this share of segments or of the time with data to send on, something is a limit.
const LOSSY: f64 = 0.01;
const LIMITING: f64 = 0.2;
/// States that are no connection: half-open at a listener, and listening.
const SYN_RECV: usize = 3;

/// What was seen last, for the differences.
#[derive(Default)]
pub(super) struct Memory {
    /// For how long the agent had counted, seconds.
    seconds: Option<f64>,
    containers: HashMap<u64, Seen, RandomState>,
    edges: Option<(Timestamp, HashMap<edges::EdgeId, [u64; 4]>)>,
    sockets: HashMap<u64, (Timestamp, u64, u64)>,
    drops: HashMap<u64, (Timestamp, u32)>,
    events: VecDeque<(u64, Connection)>,
    last_event: u64,
}

/// What a container's row has of the container itself.
struct About {
    container: Arc<Container>,
    name: Value,
    opens: Opens,
}

impl About {
    fn new(container: Arc<Container>) -> Self {
        let (name, opens) = (Value::text(&owner(&container)), Opens::Container(container.whole()));
        Self { container, name, opens }
    }
}

/// A container as it was.
struct Seen {
    about: About,
    metrics: Metrics,
    /// The medians of its round trips at the latest looks.
    curve: VecDeque<Option<u64>>,
    /// Whether this look has it, too.
    is_there: bool,
}

impl Seen {
    /// As it was before it was there: all that it has counted is new.
    fn nothing(container: Arc<Container>) -> Self {
        let metrics = iter::empty().collect();
        Self { about: About::new(container), metrics, curve: VecDeque::new(), is_there: false }
    }
}

/// What was counted within so many seconds.
struct Since<'a> {
    now: &'a Metrics,
    earlier: &'a Metrics,
    seconds: f64,
}

/// Where a metric stands, looked up once; where none does, if there is no such metric.
macro_rules! place {
    ($name:literal) => {{
        static PLACE: LazyLock<usize> = LazyLock::new(|| Metrics::place($name).unwrap_or(usize::MAX));
        *PLACE
    }};
}

impl Since<'_> {
    /// What a counter's numbers have grown by, as [`Metrics::numbers`] tells them.
    fn numbers(&self, place: usize) -> Option<impl Iterator<Item = u64>> {
        let now = self.now.numbers(place)?;
        let earlier = self.earlier.numbers(place).unwrap_or_default();
        let new = now.iter().skip(earlier.len()).copied();
        Some(now.iter().zip(earlier).map(|(now, earlier)| now.saturating_sub(*earlier)).chain(new))
    }

    fn sum(&self, place: usize) -> Option<u64> {
        Some(self.numbers(place)?.sum())
    }

    fn rate(&self, place: usize) -> Option<f64> {
        Some(self.sum(place)? as f64 / self.seconds)
    }

    /// `None`: there was none.
    fn round_trips(&self) -> Option<Histogram> {
        let place = place!("tcptide_rtt_seconds");
        if self.sum(place)? == 0 {
            return None;
        }
        let mut numbers = self.numbers(place)?;
        let sum_us = numbers.next()?;
        Some(Histogram::from_counts(&Scale::RTT, numbers, sum_us))
    }

    /// Segments sent again, of those sent.
    fn retransmits(&self) -> Option<f64> {
        let sent = self.sum(place!("tcptide_sent_segments_total"))?.max(1);
        Some((self.sum(place!("tcptide_retransmitted_segments_total"))? as f64 / sent as f64).min(1.0))
    }

    /// What holds its connections back most, in a word.
    fn limit(&self) -> Option<&'static str> {
        let gauge = |place| self.now.numbers(place).map_or(0, |numbers| numbers.iter().sum::<u64>());
        let waiting = gauge(place!("tcptide_accept_queue_connections"));
        let room = gauge(place!("tcptide_accept_queue_limit"));
        let turned_away = self.sum(place!("tcptide_listen_drops_total")).unwrap_or(0);
        if turned_away > 0 || (waiting > 0 && waiting * 2 >= room) {
            return Some("accept");
        }
        if self.retransmits().is_some_and(|share| share >= LOSSY) {
            return Some("loss");
        }
        // How long they were held back by each limit, in the order of the metric's labels, microseconds.
        let mut limited = self.numbers(place!("tcptide_limited_seconds_total"))?;
        let (only_busy, rwnd, sndbuf) = (limited.next()?, limited.next()?, limited.next()?);
        let busy = only_busy + rwnd + sndbuf;
        let share = |us: u64| us as f64 / busy.max(1) as f64;
        // Next to nothing to do is no limit.
        let has_work = busy as f64 >= self.seconds * 1e6 / 100.0;
        match (share(rwnd), share(sndbuf)) {
            (rwnd, sndbuf) if has_work && rwnd >= LIMITING && rwnd >= sndbuf => Some("receiver"),
            (_, sndbuf) if has_work && sndbuf >= LIMITING => Some("sndbuf"),
            _ => None,
        }
    }
}

/// Established ones and those on their way there or to their end.
fn connections(metrics: &Metrics) -> u64 {
    let states = metrics.numbers(place!("tcptide_connections")).unwrap_or_default().iter().enumerate();
    states.filter(|(state, _)| ![SYN_RECV, usize::from(LISTEN)].contains(state)).map(|(_, n)| n).sum()
}

impl Memory {
    /// What is compared with the next answers only, as after a pause.
    pub(super) fn containers(&mut self, totals: Totals) -> Vec<Row> {
        // An agent that was started anew counts from nothing.
        let before = self.seconds.replace(totals.seconds).filter(|before| *before < totals.seconds);
        let seconds = before.map(|before| totals.seconds - before);
        let mut rows = Vec::with_capacity(totals.containers.len());
        for Counted { container, metrics, .. } in totals.containers {
            let seen = match self.containers.entry(container.cgroup_id) {
                Entry::Vacant(new) => new.insert(Seen::nothing(container)),
                Entry::Occupied(known) => {
                    let seen = known.into_mut();
                    if !Arc::ptr_eq(&seen.about.container, &container) {
                        seen.about = About::new(container);
                    }
                    seen
                }
            };
            rows.push(container_row(seen, &metrics, seconds));
            seen.metrics = metrics;
            seen.is_there = true;
        }
        self.containers.retain(|_, seen| mem::take(&mut seen.is_there));
        rows
    }

    /// `of`: whose they are, if they are one container's.
    pub(super) fn edges(&mut self, edges: &Edges, of: Option<&Of>, at: Timestamp) -> Vec<Row> {
        let before = self.edges.take();
        let mut now = HashMap::with_capacity(edges.edges.len());
        let mut rows = Vec::with_capacity(edges.edges.len());
        for edge in &edges.edges {
            let (sent, received) = edge.bytes().unwrap_or_default();
            let counts = [sent, received, edge.opened.unwrap_or(0), edge.failed.unwrap_or(0)];
            let rates = before.as_ref().and_then(|(then, before)| {
                let seconds = seconds(*then, at)?;
                let earlier = before.get(&edge.id()).copied().unwrap_or_default();
                Some([0, 1, 2, 3].map(|at| counts[at].saturating_sub(earlier[at]) as f64 / seconds))
            });
            rows.push(edge_row(edge, rates, of));
            now.insert(edge.id(), counts);
        }
        self.edges = Some((at, now));
        rows
    }

    /// Those that `is_wanted`.
    pub(super) fn connections(
        &mut self,
        found: &Connections,
        is_wanted: impl Fn(&Connection) -> bool,
    ) -> Vec<Row> {
        let mut rows = Vec::with_capacity(found.connections.len());
        for one in &found.connections {
            let earlier = self.sockets.insert(one.cookie, (one.time, one.sent_bytes, one.received_bytes));
            let rates = earlier.and_then(|(then, sent, received)| {
                let seconds = seconds(then, one.time)?;
                let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
                Some((rate(one.sent_bytes, sent), rate(one.received_bytes, received)))
            });
            if is_wanted(one) {
                rows.push(connection_row(one, rates));
            }
        }
        let there: HashSet<u64> = found.connections.iter().map(|one| one.cookie).collect();
        self.sockets.retain(|cookie, _| there.contains(cookie));
        rows
    }

    pub(super) fn listeners(&mut self, found: &Listeners) -> Vec<Row> {
        let mut drops = HashMap::new();
        let rows = found.listeners.iter().map(|listener| {
            let one = &listener.connection;
            let queues = listener.queues();
            drops.insert(one.cookie, (one.time, queues.drops));
            let rate = self.drops.get(&one.cookie).and_then(|(then, before)| {
                Some(f64::from(queues.drops.saturating_sub(*before)) / seconds(*then, one.time)?)
            });
            let cells = vec![
                Value::text(&owner(&one.container)),
                Value::text(&one.process.as_ref().map(process).unwrap_or_default()),
                Value::text(&endpoint(&one.local)),
                Value::number(Some(queues.accept.into()), Unit::Count),
                Value::number(Some(queues.limit.into()), Unit::Count),
                Value::number(Some(queues.syn.into()), Unit::Count),
                Value::number(Some(queues.drops.into()), Unit::Count),
                Value::Number(rate, Unit::PerSecond),
            ];
            let mut row = Row::new(Id::Socket(one.cookie), cells, Opens::Nothing);
            if queues.accept > 0 && queues.accept * 2 >= queues.limit {
                row.roles.push((3, Role::Warn));
            }
            if rate.is_some_and(|rate| rate > 0.0) {
                row.roles.push((7, Role::Bad));
            }
            row
        });
        let rows = rows.collect();
        self.drops = drops;
        rows
    }

    /// Takes in events; all that are kept.
    pub(super) fn events(&mut self, new: Vec<Connection>) -> Vec<Row> {
        for event in new {
            self.last_event += 1;
            self.events.push_back((self.last_event, event));
            if self.events.len() > EVENTS {
                self.events.pop_front();
            }
        }
        self.events.iter().map(|(number, event)| event_row(*number, event)).collect()
    }

    /// Forgets events: they were of others.
    pub(super) fn forget_events(&mut self) {
        self.events.clear();
    }
}

/// The time between two looks; `None` where there is none.
fn seconds(then: Timestamp, now: Timestamp) -> Option<f64> {
    let seconds = now.duration_since(then).as_secs_f64();
    (seconds > 0.0).then_some(seconds)
}

/// `seconds`: how long ago it was seen, if that tells anything.
fn container_row(seen: &mut Seen, now: &Metrics, seconds: Option<f64>) -> Row {
    let Seen { about: About { container, name, opens }, metrics, curve, .. } = seen;
    let since = seconds.map(|seconds| Since { now, earlier: metrics, seconds });
    let since = since.as_ref();
    let rtt = since.and_then(Since::round_trips);
    let median = rtt.as_ref().and_then(|rtt| rtt.quantile(0.5));
    // It begins with the first round trip.
    if since.is_some() && (median.is_some() || !curve.is_empty()) {
        curve.push_back(median);
        if curve.len() > CURVE {
            curve.pop_front();
        }
        if curve.iter().all(Option::is_none) {
            curve.clear();
        }
    }
    let live = connections(now);
    let rate = |place| since.and_then(|since| since.rate(place));
    let failed = rate(place!("tcptide_connect_failures_total"));
    let retransmits = since.and_then(Since::retransmits);
    let limit = since.and_then(Since::limit);
    let (sent, received) =
        (rate(place!("tcptide_sent_bytes_total")), rate(place!("tcptide_received_bytes_total")));
    let opened = rate(place!("tcptide_opened_total"));
    let cells = vec![
        name.clone(),
        Value::number(Some(live), Unit::Count),
        Value::Number(sent, Unit::Rate),
        Value::Number(received, Unit::Rate),
        Value::number(median, Unit::Duration),
        Value::number(rtt.as_ref().and_then(|rtt| rtt.quantile(0.99)), Unit::Duration),
        Value::Number(retransmits, Unit::Share),
        Value::Number(failed, Unit::PerSecond),
        Value::text(limit.unwrap_or_default()),
        Value::Spark(curve.iter().copied().collect()),
    ];
    let mut row = Row::new(Id::Cgroup(container.cgroup_id), cells, opens.clone());
    let is_something = |number: Option<f64>| number.is_some_and(|number| number > 0.0);
    row.idle = live == 0 && ![sent, received, failed, opened].into_iter().any(is_something);
    if retransmits.is_some_and(|share| share >= LOSSY) {
        row.roles.push((6, Role::Warn));
    }
    if is_something(failed) {
        row.roles.push((7, Role::Bad));
    }
    if limit.is_some() {
        row.roles.push((8, Role::Warn));
    }
    row
}

fn edge_row(edge: &Edge, rates: Option<[f64; 4]>, of: Option<&Of>) -> Row {
    let rate = |at: usize| rates.map(|rates| rates[at]);
    let side = edge.side();
    let cells = vec![
        Value::text(&edge.client.name()),
        Value::text(&edge.server.name()),
        Value::text(&edge.port.map(|port| port.to_string()).unwrap_or_default()),
        Value::number(Some(edge.connections), Unit::Count),
        Value::Number(rate(0), Unit::Rate),
        Value::Number(rate(1), Unit::Rate),
        Value::number(side.and_then(|side| side.srtt_us), Unit::Duration),
        Value::Number(rate(2), Unit::PerSecond),
        Value::Number(rate(3), Unit::PerSecond),
        Value::number(Some(edges::retransmits(edge)), Unit::Count),
    ];
    let is_near = |node: &Node| node.container().is_some_and(|one| of.is_none_or(|of| of.is(one)));
    let (near, far) =
        if is_near(&edge.client) { (&edge.client, &edge.server) } else { (&edge.server, &edge.client) };
    let opens = match near {
        Node::Container(container) => Opens::Edge {
            near: Some(container.whole()),
            far: match far.id() {
                NodeId::Cgroup(id) => Far::Cgroup(id),
                NodeId::Address(address) => Far::Address(address),
                NodeId::Name(name) => Far::Name(name),
            },
            port: edge.port,
            title: far.name(),
        },
        _ => Opens::Nothing,
    };
    let mut row = Row::new(Id::Edge(Box::new(edge.id())), cells, opens);
    row.idle = edge.connections == 0 && rates.is_none_or(|rates| rates.iter().all(|rate| *rate == 0.0));
    if rate(3).is_some_and(|rate| rate > 0.0) {
        row.roles.push((8, Role::Bad));
    }
    row
}

/// Whether a connection is one with this far end and server's port.
pub(super) fn is_of_edge(one: &Connection, far: &Far, port: Option<u16>) -> bool {
    let peer = &one.peer;
    let is_far = match far {
        Far::Cgroup(id) => peer.container.as_ref().is_some_and(|container| container.cgroup_id == *id),
        Far::Address(address) => peer.address == *address,
        Far::Name(name) => peer.name.as_deref() == Some(name) || peer.name.is_none(),
    };
    let is_port = port.is_none_or(|port| match one.direction {
        // Behind a published port the server knows itself by another one.
        Some(Direction::Active) => peer.port == Some(port) || peer.container.is_some(),
        Some(Direction::Passive) => one.local.port == Some(port),
        None => [peer.port, one.local.port].contains(&Some(port)),
    });
    is_far && is_port
}

fn connection_row(one: &Connection, rates: Option<(f64, f64)>) -> Row {
    let before = one.before.unwrap_or_default();
    let retransmits = before.retransmits + one.retransmits.total;
    let cells = vec![
        Value::text(&owner(&one.container)),
        Value::text(&one.process.as_ref().map(process).unwrap_or_default()),
        Value::text(one.direction.map(arrow).unwrap_or_default()),
        Value::text(&endpoint(&one.local)),
        Value::text(&endpoint(&one.peer)),
        Value::text(&far_end(&one.peer).unwrap_or_default()),
        Value::text(&one.state.to_uppercase()),
        Value::Number(rates.map(|(sent, _)| sent), Unit::Rate),
        Value::Number(rates.map(|(_, received)| received), Unit::Rate),
        Value::number(one.rtt.map(|rtt| rtt.srtt_us.into()), Unit::Duration),
        Value::number(Some(retransmits.into()), Unit::Count),
        Value::number(Some(one.cwnd.into()), Unit::Count),
        Value::number(one.duration_us, Unit::Duration),
    ];
    let opens = Opens::Connection { container: one.container.whole(), cookie: one.cookie };
    Row::new(Id::Socket(one.cookie), cells, opens)
}

fn event_row(number: u64, one: &Connection) -> Row {
    let is_over = !matches!(one.event, Some(Event::Open | Event::Established | Event::Fail));
    let took = match one.event {
        Some(Event::Open) => None,
        Some(Event::Established) => one.connect_us,
        _ => one.duration_us,
    };
    let result = match one.event {
        Some(Event::State) => one.state,
        _ => one.close.map(|close| close.reason).or(one.kind).unwrap_or_default(),
    };
    let local = match one.local.port {
        Some(_) => endpoint(&one.local),
        None => one.local.address.to_string(),
    };
    let cells = vec![
        Value::Number(Some(one.time.as_microsecond() as f64), Unit::Clock),
        Value::text(one.event.map_or("", Event::name)),
        Value::text(&owner(&one.container)),
        Value::text(&one.process.as_ref().map(process).unwrap_or_default()),
        Value::text(one.direction.map(arrow).unwrap_or_default()),
        Value::text(&local),
        Value::text(&endpoint(&one.peer)),
        Value::text(&far_end(&one.peer).unwrap_or_default()),
        Value::number(took, Unit::Duration),
        Value::number(is_over.then_some(one.sent_bytes), Unit::Bytes),
        Value::number(is_over.then_some(one.received_bytes), Unit::Bytes),
        Value::text(result),
    ];
    let mut row = Row::new(Id::Event(number), cells, Opens::Nothing);
    match one.event {
        Some(Event::Fail) => row.roles.push((1, Role::Bad)),
        Some(Event::Retransmit | Event::Reset | Event::Drop | Event::ZeroWindow) => {
            row.roles.push((1, Role::Warn));
        }
        _ => {}
    }
    row
}
