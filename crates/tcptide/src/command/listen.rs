//! `tcptide listen`: listening sockets, how full their queues are, and what they turned away.

use model::connection::{Connection, Queues};
use probe::Options;

use super::{
    conns::{ROWS, process},
    endpoint, explain_nothing, owner, print,
};
use crate::{
    args::LookArgs,
    output::{
        style::Role,
        table::{Cell, Column},
    },
    session::{Session, connection},
};

const COLUMNS: &[Column] = &[
    Column::left("CONTAINER").shrinks_to(10),
    Column::left("PROCESS").shrinks_to(7).rank(2),
    Column::left("LOCAL").shrinks_to(12),
    Column::right("ACCEPT QUEUE"),
    Column::right("LIMIT"),
    Column::right("SYN QUEUE").rank(3),
    Column::right("DROPS"),
    Column::right("NETNS").wide_only(),
    Column::right("COOKIE").wide_only(),
];

pub(crate) fn run(args: &LookArgs) -> anyhow::Result<()> {
    let options = Options { follow: false, rows: ROWS, ..Options::default() };
    let mut session = Session::start(&args.filter, &args.output, options)?;
    session.insist_on_owners()?;
    let mut listeners: Vec<(Connection, Queues)> = Vec::new();
    let walk = session.walk(|row, container, clock| {
        let connection = connection(row, container, clock, false);
        if let Some(queues) = connection.queues {
            listeners.push((connection, queues));
        }
    })?;
    // The fullest first, then by name and port.
    listeners.sort_by(|(a, queued), (b, others)| {
        let of = |c: &Connection| (c.container.name.clone(), c.local.port, c.cookie);
        (others.accept, others.drops).cmp(&(queued.accept, queued.drops)).then_with(|| of(a).cmp(&of(b)))
    });
    // A walk in several parts may meet a socket again.
    listeners.dedup_by_key(|(listener, _)| listener.cookie);
    match args.output.output.encoding() {
        Some(_) => {
            let listeners: Vec<_> = listeners.iter().map(|(listener, _)| listener).collect();
            print(args.output.output, &listeners, COLUMNS, |_| Vec::new())?;
        }
        None => print(args.output.output, &listeners, COLUMNS, |(listener, queues)| row(listener, *queues))?,
    }
    explain_nothing(&session, listeners.len(), walk.sockets, "sockets");
    session.report_losses();
    Ok(())
}

fn row(listener: &Connection, queues: Queues) -> Vec<Cell> {
    let queue = Cell::new(&queues.accept.to_string());
    vec![
        owner(&listener.container).into(),
        listener.process.as_ref().map(process).into(),
        endpoint(&listener.local).into(),
        // One more than the limit is let in, so that a backlog of 0 takes one.
        if queues.accept > queues.limit { queue.role(Role::Bad) } else { queue },
        queues.limit.to_string().into(),
        queues.syn.to_string().into(),
        match queues.drops {
            0 => "0".into(),
            n => Cell::new(&n.to_string()).role(Role::Warn),
        },
        listener.netns.to_string().into(),
        listener.cookie.to_string().into(),
    ]
}
