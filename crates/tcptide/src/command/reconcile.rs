//! `tcptide doctor --reconcile`: what tcptide counts beside what the kernel counts, namespace by namespace.
//!
//! The order is what makes it a comparison: the programs first, then a walk that knows what connections had sent again,
//! then the kernel's counters; at the end the counters, the walk, and the events that are still on their way. What each
//! line means stands in `docs/reconcile.md`.

mod ledger;
mod lines;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    connection::Event,
    container::Container,
    record::{self, CGROUP_UNATTRIBUTED, loss, retransmit},
    snmp::Counters,
};
use probe::{Kernel, Monitor, Options, in_network_namespaces, network_namespaces};
use serde::Serialize;

use self::{
    ledger::{EDGE_NS, Ledger, Quantity, Span},
    lines::{Comparison, Facts, Host, LINES, Reason},
};
use super::{conns::ROWS, print};
use crate::{
    args::{DoctorArgs, FilterArgs},
    output::{
        say,
        style::Role,
        table::{Cell, Column},
    },
    session::{Session, clock},
};

const COLUMNS: &[Column] = &[
    Column::left("NETNS").rank(3),
    Column::left("WHERE").shrinks_to(12).rank(2),
    Column::left("CONTAINERS").shrinks_to(10).rank(4),
    Column::left("COUNTER").shrinks_to(12),
    Column::right("KERNEL"),
    Column::right("TCPTIDE"),
    Column::right("DIFFERENCE"),
    Column::left("WHY").shrinks_to(20),
    Column::left("PATH").wide_only(),
];

const EVENTS: [Event; 6] =
    [Event::Open, Event::Established, Event::Close, Event::Fail, Event::Retransmit, Event::Reset];

/// The tracepoint tells of RSTs without a full socket where it also tells their reason: since 6.10.
const ARGUMENTS_WITH_REASON: usize = 3;

/// What became of a namespace in the interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    /// Its counters were read before and after.
    Compared,
    /// It was not there at the beginning.
    Appeared,
    /// It was not there at the end.
    Gone,
    /// It was not there at the end, when another one had its number.
    Replaced,
    /// It was there at neither time: only events tell of it.
    Unlisted,
    /// It was there and could not be entered.
    Unreadable,
}

impl Fate {
    fn sentence(self) -> &'static str {
        match self {
            Self::Compared => "",
            Self::Appeared => "appeared meanwhile: what its counters were is not known",
            Self::Gone => "gone: its counters went with it",
            Self::Replaced => "gone, and another one has its number",
            Self::Unlisted => "came and went, or neither a process nor a mount leads to it",
            Self::Unreadable => "its counters could not be read",
        }
    }
}

/// One network namespace.
#[derive(Debug, Serialize)]
struct Namespace {
    /// Its inode number.
    netns: u64,
    /// A way to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    /// The containers whose connections were seen in it.
    containers: BTreeSet<String>,
    fate: Fate,
    /// Between which times it was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Timestamp>,
    counters: Vec<Comparison>,
}

/// A namespace's counters at a moment.
struct Reading {
    /// What it never shares with another.
    cookie: Option<u64>,
    span: Span,
    counters: Counters,
}

/// All namespaces at a moment: a way to each, and its counters where they could be read.
struct Readings {
    paths: BTreeMap<u64, PathBuf>,
    of: BTreeMap<u64, Reading>,
}

/// Containers seen, by namespace.
type Seen = BTreeMap<u64, BTreeSet<String>>;

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let options = Options {
        events: EVENTS.iter().fold(0, |set, event| set | event.bit()),
        totals: true,
        rows: ROWS,
        buffer: args.buffer << 20,
        ..Options::default()
    };
    let mut session = Session::start(&FilterArgs::default(), &args.output, options)?;
    let (mut ledger, mut seen) = (Ledger::default(), Seen::new());
    look(&mut session, &mut ledger, &mut seen)?;
    let ownerless = Ownerless::so_far(&session.monitor)?;
    let before = Readings::take()?;
    for (netns, reading) in &before.of {
        ledger.begin(*netns, reading.span);
    }
    session.announce();
    let counting = std::cell::RefCell::new((&mut ledger, &mut seen));
    session.stream(
        Some(args.duration),
        |event, container, _| {
            let (ledger, seen) = &mut *counting.borrow_mut();
            ledger.event(event);
            note(seen, event, container);
            Ok(())
        },
        |_| {
            counting.borrow_mut().0.settle(now().saturating_sub(EDGE_NS));
            Ok(())
        },
    )?;
    let after = Readings::take()?;
    for (netns, reading) in &after.of {
        ledger.end(*netns, reading.span);
    }
    look(&mut session, &mut ledger, &mut seen)?;
    session.fetch(|event, container, _| {
        ledger.event(event);
        note(&mut seen, event, container);
        Ok(())
    })?;
    ledger.settle(u64::MAX);
    let host = host(&session.monitor, &ledger, &ownerless)?;
    let all = reconcile(&session.monitor, &ledger, &host, (&before, &after), seen);
    show(args, &all)?;
    session.report_losses();
    Ok(())
}

/// What every connection has sent again so far, and whose they are.
fn look(session: &mut Session, ledger: &mut Ledger, seen: &mut Seen) -> anyhow::Result<()> {
    session.walk(|row, container, _| {
        ledger.row(row);
        note(seen, row, container);
    })?;
    Ok(())
}

fn note(seen: &mut Seen, record: &record::Connection, container: &Arc<Container>) {
    let names = seen.entry(record.netns.into()).or_default();
    if !names.contains(&container.name) {
        names.insert(container.name.clone());
    }
}

fn now() -> u64 {
    clock().monotonic_ns
}

impl Readings {
    fn take() -> anyhow::Result<Self> {
        let paths = network_namespaces();
        let mut of = BTreeMap::new();
        for (netns, reading) in in_network_namespaces(&paths, Reading::take)? {
            match reading {
                Ok(reading) => drop(of.insert(netns, reading)),
                Err(error) => say!("cannot read the counters of network namespace {netns}: {error}"),
            }
        }
        Ok(Self { paths, of })
    }
}

impl Reading {
    fn take(cookie: Option<u64>) -> io::Result<Self> {
        let begin = now();
        let [snmp, netstat] =
            ["snmp", "netstat"].map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        let end = now();
        let counters = Counters::parse(&snmp?).and(Counters::parse(&netstat?));
        Ok(Self { cookie, span: Span { begin, end }, counters })
    }
}

/// What tcptide counts by owner only, of all owners, since the monitor began.
struct Ownerless {
    synacks: u64,
    resets: u64,
}

impl Ownerless {
    fn so_far(monitor: &Monitor) -> anyhow::Result<Self> {
        let mut all = Self { synacks: 0, resets: 0 };
        for (cgroup, totals) in monitor.totals()? {
            all.synacks += totals.retransmitted_segments[retransmit::RETRANSMIT_SYNACK];
            if cgroup == CGROUP_UNATTRIBUTED {
                all.resets += totals.resets[0];
            }
        }
        Ok(all)
    }
}

fn host(monitor: &Monitor, ledger: &Ledger, before: &Ownerless) -> anyhow::Result<Host> {
    let now = Ownerless::so_far(monitor)?;
    let synacks = now.synacks.saturating_sub(before.synacks).cast_signed();
    let resets = now.resets.saturating_sub(before.resets).cast_signed();
    let tells = Kernel::look()?.tracepoint_arguments("tcp_send_reset") >= Some(ARGUMENTS_WITH_REASON);
    let losses = monitor.losses();
    Ok(Host {
        synacks: (synacks - ledger.everywhere(Quantity::SynAck)).max(0),
        ownerless_resets: tells.then_some(resets),
        lost: (losses[loss::LOSS_CONNECTION_EVENT] + losses[loss::LOSS_STORAGE]).cast_signed(),
        missed: LINES.iter().map(|line| (line.program(), missed(monitor, line.program()))).collect(),
    })
}

/// How many runs no program on this one's hook made, at most.
fn missed(monitor: &Monitor, program: &str) -> i64 {
    let all = monitor.programs();
    let hook = all.iter().find(|p| p.program.name == program).map(|p| p.program.hook);
    let runs = all.iter().filter(|p| Some(p.program.hook) == hook).filter_map(|p| p.run);
    runs.map(|run| run.missed).min().unwrap_or(0).cast_signed()
}

/// Every namespace that was there at either reading, or that events came from.
fn reconcile(
    monitor: &Monitor,
    ledger: &Ledger,
    host: &Host,
    (before, after): (&Readings, &Readings),
    mut seen: Seen,
) -> Vec<Namespace> {
    let clock = clock();
    let ids: BTreeSet<u64> =
        before.paths.keys().chain(after.paths.keys()).copied().chain(ledger.namespaces()).collect();
    let one = |netns: u64| {
        let (was, is) = (before.of.get(&netns), after.of.get(&netns));
        let path = after.paths.get(&netns).or(before.paths.get(&netns)).cloned();
        let grown = was.zip(is).map(|(was, is)| is.counters.since(&was.counters));
        let tallies = ledger.tallies(netns);
        let mut namespace = Namespace {
            netns,
            path,
            containers: seen.remove(&netns).unwrap_or_default(),
            fate: fate(netns, before, after),
            from: was.map(|reading| clock.time(reading.span.end)),
            to: is.map(|reading| clock.time(reading.span.begin)),
            counters: Vec::new(),
        };
        if let Some(kernel) = grown.filter(|_| namespace.fate == Fate::Compared) {
            let facts = Facts { kernel: &kernel, tallies: &tallies, host };
            let measured = LINES.iter().filter(|line| monitor.is_attached(line.program()));
            namespace.counters = measured.filter_map(|line| line.compare(&facts)).collect();
        }
        namespace
    };
    ids.into_iter().map(one).collect()
}

fn fate(netns: u64, before: &Readings, after: &Readings) -> Fate {
    if let (Some(was), Some(is)) = (before.of.get(&netns), after.of.get(&netns)) {
        return if was.cookie == is.cookie { Fate::Compared } else { Fate::Replaced };
    }
    match (before.paths.contains_key(&netns), after.paths.contains_key(&netns)) {
        (false, true) => Fate::Appeared,
        (true, false) => Fate::Gone,
        (false, false) => Fate::Unlisted,
        (true, true) => Fate::Unreadable,
    }
}

fn show(args: &DoctorArgs, all: &[Namespace]) -> anyhow::Result<()> {
    let format = args.output.output;
    if format.encoding().is_some() {
        return print(format, all, COLUMNS, |_| Vec::new());
    }
    let rows: Vec<_> = all.iter().flat_map(|namespace| rows(namespace, format.is_wide())).collect();
    print::<Row<'_>>(format, &rows, COLUMNS, cells)?;
    say!("{}", summary(all));
    Ok(())
}

fn summary(all: &[Namespace]) -> String {
    let lines = || all.iter().flat_map(|namespace| &namespace.counters);
    let count = |wanted: &dyn Fn(&Comparison) -> bool| lines().filter(|line| wanted(line)).count();
    let quiet = all.iter().filter(|namespace| rows(namespace, false).is_empty()).count();
    format!(
        "{} counters agree, {} differ for a reason, {} without; in {quiet} network namespaces nothing was counted",
        count(&|line| line.difference == 0 && !is_quiet(line)),
        count(&|line| line.difference != 0 && line.explained),
        count(&|line| !line.explained),
    )
}

/// A row of the table: a counter, or the fate of a namespace without any.
#[derive(Serialize)]
struct Row<'a> {
    namespace: &'a Namespace,
    line: Option<&'a Comparison>,
}

/// What has not moved is left out, but for a wide table.
fn rows(namespace: &Namespace, all: bool) -> Vec<Row<'_>> {
    if namespace.fate != Fate::Compared {
        return vec![Row { namespace, line: None }];
    }
    let lines = namespace.counters.iter().filter(|line| all || !is_quiet(line));
    lines.map(|line| Row { namespace, line: Some(line) }).collect()
}

fn is_quiet(line: &Comparison) -> bool {
    line.kernel == 0 && line.tcptide == 0
}

fn cells(row: &Row<'_>) -> Vec<Cell> {
    let Row { namespace, line } = row;
    let containers: Vec<_> = namespace.containers.iter().map(String::as_str).collect();
    let number = |n: fn(&Comparison) -> i64| Cell::from(line.map(|line| n(line).to_string()));
    let (role, why) = match line {
        None => (Role::Warn, namespace.fate.sentence().to_owned()),
        Some(line) if line.difference == 0 => (Role::Good, String::new()),
        Some(line) if line.explained => (Role::Warn, reasons(&line.because)),
        Some(line) if line.because.is_empty() => (Role::Bad, "no reason is known".to_owned()),
        Some(line) => (Role::Bad, format!("not enough: {}", reasons(&line.because))),
    };
    vec![
        namespace.netns.to_string().into(),
        namespace.path.as_deref().map(place).into(),
        containers.join(",").into(),
        line.map(|line| line.counter.clone()).into(),
        number(|line| line.kernel),
        number(|line| line.tcptide),
        number(|line| line.difference).role(role),
        Cell::from(why).role(role),
        namespace.path.as_deref().map(|path| path.display().to_string()).into(),
    ]
}

fn reasons(all: &[Reason]) -> String {
    let one = |Reason { reason, up_to }: &Reason| match up_to {
        Some(up_to) => format!("{reason} (up to {up_to})"),
        None => (*reason).to_owned(),
    };
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The name that somebody gave a namespace, or a process that lives in it.
fn place(path: &Path) -> String {
    let process = path.strip_prefix("/proc").ok().and_then(|rest| rest.to_str()?.strip_suffix("/ns/net"));
    match process {
        Some(pid) => {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} {}", comm.trim_end()).trim_end().to_owned()
        }
        None => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
    }
}
