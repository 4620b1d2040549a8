//! What holds a connection back: two looks at it, and the causes that the numbers between them speak for. What they saw may
//! come from the kernel or from an agent. A number that was not measured speaks for nothing.
//!
//! Each cause has a rule of its own, with its threshold beside it; several may hold at once, and the gravest stands
//! first. Shares are of the time between the looks, or of a connection's age if it is younger.

use serde::Serialize;

use crate::connection::{Buffered, Connection};

/// As in [`STATE_NAMES`](crate::connection::STATE_NAMES).
const LISTEN: &str = "listen";
const SYN_SENT: &str = "syn_sent";

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

struct Change<'a> {
    before: Option<&'a Connection>,
    after: &'a Connection,
    interval_us: f64,
}

impl<'a> Change<'a> {
    fn between(before: Option<&'a Connection>, after: &'a Connection, interval_us: u64) -> Self {
        let age_us = after.duration_us.unwrap_or(u64::MAX);
        // The looks' own time counts if it is longer: the first comes early in its walk, the second late.
        let looked_us = before.map_or(0, |before| after.time.duration_since(before.time).as_micros());
        let looked_us = u64::try_from(looked_us).unwrap_or(0);
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
        f64::from(self.grown(|c| c.segments_out)) * f64::from(srtt_us(self.after)) / self.interval_us
    }

    fn busy(&self) -> f64 {
        self.time_share(|c| c.limited_us.busy)
    }

    fn no_answer(&self) -> Option<Verdict> {
        // There is nothing else to send again yet, also before somebody looked.
        let before = self.after.before.map_or(0, |before| before.retransmits);
        let syns = self.after.retransmits.total.saturating_add(before);
        (self.after.state == SYN_SENT && syns > 0).then(|| Verdict {
            cause: Cause::NoAnswer,
            share: 1.0,
            because: format!("the SYN was sent again {syns} times without an answer"),
        })
    }

    fn network_loss(&self) -> Option<Verdict> {
        let again = self.grown(|c| c.retransmits.total);
        let needless = self.grown(|c| c.path.duplicates).min(again);
        let sent = self.grown(|c| c.segments_out);
        let lost = again - needless;
        let share = f64::from(lost) / f64::from(sent.max(1));
        (self.after.state != SYN_SENT && lost > 1 && share >= LOSSY).then(|| Verdict {
            cause: Cause::NetworkLoss,
            share: share.min(1.0),
            because: format!("{again} of {sent} segments were sent again, {needless} of them without need"),
        })
    }

    fn receiver_slow(&self) -> Option<Verdict> {
        let share = self.time_share(|c| c.limited_us.rwnd);
        let closed = self.grown(|c| c.zero_windows.map_or(0, |windows| windows.peer));
        (share >= LIMITING).then(|| Verdict {
            cause: Cause::ReceiverSlow,
            share,
            because: format!(
                "{:.0} % of the time it waited for the peer's receive window{}",
                share * 100.0,
                closings(closed, buffered(self.after).send_window)
            ),
        })
    }

    fn slow_to_read(&self) -> Option<Verdict> {
        self.left_unread().or_else(|| self.read_late())
    }

    /// Data that lay there at both looks.
    fn left_unread(&self) -> Option<Verdict> {
        let unread = self.standing(|c| buffered(c).unread);
        let after = buffered(self.after);
        let room = u64::from(after.unread) + u64::from(after.receive_window);
        let share = f64::from(unread) / room.max(1) as f64;
        let closed = self.grown(|c| c.zero_windows.map_or(0, |windows| windows.own));
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
        let times = self.grown(|c| c.read_delay.map_or(0, |delay| delay.times));
        let share = self.time_share(|c| c.read_delay.map_or(0, |delay| delay.total_us));
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
        let waits = self.after.waits_for_accept && self.before.is_some_and(|before| before.waits_for_accept);
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
        let waiting = self.standing(|c| c.queues.map_or(0, |queues| queues.accept));
        let limit = self.after.queues.map_or(0, |queues| queues.limit);
        let drops = self.grown(|c| c.queues.map_or(0, |queues| queues.drops));
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
        let rtt = self.after.rtt?;
        let (srtt, least) = (rtt.srtt_us, rtt.min_us?);
        let waiting = srtt.saturating_sub(least);
        // A receiver that is slow keeps acknowledgements back, too; and any receiver does, for a segment on its own.
        let known = self.receiver_slow().is_none() && self.in_flight() >= SEVERAL;
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
        let share = self.time_share(|c| c.limited_us.sndbuf);
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
                f64::from(srtt_us(after)) / 1e3
            ),
        }
    }
}

fn buffered(connection: &Connection) -> Buffered {
    connection.buffered.unwrap_or_default()
}

/// 0: there is no sample.
fn srtt_us(connection: &Connection) -> u32 {
    connection.rtt.map_or(0, |rtt| rtt.srtt_us)
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
    use std::sync::Arc;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{Cause, Verdict};
    use crate::{
        connection::{self, Clock, LISTEN},
        container::Container,
        record::{Connection, FLAG_PREEXISTING, FLAG_UNHELD, limit},
    };

    const SECOND: u64 = 1_000_000;
    /// The kernel's number of it.
    const SYN_SENT: u8 = 2;

    /// By two records of the kernel's.
    fn explain(before: Option<&Connection>, after: &Connection, interval_us: u64) -> Vec<Verdict> {
        let clock = Clock { at: Timestamp::UNIX_EPOCH, monotonic_ns: 0 };
        let told = |r| connection::Connection::new(r, &clock, Arc::new(Container::unknown(7)), false);
        super::explain(before.map(told).as_ref(), &told(after), interval_us)
    }

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
        let [before, since] = [asking.since, connection().since];
        let adopted = Connection { before, since, flags: FLAG_PREEXISTING, ..asking };
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
