//! What holds a connection back: two looks at it, and the causes that the numbers between them speak for.
//!
//! Each cause has a rule of its own, with its threshold beside it; several may hold at once, and the gravest stands
//! first. Shares are of the time between the looks, or of a connection's age if it is younger.

use serde::Serialize;

use crate::{
    connection::{self, LISTEN, STATE_NAMES, waits_for_accept},
    record::{self, Connection, NOT_SEEN, limit, window},
};

/// The kernel's number of the SYN_SENT state.
const SYN_SENT: u8 = 2;

/// From this share of the time on, something is a limit.
const LIMITING: f64 = 0.2;
/// From this share of segments on, sending again is a loss that matters.
const LOSSY: f64 = 0.01;
/// Up to this share of the time with data to send, a connection has next to nothing to do.
const IDLE: f64 = 0.1;
/// With so many segments on their way, receivers acknowledge at once: each second one.
const SEVERAL: f64 = 2.0;
/// From here on waiting in queues is worth a word, us.
const QUEUEING_US: u32 = 5_000;

/// What holds it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// SYNs are sent and nobody answers.
    NoAnswer,
    /// The network loses segments.
    NetworkLoss,
    /// The peer's receive window is closed: its application does not keep up.
    ReceiverSlow,
    /// This side's application does not read what has arrived.
    SlowToRead,
    /// This side's application does not accept what has connected.
    SlowToAccept,
    /// Segments wait in queues on their way.
    NetworkDelay,
    /// The own send buffer is too small for the path.
    SendBuffer,
    /// It sends as fast as acknowledgements come back.
    RoundTrips,
    /// There is nothing to send, and nothing waits.
    NothingToSend,
}

/// A cause, how grave it is, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What holds it back.
    pub cause: Cause,
    /// How much of the time, or of the segments: 0 to 1.
    pub share: f64,
    /// The numbers that led there, in words.
    pub because: String,
}

/// What the two looks tell. `None` before: the connection was not there yet.
pub fn explain(before: Option<&Connection>, after: &Connection, interval_us: u64) -> Vec<Verdict> {
    let change = Change::between(before, after, interval_us);
    let mut verdicts: Vec<_> = if after.state == LISTEN {
        change.slow_to_accept().into_iter().collect()
    } else {
        let rules = [
            change.no_answer(),
            change.network_loss(),
            change.receiver_slow(),
            change.slow_to_read(),
            change.not_accepted(),
            change.network_delay(),
            change.send_buffer(),
        ];
        rules.into_iter().flatten().collect()
    };
    verdicts.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.cause.cmp(&b.cause)));
    if verdicts.is_empty() && after.state != LISTEN {
        verdicts.push(change.in_order());
    }
    verdicts
}

/// The same, of connections as programs meet them.
pub fn explain_told(
    before: Option<&connection::Connection>,
    after: &connection::Connection,
    interval_us: u64,
) -> Vec<Verdict> {
    explain(before.map(record_of).as_ref(), &record_of(after), interval_us)
}

/// As much of a record as the rules here look at.
fn record_of(told: &connection::Connection) -> Connection {
    let ns = |time: jiff::Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or(0);
    let state = STATE_NAMES.iter().position(|name| *name == Some(told.state)).unwrap_or(0);
    let before = told.before.unwrap_or_default();
    let queues = told.queues.unwrap_or_default();
    let buffered = told.buffered.unwrap_or_default();
    let limited = told.limited_us;
    let mut r = Connection {
        time_ns: ns(told.time),
        opened_ns: told.opened_at.map_or(0, ns),
        state: state as u8,
        flags: if told.waits_for_accept { record::FLAG_UNHELD } else { 0 },
        srtt_us: told.rtt.map_or(0, |rtt| rtt.srtt_us),
        min_rtt_us: told.rtt.and_then(|rtt| rtt.min_us).unwrap_or(u32::MAX),
        cwnd: told.cwnd,
        mss: told.mss,
        unread: buffered.unread,
        unsent: buffered.unsent,
        send_window: buffered.send_window,
        receive_window: buffered.receive_window,
        accept_queue: queues.accept,
        accept_limit: queues.limit,
        drops: queues.drops,
        reads: told.read_delay.map_or(0, |delay| delay.times),
        read_delay_us: told.read_delay.map_or(0, |delay| delay.total_us),
        ..Connection::default()
    };
    r.before.retransmits = before.retransmits;
    r.since.retransmits = told.retransmits.total;
    r.since.duplicates = told.path.duplicates;
    r.since.segments_out = told.segments_out;
    r.limited_us[limit::LIMIT_RWND] = limited.rwnd;
    r.limited_us[limit::LIMIT_SNDBUF] = limited.sndbuf;
    r.limited_us[limit::LIMIT_NONE] =
        limited.busy.saturating_sub(limited.rwnd).saturating_sub(limited.sndbuf);
    let windows = told.zero_windows.unwrap_or_default();
    r.zero_windows[window::WINDOW_PEER] = windows.peer;
    r.zero_windows[window::WINDOW_OWN] = windows.own;
    r
}

struct Change<'a> {
    before: Option<&'a Connection>,
    after: &'a Connection,
    interval_us: f64,
}

impl<'a> Change<'a> {
    fn between(before: Option<&'a Connection>, after: &'a Connection, interval_us: u64) -> Self {
        let age_us = match after.opened_ns {
            0 => u64::MAX,
            opened_ns => after.time_ns.saturating_sub(opened_ns) / 1000,
        };
        // The looks' own time counts if it is longer: the first comes early in its walk, the second late.
        let looked_us = before.map_or(0, |before| after.time_ns.saturating_sub(before.time_ns) / 1000);
        Self { before, after, interval_us: interval_us.max(looked_us).min(age_us).max(1) as f64 }
    }

    fn grown(&self, of: impl Fn(&Connection) -> u32) -> u32 {
        of(self.after).wrapping_sub(self.before.map_or(0, of))
    }

    fn time_share(&self, of: impl Fn(&Connection) -> u64) -> f64 {
        let us = of(self.after).saturating_sub(self.before.map_or(0, of));
        (us as f64 / self.interval_us).min(1.0)
    }

    /// The least that lay there at both looks.
    fn standing(&self, of: impl Fn(&Connection) -> u32) -> u32 {
        of(self.after).min(self.before.map_or(0, of))
    }

    /// Segments on their way at a time, on average.
    fn in_flight(&self) -> f64 {
        f64::from(self.grown(|c| c.since.segments_out)) * f64::from(self.after.srtt_us) / self.interval_us
    }

    fn busy(&self) -> f64 {
        self.time_share(|c| c.limited_us.iter().fold(0, |sum, us| sum.saturating_add(*us)))
    }

    fn no_answer(&self) -> Option<Verdict> {
        // There is nothing else to send again yet, also before somebody looked.
        let syns = self.after.since.retransmits.saturating_add(self.after.before.retransmits);
        (self.after.state == SYN_SENT && syns > 0).then(|| Verdict {
            cause: Cause::NoAnswer,
            share: 1.0,
            because: format!("the SYN was sent again {syns} times without an answer"),
        })
    }

    fn network_loss(&self) -> Option<Verdict> {
        let again = self.grown(|c| c.since.retransmits);
        let needless = self.grown(|c| c.since.duplicates).min(again);
        let sent = self.grown(|c| c.since.segments_out);
        let lost = again - needless;
        let share = f64::from(lost) / f64::from(sent.max(1));
        (self.after.state != SYN_SENT && lost > 1 && share >= LOSSY).then(|| Verdict {
            cause: Cause::NetworkLoss,
            share: share.min(1.0),
            because: format!("{again} of {sent} segments were sent again, {needless} of them without need"),
        })
    }

    fn receiver_slow(&self) -> Option<Verdict> {
        let share = self.time_share(|c| c.limited_us[limit::LIMIT_RWND]);
        let closed = self.grown(|c| c.zero_windows[window::WINDOW_PEER]);
        (share >= LIMITING).then(|| Verdict {
            cause: Cause::ReceiverSlow,
            share,
            because: format!(
                "{:.0} % of the time it waited for the peer's receive window{}",
                share * 100.0,
                closings(closed, self.after.send_window)
            ),
        })
    }

    fn slow_to_read(&self) -> Option<Verdict> {
        self.left_unread().or_else(|| self.read_late())
    }

    /// Data that lay there at both looks.
    fn left_unread(&self) -> Option<Verdict> {
        let unread = self.standing(|c| c.unread);
        let after = self.after;
        let room = u64::from(after.unread) + u64::from(after.receive_window);
        let share = f64::from(unread) / room.max(1) as f64;
        let closed = self.grown(|c| c.zero_windows[window::WINDOW_OWN]);
        (unread > 0 && (share >= 0.5 || closed > 0)).then(|| Verdict {
            cause: Cause::SlowToRead,
            share: share.min(1.0),
            because: format!(
                "{unread} bytes lay unread at both looks, {:.0} % of the receive window{}",
                share.min(1.0) * 100.0,
                closings(closed, after.receive_window)
            ),
        })
    }

    /// Data that was read, and had to wait for it.
    fn read_late(&self) -> Option<Verdict> {
        let times = self.grown(|c| if c.reads as usize == NOT_SEEN { 0 } else { c.reads });
        let share = self.time_share(|c| c.read_delay_us);
        let each_ms = share * self.interval_us / f64::from(times.max(1)) / 1e3;
        (times > 0 && share >= LIMITING).then(|| Verdict {
            cause: Cause::SlowToRead,
            share,
            because: format!(
                "{:.0} % of the time data waited to be read, {times} times, {each_ms:.1} ms each",
                share * 100.0
            ),
        })
    }

    fn not_accepted(&self) -> Option<Verdict> {
        let waits = waits_for_accept(self.after) && self.before.is_some_and(waits_for_accept);
        waits.then(|| Verdict {
            cause: Cause::SlowToAccept,
            share: 1.0,
            because: format!(
                "nobody has accepted it in the {:.1} s between the looks",
                self.interval_us / 1e6
            ),
        })
    }

    fn slow_to_accept(&self) -> Option<Verdict> {
        let waiting = self.standing(|c| c.accept_queue);
        let limit = self.after.accept_limit;
        let drops = self.grown(|c| c.drops);
        let share = f64::from(waiting) / f64::from(limit.max(1));
        (drops > 0 || (waiting > 0 && share >= IDLE)).then(|| Verdict {
            cause: Cause::SlowToAccept,
            share: share.min(1.0),
            because: format!(
                "{waiting} connections waited for accept() at both looks, of at most {limit}; {drops} were turned away"
            ),
        })
    }

    fn network_delay(&self) -> Option<Verdict> {
        let (srtt, least) = (self.after.srtt_us, self.after.min_rtt_us);
        let waiting = srtt.saturating_sub(least);
        // A receiver that is slow keeps acknowledgements back, too; and any receiver does, for a segment on its own.
        let known =
            srtt > 0 && least != u32::MAX && self.receiver_slow().is_none() && self.in_flight() >= SEVERAL;
        (known && waiting >= QUEUEING_US.max(least) && self.busy() >= LIMITING).then(|| Verdict {
            cause: Cause::NetworkDelay,
            share: f64::from(waiting) / f64::from(srtt.max(1)),
            because: format!(
                "a round trip takes {:.1} ms, and {:.1} ms at best: the rest is waiting in queues",
                f64::from(srtt) / 1e3,
                f64::from(least) / 1e3
            ),
        })
    }

    fn send_buffer(&self) -> Option<Verdict> {
        let share = self.time_share(|c| c.limited_us[limit::LIMIT_SNDBUF]);
        (share >= LIMITING).then(|| Verdict {
            cause: Cause::SendBuffer,
            share,
            because: format!(
                "{:.0} % of the time the path would have taken more than the send buffer holds",
                share * 100.0
            ),
        })
    }

    fn in_order(&self) -> Verdict {
        let busy = self.busy();
        if busy < IDLE {
            return Verdict {
                cause: Cause::NothingToSend,
                share: 1.0 - busy,
                because: format!("it had data to send {:.0} % of the time", busy * 100.0),
            };
        }
        let after = self.after;
        Verdict {
            cause: Cause::RoundTrips,
            share: busy,
            because: format!(
                "{:.0} % of the time it waited for acknowledgements, up to {} segments of {} bytes for each round trip of {:.1} ms",
                busy * 100.0,
                after.cwnd,
                after.mss,
                f64::from(after.srtt_us) / 1e3
            ),
        }
    }
}

fn closings(times: u32, window: u32) -> String {
    match (times, window) {
        (_, 0) => ", which is closed".to_owned(),
        (0, _) => String::new(),
        (times, _) => format!(", which was closed {times} times"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::FLAG_UNHELD;

    const SECOND: u64 = 1_000_000;

    fn connection() -> Connection {
        Connection { state: 1, srtt_us: 1000, min_rtt_us: 900, cwnd: 10, mss: 1448, ..Connection::default() }
    }

    fn causes(after: &Connection) -> Vec<Cause> {
        explain(Some(&connection()), after, SECOND).iter().map(|verdict| verdict.cause).collect()
    }

    #[test]
    fn a_connection_without_work_is_idle() {
        assert_eq!(causes(&connection()), [Cause::NothingToSend]);
    }

    #[test]
    fn each_cause_has_its_sign() {
        let mut lossy = connection();
        lossy.since.retransmits = 5;
        lossy.since.segments_out = 100;
        assert_eq!(causes(&lossy), [Cause::NetworkLoss]);
        lossy.since.duplicates = 5;
        assert_eq!(causes(&lossy), [Cause::NothingToSend]);

        let mut closed = connection();
        closed.limited_us[limit::LIMIT_RWND] = 900_000;
        assert_eq!(causes(&closed), [Cause::ReceiverSlow]);

        let mut small = connection();
        small.limited_us[limit::LIMIT_SNDBUF] = 500_000;
        assert_eq!(causes(&small), [Cause::SendBuffer]);

        let mut queued = connection();
        queued.limited_us[limit::LIMIT_NONE] = 900_000;
        assert_eq!(causes(&queued), [Cause::RoundTrips]);
        queued.srtt_us = 60_000;
        assert_eq!(causes(&queued), [Cause::RoundTrips], "delayed acknowledgements of a few segments");
        queued.since.segments_out = 1000;
        assert_eq!(causes(&queued), [Cause::NetworkDelay]);

        let unread = Connection { unread: 60_000, receive_window: 5_000, ..connection() };
        assert_eq!(explain(Some(&unread), &unread, SECOND)[0].cause, Cause::SlowToRead);
        assert_eq!(causes(&unread), [Cause::NothingToSend], "it may just have arrived");

        let late = Connection { reads: 4, read_delay_us: 600_000, ..connection() };
        assert_eq!(causes(&late), [Cause::SlowToRead]);
        let at_once = Connection { reads: 4000, read_delay_us: 100_000, ..connection() };
        assert_eq!(causes(&at_once), [Cause::NothingToSend]);

        let waiting = Connection { flags: FLAG_UNHELD, ..connection() };
        assert_eq!(explain(Some(&waiting), &waiting, SECOND)[0].cause, Cause::SlowToAccept);
        assert_eq!(causes(&waiting), [Cause::NothingToSend], "it may just have come");

        let mut asking = Connection { state: SYN_SENT, ..connection() };
        assert_eq!(causes(&asking), [Cause::NothingToSend]);
        asking.since.retransmits = 2;
        assert_eq!(causes(&asking), [Cause::NoAnswer]);
        let adopted = Connection { before: asking.since, since: connection().since, ..asking };
        assert_eq!(causes(&adopted), [Cause::NoAnswer]);

        let listener = Connection { state: LISTEN, accept_limit: 128, ..connection() };
        assert_eq!(causes(&listener), []);
        let full = Connection { accept_queue: 129, ..listener };
        assert_eq!(explain(Some(&full), &full, SECOND)[0].cause, Cause::SlowToAccept);
        assert_eq!(causes(&Connection { drops: 3, ..listener }), [Cause::SlowToAccept]);
    }

    #[test]
    fn the_gravest_stands_first() {
        let mut both = connection();
        both.limited_us[limit::LIMIT_RWND] = 300_000;
        both.limited_us[limit::LIMIT_SNDBUF] = 600_000;
        assert_eq!(causes(&both), [Cause::SendBuffer, Cause::ReceiverSlow]);
    }

    proptest! {
        #[test]
        fn any_two_looks_have_verdicts_with_shares(
            state in 0u8..14, numbers in proptest::array::uniform12(any::<u32>()), times: [u64; 5], interval: u64,
        ) {
            let [srtt_us, min_rtt_us, unread, receive_window, accept_queue, accept_limit, drops, a, b, c, d, e] = numbers;
            let mut after = Connection {
                state, srtt_us, min_rtt_us, unread, receive_window, accept_queue, accept_limit, drops,
                opened_ns: times[0], time_ns: times[1], zero_windows: [a, b], ..connection()
            };
            after.limited_us = [times[2], times[3], times[4]];
            (after.since.retransmits, after.since.duplicates, after.since.segments_out) = (c, d, e);
            for before in [None, Some(&connection()), Some(&after)] {
                for verdict in explain(before, &after, interval) {
                    prop_assert!((0.0..=1.0).contains(&verdict.share), "{verdict:?}");
                }
            }
        }
    }
}
