//! The slowest connections of late, one for each histogram of a container: a number in a bucket leads to a connection.
//!
//! They are taken from what edges are made of, the events and rows of connections: without `--edges` there are none, as the
//! kernel would have to tell of each connection for their sake alone.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use model::{
    connection::{LISTEN, connect_us, peer, rtt},
    metrics::METRICS,
    record::{
        self,
        event::{EVENT_CLOSE, EVENT_FAIL},
    },
};

use super::{
    protobuf,
    series::{Labels, OTHER},
    text,
};

/// For how long the slowest one is told of.
const KEPT: Duration = Duration::from_secs(120);
/// The metrics that have some.
const WITH: [&str; 3] =
    ["tcptide_rtt_seconds", "tcptide_connect_duration_seconds", "tcptide_connection_duration_seconds"];

/// One slow sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exemplar {
    pub(crate) us: u64,
    pub(crate) cookie: u64,
    pub(crate) peer: (IpAddr, u16),
    pub(crate) at: SystemTime,
}

/// One container's, in the order of [`WITH`].
pub(crate) type Slowest = [Option<Exemplar>; WITH.len()];

/// Those of all cgroups.
#[derive(Debug, Default)]
pub(crate) struct Exemplars {
    of: HashMap<u64, Slowest>,
}

impl Exemplars {
    /// A connection was met by a walk, or ended.
    pub(crate) fn see(&mut self, r: &record::Connection) {
        if r.flags & record::FLAG_LISTENER != 0 || r.state == LISTEN {
            return;
        }
        let event = usize::from(r.event);
        let (is_close, is_fail) = (event == EVENT_CLOSE, event == EVENT_FAIL);
        let round_trip = rtt(r).and_then(|rtt| rtt.last_us).map(u64::from);
        // As the kernel side counts them: connects when they are done, lives when they end.
        let connect = connect_us(r).filter(|_| is_close);
        let life = (is_close || is_fail) && r.opened_ns != 0;
        let life = life.then(|| r.time_ns.saturating_sub(r.opened_ns) / 1000);
        let now = SystemTime::now();
        for (at, us) in [round_trip, connect, life].into_iter().enumerate() {
            let Some(us) = us else { continue };
            let slowest = &mut self.of.entry(r.cgroup_id).or_default()[at];
            if slowest.is_none_or(|known| us >= known.us || is_old(&known, now)) {
                let peer = (peer(r).address, r.peer_port);
                *slowest = Some(Exemplar { us, cookie: r.cookie, peer, at: now });
            }
        }
    }

    /// The slowest of each set of labels that `owner` tells, or of all that are not `shown`.
    pub(crate) fn by_labels(
        &mut self,
        owner: impl Fn(u64) -> Labels,
        shown: impl Fn(&Labels) -> bool,
    ) -> HashMap<Labels, Slowest> {
        let now = SystemTime::now();
        let mut all: HashMap<Labels, Slowest> = HashMap::new();
        self.of.retain(|cgroup, slowest| {
            for one in slowest.iter_mut() {
                *one = one.filter(|one| !is_old(one, now));
            }
            if slowest.iter().all(Option::is_none) {
                return false;
            }
            let mut labels = owner(*cgroup);
            if !shown(&labels) {
                labels = Labels { container: OTHER.to_owned(), ..Labels::default() };
            }
            for (to, one) in all.entry(labels).or_default().iter_mut().zip(slowest) {
                *to = (*to).into_iter().chain(*one).max_by_key(|one| one.us);
            }
            true
        });
        all
    }
}

fn is_old(one: &Exemplar, now: SystemTime) -> bool {
    now.duration_since(one.at).is_ok_and(|age| age > KEPT)
}

/// Which of a container's [`Slowest`] a metric has, by its place in [`METRICS`].
pub(super) fn of_metric(at: usize) -> Option<usize> {
    WITH.iter().position(|name| METRICS.get(at).is_some_and(|metric| metric.name == *name))
}

impl Exemplar {
    pub(super) fn seconds(&self) -> f64 {
        self.us as f64 / 1e6
    }

    fn labels<'a>(cookie: &'a str, peer: &'a str) -> [(&'a str, &'a str); 2] {
        [("cookie", cookie), ("peer", peer)]
    }

    fn peer(&self) -> String {
        std::net::SocketAddr::from(self.peer).to_string()
    }

    /// As it stands behind a bucket in OpenMetrics.
    pub(super) fn text(&self) -> String {
        let (cookie, peer) = (self.cookie.to_string(), self.peer());
        let mut to = format!(" # {{{}}} ", text::labels(Self::labels(&cookie, &peer)));
        text::number(&mut to, text::Value::Real(self.seconds()));
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let _ = write!(to, " {}.{:03}", at.as_secs(), at.subsec_millis());
        to
    }

    pub(super) fn protobuf(&self) -> protobuf::Exemplar {
        let (cookie, peer) = (self.cookie.to_string(), self.peer());
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        protobuf::Exemplar {
            label: protobuf::pairs(Self::labels(&cookie, &peer)),
            value: Some(self.seconds()),
            timestamp: Some(protobuf::Timestamp {
                seconds: at.as_secs().cast_signed(),
                nanos: at.subsec_nanos().cast_signed(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(cookie: u64, cgroup_id: u64, took_us: u64) -> record::Connection {
        record::Connection {
            cookie,
            cgroup_id,
            event: EVENT_CLOSE as u8,
            direction: 1,
            opened_ns: 1000,
            established_ns: 1000 + took_us * 1000,
            time_ns: 1000 + 3 * took_us * 1000,
            peer_port: 80,
            ..record::Connection::default()
        }
    }

    fn labels(container: &str) -> Labels {
        Labels { container: container.to_owned(), ..Labels::default() }
    }

    #[test]
    fn the_slowest_is_kept_and_that_of_whom_is_not_shown_is_others() {
        let mut all = Exemplars::default();
        for (cookie, cgroup, us) in [(1, 7, 50), (2, 7, 900), (3, 7, 100), (4, 8, 20), (5, 9, 30)] {
            all.see(&ended(cookie, cgroup, us));
        }
        let by_labels = all.by_labels(|id| labels(&id.to_string()), |of| of.container == "7");
        let told = |of: &str| by_labels[&labels(of)].map(|one| one.map(|one| (one.cookie, one.us)));
        assert_eq!(told("7"), [None, Some((2, 900)), Some((2, 2700))]);
        assert_eq!(told("~other"), [None, Some((5, 30)), Some((5, 90))]);
        assert_eq!(by_labels.len(), 2);
    }

    #[test]
    fn one_that_is_old_makes_place() {
        let mut all = Exemplars::default();
        all.see(&ended(1, 7, 900));
        for one in all.of.get_mut(&7).unwrap().iter_mut().flatten() {
            one.at -= KEPT + Duration::from_secs(1);
        }
        all.see(&ended(2, 7, 10));
        let by_labels = all.by_labels(|_| labels("a"), |_| true);
        assert_eq!(by_labels[&labels("a")][1].map(|one| one.cookie), Some(2));
    }

    #[test]
    fn it_stands_behind_its_bucket() {
        let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let one = Exemplar { us: 1500, cookie: 77, peer: ("::1".parse().unwrap(), 80), at };
        assert_eq!(one.text(), r#" # {cookie="77",peer="[::1]:80"} 0.0015 1700000000.250"#);
    }
}
