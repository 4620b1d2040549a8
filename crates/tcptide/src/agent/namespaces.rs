//! What the kernel counts by network namespace alone, and whose namespace it is.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use model::namespace::NAMESPACE_EVENTS;
use probe::{Monitor, NamespaceOwner};

use super::series::{Labels, labels};
use crate::{
    identity::Directory,
    namespaces::{EXTENSIONS, Reading, Readings},
};

/// A reading is good for so long: it enters every namespace.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// What happened in one namespace.
#[derive(Debug)]
pub(crate) struct NamespaceSample {
    pub(crate) netns: u64,
    /// Whose it is; empty where that is not one container or one pod.
    pub(crate) labels: Labels,
    pub(crate) events: Vec<(&'static str, u64)>,
}

/// Whose the sockets of a namespace are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Owner {
    /// None was seen.
    #[default]
    Nobody,
    /// One container's, or, where that is empty, one pod's.
    One(Labels),
    /// More than one's, or not known whose.
    Many,
}

/// A reading that is on its way, and the owners of sockets as they were when it began: of a namespace that was made since no
/// owner is taken for gone.
struct Coming {
    owners: Option<Vec<NamespaceOwner>>,
    readings: JoinHandle<anyhow::Result<Readings>>,
}

/// The readings, and what is remembered from one to the next.
pub(crate) struct Namespaces {
    most: usize,
    /// The last reading.
    readings: Readings,
    /// The namespaces in it, by [`Reading::id`].
    ids: HashSet<u64>,
    at: Option<Instant>,
    /// What was begun, or why it could not be.
    coming: Option<anyhow::Result<Coming>>,
    /// Whose each is, by [`Reading::id`]; `None` once that cannot be known any more.
    owners: Option<HashMap<u64, Owner>>,
    /// A living cgroup that has had a socket there, by the same.
    cgroups: HashMap<u64, u64>,
    /// Whose sockets were there of cgroups that are gone: by the same, with the inode number.
    past: HashMap<u64, (u64, Owner)>,
}

impl Owner {
    fn join(&mut self, other: Self) {
        *self = match (std::mem::take(self), other) {
            (Self::Nobody, owner) | (owner, Self::Nobody) => owner,
            (Self::One(a), Self::One(b)) if a == b => Self::One(a),
            (Self::One(a), Self::One(b))
                if !a.pod.is_empty() && (&a.pod, &a.namespace) == (&b.pod, &b.namespace) =>
            {
                Self::One(Labels { container: String::new(), ..a })
            }
            _ => Self::Many,
        };
    }

    fn labels(&self) -> Labels {
        match self {
            Self::One(labels) => labels.clone(),
            Self::Nobody | Self::Many => Labels::default(),
        }
    }
}

impl Namespaces {
    /// Of so many namespaces at most.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            readings: Readings::default(),
            ids: HashSet::new(),
            at: None,
            coming: None,
            owners: Some(HashMap::new()),
            cgroups: HashMap::new(),
            past: HashMap::new(),
        }
    }

    /// Begins to read all, unless that was done a moment ago.
    pub(crate) fn begin(&mut self, monitor: &Monitor) {
        if self.at.is_none_or(|at| at.elapsed() >= GOOD_FOR) && self.coming.is_none() {
            self.coming = Some(self.start(monitor));
        }
    }

    fn start(&self, monitor: &Monitor) -> anyhow::Result<Coming> {
        let owners = monitor.namespace_owners()?;
        let read = self.reader(EXTENSIONS);
        let reading = thread::Builder::new().name("namespaces".to_owned()).spawn(read);
        Ok(Coming { owners, readings: reading.context("cannot start a thread that reads namespaces")? })
    }

    /// Takes what was begun to be read, and reads once more if these were not there yet.
    pub(crate) fn update(
        &mut self,
        monitor: &Monitor,
        directory: &Directory,
        expected: impl IntoIterator<Item = u64>,
    ) -> anyhow::Result<()> {
        if let Some(coming) = self.coming.take() {
            self.take(coming?, monitor, directory)?;
        }
        if self.at.is_none() || !expected.into_iter().all(|id| self.ids.contains(&id)) {
            let coming = self.start(monitor)?;
            self.take(coming, monitor, directory)?;
        }
        Ok(())
    }

    fn take(&mut self, coming: Coming, monitor: &Monitor, directory: &Directory) -> anyhow::Result<()> {
        let Coming { owners, readings } = coming;
        let readings =
            readings.join().map_err(|_| anyhow::anyhow!("the thread that reads namespaces died"))?;
        self.readings = readings?;
        self.at = Some(Instant::now());
        self.ids = self.readings.of.iter().map(|(netns, reading)| reading.id(*netns)).collect();
        for (netns, error) in &self.readings.failed {
            tracing::debug!("cannot read the counters of network namespace {netns}: {error}");
        }
        let known_so_far = self.owners.is_some();
        self.owners = match owners {
            Some(owners) => Some(self.own(&owners, monitor, directory)?),
            None => None,
        };
        if known_so_far && self.owners.is_none() {
            tracing::warn!(
                "too many owners of sockets: no network namespace is said to be a container's from now on"
            );
        }
        Ok(())
    }

    /// These files of as many namespaces as are to be read.
    pub(crate) fn read(&self, files: &'static [&'static str]) -> anyhow::Result<Readings> {
        self.reader(files)()
    }

    fn reader(
        &self,
        files: &'static [&'static str],
    ) -> impl FnOnce() -> anyhow::Result<Readings> + Send + use<> {
        let (most, first) = (self.most, self.readings.of.keys().copied().collect::<BTreeSet<u64>>());
        move || Readings::take_some(files, most, &first)
    }

    /// Joins the owners of each namespace, and drops what is known of those that are gone.
    fn own(
        &mut self,
        owners: &[NamespaceOwner],
        monitor: &Monitor,
        directory: &Directory,
    ) -> anyhow::Result<HashMap<u64, Owner>> {
        let mut all: HashMap<u64, Owner> = HashMap::new();
        let readings = &self.readings;
        self.cgroups.clear();
        self.past.retain(|id, (netns, _)| is_there(readings, *netns, *id));
        for owner in owners {
            if !is_there(readings, owner.netns, owner.id) {
                monitor.forget_namespace_owner(owner)?;
                continue;
            }
            let container = directory.resolve(owner.cgroup);
            let is_known = container.cgroup_path.is_some();
            let one = if is_known { Owner::One(labels(&container)) } else { Owner::Many };
            if is_known && !directory.is_live(owner.cgroup) {
                // The directory will not know it for long.
                self.past.entry(owner.id).or_insert((owner.netns, Owner::Nobody)).1.join(one);
                monitor.forget_namespace_owner(owner)?;
            } else {
                all.entry(owner.id).or_default().join(one);
                self.cgroups.insert(owner.id, owner.cgroup);
            }
        }
        for (id, (_, past)) in &self.past {
            all.entry(*id).or_default().join(past.clone());
        }
        Ok(all)
    }

    /// A living cgroup of the one container that a namespace is, if it is one's.
    pub(crate) fn cgroup(&self, id: u64) -> Option<u64> {
        let owner = self.owners.as_ref()?.get(&id)?;
        let is_one = matches!(owner, Owner::One(labels) if !labels.container.is_empty());
        self.cgroups.get(&id).copied().filter(|_| is_one)
    }

    /// Whether this namespace was there at the last reading.
    pub(crate) fn has(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    /// What happened, as of the last reading.
    pub(crate) fn samples(&self) -> impl Iterator<Item = NamespaceSample> {
        self.readings.of.iter().map(|(netns, reading)| {
            let owner = self.owners.as_ref().and_then(|owners| owners.get(&reading.id(*netns)));
            let events = NAMESPACE_EVENTS.iter();
            NamespaceSample {
                netns: *netns,
                labels: owner.map(Owner::labels).unwrap_or_default(),
                events: events
                    .filter_map(|event| Some((event.name, event.seen(&reading.counters)?)))
                    .collect(),
            }
        })
    }

    /// How many namespaces were read, could not be, and were left out.
    pub(crate) fn counts(&self) -> [(&'static str, usize); 3] {
        let Readings { paths, of, left_out, .. } = &self.readings;
        let unreadable =
            paths.keys().filter(|netns| !of.contains_key(netns) && !left_out.contains(netns)).count();
        [("read", of.len()), ("unreadable", unreadable), ("left_out", left_out.len())]
    }

    /// How long the last reading took.
    pub(crate) fn took(&self) -> Duration {
        self.readings.took
    }
}

/// Whether this namespace may exist: its number may be another one's by now.
fn is_there(readings: &Readings, netns: u64, id: u64) -> bool {
    readings.paths.contains_key(&netns)
        && readings.of.get(&netns).is_none_or(|reading: &Reading| reading.id(netns) == id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(container: &str, pod: &str) -> Owner {
        let namespace = if pod.is_empty() { "" } else { "default" };
        let [container, pod, namespace] = [container, pod, namespace].map(str::to_owned);
        Owner::One(Labels { container, pod, namespace })
    }

    fn joined(all: impl IntoIterator<Item = Owner>) -> Owner {
        let mut sum = Owner::Nobody;
        all.into_iter().for_each(|owner| sum.join(owner));
        sum
    }

    #[test]
    fn one_container_one_pod_or_nobody() {
        assert_eq!(joined([]), Owner::Nobody);
        assert_eq!(joined([one("a", ""), one("a", "")]), one("a", ""));
        assert_eq!(joined([one("a", ""), one("b", "")]), Owner::Many);
        assert_eq!(joined([one("a", "p"), one("b", "p"), one("a", "p")]), one("", "p"));
        assert_eq!(joined([one("a", "p"), one("a", "q")]), Owner::Many);
        assert_eq!(joined([one("a", "p"), one("a", "")]), Owner::Many);
        assert_eq!(joined([one("a", "p"), Owner::Many]), Owner::Many);
    }

    fn any_owner() -> impl Strategy<Value = Owner> {
        prop_oneof![
            Just(Owner::Nobody),
            Just(Owner::Many),
            ("[ab]", "[pq]?").prop_map(|(container, pod)| one(&container, &pod)),
        ]
    }

    proptest! {
        /// Whoever is met first, and however often.
        #[test]
        fn the_order_does_not_matter(all in prop::collection::vec(any_owner(), 0..6), again in 0..6_usize) {
            let mut other = all.clone();
            other.reverse();
            other.extend(all.iter().cycle().take(again).cloned());
            prop_assert_eq!(joined(all), joined(other));
        }
    }
}
