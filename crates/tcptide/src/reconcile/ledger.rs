//! What tcptide's events add up to in each network namespace, between two readings of the kernel's counters.
//!
//! An event has a time and a reading takes a while, so an event close to a reading may be on either side of it: it is
//! counted where its time says, and remembered as a difference that the edge would explain. What a walk finds happened at
//! some time since it was last looked at: it is counted if all of that lies between the readings, and else such a
//! difference, too. Hence the walks right before and right after each reading.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use model::{
    drop,
    record::{self, FLAG_LISTENER, direction, event, reason, retransmit},
};

use crate::namespaces::Span;

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
    /// RSTs sent, for a socket or for none.
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
    /// Connections and connects that timed out.
    TimedOut,
    /// Those that ended with an error that ICMP brought.
    Unreachable,
    /// What listeners turned away: sock.sk_drops.
    ListenDrop,
    /// That part of it which there was a dropped packet for.
    ListenDiscard,
    /// Packets to a socket dropped for want of memory.
    NoMemory,
    /// Packets to a socket whose receive window was closed.
    ZeroWindow,
    /// Packets received out of order that brought nothing new.
    OutOfOrderMerge,
    /// Packets to a socket whose MD5 signature was missing, wrong, or not expected.
    Md5,
}

const QUANTITIES: usize = Quantity::Md5 as usize + 1;

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
    /// Adds to one of them.
    pub(super) fn add(&mut self, quantity: Quantity, more: Tally) {
        let tally = &mut self.0[quantity as usize];
        *tally = tally.plus(more);
    }

    /// Some of them, added up.
    pub(super) fn of(&self, quantities: &[Quantity]) -> Tally {
        quantities.iter().map(|quantity| self.0[*quantity as usize]).fold(Tally::default(), Tally::plus)
    }
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            counted: self.counted + other.counted,
            least: self.least + other.least,
            most: self.most + other.most,
        }
    }

    /// What a counter has grown by that was read right before and right after each reading of the kernel's.
    pub(super) fn between([before, after]: [[u64; 2]; 2]) -> Self {
        let grown = |from: u64, to: u64| to.saturating_sub(from).cast_signed();
        Self {
            counted: grown(before[0], after[0]),
            least: -grown(before[0], before[1]),
            most: grown(after[0], after[1]),
        }
    }
}

fn is_near(span: Span, time: u64) -> bool {
    time + EDGE_NS >= span.begin && time <= span.end + EDGE_NS
}

/// The readings between which a namespace is counted; the second is to come at first.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Span,
    to: Option<Span>,
}

impl Window {
    /// The time of a reading belongs to what it ends, so that of two intervals one contains it.
    fn contains(self, time: u64) -> bool {
        time >= self.from.end && self.to.is_none_or(|to| time < to.end)
    }

    fn has_edge_near(self, time: u64) -> bool {
        is_near(self.from, time) || self.to.is_some_and(|to| is_near(to, time))
    }
}

/// What was counted in one namespace between two readings.
#[derive(Clone, Debug, Default)]
struct Book {
    /// Where nothing was read: all of the time.
    window: Option<Window>,
    tallies: Tallies,
}

impl Book {
    /// So many at this moment.
    fn add(&mut self, time: u64, quantity: Quantity, n: i64) {
        let inside = self.window.is_none_or(|window| window.contains(time));
        let near = self.window.is_some_and(|window| window.has_edge_near(time));
        let tally = &mut self.tallies.0[quantity as usize];
        if inside {
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

    /// So many at some time between these two.
    fn add_between(&mut self, (since, until): (u64, u64), quantity: Quantity, n: i64) {
        let tally = &mut self.tallies.0[quantity as usize];
        let Some(Window { from, to }) = self.window else {
            tally.counted += n;
            return;
        };
        if until <= from.begin || to.is_some_and(|to| since >= to.end) {
            return;
        }
        let ends_within = to.is_none_or(|to| until <= to.begin);
        match (since >= from.end, ends_within) {
            (true, true) => tally.counted += n,
            // It is counted once: in the interval that ends.
            (_, false) => {
                tally.counted += n;
                tally.least -= n;
            }
            (false, true) => tally.most += n,
        }
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
    listener: Option<Listener>,
}

#[derive(Clone, Copy, Debug)]
struct Listener {
    /// Since when it is known that it turned nobody away: when it began; 0 if nobody saw that.
    opened_ns: u64,
    /// What it has turned away so far.
    drops: u32,
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
        reason: u8,
    },
    /// With its kind.
    Retransmit(u8),
    /// With its slot.
    Dropped(u8),
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
            listener: (record.flags & FLAG_LISTENER != 0)
                .then_some(Listener { opened_ns: record.opened_ns, drops: record.drops }),
        }
    }
}

fn what(record: &record::Connection) -> What {
    match (usize::from(record.event), usize::from(record.direction)) {
        (event::EVENT_OPEN, direction::DIRECTION_ACTIVE) => What::Active,
        (event::EVENT_OPEN, direction::DIRECTION_PASSIVE) => What::Passive,
        (event::EVENT_ESTABLISHED, _) => What::Established,
        (event::EVENT_CLOSE, _) => What::Closed { before: record.state_before, reason: record.reason },
        (event::EVENT_FAIL, _) => What::Failed {
            reason: record.reason,
            sent: record.since.segments_out > 0 || record.before.segments_out > 0,
        },
        (event::EVENT_RETRANSMIT, _) => What::Retransmit(record.detail),
        (event::EVENT_RESET, _) if record.detail == RESET_SENT => What::ResetSent,
        (event::EVENT_RESET, _) => What::ResetReceived,
        (event::EVENT_DROP, _) => What::Dropped(record.detail),
        _ => What::Seen,
    }
}

/// What was told of a socket that has not ended.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// When it was last told of.
    time: u64,
    retransmits: u32,
    drops: u32,
}

/// Events and rows come in, quantities by namespace go out.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Since the last reading.
    open: BTreeMap<u64, Book>,
    /// Between the last reading and the one before.
    ended: BTreeMap<u64, Book>,
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

    /// The namespaces were read: for each an interval ends, and the next one begins. What was counted in those before is
    /// forgotten.
    pub(super) fn turn(&mut self, readings: impl IntoIterator<Item = (u64, Span)>) {
        self.ended = mem::take(&mut self.open);
        for (netns, span) in readings {
            if let Some(window) = self.ended.get_mut(&netns).and_then(|book| book.window.as_mut()) {
                window.to = Some(span);
            }
            let window = Some(Window { from: span, to: None });
            self.open.insert(netns, Book { window, ..Book::default() });
        }
    }

    /// Forgets sockets that nobody has told of since then: a walk has met all that live.
    pub(super) fn forget_those_before(&mut self, time: u64) {
        self.known.retain(|_, known| known.time >= time);
    }

    /// Counts what is older than this. As long as there will be another reading, keep [`EDGE_NS`] from now.
    pub(super) fn settle(&mut self, until: u64) {
        let (mut ripe, young): (Vec<_>, Vec<_>) =
            mem::take(&mut self.pending).into_iter().partition(|told| told.time < until);
        self.pending = young;
        ripe.sort_by_key(|told| told.time);
        for told in &ripe {
            self.count(told);
        }
    }

    /// What there was in a namespace in the interval that has ended; where its counters were not read before, since the
    /// reading before.
    pub(super) fn tallies(&self, netns: u64) -> Tallies {
        self.ended.get(&netns).map(|book| book.tallies).unwrap_or_default()
    }

    /// The namespaces that were read before that interval, or that events came from.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = u64> {
        self.ended.keys().copied()
    }

    /// Some quantity of all namespaces together.
    pub(super) fn everywhere(&self, quantity: Quantity) -> i64 {
        self.ended.values().map(|book| book.tallies.of(&[quantity]).counted).sum()
    }

    fn count(&mut self, told: &Told) {
        if let Some(listener) = told.listener {
            self.turned_away(told, listener);
        }
        // Is told of without the socket's lock, in the middle of whatever it does.
        if let What::Dropped(slot) = told.what {
            if let Some(quantity) = drops_of(slot) {
                self.add(told, quantity, 1);
            }
            return;
        }
        if told.listener.is_some() {
            // For a half-open connection.
            if told.what == What::ResetSent {
                self.add(told, Quantity::ResetSent, 1);
            }
            return;
        }
        if let Some((quantity, segments)) = self.sent_again(told) {
            self.add_segments(told, quantity, segments.into());
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
                self.end(told, reason);
            }
            What::Closed { before, reason } => {
                self.end(told, reason);
                // As tcp_set_state() does it.
                if [ESTABLISHED, CLOSE_WAIT].contains(&before) {
                    self.add(told, Quantity::EstabReset, 1);
                }
            }
            What::ResetSent => self.add(told, Quantity::ResetSent, 1),
            What::Seen | What::Established | What::Retransmit(_) | What::Dropped(_) | What::ResetReceived => {
            }
        }
        self.remember(told);
    }

    fn end(&mut self, told: &Told, reason: u8) {
        match usize::from(reason) {
            reason::REASON_TIMEOUT => self.add(told, Quantity::TimedOut, 1),
            reason::REASON_UNREACHABLE | reason::REASON_ERROR => self.add(told, Quantity::Unreachable, 1),
            _ => {}
        }
    }

    /// What a listener has turned away since it was last told of.
    fn turned_away(&mut self, told: &Told, listener: Listener) {
        let fresh = Known { time: listener.opened_ns, retransmits: 0, drops: 0 };
        let seen = Known { time: told.time, retransmits: 0, drops: listener.drops };
        // One that was there before is known from the first walk on.
        let known =
            self.known.entry(told.cookie).or_insert(if listener.opened_ns > 0 { fresh } else { seen });
        let (since, grown) = (known.time, listener.drops.wrapping_sub(known.drops));
        known.time = known.time.max(told.time);
        if grown == 0 || grown >= 1 << 31 {
            return;
        }
        known.drops = listener.drops;
        for book in books(&mut self.open, &mut self.ended, told.netns) {
            book.add_between((since, told.time), Quantity::ListenDrop, grown.into());
        }
        if matches!(told.what, What::Dropped(_)) {
            self.add(told, Quantity::ListenDiscard, grown.into());
        }
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
        let fresh = Known { time: told.time, retransmits: told.retransmits, drops: 0 };
        let known = self.known.entry(told.cookie).or_insert(fresh);
        known.time = known.time.max(told.time);
        if matches!(told.what, What::Active | What::Passive) {
            *known = fresh;
        } else if told.retransmits.wrapping_sub(known.retransmits) < 1 << 31 {
            known.retransmits = told.retransmits;
        }
    }

    fn add(&mut self, told: &Told, quantity: Quantity, n: i64) {
        for book in books(&mut self.open, &mut self.ended, told.netns) {
            book.add(told.time, quantity, n);
        }
    }

    /// An event tells when they were sent, a walk only that they were.
    fn add_segments(&mut self, told: &Told, quantity: Quantity, n: i64) {
        let Some(known) = self.known.get(&told.cookie).filter(|_| told.what == What::Seen) else {
            return self.add(told, quantity, n);
        };
        let between = (known.time, told.time);
        for book in books(&mut self.open, &mut self.ended, told.netns) {
            book.add_between(between, quantity, n);
        }
    }
}

/// Those that something of now may belong to.
fn books<'a>(
    open: &'a mut BTreeMap<u64, Book>,
    ended: &'a mut BTreeMap<u64, Book>,
    netns: u64,
) -> impl Iterator<Item = &'a mut Book> {
    let ended = ended.get_mut(&netns);
    let open = if ended.is_none() { Some(open.entry(netns).or_default()) } else { open.get_mut(&netns) };
    open.into_iter().chain(ended)
}

fn drops_of(slot: u8) -> Option<Quantity> {
    match *drop::NAMES.get(usize::from(slot))? {
        "proto_mem" => Some(Quantity::NoMemory),
        "tcp_zerowindow" => Some(Quantity::ZeroWindow),
        "tcp_ofomerge" => Some(Quantity::OutOfOrderMerge),
        "tcp_md5notfound" | "tcp_md5unexpected" | "tcp_md5failure" => Some(Quantity::Md5),
        _ => None,
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
        What::Seen | What::Closed { .. } | What::Dropped(_) | What::ResetSent | What::ResetReceived => {
            Quantity::Other
        }
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
        Told { time: ms * MS, netns: NETNS, cookie, what, retransmits, listener: None }
    }

    /// Of a listener that was there before.
    fn listener(ms: u64, what: What, drops: u32) -> Told {
        Told { listener: Some(Listener { opened_ns: 0, drops }), ..told(ms, 1, what, 0) }
    }

    fn closed(before: u8, why: usize) -> What {
        What::Closed { before, reason: u8::try_from(why).unwrap() }
    }

    fn turn(ledger: &mut Ledger, begin: u64, end: u64) {
        ledger.turn([(NETNS, Span { begin, end })]);
    }

    /// Read at 100 ms and at 900 ms.
    fn ledger(all: impl IntoIterator<Item = Told>) -> Ledger {
        let mut ledger = Ledger::default();
        turn(&mut ledger, 100 * MS, 101 * MS);
        turn(&mut ledger, 900 * MS, 901 * MS);
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
        let closed = closed(ESTABLISHED, reason::REASON_NORMAL);
        let ledger = ledger([
            // There before: the walk knows what it had sent again.
            told(90, 1, What::Seen, 10),
            told(95, 1, rto, 12),
            told(200, 1, rto, 15),
            told(300, 1, closed, 16),
            // Its SYN-ACKs were sent before it was a connection.
            told(200, 2, What::Passive, 2),
            told(201, 2, What::Established, 2),
            // Seen by a walk, told by no event.
            told(200, 3, What::Active, 0),
            told(890, 3, What::Seen, 4),
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
        let normal = |before| closed(before, reason::REASON_NORMAL);
        let ledger = ledger((1..).zip(states).map(|(cookie, before)| told(300, cookie, normal(before), 0)));
        assert_eq!(tally(&ledger, Quantity::EstabReset), (2, 0, 0));
    }

    #[test]
    fn why_it_ended_tells_whether_it_timed_out() {
        let failed = What::Failed { reason: u8::try_from(reason::REASON_TIMEOUT).unwrap(), sent: true };
        let ledger = ledger([
            told(300, 1, closed(ESTABLISHED, reason::REASON_TIMEOUT), 0),
            told(301, 2, failed, 0),
            told(302, 3, closed(ESTABLISHED, reason::REASON_UNREACHABLE), 0),
            told(303, 4, closed(ESTABLISHED, reason::REASON_RESET_RECEIVED), 0),
        ]);
        let all = [Quantity::TimedOut, Quantity::Unreachable].map(|quantity| tally(&ledger, quantity).0);
        assert_eq!(all, [2, 1]);
    }

    #[test]
    fn what_a_listener_turned_away_is_what_its_count_grew_by() {
        let ledger = ledger([
            listener(90, What::Seen, 5),
            // Between the first walk and the one after the reading: before it or after.
            listener(110, What::Seen, 7),
            listener(500, What::Dropped(0), 10),
            listener(890, What::Seen, 11),
            // Between the last two walks.
            listener(910, What::Seen, 15),
        ]);
        assert_eq!(tally(&ledger, Quantity::ListenDrop), (8, -4, 2));
        assert_eq!(tally(&ledger, Quantity::ListenDiscard), (3, 0, 0));
        let none = [Quantity::EstabReset, Quantity::Other].map(|quantity| tally(&ledger, quantity));
        assert_eq!(none, [(0, 0, 0); 2]);
    }

    #[test]
    fn a_listener_that_began_meanwhile_had_turned_nobody_away() {
        let seen = |ms, what, drops, opened| {
            let listener = Some(Listener { opened_ns: opened * MS, drops });
            Told { listener, ..told(ms, 1, what, 0) }
        };
        let closed = closed(10, reason::REASON_NORMAL);
        let drops = |all: &[Told]| tally(&ledger(all.iter().copied()), Quantity::ListenDrop);
        assert_eq!(drops(&[seen(300, closed, 3, 200)]), (3, 0, 0));
        assert_eq!(drops(&[seen(890, What::Seen, 3, 200)]), (3, 0, 0));
        assert_eq!(drops(&[seen(300, closed, 3, 90)]), (0, 0, 3));
        // Met for the first time, and there before: nobody knows.
        assert_eq!(drops(&[seen(300, closed, 3, 0)]), (0, 0, 0));
        // It listens again: its count goes on.
        assert_eq!(drops(&[seen(300, closed, 3, 200), seen(890, What::Seen, 4, 400)]), (4, 0, 0));
    }

    #[test]
    fn drops_are_told_by_their_reason() {
        let slot = |name: &str| {
            What::Dropped(drop::NAMES.iter().position(|n| *n == name).unwrap().try_into().unwrap())
        };
        let names =
            ["proto_mem", "tcp_zerowindow", "tcp_ofomerge", "tcp_md5failure", "tcp_md5notfound", "other"];
        let ledger = ledger((300..).zip(names).map(|(ms, name)| told(ms, 1, slot(name), 9)));
        let quantities = [
            Quantity::NoMemory,
            Quantity::ZeroWindow,
            Quantity::OutOfOrderMerge,
            Quantity::Md5,
            Quantity::Other,
        ];
        assert_eq!(quantities.map(|quantity| tally(&ledger, quantity).0), [1, 1, 1, 2, 0]);
    }

    #[test]
    fn one_interval_follows_another() {
        let mut ledger = Ledger::default();
        let opens = |ledger: &Ledger| tally(ledger, Quantity::ActiveOpen);
        turn(&mut ledger, 100 * MS, 101 * MS);
        ledger.pending.extend([told(200, 1, What::Active, 0), told(300, 2, What::Active, 0)]);
        ledger.settle(400 * MS);
        turn(&mut ledger, 500 * MS, 501 * MS);
        // On their way still: one of each interval that may be of the other, and one that may not.
        let late = [(499, 3), (502, 4), (600, 5)].map(|(ms, cookie)| told(ms, cookie, What::Active, 0));
        ledger.pending.extend(late);
        ledger.settle(700 * MS);
        assert_eq!(opens(&ledger), (3, -1, 1));
        turn(&mut ledger, 900 * MS, 901 * MS);
        ledger.settle(u64::MAX);
        assert_eq!(opens(&ledger), (2, -1, 1));
    }

    #[test]
    fn who_is_not_told_of_is_forgotten() {
        let mut ledger = Ledger::default();
        turn(&mut ledger, 0, 0);
        ledger.pending.extend([told(100, 1, What::Active, 0), told(300, 2, What::Active, 0)]);
        ledger.settle(u64::MAX);
        ledger.forget_those_before(300 * MS);
        assert_eq!(ledger.known.keys().collect::<Vec<_>>(), [&2]);
    }

    #[test]
    fn what_is_young_waits() {
        let mut ledger = Ledger::default();
        turn(&mut ledger, 0, 0);
        ledger.pending.push(told(500, 1, What::Active, 0));
        let counted = |ledger: &Ledger| ledger.open[&NETNS].tallies.of(&[Quantity::ActiveOpen]).counted;
        ledger.settle(500 * MS);
        assert_eq!(counted(&ledger), 0);
        ledger.settle(501 * MS);
        assert_eq!(counted(&ledger), 1);
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
            turn(&mut ledger, 0, 0);
            ledger.pending.push(told(150, 1, What::Active, 0));
            for told in &all {
                ledger.pending.push(*told);
                ledger.settle(told.time / step * step);
            }
            ledger.settle(u64::MAX);
            let counted = ledger.open[&NETNS].tallies.of(&[Quantity::Rto]).counted;
            prop_assert_eq!(counted, i64::from(running));
        }

        /// Whenever they happen and whenever somebody looks, if only right before and right after each reading, what
        /// listeners turn away is explained, and counted in one interval at most.
        #[test]
        fn drops_between_looks_are_explained(
            times in prop::collection::vec(0..1000 * MS, 0..60),
            looks in prop::collection::vec(0..1000 * MS, 0..20),
            late in 20 * MS..30 * MS,
        ) {
            let at = [100, 500, 900].map(|ms| ms * MS + late);
            let around = at.iter().flat_map(|&at| [at - 20 * MS, at + 20 * MS]);
            let mut looks: Vec<_> = looks.into_iter().chain(around).collect();
            looks.sort_unstable();
            let mut rows = looks.iter().map(|&time| {
                let drops = times.iter().filter(|&&at| at < time).count() as u32;
                Told { time, ..listener(0, What::Seen, drops) }
            }).peekable();
            let mut ledger = Ledger::default();
            let mut until = |ledger: &mut Ledger, time: u64| {
                while let Some(row) = rows.next_if(|row| row.time <= time) {
                    ledger.pending.push(row);
                }
            };
            let mut all = 0;
            for (n, &at) in at.iter().enumerate() {
                until(&mut ledger, at);
                turn(&mut ledger, at, at + MS);
                until(&mut ledger, at + 20 * MS);
                ledger.settle(u64::MAX);
                if n == 0 {
                    continue;
                }
                let from = at - 400 * MS;
                let (counted, least, most) = tally(&ledger, Quantity::ListenDrop);
                let kernel: i64 = times.iter().map(|time| i64::from((from..at).contains(time))).sum();
                prop_assert!((least..=most).contains(&(kernel - counted)), "{kernel} {counted} {least} {most}");
                all += counted;
            }
            prop_assert!(all <= i64::try_from(times.len()).unwrap());
        }
    }
}
