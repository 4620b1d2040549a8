//! From the totals of cgroups to the series of containers.
//!
//! Several cgroups may have one set of labels: a container and what it nests, or a container that was removed and one
//! that came after it under the same name. A counter must not fall when the first of them goes, or Prometheus would take
//! that for a restart and count the other twice: what a removed cgroup had is kept as long as its labels live.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    container::Container,
    metrics::{METRICS, Reading},
    record::{CGROUP_OTHER, Totals},
};

use crate::identity::Directory;

/// The labels of a container's series.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Labels {
    pub(crate) container: String,
    pub(crate) pod: String,
    pub(crate) namespace: String,
}

/// All metrics of one set of labels, in the order of [`METRICS`].
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) labels: Labels,
    pub(crate) readings: Vec<Reading>,
    /// The containers behind it.
    pub(crate) containers: Vec<Arc<Container>>,
}

/// What is remembered from scrape to scrape.
pub(crate) struct Series {
    grace: Duration,
    /// Totals of cgroups that were forgotten, by the labels they went under.
    retired: BTreeMap<Labels, Vec<Reading>>,
    /// Since when a cgroup is gone.
    gone_since: HashMap<u64, Instant>,
    /// Whose totals they are, for as long as there are any: the directory may forget it sooner.
    owners: HashMap<u64, Arc<Container>>,
    samples: Arc<Vec<Sample>>,
}

impl Series {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            retired: BTreeMap::new(),
            gone_since: HashMap::new(),
            owners: HashMap::new(),
            samples: Arc::default(),
        }
    }

    /// From now on, also for those that are gone already.
    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Takes in what the kernel has counted. Returns the cgroups whose totals it may forget.
    pub(crate) fn update(
        &mut self,
        totals: &[(u64, Box<Totals>)],
        directory: &Directory,
        walk: u32,
    ) -> Vec<u64> {
        self.update_at(totals, |id| directory.resolve(id), |id| directory.is_live(id), walk, Instant::now())
    }

    fn update_at(
        &mut self,
        totals: &[(u64, Box<Totals>)],
        resolve: impl Fn(u64) -> Arc<Container>,
        is_live: impl Fn(u64) -> bool,
        walk: u32,
        now: Instant,
    ) -> Vec<u64> {
        let mut samples: BTreeMap<Labels, Sample> = BTreeMap::new();
        let mut forgotten = Vec::new();
        let mut leaving = Vec::new();
        for (cgroup, totals) in totals {
            if *cgroup == CGROUP_OTHER && **totals == Totals::default() {
                continue;
            }
            let container =
                if *cgroup == CGROUP_OTHER { other() } else { self.owner(*cgroup, resolve(*cgroup)) };
            let labels = labels(&container);
            let readings: Vec<_> = METRICS.iter().map(|metric| (metric.read)(totals, walk)).collect();
            if self.is_over(*cgroup, totals, walk, &is_live, now) {
                forgotten.push(*cgroup);
                leaving.push((labels, readings));
                continue;
            }
            let sample = samples.entry(labels.clone()).or_insert_with(|| Sample {
                labels,
                readings: Vec::new(),
                containers: Vec::new(),
            });
            merge(&mut sample.readings, readings);
            if !sample.containers.iter().any(|known| known.cgroup_id == container.cgroup_id) {
                sample.containers.push(container);
            }
        }
        for (labels, readings) in leaving {
            if samples.contains_key(&labels) {
                merge(self.retired.entry(labels).or_default(), readings);
            }
        }
        // With the last cgroup of its labels the series ends.
        self.retired.retain(|labels, _| samples.contains_key(labels));
        for (labels, retired) in &self.retired {
            if let Some(sample) = samples.get_mut(labels) {
                merge(&mut sample.readings, retired.clone());
            }
        }
        for cgroup in &forgotten {
            self.gone_since.remove(cgroup);
            self.owners.remove(cgroup);
        }
        self.samples = Arc::new(samples.into_values().collect());
        forgotten
    }

    /// The owner as the directory knows it, or as it knew it.
    fn owner(&mut self, cgroup: u64, now: Arc<Container>) -> Arc<Container> {
        if now.cgroup_path.is_none()
            && let Some(known) = self.owners.get(&cgroup)
        {
            return Arc::clone(known);
        }
        self.owners.insert(cgroup, Arc::clone(&now));
        now
    }

    /// Whether a cgroup has been gone for the grace period, with its last connection.
    fn is_over(
        &mut self,
        cgroup: u64,
        totals: &Totals,
        walk: u32,
        is_live: &impl Fn(u64) -> bool,
        now: Instant,
    ) -> bool {
        let has_sockets = totals.walk == walk && totals.connections.iter().any(|&n| n > 0);
        if cgroup == 0 || cgroup == CGROUP_OTHER || has_sockets || is_live(cgroup) {
            self.gone_since.remove(&cgroup);
            return false;
        }
        let since = *self.gone_since.entry(cgroup).or_insert(now);
        now.saturating_duration_since(since) >= self.grace
    }

    /// The series as of the last update.
    pub(crate) fn all(&self) -> Arc<Vec<Sample>> {
        Arc::clone(&self.samples)
    }
}

/// Those of a container.
pub(crate) fn labels(container: &Container) -> Labels {
    Labels {
        container: container.name.clone(),
        pod: container.pod.clone().unwrap_or_default(),
        namespace: container.namespace.clone().unwrap_or_default(),
    }
}

fn other() -> Arc<Container> {
    let mut container = Container::unknown(CGROUP_OTHER);
    "~other".clone_into(&mut container.name);
    Arc::new(container)
}

fn merge(into: &mut Vec<Reading>, readings: Vec<Reading>) {
    if into.is_empty() {
        *into = readings;
        return;
    }
    for (sum, reading) in into.iter_mut().zip(readings) {
        sum.add(&reading);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(bytes: u64) -> Box<Totals> {
        Box::new(Totals { sent_bytes: bytes, ..Totals::default() })
    }

    fn container(id: u64, name: &str) -> Arc<Container> {
        let mut container = Container::unknown(id);
        name.clone_into(&mut container.name);
        Arc::new(container)
    }

    /// `(name, sent bytes)` of all series.
    fn shown(series: &Series) -> Vec<(String, u64)> {
        let at = METRICS.iter().position(|m| m.name == "tcptide_sent_bytes_total").unwrap();
        let bytes = |sample: &Sample| match sample.readings[at] {
            Reading::One(n) => n,
            _ => panic!("a plain counter"),
        };
        series.all().iter().map(|s| (s.labels.container.clone(), bytes(s))).collect()
    }

    #[test]
    fn a_container_outlives_its_cgroup_by_the_grace_period() {
        let mut series = Series::new(Duration::from_secs(60));
        let start = Instant::now();
        let totals = [(7, sent(10))];
        let mut update = |live: bool, after: u64| {
            let now = start + Duration::from_secs(after);
            let forgotten = series.update_at(&totals, |id| container(id, "web"), |_| live, 1, now);
            (forgotten, shown(&series))
        };
        let web = vec![("web".to_owned(), 10)];
        assert_eq!(update(true, 0), (vec![], web.clone()));
        assert_eq!(update(false, 1), (vec![], web.clone()));
        assert_eq!(update(false, 60), (vec![], web));
        assert_eq!(update(false, 61), (vec![7], vec![]));
    }

    #[test]
    fn open_connections_keep_a_removed_container() {
        let mut series = Series::new(Duration::ZERO);
        let mut totals = sent(10);
        totals.connections[1] = 1;
        totals.walk = 5;
        let now = Instant::now();
        let totals = [(7, totals)];
        assert_eq!(
            series.update_at(&totals, |id| container(id, "web"), |_| false, 5, now),
            Vec::<u64>::new()
        );
        // An older walk's count says nothing of now.
        assert_eq!(series.update_at(&totals, |id| container(id, "web"), |_| false, 6, now), vec![7]);
    }

    #[test]
    fn a_counter_does_not_fall_when_a_namesake_goes() {
        let mut series = Series::new(Duration::ZERO);
        let now = Instant::now();
        let both = [(7, sent(10)), (8, sent(5))];
        let web = |id| container(id, "web");
        let forgotten = series.update_at(&both, web, |id| id == 8, 1, now);
        assert_eq!((forgotten, shown(&series)), (vec![7], vec![("web".to_owned(), 15)]));
        let one = [(8, sent(6))];
        assert_eq!(series.update_at(&one, web, |_| true, 2, now), Vec::<u64>::new());
        assert_eq!(shown(&series), vec![("web".to_owned(), 16)]);
    }
}
