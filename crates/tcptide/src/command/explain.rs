//! `tcptide explain`: what holds connections back, in words, with the numbers that led there.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
};

use model::{
    connection::Connection,
    explain::{Cause, Verdict, explain},
    record,
};
use probe::Options;
use serde::Serialize;

use super::{conns::process, endpoint, explain_no_peer, far_end, owner};
use crate::{
    args::ExplainArgs,
    output::{
        say,
        style::Role,
        writer::{Output, Screen},
    },
    peers::Starts,
    session::{ROWS, Session, connection},
};

#[derive(Serialize)]
struct Explained {
    connection: Connection,
    /// The gravest first.
    verdicts: Vec<Verdict>,
}

pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    // With samples, so that closed windows are seen between the looks too.
    let options = Options { rows: ROWS, samples: true, read_delay: true, ..Options::default() };
    let mut session = Session::start_with_peers(&args.filter, &args.output, options, false)?;
    session.insist_on_owners()?;
    let is_asked_for = |row: &record::Connection| args.connection.is_none_or(|cookie| cookie == row.cookie);
    let mut before = HashMap::new();
    session.walk(|row, _, _| {
        if is_asked_for(row) {
            before.insert(row.cookie, *row);
        }
    })?;
    say!("looking again in {:?}", args.duration);
    let begun = std::time::Instant::now();
    // Nothing is streamed: this is the way to wait that Ctrl-C ends.
    session.stream(Some(args.duration), |_| Ok(()), |_| Ok(()))?;
    let interval_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    // By cookie: a walk in several parts may meet a connection again.
    let mut all = BTreeMap::new();
    let walk = session.walk(|row, container, clock| {
        let verdicts = explain(before.get(&row.cookie), row, interval_us);
        if is_asked_for(row) && !verdicts.is_empty() {
            let connection = connection(row, container, clock, false);
            all.insert(row.cookie, (Explained { connection, verdicts }, Starts::of(row)));
        }
    })?;
    let with_peer = |(mut one, starts): (Explained, Option<Starts>)| {
        one.connection.peer.container = session.peer_of(starts);
        args.peer.matches(one.connection.peer.container.as_deref()).then_some(one)
    };
    let mut all: Vec<_> = all.into_values().filter_map(with_peer).collect();
    session.name_peers(&mut all.iter_mut().map(|one| &mut one.connection).collect::<Vec<_>>());
    all.sort_by(|a, b| gravity(b).total_cmp(&gravity(a)));
    match args.connection {
        Some(cookie) if all.is_empty() && args.peer.is_empty() => {
            anyhow::bail!("no connection has the cookie {cookie}: `tcptide conns -o wide` shows them");
        }
        _ => explain_no_peer(&session, &args.peer, all.len(), walk.sockets),
    }
    print(args, &all)?;
    session.report_losses();
    Ok(())
}

/// What is in order comes last.
fn gravity(one: &Explained) -> f64 {
    let of = |verdict: &Verdict| match verdict.cause {
        Cause::NothingToSend => -1.0,
        Cause::RoundTrips => verdict.share - 1.0,
        _ => verdict.share,
    };
    one.verdicts.first().map_or(f64::MIN, of)
}

fn print(args: &ExplainArgs, all: &[Explained]) -> anyhow::Result<()> {
    let mut out = Output::stdout();
    if let Some(encoding) = args.output.output.encoding() {
        encoding.list(&mut out, all)?;
        out.flush()?;
        return Ok(());
    }
    let palette = Screen::detect().palette;
    for Explained { connection: c, verdicts } in all.iter().take(args.top) {
        let who = c.process.as_ref().map(process).unwrap_or_default();
        let peer = far_end(&c.peer).map(|peer| format!(" ({peer})")).unwrap_or_default();
        let to = if c.queues.is_some() { String::new() } else { format!(" to {}{peer}", endpoint(&c.peer)) };
        writeln!(
            out,
            "{} {who}  {}{to}  {}  cookie {}",
            owner(&c.container),
            endpoint(&c.local),
            c.state.to_uppercase(),
            c.cookie
        )?;
        for verdict in verdicts {
            let (words, role) = words(verdict.cause);
            writeln!(out, "    {}: {}", palette.paint(role, words), verdict.because)?;
        }
    }
    if all.len() > args.top {
        writeln!(out, "and {} more (--top)", all.len() - args.top)?;
    }
    out.flush()?;
    Ok(())
}

pub(super) fn words(cause: Cause) -> (&'static str, Option<Role>) {
    match cause {
        Cause::NoAnswer => ("nobody answers", Some(Role::Bad)),
        Cause::NetworkLoss => ("the network loses segments", Some(Role::Bad)),
        Cause::ReceiverSlow => ("the receiver is slow", Some(Role::Warn)),
        Cause::SlowToRead => ("this application is slow to read", Some(Role::Warn)),
        Cause::SlowToAccept => ("this application is slow to accept", Some(Role::Warn)),
        Cause::NetworkDelay => ("the network delays", Some(Role::Warn)),
        Cause::SendBuffer => ("the send buffer is small", Some(Role::Warn)),
        Cause::RoundTrips => ("round trips", None),
        Cause::NothingToSend => ("nothing to send", None),
    }
}
