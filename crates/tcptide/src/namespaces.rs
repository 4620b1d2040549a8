//! What the kernel has counted in each network namespace of this host, read from inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use model::snmp::Counters;
use probe::{in_network_namespaces, network_namespaces};

use crate::session::clock;

/// More than both files have, so that each is read at a go.
const LENGTH: usize = 16384;

/// When something was read: `CLOCK_MONOTONIC`, ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A namespace's counters at a moment.
#[derive(Debug)]
pub(crate) struct Reading {
    /// What it never shares with another; before 5.14 nobody tells.
    pub(crate) cookie: Option<u64>,
    pub(crate) span: Span,
    pub(crate) counters: Counters,
}

/// All namespaces at a moment, by inode number: a way to each, and what became of the reading of those that could be
/// entered. The others are gone, or not for us.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    pub(crate) paths: BTreeMap<u64, PathBuf>,
    pub(crate) of: BTreeMap<u64, Reading>,
    pub(crate) failed: BTreeMap<u64, io::Error>,
    /// Not entered, because there are too many.
    pub(crate) left_out: BTreeSet<u64>,
    pub(crate) took: Duration,
}

/// All there is of TCP.
pub(crate) const ALL: &[&str] = &["snmp", "netstat"];
/// What has no counterpart in any socket: by far the larger one, but a quarter less to read.
pub(crate) const EXTENSIONS: &[&str] = &["netstat"];

impl Readings {
    /// These files of all namespaces.
    pub(crate) fn take(files: &[&str]) -> anyhow::Result<Self> {
        Self::take_some(files, usize::MAX, &BTreeSet::new())
    }

    /// The same, of so many namespaces at most, first of all these.
    pub(crate) fn take_some(files: &[&str], most: usize, first: &BTreeSet<u64>) -> anyhow::Result<Self> {
        let began = Instant::now();
        let paths = network_namespaces();
        let (kept, left_out) = choose(&paths, most, first);
        let mut readings = Self { paths, left_out, ..Self::default() };
        for (netns, reading) in in_network_namespaces(&kept, |cookie| Reading::take(files, cookie))? {
            match reading {
                Ok(reading) => drop(readings.of.insert(netns, reading)),
                Err(error) => drop(readings.failed.insert(netns, error)),
            }
        }
        readings.took = began.elapsed();
        Ok(readings)
    }
}

impl Reading {
    /// What tells its namespace from all others, as [`probe::NamespaceOwner::id`].
    pub(crate) fn id(&self, netns: u64) -> u64 {
        self.cookie.unwrap_or(netns)
    }

    fn take(files: &[&str], cookie: Option<u64>) -> io::Result<Self> {
        let begin = clock().monotonic_ns;
        let mut text = String::with_capacity(LENGTH);
        for file in files {
            File::open(format!("/proc/thread-self/net/{file}"))?.read_to_string(&mut text)?;
        }
        let end = clock().monotonic_ns;
        Ok(Self { cookie, span: Span { begin, end }, counters: Counters::parse(&text) })
    }
}

/// So many at most, and the rest. Who was in stays in, or a series would come and go.
fn choose(
    all: &BTreeMap<u64, PathBuf>,
    most: usize,
    first: &BTreeSet<u64>,
) -> (BTreeMap<u64, PathBuf>, BTreeSet<u64>) {
    let mut ids: Vec<_> = all.keys().copied().collect();
    ids.sort_by_key(|id| (!first.contains(id), *id));
    let left_out = ids.split_off(most.min(ids.len())).into_iter().collect();
    let kept = ids.into_iter().filter_map(|id| Some((id, all.get(&id)?.clone()))).collect();
    (kept, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_read() {
        use std::os::unix::fs::MetadataExt as _;
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let readings = Readings::take(ALL).unwrap();
        assert!(readings.paths.contains_key(&own) && readings.left_out.is_empty());
        let has = |group, name| readings.of[&own].counters.get(group, name).is_some();
        assert!(has("Tcp", "ActiveOpens") && has("TcpExt", "ListenDrops"));
        assert!(readings.of[&own].span.begin <= readings.of[&own].span.end);
    }

    #[test]
    fn who_was_in_stays_in() {
        let all: BTreeMap<u64, PathBuf> = (1..=5).map(|id| (id, PathBuf::new())).collect();
        let chosen = |most, first: &[u64]| {
            let (kept, left_out) = choose(&all, most, &first.iter().copied().collect());
            (kept.into_keys().collect::<Vec<_>>(), left_out.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(chosen(2, &[]), (vec![1, 2], vec![3, 4, 5]));
        assert_eq!(chosen(2, &[4, 9]), (vec![1, 4], vec![2, 3, 5]));
        assert_eq!(chosen(9, &[4]), (vec![1, 2, 3, 4, 5], vec![]));
        assert_eq!(chosen(0, &[4]), (vec![], vec![1, 2, 3, 4, 5]));
    }
}
