//! `tcptide conns`: live connections.

use clap::CommandFactory as _;
use model::connection::{Connection, Direction, Process};
use probe::Options;

use super::{endpoint, explain_no_peer, far_end, owner, print};
use crate::{
    agent::query,
    answer::connections::Connections,
    args::ConnsArgs,
    client::Remote,
    output::{
        say,
        table::{Cell, Column},
        units,
    },
    peers::Starts,
    session::{ROWS, Session, connection},
};

const COLUMNS: &[Column] = &[
    Column::left("CONTAINER").shrinks_to(10),
    Column::left("PROCESS").shrinks_to(7).rank(2),
    Column::left("DIR").rank(4),
    Column::left("LOCAL").shrinks_to(12).rank(3),
    Column::left("PEER").shrinks_to(12),
    Column::left("PEER NAME").shrinks_to(10).rank(1),
    Column::left("STATE"),
    Column::right("AGE").rank(5),
    Column::right("RTT").rank(1),
    Column::right("MIN RTT").rank(6),
    Column::right("TOTAL SENT"),
    Column::right("TOTAL RECV"),
    Column::right("RETRANS").rank(7),
    Column::right("CWND").wide_only(),
    Column::right("MSS").wide_only(),
    Column::left("CONGESTION").wide_only(),
    Column::right("NETNS").wide_only(),
    Column::right("COOKIE").wide_only(),
];

/// How many are asked of an agent.
pub(crate) const MOST: &str = "100000";

pub(crate) fn run(args: &ConnsArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    let look = &args.look;
    let options = Options { follow: false, rows: ROWS, ..Options::default() };
    let mut session = Session::start_with_peers(&look.filter, &look.output, options, false)?;
    session.insist_on_owners()?;
    let mut connections = Vec::new();
    let mut listeners = 0;
    let walk = session.walk(|row, container, clock| {
        let connection = connection(row, container, clock, false);
        if connection.queues.is_some() && !args.all {
            listeners += 1;
        } else {
            connections.push((connection, Starts::of(row)));
        }
    })?;
    let mut connections: Vec<_> = connections
        .into_iter()
        .filter_map(|(mut connection, starts)| {
            connection.peer.container = session.peer_of(starts);
            args.peer.matches(connection.peer.container.as_deref()).then_some(connection)
        })
        .collect();
    session.name_peers(&mut connections.iter_mut().collect::<Vec<_>>());
    sort(&mut connections);
    // A walk in several parts may meet a connection again.
    connections.dedup_by_key(|c| c.cookie);
    print(look.output.output, &connections, COLUMNS, row)?;
    if connections.is_empty() && listeners > 0 && args.peer.is_empty() {
        say!("no connections; {listeners} listening sockets (--all shows them)");
    } else {
        explain_no_peer(&session, &args.peer, connections.len(), walk.sockets);
    }
    session.report_losses();
    Ok(())
}

/// The same, as an agent tells it.
fn show_of(agent: &Remote, args: &ConnsArgs) -> anyhow::Result<()> {
    let Connections { matched, mut connections } =
        agent.get("connections", &query::Connections::command(), &[], &[("limit", MOST)])?;
    sort(&mut connections);
    print(args.look.output.output, &connections, COLUMNS, row)?;
    let told = connections.len() as u64;
    if told < matched {
        say!("these are the {told} that have carried most, of {matched}");
    }
    Ok(())
}

fn sort(connections: &mut [Connection]) {
    connections.sort_by(|a, b| (&a.container.name, a.cookie).cmp(&(&b.container.name, b.cookie)));
}

fn row(c: &Connection) -> Vec<Cell> {
    // One look has seen nothing happen: what a person wants is what the connection has carried at all, as ss shows it.
    let before = c.before.unwrap_or_default();
    vec![
        owner(&c.container).into(),
        c.process.as_ref().map(process).into(),
        c.direction.map(arrow).into(),
        endpoint(&c.local).into(),
        if c.queues.is_some() { "*".to_owned() } else { endpoint(&c.peer) }.into(),
        far_end(&c.peer).into(),
        c.state.to_uppercase().into(),
        c.duration_us.map(units::duration).into(),
        c.rtt.map(|rtt| units::duration(rtt.srtt_us.into())).into(),
        c.rtt.and_then(|rtt| rtt.min_us).map(|us| units::duration(us.into())).into(),
        units::bytes(before.sent_bytes + c.sent_bytes).into(),
        units::bytes(before.received_bytes + c.received_bytes).into(),
        units::count((before.retransmits + c.retransmits.total).into()).into(),
        c.cwnd.to_string().into(),
        c.mss.to_string().into(),
        c.congestion.clone().into(),
        c.netns.to_string().into(),
        c.cookie.to_string().into(),
    ]
}

/// `1234/nginx`
pub(crate) fn process(process: &Process) -> String {
    format!("{}/{}", process.pid, process.comm)
}

/// Which way the connection was made.
pub(crate) fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::Active => "out",
        Direction::Passive => "in",
    }
}
