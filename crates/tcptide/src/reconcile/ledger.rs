//! What tcptide's events add up to in each network namespace, between two readings of the kernel's counters.
//!
//! An event has a time and a reading takes a while, so an event close to a reading may be on either side of it: it is
//! counted where its time says, and remembered as a difference that the edge would explain.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use model::record::{self, direction, event, reason, retransmit};

/// How far a counter's step and the event that tells of it may be apart: they are microseconds of the same code path,
/// in which a process may be preempted.
pub(super) const EDGE_NS: u64 = 5_000_000;

/// What the reset hook calls a RST that was sent; the other one was received.
const RESET_SENT: u8 = 1;

const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// Connects that sent a SYN.
    ActiveOpen,
    /// Connections that came out of a listener.
    PassiveOpen,
    /// Connects that failed by themselves: not those that their application gave up.
    AttemptFail,
    /// Connections that went to CLOSE from ESTABLISHED or CLOSE_WAIT.
    EstabReset,
    /// RSTs sent for a socket.
    ResetSent,
    /// SYNs sent again.
    Syn,
    /// SYN-ACKs sent again, told when the connection was established.
    SynAck,
    /// Segments sent again after the retransmission timer.
    Rto,
    /// Tail loss probes that sent a segment again.
    Tlp,
    /// Segments sent again in recovery.
    Fast,
    /// Segments that the connection counted as sent again and no event told of.
    Other,
}

const QUANTITIES: usize = Quantity::Other as usize + 1;

/// How much of one quantity there was, and which differences its edges would explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) counted: i64,
    /// At least this (0 or less) and at most that (0 or more) may the kernel have counted beyond.
    pub(super) least: i64,
    pub(super) most: i64,
}

/// All quantities of one namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tallies([Tally; QUANTITIES]);

impl Tallies {
    /// Some of them, added up.
    pub(super) fn of(&self, quantities: &[Quantity]) -> Tally {
        quantities.iter().map(|quantity| self.0[*quantity as usize]).fold(Tally::default(), |sum, one| {
            Tally {
                counted: sum.counted + one.counted,
                least: sum.least + one.least,
                most: sum.most + one.most,
            }
        })
    }
}

/// When something was read: `CLOCK_MONOTONIC`, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Span {
    fn is_near(self, time: u64) -> bool {
        time + EDGE_NS >= self.begin && time <= self.end + EDGE_NS
    }
}

/// The readings between which a namespace is counted; the second is to come at first.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Span,
    to: Option<Span>,
}

impl Window {
    fn contains(self, time: u64) -> bool {
        time >= self.from.end && self.to.is_none_or(|to| time < to.begin)
    }

    fn has_edge_near(self, time: u64) -> bool {
        self.from.is_near(time) || self.to.is_some_and(|to| to.is_near(time))
    }
}

/// What is needed of an event, or of a row of a walk.
#[derive(Clone, Copy, Debug)]
struct Told {
    time: u64,
    netns: u64,
    cookie: u64,
    what: What,
    /// Segments sent again so far.
    retransmits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A row of a walk, or an event that changes nothing here.
    Seen,
    Active,
    Passive,
    Established,
    Failed {
        reason: u8,
        sent: bool,
    },
    Closed {
        before: u8,
    },
    /// With its kind.
    Retransmit(u8),
    ResetSent,
    ResetReceived,
}

impl Told {
    fn new(record: &record::Connection, is_event: bool) -> Self {
        Self {
            time: record.time_ns,
            netns: record.netns.into(),
            cookie: record.cookie,
            what: if is_event { what(record) } else { What::Seen },
            retransmits: record.since.retransmits,
        }
    }
}

fn what(record: &record::Connection) -> What {
    match (usize::from(record.event), usize::from(record.direction)) {
        (event::EVENT_OPEN, direction::DIRECTION_ACTIVE) => What::Active,
        (event::EVENT_OPEN, direction::DIRECTION_PASSIVE) => What::Passive,
        (event::EVENT_ESTABLISHED, _) => What::Established,
        (event::EVENT_CLOSE, _) => What::Closed { before: record.state_before },
        (event::EVENT_FAIL, _) => What::Failed {
            reason: record.reason,
            sent: record.since.segments_out > 0 || record.before.segments_out > 0,
        },
        (event::EVENT_RETRANSMIT, _) => What::Retransmit(record.detail),
        (event::EVENT_RESET, _) if record.detail == RESET_SENT => What::ResetSent,
        (event::EVENT_RESET, _) => What::ResetReceived,
        _ => What::Seen,
    }
}

/// What was told of a connection that has not ended.
#[derive(Clone, Copy, Debug)]
struct Known {
    retransmits: u32,
}

/// Events and rows come in, quantities by namespace go out.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    windows: BTreeMap<u64, Window>,
    tallies: BTreeMap<u64, Tallies>,
    known: HashMap<u64, Known>,
    /// Not counted yet: what comes next may be older.
    pending: Vec<Told>,
}

impl Ledger {
    /// An event.
    pub(super) fn event(&mut self, record: &record::Connection) {
        self.pending.push(Told::new(record, true));
    }

    /// A connection as a walk found it.
    pub(super) fn row(&mut self, record: &record::Connection) {
        self.pending.push(Told::new(record, false));
    }

    /// The first reading of a namespace. To be told before the first [`Self::settle`].
    pub(super) fn begin(&mut self, netns: u64, from: Span) {
        self.windows.insert(netns, Window { from, to: None });
    }

    /// The second reading of a namespace.
    pub(super) fn end(&mut self, netns: u64, to: Span) {
        if let Some(window) = self.windows.get_mut(&netns) {
            window.to = Some(to);
        }
    }

    /// Counts what is older than this. As long as there will be a second reading, keep [`EDGE_NS`] from now.
    pub(super) fn settle(&mut self, until: u64) {
        let (mut ripe, young): (Vec<_>, Vec<_>) =
            mem::take(&mut self.pending).into_iter().partition(|told| told.time < until);
        self.pending = young;
        ripe.sort_by_key(|told| told.time);
        for told in &ripe {
            self.count(told);
        }
    }

    /// What there was in a namespace; where its counters were not read, since the monitor began.
    pub(super) fn tallies(&self, netns: u64) -> Tallies {
        self.tallies.get(&netns).copied().unwrap_or_default()
    }

    /// The namespaces that events came from.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = u64> {
        self.tallies.keys().copied()
    }

    /// Some quantity of all namespaces together.
    pub(super) fn everywhere(&self, quantity: Quantity) -> i64 {
        self.tallies.values().map(|tallies| tallies.of(&[quantity]).counted).sum()
    }

    fn count(&mut self, told: &Told) {
        if let Some((quantity, segments)) = self.sent_again(told) {
            self.add(told, quantity, segments.into());
        }
        match told.what {
            What::Active => self.add(told, Quantity::ActiveOpen, 1),
            What::Passive => self.add(told, Quantity::PassiveOpen, 1),
            What::Failed { reason, sent } => {
                if !sent {
                    self.add(told, Quantity::ActiveOpen, -1);
                }
                if fails_an_attempt(reason) {
                    self.add(told, Quantity::AttemptFail, 1);
                }
            }
            What::Closed { before } => {
                // As tcp_set_state() does it.
                if [ESTABLISHED, CLOSE_WAIT].contains(&before) {
                    self.add(told, Quantity::EstabReset, 1);
                }
            }
            What::ResetSent => self.add(told, Quantity::ResetSent, 1),
            What::Seen | What::Established | What::Retransmit(_) | What::ResetReceived => {}
        }
        self.remember(told);
    }

    /// The running count of a connection tells of all segments: an event may stand for several, and one that could
    /// not be sent has none.
    fn sent_again(&mut self, told: &Told) -> Option<(Quantity, u32)> {
        let segments = match (told.what, self.known.get(&told.cookie)) {
            (What::Passive, _) => told.retransmits,
            (What::Active, _) | (_, None) => 0,
            (_, Some(known)) => told.retransmits.wrapping_sub(known.retransmits),
        };
        // A walk reads without a lock: it may be behind an event.
        let grown = segments > 0 && segments < 1 << 31;
        grown.then(|| (kind(told.what), segments))
    }

    fn remember(&mut self, told: &Told) {
        if matches!(told.what, What::Failed { .. } | What::Closed { .. }) {
            self.known.remove(&told.cookie);
            return;
        }
        let fresh = Known { retransmits: told.retransmits };
        let known = self.known.entry(told.cookie).or_insert(fresh);
        if matches!(told.what, What::Active | What::Passive) {
            *known = fresh;
        } else if told.retransmits.wrapping_sub(known.retransmits) < 1 << 31 {
            known.retransmits = told.retransmits;
        }
    }

    fn add(&mut self, told: &Told, quantity: Quantity, n: i64) {
        let window = self.windows.get(&told.netns);
        let inside = window.is_none_or(|window| window.contains(told.time));
        // A row tells of something that happened at any time since the last one.
        let near = told.what != What::Seen && window.is_some_and(|window| window.has_edge_near(told.time));
        let tally = &mut self.tallies.entry(told.netns).or_default().0[quantity as usize];
        // The last walk comes after the second reading.
        if inside || (told.what == What::Seen && window.is_some_and(|window| told.time >= window.from.end)) {
            tally.counted += n;
            if near {
                tally.least -= n.max(0);
                tally.most += (-n).max(0);
            }
        } else if near {
            tally.least -= (-n).max(0);
            tally.most += n.max(0);
        }
    }
}

fn kind(what: What) -> Quantity {
    match what {
        What::Passive => Quantity::SynAck,
        // All that is sent again before the handshake is complete is a SYN.
        What::Active | What::Established | What::Failed { .. } => Quantity::Syn,
        What::Retransmit(kind) => match usize::from(kind) {
            retransmit::RETRANSMIT_SYN | retransmit::RETRANSMIT_SYNACK => Quantity::Syn,
            retransmit::RETRANSMIT_RTO => Quantity::Rto,
            retransmit::RETRANSMIT_TLP => Quantity::Tlp,
            retransmit::RETRANSMIT_FAST => Quantity::Fast,
            _ => Quantity::Other,
        },
        What::Seen | What::Closed { .. } | What::ResetSent | What::ResetReceived => Quantity::Other,
    }
}

/// The kernel counts a failed attempt where it ends a socket by itself, and not where the application closes it.
fn fails_an_attempt(reason: u8) -> bool {
    !matches!(usize::from(reason), reason::REASON_CANCELED | reason::REASON_ADDRESS_UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const NETNS: u64 = 7;

    fn told(ms: u64, cookie: u64, what: What, retransmits: u32) -> Told {
        Told { time: ms * MS, netns: NETNS, cookie, what, retransmits }
    }

    /// Read at 100 ms and at 900 ms.
    fn ledger(all: impl IntoIterator<Item = Told>) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.begin(NETNS, Span { begin: 100 * MS, end: 101 * MS });
        ledger.end(NETNS, Span { begin: 900 * MS, end: 901 * MS });
        ledger.pending.extend(all);
        ledger.settle(u64::MAX);
        ledger
    }

    fn tally(ledger: &Ledger, quantity: Quantity) -> (i64, i64, i64) {
        let Tally { counted, least, most } = ledger.tallies(NETNS).of(&[quantity]);
        (counted, least, most)
    }

    #[test]
    fn an_event_at_an_edge_explains_a_difference() {
        for (ms, expected) in [
            (50, (0, 0, 0)),
            (98, (0, 0, 1)),
            (104, (1, -1, 0)),
            (500, (1, 0, 0)),
            (897, (1, -1, 0)),
            (903, (0, 0, 1)),
            (950, (0, 0, 0)),
        ] {
            let ledger = ledger([told(ms, 1, What::Active, 0)]);
            assert_eq!(tally(&ledger, Quantity::ActiveOpen), expected, "at {ms} ms");
        }
    }

    #[test]
    fn a_connect_that_sent_nothing_is_no_open() {
        let reason = u8::try_from(reason::REASON_ADDRESS_UNAVAILABLE).unwrap();
        let ledger =
            ledger([told(300, 1, What::Active, 0), told(301, 1, What::Failed { reason, sent: false }, 0)]);
        assert_eq!(tally(&ledger, Quantity::ActiveOpen), (0, 0, 0));
        assert_eq!(tally(&ledger, Quantity::AttemptFail), (0, 0, 0));
    }

    #[test]
    fn segments_are_the_growth_of_the_running_count() {
        let rto = What::Retransmit(u8::try_from(retransmit::RETRANSMIT_RTO).unwrap());
        let closed = What::Closed { before: ESTABLISHED };
        let ledger = ledger([
            // There before: the walk knows what it had sent again.
            told(90, 1, What::Seen, 10),
            told(95, 1, rto, 12),
            told(200, 1, rto, 15),
            told(300, 1, closed, 16),
            // Its SYN-ACKs were sent before it was a connection.
            told(200, 2, What::Passive, 2),
            told(201, 2, What::Established, 2),
            // Seen by the last walk, told by no event.
            told(200, 3, What::Active, 0),
            told(950, 3, What::Seen, 4),
            // Nothing is known of what it had sent again before.
            told(200, 4, rto, 100),
        ]);
        assert_eq!(tally(&ledger, Quantity::Rto), (3, 0, 2));
        assert_eq!(tally(&ledger, Quantity::SynAck), (2, 0, 0));
        assert_eq!(tally(&ledger, Quantity::Other), (5, 0, 0));
    }

    #[test]
    fn the_state_before_tells_whether_an_established_connection_was_reset() {
        const FIN_WAIT2: u8 = 5;
        let states = [ESTABLISHED, CLOSE_WAIT, FIN_WAIT2];
        let ledger =
            ledger((1..).zip(states).map(|(cookie, before)| told(300, cookie, What::Closed { before }, 0)));
        assert_eq!(tally(&ledger, Quantity::EstabReset), (2, 0, 0));
    }

    #[test]
    fn what_is_young_waits() {
        let mut ledger = Ledger::default();
        ledger.begin(NETNS, Span { begin: 0, end: 0 });
        ledger.pending.push(told(500, 1, What::Active, 0));
        ledger.settle(500 * MS);
        assert_eq!(tally(&ledger, Quantity::ActiveOpen).0, 0);
        ledger.settle(501 * MS);
        assert_eq!(tally(&ledger, Quantity::ActiveOpen).0, 1);
    }

    proptest! {
        /// Wherever a reading really fell while it took place, the difference is explained.
        #[test]
        fn every_moment_within_a_reading_is_explained(
            times in prop::collection::vec(0..1000 * MS, 0..60),
            from in 100 * MS..101 * MS,
            to in 900 * MS..901 * MS,
        ) {
            let opens = times.iter().zip(0..).map(|(&time, cookie)| Told { time, ..told(0, cookie, What::Active, 0) });
            let (counted, least, most) = tally(&ledger(opens), Quantity::ActiveOpen);
            let kernel: i64 = times.iter().map(|time| i64::from((from..to).contains(time))).sum();
            prop_assert!((least..=most).contains(&(kernel - counted)), "{kernel} {counted} {least} {most}");
        }

        /// However the events of a connection are dealt out over calls, they add up to the same.
        #[test]
        fn settling_at_times_changes_nothing(counts in prop::collection::vec(0..5_u32, 1..40), step in 1..300_u64) {
            let mut running = 0;
            let rto = What::Retransmit(u8::try_from(retransmit::RETRANSMIT_RTO).unwrap());
            let all: Vec<_> = counts.iter().zip(200..).map(|(n, ms)| { running += n; told(ms, 1, rto, running) }).collect();
            let mut ledger = Ledger::default();
            ledger.begin(NETNS, Span { begin: 0, end: 0 });
            ledger.pending.push(told(150, 1, What::Active, 0));
            for told in &all {
                ledger.pending.push(*told);
                ledger.settle(told.time / step * step);
            }
            ledger.settle(u64::MAX);
            prop_assert_eq!(tally(&ledger, Quantity::Rto).0, i64::from(running));
        }
    }
}
