//! `tcptide trace`: connections as they open, fail and close.

use std::{cell::RefCell, io::Write as _};

use jiff::tz::TimeZone;
use model::connection::{Connection, Event};
use probe::Options;

use super::{
    conns::{arrow, process},
    endpoint, far_end, owner,
};
use crate::{
    args::TraceArgs,
    client::Remote,
    output::{
        format::Format,
        style::Role,
        table::{Cell, Column, Stream},
        units,
        writer::{Output, Screen},
    },
    session::Session,
};

const COLUMNS: &[Column] = &[
    Column::left("TIME").width(12),
    Column::left("EVENT").width(11),
    Column::left("CONTAINER").width(20).shrinks_to(10),
    Column::left("PROCESS").width(16).shrinks_to(7).rank(2),
    Column::left("DIR").width(3).rank(3),
    Column::left("LOCAL").width(21).shrinks_to(12).rank(4),
    Column::left("PEER").width(21).shrinks_to(12),
    Column::left("PEER NAME").width(20).shrinks_to(10).rank(2),
    Column::right("TOOK").width(7).rank(1),
    Column::right("SENT").width(8).rank(1),
    Column::right("RECEIVED").width(8).rank(1),
    Column::right("RTT").width(7).rank(5),
    Column::left("RESULT").width(8),
    Column::right("SENT/S").width(9).wide_only(),
    Column::right("RECEIVED/S").width(10).wide_only(),
    Column::right("RETRANS").width(7).wide_only(),
    Column::right("NETNS").width(10).wide_only(),
    Column::right("COOKIE").width(8).wide_only(),
];

pub(crate) fn run(args: &TraceArgs, agent: Option<&Remote>) -> anyhow::Result<()> {
    if let Some(agent) = agent {
        return show_of(agent, args);
    }
    let options = Options {
        events: args.events.bits(),
        buffer: args.stream.buffer << 20,
        read_delay: args.read_delay,
        ..Options::default()
    };
    let mut session = Session::start_stream(&args.filter, &args.output, options, &args.peers)?;
    session.announce();
    let lines = RefCell::new(Lines::begin(args.output.output)?);
    session.stream(
        args.stream.duration,
        |seen| lines.borrow_mut().write(&seen.event()),
        |_| Ok(lines.borrow_mut().out.flush()?),
    )?;
    session.report_losses();
    Ok(())
}

/// The same, as an agent tells it.
fn show_of(agent: &Remote, args: &TraceArgs) -> anyhow::Result<()> {
    let mut events = agent.events(&["duration"], &[])?;
    let lines = RefCell::new(Lines::begin(args.output.output)?);
    let write = |event: &Connection| lines.borrow_mut().write(event);
    events.each(args.stream.duration, write, || Ok(lines.borrow_mut().out.flush()?))?;
    events.rest(write)?;
    lines.into_inner().out.flush()?;
    events.finish()
}

/// Where events go.
struct Lines {
    format: Format,
    zone: TimeZone,
    stream: Stream<'static>,
    out: Output,
}

impl Lines {
    fn begin(format: Format) -> anyhow::Result<Self> {
        let stream = Stream::new(COLUMNS, format.is_wide(), Screen::detect());
        let mut out = Output::stdout();
        if format.encoding().is_none() {
            out.write_all(stream.header().as_bytes())?;
            out.flush()?;
        }
        Ok(Self { format, zone: TimeZone::system(), stream, out })
    }

    fn write(&mut self, connection: &Connection) -> anyhow::Result<()> {
        match self.format.encoding() {
            Some(encoding) => encoding.item(&mut self.out, connection)?,
            None => self.out.write_all(self.stream.row(&row(connection, &self.zone)).as_bytes())?,
        }
        Ok(())
    }
}

fn row(c: &Connection, zone: &TimeZone) -> Vec<Cell> {
    let event = c.event.map_or("", Event::name);
    let carried = !matches!(c.event, Some(Event::Open | Event::Established | Event::Fail));
    let took = match c.event {
        Some(Event::Open) => None,
        Some(Event::Established) => c.connect_us,
        _ => c.duration_us,
    };
    let seconds = c.duration_us.filter(|us| carried && *us > 0).map(|us| us as f64 / 1e6);
    let rate = |bytes: u64| seconds.map(|seconds| units::rate(bytes as f64 / seconds));
    vec![
        units::clock(c.time, zone).into(),
        match c.event {
            Some(Event::Fail) => Cell::new(event).role(Role::Bad),
            Some(Event::Retransmit | Event::Reset | Event::Drop | Event::ZeroWindow) => {
                Cell::new(event).role(Role::Warn)
            }
            _ => event.into(),
        },
        owner(&c.container).into(),
        c.process.as_ref().map(process).into(),
        c.direction.map(arrow).into(),
        c.local.port.map_or_else(|| c.local.address.to_string(), |_| endpoint(&c.local)).into(),
        endpoint(&c.peer).into(),
        far_end(&c.peer).into(),
        took.map(units::duration).into(),
        carried.then(|| units::bytes(c.sent_bytes)).into(),
        carried.then(|| units::bytes(c.received_bytes)).into(),
        c.rtt.map(|rtt| units::duration(rtt.srtt_us.into())).into(),
        match (c.close, c.kind) {
            (Some(close), _) if close.reason == "normal" => close.reason.into(),
            (Some(close), _) => Cell::new(close.reason).role(Role::Warn),
            (None, _) if c.event == Some(Event::State) => c.state.into(),
            (None, kind) => kind.unwrap_or_default().into(),
        },
        rate(c.sent_bytes).into(),
        rate(c.received_bytes).into(),
        c.retransmits.total.to_string().into(),
        c.netns.to_string().into(),
        c.cookie.to_string().into(),
    ]
}
