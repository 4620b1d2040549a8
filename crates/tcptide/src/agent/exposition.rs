//! What a scrape is answered: the numbers, and the text of them, metric by metric, as it is sent.

use std::{sync::Arc, time::Duration};

use model::{
    edge::{EDGE_METRICS, EdgeMetric, Number},
    metrics::{self, Kind, METRICS, Metric, OWNER_LABELS, OwnMetric, Reading},
};
use probe::{ProgramStats, RunStats, Status, Walk};

use super::{
    edges::EdgeSample,
    namespaces::NamespaceSample,
    reconciliation::Sums,
    reload::LastReload,
    series::{Labels, Sample},
    text::{self, Format, HistogramLines, Line, Value},
};

/// A scrape's answer: the numbers, of which [`Exposition::text`] makes text as it is sent. With a thousand containers the text
/// is ten times as long.
#[derive(Debug)]
pub(crate) struct Exposition {
    samples: Arc<Vec<Sample>>,
    /// The labels of each, as text.
    owners: Vec<String>,
    about: About,
    edges: Vec<EdgeSample>,
    /// All that is not of [`METRICS`], nor of [`EDGE_METRICS`].
    others: Vec<Family>,
}

/// What there is to say of edges.
#[derive(Debug)]
pub(crate) struct OfEdges {
    pub(crate) samples: Vec<EdgeSample>,
    pub(crate) folded: u64,
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
    pub(crate) dns_answers_lost: u64,
    pub(crate) storage_failures: u64,
    pub(crate) totals_failures: u64,
    pub(crate) unattributed: u64,
    /// How the last reading of a file with settings went.
    pub(crate) reload: Option<LastReload>,
}

type LabelPairs = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    series: Vec<(LabelPairs, Value)>,
}

impl Exposition {
    pub(crate) fn new(
        samples: Arc<Vec<Sample>>,
        edges: Option<OfEdges>,
        namespaces: &OfNamespaces,
        about: About,
    ) -> Self {
        let mut others = of_namespaces(namespaces);
        let folded = edges.as_ref().map(|edges| (Vec::new(), Value::Whole(edges.folded)));
        others.push(family((&metrics::EDGES_FOLDED, folded.into_iter().collect())));
        others.extend(of_itself(&samples, &about));
        let owners = samples.iter().map(|sample| text::labels(pairs(&sample.labels))).collect();
        let edges = edges.map(|edges| edges.samples).unwrap_or_default();
        Self { samples, owners, about, edges, others }
    }

    /// The text, one metric after the other.
    pub(crate) fn text(self: Arc<Self>, format: Format) -> impl Iterator<Item = String> {
        let families = METRICS.len() + EDGE_METRICS.len() + self.others.len();
        (0..families).map(move |at| self.family(at, format)).chain([format.end().to_owned()])
    }

    /// One metric: first those of [`METRICS`], then of edges, then the others. Nothing of one without a sample.
    fn family(&self, at: usize, format: Format) -> String {
        let Some(metric) = METRICS.get(at) else {
            let at = at - METRICS.len();
            if let Some(metric) = EDGE_METRICS.get(at) {
                return self.of_edges(metric, format);
            }
            let family = self.others.get(at - EDGE_METRICS.len());
            return family.map(|family| family.text(format)).unwrap_or_default();
        };
        let mut readings = self.owners.iter().zip(self.samples.iter()).filter_map(|(owner, sample)| {
            Some((owner.as_str(), sample.readings.get(at).filter(|_| self.has(metric))?))
        });
        let Some(first) = readings.next() else { return String::new() };
        let mut text = format.comments(metric.name, metric.kind, metric.help);
        let comments = text.len();
        let lines = Lines::new(metric, first.1);
        for (owner, reading) in std::iter::once(first).chain(readings) {
            lines.write(&mut text, owner, reading);
        }
        if text.len() > comments { text } else { String::new() }
    }

    fn of_edges(&self, metric: &EdgeMetric, format: Format) -> String {
        let line = Line::new(metric.name, "");
        let mut text = String::new();
        for edge in &self.edges {
            let value = match (metric.read)(&edge.counts, &edge.now) {
                Some(Number::Whole(n)) => Value::Whole(n),
                Some(Number::Seconds(seconds)) => Value::Real(seconds),
                None => continue,
            };
            if text.is_empty() {
                text = format.comments(metric.name, metric.kind, metric.help);
            }
            line.write(&mut text, &edge.labels, value);
        }
        text
    }

    /// Whether what feeds a metric of containers runs.
    fn has(&self, metric: &Metric) -> bool {
        let runs = |name: &str| {
            self.about.programs.iter().any(|p| p.program.name == name && p.status == Status::Attached)
        };
        runs(metric.program) && !metric.unless.is_some_and(runs)
    }
}

impl Family {
    fn text(&self, format: Format) -> String {
        if self.series.is_empty() {
            return String::new();
        }
        let mut text = format.comments(self.name, self.kind, self.help);
        for (labels, value) in &self.series {
            let labels = text::labels(labels.iter().map(|(name, value)| (*name, value.as_str())));
            text::sample(&mut text, self.name, &labels, *value);
        }
        text
    }
}

/// The lines of one metric of containers.
enum Lines {
    Distribution(HistogramLines),
    /// One for each combination of the values of its own labels; `None` where that cannot occur.
    Numbers(Vec<Option<Line>>),
}

impl Lines {
    /// Any reading of a metric tells its lines.
    fn new(metric: &Metric, reading: &Reading) -> Self {
        match reading {
            Reading::Distribution(histogram) => {
                Self::Distribution(HistogramLines::new(metric.name, &histogram.scale().octaves_seconds()))
            }
            Reading::One(_) => Self::Numbers(vec![Some(Line::new(metric.name, ""))]),
            Reading::Each(numbers) | Reading::EachSeen(numbers) | Reading::EachMicroseconds(numbers) => {
                let line =
                    |at| Some(Line::new(metric.name, &text::labels(own_labels(metric, at, numbers.len())?)));
                Self::Numbers((0..numbers.len()).map(line).collect())
            }
        }
    }

    fn write(&self, to: &mut String, owner: &str, reading: &Reading) {
        match (self, reading) {
            (Self::Distribution(lines), Reading::Distribution(histogram)) => {
                lines.write(to, owner, histogram.octaves(), histogram.sum_us() as f64 / 1e6);
            }
            (Self::Numbers(lines), Reading::One(n)) => {
                each(lines, to, owner, &[*n], |n| Some(Value::Whole(n)));
            }
            (Self::Numbers(lines), Reading::Each(numbers)) => {
                each(lines, to, owner, numbers, |n| Some(Value::Whole(n)));
            }
            (Self::Numbers(lines), Reading::EachSeen(numbers)) => {
                each(lines, to, owner, numbers, |n| (n > 0).then_some(Value::Whole(n)));
            }
            (Self::Numbers(lines), Reading::EachMicroseconds(times)) => {
                each(lines, to, owner, times, |us| Some(Value::Real(us as f64 / 1e6)));
            }
            // Readings of one metric are of one kind.
            _ => {}
        }
    }
}

fn each(
    lines: &[Option<Line>],
    to: &mut String,
    owner: &str,
    numbers: &[u64],
    value: impl Fn(u64) -> Option<Value>,
) {
    for (line, &n) in lines.iter().zip(numbers) {
        if let (Some(line), Some(value)) = (line, value(n)) {
            line.write(to, owner, value);
        }
    }
}

/// The metric's own labels of the `at`th of `of` numbers, unless it has no such combination.
fn own_labels(metric: &Metric, at: usize, of: usize) -> Option<Vec<(&'static str, &'static str)>> {
    let mut rest = of;
    let pair = |label: &metrics::Label| {
        rest /= label.values.len();
        Some((label.name, label.values.get(at / rest % label.values.len()).copied().flatten()?))
    };
    metric.labels.iter().map(pair).collect()
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
            (pairs, Value::Whole(*n))
        })
    });
    let counts =
        of.counts.iter().map(|(status, n)| (vec![("status", (*status).to_owned())], Value::Whole(*n as u64)));
    let took = of.took.map(|took| (Vec::new(), Value::Real(took.as_secs_f64())));
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
        (&metrics::RECONCILE_KERNEL, compared(|sums| Some(Value::Whole(sums.kernel.shown())))),
        (&metrics::RECONCILE_COUNTED, compared(|sums| Some(Value::Whole(sums.counted.shown())))),
        (&metrics::RECONCILE_UNEXPLAINED, compared(|sums| Some(Value::Real(sums.unexplained? as f64)))),
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
    let lost = |reason: &str, n| (vec![("reason", reason.to_owned())], Value::Whole(n));
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
        (pairs, Value::Real(1.0))
    });
    let statuses = about.programs.iter().map(|p| {
        let mut pairs = program(p);
        pairs.push(("status", p.status.word().to_owned()));
        (pairs, Value::Real(1.0))
    });
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("kernel", about.kernel.clone())];
    // How many cgroups found no room is not known, only that there were some.
    let folded = if about.totals_failures == 0 { vec![(Vec::new(), Value::Real(0.0))] } else { Vec::new() };
    let one = |value| vec![(Vec::new(), value)];
    let of_reload = |value: fn(LastReload) -> f64| {
        about.reload.map(|last| (Vec::new(), Value::Real(value(last)))).into_iter().collect()
    };
    let seconds =
        |time: Duration| if time.is_zero() { Vec::new() } else { one(Value::Real(time.as_secs_f64())) };
    [
        (&metrics::CONTAINER_INFO, info.collect()),
        (&metrics::BUILD_INFO, vec![(build, Value::Real(1.0))]),
        (&metrics::PROGRAM_STATUS, statuses.collect()),
        (&metrics::PROGRAM_RUN_SECONDS, measured(|run| Value::Real(run.run_time_ns as f64 / 1e9))),
        (&metrics::PROGRAM_RUNS, measured(|run| Value::Whole(run.runs))),
        (&metrics::PROGRAM_MEASURED, seconds(about.measured)),
        (&metrics::PROGRAM_MISSES, runs(|run| Value::Whole(run.missed))),
        (
            &metrics::EVENTS_LOST,
            vec![
                lost("connection_buffer_full", about.connection_events_lost),
                lost("cgroup_buffer_full", about.cgroup_events_lost),
                lost("dns_buffer_full", about.dns_answers_lost),
            ],
        ),
        (&metrics::STORAGE_FAILURES, one(Value::Whole(about.storage_failures))),
        (&metrics::TOTALS_FAILURES, one(Value::Whole(about.totals_failures))),
        (&metrics::UNATTRIBUTED, one(Value::Whole(about.unattributed))),
        (&metrics::FOLDED, folded),
        (&metrics::WALK_SECONDS, one(Value::Real(about.walk.took.as_secs_f64()))),
        (&metrics::WALK_SOCKETS, one(Value::Real(about.walk.sockets as f64))),
        (&metrics::RELOAD_SUCCESSFUL, of_reload(|last| f64::from(u8::from(last.successful)))),
        (&metrics::RELOAD_TIME, of_reload(|last| last.success.as_duration().as_secs_f64())),
    ]
    .into_iter()
    .map(family)
    .collect()
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
            dns_answers_lost: 0,
            storage_failures: 0,
            totals_failures: 0,
            unattributed: 0,
            reload: None,
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
        text(&Exposition::new(samples, None, &OfNamespaces::default(), about).into(), Format::OpenMetrics)
    }

    fn text(exposition: &Arc<Exposition>, format: Format) -> String {
        Arc::clone(exposition).text(format).collect()
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
        let exposition = Arc::new(Exposition::new(web, None, &namespaces, about()));
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
            "tcptide_rtt_seconds_bucket{container=\"web\",pod=\"\",namespace=\"\",le=\"7.62939453125e-6\"} 0",
            "tcptide_rtt_seconds_bucket{container=\"web\",pod=\"\",namespace=\"\",le=\"8.0\"} 2",
            "tcptide_rtt_seconds_bucket{container=\"web\",pod=\"\",namespace=\"\",le=\"+Inf\"} 2",
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
