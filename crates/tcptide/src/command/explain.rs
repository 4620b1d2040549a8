//! `tcptide explain`: what holds connections back, in words, with the numbers that led there.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    time::{Duration, Instant},
};

use clap::CommandFactory as _;
use model::{
    connection::Connection,
    explain::{Cause, Verdict, explain},
    record,
};
use probe::Options;
use serde::Serialize;

use super::{
    conns::{MOST, process},
    endpoint, explain_no_peer, far_end, owner,
};
use crate::{
    agent::query,
    answer::connections::Connections,
    args::ExplainArgs,
    client::{Remote, wait},
    output::{
        say,
        style::Role,
        writer::{Output, Screen},
    },
    peers::Starts,
    session::{ROWS, Session, connection, stop_flag},
};

#[derive(Serialize)]
struct Explained {
    connection: Connection,
    /// The gravest first.
    verdicts: Vec<Verdict>,
}

pub(crate) fn run(args: &ExplainArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    // With samples, so that closed windows are seen between the looks too.
    let options = Options { rows: ROWS, samples: true, read_delay: true, ..Options::default() };
    let mut session = Session::start_with_peers(&args.filter, &args.output, options, false)?;
    session.insist_on_owners()?;
    let is_asked_for = |row: &record::Connection| args.connection.is_none_or(|cookie| cookie == row.cookie);
    let mut before = HashMap::new();
    session.walk(|row, container, clock| {
        if is_asked_for(row) {
            before.insert(row.cookie, connection(row, container, clock, false));
        }
    })?;
    say!("looking again in {:?}", args.duration);
    let begun = Instant::now();
    // Nothing is streamed: this is the way to wait that Ctrl-C ends.
    session.stream(Some(args.duration), |_| Ok(()), |_| Ok(()))?;
    let interval = begun.elapsed();
    // By cookie: a walk in several parts may meet a connection again.
    let mut all = BTreeMap::new();
    let walk = session.walk(|row, container, clock| {
        if is_asked_for(row)
            && let Some(one) = explained(&before, connection(row, container, clock, false), interval)
        {
            all.insert(row.cookie, (one, Starts::of(row)));
        }
    })?;
    let with_peer = |(mut one, starts): (Explained, Option<Starts>)| {
        one.connection.peer.container = session.peer_of(starts);
        args.peer.matches(one.connection.peer.container.as_deref()).then_some(one)
    };
    let mut all: Vec<_> = all.into_values().filter_map(with_peer).collect();
    session.name_peers(&mut all.iter_mut().map(|one| &mut one.connection).collect::<Vec<_>>());
    insist_on_the_one(args, &all)?;
    explain_no_peer(&session, &args.peer, all.len(), walk.sockets);
    show(args, all)?;
    session.report_losses();
    Ok(())
}

/// The same, by two looks of an agent.
fn show_of(agent: &Remote, args: &ExplainArgs) -> anyhow::Result<()> {
    let cookie = args.connection.map(|cookie| cookie.to_string());
    let mut more = vec![("all", "true"), ("limit", MOST)];
    more.extend(cookie.as_deref().map(|cookie| ("cookie", cookie)));
    let look = || -> anyhow::Result<Connections> {
        agent.get("connections", &query::Connections::command(), &["duration", "top"], &more)
    };
    let stop = stop_flag()?;
    let first = look()?;
    let is_whole = first.is_whole();
    let before: HashMap<_, _> = first.connections.into_iter().map(|one| (one.cookie, one)).collect();
    say!("looking again in {:?}", args.duration);
    let begun = Instant::now();
    wait(args.duration, &stop);
    let interval = begun.elapsed();
    let last = look()?;
    let (matched, told) = (last.matched, last.connections.len());
    let measures_reads = last.connections.iter().any(|one| one.read_delay.is_some());
    // Of one that the first look left out it is not known what it had done by then.
    let is_known = |one: &Connection| is_whole || before.contains_key(&one.cookie);
    let known = last.connections.into_iter().filter(is_known);
    let all: Vec<_> = known.filter_map(|one| explained(&before, one, interval)).collect();
    insist_on_the_one(args, &all)?;
    show(args, all)?;
    if !is_whole || told < usize::try_from(matched).unwrap_or(usize::MAX) {
        say!("only of those that have carried most it is told: {told} of {matched}");
    }
    if told > 0 && !measures_reads {
        say!(
            "this agent does not measure how long data waits to be read: it was started without --read-delay"
        );
    }
    Ok(())
}

/// What is to be said of a connection, if it was seen before or has come since.
fn explained(
    before: &HashMap<u64, Connection>,
    connection: Connection,
    interval: Duration,
) -> Option<Explained> {
    let interval_us = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
    let verdicts = explain(before.get(&connection.cookie), &connection, interval_us);
    (!verdicts.is_empty()).then_some(Explained { connection, verdicts })
}

/// An error if there is no connection with the cookie that was asked for.
fn insist_on_the_one(args: &ExplainArgs, all: &[Explained]) -> anyhow::Result<()> {
    match args.connection {
        Some(cookie) if all.is_empty() && args.peer.is_empty() => {
            anyhow::bail!("no connection has the cookie {cookie}: `tcptide conns -o wide` shows them");
        }
        _ => Ok(()),
    }
}

/// The gravest first.
fn show(args: &ExplainArgs, mut all: Vec<Explained>) -> anyhow::Result<()> {
    all.sort_by(|a, b| {
        gravity(b).total_cmp(&gravity(a)).then_with(|| a.connection.cookie.cmp(&b.connection.cookie))
    });
    print(args, &all)
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
