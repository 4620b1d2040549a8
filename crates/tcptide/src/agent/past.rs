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
    metrics::{Kind, METRICS, Metric, Reading},
    record::Totals,
};

use super::{
    history::{self, Counts, History},
    process::thread_time,
};
use crate::answer::{
    history::{CountedThen, History as Told, Past as Answered, Span},
    totals::Metrics,
};

/// How much is remembered at most, bytes.
const MOST_BYTES: usize = 24 << 20;
/// What a container's step takes beside its numbers, bytes.
const OVERHEAD: usize = 64;
/// More numbers than any metric has.
const NUMBERS: u64 = 1 << 10;

/// What tells how active a container was.
const SEGMENTS: [&str; 2] = ["tcptide_sent_segments_total", "tcptide_received_segments_total"];

/// What a container counted within a step.
pub(super) type Added = history::Added<Container, Packed>;
/// A step of all containers.
pub(super) type Step = history::Step<Container, Packed>;

/// Metrics without those that are zero: for each number how far it is from the one before in the order of [`METRICS`], and
/// the number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

impl Packed {
    pub(super) fn of(metrics: &Metrics) -> Self {
        let mut all = Packing::default();
        for (at, reading) in metrics.places() {
            let first = at as u64 * NUMBERS;
            match reading {
                Reading::One(n) => all.put(first, *n),
                Reading::Each(numbers) | Reading::EachSeen(numbers) | Reading::EachMicroseconds(numbers) => {
                    (first..).zip(numbers).for_each(|(place, n)| all.put(place, *n));
                }
                Reading::Distribution(histogram) => {
                    all.put(first, histogram.sum_us());
                    (first + 1..).zip(histogram.counts()).for_each(|(place, n)| all.put(place, *n));
                }
            }
        }
        all.packed()
    }

    /// Where numbers are, and the numbers.
    fn numbers(&self) -> impl Iterator<Item = (u64, u64)> {
        let (mut bytes, mut place) = (&*self.0, 0_u64);
        std::iter::from_fn(move || {
            place = place.checked_add(read(&mut bytes)?)?;
            Some((place, read(&mut bytes)?))
        })
    }

    /// Those that are `shown` and of which anything was counted.
    pub(super) fn metrics(&self, shown: &[bool]) -> Metrics {
        let mut numbers: HashMap<usize, Vec<(usize, u64)>> = HashMap::new();
        for (place, n) in self.numbers() {
            let at = (place / NUMBERS) as usize;
            if shown.get(at) == Some(&true) {
                numbers.entry(at).or_default().push(((place % NUMBERS) as usize, n));
            }
        }
        Metrics::with(|at, zero| {
            let numbers = numbers.get(&at)?;
            let mut reading = zero.clone();
            set(&mut reading, numbers);
            Some(reading)
        })
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Numbers on their way into a [`Packed`].
#[derive(Default)]
struct Packing {
    bytes: Vec<u8>,
    last: u64,
}

impl Packing {
    /// No place comes before one that was put.
    fn put(&mut self, place: u64, n: u64) {
        if n > 0 {
            write(&mut self.bytes, place - self.last);
            write(&mut self.bytes, n);
            self.last = place;
        }
    }

    fn packed(self) -> Packed {
        Packed(self.bytes.into())
    }
}

impl Counts for Packed {
    /// What only goes up and down is as it was last.
    fn add(&mut self, later: &Self) {
        let is_gauge =
            |place| METRICS.get((place / NUMBERS) as usize).is_some_and(|metric| metric.kind == Kind::Gauge);
        let mut all = Packing::default();
        let mut earlier = self.numbers().filter(|(place, _)| !is_gauge(*place)).peekable();
        for (place, n) in later.numbers() {
            while let Some((place, n)) = earlier.next_if(|(before, _)| *before < place) {
                all.put(place, n);
            }
            let same = earlier.next_if(|(other, _)| *other == place);
            all.put(place, n.saturating_add(same.map_or(0, |(_, n)| n)));
        }
        earlier.for_each(|(place, n)| all.put(place, n));
        *self = all.packed();
    }

    fn size(&self) -> usize {
        OVERHEAD + self.0.len()
    }
}

fn set(reading: &mut Reading, numbers: &[(usize, u64)]) {
    match reading {
        Reading::One(one) => *one = numbers.iter().map(|(_, n)| n).sum(),
        Reading::Each(all) | Reading::EachSeen(all) | Reading::EachMicroseconds(all) => {
            for (number, n) in numbers {
                if let Some(place) = all.get_mut(*number) {
                    *place = *n;
                }
            }
        }
        Reading::Distribution(histogram) => {
            let mut counts = vec![0; histogram.scale().slots()];
            let mut sum_us = 0;
            for (number, n) in numbers {
                match number.checked_sub(1) {
                    None => sum_us = *n,
                    Some(slot) => {
                        if let Some(count) = counts.get_mut(slot) {
                            *count = *n;
                        }
                    }
                }
            }
            *histogram = model::histogram::Histogram::from_counts(histogram.scale(), counts, sum_us);
        }
    }
}

/// Seven bits a byte, the lowest first.
fn write(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// The history of all containers.
pub(super) struct Past {
    history: History<Container, Packed>,
    /// What cgroups had counted at the end of the last step.
    before: HashMap<u64, Box<Totals>>,
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
    /// which cgroups stand so, and of which these metrics are measured.
    pub(super) fn remember(
        &mut self,
        (began, taken): (Instant, Duration),
        walk: u32,
        totals: Vec<(u64, Box<Totals>)>,
        shown: &[bool],
        container: impl Fn(u64) -> Arc<Container>,
    ) {
        let none = Totals::default();
        let mut by_owner: HashMap<u64, (Arc<Container>, Metrics)> = HashMap::new();
        for (id, now) in &totals {
            let before = self.before.get(id);
            if before.is_some_and(|before| before == now) && now.walk != walk {
                continue;
            }
            let before = Metrics::of(before.map_or(&none, |before| before), walk, shown);
            let new = Metrics::of(now, walk, shown).since(&before);
            let container = container(*id);
            by_owner
                .entry(container.cgroup_id)
                .and_modify(|(_, sum)| sum.add(&new))
                .or_insert_with(|| (container, new));
        }
        let added = by_owner.into_iter().filter_map(|(of, (who, metrics))| {
            let counts = Packed::of(&metrics);
            (!counts.is_empty()).then_some(Added { of, who, counts })
        });
        let added = added.collect();
        self.history.push(began, thread_time().saturating_sub(taken), added);
        self.before = totals.into_iter().collect();
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
            let of = |name: &&str| if let Some(Reading::One(n)) = metrics.get(name) { *n } else { 0 };
            sum += SEGMENTS.iter().map(of).sum::<u64>();
            CountedThen { step: *step, metrics: metrics.only(|at, _| shown[at]) }
        });
        let steps = steps.collect();
        Some((sum, Answered { container, steps }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn container(id: u64) -> Arc<Container> {
        Arc::new(Container::unknown(id))
    }

    fn totals(sent_bytes: u64, slot: usize, walk: u32, connections: u64) -> Box<Totals> {
        let mut totals = Totals { sent_bytes, walk, ..Totals::default() };
        totals.rtt.slots[slot] = sent_bytes;
        totals.rtt.sum_us = 7 * sent_bytes;
        totals.limited_us[1] = sent_bytes;
        totals.connections[1] = connections as _;
        Box::new(totals)
    }

    fn everything() -> Vec<bool> {
        vec![true; METRICS.len()]
    }

    fn one(metrics: &Metrics, name: &str) -> u64 {
        match metrics.get(name) {
            Some(Reading::One(n)) => *n,
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
            past.remember((began, thread_time()), step, all, &everything(), container);
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
            let counted = Metrics::of(totals, 20, &everything());
            for (metric, reading) in counted.iter() {
                let is_zero = Packed::of(&counted.clone().only(|_, one| one.name == metric.name)).is_empty();
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
            let all = (1..20).map(|id| (id, totals(sent + id, 4, step, 3))).collect();
            past.remember((began, thread_time()), step, all, &everything(), container);
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

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(sent: u64, slot in 0_usize..40, state in 0_usize..8, n: u32) {
            let mut record = totals(sent >> 3, slot, 5, 0);
            record.connections[state] = n as _;
            let metrics = Metrics::of(&record, 5, &everything());
            let packed = Packed::of(&metrics);
            prop_assert_eq!(Packed::of(&packed.metrics(&everything())), packed.clone());
            prop_assert_eq!(one_of(&packed), sent >> 3);
            prop_assert_eq!(packed.metrics(&vec![false; METRICS.len()]).iter().count(), 0);
        }

        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = Packed(bytes.into()).metrics(&everything());
        }
    }
}
