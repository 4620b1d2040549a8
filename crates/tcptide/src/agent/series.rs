//! From the totals of cgroups to the series of containers.
//!
//! Several cgroups may have one set of labels: a container and what it nests, or a container that was removed and one
//! that came after it under the same name. A counter must not fall when the first of them goes, or Prometheus would take
//! that for a restart and count the other twice: what a removed cgroup had is kept as long as its labels live.
//!
//! Not every container has series of its own: there may be no room ([`Budget`]), or they are not wanted. Those of the others
//! are added up as `~other` ([`Ledger`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    container::Container,
    filter::{List, Pattern},
    metrics::{METRICS, Reading},
    record::{CGROUP_OTHER, CGROUP_UNATTRIBUTED, Totals},
};

use super::{
    budget::{Budget, Candidate, Claim, for_newcomers},
    ledger::{Ledger, add},
    packed::Packed,
};
use crate::identity::Directory;

/// The container that all are which have no series of their own.
pub(super) const OTHER: &str = "~other";

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

/// Which containers may have series of their own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Only these.
    pub(crate) include: List<Pattern>,
    /// Not these.
    pub(crate) exclude: List<Pattern>,
    /// And only those that were seen for so long, or were there when somebody looked first.
    pub(crate) min_age: Duration,
}

impl Selection {
    fn wants(&self, labels: &Labels) -> bool {
        let is_like = |pattern: &Pattern| pattern.matches(&labels.container);
        self.include.matches(is_like) && (self.exclude.is_empty() || !self.exclude.matches(is_like))
    }
}

/// How much room there is for series.
pub(crate) struct Room<'a> {
    /// For those of all containers.
    pub(crate) series: usize,
    /// As much as `~other` may take of it.
    pub(crate) other: usize,
    /// How many those are of one set of labels: of these readings together, and so many cgroups.
    pub(crate) count: &'a dyn Fn(&[&[Reading]], usize) -> usize,
}

/// Series that are in `~other` instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Folded {
    /// For want of room.
    pub(crate) no_room: u64,
    /// Because they are not among those wanted.
    pub(crate) not_wanted: u64,
    /// Because their containers are too young.
    pub(crate) too_young: u64,
    /// How many went there so far.
    pub(crate) ever: u64,
}

/// What is known of a cgroup.
struct Known {
    /// Whose totals they are, for as long as there are any: the directory may forget it sooner.
    owner: Arc<Container>,
    /// When it was seen first; `None`: it was there when somebody looked first.
    since: Option<Instant>,
}

/// A cgroup at one look.
struct Cgroup {
    id: u64,
    owner: Arc<Container>,
    readings: Vec<Reading>,
    segments: u64,
    open: u64,
}

/// What is remembered from scrape to scrape.
pub(crate) struct Series {
    grace: Duration,
    selection: Selection,
    /// Totals of cgroups that were forgotten, by the labels they went under.
    retired: BTreeMap<Labels, Vec<Reading>>,
    /// Since when a cgroup is gone.
    gone_since: HashMap<u64, Instant>,
    known: HashMap<u64, Known>,
    has_looked: bool,
    budget: Budget<Labels>,
    ledger: Ledger,
    /// What cgroups had counted at the last look.
    last: HashMap<u64, Packed>,
    samples: Arc<Vec<Sample>>,
    /// Those that are in `~other`.
    folded: BTreeSet<Labels>,
    folds: Folded,
}

impl Series {
    pub(crate) fn new(grace: Duration, selection: Selection) -> Self {
        Self {
            grace,
            selection,
            retired: BTreeMap::new(),
            gone_since: HashMap::new(),
            known: HashMap::new(),
            has_looked: false,
            budget: Budget::default(),
            ledger: Ledger::new(),
            last: HashMap::new(),
            samples: Arc::default(),
            folded: BTreeSet::new(),
            folds: Folded::default(),
        }
    }

    /// Other settings, from the next look on.
    pub(crate) fn change(&mut self, grace: Duration, selection: Selection) {
        (self.grace, self.selection) = (grace, selection);
    }

    /// Takes in what the kernel has counted. Returns the cgroups whose totals it may forget.
    pub(crate) fn update(
        &mut self,
        totals: Vec<(u64, Box<Totals>)>,
        directory: &Directory,
        walk: u32,
        room: &Room<'_>,
    ) -> Vec<u64> {
        let now = Instant::now();
        self.update_at(totals, |id| directory.resolve(id), |id| directory.is_live(id), walk, room, now)
    }

    fn update_at(
        &mut self,
        totals: Vec<(u64, Box<Totals>)>,
        resolve: impl Fn(u64) -> Arc<Container>,
        is_live: impl Fn(u64) -> bool,
        walk: u32,
        room: &Room<'_>,
        now: Instant,
    ) -> Vec<u64> {
        let mut all: BTreeMap<Labels, Vec<Cgroup>> = BTreeMap::new();
        let mut leaving = Vec::new();
        let mut of_kernel = None;
        self.ledger.begin();
        // Who still sends them has them.
        self.samples = Arc::default();
        for (id, totals) in totals {
            let readings = METRICS.iter().map(|metric| metric.read(&totals, walk)).collect();
            if id == CGROUP_OTHER {
                of_kernel = (*totals != Totals::default()).then_some(readings);
                continue;
            }
            let owner = self.owner(id, resolve(id), now);
            if self.is_over(id, &totals, walk, &is_live, now) {
                leaving.push((id, labels(&owner), readings));
                continue;
            }
            let open =
                if totals.walk == walk { totals.connections.iter().copied().map(u64::from).sum() } else { 0 };
            let segments = totals.sent_segments + totals.received_segments;
            all.entry(labels(&owner)).or_default().push(Cgroup { id, owner, readings, segments, open });
        }
        let forgotten: Vec<_> = leaving.iter().map(|(id, ..)| *id).collect();
        for (id, labels, readings) in leaving {
            let own = self.ledger.end(id, readings);
            if all.contains_key(&labels) && !own.is_empty() {
                merge(self.retired.entry(labels).or_default(), own);
            }
        }
        // With the last cgroup of its labels the series ends.
        self.retired.retain(|labels, _| all.contains_key(labels));
        for id in &forgotten {
            self.gone_since.remove(id);
            self.known.remove(id);
        }
        self.decide(&all, of_kernel.is_some(), room, now);
        let now = all.values().flatten().map(|one| (one.id, Packed::of(one.readings.iter().enumerate())));
        let now = now.collect();
        self.take(all, of_kernel);
        self.last = now;
        self.has_looked = true;
        forgotten
    }

    /// Decides who has series of their own.
    fn decide(
        &mut self,
        all: &BTreeMap<Labels, Vec<Cgroup>>,
        has_other: bool,
        room: &Room<'_>,
        now: Instant,
    ) {
        let candidates: Vec<_> =
            all.iter().map(|(labels, cgroups)| self.candidate(labels, cgroups, room, now)).collect();
        let wanted: usize = candidates.iter().map(|one| one.series).sum();
        let is_other_there = has_other
            || self.ledger.has_other()
            || wanted > for_newcomers(room.series)
            || candidates.iter().any(|one| one.claim == Claim::Never);
        let left = if is_other_there { room.series.saturating_sub(room.other) } else { room.series };
        self.budget.decide(&candidates, left, now);
        let mut folds = Folded { ever: self.folds.ever, ..Folded::default() };
        let mut folded = BTreeSet::new();
        for one in candidates.into_iter().filter(|one| !self.budget.has_own(&one.key)) {
            let series = one.series as u64;
            match one.claim {
                Claim::Never if self.selection.wants(&one.key) => folds.too_young += series,
                Claim::Never => folds.not_wanted += series,
                Claim::ByActivity | Claim::Always => folds.no_room += series,
            }
            if !self.folded.contains(&one.key) {
                folds.ever += series;
            }
            folded.insert(one.key);
        }
        (self.folds, self.folded) = (folds, folded);
    }

    fn candidate(
        &self,
        labels: &Labels,
        cgroups: &[Cgroup],
        room: &Room<'_>,
        now: Instant,
    ) -> Candidate<Labels> {
        let retired = self.retired.get(labels);
        let readings: Vec<_> =
            cgroups.iter().map(|one| one.readings.as_slice()).chain(retired.map(Vec::as_slice)).collect();
        let is_old = |one: &Cgroup| {
            let since = self.known.get(&one.id).and_then(|known| known.since);
            since.is_none_or(|since| now.saturating_duration_since(since) >= self.selection.min_age)
        };
        let claim = if cgroups.iter().any(|one| one.id == CGROUP_UNATTRIBUTED) {
            Claim::Always
        } else if self.selection.wants(labels) && cgroups.iter().any(is_old) {
            Claim::ByActivity
        } else {
            Claim::Never
        };
        Candidate {
            key: labels.clone(),
            activity: cgroups.iter().map(|one| one.segments).sum(),
            open: cgroups.iter().map(|one| one.open).sum(),
            series: (room.count)(&readings, cgroups.len()),
            claim,
        }
    }

    /// Adds up what each has, and what is `~other`'s.
    fn take(&mut self, all: BTreeMap<Labels, Vec<Cgroup>>, of_kernel: Option<Vec<Reading>>) {
        let mut samples = Vec::new();
        for (labels, cgroups) in all {
            if !self.budget.has_own(&labels) {
                for one in cgroups {
                    let before = || self.last.get(&one.id).map(Packed::readings);
                    self.ledger.fold(one.id, one.readings, before);
                }
                continue;
            }
            let mut readings = self.retired.get(&labels).cloned().unwrap_or_default();
            let mut containers: Vec<Arc<Container>> = Vec::new();
            for one in cgroups {
                merge(&mut readings, self.ledger.own(one.id, one.readings));
                if !containers.iter().any(|known| known.cgroup_id == one.owner.cgroup_id) {
                    containers.push(one.owner);
                }
            }
            samples.push(Sample { labels, readings, containers });
        }
        if let Some(readings) = self.ledger.other(of_kernel) {
            let other = other();
            samples.push(Sample { labels: labels(&other), readings, containers: vec![other] });
        }
        self.samples = Arc::new(samples);
    }

    /// The owner as the directory knows it, or as it knew it.
    fn owner(&mut self, cgroup: u64, owner: Arc<Container>, now: Instant) -> Arc<Container> {
        let since = self.has_looked.then_some(now);
        match self.known.get_mut(&cgroup) {
            Some(known) if owner.cgroup_path.is_none() => return Arc::clone(&known.owner),
            Some(known) => known.owner = Arc::clone(&owner),
            None => drop(self.known.insert(cgroup, Known { owner: Arc::clone(&owner), since })),
        }
        owner
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
        if cgroup == CGROUP_UNATTRIBUTED || cgroup == CGROUP_OTHER || has_sockets || is_live(cgroup) {
            self.gone_since.remove(&cgroup);
            return false;
        }
        let since = *self.gone_since.entry(cgroup).or_insert(now);
        now.saturating_duration_since(since) >= self.grace
    }

    /// Every set of labels as of the last update, and whether it has series of its own.
    pub(crate) fn everyone(&self) -> BTreeMap<&Labels, bool> {
        let own = self.samples.iter().map(|sample| (&sample.labels, true));
        own.chain(self.folded.iter().map(|labels| (labels, false))).collect()
    }

    /// What is in `~other` as of the last update.
    pub(crate) fn folded(&self) -> &Folded {
        &self.folds
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

/// Whom those are told of that have none of their own.
pub(super) fn other() -> Arc<Container> {
    let mut container = Container::unknown(CGROUP_OTHER);
    OTHER.clone_into(&mut container.name);
    Arc::new(container)
}

fn merge(into: &mut Vec<Reading>, readings: Vec<Reading>) {
    if into.is_empty() {
        *into = readings;
        return;
    }
    add(into, &readings);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::budget::HOLD;

    const PLENTY: usize = 1000;
    /// As many series as each has in these tests.
    const EACH: usize = 10;

    /// For so many, and for ~other.
    fn room(places: usize) -> Room<'static> {
        Room { series: EACH + places * EACH + places / 2, other: EACH, count: &|_, _| EACH }
    }

    fn series(grace: Duration) -> Series {
        Series::new(grace, Selection::default())
    }

    fn sent(bytes: u64) -> Box<Totals> {
        Box::new(Totals { sent_bytes: bytes, ..Totals::default() })
    }

    fn container(id: u64, name: &str) -> Arc<Container> {
        let mut container = Container::unknown(id);
        name.clone_into(&mut container.name);
        // Else the directory has forgotten it.
        container.cgroup_path = Some(format!("/{id}"));
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

    fn named(all: &[(&str, u64)]) -> Vec<(String, u64)> {
        all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn a_container_outlives_its_cgroup_by_the_grace_period() {
        let mut series = series(Duration::from_secs(60));
        let start = Instant::now();
        let mut update = |live: bool, after: u64| {
            let now = start + Duration::from_secs(after);
            let totals = vec![(7, sent(10))];
            let forgotten =
                series.update_at(totals, |id| container(id, "web"), |_| live, 1, &room(PLENTY), now);
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
        let mut series = series(Duration::ZERO);
        let mut totals = sent(10);
        totals.connections[1] = 1;
        totals.walk = 5;
        let now = Instant::now();
        let mut update = |walk| {
            let totals = vec![(7, totals.clone())];
            series.update_at(totals, |id| container(id, "web"), |_| false, walk, &room(PLENTY), now)
        };
        assert_eq!(update(5), Vec::<u64>::new());
        // An older walk's count says nothing of now.
        assert_eq!(update(6), vec![7]);
    }

    #[test]
    fn a_counter_does_not_fall_when_a_namesake_goes() {
        let mut series = series(Duration::ZERO);
        let now = Instant::now();
        let both = vec![(7, sent(10)), (8, sent(5))];
        let web = |id| container(id, "web");
        let forgotten = series.update_at(both, web, |id| id == 8, 1, &room(PLENTY), now);
        assert_eq!((forgotten, shown(&series)), (vec![7], vec![("web".to_owned(), 15)]));
        let one = vec![(8, sent(6))];
        assert_eq!(series.update_at(one, web, |_| true, 2, &room(PLENTY), now), Vec::<u64>::new());
        assert_eq!(shown(&series), vec![("web".to_owned(), 16)]);
    }

    /// One that sent as many segments as bytes.
    fn busy(n: u64) -> Box<Totals> {
        Box::new(Totals { sent_bytes: n, sent_segments: n, ..Totals::default() })
    }

    fn by_number(id: u64) -> Arc<Container> {
        container(id, &format!("c{id}"))
    }

    #[test]
    fn the_busiest_have_series_of_their_own_and_what_moves_is_counted_once() {
        let mut series = series(Duration::ZERO);
        let mut now = Instant::now();
        let mut look = |counts: &[(u64, u64)], live: &dyn Fn(u64) -> bool, wait: Duration| {
            now += wait;
            let totals = counts.iter().map(|(id, n)| (*id, busy(*n))).collect();
            series.update_at(totals, by_number, live, 1, &room(2), now);
            (shown(&series), series.folded().clone())
        };
        let all = |_| true;
        // Two and ~other.
        let (first, folds) = look(&[(1, 100), (2, 50), (3, 7), (4, 5)], &all, Duration::ZERO);
        assert_eq!(first, named(&[("c1", 100), ("c2", 50), ("~other", 12)]));
        assert_eq!((folds.no_room, folds.ever), (20, 20));
        // The third became busier than the second by far: the second's series ends at 50, and what it sends from then on is
        // ~other's; the third's begins with what it sends from now on.
        let (second, folds) = look(&[(1, 100), (2, 51), (3, 500), (4, 5)], &all, HOLD);
        assert_eq!(second, named(&[("c1", 100), ("c3", 0), ("~other", 506)]));
        assert_eq!((folds.no_room, folds.ever), (20, 30));
        let (third, _) = look(&[(1, 100), (2, 52), (3, 507), (4, 5)], &all, Duration::ZERO);
        assert_eq!(third, named(&[("c1", 100), ("c3", 7), ("~other", 507)]));
        // One with series goes: the next one gets them, and goes on where its own had ended.
        let (fourth, _) = look(&[(1, 100), (2, 60), (3, 507), (4, 5)], &|id| id != 1, HOLD);
        assert_eq!(fourth, named(&[("c2", 50), ("c3", 7), ("~other", 515)]));
        let (fifth, _) = look(&[(2, 63), (3, 507), (4, 5)], &all, Duration::ZERO);
        assert_eq!(fifth, named(&[("c2", 53), ("c3", 7), ("~other", 515)]));
        // What is in ~other stays there when its container goes.
        let (sixth, folds) = look(&[(2, 63), (3, 507), (4, 6)], &|id| id != 4, Duration::ZERO);
        assert_eq!(sixth, named(&[("c2", 53), ("c3", 7), ("~other", 516)]));
        assert_eq!(folds.no_room, 0);
    }

    #[test]
    fn who_is_not_wanted_or_too_young_is_in_other() {
        let selection = Selection {
            include: "c*".parse().unwrap(),
            exclude: "c3*".parse().unwrap(),
            min_age: Duration::from_secs(60),
        };
        let mut series = Series::new(Duration::ZERO, selection);
        let start = Instant::now();
        let mut look = |counts: &[(u64, u64)], after| {
            let totals = counts.iter().map(|(id, n)| (*id, busy(*n))).collect();
            let name = |id| if id == 9 { container(id, "x") } else { by_number(id) };
            let now = start + Duration::from_secs(after);
            series.update_at(totals, name, |_| true, 1, &room(PLENTY), now);
            (shown(&series), series.folded().clone())
        };
        let (first, folds) = look(&[(1, 1), (3, 3), (9, 9)], 0);
        assert_eq!(first, named(&[("c1", 1), ("~other", 12)]));
        assert_eq!((folds.not_wanted, folds.too_young, folds.no_room), (20, 0, 0));
        let (second, folds) = look(&[(1, 1), (3, 3), (9, 9), (2, 2)], 10);
        assert_eq!((second, folds.too_young), (named(&[("c1", 1), ("~other", 14)]), 10));
        let (third, folds) = look(&[(1, 1), (3, 3), (9, 9), (2, 5)], 70);
        assert_eq!((third, folds.too_young), (named(&[("c1", 1), ("c2", 0), ("~other", 17)]), 0));
    }

    #[test]
    fn a_gauge_of_other_is_that_of_whom_it_has_now() {
        let mut series = series(Duration::ZERO);
        let open = |n| {
            let mut totals = Totals { walk: 1, ..Totals::default() };
            totals.connections[1] = n;
            Box::new(totals)
        };
        let at = METRICS.iter().position(|m| m.name == "tcptide_connections").unwrap();
        let mut look = |counts: &[(u64, u32)]| {
            let totals = counts.iter().map(|(id, n)| (*id, open(*n))).collect();
            series.update_at(totals, by_number, |_| true, 1, &room(1), Instant::now());
            let established = |sample: &Sample| match &sample.readings[at] {
                Reading::Each(states) => states[1],
                _ => panic!("by state"),
            };
            series.all().iter().map(established).collect::<Vec<_>>()
        };
        assert_eq!(look(&[(1, 9), (2, 3), (3, 4)]), [9, 7]);
        assert_eq!(look(&[(1, 9), (2, 1), (3, 4)]), [9, 5]);
    }

    #[test]
    fn a_name_that_is_learned_late_moves_nothing_out_of_other() {
        let mut series = series(Duration::ZERO);
        let now = Instant::now();
        let totals = |n| vec![(1, busy(100)), (2, busy(n)), (3, busy(0))];
        series.update_at(totals(7), by_number, |_| true, 1, &room(1), now);
        assert_eq!(shown(&series), named(&[("c1", 100), ("~other", 7)]));
        let late = |id| if id == 2 { container(2, "late") } else { by_number(id) };
        series.update_at(totals(8), late, |_| true, 2, &room(1), now);
        assert_eq!(shown(&series), named(&[("c1", 100), ("~other", 8)]));
        series.update_at(totals(9), late, |_| true, 3, &room(PLENTY), now);
        assert_eq!(shown(&series), named(&[("c1", 100), ("c3", 0), ("late", 0), ("~other", 9)]));
    }

    /// All counters, one after the other; of a histogram its buckets and its sum.
    fn counters(readings: &[Reading]) -> Vec<u64> {
        let counters =
            readings.iter().zip(METRICS).filter(|(_, metric)| metric.kind != model::metrics::Kind::Gauge);
        counters
            .flat_map(|(reading, _)| match reading {
                Reading::One(n) => vec![*n],
                Reading::Each(all) | Reading::EachSeen(all) | Reading::EachMicroseconds(all) => all.clone(),
                Reading::Distribution(h) => h.counts().iter().copied().chain([h.sum_us()]).collect(),
            })
            .collect()
    }

    fn sum(to: &mut Vec<u64>, more: &[u64]) {
        to.resize(more.len().max(to.len()), 0);
        to.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
    }

    /// What is shown, and what series had when they ended.
    #[derive(Default)]
    struct Reader {
        last: HashMap<String, Vec<u64>>,
        /// Those that are not there now, and may come again.
        paused: HashMap<String, Vec<u64>>,
        ended: Vec<u64>,
    }

    impl Reader {
        /// What goes on under another name.
        fn rename(&mut self, from: &str, to: &str) {
            for all in [&mut self.last, &mut self.paused] {
                if let Some(values) = all.remove(from) {
                    all.insert(to.to_owned(), values);
                }
            }
        }

        /// Reads all series as a Prometheus would; `gone` are the names of which nothing lives any more.
        fn read(&mut self, series: &Series, gone: &[String]) -> Result<Vec<u64>, String> {
            let now: HashMap<_, _> =
                series.all().iter().map(|s| (s.labels.container.clone(), counters(&s.readings))).collect();
            for (name, values) in std::mem::take(&mut self.last) {
                if !now.contains_key(&name) {
                    self.paused.insert(name, values);
                }
            }
            for name in gone {
                if let Some(values) = self.paused.remove(name) {
                    sum(&mut self.ended, &values);
                }
            }
            for (name, values) in &now {
                let before = self.last.get(name).cloned().or_else(|| self.paused.remove(name));
                let before = before.unwrap_or_default();
                if before.iter().zip(values).any(|(before, now)| now < before) {
                    return Err(format!("a counter of {name} fell"));
                }
            }
            self.last = now;
            let mut total = self.ended.clone();
            self.last.values().chain(self.paused.values()).for_each(|values| sum(&mut total, values));
            Ok(total)
        }
    }

    /// Below this place two cgroups have one name.
    const ALONE: u64 = 6;

    #[derive(Clone, Debug)]
    enum Step {
        /// So much more is counted, in this slot.
        Grow { cgroup: u64, more: u64, slot: usize },
        /// It goes, with what it has.
        End(u64),
        /// Its name is learned.
        Rename(u64),
        /// Somebody looks so many seconds later, when there is so much room.
        Look { seconds: u64, places: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let grow = (1..12_u64, 1..1000_u64, 0..20_usize);
        let step = prop_oneof![
            4 => grow.prop_map(|(cgroup, more, slot)| Step::Grow { cgroup, more, slot }),
            1 => (1..12_u64).prop_map(Step::End),
            1 => (1..12_u64).prop_map(Step::Rename),
            3 => (0..400_u64, 0..7_usize).prop_map(|(seconds, places)| Step::Look { seconds, places }),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Whatever appears, grows and ends in whatever order, and however much room there is: all series together have
        /// counted what they have without a limit, buckets and sums of histograms too; no counter falls; there are never more
        /// series than there is room for.
        #[test]
        fn nothing_is_lost_counted_twice_or_falls(steps in steps()) {
            let (mut limited, mut free) = (series(Duration::ZERO), series(Duration::ZERO));
            let (mut reader, mut of_free) = (Reader::default(), Reader::default());
            let mut now = Instant::now();
            // By place: the id of the cgroup that is there, its totals, its name.
            let mut there: BTreeMap<u64, (u64, Box<Totals>, String)> = BTreeMap::new();
            let mut ending: Vec<u64> = Vec::new();
            let mut next = 100;
            for step in steps.into_iter().chain([Step::Look { seconds: 1, places: 3 }]) {
                match step {
                    Step::Grow { cgroup, more, slot } => {
                        let (id, totals, _) = there.entry(cgroup).or_insert_with(|| {
                            next += 1;
                            (next, Box::default(), if cgroup < ALONE { format!("c{}", cgroup / 2) } else { format!("c{next}") })
                        });
                        if ending.contains(id) {
                            continue;
                        }
                        totals.sent_bytes += more;
                        totals.sent_segments += more;
                        totals.opened[1] += more;
                        totals.rtt.slots[slot] += more;
                        totals.rtt.sum_us += 3 * more;
                        totals.dropped_packets[slot] += more;
                    }
                    Step::End(place) => ending.extend(there.get(&place).map(|one| one.0)),
                    Step::Rename(place) => {
                        if let Some(one) = there.get_mut(&place).filter(|_| place >= ALONE) {
                            let from = std::mem::replace(&mut one.2, format!("d{}", one.0));
                            reader.rename(&from, &one.2);
                            of_free.rename(&from, &one.2);
                        }
                    }
                    Step::Look { seconds, places } => {
                        now += Duration::from_secs(seconds);
                        // Once with all, once without those that go.
                        for is_last in [false, true] {
                            let names: HashMap<u64, String> =
                                there.values().map(|(id, _, name)| (*id, name.clone())).collect();
                            let name = |id: u64| container(id, &names[&id]);
                            let live = |id: u64| !is_last || !ending.contains(&id);
                            let totals = || there.values().map(|(id, totals, _)| (*id, totals.clone())).collect();
                            limited.update_at(totals(), name, live, 1, &room(places), now);
                            free.update_at(totals(), name, live, 1, &room(PLENTY), now);
                            prop_assert!(limited.all().len() * EACH <= room(places).series);
                            if is_last {
                                there.retain(|_, (id, ..)| !ending.contains(id));
                                ending.clear();
                            }
                            let left: BTreeSet<&String> = there.values().map(|(_, _, name)| name).collect();
                            let known = reader.last.keys().chain(reader.paused.keys()).chain(of_free.last.keys());
                            let gone: Vec<String> =
                                known.filter(|name| *name != OTHER && !left.contains(name)).cloned().collect();
                            let with = reader.read(&limited, &gone);
                            let without = of_free.read(&free, &gone);
                            let (with, without) =
                                (with.map_err(TestCaseError::fail)?, without.map_err(TestCaseError::fail)?);
                            for (at, without) in without.iter().enumerate() {
                                prop_assert_eq!(with.get(at).copied().unwrap_or(0), *without, "counter {}", at);
                            }
                        }
                    }
                }
            }
        }
    }
}
