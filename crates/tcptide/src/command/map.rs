//! `tcptide map`: who talks to whom.
//!
//! Every socket is one side of an edge from a client to a server. Where both are on this host they are joined
//! ([`crate::peers`]), and the connection counts once. An end elsewhere is an address.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::CommandFactory as _;
use model::{
    connection::{Direction, Event, LISTEN, peer, rtt, since_ns, subject},
    container::{Container, sanitize},
    filter::Filter,
    record,
};
use probe::Options;

use super::{explain_no_peer, print};
use crate::{
    agent::query,
    answer::edges::{Edge, EdgeId, Edges, Node, NodeId, Side, fold, retransmits, sort},
    args::{Drawing, MapArgs},
    client::Remote,
    output::{
        say,
        table::{Cell, Column},
        units,
        writer::Output,
    },
    peers::{End, SETTLED, Starts, direction, server_port},
    session::{LIFE_EVENTS, ROWS, Seen, Session},
};

const COLUMNS: &[Column] = &[
    Column::left("CLIENT").shrinks_to(10),
    Column::left("SERVER").shrinks_to(10),
    Column::right("PORT"),
    Column::right("CONNECTIONS"),
    Column::right("RTT").rank(1),
    Column::right("MIN RTT").rank(3),
    Column::right("SENT"),
    Column::right("RECEIVED"),
    Column::right("RETRANS").rank(2),
];
const WATCHED: &[Column] = &[
    Column::right("OPENED"),
    Column::right("FAILED"),
    Column::right("SENT/S").rank(4),
    Column::right("RECEIVED/S").rank(4),
];
/// How many of them are rates.
const RATES: usize = 2;

/// The most edges that are kept apart while watching; what else comes is ~other.
const MOST_EDGES: usize = 65_536;

/// A socket as it was seen last.
struct Sight {
    container: Arc<Container>,
    starts: Option<Starts>,
    cookie: u64,
    direction: Option<Direction>,
    peer: IpAddr,
    local_port: u16,
    peer_port: u16,
    /// When it opened, or was seen last.
    at_ns: u64,
    side: Side,
    /// When that was told.
    ended: Option<Instant>,
    was_opened: bool,
    has_failed: bool,
    /// Whether the filter lets it pass.
    is_wanted: bool,
}

pub(crate) fn run(args: &MapArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    let watches = args.duration.is_some();
    let options = if watches {
        Options { rows: ROWS, events: LIFE_EVENTS, ..Options::default() }
    } else {
        Options { rows: ROWS, follow: false, ..Options::default() }
    };
    let look = &args.look;
    let mut session = Session::start_with_peers(&look.filter, &look.output, options, args.dns)?;
    session.insist_on_owners()?;
    // Both sides of an edge are shown if one is asked for.
    let filter = std::mem::take(&mut session.filter);
    let picture =
        RefCell::new(Picture { args, filter: &filter, sights: HashMap::new(), edges: BTreeMap::new() });
    let told = |seen: &Seen<'_>| {
        let event = Event::ALL.get(usize::from(seen.record.event)).copied();
        picture.borrow_mut().see(event, seen.record, seen.container);
        Ok(())
    };
    let begun = Instant::now();
    if let Some(duration) = args.duration {
        session.announce();
        session.stream(Some(duration), told, |session| {
            picture.borrow_mut().settle(session, Some(SETTLED));
            Ok(())
        })?;
    }
    let walk = session.walk(|r, container, _| picture.borrow_mut().see(None, r, container))?;
    if watches {
        // What closed before the walk came by.
        session.fetch(told)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut picture = picture.into_inner();
    picture.ask_for_names(&session);
    picture.settle(&mut session, None);
    let mut edges = fold(picture.sorted(), args.max_edges as usize);
    if watches {
        for edge in &mut edges {
            edge.rates = Some(edge.rates_over(seconds));
        }
    }
    session.filter = filter;
    show(args, &edges, if watches { WATCHED } else { &[] })?;
    explain_no_peer(&session, &args.peer, edges.len(), walk.sockets);
    session.report_losses();
    Ok(())
}

/// The same, as an agent counted it.
fn show_of(agent: &Remote, args: &MapArgs) -> anyhow::Result<()> {
    let max_edges = args.max_edges.to_string();
    let more = [("max_edges", max_edges.as_str())];
    let local = ["draw", "max-edges"];
    let answer: Edges = agent.get("edges", &query::Edges::command(), &local, &more)?;
    // The rates are those of a time that was asked for.
    let (counted, _) = WATCHED.split_at(WATCHED.len() - RATES);
    show(args, &answer.edges, if agent.has("since") { WATCHED } else { counted })?;
    if let (Some(asked), Some(seconds)) = (args.since, answer.seconds)
        && seconds < asked.as_secs_f64()
    {
        say!("the agent knows of the last {} only", units::duration((seconds * 1e6) as u64));
    }
    Ok(())
}

fn show(args: &MapArgs, edges: &[Edge], watched: &[Column]) -> anyhow::Result<()> {
    match args.draw {
        Some(drawing) => {
            let mut out = Output::stdout();
            out.write_all(draw(drawing, edges).as_bytes())?;
            Ok(out.flush()?)
        }
        None => print(args.look.output.output, edges, &[COLUMNS, watched].concat(), row),
    }
}

/// What was seen so far.
struct Picture<'a> {
    args: &'a MapArgs,
    filter: &'a Filter,
    /// By cookie: what is there, and what ended just now.
    sights: HashMap<u64, Sight>,
    edges: BTreeMap<EdgeId, Edge>,
}

impl Picture<'_> {
    fn see(&mut self, event: Option<Event>, r: &record::Connection, container: &Arc<Container>) {
        // An event that was fetched after the walk may be of before it.
        if r.state == LISTEN || (event == Some(Event::Established) && self.sights.contains_key(&r.cookie)) {
            return;
        }
        // One look tells what connections have carried at all.
        let before = if self.args.duration.is_some() { record::Counters::default() } else { r.before };
        let rtt = rtt(r);
        let srtt = rtt.map(|rtt| u64::from(rtt.srtt_us));
        let side = Side {
            sent_bytes: before.sent_bytes + r.since.sent_bytes,
            received_bytes: before.received_bytes + r.since.received_bytes,
            segments_out: u64::from(before.segments_out) + u64::from(r.since.segments_out),
            retransmits: u64::from(before.retransmits) + u64::from(r.since.retransmits),
            srtt_us: srtt,
            min_rtt_us: rtt.and_then(|rtt| rtt.min_us),
            srtt_sum: srtt.unwrap_or(0),
            srtts: srtt.map_or(0, |_| 1),
        };
        let ended = matches!(event, Some(Event::Close | Event::Fail));
        let sight = Sight {
            container: container.whole(),
            starts: Starts::of(r),
            cookie: r.cookie,
            direction: Direction::of(r.direction),
            peer: peer(r).address,
            local_port: r.local_port,
            peer_port: r.peer_port,
            at_ns: since_ns(r),
            side,
            ended: ended.then(Instant::now),
            // Of others it is not known.
            was_opened: r.established_ns != 0,
            has_failed: event == Some(Event::Fail),
            is_wanted: self.filter.matches(&subject(r, container)),
        };
        self.sights.insert(r.cookie, sight);
    }

    /// What is to be read for a name is read now, and not for each connection by itself.
    fn ask_for_names(&self, session: &Session) {
        for sight in self.sights.values() {
            session.peer_name(&sight.container, (sight.peer, sight.peer_port), sight.at_ns);
        }
        session.settle_names();
    }

    /// Makes edges of connections that ended so long ago that both ends have told of it; of all, without a time.
    fn settle(&mut self, session: &mut Session, age: Option<Duration>) {
        let mut due = HashSet::new();
        for sight in self.sights.values() {
            if age.is_some_and(|age| sight.ended.is_none_or(|ended| ended.elapsed() < age)) {
                continue;
            }
            // What is known of the one names the other, so that both are done at once.
            let other = session.peer_cookie(sight.starts).and_then(|cookie| self.sights.get(&cookie));
            if age.is_none() || other.is_none_or(|other| other.ended.is_some()) {
                due.extend([sight.cookie].into_iter().chain(other.map(|other| other.cookie)));
            }
        }
        for cookie in &due {
            let Some(sight) = self.sights.get(cookie) else { continue };
            let found = session.peer(sight.starts);
            let far = found.as_ref().map(|(_, container)| container);
            let other = found.as_ref().and_then(|(end, _)| self.sights.get(&end.cookie));
            let peers = &self.args.peer;
            let is_wanted = (sight.is_wanted && peers.matches(far.map(Arc::as_ref)))
                || other.is_some_and(|other| other.is_wanted && peers.matches(Some(&sight.container)));
            if is_wanted {
                let far = match far {
                    Some(container) => Node::Container(container.whole()),
                    None => {
                        match session.peer_name(&sight.container, (sight.peer, sight.peer_port), sight.at_ns)
                        {
                            Some(name) => Node::Name(name.into()),
                            None => Node::Address(sight.peer),
                        }
                    }
                };
                let end = found.as_ref().map(|(end, _)| end);
                let edge = edge(sight, far, end, other.is_some(), self.args.duration.is_some());
                self.add(edge);
            }
        }
        for cookie in due {
            self.sights.remove(&cookie);
        }
    }

    fn add(&mut self, mut edge: Edge) {
        if self.edges.len() >= MOST_EDGES && !self.edges.contains_key(&edge.id()) {
            edge = edge.of_others();
        }
        match self.edges.entry(edge.id()) {
            Entry::Vacant(vacant) => drop(vacant.insert(edge)),
            Entry::Occupied(mut known) => known.get_mut().add(&edge),
        }
    }

    /// Those with the most connections first.
    fn sorted(self) -> Vec<Edge> {
        let mut edges: Vec<_> = self.edges.into_values().collect();
        sort(&mut edges);
        edges
    }
}

/// What one socket says of its edge. A connection whose other socket is seen, too, is counted by the client's.
fn edge(sight: &Sight, far: Node, peers: Option<&End>, both_seen: bool, watches: bool) -> Edge {
    let near = Node::Container(Arc::clone(&sight.container));
    let began = direction(sight.direction, peers).map(|direction| direction == Direction::Active);
    // Where nobody saw who began, the lower cookie comes first, so that both sockets tell of one edge.
    let is_client = began.unwrap_or_else(|| peers.is_none_or(|end| end.cookie >= sight.cookie));
    let (client, server) = if is_client { (near, far) } else { (far, near) };
    let port = |began| if began { server_port(sight.peer_port, peers) } else { sight.local_port };
    let counts = is_client || !both_seen;
    let one = |is: bool| u64::from(counts && is);
    Edge {
        client,
        server,
        port: began.map(port),
        connections: one(sight.ended.is_none()),
        opened: watches.then(|| one(sight.was_opened)),
        failed: watches.then(|| one(sight.has_failed)),
        rates: None,
        client_side: is_client.then_some(sight.side),
        server_side: (!is_client).then_some(sight.side),
    }
}

fn row(edge: &Edge) -> Vec<Cell> {
    let side = edge.side();
    let bytes = edge.bytes();
    let mut cells: Vec<Cell> = vec![
        edge.client.name().into(),
        edge.server.name().into(),
        edge.port.map(|port| port.to_string()).into(),
        units::count(edge.connections).into(),
        side.and_then(|side| side.srtt_us).map(units::duration).into(),
        side.and_then(|side| side.min_rtt_us).map(|us| units::duration(us.into())).into(),
        bytes.map(|(sent, _)| units::bytes(sent)).into(),
        bytes.map(|(_, received)| units::bytes(received)).into(),
        units::count(retransmits(edge)).into(),
    ];
    cells.extend([edge.opened, edge.failed].into_iter().flatten().map(|n| Cell::from(units::count(n))));
    let rates = edge.rates.map(|rates| [rates.sent_bytes, rates.received_bytes]);
    cells.extend(rates.into_iter().flatten().map(|rate| Cell::from(units::rate(rate))));
    cells
}

fn draw(drawing: Drawing, edges: &[Edge]) -> String {
    let mut nodes: BTreeMap<NodeId, (usize, String)> = BTreeMap::new();
    for node in edges.iter().flat_map(|edge| [&edge.client, &edge.server]) {
        let number = nodes.len();
        nodes.entry(node.id()).or_insert_with(|| (number, node.name()));
    }
    let number = |node: &Node| nodes.get(&node.id()).map_or(0, |(number, _)| *number);
    let mut listed: Vec<_> = nodes.values().collect();
    listed.sort();
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{arguments}");
    };
    match drawing {
        Drawing::Dot => {
            line(format_args!("digraph tcptide {{\n  rankdir=LR;\n  node [shape=box];"));
            for (number, name) in listed {
                line(format_args!("  n{number} [label=\"{}\"];", dot_text(name)));
            }
            for edge in edges {
                let (client, server) = (number(&edge.client), number(&edge.server));
                line(format_args!("  n{client} -> n{server} [label=\"{}\"];", dot_text(&label(edge))));
            }
            line(format_args!("}}"));
        }
        Drawing::Mermaid => {
            line(format_args!("flowchart LR"));
            for (number, name) in listed {
                line(format_args!("  n{number}[\"{}\"]", mermaid_text(name)));
            }
            for edge in edges {
                let (client, server) = (number(&edge.client), number(&edge.server));
                line(format_args!("  n{client} -->|\"{}\"| n{server}", mermaid_text(&label(edge))));
            }
        }
    }
    text
}

/// `5432: 3 connections, 812µs, 2 failed`
fn label(edge: &Edge) -> String {
    let port = edge.port.map(|port| format!("{port}: ")).unwrap_or_default();
    let rtt = edge.side().and_then(|side| side.srtt_us).map(|us| format!(", {}", units::duration(us)));
    let failed = edge.failed.filter(|&n| n > 0).map(|n| format!(", {} failed", units::count(n)));
    let s = if edge.connections == 1 { "" } else { "s" };
    format!(
        "{port}{} connection{s}{}{}",
        units::count(edge.connections),
        rtt.unwrap_or_default(),
        failed.unwrap_or_default()
    )
}

/// Within quotes of Graphviz's language.
fn dot_text(text: &str) -> String {
    sanitize(text).replace('\\', r"\\").replace('"', r#"\""#)
}

/// Within quotes of Mermaid, which takes all else by the names of HTML.
fn mermaid_text(text: &str) -> String {
    sanitize(text).chars().fold(String::new(), |mut text, c| {
        match c {
            '"' | '#' | '&' | '<' | '>' | '`' | ';' | '\\' | '|' => {
                text.extend(["#", &u32::from(c).to_string(), ";"]);
            }
            c => text.push(c),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge_to(port: u16, connections: u64) -> Edge {
        let address = IpAddr::from([192, 0, 2, 1]);
        let side = Side { sent_bytes: connections, ..Side::default() };
        Edge {
            client: Node::Container(Arc::new(Container::unknown(7))),
            server: Node::Address(address),
            port: Some(port),
            connections,
            opened: Some(1),
            failed: None,
            rates: None,
            client_side: Some(side),
            server_side: None,
        }
    }

    #[test]
    fn totals_are_the_same_with_fewer_edges() {
        let edges: Vec<_> = (1..=9).map(|n| edge_to(n, n.into())).collect();
        let totals = |edges: &[Edge]| {
            let sent = edges.iter().filter_map(Edge::bytes).map(|(sent, _)| sent).sum::<u64>();
            (edges.iter().map(Edge::size).sum::<u64>(), sent)
        };
        let before = totals(&edges);
        for most in [1, 4, 9, 10] {
            let folded = fold(edges.clone(), most);
            assert_eq!((folded.len(), totals(&folded)), (9.min(most + usize::from(most < 9)), before));
        }
        let other = serde_json::to_value(fold(edges, 1).last()).unwrap();
        assert_eq!((&other["client"]["name"], &other["connections"]), (&"~other".into(), &44.into()));
    }

    #[test]
    fn odd_names_stay_within_their_quotes() {
        let mut edge = edge_to(80, 1);
        let mut odd = Container::unknown(7);
        "a\"b\\c\n<script>|#".clone_into(&mut odd.name);
        edge.client = Node::Container(Arc::new(odd));
        let dot = draw(Drawing::Dot, std::slice::from_ref(&edge));
        assert_eq!(dot.lines().count(), 7, "{dot}");
        assert!(dot.contains(r#"[label="a\"b\\c"#), "{dot}");
        let mermaid = draw(Drawing::Mermaid, &[edge]);
        assert_eq!(mermaid.lines().count(), 4, "{mermaid}");
        assert_eq!(mermaid.matches('"').count(), 6, "{mermaid}");
        assert!(!mermaid.contains("<script>"), "{mermaid}");
    }
}
