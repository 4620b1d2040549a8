//! One metric as it is sent, in whichever format: its samples, one after the other.

use std::mem;

use model::{
    histogram::{Histogram, Scale},
    metrics::Kind,
};

use super::{
    exemplars::Exemplar,
    protobuf,
    text::{self, Value},
};

/// What an answer is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
    /// `io.prometheus.client.MetricFamily`, each after its length.
    Protobuf,
}

/// Which buckets histograms have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// Classic ones; else only that of infinity, which a text format cannot be without.
    pub(crate) classic: bool,
    /// Two classic ones to the octave, where as many are counted.
    pub(crate) half_octaves: bool,
    /// Native ones, where the format has them.
    pub(crate) native: bool,
}

impl Buckets {
    /// Inclusive upper bounds of the classic ones; the last is infinite.
    fn bounds(self, scale: &Scale) -> Vec<f64> {
        match self {
            Self { classic: false, .. } => vec![f64::INFINITY],
            Self { half_octaves: true, .. } => {
                scale.bounds_seconds().into_iter().chain([f64::INFINITY]).collect()
            }
            Self { .. } => scale.octaves_seconds(),
        }
    }

    /// What each of these holds.
    fn counts(self, histogram: &Histogram) -> Vec<u64> {
        match self {
            Self { classic: false, .. } => vec![histogram.count()],
            Self { half_octaves: true, .. } => histogram.counts().to_vec(),
            Self { .. } => histogram.octaves().collect(),
        }
    }

    /// How many series a histogram is as text: its classic buckets, sum and count.
    pub(super) fn series(self, histogram: &Histogram) -> usize {
        2 + match self {
            Self { classic: false, .. } => 1,
            Self { half_octaves: true, .. } => histogram.counts().len(),
            Self { .. } => histogram.octaves().count(),
        }
    }
}

/// Labels as each format has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSet {
    text: String,
    protobuf: Vec<u8>,
}

impl LabelSet {
    pub(crate) fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        Self { text: text::labels(pairs.clone()), protobuf: protobuf::labels(pairs) }
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// What the samples of one series have in common, whoever's they are.
#[derive(Debug)]
pub(super) struct Line {
    text: text::Line,
    protobuf: Vec<u8>,
}

impl Line {
    /// A series of `name`, with labels beside the owner's.
    pub(super) fn new<'a>(name: &str, own: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        Self { text: text::Line::new(name, &text::labels(own.clone())), protobuf: protobuf::labels(own) }
    }
}

/// What the histograms of one metric have in common.
#[derive(Debug)]
pub(super) struct HistogramLines {
    text: text::HistogramLines,
    bounds: Vec<f64>,
    buckets: Buckets,
}

impl HistogramLines {
    pub(super) fn new(name: &str, scale: &Scale, buckets: Buckets) -> Self {
        let bounds = buckets.bounds(scale);
        Self { text: text::HistogramLines::new(name, &bounds), bounds, buckets }
    }
}

/// A metric while it is written.
#[derive(Debug)]
pub(super) enum Family {
    Text { text: String, has_exemplars: bool, comments: usize },
    Protobuf(protobuf::Family),
}

impl Family {
    pub(super) fn new(format: Format, name: &str, kind: Kind, help: &str) -> Self {
        let is_openmetrics = format == Format::OpenMetrics;
        if format == Format::Protobuf {
            return Self::Protobuf(protobuf::Family::new(name, kind, help));
        }
        let text = text::comments(is_openmetrics, name, kind, help);
        Self::Text { comments: text.len(), has_exemplars: is_openmetrics, text }
    }

    /// Adds a number of an owner.
    pub(super) fn number(&mut self, line: &Line, owner: &LabelSet, value: Value) {
        match self {
            Self::Text { text, .. } => line.text.write(text, &owner.text, value, None),
            Self::Protobuf(family) => family.number(&owner.protobuf, &line.protobuf, value),
        }
    }

    /// Adds a histogram of an owner, with an exemplar if there is one of what it has counted.
    pub(super) fn histogram(
        &mut self,
        lines: &HistogramLines,
        owner: &LabelSet,
        histogram: &Histogram,
        exemplar: Option<&Exemplar>,
    ) {
        let counts = lines.buckets.counts(histogram);
        let sum = histogram.sum_us() as f64 / 1e6;
        let exemplar = exemplar.and_then(|one| {
            let bucket = lines.bounds.iter().position(|bound| one.seconds() <= *bound)?;
            (counts[bucket] > 0).then_some((bucket, one))
        });
        match self {
            Self::Text { text, has_exemplars, .. } => {
                let exemplar = exemplar.filter(|_| *has_exemplars).map(|(bucket, one)| (bucket, one.text()));
                let exemplar = exemplar.as_ref().map(|(bucket, text)| (*bucket, text.as_str()));
                lines.text.write(text, &owner.text, &counts, sum, exemplar);
            }
            Self::Protobuf(family) => {
                let exemplar = exemplar.map(|(bucket, one)| (bucket, one.protobuf()));
                let mut message = protobuf::Distribution {
                    sample_count: Some(histogram.count()),
                    sample_sum: Some(sum),
                    bucket: protobuf::classic(&counts, &lines.bounds, exemplar),
                    ..protobuf::Distribution::default()
                };
                if lines.buckets.native {
                    protobuf::native(&mut message, histogram);
                }
                family.histogram(&owner.protobuf, message);
            }
        }
    }

    /// What there is so far, if that are samples and they are so long; the rest follows. Only text has pieces.
    pub(super) fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        match self {
            Self::Text { text, comments, .. } if text.len() >= length + *comments => {
                *comments = 0;
                Some(mem::take(text).into_bytes())
            }
            _ => None,
        }
    }

    /// All of it, or what was not taken; nothing without a sample.
    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Self::Text { text, comments, .. } if text.len() > comments => text.into_bytes(),
            Self::Text { .. } => Vec::new(),
            Self::Protobuf(family) => family.finish(),
        }
    }
}
