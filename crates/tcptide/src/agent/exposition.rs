//! What a scrape is answered: the numbers, and what is made of them, metric by metric, as it is sent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use model::{
    container::Container,
    edge::{EDGE_METRICS, EdgeMetric, Number},
    metrics::{self, Kind, METRICS, Metric, OWNER_LABELS, OwnMetric, Reading},
    record::Totals,
};
use probe::{ProgramStats, RunStats, Status, Walk};

use super::{
    edges::{EdgeSample, FoldedEdges},
    exemplars::{self, Slowest},
    family::{self, Buckets, Format, HistogramLines, LabelSet, Line},
    namespaces::NamespaceSample,
    process::Usage,
    reconciliation::Sums,
    reload::LastReload,
    series::{Folded, Labels, Sample},
    text::{self, Value},
};
use crate::answer::{health::Lost, totals::zeros};

/// A scrape's answer: the numbers, of which [`Exposition::answer`] makes text or protobuf as it is sent. With a thousand
/// containers the text is ten times as long.
#[derive(Debug)]
pub(crate) struct Exposition {
    samples: Arc<Vec<Sample>>,
    /// The labels of each.
    owners: Vec<LabelSet>,
    /// The slowest connections of each, where connections are told of.
    slowest: Vec<Slowest>,
    shape: Shape,
    edges: Vec<EdgeSample>,
    /// All that is not of [`METRICS`], nor of [`EDGE_METRICS`].
    others: Vec<Family>,
}

/// Which series a container has.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Of each of [`METRICS`], whether what feeds it runs.
    present: Vec<bool>,
    /// Of each of [`METRICS`] with labels, which numbers have a combination of values that can occur.
    possible: Vec<Vec<bool>>,
    buckets: Buckets,
    info: InfoLabels,
}

/// Which labels of `tcptide_container_info` are left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InfoLabels {
    pub(crate) no_id: bool,
    pub(crate) no_runtime: bool,
    pub(crate) no_image: bool,
    pub(crate) no_cgroup_id: bool,
    pub(crate) no_cgroup_path: bool,
}

/// What became of scrapes so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrapes {
    /// How many were answered, by format and whether with gzip.
    pub(crate) answered: BTreeMap<(&'static str, &'static str), u64>,
    /// How long the last one took, from the question to the end of the answer, and how long it was before gzip, bytes.
    pub(crate) last: Option<(Duration, u64)>,
}

/// All that is said of no container and of no edge.
#[derive(Debug)]
pub(crate) struct Rest(Vec<Family>);

/// What there is to say of edges.
#[derive(Debug)]
pub(crate) struct OfEdges {
    pub(crate) samples: Vec<EdgeSample>,
    pub(crate) folded: FoldedEdges,
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
    pub(crate) lost: Lost,
    pub(crate) usage: Usage,
    pub(crate) http_connections: u64,
    /// By reason.
    pub(crate) http_rejected: Vec<(&'static str, u64)>,
    /// Whether the web configuration is the one that its files have, if there is one.
    pub(crate) web_config: Option<bool>,
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

/// Of each of [`METRICS`], whether what feeds it runs: by the program's name.
pub(crate) fn measured(runs: impl Fn(&str) -> bool) -> Vec<bool> {
    let has = |metric: &Metric| runs(metric.program) && !metric.unless.is_some_and(&runs);
    METRICS.iter().map(has).collect()
}

impl Shape {
    pub(crate) fn new(programs: &[ProgramStats], buckets: Buckets, info: InfoLabels) -> Self {
        let possible = METRICS.iter().zip(zeros()).map(|(metric, zero)| {
            let numbers = zero.numbers().map_or(0, <[u64]>::len);
            (0..numbers).map(|at| metric.own_labels(at, numbers).is_some()).collect()
        });
        let runs =
            |name: &str| programs.iter().any(|p| p.program.name == name && p.status == Status::Attached);
        Self { present: measured(runs), possible: possible.collect(), buckets, info }
    }

    /// How many series one set of labels has: with all of these readings added up, and so many cgroups.
    pub(crate) fn count(&self, readings: &[&[Reading]], cgroups: usize) -> usize {
        let metrics = (0..METRICS.len()).filter(|at| self.present[*at]);
        let of_metrics: usize = metrics
            .map(|at| {
                let all = || readings.iter().filter_map(move |readings| readings.get(at));
                match all().next() {
                    None => 0,
                    Some(Reading::One(_)) => 1,
                    Some(Reading::Each(_) | Reading::EachMicroseconds(_)) => {
                        self.possible[at].iter().filter(|possible| **possible).count()
                    }
                    Some(Reading::EachSeen(_)) => {
                        let is_seen = |at: usize| all().any(|r| r.numbers().is_some_and(|all| all[at] > 0));
                        let possible = self.possible[at].iter().enumerate();
                        possible.filter(|(at, possible)| **possible && is_seen(*at)).count()
                    }
                    Some(Reading::Distribution(histogram)) => self.buckets.series(histogram),
                }
            })
            .sum();
        of_metrics + cgroups
    }

    /// As many series as one set of labels with one cgroup may have.
    pub(crate) fn most(&self) -> usize {
        let all = |metric: &Metric| match metric.read(&Totals::default(), 0) {
            Reading::EachSeen(numbers) => Reading::EachSeen(vec![1; numbers.len()]),
            reading => reading,
        };
        self.count(&[&METRICS.iter().map(all).collect::<Vec<_>>()], 1)
    }
}

impl Rest {
    pub(crate) fn new(namespaces: &OfNamespaces, about: &About) -> Self {
        Self(of_namespaces(namespaces).into_iter().chain(of_itself(about)).collect())
    }

    /// How many series these are, and with them those that [`Exposition::new`] adds.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|family| family.series.len()).sum::<usize>() + ADDED
    }
}

/// Series that may be told of every scrape, beside the [`Rest`]: five of what has none of its own, two of the last scrape, and
/// of scrapes one for each format, with gzip and without.
const ADDED: usize = 13;

/// The text of one metric of a thousand containers is 4 MB: it is sent in pieces of some such size, bytes.
const PIECE: usize = 256 << 10;

impl Exposition {
    pub(crate) fn new(
        samples: Arc<Vec<Sample>>,
        slowest: &HashMap<Labels, Slowest>,
        folded: &Folded,
        edges: Option<OfEdges>,
        rest: Rest,
        shape: Shape,
    ) -> Self {
        let mut others = rest.0;
        others.extend(of_room(folded, edges.as_ref().map(|edges| edges.folded)));
        others.push(family((&metrics::CONTAINER_INFO, info(&samples, shape.info))));
        let owners = samples.iter().map(|sample| LabelSet::new(pairs(&sample.labels))).collect();
        let of = |sample: &Sample| slowest.get(&sample.labels).copied().unwrap_or_default();
        let slowest = samples.iter().map(of).collect();
        let edges = edges.map(|edges| edges.samples).unwrap_or_default();
        Self { samples, owners, slowest, shape, edges, others }
    }

    /// What is sent, one metric after the other; the last ones are those of scrapes so far.
    pub(crate) fn answer(
        self: Arc<Self>,
        format: Format,
        scrapes: &Scrapes,
    ) -> impl Iterator<Item = Vec<u8>> + use<> {
        let last: Vec<_> = of_scrapes(scrapes).iter().map(|family| family.written(format)).collect();
        let end = if format == Format::OpenMetrics { text::END } else { "" };
        let of_containers = Arc::clone(&self);
        let metrics = (0..METRICS.len()).flat_map(move |at| of_containers.metric(at, format));
        let rest = EDGE_METRICS.len() + self.others.len();
        let rest = (0..rest).map(move |at| self.of_no_container(at, format));
        metrics.chain(rest).chain(last).chain([end.as_bytes().to_vec()])
    }

    /// One of [`METRICS`], in pieces where the format has them; nothing of one without a sample.
    fn metric(self: &Arc<Self>, at: usize, format: Format) -> impl Iterator<Item = Vec<u8>> + use<> {
        let this = Arc::clone(self);
        let first = this.samples.first().and_then(|sample| sample.readings.get(at));
        let lines = first.filter(|_| this.shape.present[at]);
        let lines = lines.map(|reading| Lines::new(&METRICS[at], reading, this.shape.buckets));
        let exemplar = exemplars::of_metric(at);
        let metric = &METRICS[at];
        let mut family = Some(family::Family::new(format, metric.name, metric.kind, metric.help));
        let mut next = 0;
        std::iter::from_fn(move || {
            let (lines, mut piece) = lines.as_ref().zip(family.take())?;
            while let Some(sample) = this.samples.get(next) {
                if let Some(reading) = sample.readings.get(at) {
                    let exemplar = exemplar.and_then(|at| this.slowest[next][at].as_ref());
                    lines.write(&mut piece, &this.owners[next], reading, exemplar);
                }
                next += 1;
                if let Some(bytes) = piece.take(PIECE) {
                    family = Some(piece);
                    return Some(bytes);
                }
            }
            Some(piece.finish())
        })
    }

    /// Those of edges, then the others.
    fn of_no_container(&self, at: usize, format: Format) -> Vec<u8> {
        if let Some(metric) = EDGE_METRICS.get(at) {
            return self.of_edges(metric, format);
        }
        let family = self.others.get(at - EDGE_METRICS.len());
        family.map(|family| family.written(format)).unwrap_or_default()
    }

    fn of_edges(&self, metric: &EdgeMetric, format: Format) -> Vec<u8> {
        let line = Line::new(metric.name, []);
        let mut family = family::Family::new(format, metric.name, metric.kind, metric.help);
        for edge in &self.edges {
            let value = match (metric.read)(&edge.counts, &edge.now) {
                Some(Number::Whole(n)) => Value::Whole(n),
                Some(Number::Seconds(seconds)) => Value::Real(seconds),
                None => continue,
            };
            family.number(&line, &edge.labels, value);
        }
        family.finish()
    }
}

impl Family {
    fn written(&self, format: Format) -> Vec<u8> {
        let mut family = family::Family::new(format, self.name, self.kind, self.help);
        let line = Line::new(self.name, []);
        for (labels, value) in &self.series {
            let labels = LabelSet::new(labels.iter().map(|(name, value)| (*name, value.as_str())));
            family.number(&line, &labels, *value);
        }
        family.finish()
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
    fn new(metric: &Metric, reading: &Reading, buckets: Buckets) -> Self {
        match reading {
            Reading::Distribution(histogram) => {
                Self::Distribution(HistogramLines::new(metric.name, histogram.scale(), buckets))
            }
            Reading::One(_) => Self::Numbers(vec![Some(Line::new(metric.name, []))]),
            Reading::Each(numbers) | Reading::EachSeen(numbers) | Reading::EachMicroseconds(numbers) => {
                let line = |at| Some(Line::new(metric.name, metric.own_labels(at, numbers.len())?));
                Self::Numbers((0..numbers.len()).map(line).collect())
            }
        }
    }

    fn write(
        &self,
        to: &mut family::Family,
        owner: &LabelSet,
        reading: &Reading,
        exemplar: Option<&exemplars::Exemplar>,
    ) {
        match (self, reading) {
            (Self::Distribution(lines), Reading::Distribution(histogram)) => {
                to.histogram(lines, owner, histogram, exemplar);
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
    to: &mut family::Family,
    owner: &LabelSet,
    numbers: &[u64],
    value: impl Fn(u64) -> Option<Value>,
) {
    for (line, &n) in lines.iter().zip(numbers) {
        if let (Some(line), Some(value)) = (line, value(n)) {
            to.number(line, owner, value);
        }
    }
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

/// How each cgroup was identified: once for all that have the same labels.
fn info(samples: &[Sample], without: InfoLabels) -> Vec<(LabelPairs, Value)> {
    let all: BTreeSet<LabelPairs> = samples
        .iter()
        .flat_map(|sample| sample.containers.iter().map(move |container| (sample, container)))
        .map(|(sample, container)| {
            let mut pairs = owner(&sample.labels);
            let Container { id, runtime, image, cgroup_id, cgroup_path, .. } = &**container;
            let more = [
                ("id", without.no_id, id.clone()),
                ("runtime", without.no_runtime, runtime.map(|runtime| runtime.to_string())),
                ("image", without.no_image, image.clone()),
                ("cgroup_id", without.no_cgroup_id, Some(cgroup_id.to_string())),
                ("cgroup_path", without.no_cgroup_path, cgroup_path.clone()),
            ];
            let kept = more.into_iter().filter(|(_, is_left_out, _)| !is_left_out);
            pairs.extend(kept.map(|(name, _, value)| (name, value.unwrap_or_default())));
            pairs
        })
        .collect();
    all.into_iter().map(|pairs| (pairs, Value::Real(1.0))).collect()
}

fn of_scrapes(scrapes: &Scrapes) -> Vec<Family> {
    let answered = scrapes.answered.iter().map(|((format, encoding), n)| {
        let pairs = vec![("format", (*format).to_owned()), ("encoding", (*encoding).to_owned())];
        (pairs, Value::Whole(*n))
    });
    let took = scrapes.last.map(|(took, _)| (Vec::new(), Value::Real(took.as_secs_f64())));
    let size = scrapes.last.map(|(_, bytes)| (Vec::new(), Value::Whole(bytes)));
    [
        (&metrics::SCRAPES, answered.collect()),
        (&metrics::SCRAPE_SECONDS, took.into_iter().collect()),
        (&metrics::SCRAPE_BYTES, size.into_iter().collect()),
    ]
    .into_iter()
    .map(family)
    .collect()
}

/// What has no series of its own.
fn of_room(folded: &Folded, edges: Option<FoldedEdges>) -> Vec<Family> {
    let because = |reason: &str, n| (vec![("reason", reason.to_owned())], Value::Whole(n));
    let of_edges = edges.unwrap_or_default();
    let now = vec![
        because("no_room", folded.no_room + of_edges.series),
        because("not_wanted", folded.not_wanted),
        because("too_young", folded.too_young),
    ];
    let ever = vec![(Vec::new(), Value::Whole(folded.ever + of_edges.ever))];
    let connections = edges.map(|edges| (Vec::new(), Value::Whole(edges.connections)));
    [
        (&metrics::FOLDED, now),
        (&metrics::FOLDED_TOTAL, ever),
        (&metrics::EDGES_FOLDED, connections.into_iter().collect()),
    ]
    .into_iter()
    .map(family)
    .collect()
}

fn of_itself(about: &About) -> Vec<Family> {
    let program = |p: &ProgramStats| vec![("program", p.program.name.to_owned())];
    let runs = |value: fn(RunStats) -> Value| -> Vec<_> {
        about.programs.iter().filter_map(|p| p.run.map(|run| (program(p), value(run)))).collect()
    };
    let measured = |value| if about.measured.is_zero() { Vec::new() } else { runs(value) };
    let lost = |reason: &str, n| (vec![("reason", reason.to_owned())], Value::Whole(n));
    let statuses = about.programs.iter().map(|p| {
        let mut pairs = program(p);
        pairs.push(("status", p.status.word().to_owned()));
        (pairs, Value::Real(1.0))
    });
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("kernel", about.kernel.clone())];
    let one = |value| vec![(Vec::new(), value)];
    let resident = about.usage.resident.into_iter().map(|bytes| (Vec::new(), Value::Whole(bytes)));
    let of_reload = |value: fn(LastReload) -> f64| {
        about.reload.map(|last| (Vec::new(), Value::Real(value(last)))).into_iter().collect()
    };
    let seconds =
        |time: Duration| if time.is_zero() { Vec::new() } else { one(Value::Real(time.as_secs_f64())) };
    [
        (&metrics::BUILD_INFO, vec![(build, Value::Real(1.0))]),
        (&metrics::PROGRAM_STATUS, statuses.collect()),
        (&metrics::PROGRAM_RUN_SECONDS, measured(|run| Value::Real(run.run_time_ns as f64 / 1e9))),
        (&metrics::PROGRAM_RUNS, measured(|run| Value::Whole(run.runs))),
        (&metrics::PROGRAM_MEASURED, seconds(about.measured)),
        (&metrics::PROGRAM_MISSES, runs(|run| Value::Whole(run.missed))),
        (
            &metrics::EVENTS_LOST,
            vec![
                lost("connection_buffer_full", about.lost.connection_events),
                lost("cgroup_buffer_full", about.lost.cgroup_events),
                lost("dns_buffer_full", about.lost.dns_answers),
            ],
        ),
        (&metrics::STORAGE_FAILURES, one(Value::Whole(about.lost.sockets))),
        (&metrics::TOTALS_FAILURES, one(Value::Whole(about.lost.totals))),
        (&metrics::UNATTRIBUTED, one(Value::Whole(about.lost.owners))),
        (&metrics::WALK_SECONDS, one(Value::Real(about.walk.took.as_secs_f64()))),
        (&metrics::WALK_SOCKETS, one(Value::Real(about.walk.sockets as f64))),
        (&metrics::CPU_SECONDS, one(Value::Real(about.usage.cpu.as_secs_f64()))),
        (&metrics::RESIDENT_BYTES, resident.collect()),
        (&metrics::HTTP_CONNECTIONS, one(Value::Whole(about.http_connections))),
        (&metrics::HTTP_REJECTED, about.http_rejected.iter().map(|&(reason, n)| lost(reason, n)).collect()),
        (
            &metrics::WEB_CONFIG,
            about
                .web_config
                .map(|good| (Vec::new(), Value::Real(f64::from(u8::from(good)))))
                .into_iter()
                .collect(),
        ),
        (&metrics::RELOAD_SUCCESSFUL, of_reload(|last| f64::from(u8::from(last.successful)))),
        (&metrics::RELOAD_TIME, of_reload(|last| last.success.as_duration().as_secs_f64())),
    ]
    .into_iter()
    .map(family)
    .collect()
}

#[cfg(test)]
mod tests {
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
            lost: Lost::default(),
            usage: Usage { cpu: Duration::from_millis(1500), resident: Some(4096) },
            http_connections: 1,
            http_rejected: vec![("connections", 0)],
            web_config: None,
            reload: None,
        }
    }

    fn sample(name: &str, totals: &Totals) -> Sample {
        Sample {
            labels: Labels { container: name.to_owned(), pod: String::new(), namespace: String::new() },
            readings: METRICS.iter().map(|metric| metric.read(totals, 1)).collect(),
            containers: Vec::new(),
        }
    }

    fn openmetrics(name: &str, about: &About) -> String {
        let samples = vec![sample(name, &Totals::default())];
        text(&exposition(samples, &OfNamespaces::default(), about), Format::OpenMetrics)
    }

    fn exposition(samples: Vec<Sample>, namespaces: &OfNamespaces, about: &About) -> Arc<Exposition> {
        let shape = Shape::new(&about.programs, BUCKETS, InfoLabels::default());
        let rest = Rest::new(namespaces, about);
        Exposition::new(Arc::new(samples), &HashMap::new(), &Folded::default(), None, rest, shape).into()
    }

    const BUCKETS: Buckets = Buckets { classic: true, half_octaves: false, native: true };

    fn bytes(exposition: &Arc<Exposition>, format: Format) -> Vec<u8> {
        Arc::clone(exposition).answer(format, &Scrapes::default()).flatten().collect()
    }

    fn text(exposition: &Arc<Exposition>, format: Format) -> String {
        String::from_utf8(bytes(exposition, format)).unwrap()
    }

    #[test]
    fn a_metric_of_many_containers_comes_in_pieces_that_lack_nothing() {
        let one = openmetrics("web", &about());
        let many = 400;
        let samples = (0..many)
            .map(|n| sample(&format!("web-{n}"), &Totals { sent_bytes: n, ..Totals::default() }))
            .collect();
        let all = exposition(samples, &OfNamespaces::default(), &about());
        let pieces: Vec<_> = Arc::clone(&all)
            .answer(Format::OpenMetrics, &Scrapes::default())
            .map(|piece| piece.len())
            .collect();
        assert!(pieces.iter().all(|length| *length < PIECE + (16 << 10)), "{:?}", pieces.iter().max());
        assert!(pieces.iter().filter(|length| **length >= PIECE).count() > 3);
        let text = text(&all, Format::OpenMetrics);
        let mut lines = BTreeMap::<&str, usize>::new();
        text.lines().for_each(|line| *lines.entry(line).or_default() += 1);
        assert!(lines.values().all(|count| *count == 1), "each line is there once");
        let types = lines.keys().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(types, one.lines().filter(|line| line.starts_with("# TYPE ")).count());
        for n in 0..many {
            let line =
                format!("tcptide_sent_bytes_total{{container=\"web-{n}\",pod=\"\",namespace=\"\"}} {n}");
            assert!(lines.contains_key(line.as_str()), "{line}");
        }
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
        let exposition = exposition(vec![sample("web", &totals)], &namespaces, &about());
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

    /// `name{labels}` to value, of all that a text format says.
    fn numbers(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(series, n)| (series.to_owned(), n.parse().unwrap()))
            .collect()
    }

    #[test]
    fn protobuf_says_what_the_text_says() {
        use crate::agent::protobuf::{LabelPair, tests::families};
        let mut totals = Totals { sent_bytes: 12, opened: [0, 3, 4], ..Totals::default() };
        totals.rtt.sum_us = 700;
        totals.rtt.slots[11] = 2;
        totals.rtt.slots[12] = 5;
        totals.lifetime.slots[29] = 1;
        let exposition = exposition(
            vec![sample("web", &totals), sample("a\"b", &Totals::default())],
            &OfNamespaces::default(),
            &about(),
        );
        let text = numbers(&text(&exposition, Format::Prometheus));
        let mut said = BTreeMap::new();
        let mut natives = 0;
        for family in families(&bytes(&exposition, Format::Protobuf)) {
            for metric in &family.metric {
                let labels = |more: Option<String>| {
                    let pair = |pair: &LabelPair| (pair.name.clone().unwrap(), pair.value.clone().unwrap());
                    let mut all: Vec<_> = metric.label.iter().map(pair).collect();
                    all.extend(more.map(|le| ("le".to_owned(), le)));
                    let text = text::labels(all.iter().map(|(name, value)| (name.as_str(), value.as_str())));
                    if text.is_empty() { text } else { format!("{{{text}}}") }
                };
                let name = &family.name;
                if let Some(histogram) = &metric.histogram {
                    for bucket in &histogram.bucket {
                        let bound = bucket.upper_bound.unwrap();
                        let le = if bound.is_finite() {
                            zmij::Buffer::new().format(bound).to_owned()
                        } else {
                            "+Inf".to_owned()
                        };
                        let count = bucket.cumulative_count.unwrap() as f64;
                        said.insert(format!("{name}_bucket{}", labels(Some(le))), count);
                    }
                    said.insert(format!("{name}_sum{}", labels(None)), histogram.sample_sum.unwrap());
                    said.insert(
                        format!("{name}_count{}", labels(None)),
                        histogram.sample_count.unwrap() as f64,
                    );
                    natives += usize::from(histogram.schema.is_some() && histogram.zero_count.is_some());
                } else {
                    let number = metric.gauge.as_ref().or(metric.counter.as_ref()).unwrap();
                    said.insert(format!("{name}{}", labels(None)), number.value.unwrap());
                }
            }
        }
        assert_eq!(said, text);
        let histograms = METRICS.iter().filter(|metric| metric.kind == Kind::Histogram).count() - 1;
        assert_eq!(
            natives,
            2 * histograms,
            "all but that of waits for accept() of which there is a better one"
        );
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
        assert!(text.contains("tcptide_process_cpu_seconds_total 1.5\n"));
        assert!(text.contains("tcptide_process_resident_memory_bytes 4096\n"));
        let mut untold = self::about();
        untold.usage.resident = None;
        assert!(!openmetrics("web", &untold).contains("tcptide_process_resident"));
        assert!(text.contains("tcptide_program_status{program=\"rtt\",status=\"refused\"} 1"));
        assert!(text.contains("tcptide_connect_duration_seconds_count"));
    }

    #[test]
    fn as_many_series_are_written_as_were_counted() {
        let mut totals = Totals::default();
        totals.dropped_packets[3] = 1;
        let one = sample("web", &totals);
        let about = about();
        let shape = Shape::new(&about.programs, BUCKETS, InfoLabels::default());
        let (counted, rest) =
            (shape.count(&[&one.readings], 0), Rest::new(&OfNamespaces::default(), &about).count());
        totals.dropped_packets = [1; _];
        totals.resets_by_state = [1; _];
        totals.fast_open = [1; _];
        let most = sample("web", &totals);
        assert_eq!(shape.count(&[&most.readings], 1), shape.most());
        let lines = |samples| {
            let text = text(&exposition(samples, &OfNamespaces::default(), &about), Format::Prometheus);
            text.lines().filter(|line| !line.starts_with('#')).count()
        };
        let rest = rest - ADDED + 4; // Without edges, before the first scrape.
        assert_eq!(lines(vec![one]), counted + rest);
        assert_eq!(lines(vec![most]), shape.most() - 1 + rest);
    }

    #[test]
    fn what_differs_in_labels_that_are_left_out_is_one() {
        let mut both = sample("web", &Totals::default());
        both.containers = [7, 8].map(|id| Arc::new(Container::unknown(id))).into();
        let all = info(&[both], InfoLabels::default());
        assert_eq!(all.len(), 2);
        let mut both = sample("web", &Totals::default());
        both.containers = [7, 8].map(|id| Arc::new(Container::unknown(id))).into();
        let without = InfoLabels { no_cgroup_id: true, ..InfoLabels::default() };
        let all = info(&[both], without);
        assert_eq!(all.len(), 1);
        assert!(all[0].0.iter().all(|(name, _)| *name != "cgroup_id"), "{all:?}");
    }

    #[test]
    fn odd_names_stay_one_label() {
        let text = openmetrics("a\"b\\c\nd", &about());
        assert!(text.contains(r#"container="a\"b\\c\nd""#));
    }
}
