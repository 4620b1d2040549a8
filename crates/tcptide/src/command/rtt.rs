//! `tcptide rtt`: distribution of round-trip times.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    io::Write as _,
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{CommandFactory as _, ValueEnum as _};
use jiff::Timestamp;
use model::{
    connection::{Connection, Direction, Event, Rtt, Word, peer, rtt, rtt_samples},
    container::Container,
    histogram::{Histogram, Scale},
    metrics::Reading,
    record,
};
use probe::Options;
use serde::Serialize;

use super::{
    conns::{MOST, arrow},
    owner,
};
use crate::{
    agent::query,
    answer::{
        connections::Connections,
        totals::{Counted, Totals},
    },
    args::{By, RttArgs},
    client::Remote,
    output::{
        bars::bars,
        format::Format,
        layout::wrap,
        say, units,
        writer::{Output, Screen},
    },
    session::{ROWS, Seen, Session, is_terminal},
};

/// How often the screen is drawn where nobody said.
const USUAL_INTERVAL: Duration = Duration::from_secs(2);

/// How often an agent is asked at least: it forgets what containers counted that are gone.
const AGENT_INTERVAL: Duration = Duration::from_secs(10);
/// The agent's metric of round trips.
const RTT: &str = "tcptide_rtt_seconds";
/// The options that an agent is not asked.
const LOCAL: &[&str] = &["by", "duration", "interval"];

/// What one distribution is about; only what `--by` asks for is there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Key {
    #[serde(skip)]
    cgroup_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<Direction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip)]
    peer_cgroup_id: Option<u64>,
}

impl Key {
    const NOTHING: Self =
        Self { cgroup_id: None, direction: None, peer: None, port: None, peer_cgroup_id: None };

    fn of(by: By, seen: &Seen<'_>) -> Self {
        let r = seen.record;
        let direction = Direction::of(r.direction);
        let port = Some(if direction == Some(Direction::Passive) { r.local_port } else { r.peer_port });
        let peer = Some(peer(r).address);
        let cgroup_id = Some(seen.container.cgroup_id);
        let peer_cgroup_id = seen.peer.as_ref().map(|peer| peer.cgroup_id);
        match by {
            By::Container => Self { cgroup_id, ..Self::NOTHING },
            By::Peer => Self { peer, ..Self::NOTHING },
            By::Port => Self { port, ..Self::NOTHING },
            By::Edge => Self { cgroup_id, direction, peer, port, peer_cgroup_id },
        }
    }

    fn title(&self, group: &Group) -> String {
        let mut words = Vec::new();
        words.extend(group.container.as_deref().map(owner));
        words.extend(self.direction.map(|direction| arrow(direction).to_owned()));
        match (self.peer, self.port) {
            (Some(peer), Some(port)) => words.push(units::address(peer, port)),
            (Some(peer), None) => words.push(peer.to_string()),
            (None, Some(port)) => words.push(format!("port {port}")),
            (None, None) => {}
        }
        words.extend(group.peer_container.as_deref().map(|peer| format!("({})", owner(peer))));
        words.join(" ")
    }
}

/// The samples of one key.
#[derive(Clone)]
struct Group {
    container: Option<Arc<Container>>,
    peer_container: Option<Arc<Container>>,
    samples: Histogram,
    /// `None`: not all of the connections are known.
    facts: Option<Facts>,
}

/// What the connections that had samples say beside these.
#[derive(Clone, Default)]
struct Facts {
    connections: u64,
    min_us: Option<u32>,
    /// Smoothed minus minimum, summed over `looks`.
    queueing_us: u64,
    looks: u64,
    /// Those that are there and counted, by cookie.
    counted: HashSet<u64>,
}

impl Facts {
    /// Takes in a connection at one moment, its end or another.
    fn add(&mut self, cookie: u64, rtt: Option<Rtt>, is_over: bool) {
        let is_new = if is_over { !self.counted.remove(&cookie) } else { self.counted.insert(cookie) };
        self.connections += u64::from(is_new);
        if let Some(rtt) = rtt
            && let Some(min) = rtt.min_us
        {
            self.min_us = Some(self.min_us.map_or(min, |known| known.min(min)));
            self.queueing_us += u64::from(rtt.srtt_us.saturating_sub(min));
            self.looks += 1;
        }
    }

    fn queueing_us(&self) -> Option<u64> {
        self.queueing_us.checked_div(self.looks)
    }
}

#[derive(Serialize)]
struct Distribution<'a> {
    time: Timestamp,
    summary: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a Container>,
    #[serde(flatten)]
    key: &'a Key,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_container: Option<&'a Container>,
    /// Connections that had samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    rtt: &'a Histogram,
    /// The lowest windowed minimum of the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_us: Option<u32>,
    /// Smoothed minus minimum, mean over the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    queueing_us: Option<u64>,
}

#[derive(Default)]
struct Groups(BTreeMap<Key, Group>);

impl Groups {
    fn add(&mut self, by: By, seen: &Seen<'_>, is_over: bool) {
        let Some(samples) = rtt_samples(seen.record).filter(|samples| !samples.is_empty()) else { return };
        let key = Key::of(by, seen);
        let named = key.cgroup_id.is_some();
        let peer = key.peer_cgroup_id.and(seen.peer.as_ref());
        let group = self.0.entry(key).or_insert_with(|| Group {
            container: named.then(|| seen.container.whole()),
            peer_container: peer.map(Container::whole),
            samples: Histogram::new(&Scale::RTT),
            facts: Some(Facts::default()),
        });
        group.samples.merge(&samples);
        if let Some(facts) = &mut group.facts {
            facts.add(seen.record.cookie, rtt(seen.record), is_over);
        }
    }

    fn print(&self, out: &mut Output, format: Format, screen: &Screen, summary: bool) -> anyhow::Result<()> {
        for (key, group) in &self.0 {
            let min_us = group.facts.as_ref().and_then(|facts| facts.min_us);
            let queueing_us = group.facts.as_ref().and_then(Facts::queueing_us);
            let connections = group.facts.as_ref().map(|facts| facts.connections);
            if let Some(encoding) = format.encoding() {
                let item = Distribution {
                    time: Timestamp::now(),
                    summary,
                    container: group.container.as_deref(),
                    key,
                    peer_container: group.peer_container.as_deref(),
                    connections,
                    rtt: &group.samples,
                    min_us,
                    queueing_us,
                };
                encoding.item(out, &item)?;
                continue;
            }
            writeln!(out)?;
            write!(out, "{}", bars(&key.title(group), &group.samples, screen))?;
            let unknown = || "-".to_owned();
            let min = min_us.map_or_else(unknown, |us| units::duration(us.into()));
            let queueing = queueing_us.map_or_else(unknown, units::duration);
            let connections = connections.map_or_else(unknown, |n| n.to_string());
            let facts = [
                format!("min rtt {min}"),
                format!("queueing delay {queueing}"),
                format!("connections {connections}"),
            ];
            for line in wrap(&facts, "  ", screen.width) {
                writeln!(out, "{line}")?;
            }
        }
        if self.0.is_empty() && format.encoding().is_none() {
            writeln!(out, "no round trip was measured")?;
        }
        Ok(())
    }
}

/// Where it is printed, and how often.
struct Printer {
    format: Format,
    screen: Screen,
    interval: Option<Duration>,
    out: Output,
}

impl Printer {
    fn of(args: &RttArgs) -> Self {
        let format = args.output.output;
        let usual = (is_terminal() && format.encoding().is_none()).then_some(USUAL_INTERVAL);
        let interval = args.interval.or(usual);
        Self { format, screen: Screen::detect(), interval, out: Output::stdout() }
    }

    /// What came since it was printed last.
    fn recent(&mut self, groups: &Groups) -> anyhow::Result<()> {
        groups.print(&mut self.out, self.format, &self.screen, false)?;
        Ok(self.out.flush()?)
    }

    fn whole(mut self, groups: &Groups) -> anyhow::Result<()> {
        if self.interval.is_some() && self.format.encoding().is_none() {
            writeln!(self.out, "\nthe whole time:")?;
        }
        groups.print(&mut self.out, self.format, &self.screen, true)?;
        Ok(self.out.flush()?)
    }
}

pub(crate) fn run(args: &RttArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    let options = Options {
        events: Event::Close.bit(),
        samples: true,
        rows: ROWS,
        buffer: args.stream.buffer << 20,
        ..Options::default()
    };
    let mut session = if args.by == By::Edge || args.peers.are_asked_for() {
        Session::start_stream(&args.filter, &args.output, options, &args.peers)?
    } else {
        Session::start(&args.filter, &args.output, options)?
    };
    let mut printer = Printer::of(args);
    let interval = printer.interval;
    let (whole, recent) = (RefCell::new(Groups::default()), RefCell::new(Groups::default()));
    let mut last = Instant::now();
    let add = |seen: &Seen<'_>, is_over: bool| {
        whole.borrow_mut().add(args.by, seen, is_over);
        if interval.is_some() {
            recent.borrow_mut().add(args.by, seen, is_over);
        }
    };
    let close = |seen: &Seen<'_>| {
        add(seen, true);
        Ok(())
    };
    session.announce();
    session.stream(args.stream.duration, close, |session| {
        if interval.is_some_and(|interval| last.elapsed() >= interval) {
            last = Instant::now();
            // A walk takes the samples off the live connections; what closes before or after brings its own.
            session.look(|seen| add(seen, false))?;
            printer.recent(&recent.take())?;
        }
        Ok(())
    })?;
    session.look(|seen| add(seen, false))?;
    session.fetch(close)?;
    printer.whole(&whole.take())?;
    session.report_losses();
    Ok(())
}

/// The same, as an agent counted it: by container, between two looks at what these have counted. Which connections had samples
/// is told by what was acknowledged to them.
fn show_of(agent: &Remote, args: &RttArgs) -> anyhow::Result<()> {
    if args.by != By::Container {
        let by = args.by.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        bail!(
            "--by {by}: an agent counts round trips by container only; leave it out, or --connect (that needs root)"
        );
    }
    // What is to be counted is said before anything is followed.
    agent.insist_on(&query::Totals::command(), LOCAL)?;
    let mut events = agent.events(LOCAL, &[("events", "close")])?;
    let mut printer = Printer::of(args);
    let begun = Look { connections: live(agent)?, totals: totals(agent)? };
    let (whole, recent) =
        (RefCell::new(Period::from(&begun.connections)), RefCell::new(Period::from(&begun.connections)));
    let is_whole = begun.connections.is_whole();
    let mut counted = begun.totals;
    let (mut asked, mut shown) = (Instant::now(), Instant::now());
    let see = |connection: &Connection| {
        for period in [&whole, &recent] {
            period.borrow_mut().see(connection, true);
        }
        Ok(())
    };
    events.each(args.stream.duration, see, || {
        let is_due = printer.interval.is_some_and(|interval| shown.elapsed() >= interval);
        if !is_due && asked.elapsed() < AGENT_INTERVAL {
            return Ok(());
        }
        let live = if is_due { Some(live(agent)?) } else { None };
        let now = totals_after(agent, &counted)?;
        asked = Instant::now();
        let before = mem::replace(&mut counted, now);
        for period in [&whole, &recent] {
            period.borrow_mut().grow(&before, &counted);
        }
        if let Some(live) = live {
            shown = Instant::now();
            let over = recent.replace(Period::from(&live));
            printer.recent(&over.groups(&live, is_whole && live.is_whole()))?;
        }
        Ok(())
    })?;
    if events.have_ended() {
        return events.finish();
    }
    let end = Look { connections: live(agent)?, totals: totals_after(agent, &counted)? };
    let there: HashSet<u64> = end.connections.connections.iter().map(|one| one.cookie).collect();
    events.rest(|connection| {
        // Its end may have come after the look that found it.
        if !there.contains(&connection.cookie) {
            whole.borrow_mut().see(connection, true);
        }
        Ok(())
    })?;
    let mut whole = whole.into_inner();
    whole.grow(&counted, &end.totals);
    let is_complete = is_whole && end.connections.is_whole() && events.are_complete();
    printer.whole(&whole.groups(&end.connections, is_complete))?;
    if !is_complete {
        say!("not all connections are known: min rtt, queueing delay and how many there were are left out");
    }
    events.finish()
}

/// What an agent tells at one time.
struct Look {
    connections: Connections,
    totals: Totalled,
}

/// What each container has counted up to a time.
struct Totalled {
    /// For how long the agent has counted.
    seconds: f64,
    /// By the container's cgroup's id.
    containers: BTreeMap<u64, Counted>,
}

fn live(agent: &Remote) -> anyhow::Result<Connections> {
    agent.get("connections", &query::Connections::command(), LOCAL, &[("limit", MOST)])
}

fn totals(agent: &Remote) -> anyhow::Result<Totalled> {
    let all: Totals = agent.get("totals", &query::Totals::command(), LOCAL, &[("metrics", RTT)])?;
    if all.containers.iter().any(|counted| counted.metrics.get(RTT).is_none()) {
        bail!("this agent does not measure round trips: its /api/v1/programs says why");
    }
    let containers = all.containers.into_iter().map(|counted| (counted.container.cgroup_id, counted));
    Ok(Totalled { seconds: all.seconds, containers: containers.collect() })
}

/// The same by the agent that had counted so much before.
fn totals_after(agent: &Remote, before: &Totalled) -> anyhow::Result<Totalled> {
    let now = totals(agent)?;
    if now.seconds < before.seconds {
        bail!("the agent was started anew meanwhile");
    }
    Ok(now)
}

/// What happens from a look on.
struct Period {
    /// The connections that were there, by cookie: bytes acknowledged, and the state.
    there: HashMap<u64, (u64, Word)>,
    samples: BTreeMap<u64, (Arc<Container>, Histogram)>,
    facts: BTreeMap<u64, Facts>,
}

impl Period {
    fn from(look: &Connections) -> Self {
        let of = |one: &Connection| (one.cookie, (one.acked_bytes, one.state));
        let there = look.connections.iter().map(of).collect();
        Self { there, samples: BTreeMap::new(), facts: BTreeMap::new() }
    }

    /// Takes in a connection. It has a sample if it is new, or if something was acknowledged to it, be it a FIN.
    fn see(&mut self, connection: &Connection, is_over: bool) {
        let now = (connection.acked_bytes, connection.state);
        let has_samples = self.there.get(&connection.cookie).is_none_or(|before| *before != now);
        if has_samples && connection.rtt.is_some() {
            let facts = self.facts.entry(connection.container.cgroup_id).or_default();
            facts.add(connection.cookie, connection.rtt, is_over);
        }
    }

    /// Takes in what came from one reading to the next.
    fn grow(&mut self, before: &Totalled, after: &Totalled) {
        for (id, Counted { container, metrics, .. }) in &after.containers {
            let new = match before.containers.get(id) {
                Some(before) => metrics.since(&before.metrics),
                None => metrics.clone(),
            };
            if let Some(Reading::Distribution(new)) = new.get(RTT)
                && !new.is_empty()
            {
                let none = || (Arc::clone(container), Histogram::new(&Scale::RTT));
                self.samples.entry(*id).or_insert_with(none).1.merge(&new);
            }
        }
    }

    /// What it came to, with those that are there at its end; `is_complete`: all connections are known.
    fn groups(mut self, live: &Connections, is_complete: bool) -> Groups {
        for connection in &live.connections {
            self.see(connection, false);
        }
        let of = |(id, (container, samples)): (u64, (Arc<Container>, Histogram))| {
            let key = Key { cgroup_id: Some(id), ..Key::NOTHING };
            // What is added up there has no connections of its own.
            let is_known = is_complete && id != record::CGROUP_OTHER;
            let facts = is_known.then(|| self.facts.remove(&id).unwrap_or_default());
            (key, Group { container: Some(container), peer_container: None, samples, facts })
        };
        Groups(self.samples.into_iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use model::connection::Clock;

    use super::*;
    use crate::answer::totals::{Layout, Metrics};

    fn connection(cookie: u64, state: u8, acked_bytes: u64, srtt_us: u32) -> Connection {
        let mut r =
            record::Connection { cookie, state, srtt_us, min_rtt_us: 20, ..record::Connection::default() };
        r.since.acked_bytes = acked_bytes;
        let clock = Clock { at: Timestamp::UNIX_EPOCH, monotonic_ns: 0 };
        Connection::new(&r, &clock, Arc::new(Container::unknown(7)), false)
    }

    fn look(connections: &[Connection]) -> Connections {
        Connections { matched: connections.len() as u64, connections: connections.to_vec() }
    }

    fn totalled(cgroup_id: u64, samples: u64) -> Totalled {
        let mut totals = record::Totals::default();
        totals.rtt.slots[4] = samples;
        totals.rtt.sum_us = 30 * samples;
        let shown = vec![true; model::metrics::METRICS.len()];
        let metrics = Metrics::of(&totals, 0, &Layout::of(&shown));
        let container = Arc::new(Container::unknown(cgroup_id));
        let counted = Counted { container, live: true, metrics };
        Totalled { seconds: 1.0, containers: [(cgroup_id, counted)].into() }
    }

    /// Connections, the lowest RTT, and how many samples there are.
    fn told(groups: &Groups) -> Vec<(Option<u64>, Option<u32>, u64)> {
        let of = |group: &Group| {
            let facts = group.facts.as_ref();
            let min_us = facts.and_then(|facts| facts.min_us);
            (facts.map(|facts| facts.connections), min_us, group.samples.count())
        };
        groups.0.values().map(of).collect()
    }

    #[test]
    fn connections_count_once_and_only_if_they_had_samples() {
        // One that does nothing, one that sends, and one that ends.
        let before = [connection(1, 1, 10, 50), connection(2, 1, 10, 50), connection(3, 1, 10, 50)];
        let mut period = Period::from(&look(&before));
        period.grow(&totalled(7, 100), &totalled(7, 105));
        period.see(&connection(3, 7, 10, 50), true);
        period.see(&connection(4, 7, 0, 50), true);
        // There was no sample yet.
        period.see(&connection(5, 7, 0, 0), true);
        let after = [connection(1, 1, 10, 50), connection(2, 1, 11, 50), connection(6, 1, 0, 50)];
        let groups = period.groups(&look(&after), true);
        assert_eq!(told(&groups), [(Some(4), Some(20), 5)]);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        for (cgroup_id, is_complete) in [(7, false), (record::CGROUP_OTHER, true)] {
            let mut period = Period::from(&look(&[]));
            period.grow(&totalled(9, 100), &totalled(cgroup_id, 3));
            let groups = period.groups(&look(&[connection(1, 1, 0, 50)]), is_complete);
            assert_eq!(told(&groups), [(None, None, 3)], "{cgroup_id}");
        }
        let period = Period::from(&look(&[]));
        assert_eq!(told(&period.groups(&look(&[connection(1, 1, 0, 50)]), true)), []);
    }

    #[test]
    fn a_connection_that_is_looked_at_often_is_one() {
        let mut facts = Facts::default();
        for is_over in [false, false, true] {
            facts.add(1, None, is_over);
        }
        facts.add(2, None, true);
        assert_eq!((facts.connections, facts.counted.len()), (2, 0));
    }
}
