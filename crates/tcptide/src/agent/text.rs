//! Metrics as text: OpenMetrics 1.0 and the Prometheus text format 0.0.4. OpenMetrics has no `_created` here: each would be one
//! more series, and says what the reader knows from the series' beginning.
//!
//! Written by hand for what a thousand containers need: hundreds of thousands of lines that share their beginnings and
//! their labels, which are made once. docs/decisions/0004 has what a library took for it.

use std::borrow::Cow;

use model::metrics::Kind;

/// The comments before a metric's samples. Those of OpenMetrics tell the unit, and go without the `_total` of a counter's samples.
pub(super) fn comments(is_openmetrics: bool, name: &str, kind: Kind, help: &str) -> String {
    let word = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let help = help.replace('\\', r"\\").replace('\n', r"\n");
    if !is_openmetrics {
        return format!("# HELP {name} {help}\n# TYPE {name} {word}\n");
    }
    let name = if kind == Kind::Counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
    let mut text = format!("# HELP {name} {}\n# TYPE {name} {word}\n", help.replace('"', r#"\""#));
    if let Some(unit) = ["seconds", "bytes"].iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
        text.extend(["# UNIT ", name, " ", unit, "\n"]);
    }
    text
}

/// What follows the last metric in OpenMetrics.
pub(super) const END: &str = "# EOF\n";

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

    /// Adds the line of an owner, with an exemplar, if there is one.
    pub(super) fn write(&self, to: &mut String, owner: &str, value: Value, exemplar: Option<&str>) {
        if owner.is_empty() && self.after == "} " {
            to.extend([self.before.trim_end_matches('{'), " "]);
        } else {
            to.push_str(&self.before);
            to.push_str(owner);
            to.push_str(if owner.is_empty() { self.after.trim_start_matches(',') } else { &self.after });
        }
        number(to, value);
        to.extend(exemplar);
        to.push('\n');
    }
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

    /// Adds those of an owner. Counts are not cumulative; an exemplar is that of a bucket.
    pub(super) fn write(
        &self,
        to: &mut String,
        owner: &str,
        counts: &[u64],
        sum: f64,
        exemplar: Option<(usize, &str)>,
    ) {
        let mut count = 0;
        for (at, (line, n)) in self.buckets.iter().zip(counts).enumerate() {
            count += n;
            let exemplar = exemplar.filter(|(bucket, _)| *bucket == at).map(|(_, text)| text);
            line.write(to, owner, Value::Whole(count), exemplar);
        }
        self.sum.write(to, owner, Value::Real(sum), None);
        self.count.write(to, owner, Value::Whole(count), None);
    }
}

/// Adds a value.
pub(super) fn number(to: &mut String, value: Value) {
    match value {
        Value::Whole(n) => to.push_str(itoa::Buffer::new().format(n)),
        Value::Real(n) => to.push_str(zmij::Buffer::new().format(n)),
    }
}
