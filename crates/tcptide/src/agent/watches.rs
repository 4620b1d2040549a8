//! Connections that somebody watches: asked about one by one, again and again. What the kernel side keeps of them is complete
//! from the first time on, whoever else looks at the sockets meanwhile.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    connection::{Clock, Connection, Direction, STATE_NAMES},
    filter::Filter,
    histogram::{Histogram, Scale},
    record,
};

use super::gauge::Worker;
use crate::{
    answer::watched::{Entered, Watched},
    args::PeerArgs,
    session::{clock, connection},
};

/// Why one is not watched.
#[derive(Debug)]
pub(super) enum Unwatched {
    /// There is none, and none was watched.
    Gone(u64),
    /// There is no room.
    Full,
}

impl fmt::Display for Unwatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(cookie) => write!(f, "no connection's socket has the cookie {cookie}"),
            Self::Full => write!(
                f,
                "{} connections are watched already; one that nobody asks about for {} s makes room",
                record::WATCHES,
                KEEP.as_secs()
            ),
        }
    }
}

/// How long one is watched that nobody asks about any more.
const KEEP: Duration = Duration::from_secs(60);

/// One of them.
struct Watch {
    since: Timestamp,
    asked: Instant,
    /// As it was when it was first asked about.
    first: Connection,
}

#[derive(Default)]
pub(super) struct Watches(BTreeMap<u64, Watch>);

impl Worker {
    /// What there is to know of the connection whose socket has this cookie, which is watched from now on; or why there is
    /// nothing.
    pub(super) fn watched(&mut self, cookie: u64) -> anyhow::Result<Result<Watched, Unwatched>> {
        self.forget_watches()?;
        let connection = if self.watches.0.contains_key(&cookie) {
            self.again(cookie)?
        } else {
            // Its far end is searched for once: all sockets are looked at.
            let found = self.connections(true, Some(cookie), 1, &Filter::default(), &PeerArgs::default())?;
            let Some(first) = found.connections.into_iter().next() else {
                return Ok(Err(Unwatched::Gone(cookie)));
            };
            if self.watches.0.len() >= record::WATCHES {
                return Ok(Err(Unwatched::Full));
            }
            self.monitor.watch(cookie)?;
            let watch = Watch { since: Timestamp::now(), asked: Instant::now(), first: first.clone() };
            self.watches.0.insert(cookie, watch);
            Some(first)
        };
        let Some(watch) = self.watches.0.get_mut(&cookie) else {
            anyhow::bail!("the connection is watched no more")
        };
        watch.asked = Instant::now();
        let kept = self.monitor.watched(cookie)?.unwrap_or_default();
        let rtt = Histogram::from_counts(&Scale::RTT, kept.rtt.slots, kept.rtt.sum_us);
        let states = states(&watch.first, &kept.entered_ns, &clock());
        Ok(Ok(Watched { since: watch.since, connection, rtt, states }))
    }

    /// A watched connection as it is now; `None`: it has ended.
    fn again(&mut self, cookie: u64) -> anyhow::Result<Option<Connection>> {
        let Some(row) = self.monitor.find(cookie)? else { return Ok(None) };
        self.take_notes()?;
        let container = self.directory.resolve(row.cgroup_id);
        let mut now = connection(&row, &container, &clock(), false);
        if let Some(watch) = self.watches.0.get(&cookie) {
            now.peer = watch.first.peer.clone();
        }
        Ok(Some(now))
    }

    /// Ends watching those that nobody asks about any more.
    pub(super) fn forget_watches(&mut self) -> anyhow::Result<()> {
        let gone: Vec<u64> = self
            .watches
            .0
            .iter()
            .filter(|(_, watch)| watch.asked.elapsed() >= KEEP)
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in gone {
            self.monitor.unwatch(cookie)?;
            self.watches.0.remove(&cookie);
        }
        Ok(())
    }
}

/// The states it has been in: those that were over when it was first looked at, as far as they are known, the one it was in,
/// and those that were noted since.
fn states(first: &Connection, entered_ns: &[u64; record::STATES], clock: &Clock) -> Vec<Entered> {
    let name = |state: usize| STATE_NAMES.get(state).copied().flatten();
    let mut noted: Vec<_> = entered_ns.iter().enumerate().filter(|(_, ns)| **ns != 0).collect();
    noted.sort_by_key(|(_, ns)| **ns);
    let is_noted = |state: &str| noted.iter().any(|(noted, _)| name(*noted) == Some(state));
    let mut all = Vec::new();
    let mut before = |state: &str, at| {
        if !is_noted(state) {
            all.push(Entered { state: state.to_owned(), at });
        }
    };
    let established = match first.direction {
        Some(Direction::Active) => {
            first.connect_us.and_then(|us| first.opened_at.map(|opened| opened + Duration::from_micros(us)))
        }
        Some(Direction::Passive) => first.opened_at,
        None => None,
    };
    if let (Some(Direction::Active), Some(opened)) = (first.direction, first.opened_at) {
        before("syn_sent", Some(opened));
    }
    if let Some(at) = established {
        before("established", Some(at));
    }
    if !all.iter().any(|entered| entered.state == first.state) && !is_noted(first.state) {
        all.push(Entered { state: first.state.to_owned(), at: None });
    }
    all.extend(noted.into_iter().filter_map(|(state, ns)| {
        Some(Entered { state: name(state)?.to_owned(), at: Some(clock.time(*ns)) })
    }));
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::container::Container;

    use super::*;

    const CLOCK: Clock = Clock { at: Timestamp::UNIX_EPOCH, monotonic_ns: 0 };

    fn connection(r: &record::Connection) -> Connection {
        Connection::new(r, &CLOCK, Arc::new(Container::unknown(1)), false)
    }

    fn told(first: &Connection, entered: &[(usize, u64)]) -> Vec<(String, Option<i64>)> {
        let mut entered_ns = [0; record::STATES];
        for (state, ns) in entered {
            entered_ns[*state] = *ns;
        }
        let states = states(first, &entered_ns, &CLOCK);
        states
            .into_iter()
            .map(|Entered { state, at }| (state, at.map(|at| at.as_nanosecond() as i64)))
            .collect()
    }

    fn known(state: &str, ns: i64) -> (String, Option<i64>) {
        (state.to_owned(), Some(ns))
    }

    /// States are those of include/net/tcp_states.h.
    #[test]
    fn states_are_in_the_order_in_which_they_were() {
        let active = record::Connection {
            cookie: 7,
            opened_ns: 1_000,
            established_ns: 3_000,
            direction: record::direction::DIRECTION_ACTIVE as u8,
            ..record::Connection::default()
        };
        let connecting = connection(&record::Connection { state: 2, established_ns: 0, ..active });
        assert_eq!(told(&connecting, &[]), [known("syn_sent", 1_000)]);
        assert_eq!(
            told(&connecting, &[(7, 9_000), (1, 4_000)]),
            [known("syn_sent", 1_000), known("established", 4_000), known("close", 9_000)]
        );
        let established = connection(&record::Connection { state: 1, ..active });
        let before = [known("syn_sent", 1_000), known("established", 3_000)];
        assert_eq!(told(&established, &[]), before);
        // It came into its state before anybody looked.
        let closing = connection(&record::Connection { state: 8, ..active });
        let closing = told(&closing, &[(9, 5_000)]);
        assert_eq!(closing[..2], before);
        assert_eq!(closing[2..], [("close_wait".to_owned(), None), known("last_ack", 5_000)]);
    }

    #[test]
    fn of_what_was_there_before_no_time_is_made_up() {
        let unknown =
            connection(&record::Connection { cookie: 7, state: 1, ..record::Connection::default() });
        assert_eq!(told(&unknown, &[]), [("established".to_owned(), None)]);
        let passive = connection(&record::Connection {
            cookie: 7,
            state: 1,
            opened_ns: 2_000,
            established_ns: 2_000,
            direction: record::direction::DIRECTION_PASSIVE as u8,
            ..record::Connection::default()
        });
        assert_eq!(told(&passive, &[(8, 4_000)]), [known("established", 2_000), known("close_wait", 4_000)]);
    }
}
