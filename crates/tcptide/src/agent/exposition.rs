//! The metrics as text: OpenMetrics by prometheus-client, and the older Prometheus format made of that; metric by metric, as it is
//! sent.

use std::{fmt, sync::Arc, time::Duration};

use model::metrics::{self, Kind, METRICS, Metric, OWNER_LABELS, OwnMetric, Reading};
use probe::{ProgramStats, RunStats, Status, Walk};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, MetricEncoder, NoLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::MetricType,
    registry::Registry,
};

use super::{
    namespaces::NamespaceSample,
    reconciliation::Sums,
    series::{Labels, Sample},
};

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4: there a counter's name has its `_total` in the comments too, and nothing marks
    /// the end.
    Prometheus,
}

/// A scrape's answer: the numbers, of which [`Exposition::text`] makes text as it is sent. With a thousand containers the text
/// is ten times as long.
#[derive(Debug)]
pub(crate) struct Exposition {
    samples: Arc<Vec<Sample>>,
    about: About,
    /// All that is not of [`METRICS`].
    others: Vec<Family>,
}

/// What there is to say of network namespaces.
#[derive(Debug, Default)]
pub(crate) struct OfNamespaces {
    pub(crate) samples: Vec<NamespaceSample>,
    /// How many there are, by what became of the reading.
    pub(crate) counts: Vec<(&'static str, usize)>,
    pub(crate) took: Option<Duration>,
    /// What was compared, by namespace and counter.
    pub(crate) reconciled: Vec<(u64, String, Sums)>,
}

/// What the agent has to say of itself.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) walk: Walk,
    pub(crate) kernel: String,
    pub(crate) programs: Vec<ProgramStats>,
    /// For how long run times were measured.
    pub(crate) measured: Duration,
    pub(crate) connection_events_lost: u64,
    pub(crate) cgroup_events_lost: u64,
    pub(crate) storage_failures: u64,
    pub(crate) totals_failures: u64,
    pub(crate) unattributed: u64,
}

type LabelPairs = Vec<(&'static str, String)>;

#[derive(Debug)]
enum Value {
    Counter(u64),
    Seconds(f64),
    Gauge(f64),
    /// Buckets, count, and sum in microseconds.
    Distribution(Vec<(f64, u64)>, u64, u64),
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    series: Vec<(LabelPairs, Value)>,
}

impl Exposition {
    pub(crate) fn new(samples: Arc<Vec<Sample>>, namespaces: &OfNamespaces, about: About) -> Self {
        let mut others = of_namespaces(namespaces);
        others.extend(of_itself(&samples, &about));
        Self { samples, about, others }
    }

    /// The text, one metric after the other.
    pub(crate) fn text(self: Arc<Self>, format: Format) -> impl Iterator<Item = Result<String, fmt::Error>> {
        let families = METRICS.len() + self.others.len();
        let end = (format == Format::OpenMetrics).then(|| {
            let mut end = String::new();
            encode_eof(&mut end).map(|()| end)
        });
        (0..families).map(move |at| self.family(at, format)).chain(end)
    }

    fn family(self: &Arc<Self>, at: usize, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Part { of: Arc::clone(self), at }));
        let mut text = String::new();
        encode_registry(&mut text, &registry)?;
        // A comment without a sample says nothing.
        if text.lines().all(|line| line.starts_with('#')) {
            return Ok(String::new());
        }
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Prometheus => prometheus(text),
        })
    }

    /// Whether what feeds a metric of containers runs.
    fn has(&self, metric: &Metric) -> bool {
        let runs = |name: &str| {
            self.about.programs.iter().any(|p| p.program.name == name && p.status == Status::Attached)
        };
        runs(metric.program) && !metric.unless.is_some_and(runs)
    }
}

/// One metric: first those of [`METRICS`], then the others.
#[derive(Debug)]
struct Part {
    of: Arc<Exposition>,
    at: usize,
}

impl Collector for Part {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(metric) = METRICS.get(self.at) else {
            let family = self.of.others.get(self.at - METRICS.len());
            return family.map_or(Ok(()), |family| family.encode(&mut encoder));
        };
        if !self.of.has(metric) {
            return Ok(());
        }
        let mut family = describe(&mut encoder, metric.name, metric.help, metric.kind)?;
        for sample in self.of.samples.iter() {
            let Some(reading) = sample.readings.get(self.at) else { continue };
            readings(metric, &sample.labels, reading, &mut |labels, value| {
                write(&mut family.encode_family(&labels)?, value)
            })?;
        }
        Ok(())
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = describe(encoder, self.name, self.help, self.kind)?;
        for (labels, value) in &self.series {
            if labels.is_empty() {
                write(&mut metric, value)?;
            } else {
                write(&mut metric.encode_family(labels)?, value)?;
            }
        }
        Ok(())
    }
}

fn describe<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
    kind: Kind,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    // OpenMetrics names a counter without the _total of its samples; the encoder puts it there.
    let (name, kind) = match kind {
        Kind::Counter => (name.strip_suffix("_total").unwrap_or(name), MetricType::Counter),
        Kind::Gauge => (name, MetricType::Gauge),
        Kind::Histogram => (name, MetricType::Histogram),
    };
    encoder.encode_descriptor(name, help, None, kind)
}

type Each<'f> = dyn FnMut(Vec<(&'static str, &str)>, &Value) -> fmt::Result + 'f;

/// Hands over the series of one container.
fn readings(metric: &Metric, labels: &Labels, reading: &Reading, to: &mut Each<'_>) -> fmt::Result {
    let value =
        |n: u64| if metric.kind == Kind::Counter { Value::Counter(n) } else { Value::Gauge(n as f64) };
    match reading {
        Reading::One(n) => to(pairs(labels).into(), &value(*n)),
        Reading::Distribution(histogram) => to(
            pairs(labels).into(),
            &Value::Distribution(histogram.octaves(), histogram.count(), histogram.sum_us()),
        ),
        Reading::Each(numbers) => each(metric, labels, numbers, |n| Some(value(n)), to),
        Reading::EachSeen(numbers) => each(metric, labels, numbers, |n| (n > 0).then(|| value(n)), to),
        Reading::EachMicroseconds(times) => {
            each(metric, labels, times, |us| Some(Value::Seconds(us as f64 / 1e6)), to)
        }
    }
}

fn each(
    metric: &Metric,
    labels: &Labels,
    numbers: &[u64],
    value: impl Fn(u64) -> Option<Value>,
    to: &mut Each<'_>,
) -> fmt::Result {
    'numbers: for (at, value) in numbers.iter().enumerate().filter_map(|(at, &n)| Some((at, value(n)?))) {
        let mut pairs = Vec::from(pairs(labels));
        let mut rest = numbers.len();
        for label in metric.labels {
            rest /= label.values.len();
            // Some values cannot occur.
            let Some(value) = label.values.get(at / rest % label.values.len()).copied().flatten() else {
                continue 'numbers;
            };
            pairs.push((label.name, value));
        }
        to(pairs, &value)?;
    }
    Ok(())
}

fn pairs(labels: &Labels) -> [(&'static str, &str); 3] {
    let Labels { container, pod, namespace } = labels;
    let [a, b, c] = OWNER_LABELS;
    [(a, container), (b, pod), (c, namespace)]
}

fn owner(labels: &Labels) -> LabelPairs {
    pairs(labels).map(|(name, value)| (name, value.to_owned())).into()
}

fn of_namespaces(of: &OfNamespaces) -> Vec<Family> {
    let netns = |netns: u64| ("netns", netns.to_string());
    let events = of.samples.iter().flat_map(|sample| {
        sample.events.iter().map(move |(event, n)| {
            let mut pairs = vec![netns(sample.netns)];
            pairs.extend(owner(&sample.labels));
            pairs.push(("event", (*event).to_owned()));
            (pairs, Value::Counter(*n))
        })
    });
    let counts =
        of.counts.iter().map(|(status, n)| (vec![("status", (*status).to_owned())], Value::Gauge(*n as f64)));
    let took = of.took.map(|took| (Vec::new(), Value::Gauge(took.as_secs_f64())));
    let compared = |value: fn(&Sums) -> Option<Value>| {
        let all = of.reconciled.iter();
        all.filter_map(|(at, counter, sums)| {
            Some((vec![netns(*at), ("counter", counter.clone())], value(sums)?))
        })
        .collect()
    };
    [
        (&metrics::NAMESPACE_EVENTS_TOTAL, events.collect()),
        (&metrics::NAMESPACES, counts.collect()),
        (&metrics::NAMESPACES_SECONDS, took.into_iter().collect()),
        (&metrics::RECONCILE_KERNEL, compared(|sums| Some(Value::Counter(sums.kernel.shown())))),
        (&metrics::RECONCILE_COUNTED, compared(|sums| Some(Value::Counter(sums.counted.shown())))),
        (&metrics::RECONCILE_UNEXPLAINED, compared(|sums| Some(Value::Gauge(sums.unexplained? as f64)))),
    ]
    .into_iter()
    .map(family)
    .collect()
}

fn family((metric, series): (&OwnMetric, Vec<(LabelPairs, Value)>)) -> Family {
    let OwnMetric { name, kind, help, .. } = *metric;
    Family { name, kind, help, series }
}

fn of_itself(samples: &[Sample], about: &About) -> Vec<Family> {
    let program = |p: &ProgramStats| vec![("program", p.program.name.to_owned())];
    let runs = |value: fn(RunStats) -> Value| -> Vec<_> {
        about.programs.iter().filter_map(|p| p.run.map(|run| (program(p), value(run)))).collect()
    };
    let measured = |value| if about.measured.is_zero() { Vec::new() } else { runs(value) };
    let lost = |reason: &str, n| (vec![("reason", reason.to_owned())], Value::Counter(n));
    let info = samples.iter().flat_map(|sample| sample.containers.iter().map(move |c| (sample, c)));
    let info = info.map(|(sample, container)| {
        let mut pairs = owner(&sample.labels);
        pairs.extend([
            ("id", container.id.clone().unwrap_or_default()),
            ("runtime", container.runtime.map(|runtime| runtime.to_string()).unwrap_or_default()),
            ("image", container.image.clone().unwrap_or_default()),
            ("cgroup_id", container.cgroup_id.to_string()),
            ("cgroup_path", container.cgroup_path.clone().unwrap_or_default()),
        ]);
        (pairs, Value::Gauge(1.0))
    });
    let statuses = about.programs.iter().map(|p| {
        let mut pairs = program(p);
        pairs.push(("status", p.status.word().to_owned()));
        (pairs, Value::Gauge(1.0))
    });
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("kernel", about.kernel.clone())];
    // How many cgroups found no room is not known, only that there were some.
    let folded = if about.totals_failures == 0 { vec![(Vec::new(), Value::Gauge(0.0))] } else { Vec::new() };
    let one = |value| vec![(Vec::new(), value)];
    let seconds =
        |time: Duration| if time.is_zero() { Vec::new() } else { one(Value::Seconds(time.as_secs_f64())) };
    [
        (&metrics::CONTAINER_INFO, info.collect()),
        (&metrics::BUILD_INFO, vec![(build, Value::Gauge(1.0))]),
        (&metrics::PROGRAM_STATUS, statuses.collect()),
        (&metrics::PROGRAM_RUN_SECONDS, measured(|run| Value::Seconds(run.run_time_ns as f64 / 1e9))),
        (&metrics::PROGRAM_RUNS, measured(|run| Value::Counter(run.runs))),
        (&metrics::PROGRAM_MEASURED, seconds(about.measured)),
        (&metrics::PROGRAM_MISSES, runs(|run| Value::Counter(run.missed))),
        (
            &metrics::EVENTS_LOST,
            vec![
                lost("connection_buffer_full", about.connection_events_lost),
                lost("cgroup_buffer_full", about.cgroup_events_lost),
            ],
        ),
        (&metrics::STORAGE_FAILURES, one(Value::Counter(about.storage_failures))),
        (&metrics::TOTALS_FAILURES, one(Value::Counter(about.totals_failures))),
        (&metrics::UNATTRIBUTED, one(Value::Counter(about.unattributed))),
        (&metrics::FOLDED, folded),
        (&metrics::WALK_SECONDS, one(Value::Gauge(about.walk.took.as_secs_f64()))),
        (&metrics::WALK_SOCKETS, one(Value::Gauge(about.walk.sockets as f64))),
    ]
    .into_iter()
    .map(family)
    .collect()
}

fn write(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Counter(n) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        Value::Seconds(seconds) => metric.encode_counter::<NoLabelSet, _, u64>(seconds, None),
        Value::Gauge(n) => metric.encode_gauge(n),
        Value::Distribution(buckets, count, sum_us) => {
            metric.encode_histogram::<NoLabelSet>(*sum_us as f64 / 1e6, *count, buckets, None)
        }
    }
}

/// One metric in the older format.
fn prometheus(text: String) -> String {
    let counter = || {
        let (help, rest) = text.strip_prefix("# HELP ")?.split_once('\n')?;
        let (name, help) = help.split_once(' ')?;
        let series = rest.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(" counter\n")?;
        Some(format!("# HELP {name}_total {help}\n# TYPE {name}_total counter\n{series}"))
    };
    counter().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use model::record::Totals;

    use super::*;

    fn about() -> About {
        let programs = probe::PROGRAMS
            .iter()
            .map(|program| ProgramStats { program, status: Status::Attached, run: Some(RunStats::default()) })
            .collect();
        About {
            walk: Walk::default(),
            kernel: "6.12.0".to_owned(),
            programs,
            measured: Duration::from_secs(1),
            connection_events_lost: 0,
            cgroup_events_lost: 0,
            storage_failures: 0,
            totals_failures: 0,
            unattributed: 0,
        }
    }

    fn sample(name: &str, totals: &Totals) -> Sample {
        Sample {
            labels: Labels { container: name.to_owned(), pod: String::new(), namespace: String::new() },
            readings: METRICS.iter().map(|metric| (metric.read)(totals, 1)).collect(),
            containers: Vec::new(),
        }
    }

    fn openmetrics(name: &str, about: About) -> String {
        let samples = Arc::new(vec![sample(name, &Totals::default())]);
        text(&Exposition::new(samples, &OfNamespaces::default(), about).into(), Format::OpenMetrics)
    }

    fn text(exposition: &Arc<Exposition>, format: Format) -> String {
        Arc::clone(exposition).text(format).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn both_formats_agree_on_the_samples() {
        let mut totals = Totals { sent_bytes: 12, opened: [0, 3, 4], ..Totals::default() };
        totals.rtt.sum_us = 700;
        totals.rtt.slots[11] = 2;
        let namespaces = OfNamespaces {
            samples: vec![NamespaceSample {
                netns: 4026,
                labels: Labels { container: "web".to_owned(), ..Labels::default() },
                events: vec![("listen_drop", 5)],
            }],
            reconciled: vec![
                (4026, "OutRsts".to_owned(), Sums { unexplained: Some(-2), ..Sums::default() }),
                (4027, "OutRsts".to_owned(), Sums::default()),
            ],
            ..OfNamespaces::default()
        };
        let web = Arc::new(vec![sample("web", &totals)]);
        let exposition = Arc::new(Exposition::new(web, &namespaces, about()));
        let samples = |text: &str| -> Vec<_> {
            text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect()
        };
        let (openmetrics, prometheus) =
            (text(&exposition, Format::OpenMetrics), text(&exposition, Format::Prometheus));
        assert_eq!(samples(&openmetrics), samples(&prometheus));
        for line in [
            "tcptide_sent_bytes_total{container=\"web\",pod=\"\",namespace=\"\"} 12",
            "tcptide_opened_total{container=\"web\",pod=\"\",namespace=\"\",direction=\"passive\"} 4",
            "# TYPE tcptide_sent_bytes_total counter",
            "tcptide_rtt_seconds_count{container=\"web\",pod=\"\",namespace=\"\"} 2",
            "tcptide_rtt_seconds_sum{container=\"web\",pod=\"\",namespace=\"\"} 0.0007",
            "tcptide_namespace_events_total{netns=\"4026\",container=\"web\",pod=\"\",namespace=\"\",event=\"listen_drop\"} 5",
            "tcptide_reconcile_unexplained{netns=\"4026\",counter=\"OutRsts\"} -2.0",
            "tcptide_reconcile_counted_total{netns=\"4027\",counter=\"OutRsts\"} 0",
        ] {
            assert!(prometheus.lines().any(|l| l == line), "{line}\nis not in\n{prometheus}");
        }
        assert!(!prometheus.contains("tcptide_reconcile_unexplained{netns=\"4027\""));
        assert!(!prometheus.contains("tcptide_namespaces"));
        assert!(openmetrics.ends_with("# EOF\n"));
        assert!(!prometheus.contains("# EOF"));
    }

    #[test]
    fn what_is_not_measured_is_absent() {
        let mut about = about();
        about.measured = Duration::ZERO;
        for program in &mut about.programs {
            if program.program.name == "rtt" {
                program.status = Status::Refused("no".to_owned());
                program.run = None;
            }
        }
        let text = openmetrics("web", about);
        assert!(!text.contains("tcptide_rtt_seconds"));
        assert!(!text.contains("tcptide_program_runs"));
        assert!(!text.contains("tcptide_program_measured"));
        assert!(text.contains("tcptide_program_status{program=\"rtt\",status=\"refused\"} 1"));
        assert!(text.contains("tcptide_connect_duration_seconds_count"));
    }

    #[test]
    fn odd_names_stay_one_label() {
        let text = openmetrics("a\"b\\c\nd", about());
        assert!(text.contains(r#"container="a\"b\\c\nd""#));
    }
}
