//! Connections that somebody watches: asked about one by one, again and again. What the kernel side keeps of them is complete
//! from the first time on, whoever else looks at the sockets meanwhile.

use std::{
    collections::BTreeMap,
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
    pub(super) fn watched(&mut self, cookie: u64) -> anyhow::Result<Result<Watched, String>> {
        self.forget_watches()?;
        let connection = if self.watches.0.contains_key(&cookie) {
            self.again(cookie)?
        } else {
            // Its far end is searched for once: all sockets are looked at.
            let found = self.connections(true, Some(cookie), 1, &Filter::default(), &PeerArgs::default())?;
            let Some(first) = found.connections.into_iter().next() else {
                return Ok(Err(format!("no connection's socket has the cookie {cookie}")));
            };
            if self.watches.0.len() >= record::WATCHES {
                return Ok(Err(format!(
                    "{} connections are watched already; one that nobody asks about for {} s makes room",
                    record::WATCHES,
                    KEEP.as_secs()
                )));
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
