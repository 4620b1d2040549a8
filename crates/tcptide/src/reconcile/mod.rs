//! What tcptide counts beside what the kernel counts, namespace by namespace, interval by interval.
//!
//! The order is what makes it a comparison. At each end of an interval: a walk, which knows what every socket has counted
//! so far; the kernel's counters of every namespace; and a walk again, for what happened meanwhile. When the events of the
//! interval have come in, both are compared. What each line means stands in `docs/reconcile.md`.

mod ledger;
mod lines;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use model::{
    connection::Event,
    record::{self, CGROUP_UNATTRIBUTED, loss, retransmit},
};
use probe::{Kernel, Monitor, Options, ProgramStats};
use serde::Serialize;

pub(crate) use self::lines::{Comparison, Reason};
use self::{
    ledger::{EDGE_NS, Ledger, Quantity, Tallies, Tally},
    lines::{Facts, Host, LINES},
};
use crate::{
    namespaces::{Reading, Readings},
    session::{ROWS, clock},
};

/// How long after a reading the events of the interval before it may come in.
pub(crate) const PATIENCE: Duration = Duration::from_nanos(2 * EDGE_NS);

const EVENTS: [Event; 7] = [
    Event::Open,
    Event::Established,
    Event::Close,
    Event::Fail,
    Event::Retransmit,
    Event::Reset,
    Event::Drop,
];

/// The tracepoint tells of RSTs without a full socket where it also tells their reason: since 6.10.
const RESET_ARGUMENTS_WITH_REASON: usize = 3;
/// The tracepoint tells the receiving socket: since 6.11.
const DROP_ARGUMENTS_WITH_SOCKET: usize = 4;

/// What became of a namespace in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
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
    /// There are more than were to be read.
    LeftOut,
}

/// One network namespace.
#[derive(Debug, Serialize)]
pub(crate) struct Namespace {
    /// Its inode number.
    pub(crate) netns: u64,
    /// A way to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
    /// The containers whose connections were seen in it.
    pub(crate) containers: BTreeSet<String>,
    pub(crate) fate: Fate,
    /// Between which times it was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<Timestamp>,
    pub(crate) counters: Vec<Comparison>,
}

/// What a monitor has to do for a comparison.
pub(crate) fn options(options: Options) -> Options {
    Options {
        events: EVENTS.iter().fold(0, |set, event| set | event.bit()),
        totals: true,
        listener_ends: true,
        rows: ROWS,
        ..options
    }
}

/// Compares, as long as it is given the events and rows of a monitor with these [`options`].
pub(crate) struct Reconciler {
    ledger: Ledger,
    tells_stray_resets: bool,
    tells_drops: bool,
    /// The two ends of the interval that ended last, or the beginning of the first one.
    before: Option<End>,
    after: Option<End>,
}

/// An end of an interval.
struct End {
    /// When its first walk began: `CLOCK_MONOTONIC`, ns.
    at: u64,
    host: HostCounts,
    /// RSTs sent for no socket, by namespace: right before and right after the reading.
    resets: [HashMap<u64, u64>; 2],
    readings: Readings,
}

impl Reconciler {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let kernel = Kernel::look()?;
        let tells = |tracepoint, arguments| kernel.tracepoint_arguments(tracepoint) >= Some(arguments);
        Ok(Self {
            ledger: Ledger::default(),
            tells_stray_resets: tells("tcp_send_reset", RESET_ARGUMENTS_WITH_REASON),
            tells_drops: tells("kfree_skb", DROP_ARGUMENTS_WITH_SOCKET),
            before: None,
            after: None,
        })
    }

    /// An event.
    pub(crate) fn event(&mut self, record: &record::Connection) {
        self.ledger.event(record);
    }

    /// To be called now and then, so that events do not pile up.
    pub(crate) fn settle(&mut self) {
        self.ledger.settle(clock().monotonic_ns.saturating_sub(EDGE_NS));
    }

    /// Ends an interval and begins the next one: `read` is to read the kernel's counters; `note` is handed the rows of the
    /// walks.
    pub(crate) fn turn(
        &mut self,
        monitor: &mut Monitor,
        read: impl FnOnce() -> anyhow::Result<Readings>,
        mut note: impl FnMut(&record::Connection),
    ) -> anyhow::Result<()> {
        let at = clock().monotonic_ns;
        let ledger = &mut self.ledger;
        let mut row = |row: &record::Connection| {
            ledger.row(row);
            note(row);
        };
        monitor.walk(Some(&mut row))?;
        let host = HostCounts::take(monitor)?;
        let resets = stray_resets(monitor)?;
        let readings = read()?;
        let resets = [resets, stray_resets(monitor)?];
        monitor.walk(Some(&mut row))?;
        self.ledger.turn(readings.of.iter().map(|(netns, reading)| (*netns, reading.span)));
        self.before = self.after.replace(End { at, host, resets, readings });
        Ok(())
    }

    /// The comparison of the interval that ended last. To be called when its events are there: [`PATIENCE`] later.
    pub(crate) fn compare(&mut self, monitor: &Monitor) -> anyhow::Result<Vec<Namespace>> {
        self.settle();
        let (Some(before), Some(after)) = (&self.before, &self.after) else { return Ok(Vec::new()) };
        let host = self.host(&before.host, &HostCounts::take(monitor)?);
        let clock = clock();
        let both = (&before.readings, &after.readings);
        let ids: BTreeSet<u64> =
            both.0.paths.keys().chain(both.1.paths.keys()).copied().chain(self.ledger.namespaces()).collect();
        let one = |netns: u64| {
            let (was, is) = (both.0.of.get(&netns), both.1.of.get(&netns));
            let mut namespace = Namespace {
                netns,
                path: both.1.paths.get(&netns).or(both.0.paths.get(&netns)).cloned(),
                containers: BTreeSet::new(),
                fate: fate(netns, both),
                from: was.map(|reading| clock.time(reading.span.end)),
                to: is.map(|reading| clock.time(reading.span.begin)),
                counters: Vec::new(),
            };
            if let Some((was, is)) = was.zip(is).filter(|_| namespace.fate == Fate::Compared) {
                let id = is.id(netns);
                let resets = [before, after]
                    .map(|end| end.resets.each_ref().map(|resets| resets.get(&id).copied().unwrap_or(0)));
                let mut tallies = self.ledger.tallies(netns);
                tallies.add(Quantity::ResetSent, Tally::between(resets));
                namespace.counters = lines(monitor, &tallies, (was, is), &host);
            }
            namespace
        };
        let all = ids.into_iter().map(one).collect();
        self.ledger.forget_those_before(before.at);
        Ok(all)
    }

    fn host(&self, before: &HostCounts, now: &HostCounts) -> Host {
        let grown = |of: fn(&HostCounts) -> u64| of(now).saturating_sub(of(before)).cast_signed();
        let missed = now.missed.iter().map(|(program, n)| {
            let earlier = before.missed.get(program).copied().unwrap_or(0);
            (*program, n.saturating_sub(earlier).cast_signed())
        });
        Host {
            synacks: (grown(|host| host.synacks) - self.ledger.everywhere(Quantity::SynAck)).max(0),
            stray_resets: self.tells_stray_resets.then(|| grown(|host| host.stray_resets)),
            drop_events: self.tells_drops,
            dropped: grown(|host| host.dropped),
            lost: grown(|host| host.lost),
            missed: missed.collect(),
        }
    }
}

/// What tcptide counts for the whole host only, since the monitor began.
struct HostCounts {
    synacks: u64,
    /// RSTs sent for no socket, in a namespace that is not known.
    stray_resets: u64,
    dropped: u64,
    lost: u64,
    /// Events that no program saw, at most, by program.
    missed: BTreeMap<&'static str, u64>,
}

impl HostCounts {
    fn take(monitor: &Monitor) -> anyhow::Result<Self> {
        let losses = monitor.losses();
        let programs = monitor.programs();
        let mut all = Self {
            synacks: 0,
            stray_resets: 0,
            dropped: 0,
            lost: losses[loss::LOSS_CONNECTION_EVENT] + losses[loss::LOSS_STORAGE],
            missed: LINES.iter().map(|line| (line.program(), missed(&programs, line.program()))).collect(),
        };
        monitor.each_total(&mut |cgroup, totals| {
            all.synacks += totals.retransmitted_segments[retransmit::RETRANSMIT_SYNACK];
            all.dropped += totals.dropped_packets.iter().sum::<u64>();
            if cgroup == CGROUP_UNATTRIBUTED {
                all.stray_resets += totals.resets[0];
            }
        })?;
        for (_, strays) in monitor.strays()? {
            all.dropped += strays.dropped_packets.iter().sum::<u64>();
        }
        Ok(all)
    }
}

/// RSTs sent for no socket so far, by namespace, as [`Reading::id`].
fn stray_resets(monitor: &Monitor) -> anyhow::Result<HashMap<u64, u64>> {
    let all = monitor.strays()?.into_iter();
    Ok(all.map(|(namespace, strays)| (namespace, strays.resets_sent.iter().sum())).collect())
}

fn lines(
    monitor: &Monitor,
    tallies: &Tallies,
    (was, is): (&Reading, &Reading),
    host: &Host,
) -> Vec<Comparison> {
    let kernel = is.counters.since(&was.counters);
    let facts = Facts { kernel: &kernel, tallies, host };
    let measured = LINES.iter().filter(|line| monitor.is_attached(line.program()));
    measured.filter_map(|line| line.compare(&facts)).collect()
}

/// How many runs no program on this one's hook made, at most.
fn missed(all: &[ProgramStats], program: &str) -> u64 {
    let hook = all.iter().find(|p| p.program.name == program).map(|p| p.program.hook);
    let runs = all.iter().filter(|p| Some(p.program.hook) == hook).filter_map(|p| p.run);
    runs.map(|run| run.missed).min().unwrap_or(0)
}

fn fate(netns: u64, (before, after): (&Readings, &Readings)) -> Fate {
    if let (Some(was), Some(is)) = (before.of.get(&netns), after.of.get(&netns)) {
        return if was.cookie == is.cookie { Fate::Compared } else { Fate::Replaced };
    }
    match (before.paths.contains_key(&netns), after.paths.contains_key(&netns)) {
        _ if before.left_out.contains(&netns) || after.left_out.contains(&netns) => Fate::LeftOut,
        (false, true) => Fate::Appeared,
        (true, false) => Fate::Gone,
        (false, false) => Fate::Unlisted,
        (true, true) => Fate::Unreadable,
    }
}
