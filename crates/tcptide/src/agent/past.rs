//! What containers counted in the last hour or so, step by step: the metrics of [`METRICS`], packed.
//!
//! A step needs a walk, and what each container has counted up to then; what is kept of it is what is new, and only the numbers
//! of which any is.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use model::{
    container::Container,
    metrics::{METRICS, Metric, Reading},
    record::Totals,
};

use super::{
    history::{self, Counts, History},
    packed::Packed,
    process::thread_time,
};
use crate::answer::history::{CountedThen, History as Told, Past as Answered, Span};

/// How much is remembered at most, bytes.
const MOST_BYTES: usize = 24 << 20;
/// What a container's step takes beside its numbers, bytes.
const OVERHEAD: usize = 64;

/// What tells how active a container was.
const SEGMENTS: [&str; 2] = ["tcptide_sent_segments_total", "tcptide_received_segments_total"];

/// What a container counted within a step.
pub(super) type Added = history::Added<Container, Packed>;
/// A step of all containers.
pub(super) type Step = history::Step<Container, Packed>;

/// The history of all containers.
pub(super) struct Past {
    history: History<Container, Packed>,
    /// What cgroups had counted at the end of the last step.
    before: HashMap<u64, Packed>,
}

impl Counts for Packed {
    fn add(&mut self, later: &Self) {
        *self = self.then(later);
    }

    fn size(&self) -> usize {
        OVERHEAD + self.len()
    }
}

impl Past {
    /// Remembers for so long, from now on.
    pub(super) fn new(keep: Duration) -> Self {
        Self { history: History::new(keep, MOST_BYTES, Instant::now()), before: HashMap::new() }
    }

    /// Whether it is time to end a step.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.history.is_due(now)
    }

    /// Ends the step that `began` to be ended, when this thread had taken so much time, by a walk with this number, after
    /// which cgroups stand so.
    pub(super) fn remember(
        &mut self,
        (began, taken): (Instant, Duration),
        walk: u32,
        totals: &[(u64, Box<Totals>)],
        container: impl Fn(u64) -> Arc<Container>,
    ) {
        let mut by_owner: HashMap<u64, Added> = HashMap::new();
        let mut before = HashMap::with_capacity(totals.len());
        for (id, now) in totals {
            let now = Packed::of_totals(now, walk);
            let counts = self.before.get(id).map_or_else(|| now.clone(), |before| now.since(before));
            before.insert(*id, now);
            if counts.is_empty() {
                continue;
            }
            let who = container(*id);
            match by_owner.get_mut(&who.cgroup_id) {
                Some(sum) => sum.counts = sum.counts.and(&counts),
                None => drop(by_owner.insert(who.cgroup_id, Added { of: who.cgroup_id, who, counts })),
            }
        }
        let added = by_owner.into_values().collect();
        self.history.push(began, thread_time().saturating_sub(taken), added);
        self.before = before;
    }

    /// The steps since a time of containers that are wanted, by what is known of them `now`, and when the last one ended.
    pub(super) fn since(
        &self,
        time: Instant,
        is_wanted: impl Fn(&Container) -> bool,
        now: impl Fn(&Arc<Container>) -> Arc<Container>,
    ) -> (Vec<Step>, Instant) {
        let (steps, ended) = self.history.steps(time);
        let mut known: HashMap<u64, Option<Arc<Container>>> = HashMap::new();
        let mut wanted = |one: &Added| {
            let who = known.entry(one.of).or_insert_with(|| Some(now(&one.who)).filter(|who| is_wanted(who)));
            Some(Added { of: one.of, who: Arc::clone(who.as_ref()?), counts: one.counts.clone() })
        };
        let of = |step: &Step| Step {
            began: step.began,
            added: step.added.iter().filter_map(&mut wanted).collect(),
        };
        (steps.map(of).collect(), ended)
    }
}

/// Steps as they are told: some together, so that each takes so long, and begins at the same times whenever it is asked for.
pub(super) fn told(all: &[Step], ended: Instant, step: Duration, limit: usize, shown: &[bool]) -> Told {
    let (now, clock) = (Instant::now(), Timestamp::now());
    let time = |instant| clock.checked_sub(now.saturating_duration_since(instant)).unwrap_or(clock);
    let ends = all.iter().skip(1).map(|step| step.began).chain([ended]);
    let step_ms = (step.as_millis() as i64).max(1);
    let mut steps: Vec<Span> = Vec::new();
    let mut last = None;
    let mut by_container: HashMap<u64, Sum> = HashMap::new();
    for (one, ended) in all.iter().zip(ends) {
        let seconds = ended.saturating_duration_since(one.began).as_secs_f64();
        // A step of its own begins where its middle is in another one: they are never exactly as long as they should be.
        let turn = time(one.began + (ended - one.began) / 2).as_millisecond().div_euclid(step_ms);
        match steps.last_mut() {
            Some(span) if last == Some(turn) => span.seconds += seconds,
            _ => steps.push(Span { began: time(one.began), seconds }),
        }
        last = Some(turn);
        for added in &one.added {
            by_container.entry(added.of).or_default().add(added, steps.len() - 1);
        }
    }
    let mut containers: Vec<_> =
        by_container.into_iter().filter_map(|(id, sum)| Some((id, sum.told(shown)?))).collect();
    containers.sort_by_key(|(id, (segments, _))| (Reverse(*segments), *id));
    let matched = containers.len() as u64;
    containers.truncate(limit);
    let measured = METRICS.iter().zip(shown).filter(|(_, shown)| **shown).map(|(metric, _)| metric.name);
    Told {
        measured: measured.collect(),
        steps,
        matched,
        containers: containers.into_iter().map(|(_, (_, past))| past).collect(),
    }
}

/// A container's steps.
#[derive(Default)]
struct Sum<'a> {
    who: Option<&'a Arc<Container>>,
    steps: Vec<(usize, Vec<&'a Packed>)>,
}

impl<'a> Sum<'a> {
    fn add(&mut self, added: &'a Added, step: usize) {
        self.who = Some(&added.who);
        match self.steps.last_mut() {
            Some((last, all)) if *last == step => all.push(&added.counts),
            _ => self.steps.push((step, vec![&added.counts])),
        }
    }

    /// With how many segments that was.
    fn told(&self, shown: &[bool]) -> Option<(u64, Answered)> {
        let container = Arc::clone(self.who?);
        let segments = |metric: &Metric| SEGMENTS.contains(&metric.name);
        let all: Vec<bool> =
            METRICS.iter().zip(shown).map(|(metric, shown)| *shown || segments(metric)).collect();
        let mut sum = 0;
        let steps = self.steps.iter().map(|(step, packed)| {
            let mut together = Packed::default();
            for packed in packed {
                together.add(packed);
            }
            let metrics = together.metrics(&all);
            let of = |name: &&str| if let Some(Reading::One(n)) = metrics.get(name) { n } else { 0 };
            sum += SEGMENTS.iter().map(of).sum::<u64>();
            CountedThen { step: *step, metrics: metrics.only(|at, _| shown[at]) }
        });
        let steps = steps.collect();
        Some((sum, Answered { container, steps }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::totals::{Layout, Metrics};

    fn container(id: u64) -> Arc<Container> {
        Arc::new(Container::unknown(id))
    }

    fn totals(sent_bytes: u64, slot: usize, walk: u32, connections: u64) -> Box<Totals> {
        let mut totals = Totals { sent_bytes, walk, ..Totals::default() };
        totals.rtt.slots[slot] = sent_bytes;
        totals.connections[1] = connections as _;
        Box::new(totals)
    }

    fn everything() -> Vec<bool> {
        vec![true; METRICS.len()]
    }

    fn one(metrics: &Metrics, name: &str) -> u64 {
        match metrics.get(name) {
            Some(Reading::One(n)) => n,
            Some(Reading::Each(numbers)) => numbers.iter().sum(),
            _ => 0,
        }
    }

    #[test]
    fn steps_add_up_to_the_totals() {
        let mut past = Past::new(Duration::from_secs(3600));
        let began = Instant::now();
        for step in 1..=20_u32 {
            let sent = u64::from(step) * 10;
            let all = vec![(1, totals(sent, 4, step, 3)), (2, totals(500, 5, 1, 0))];
            past.remember((began, thread_time()), step, &all, container);
        }
        let (steps, _) = past.since(began.checked_sub(Duration::from_secs(1)).unwrap(), |_| true, Arc::clone);
        let mut sums: HashMap<u64, Packed> = HashMap::new();
        for one in steps.iter().flat_map(|step| &step.added) {
            let mut sum = sums.remove(&one.of).unwrap_or_default();
            sum.add(&one.counts);
            sums.insert(one.of, sum);
        }
        let whole = |id, totals: &Totals| {
            let told = sums[&id].metrics(&everything());
            let counted = Metrics::of(totals, 20, &Layout::of(&everything()));
            for (metric, reading) in counted.iter() {
                let is_zero = reading.all().all(|n| n == 0);
                assert_eq!(told.get(metric.name), (!is_zero).then_some(reading), "{}", metric.name);
            }
        };
        whole(1, &totals(200, 4, 20, 3));
        whole(2, &totals(500, 5, 1, 0));
        // What counts nothing takes no room.
        assert!(steps[1..].iter().all(|step| step.added.len() == 1));
    }

    #[test]
    fn it_stays_within_its_bounds() {
        const MOST: usize = 64 << 10;
        let began = Instant::now();
        let history = History::new(Duration::from_secs(100_000), MOST, began);
        let mut past = Past { history, ..Past::new(Duration::ZERO) };
        for step in 1..=100_u32 {
            let sent = u64::from(step) * 1_000_003;
            let all: Vec<_> = (1..20).map(|id| (id, totals(sent + id, 4, step, 3))).collect();
            past.remember((began, thread_time()), step, &all, container);
        }
        let (steps, _) = past.since(began.checked_sub(Duration::from_secs(1)).unwrap(), |_| true, Arc::clone);
        let size: usize = steps.iter().flat_map(|step| &step.added).map(|one| one.counts.size()).sum();
        assert!(size <= MOST && size > MOST / 3 && steps.len() < 100, "{size}, {} steps", steps.len());
        let sent = |one: &Added| one_of(&one.counts);
        let sum: u64 = steps.iter().flat_map(|step| &step.added).filter(|one| one.of == 7).map(sent).sum();
        assert_eq!(sum, 100 * 1_000_003 + 7);
    }

    fn one_of(packed: &Packed) -> u64 {
        one(&packed.metrics(&everything()), "tcptide_sent_bytes_total")
    }
}
