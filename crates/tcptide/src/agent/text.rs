//! Metrics as text: OpenMetrics 1.0 and the Prometheus text format 0.0.4.
//!
//! Written by hand for what a thousand containers need: hundreds of thousands of lines that share their beginnings and
//! their labels, which are made once. docs/decisions/0004 has what a library took for it.

use std::borrow::Cow;

use model::metrics::Kind;

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0: a counter's comments go without the `_total` of its samples, and the end is marked.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// What follows the last metric.
    pub(super) fn end(self) -> &'static str {
        match self {
            Self::OpenMetrics => "# EOF\n",
            Self::Prometheus => "",
        }
    }

    /// The comments before a metric's samples.
    pub(super) fn comments(self, name: &str, kind: Kind, help: &str) -> String {
        let (name, word) = match kind {
            Kind::Counter if self == Self::OpenMetrics => {
                (name.strip_suffix("_total").unwrap_or(name), "counter")
            }
            Kind::Counter => (name, "counter"),
            Kind::Gauge => (name, "gauge"),
            Kind::Histogram => (name, "histogram"),
        };
        format!("# HELP {name} {}\n# TYPE {name} {word}\n", help.replace('\\', r"\\").replace('\n', r"\n"))
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
}

/// Labels as they stand between the braces.
pub(super) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend([name, "=\"", &escape(value), "\""]);
    }
    text
}

fn escape(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n").into()
    } else {
        value.into()
    }
}

/// What the lines of one series have in common, whoever's they are.
#[derive(Debug)]
pub(super) struct Line {
    before: String,
    after: String,
}

impl Line {
    /// A series of `name`, with labels as [`labels`] makes them beside the owner's.
    pub(super) fn new(name: &str, own: &str) -> Self {
        let comma = if own.is_empty() { "" } else { "," };
        Self { before: format!("{name}{{"), after: format!("{comma}{own}}} ") }
    }

    /// Adds the line of an owner, who has some label.
    pub(super) fn write(&self, to: &mut String, owner: &str, value: Value) {
        to.push_str(&self.before);
        to.push_str(owner);
        to.push_str(&self.after);
        number(to, value);
        to.push('\n');
    }
}

/// Adds the line of a sample with these labels, if any.
pub(super) fn sample(to: &mut String, name: &str, labels: &str, value: Value) {
    if labels.is_empty() {
        to.extend([name, " "]);
    } else {
        to.extend([name, "{", labels, "} "]);
    }
    number(to, value);
    to.push('\n');
}

/// A histogram's lines.
#[derive(Debug)]
pub(super) struct HistogramLines {
    sum: Line,
    count: Line,
    buckets: Vec<Line>,
}

impl HistogramLines {
    /// With these inclusive upper bounds, of which the last is infinite.
    pub(super) fn new(name: &str, bounds: &[f64]) -> Self {
        let bucket = |bound: &f64| {
            let le = if bound.is_finite() {
                zmij::Buffer::new().format(*bound).to_owned()
            } else {
                "+Inf".to_owned()
            };
            Line::new(&format!("{name}_bucket"), &labels([("le", le.as_str())]))
        };
        Self {
            sum: Line::new(&format!("{name}_sum"), ""),
            count: Line::new(&format!("{name}_count"), ""),
            buckets: bounds.iter().map(bucket).collect(),
        }
    }

    /// Adds those of an owner. Counts are not cumulative.
    pub(super) fn write(&self, to: &mut String, owner: &str, counts: impl Iterator<Item = u64>, sum: f64) {
        let mut count = 0;
        for (line, n) in self.buckets.iter().zip(counts) {
            count += n;
            line.write(to, owner, Value::Whole(count));
        }
        self.sum.write(to, owner, Value::Real(sum));
        self.count.write(to, owner, Value::Whole(count));
    }
}

fn number(to: &mut String, value: Value) {
    match value {
        Value::Whole(n) => to.push_str(itoa::Buffer::new().format(n)),
        Value::Real(n) => to.push_str(zmij::Buffer::new().format(n)),
    }
}
