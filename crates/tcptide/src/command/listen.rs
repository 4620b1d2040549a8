//! `tcptide listen`: listening sockets, how full their queues are, what they turned away, and how long connections wait
//! for `accept()`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use clap::CommandFactory as _;
use model::{
    connection::{Event, local},
    histogram::{Histogram, Scale},
    record,
};
use probe::Options;

use super::{conns::process, endpoint, explain_nothing, owner, print};
use crate::{
    agent::query,
    answer::listeners::{Listener, Listeners, Watched, sort},
    args::ListenArgs,
    client::Remote,
    output::{
        say,
        style::Role,
        table::{Cell, Column},
        units,
    },
    session::{ROWS, Session, connection},
};

const COLUMNS: &[Column] = &[
    Column::left("CONTAINER").shrinks_to(10),
    Column::left("PROCESS").shrinks_to(7).rank(2),
    Column::left("LOCAL").shrinks_to(12),
    Column::right("ACCEPT QUEUE"),
    Column::right("LIMIT"),
    Column::right("SYN QUEUE").rank(3),
    Column::right("DROPS"),
];

/// What is known only of listeners that were watched.
const WATCHED: &[Column] = &[
    Column::right("OVERFLOWS").rank(4),
    Column::right("ACCEPTED"),
    Column::right("WAIT P50"),
    Column::right("P99"),
];

const WHICH: &[Column] = &[Column::right("NETNS").wide_only(), Column::right("COOKIE").wide_only()];

/// How long connections waited, by cookie, and by network namespace and local end.
type Waits = BTreeMap<(u32, IpAddr, Option<u16>), HashMap<u64, u32>>;

pub(crate) fn run(args: &ListenArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    let ListenArgs { look, duration } = args;
    if let Some(agent) = agent {
        let Listeners { listeners } = agent.get("listeners", &query::Listeners::command(), &[], &[])?;
        return print(look.output.output, &listeners, &[COLUMNS, WHICH].concat(), row);
    }
    let options = Options {
        follow: duration.is_some(),
        events: duration.map_or(0, |_| Event::Close.bit()),
        rows: ROWS,
        ..Options::default()
    };
    let mut session = Session::start(&look.filter, &look.output, options)?;
    session.insist_on_owners()?;
    let mut waits = Waits::new();
    let mut before = HashMap::new();
    if duration.is_some() {
        session.walk(|row, _, _| {
            before.insert(row.cookie, (row.drops, row.overflows));
        })?;
        say!("looking again in {:?}", duration.unwrap_or_default());
        session.stream(
            *duration,
            |seen| {
                note(&mut waits, seen.record);
                Ok(())
            },
            |_| Ok(()),
        )?;
    }
    let is_exact = session.monitor.is_attached("accepted");
    let mut listeners = Vec::new();
    let mut seen = HashSet::new();
    let walk = session.walk(|row, container, clock| {
        // A walk in several parts may meet a socket again.
        if !seen.insert(row.cookie) {
            return;
        }
        let connection = connection(row, container, clock, false);
        match connection.queues {
            Some(queues) => {
                let (drops, overflows) = before.get(&row.cookie).copied().unwrap_or_default();
                let watched = duration.map(|_| Watched {
                    drops: queues.drops.wrapping_sub(drops),
                    overflows: queues.overflows.map(|n| n.wrapping_sub(overflows)),
                    accept_wait: Histogram::new(&Scale::CONNECT),
                    accept_wait_is_bound: !is_exact,
                });
                listeners.push(Listener { connection, watched });
            }
            None => note(&mut waits, row),
        }
    })?;
    if duration.is_some() {
        session.fetch(|seen| {
            note(&mut waits, seen.record);
            Ok(())
        })?;
    }
    share_out(&waits, &mut listeners);
    sort(&mut listeners);
    let watched = if duration.is_some() { WATCHED } else { &[] };
    print(look.output.output, &listeners, &[COLUMNS, watched, WHICH].concat(), row)?;
    explain_nothing(&session, listeners.len(), walk.sockets, "sockets");
    session.report_losses();
    Ok(())
}

/// Takes the wait of an accepted connection. It is in the last walk or in an event before it, or in both: those that closed
/// in between are told twice, and counted once.
fn note(waits: &mut Waits, r: &record::Connection) {
    if r.accept_wait_us == 0 {
        return;
    }
    let end = local(r);
    waits.entry((r.netns, end.address, end.port)).or_default().insert(r.cookie, r.accept_wait_us);
}

/// A connection came through the listener at its very address, or else through one at every address. Those that share one
/// (SO_REUSEPORT) share what is told of it.
fn share_out(waits: &Waits, listeners: &mut [Listener]) {
    for ((netns, address, port), waits) in waits {
        let at = |l: &Listener, address: Option<IpAddr>| {
            let c = &l.connection;
            c.netns == *netns
                && c.local.port == *port
                && address.map_or(c.local.address.is_unspecified(), |address| c.local.address == address)
        };
        let exact = listeners.iter().any(|l| at(l, Some(*address))).then_some(*address);
        for listener in listeners.iter_mut().filter(|l| at(l, exact)) {
            if let Some(watched) = &mut listener.watched {
                for us in waits.values() {
                    watched.accept_wait.record(u64::from(*us));
                }
            }
        }
    }
}

fn row(listener: &Listener) -> Vec<Cell> {
    let Listener { connection, watched } = listener;
    let queues = listener.queues();
    let queue = Cell::new(&queues.accept.to_string());
    let turned_away = |n: u32| if n == 0 { "0".into() } else { Cell::new(&n.to_string()).role(Role::Warn) };
    let mut cells = vec![
        owner(&connection.container).into(),
        connection.process.as_ref().map(process).into(),
        endpoint(&connection.local).into(),
        // One more than the limit is let in, so that a backlog of 0 takes one.
        if queues.accept > queues.limit { queue.role(Role::Bad) } else { queue },
        queues.limit.to_string().into(),
        queues.syn.to_string().into(),
    ];
    match watched {
        None => cells.push(turned_away(queues.drops)),
        Some(Watched { drops, overflows, accept_wait, accept_wait_is_bound }) => {
            let mark = if *accept_wait_is_bound { "≤" } else { "" };
            let wait = |q| accept_wait.quantile(q).map(|us| format!("{mark}{}", units::duration(us)));
            cells.extend([
                turned_away(*drops),
                overflows.map_or_else(|| None::<String>.into(), turned_away),
                accept_wait.count().to_string().into(),
                wait(0.5).into(),
                wait(0.99).into(),
            ]);
        }
    }
    cells.extend([connection.netns.to_string().into(), connection.cookie.to_string().into()]);
    cells
}
