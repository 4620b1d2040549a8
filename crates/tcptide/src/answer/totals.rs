//! What containers counted: the metrics of `docs/metrics.md`, as numbers.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, LazyLock},
};

use foldhash::fast::RandomState;
use jiff::Timestamp;
use model::{
    container::Container,
    histogram::Scale,
    metrics::{Label, METRICS, Metric, Reading},
    record::Totals as Record,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
    ser::SerializeMap as _,
};

/// A container and its metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Counted {
    pub(crate) container: Arc<Container>,
    /// Whether it is still there.
    pub(crate) live: bool,
    pub(crate) metrics: Metrics,
}

/// What an agent tells of them.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Totals {
    /// As of when.
    #[schemars(with = "String")]
    pub(crate) time: Timestamp,
    /// For how long the agent has counted, seconds.
    pub(crate) seconds: f64,
    pub(crate) containers: Vec<Counted>,
}

/// Metrics of a container; absent are those that are not measured, or not asked for.
///
/// As JSON it is an object by their names. A number is in the metric's unit; of a metric with labels there is an object by the
/// label's values, with two labels an object of such objects; a histogram is one as everywhere in JSON, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metrics {
    layout: Arc<Layout>,
    /// As [`Reading::all`] tells them.
    numbers: Box<[u64]>,
}

/// Which of [`METRICS`] there are, in their order, and where the numbers of each end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout(Box<[(usize, usize)]>);

/// Which of [`METRICS`] has a name.
static BY_NAME: LazyLock<HashMap<&str, usize, RandomState>> =
    LazyLock::new(|| METRICS.iter().enumerate().map(|(at, metric)| (metric.name, at)).collect());

/// Each of [`METRICS`] where nothing was counted.
pub(crate) fn zeros() -> &'static [Reading] {
    static ZEROS: LazyLock<Vec<Reading>> = LazyLock::new(|| {
        let nothing = Box::<Record>::default();
        METRICS.iter().map(|metric| metric.read(&nothing, 0)).collect()
    });
    &ZEROS
}

impl Layout {
    /// Those that are `shown`.
    pub(crate) fn of(shown: &[bool]) -> Arc<Self> {
        let mut end = 0;
        let shown = zeros().iter().zip(shown).enumerate().filter(|(_, (_, shown))| **shown);
        let ends = shown.map(|(place, (zero, _))| {
            end += zero.all().count();
            (place, end)
        });
        Arc::new(Self(ends.collect()))
    }

    fn range(&self, at: usize) -> Range<usize> {
        let before = at.checked_sub(1).map_or(0, |before| self.0[before].1);
        before..self.0[at].1
    }
}

impl Metrics {
    /// What was read.
    pub(crate) fn of(totals: &Record, walk: u32, layout: &Arc<Layout>) -> Self {
        let mut numbers = Vec::with_capacity(layout.0.last().map_or(0, |(_, end)| *end));
        for (place, _) in &layout.0 {
            (METRICS[*place].kept)(totals, walk).append_to(&mut numbers);
        }
        Self { layout: Arc::clone(layout), numbers: numbers.into() }
    }

    /// Where a metric stands.
    pub(crate) fn place(name: &str) -> Option<usize> {
        BY_NAME.get(name).copied()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Option<Reading> {
        let place = Self::place(name)?;
        Some(reading(place, self.numbers(place)?))
    }

    /// The numbers of one of them, as [`Reading::all`] tells them.
    pub(crate) fn numbers(&self, place: usize) -> Option<&[u64]> {
        let at = self.layout.0.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        self.numbers.get(self.layout.range(at))
    }

    /// All of them that there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static Metric, Reading)> {
        self.each().map(|(place, numbers)| (&METRICS[place], reading(place, numbers)))
    }

    fn each(&self) -> impl Iterator<Item = (usize, &[u64])> {
        let places = self.layout.0.iter().enumerate();
        places.map(|(at, (place, _))| (*place, &self.numbers[self.layout.range(at)]))
    }

    /// Without those that are not wanted.
    pub(crate) fn only(self, is_wanted: impl Fn(usize, &Metric) -> bool) -> Self {
        if self.layout.0.iter().all(|(place, _)| is_wanted(*place, &METRICS[*place])) {
            return self;
        }
        let wanted = self.each().filter(|(place, _)| is_wanted(*place, &METRICS[*place]));
        wanted.map(|(place, numbers)| (place, reading(place, numbers))).collect()
    }

    /// Adds the same ones of another cgroup.
    pub(crate) fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.layout, other.layout, "the same");
        for (mine, other) in self.numbers.iter_mut().zip(&other.numbers) {
            *mine = mine.saturating_add(*other);
        }
    }

    /// What came since an earlier look. What only goes up and down stays as it is.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut now = self.clone();
        for (at, (place, _)) in self.layout.0.iter().enumerate() {
            let is_counter = METRICS[*place].kind != model::metrics::Kind::Gauge;
            if let (true, Some(earlier)) = (is_counter, earlier.numbers(*place)) {
                for (now, earlier) in now.numbers[self.layout.range(at)].iter_mut().zip(earlier) {
                    *now = now.saturating_sub(*earlier);
                }
            }
        }
        now
    }
}

fn reading(place: usize, numbers: &[u64]) -> Reading {
    zeros()[place].with(numbers.iter().copied().enumerate())
}

/// From their places in [`METRICS`], which rise, and what was read.
impl FromIterator<(usize, Reading)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (usize, Reading)>>(readings: I) -> Self {
        let (mut layout, mut numbers) = (Vec::new(), Vec::new());
        for (place, reading) in readings {
            numbers.extend(reading.all());
            layout.push((place, numbers.len()));
        }
        Self { layout: Arc::new(Layout(layout.into())), numbers: numbers.into() }
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (metric, reading) in self.iter() {
            map.serialize_entry(metric.name, &Shown { metric, reading: &reading })?;
        }
        map.end()
    }
}

struct Shown<'a> {
    metric: &'static Metric,
    reading: &'a Reading,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.reading {
            Reading::One(n) => n.serialize(serializer),
            Reading::Distribution(histogram) => histogram.serialize(serializer),
            Reading::Each(numbers) => self.labelled(numbers, |_| true, |n| n, serializer),
            Reading::EachSeen(numbers) => self.labelled(numbers, |n| n > 0, |n| n, serializer),
            Reading::EachMicroseconds(numbers) => {
                self.labelled(numbers, |_| true, |us| us as f64 / 1e6, serializer)
            }
        }
    }
}

impl Shown<'_> {
    fn labelled<S: Serializer, N: Serialize>(
        &self,
        numbers: &[u64],
        is_shown: fn(u64) -> bool,
        number: fn(u64) -> N,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let by = |label, numbers| By { label, numbers, is_shown, number };
        match self.metric.labels {
            [] => serializer.serialize_map(Some(0))?.end(),
            [label] => by(label, numbers).serialize(serializer),
            [first, second, ..] => {
                let parts = first.values.iter().zip(numbers.chunks(second.values.len()));
                let all = parts.filter_map(|(value, numbers)| Some(((*value)?, by(second, numbers))));
                serializer.collect_map(all.filter(|(_, inner)| inner.shown().next().is_some()))
            }
        }
    }
}

/// Numbers by the values of a label.
struct By<'a, N> {
    label: &'static Label,
    numbers: &'a [u64],
    is_shown: fn(u64) -> bool,
    number: fn(u64) -> N,
}

impl<N> By<'_, N> {
    fn shown(&self) -> impl Iterator<Item = (&'static str, N)> {
        let all = self.label.values.iter().zip(self.numbers);
        all.filter_map(|(value, n)| Some(((*value)?, (self.number)(*n))).filter(|_| (self.is_shown)(*n)))
    }
}

impl<N: Serialize> Serialize for By<'_, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named;
        impl<'de> Visitor<'de> for Named {
            type Value = Metrics;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("metrics by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metrics, A::Error> {
                let mut all = Vec::new();
                while let Some(at) = map.next_key_seed(Key(Metrics::place))? {
                    match at {
                        Some(at) => all.push((at, map.next_value_seed(Read(at))?)),
                        // Of a newer agent.
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                // It may have them in another order.
                all.sort_by_key(|(at, _)| *at);
                all.dedup_by_key(|(at, _)| *at);
                Ok(all.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Named)
    }
}

/// Reads the value of the metric at a place.
struct Read(usize);

impl<'de> DeserializeSeed<'de> for Read {
    type Value = Reading;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Reading, D::Error> {
        let (mut reading, labels) = (zeros()[self.0].clone(), METRICS[self.0].labels);
        match &mut reading {
            Reading::One(n) => *n = u64::deserialize(deserializer)?,
            Reading::Distribution(histogram) => *histogram = distribution(deserializer, histogram.scale())?,
            Reading::Each(numbers) | Reading::EachSeen(numbers) => {
                Labelled { labels, numbers, number: |n: u64| n }.deserialize(deserializer)?;
            }
            Reading::EachMicroseconds(numbers) => {
                let number = |seconds: f64| (seconds * 1e6).round() as u64;
                Labelled { labels, numbers, number }.deserialize(deserializer)?;
            }
        }
        Ok(reading)
    }
}

/// Reads a histogram whose durations are cut into slots like that.
pub(super) fn distribution<'de, D: Deserializer<'de>>(
    from: D,
    scale: &'static Scale,
) -> Result<model::histogram::Histogram, D::Error> {
    #[derive(Deserialize)]
    struct Shape {
        sum_us: u64,
        buckets: Vec<Bucket>,
    }
    #[derive(Deserialize)]
    struct Bucket {
        le_us: Option<u64>,
        count: u64,
    }
    let Shape { sum_us, buckets } = Shape::deserialize(from)?;
    let mut counts = vec![0_u64; scale.slots()];
    for Bucket { le_us, count } in buckets {
        let slot = &mut counts[le_us.map_or(scale.slots() - 1, |us| scale.slot(us))];
        *slot = slot.saturating_add(count);
    }
    Ok(model::histogram::Histogram::from_counts(scale, counts, sum_us))
}

/// Reads an object of numbers by the values of a label, or of such objects by those of a second one.
struct Labelled<'a, N> {
    labels: &'static [Label],
    numbers: &'a mut [u64],
    number: fn(N) -> u64,
}

impl<'de, N: Deserialize<'de>> DeserializeSeed<'de> for Labelled<'_, N> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, N: Deserialize<'de>> Visitor<'de> for Labelled<'_, N> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers by the values of a label")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { labels, numbers, number } = self;
        let Some((first, rest)) = labels.split_first() else { return Ok(()) };
        let width = numbers.len() / first.values.len();
        let place = |value: &str| first.values.iter().position(|known| *known == Some(value));
        while let Some(at) = map.next_key_seed(Key(place))? {
            match at.and_then(|at| numbers.get_mut(at * width..(at + 1) * width)) {
                // Of a newer agent.
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(numbers) if !rest.is_empty() => {
                    map.next_value_seed(Labelled { labels: rest, numbers, number })?;
                }
                Some(numbers) => {
                    let n = number(map.next_value()?);
                    numbers.fill(n);
                }
            }
        }
        Ok(())
    }
}

/// Reads a name, and finds what it is of.
struct Key<F>(F);

impl<'de, T, F: FnOnce(&str) -> Option<T>> DeserializeSeed<'de> for Key<F> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for Key<F> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<T>, E> {
        Ok(self.0(name))
    }
}

impl JsonSchema for Metrics {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Metrics".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let histogram = generator.subschema_for::<Histogram>();
        let schema = |metric: &Metric| {
            if let Reading::Distribution(_) = metric.read(&Record::default(), 0) {
                return serde_json::json!({ "allOf": [histogram], "description": metric.help });
            }
            let mut schema = serde_json::json!({ "type": "number", "minimum": 0 });
            for _ in metric.labels {
                schema = serde_json::json!({ "type": "object", "additionalProperties": schema });
            }
            schema["description"] = metric.help.into();
            schema
        };
        let properties: serde_json::Map<_, _> =
            METRICS.iter().map(|metric| (metric.name.to_owned(), schema(metric))).collect();
        schemars::json_schema!({ "type": "object", "properties": properties })
    }
}

/// A distribution; buckets are not cumulative, and those that nothing is in may be absent.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "tells what a histogram looks like")]
pub(super) struct Histogram {
    count: u64,
    sum_us: u64,
    p50_us: Option<u64>,
    p90_us: Option<u64>,
    p99_us: Option<u64>,
    min_us: Option<u64>,
    max_us: Option<u64>,
    buckets: Vec<Bucket>,
}

/// Durations up to `le_us`, above those of the bucket before; `null`: without a bound.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "tells what a bucket looks like")]
struct Bucket {
    le_us: Option<u64>,
    count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> Record {
        let mut totals = Record { sent_bytes: 1 << 40, received_bytes: 7, walk: 3, ..Record::default() };
        totals.connections[1] = 5;
        totals.closed[0] = 9;
        totals.limited_us[1] = 1_500_001;
        totals.rtt.slots[4] = 2;
        totals.rtt.slots[9] = 1;
        totals.rtt.sum_us = 77;
        totals
    }

    #[test]
    fn what_is_written_is_read() {
        let all = Metrics::of(&numbered(), 3, &Layout::of(&[true; METRICS.len()]));
        let text = serde_json::to_string(&all).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["tcptide_sent_bytes_total"], 1_u64 << 40);
        assert_eq!(value["tcptide_connections"]["established"], 5);
        assert_eq!(value["tcptide_rtt_seconds"]["count"], 3);
        let read: Metrics = serde_json::from_str(&text).unwrap();
        assert_eq!(read, all);
        assert_eq!(value.as_object().unwrap().len(), METRICS.len());
    }

    #[test]
    fn what_was_not_asked_for_is_absent() {
        let shown: Vec<bool> =
            METRICS.iter().map(|metric| metric.name == "tcptide_sent_bytes_total").collect();
        let some = Metrics::of(&numbered(), 3, &Layout::of(&shown));
        assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"tcptide_sent_bytes_total":1099511627776}"#);
        let newer = r#"{"tcptide_sent_bytes_total":1099511627776,"tcptide_of_tomorrow":{"a":[1]}}"#;
        assert_eq!(serde_json::from_str::<Metrics>(newer).unwrap(), some);
        assert!(serde_json::from_str::<Metrics>(r#"{"tcptide_sent_bytes_total":"many"}"#).is_err());
    }

    #[test]
    fn what_came_since_is_the_difference_of_counters_only() {
        let shown = vec![true; METRICS.len()];
        let before = Metrics::of(&numbered(), 3, &Layout::of(&shown));
        let mut later = numbered();
        later.sent_bytes += 100;
        later.connections[1] = 2;
        later.rtt.slots[4] += 1;
        let since = Metrics::of(&later, 3, &Layout::of(&shown)).since(&before);
        assert!(matches!(since.get("tcptide_sent_bytes_total"), Some(Reading::One(100))));
        assert!(matches!(since.get("tcptide_connections"), Some(Reading::Each(states)) if states[1] == 2));
        let Some(Reading::Distribution(rtt)) = since.get("tcptide_rtt_seconds") else { panic!() };
        assert_eq!(rtt.count(), 1);
        let mut sum = before.clone();
        sum.add(&before);
        assert!(matches!(sum.get("tcptide_received_bytes_total"), Some(Reading::One(14))));
    }
}
