//! `tcptide rtt`: distribution of round-trip times.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    connection::{Direction, Event, peer, rtt, rtt_samples},
    container::Container,
    histogram::{Histogram, Scale},
};
use probe::Options;
use serde::Serialize;

use super::{conns::arrow, owner};
use crate::{
    args::{By, RttArgs},
    output::{
        bars::bars,
        format::Format,
        layout::wrap,
        units,
        writer::{Output, Screen},
    },
    session::{ROWS, Seen, Session, is_terminal},
};

/// How often the screen is drawn where nobody said.
const USUAL_INTERVAL: Duration = Duration::from_secs(2);

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
    fn of(by: By, seen: &Seen<'_>) -> Self {
        let r = seen.record;
        let direction = Direction::of(r.direction);
        let port = Some(if direction == Some(Direction::Passive) { r.local_port } else { r.peer_port });
        let peer = Some(peer(r).address);
        let cgroup_id = Some(seen.container.cgroup_id);
        let peer_cgroup_id = seen.peer.as_ref().map(|peer| peer.cgroup_id);
        let nothing = Self { cgroup_id: None, direction: None, peer: None, port: None, peer_cgroup_id: None };
        match by {
            By::Container => Self { cgroup_id, ..nothing },
            By::Peer => Self { peer, ..nothing },
            By::Port => Self { port, ..nothing },
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
    min_us: Option<u32>,
    /// Smoothed minus minimum, summed over `looks`.
    queueing_us: u64,
    looks: u64,
    connections: u64,
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
    connections: u64,
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
    fn add(&mut self, by: By, seen: &Seen<'_>) {
        let Some(samples) = rtt_samples(seen.record).filter(|samples| !samples.is_empty()) else { return };
        let key = Key::of(by, seen);
        let named = key.cgroup_id.is_some();
        let peer = key.peer_cgroup_id.and(seen.peer.as_ref());
        let group = self.0.entry(key).or_insert_with(|| Group {
            container: named.then(|| seen.container.whole()),
            peer_container: peer.map(Container::whole),
            samples: Histogram::new(&Scale::RTT),
            min_us: None,
            queueing_us: 0,
            looks: 0,
            connections: 0,
        });
        group.samples.merge(&samples);
        group.connections += 1;
        if let Some(rtt) = rtt(seen.record)
            && let Some(min) = rtt.min_us
        {
            group.min_us = Some(group.min_us.map_or(min, |known| known.min(min)));
            group.queueing_us += u64::from(rtt.srtt_us.saturating_sub(min));
            group.looks += 1;
        }
    }

    fn print(&self, out: &mut Output, format: Format, screen: &Screen, summary: bool) -> anyhow::Result<()> {
        for (key, group) in &self.0 {
            let queueing_us = group.queueing_us.checked_div(group.looks);
            if let Some(encoding) = format.encoding() {
                let item = Distribution {
                    time: Timestamp::now(),
                    summary,
                    container: group.container.as_deref(),
                    key,
                    peer_container: group.peer_container.as_deref(),
                    connections: group.connections,
                    rtt: &group.samples,
                    min_us: group.min_us,
                    queueing_us,
                };
                encoding.item(out, &item)?;
                continue;
            }
            writeln!(out)?;
            write!(out, "{}", bars(&key.title(group), &group.samples, screen))?;
            let min = group.min_us.map_or("-".to_owned(), |us| units::duration(us.into()));
            let queueing = queueing_us.map_or("-".to_owned(), units::duration);
            let connections = group.connections;
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

pub(crate) fn run(args: &RttArgs) -> anyhow::Result<()> {
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
    let format = args.output.output;
    let screen = Screen::detect();
    let interval =
        args.interval.or_else(|| (is_terminal() && format.encoding().is_none()).then_some(USUAL_INTERVAL));
    let (whole, recent) =
        (std::cell::RefCell::new(Groups::default()), std::cell::RefCell::new(Groups::default()));
    let mut out = Output::stdout();
    let mut last = Instant::now();
    let add = |seen: &Seen<'_>| {
        whole.borrow_mut().add(args.by, seen);
        if interval.is_some() {
            recent.borrow_mut().add(args.by, seen);
        }
    };
    session.announce();
    session.stream(
        args.stream.duration,
        |seen| {
            add(seen);
            Ok(())
        },
        |session| {
            if interval.is_some_and(|interval| last.elapsed() >= interval) {
                last = Instant::now();
                // A walk takes the samples off the live connections; what closes before or after brings its own.
                session.look(add)?;
                recent.take().print(&mut out, format, &screen, false)?;
                out.flush()?;
            }
            Ok(())
        },
    )?;
    session.look(add)?;
    session.fetch(|seen| {
        add(seen);
        Ok(())
    })?;
    if interval.is_some() && format.encoding().is_none() {
        writeln!(out, "\nthe whole time:")?;
    }
    whole.into_inner().print(&mut out, format, &screen, true)?;
    out.flush()?;
    session.report_losses();
    Ok(())
}
