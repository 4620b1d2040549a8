//! `tcptide connlat`: how long connections take to be established.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::Write as _,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use model::{
    connection::{Connection, Event},
    container::Container,
    histogram::{Histogram, Scale},
};
use probe::Options;
use serde::Serialize;

use super::{conns::process, endpoint, far_end, owner};
use crate::{
    args::ConnlatArgs,
    client::Remote,
    output::{
        bars::bars,
        format::Format,
        layout::wrap,
        style::Role,
        table::{Cell, Column, Stream},
        units,
        writer::{Output, Screen},
    },
    session::Session,
};

const COLUMNS: &[Column] = &[
    Column::left("TIME").width(12),
    Column::left("CONTAINER").width(20).shrinks_to(10),
    Column::left("PROCESS").width(16).shrinks_to(7).rank(2),
    Column::left("LOCAL").width(21).shrinks_to(12).rank(3),
    Column::left("PEER").width(21).shrinks_to(12),
    Column::left("PEER NAME").width(20).shrinks_to(10).rank(2),
    Column::right("LATENCY").width(8),
    Column::left("RESULT").width(8),
    Column::right("SYN RETRANS").width(11).wide_only(),
];

/// What the connects of one container came to.
#[derive(Serialize)]
struct Distribution {
    time: Timestamp,
    summary: bool,
    container: Arc<Container>,
    connect: Histogram,
    failures: BTreeMap<&'static str, u64>,
}

/// Connects by container: of now, or of the whole run.
#[derive(Default)]
struct Tally(BTreeMap<u64, Connects>);

struct Connects {
    container: Arc<Container>,
    latency: Histogram,
    failures: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn of(&mut self, container: &Arc<Container>) -> &mut Connects {
        self.0.entry(container.cgroup_id).or_insert_with(|| Connects {
            container: container.whole(),
            latency: Histogram::new(&Scale::CONNECT),
            failures: BTreeMap::new(),
        })
    }

    fn print(&self, out: &mut Output, format: Format, screen: &Screen, summary: bool) -> anyhow::Result<()> {
        for Connects { container, latency, failures } in self.0.values() {
            match format.encoding() {
                Some(encoding) => encoding.item(
                    out,
                    &Distribution {
                        time: Timestamp::now(),
                        summary,
                        container: Arc::clone(container),
                        connect: latency.clone(),
                        failures: failures.clone(),
                    },
                )?,
                None => {
                    writeln!(out)?;
                    write!(
                        out,
                        "{}",
                        bars(&format!("{}: connect latency", owner(container)), latency, screen)
                    )?;
                    if !failures.is_empty() {
                        let list: Vec<_> =
                            failures.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
                        for line in wrap(&list, ", ", screen.width.map(|width| width.saturating_sub(8))) {
                            writeln!(out, "failed: {line}")?;
                        }
                    }
                }
            }
        }
        if self.0.is_empty() && format.encoding().is_none() {
            writeln!(out, "no connection was made")?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: &ConnlatArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    let options = Options {
        events: Event::Established.bit() | Event::Fail.bit(),
        buffer: args.stream.buffer << 20,
        ..Options::default()
    };
    let mut session = Session::start_stream(&args.filter, &args.output, options, &args.peers)?;
    session.announce();
    let report = RefCell::new(Report::begin(args)?);
    session.stream(
        args.stream.duration,
        |seen| report.borrow_mut().see(&seen.event()),
        |_| report.borrow_mut().now_and_then(),
    )?;
    report.into_inner().end()?;
    session.report_losses();
    Ok(())
}

/// The same, as an agent tells it.
fn show_of(agent: &Remote, args: &ConnlatArgs) -> anyhow::Result<()> {
    let mut events = agent.events(&["duration", "min", "interval"], &[("events", "established,fail")])?;
    let report = RefCell::new(Report::begin(args)?);
    let see = |event: &Connection| report.borrow_mut().see(event);
    events.each(args.stream.duration, see, || report.borrow_mut().now_and_then())?;
    events.rest(see)?;
    report.into_inner().end()?;
    events.finish()
}

/// What is told of connects: each, or now and then what they came to, and at the end what all of them did.
struct Report<'a> {
    args: &'a ConnlatArgs,
    zone: TimeZone,
    screen: Screen,
    stream: Stream<'static>,
    out: Output,
    whole: Tally,
    recent: Tally,
    last: Instant,
}

impl<'a> Report<'a> {
    fn begin(args: &'a ConnlatArgs) -> anyhow::Result<Self> {
        let format = args.output.output;
        let screen = Screen::detect();
        let stream = Stream::new(COLUMNS, format.is_wide(), screen);
        let mut out = Output::stdout();
        if format.encoding().is_none() && args.interval.is_none() {
            out.write_all(stream.header().as_bytes())?;
        }
        let (whole, recent) = (Tally::default(), Tally::default());
        Ok(Self { args, zone: TimeZone::system(), screen, stream, out, whole, recent, last: Instant::now() })
    }

    fn see(&mut self, connection: &Connection) -> anyhow::Result<()> {
        let latency = if connection.event == Some(Event::Fail) {
            connection.duration_us
        } else {
            connection.connect_us
        };
        // Passive connections, and those whose SYN nobody saw.
        let Some(latency) = latency else { return Ok(()) };
        if self.args.min.is_some_and(|min| Duration::from_micros(latency) < min) {
            return Ok(());
        }
        for tally in [&mut self.whole, &mut self.recent] {
            let Connects { latency: connected, failures, .. } = tally.of(&connection.container);
            match connection.close {
                Some(close) => *failures.entry(close.reason).or_default() += 1,
                None => connected.record(latency),
            }
        }
        if self.args.interval.is_some() {
            return Ok(());
        }
        match self.args.output.output.encoding() {
            Some(encoding) => encoding.item(&mut self.out, connection)?,
            None => {
                let row = self.stream.row(&row(connection, latency, &self.zone));
                self.out.write_all(row.as_bytes())?;
            }
        }
        Ok(())
    }

    fn now_and_then(&mut self) -> anyhow::Result<()> {
        if self.args.interval.is_some_and(|interval| self.last.elapsed() >= interval) {
            self.last = Instant::now();
            let recent = mem::take(&mut self.recent);
            recent.print(&mut self.out, self.args.output.output, &self.screen, false)?;
        }
        Ok(self.out.flush()?)
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.whole.print(&mut self.out, self.args.output.output, &self.screen, true)?;
        Ok(self.out.flush()?)
    }
}

fn row(c: &Connection, latency: u64, zone: &TimeZone) -> Vec<Cell> {
    vec![
        units::clock(c.time, zone).into(),
        owner(&c.container).into(),
        c.process.as_ref().map(process).into(),
        c.local.port.map_or_else(|| c.local.address.to_string(), |_| endpoint(&c.local)).into(),
        endpoint(&c.peer).into(),
        far_end(&c.peer).into(),
        units::duration(latency).into(),
        c.close.map_or_else(|| Cell::new("ok"), |close| Cell::new(close.reason).role(Role::Bad)),
        c.retransmits.syn.to_string().into(),
    ]
}
