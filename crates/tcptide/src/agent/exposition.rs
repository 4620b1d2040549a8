//! The metrics as text: OpenMetrics by prometheus-client, and the older Prometheus format made of that.

use std::{fmt, time::Duration};

use model::{
    histogram::Histogram,
    metrics::{self, Kind, METRICS, Metric, OWNER_LABELS, OwnMetric, Reading},
};
use probe::{ProgramStats, RunStats, Status, Walk};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    namespaces::NamespaceSample,
    reconciliation::Sums,
    series::{Labels, Sample},
};

/// A scrape's answer.
#[derive(Clone, Debug)]
pub(crate) struct Exposition {
    /// OpenMetrics 1.0.
    pub(crate) openmetrics: String,
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
    Distribution(Histogram),
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    series: Vec<(LabelPairs, Value)>,
}

#[derive(Debug)]
struct Scrape(Vec<Family>);

/// Writes all metrics.
pub(crate) fn render(
    samples: &[Sample],
    namespaces: &OfNamespaces,
    about: &About,
) -> Result<Exposition, fmt::Error> {
    let mut families: Vec<_> = METRICS
        .iter()
        .enumerate()
        .filter_map(|(at, metric)| of_containers(at, metric, samples, about))
        .collect();
    families.extend(of_namespaces(namespaces));
    families.extend(of_itself(samples, about));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(families)));
    let mut openmetrics = String::new();
    encode(&mut openmetrics, &registry)?;
    Ok(Exposition { openmetrics })
}

/// A row of the table; nothing where the program that feeds it does not run.
fn of_containers(at: usize, metric: &'static Metric, samples: &[Sample], about: &About) -> Option<Family> {
    let runs =
        |name: &str| about.programs.iter().any(|p| p.program.name == name && p.status == Status::Attached);
    (runs(metric.program) && !metric.unless.is_some_and(runs)).then(|| Family {
        name: metric.name,
        kind: metric.kind,
        help: metric.help,
        series: samples
            .iter()
            .flat_map(|sample| readings(metric, &sample.labels, &sample.readings[at]))
            .collect(),
    })
}

fn readings(metric: &Metric, labels: &Labels, reading: &Reading) -> Vec<(LabelPairs, Value)> {
    let value =
        |n: u64| if metric.kind == Kind::Counter { Value::Counter(n) } else { Value::Gauge(n as f64) };
    match reading {
        Reading::One(n) => vec![(owner(labels), value(*n))],
        Reading::Distribution(histogram) => vec![(owner(labels), Value::Distribution(histogram.clone()))],
        Reading::Each(numbers) => each(metric, labels, numbers, value),
        Reading::EachSeen(numbers) => {
            let seen = |(_, value): &(LabelPairs, Value)| !matches!(value, Value::Counter(0));
            each(metric, labels, numbers, value).into_iter().filter(seen).collect()
        }
        Reading::EachMicroseconds(times) => each(metric, labels, times, |us| Value::Seconds(us as f64 / 1e6)),
    }
}

fn each(
    metric: &Metric,
    labels: &Labels,
    numbers: &[u64],
    value: impl Fn(u64) -> Value,
) -> Vec<(LabelPairs, Value)> {
    let one = |(at, n): (usize, &u64)| {
        let mut pairs = owner(labels);
        let mut rest = numbers.len();
        for label in metric.labels {
            rest /= label.values.len();
            let value = label.values.get(at / rest % label.values.len()).copied().flatten()?;
            pairs.push((label.name, value.to_owned()));
        }
        Some((pairs, value(*n)))
    };
    numbers.iter().enumerate().filter_map(one).collect()
}

fn owner(labels: &Labels) -> LabelPairs {
    let Labels { container, pod, namespace } = labels.clone();
    OWNER_LABELS.into_iter().zip([container, pod, namespace]).collect()
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

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|family| !family.series.is_empty()) {
            // OpenMetrics names a counter without the _total of its samples; the encoder puts it there.
            let (name, kind) = match family.kind {
                Kind::Counter => {
                    (family.name.strip_suffix("_total").unwrap_or(family.name), MetricType::Counter)
                }
                Kind::Gauge => (family.name, MetricType::Gauge),
                Kind::Histogram => (family.name, MetricType::Histogram),
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, value) in &family.series {
                if labels.is_empty() {
                    write(&mut metric, value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Counter(n) => metric.encode_counter::<NoLabelSet, _, u64>(n, None),
        Value::Seconds(seconds) => metric.encode_counter::<NoLabelSet, _, u64>(seconds, None),
        Value::Gauge(n) => metric.encode_gauge(n),
        Value::Distribution(histogram) => {
            let buckets = histogram.octaves();
            metric.encode_histogram::<NoLabelSet>(
                histogram.sum_us() as f64 / 1e6,
                histogram.count(),
                &buckets,
                None,
            )
        }
    }
}

impl Exposition {
    /// The Prometheus text format 0.0.4: there a counter's name has its `_total` in the comments too, and nothing marks
    /// the end.
    pub(crate) fn prometheus(&self) -> String {
        let mut text = String::with_capacity(self.openmetrics.len());
        let mut lines = self.openmetrics.lines().peekable();
        while let Some(line) = lines.next() {
            let help = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '));
            match (help, lines.peek()) {
                (Some((name, help)), Some(next))
                    if next.starts_with("# TYPE ") && next.ends_with(" counter") =>
                {
                    text.extend(["# HELP ", name, "_total ", help, "\n# TYPE ", name, "_total counter\n"]);
                    lines.next();
                }
                _ if line == "# EOF" => {}
                _ => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }
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

    fn openmetrics(name: &str, about: &About) -> String {
        let samples = [sample(name, &Totals::default())];
        render(&samples, &OfNamespaces::default(), about).unwrap().openmetrics
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
        let exposition = render(&[sample("web", &totals)], &namespaces, &about()).unwrap();
        let samples = |text: &str| -> Vec<_> {
            text.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect()
        };
        let prometheus = exposition.prometheus();
        assert_eq!(samples(&exposition.openmetrics), samples(&prometheus));
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
        assert!(exposition.openmetrics.ends_with("# EOF\n"));
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
        let text = openmetrics("web", &about);
        assert!(!text.contains("tcptide_rtt_seconds"));
        assert!(!text.contains("tcptide_program_runs"));
        assert!(!text.contains("tcptide_program_measured"));
        assert!(text.contains("tcptide_program_status{program=\"rtt\",status=\"refused\"} 1"));
        assert!(text.contains("tcptide_connect_duration_seconds_count"));
    }

    #[test]
    fn odd_names_stay_one_label() {
        let text = openmetrics("a\"b\\c\nd", &about());
        assert!(text.contains(r#"container="a\"b\\c\nd""#));
    }
}
