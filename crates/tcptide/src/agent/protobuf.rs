//! Metrics as protobuf: `io.prometheus.client.MetricFamily`, each after its length, with classic and native histograms.
//!
//! The messages are those of Prometheus's metrics.proto, as far as they are used. A metric's labels are encoded once and
//! copied as bytes, as in the text format: fields of one message may stand one after the other in any pieces.

use model::{histogram::Histogram, metrics::Kind};
use prost::Message;

use super::text::Value;

/// `io.prometheus.client.LabelPair`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct LabelPair {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Labels {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
}

/// The beginning of a `MetricFamily`, before its metrics.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// `Gauge` and `Counter`, as far as they agree.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Number {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
}

/// The end of a `Metric`, after its labels.
#[derive(Clone, PartialEq, Message)]
struct Measured {
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Distribution>,
}

/// `Histogram`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Distribution {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    /// Classic ones.
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    pub(super) exemplar: Option<Exemplar>,
}

/// So many buckets in a row; the offset is from the end of the span before, or, of the first one, the index.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    pub(super) value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    pub(super) timestamp: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// The key of `MetricFamily.metric`: field 4, with a length.
const METRIC: u8 = 4 << 3 | 2;

/// Pairs as they stand in a message.
pub(super) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<LabelPair> {
    let pair = |(name, value): (&str, &str)| LabelPair { name: Some(name.into()), value: Some(value.into()) };
    pairs.into_iter().map(pair).collect()
}

/// Labels as they stand in a metric.
pub(super) fn labels<'a>(of: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    Labels { label: pairs(of) }.encode_to_vec()
}

/// A family while its metrics are added.
#[derive(Debug)]
pub(super) struct Family {
    kind: Kind,
    head: Vec<u8>,
    metrics: Vec<u8>,
}

impl Family {
    pub(super) fn new(name: &str, kind: Kind, help: &str) -> Self {
        let number = match kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        };
        let head = Head { name: Some(name.into()), help: Some(help.into()), kind: Some(number) };
        Self { kind, head: head.encode_to_vec(), metrics: Vec::new() }
    }

    /// Adds a number of an owner, with labels of both as [`labels`] makes them.
    pub(super) fn number(&mut self, owner: &[u8], own: &[u8], value: Value) {
        let value = match value {
            Value::Whole(n) => n as f64,
            Value::Real(n) => n,
        };
        let number = Some(Number { value: Some(value) });
        let measured = match self.kind {
            Kind::Counter => Measured { counter: number, ..Measured::default() },
            Kind::Gauge | Kind::Histogram => Measured { gauge: number, ..Measured::default() },
        };
        self.add(owner, own, &measured);
    }

    /// Adds a histogram of an owner.
    pub(super) fn histogram(&mut self, owner: &[u8], histogram: Distribution) {
        self.add(owner, &[], &Measured { histogram: Some(histogram), ..Measured::default() });
    }

    fn add(&mut self, owner: &[u8], own: &[u8], measured: &Measured) {
        self.metrics.push(METRIC);
        let length = owner.len() + own.len() + measured.encoded_len();
        // There is always room in a vector.
        let _ = prost::encode_length_delimiter(length, &mut self.metrics);
        self.metrics.extend_from_slice(owner);
        self.metrics.extend_from_slice(own);
        let _ = measured.encode(&mut self.metrics);
    }

    /// The message, after its length; nothing without a metric.
    pub(super) fn finish(self) -> Vec<u8> {
        let Self { head, metrics, .. } = self;
        let mut message = Vec::new();
        if !metrics.is_empty() {
            message.reserve(
                head.len() + metrics.len() + prost::length_delimiter_len(head.len() + metrics.len()),
            );
            let _ = prost::encode_length_delimiter(head.len() + metrics.len(), &mut message);
            message.extend(head);
            message.extend(metrics);
        }
        message
    }
}

/// Classic buckets with these counts, which are not cumulative, and inclusive upper bounds.
pub(super) fn classic(counts: &[u64], bounds: &[f64], exemplar: Option<(usize, Exemplar)>) -> Vec<Bucket> {
    let mut sum = 0;
    let mut buckets: Vec<_> = counts
        .iter()
        .zip(bounds)
        .map(|(n, bound)| {
            sum += n;
            Bucket { cumulative_count: Some(sum), upper_bound: Some(*bound), exemplar: None }
        })
        .collect();
    if let Some((at, exemplar)) = exemplar
        && let Some(bucket) = buckets.get_mut(at)
    {
        bucket.exemplar = Some(exemplar);
    }
    buckets
}

/// Adds a native histogram's buckets. Each slot is one of them.
pub(super) fn native(to: &mut Distribution, histogram: &Histogram) {
    let scale = histogram.scale();
    to.schema = i32::try_from(scale.schema()).ok();
    to.zero_threshold = scale.bounds_seconds().first().copied();
    let (mut end, mut last) = (0, 0);
    for (slot, &count) in histogram.counts().iter().enumerate() {
        let Some(index) = scale.native_index(slot) else {
            to.zero_count = Some(count);
            continue;
        };
        if count == 0 {
            continue;
        }
        match to.positive_span.last_mut() {
            Some(span) if end == index => span.length = span.length.map(|length| length + 1),
            _ => to.positive_span.push(BucketSpan { offset: Some(index - end), length: Some(1) }),
        }
        end = index + 1;
        let count = count.cast_signed();
        to.positive_delta.push(count - last);
        last = count;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use model::histogram::Scale;
    use proptest::prelude::*;

    use super::*;

    /// A whole `MetricFamily`, as readers have it.
    #[derive(Clone, PartialEq, Message)]
    pub(in crate::agent) struct MetricFamily {
        #[prost(string, tag = "1")]
        pub(in crate::agent) name: String,
        #[prost(string, tag = "2")]
        pub(in crate::agent) help: String,
        #[prost(int32, tag = "3")]
        pub(in crate::agent) kind: i32,
        #[prost(message, repeated, tag = "4")]
        pub(in crate::agent) metric: Vec<Metric>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(in crate::agent) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(in crate::agent) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(in crate::agent) gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub(in crate::agent) counter: Option<Number>,
        #[prost(message, optional, tag = "7")]
        pub(in crate::agent) histogram: Option<Distribution>,
    }

    /// All families of an answer.
    pub(in crate::agent) fn families(mut bytes: &[u8]) -> Vec<MetricFamily> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            all.push(MetricFamily::decode_length_delimited(&mut bytes).unwrap());
        }
        all
    }

    /// `(index, count)` of all native buckets, as spans and deltas tell them.
    fn buckets(histogram: &Distribution) -> Vec<(i32, u64)> {
        let (mut index, mut count) = (0, 0);
        let mut deltas = histogram.positive_delta.iter();
        let mut all = Vec::new();
        for span in &histogram.positive_span {
            index += span.offset.unwrap();
            for _ in 0..span.length.unwrap() {
                count += deltas.next().unwrap();
                all.push((index, u64::try_from(count).unwrap()));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        all
    }

    #[test]
    fn a_family_is_read_back() {
        let mut family = Family::new("a_total", Kind::Counter, "Help.");
        family.number(
            &labels([("container", "w\"eb"), ("pod", "")]),
            &labels([("state", "x")]),
            Value::Whole(7),
        );
        family.number(&[], &[], Value::Real(0.0));
        let mut bytes = family.finish();
        bytes.extend(Family::new("empty", Kind::Gauge, "").finish());
        let mut gauge = Family::new("b", Kind::Gauge, "");
        gauge.number(&[], &[], Value::Real(-1.5));
        bytes.extend(gauge.finish());
        let all = families(&bytes);
        assert_eq!(
            all.iter().map(|one| (one.name.as_str(), one.kind)).collect::<Vec<_>>(),
            [("a_total", 0), ("b", 1)]
        );
        let metric = &all[0].metric;
        assert_eq!(metric[0].label, pairs([("container", "w\"eb"), ("pod", ""), ("state", "x")]));
        assert_eq!(metric[0].counter, Some(Number { value: Some(7.0) }));
        assert_eq!(metric[1].counter, Some(Number { value: Some(0.0) }));
        assert_eq!(all[1].metric[0].gauge, Some(Number { value: Some(-1.5) }));
    }

    proptest! {
        /// By the definition of a native histogram: bucket `i` holds what is above 2^((i-1)/2^schema) s, up to and including
        /// 2^(i/2^schema) s, the zero bucket what is up to and including the threshold; together they are all.
        #[test]
        fn native_buckets_hold_what_was_recorded(
            scale in prop::sample::select(vec![&Scale::RTT, &Scale::CONNECT, &Scale::LIFETIME]),
            durations in prop::collection::vec((0..38_u32, any::<u64>()).prop_map(|(bits, v)| v & ((1 << bits) - 1)), 0..60),
        ) {
            let mut histogram = Histogram::new(scale);
            for us in &durations {
                histogram.record(*us);
            }
            let mut native = Distribution::default();
            super::native(&mut native, &histogram);
            let threshold = native.zero_threshold.unwrap();
            let seconds = |us: &u64| *us as f64 / 1e6;
            let zero = durations.iter().filter(|us| seconds(us) <= threshold).count();
            prop_assert_eq!(native.zero_count, Some(zero as u64));
            let bound = |index: i32| (f64::from(index) / f64::from(1 << native.schema.unwrap())).exp2();
            let last = *scale.bounds_seconds().last().unwrap();
            let buckets = buckets(&native);
            for (index, count) in &buckets {
                let is_open = bound(*index) > last * 1.1;
                let is_in = |us: &&u64| {
                    seconds(us) > bound(index - 1).max(threshold) && (is_open || seconds(us) <= bound(*index))
                };
                prop_assert_eq!(durations.iter().filter(is_in).count() as u64, *count, "bucket {}", index);
            }
            let sum: u64 = buckets.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(sum + zero as u64, durations.len() as u64);
        }
    }
}
