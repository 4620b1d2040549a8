//! One connection, watched: what the looks at it have shown so far.

use std::{collections::VecDeque, fmt::Write as _};

use jiff::{Timestamp, tz::TimeZone};
use model::{connection::Connection, container::sanitize, explain::explain, histogram::Histogram};

use super::{list::spark, numbers::CURVE};
use crate::{
    answer::watched::{Entered, Watched},
    command::{conns::process, endpoint, explain::words, far_end, owner},
    output::{
        bars::bars,
        style::{Palette, Role},
        units,
        writer::Screen,
    },
};

/// How long the two looks are apart that the verdict is of, at most: seconds.
const SPAN: f64 = 5.0;

pub(super) struct Watch {
    /// The oldest first.
    looks: VecDeque<Connection>,
    windows: VecDeque<Option<u64>>,
    rtts: VecDeque<Option<u64>>,
    /// All round trips that were sampled since then.
    round_trips: Option<(Timestamp, Histogram)>,
    states: Vec<Entered>,
    is_gone: bool,
}

/// A line of text, and what it means.
pub(super) type Line = (String, Option<Role>);

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            looks: VecDeque::new(),
            windows: VecDeque::new(),
            rtts: VecDeque::new(),
            round_trips: None,
            states: Vec::new(),
            is_gone: false,
        }
    }

    /// Takes in a look.
    pub(super) fn see(&mut self, watched: Watched) {
        self.round_trips = Some((watched.since, watched.rtt));
        self.states = watched.states;
        self.is_gone = watched.connection.is_none();
        let Some(one) = watched.connection else { return };
        let rtt = one.rtt.map(|rtt| u64::from(rtt.last_us.unwrap_or(rtt.srtt_us)));
        for (values, value) in [(&mut self.windows, Some(u64::from(one.cwnd))), (&mut self.rtts, rtt)] {
            values.push_back(value);
            if values.len() > CURVE {
                values.pop_front();
            }
        }
        let time = one.time;
        self.looks.push_back(one);
        let span = |looks: &VecDeque<Connection>| {
            looks.get(1).map_or(0.0, |second| time.duration_since(second.time).as_secs_f64())
        };
        while span(&self.looks) >= SPAN {
            self.looks.pop_front();
        }
    }

    /// All that is known, for a screen so wide.
    pub(super) fn lines(&self, width: usize, zone: &TimeZone) -> Vec<Line> {
        let Some(one) = self.looks.back() else { return vec![("looking".to_owned(), None)] };
        let mut lines: Vec<Line> = Self::about(one);
        lines.extend(self.verdicts(one));
        let plain = |text: String| (text, None);
        lines.push(plain(String::new()));
        let has_closed = self.states.last().is_some_and(|last| last.state == "close");
        let states: Vec<_> = self
            .states
            .iter()
            .map(|Entered { state, at }| {
                let at = at.map(|at| format!("{} ", units::clock(at, zone))).unwrap_or_default();
                format!("{at}{}", sanitize(state).to_uppercase())
            })
            // It may have ended before its end could be noted.
            .chain((self.is_gone && !has_closed).then(|| "gone".to_owned()))
            .collect();
        lines.push(plain(format!("state   {}", states.join("  "))));
        let room = width.saturating_sub(30).clamp(10, CURVE);
        for (name, values) in [("cwnd", &self.windows), ("rtt", &self.rtts)] {
            let all: Vec<_> = values.iter().copied().collect();
            let known = || all.iter().flatten().copied();
            let (Some(least), Some(most)) = (known().min(), known().max()) else { continue };
            let shown = |value| if name == "cwnd" { units::count(value) } else { units::duration(value) };
            let curve = spark(&all, room.min(all.len()));
            lines.push(plain(format!("{name:<6}  {curve}  {} to {}", shown(least), shown(most))));
        }
        lines.push(plain(String::new()));
        let screen = Screen { width: Some(width), palette: Palette::PLAIN };
        let Some((since, histogram)) = &self.round_trips else { return lines };
        let title = format!("Round trips since {}", units::clock(*since, zone));
        let text = bars(&title, histogram, &screen);
        let mut bars = text.lines();
        lines.extend(bars.next().map(|title| (title.to_owned(), Some(Role::Header))));
        lines.extend(bars.map(|line| plain(line.to_owned())));
        lines
    }

    fn about(one: &Connection) -> Vec<Line> {
        let plain = |text: String| (text, None);
        let before = one.before.unwrap_or_default();
        let who = one.process.as_ref().map(process).unwrap_or_default();
        let far = far_end(&one.peer).map(|name| format!(" ({name})")).unwrap_or_default();
        let mut path = String::new();
        if let Some(rtt) = one.rtt {
            let least = rtt.min_us.map(|us| format!("  min {}", units::duration(us.into())));
            // Writing into a string cannot fail.
            let _ = write!(path, "rtt {}{}", units::duration(rtt.srtt_us.into()), least.unwrap_or_default());
        }
        let _ = write!(path, "  cwnd {}  mss {}", one.cwnd, one.mss);
        if let Some(congestion) = &one.congestion {
            let _ = write!(path, "  {congestion}");
        }
        let sent = one.sent_bytes + before.sent_bytes;
        let received = one.received_bytes + before.received_bytes;
        let again = u64::from(one.retransmits.total) + u64::from(before.retransmits);
        let mut carried =
            format!("sent {}  received {}  retransmits {again}", units::bytes(sent), units::bytes(received));
        if let Some(buffered) = one.buffered {
            let _ = write!(
                carried,
                "  unread {}  unsent {}",
                units::bytes(buffered.unread.into()),
                units::bytes(buffered.unsent.into())
            );
        }
        let age = one.duration_us.map(|us| format!("  age {}", units::duration(us))).unwrap_or_default();
        vec![
            (format!("{} {who}", owner(&one.container)), Some(Role::Header)),
            plain(format!("{} to {}{far}", endpoint(&one.local), endpoint(&one.peer))),
            plain(format!("{}{age}  cookie {}", one.state.to_uppercase(), one.cookie)),
            plain(path.trim_start().to_owned()),
            plain(carried),
        ]
    }

    /// What `tcptide explain` would say of the last seconds.
    fn verdicts(&self, one: &Connection) -> Vec<Line> {
        let Some(first) = self.looks.front().filter(|first| first.time < one.time) else { return Vec::new() };
        let us = one.time.duration_since(first.time).as_micros();
        let verdicts = explain(Some(first), one, u64::try_from(us).unwrap_or(0));
        let line = |verdict: model::explain::Verdict| {
            let (words, role) = words(verdict.cause);
            (format!("{words}: {}", verdict.because), role)
        };
        verdicts.into_iter().map(line).collect()
    }
}
