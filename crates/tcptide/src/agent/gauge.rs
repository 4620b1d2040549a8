//! The thread that owns the monitor. Questions come to it one by one; scrapes that came while it walked share the next
//! walk.

use std::{
    cmp::Reverse,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use model::{
    container::Container,
    filter::{Filter, Subject},
    metrics::Reading,
    record::{CGROUP_OTHER, Strays, Totals},
};
use probe::{Monitor, Options, Walk};
use tokio::sync::{oneshot, watch};

use super::{
    edges::{Edges, LeftOut, NameOf, OwnerOf},
    exemplars::Exemplars,
    exposition::{self, Exposition, InfoLabels, OfEdges, OfNamespaces, Rest, Scrapes, Shape},
    family::Buckets,
    namespaces::Namespaces,
    past::{Past, Step},
    process::{self, Usage},
    reconciliation::Reconciliation,
    reload::{LastReload, Live},
    series::{Room, Series, labels, other},
    strays::Accounts,
    systemd::Watchdog,
    tails::{self, Tails},
    watches::Watches,
    web::Traffic,
};
use crate::{
    answer::{
        health::Lost,
        totals::{self, Layout, Metrics},
    },
    args::{AgentArgs, DroppedLabel, Histograms, Resolution},
    identity::Directory,
    names::Names,
    namespaces::ALL,
    privileges, reconcile,
    session::{LIFE_EVENTS, ROWS, directory, dns_root, owner, take_cgroup_events},
};

/// How often cgroups made and removed, and events that edges want, are taken note of between scrapes; how often those that are
/// compared; and how often those that somebody follows, for which there is less room.
const PERIOD: Duration = Duration::from_millis(250);
const COMPARED_PERIOD: Duration = Duration::from_millis(100);
const FOLLOWED_PERIOD: Duration = Duration::from_millis(50);
/// Room for events, bytes: a walk and a scrape may keep them waiting. A comparison wants more kinds of them.
const BUFFER: u32 = 16 << 20;
const BUFFER_TO_COMPARE: u32 = 64 << 20;
/// The same where events are sent only while somebody follows them.
const BUFFER_TO_FOLLOW: u32 = 4 << 20;
/// Rows that a walk brings at a time where only questions want them.
const FEW_ROWS: u32 = 1024;
/// How often network namespaces that appeared are looked into, for what was there before they were seen.
const ADOPTION_PERIOD: Duration = Duration::from_secs(30);

/// What a scrape gets: the metrics, or why there are none.
pub(crate) type Answer = Result<Arc<Exposition>, String>;

/// What the thread is asked.
enum Request {
    /// For the metrics.
    Scrape(oneshot::Sender<Answer>),
    /// For anything else.
    Do(Box<dyn FnOnce(&mut Worker) + Send>),
}

/// The way to the gauge's thread.
#[derive(Clone)]
pub(crate) struct Gauge {
    requests: Sender<Request>,
    answered: Arc<Mutex<Scrapes>>,
    /// The thread has the other end, and never sends.
    alive: watch::Receiver<()>,
}

impl Gauge {
    /// Loads and attaches the programs, in a thread of their own.
    pub(crate) fn start(args: &AgentArgs, traffic: Arc<Traffic>) -> anyhow::Result<Self> {
        let (requests, asked) = channel();
        let (give, given) = channel();
        let (ready, started) = channel();
        let (lives, alive) = watch::channel(());
        thread::Builder::new()
            .name("gauge".to_owned())
            .spawn(move || {
                let _lives = lives;
                let Ok(start) = given.recv() else { return };
                match Worker::start(start) {
                    Ok(worker) => {
                        let _ = ready.send(Ok(()));
                        worker.run(&asked);
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .context("cannot start the gauge's thread")?;
        // That thread has all that there is. This one does without from here on, and so do those that ask for names.
        privileges::keep(privileges::set(privileges::of_names(&args.runtimes)))?;
        give.send(Start::new(args, traffic)?).ok().context("the gauge's thread has not started")?;
        started.recv().context("the gauge's thread ended while it started")??;
        Ok(Self { requests, answered: Arc::default(), alive })
    }

    /// One that has nothing to tell.
    #[cfg(any(test, fuzzing))]
    pub(super) fn nobody() -> Self {
        Self { requests: channel().0, answered: Arc::default(), alive: watch::channel(()).1 }
    }

    /// Waits for the thread's end, which comes by a fault of its own only: while there is a `Gauge`, it works.
    pub(super) fn end(&self) -> impl Future<Output = ()> + use<> {
        let mut alive = self.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }

    /// What became of scrapes so far.
    pub(crate) fn answered(&self) -> Scrapes {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A scrape was answered to its end, in this format and encoding, with so many bytes before they were encoded.
    pub(crate) fn note_answered(&self, by: (&'static str, &'static str), took: Duration, bytes: u64) {
        let mut all = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        *all.answered.entry(by).or_default() += 1;
        all.last = Some((took, bytes));
    }

    /// The metrics as of now.
    pub(crate) async fn scrape(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Scrape(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// What the thread answers to a question.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.put(question)?.await.map_err(|_| gone())
    }

    /// The same, for who has nothing else to do meanwhile.
    pub(super) fn ask_and_wait<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.put(question)?.blocking_recv().map_err(|_| gone())
    }

    fn put<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, String> {
        let (answer, answered) = oneshot::channel();
        let question = Box::new(move |worker: &mut Worker| drop(answer.send(question(worker))));
        self.requests.send(Request::Do(question)).map_err(|_| gone())?;
        Ok(answered)
    }

    /// New settings, and how reading them went.
    pub(crate) fn change(&self, live: Option<Live>, last: LastReload) {
        let change = Box::new(move |worker: &mut Worker| worker.change(live, last));
        // If nobody is there any more, scrapes say so.
        let _ = self.requests.send(Request::Do(change));
    }
}

/// What the thread needs to start.
struct Start {
    options: Options,
    own_events: u32,
    interval: Option<Duration>,
    directory: Directory,
    series: Series,
    namespaces: Namespaces,
    edges: Option<Edges>,
    past: Option<Past>,
    limits: Limits,
    traffic: Arc<Traffic>,
}

impl Start {
    fn new(args: &AgentArgs, traffic: Arc<Traffic>) -> anyhow::Result<Self> {
        let directory = directory(&args.runtimes)?;
        let options = Options {
            totals: true,
            namespace_owners: true,
            max_cgroups: args.max_cgroups,
            max_sockets: args.max_sockets,
            read_delay: args.read_delay,
            measure: args.program_stats.into(),
            filter: Filter::default(),
            owner: owner(directory.layout()),
            buffer: BUFFER,
            ..Options::default()
        };
        let interval = args.reconcile;
        let mut options = if interval.is_some() {
            reconcile::options(Options { buffer: BUFFER_TO_COMPARE, ..options })
        } else {
            options
        };
        options.rows = options.rows.max(FEW_ROWS);
        if args.edges {
            options.events |= LIFE_EVENTS;
            options.rows = ROWS;
            options.dns = args.dns.then(|| dns_root(directory.layout())).transpose()?;
        }
        if options.events == 0 {
            options.buffer = BUFFER_TO_FOLLOW;
        }
        let own_events = mem::replace(&mut options.events, tails::ALL_EVENTS);
        let is_dropped = |label| args.drop_labels.contains(&label);
        let left_out = LeftOut {
            peer_name: is_dropped(DroppedLabel::PeerName),
            peer_port: is_dropped(DroppedLabel::PeerPort),
        };
        let info = InfoLabels {
            no_id: is_dropped(DroppedLabel::Id),
            no_runtime: is_dropped(DroppedLabel::Runtime),
            no_image: is_dropped(DroppedLabel::Image),
            no_cgroup_id: is_dropped(DroppedLabel::CgroupId),
            no_cgroup_path: is_dropped(DroppedLabel::CgroupPath),
        };
        let edges = args.edges.then(|| Edges::new(args.max_edges as usize, left_out, args.history));
        let past = (!args.history.is_zero()).then(|| Past::new(args.history));
        let Live { grace, max_series, selection } = args.into();
        let series = Series::new(grace, selection);
        let buckets = Buckets {
            classic: args.histograms != Histograms::Native,
            half_octaves: args.resolution == Resolution::HalfOctave,
            native: args.histograms != Histograms::Classic,
        };
        let limits = Limits { series: max_series, buckets, info };
        let namespaces = Namespaces::new(args.max_namespaces as usize);
        Ok(Self {
            options,
            own_events,
            interval,
            directory,
            series,
            namespaces,
            edges,
            past,
            limits,
            traffic,
        })
    }
}

/// Whose a cgroup is, of those that have totals.
fn owner_of(directory: &Directory, id: u64) -> Arc<Container> {
    if id == CGROUP_OTHER { other() } else { directory.resolve(id) }
}

fn gone() -> String {
    "the gauge's thread has ended".to_owned()
}

/// What cgroups have counted.
type ByCgroup = Vec<(u64, Box<Totals>)>;

/// What is shown at most.
#[derive(Clone, Copy)]
struct Limits {
    series: usize,
    buckets: Buckets,
    info: InfoLabels,
}

pub(crate) struct Worker {
    pub(super) monitor: Monitor,
    pub(super) directory: Directory,
    series: Series,
    namespaces: Namespaces,
    strays: Accounts,
    reconciliation: Option<Reconciliation>,
    pub(super) edges: Option<Edges>,
    past: Option<Past>,
    exemplars: Exemplars,
    pub(super) names: Names,
    pub(super) tails: Tails,
    pub(super) watches: Watches,
    /// The events that are sent though nobody follows any.
    own_events: u32,
    pub(super) kernel: String,
    limits: Limits,
    /// Since when all is attached.
    pub(super) began: Instant,
    traffic: Arc<Traffic>,
    /// With a file of settings.
    reload: Option<LastReload>,
}

impl Worker {
    fn start(start: Start) -> anyhow::Result<Self> {
        let Start {
            options,
            own_events,
            interval,
            directory,
            series,
            namespaces,
            edges,
            past,
            limits,
            traffic,
        } = start;
        let mut monitor = Monitor::start(&options)?;
        monitor.send_events(own_events);
        privileges::keep(privileges::set(privileges::OF_PROGRAMS))?;
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let start = |interval| Reconciliation::start(interval, &mut monitor, || namespaces.read(ALL));
        let reconciliation = interval.map(start).transpose()?;
        let strays = Accounts::default();
        let names = Names::start(&directory);
        let mut worker = Self {
            monitor,
            directory,
            series,
            namespaces,
            strays,
            reconciliation,
            edges,
            past,
            exemplars: Exemplars::default(),
            names,
            tails: Tails::default(),
            watches: Watches::default(),
            own_events,
            kernel,
            limits,
            began: Instant::now(),
            traffic,
            reload: None,
        };
        if worker.edges.is_some() {
            // Those that are there already may be the far ends of what comes, and may end before the first scrape.
            worker.walk()?;
        }
        Ok(worker)
    }

    /// Brings all up to now.
    pub(super) fn walk(&mut self) -> anyhow::Result<Walk> {
        let Some(edges) = &mut self.edges else { return Ok(self.monitor.walk(None)?) };
        let exemplars = &mut self.exemplars;
        edges.begin_walk();
        Ok(self.monitor.walk(Some(&mut |row| {
            edges.row(row);
            exemplars.see(row);
        }))?)
    }

    /// Works until nobody is left to ask.
    fn run(mut self, asked: &Receiver<Request>) {
        let mut adopted = Instant::now();
        let mut watchdog = Watchdog::new();
        loop {
            watchdog.beat();
            let period = match &self.reconciliation {
                _ if !self.tails.is_empty() => FOLLOWED_PERIOD,
                Some(_) => COMPARED_PERIOD,
                None => PERIOD,
            };
            let first = match asked.recv_timeout(period) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = self.take_notes().and_then(|()| self.remember()) {
                tracing::warn!("{error:#}");
            }
            if adopted.elapsed() >= ADOPTION_PERIOD {
                adopted = Instant::now();
                self.names.forget_gone(&self.directory);
                if let Err(error) = self.monitor.adopt_namespaces() {
                    tracing::warn!("{error}");
                }
                if let Err(error) = self.forget_watches() {
                    tracing::warn!("{error:#}");
                }
            }
            // Who asks from now on may know of more than this walk sees, and gets the next one.
            let mut waiting = Vec::new();
            for request in first.into_iter().chain(asked.try_iter()) {
                match request {
                    Request::Scrape(answer) => waiting.push(answer),
                    Request::Do(question) => question(&mut self),
                }
            }
            if !waiting.is_empty() {
                let answer = self.scrape().map(Arc::new).map_err(|error| format!("{error:#}"));
                for one in waiting {
                    let _ = one.send(answer.clone());
                }
            }
        }
    }

    fn change(&mut self, live: Option<Live>, last: LastReload) {
        self.reload = Some(last);
        if let Some(Live { grace, max_series, selection }) = live {
            self.limits.series = max_series;
            self.series.change(grace, selection);
        }
    }

    /// Ends a step of the histories, if it is time.
    fn remember(&mut self) -> anyhow::Result<()> {
        self.remember_edges()?;
        // On a busy host a look takes long, and costs no more.
        let (began, before) = (Instant::now(), process::thread_time());
        if self.past.as_ref().is_none_or(|past| !past.is_due(began)) {
            return Ok(());
        }
        let walk = self.count()?;
        let all = self.totals()?;
        let directory = &self.directory;
        if let Some(past) = &mut self.past {
            past.remember((began, before), walk.number, &all, |id| owner_of(directory, id));
        }
        Ok(())
    }

    /// What containers counted since a time, in steps, and when the last one ended. `None`: nobody remembers that.
    pub(super) fn past(&self, time: Instant, filter: &Filter) -> Option<(Vec<Step>, Instant)> {
        // A name may have come later than what was counted; of what is gone, it is as it was.
        let now = |then: &Arc<Container>| {
            let id = then.cgroup_id;
            if self.directory.is_live(id) { self.directory.resolve(id) } else { Arc::clone(then) }
        };
        let is_wanted = |container: &Container| {
            filter.matches(&Subject { cgroup_id: Some(container.cgroup_id), ..container.subject() })
        };
        Some(self.past.as_ref()?.since(time, is_wanted, now))
    }

    fn remember_edges(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        if self.edges.as_ref().is_none_or(|edges| !edges.is_step_due(began)) {
            return Ok(());
        }
        self.walk_edges(|edges, owner, name| edges.remember(began, began.elapsed(), owner, name))?;
        Ok(())
    }

    /// Brings the edges up to now, and asks them. `None`: nobody counts edges.
    pub(super) fn walk_edges<T>(
        &mut self,
        ask: impl FnOnce(&mut Edges, OwnerOf<'_>, NameOf<'_>) -> T,
    ) -> anyhow::Result<Option<T>> {
        if self.edges.is_none() {
            return Ok(None);
        }
        self.walk()?;
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.take_events()?;
        Ok(self.ask_edges(ask))
    }

    fn ask_edges<T>(&mut self, ask: impl FnOnce(&mut Edges, OwnerOf<'_>, NameOf<'_>) -> T) -> Option<T> {
        let (directory, names) = (&self.directory, &self.names);
        let owner = |id| directory.resolve(id);
        let name = |container: &Container, address, at| names.of(directory, container, address, at);
        Some(ask(self.edges.as_mut()?, &owner, &name))
    }

    /// Has the kernel send the events that somebody wants.
    pub(super) fn send_wanted_events(&mut self) {
        self.monitor.send_events(self.own_events | self.tails.events());
    }

    pub(super) fn take_notes(&mut self) -> anyhow::Result<()> {
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.monitor.tend()?;
        self.take_events()?;
        match &mut self.reconciliation {
            // Nothing is to be missed: whatever stands in for another program stays.
            Some(reconciliation) => reconciliation.tick(&mut self.monitor, || self.namespaces.read(ALL)),
            None => Ok(self.monitor.tend_nested()?),
        }
    }

    pub(super) fn take_events(&mut self) -> anyhow::Result<()> {
        let (edges, exemplars, reconciliation, tails) =
            (&mut self.edges, &mut self.exemplars, &mut self.reconciliation, &mut self.tails);
        let own_events = self.own_events;
        self.monitor.events(&mut |event| {
            tails.event(event);
            if own_events & (1 << event.event) == 0 {
                return;
            }
            if let Some(edges) = edges {
                edges.event(event);
                exemplars.see(event);
            }
            if let Some(reconciliation) = reconciliation {
                reconciliation.event(event);
            }
        })?;
        let (directory, names) = (&self.directory, &mut self.names);
        self.monitor.dns_answers(&mut |answer| names.take(answer, directory))?;
        let peers = edges.as_ref().map(Edges::peers);
        if tails.tell(directory, names, peers) {
            self.monitor.send_events(self.own_events | tails.events());
        }
        self.ask_edges(|edges, owner, name| edges.settle(Instant::now(), owner, name));
        Ok(())
    }

    /// What each cgroup has counted up to now, as of a walk. No rows are wanted: edges have their own walks.
    fn count(&mut self) -> anyhow::Result<Walk> {
        let walk = self.monitor.walk(None)?;
        // What closed before the walk came by, and whose it is.
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.take_events()?;
        let strays = self.monitor.strays()?;
        self.give(&strays)?;
        Ok(walk)
    }

    /// What cgroups have counted as of the last walk, with what became of packets of no socket.
    fn each_total(&self, each: impl FnMut(u64, &Totals)) -> anyhow::Result<()> {
        Ok(self.strays.add(|each| self.monitor.each_total(each), each)?)
    }

    /// All of it at once.
    fn totals(&self) -> anyhow::Result<ByCgroup> {
        let mut all = Vec::new();
        self.each_total(|cgroup, totals| all.push((cgroup, Box::new(*totals))))?;
        Ok(all)
    }

    /// What each container that has counted anything has counted up to now: only these metrics, unless none is named.
    pub(super) fn counted(&mut self, metrics: &[usize], filter: &Filter) -> anyhow::Result<totals::Totals> {
        let walk = self.count()?;
        let layout = Layout::of(&self.measured(metrics));
        let nothing = Totals::default();
        let mut all = Vec::new();
        self.each_total(|id, totals| {
            let container = owner_of(&self.directory, id);
            let subject = Subject { cgroup_id: Some(id), ..container.subject() };
            if !filter.matches(&subject) || *totals == nothing {
                return;
            }
            let segments = totals.sent_segments + totals.received_segments;
            let metrics = Metrics::of(totals, walk.number, &layout);
            let live = self.directory.is_live(id);
            all.push((container.cgroup_id, segments, totals::Counted { container, live, metrics }));
        })?;
        all.sort_by_key(|(owner, ..)| *owner);
        // A container's cgroups are together now.
        all.dedup_by(|(one, more, other), (owner, segments, counted)| {
            let is_same = one == owner;
            if is_same {
                *segments += *more;
                counted.live |= other.live;
                counted.metrics.add(&other.metrics);
            }
            is_same
        });
        all.sort_by_key(|(_, segments, _)| Reverse(*segments));
        Ok(totals::Totals {
            time: Timestamp::now(),
            seconds: self.began.elapsed().as_secs_f64(),
            containers: all.into_iter().map(|(.., counted)| counted).collect(),
        })
    }

    /// Which metrics are measured, of these, unless none is named.
    pub(super) fn measured(&self, metrics: &[usize]) -> Vec<bool> {
        let mut shown = exposition::measured(|program| self.monitor.is_attached(program));
        if !metrics.is_empty() {
            shown.iter_mut().enumerate().for_each(|(at, shown)| *shown &= metrics.contains(&at));
        }
        shown
    }

    fn scrape(&mut self) -> anyhow::Result<Exposition> {
        // The one takes as long as the other, and neither needs the other.
        self.namespaces.begin(&self.monitor);
        let walk = self.walk()?;
        // What closed before the walk came by, and whose it is.
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.take_events()?;
        let strays = self.monitor.strays()?;
        let namespaces = self.of_namespaces(&strays);
        self.give(&strays)?;
        let totals = self.totals()?;
        let about = exposition::About {
            walk,
            kernel: self.kernel.clone(),
            programs: self.monitor.programs(),
            measured: self.monitor.measured(),
            lost: Lost::of(&self.monitor.losses()),
            usage: Usage::now(),
            http_connections: self.traffic.connections(),
            http_rejected: self.traffic.rejected(),
            web_config: self.traffic.is_configured(),
            reload: self.reload,
        };
        let shape = Shape::new(&about.programs, self.limits.buckets, self.limits.info);
        let rest = Rest::new(&namespaces, &about);
        let left = self.limits.series.saturating_sub(rest.count());
        // Half of it is for edges, where they are told of, so that they push no container out; and they have what is left.
        let for_containers = if self.edges.is_some() { left / 2 } else { left };
        let count = |readings: &[&[Reading]], cgroups| shape.count(readings, cgroups);
        let room = Room { series: for_containers, other: shape.most(), count: &count };
        let gone = self.series.update(totals, &self.directory, walk.number, &room);
        for cgroup in gone {
            self.monitor.forget(cgroup)?;
            self.strays.forget(cgroup);
        }
        let samples = self.series.all();
        let used: usize =
            samples.iter().map(|sample| shape.count(&[&sample.readings], sample.containers.len())).sum();
        let edges = self.of_edges(left.saturating_sub(used));
        let everyone = self.series.everyone();
        let of = |cgroup| labels(&self.directory.resolve(cgroup));
        let slowest = self.exemplars.by_labels(of, |labels| everyone.get(labels) == Some(&true));
        Ok(Exposition::new(samples, &slowest, self.series.folded(), edges, rest, shape))
    }

    fn of_edges(&mut self, room: usize) -> Option<OfEdges> {
        let (directory, names) = (&self.directory, &self.names);
        let owner = |id| directory.resolve(id);
        let name = |container: &Container, address, at| names.of(directory, container, address, at);
        let edges = self.edges.as_mut()?;
        let samples = edges.samples(&self.series.everyone(), room, Instant::now(), &owner, &name);
        Some(OfEdges { samples, folded: edges.folded() })
    }

    /// What became of packets of no socket, to the containers whose namespaces they were in.
    fn give(&mut self, strays: &[(u64, Box<Strays>)]) -> anyhow::Result<()> {
        let namespaces = &self.namespaces;
        let over = self.strays.settle(strays, |id| namespaces.cgroup(id), |id| namespaces.has(id));
        over.into_iter().try_for_each(|id| Ok(self.monitor.forget_strays(id)?))
    }

    fn of_namespaces(&mut self, strays: &[(u64, Box<Strays>)]) -> OfNamespaces {
        let compared = self.reconciliation.iter().flat_map(Reconciliation::sums);
        let reconciled =
            compared.map(|(netns, counter, sums)| (netns, counter.to_owned(), sums.clone())).collect();
        if let Err(error) = self.namespaces.update(&self.monitor, &self.directory, self.strays.moved(strays))
        {
            // All else there is to tell stays true.
            tracing::warn!("{error:#}");
            return OfNamespaces { reconciled, ..OfNamespaces::default() };
        }
        OfNamespaces {
            samples: self.namespaces.samples().collect(),
            counts: self.namespaces.counts().into(),
            took: Some(self.namespaces.took()),
            reconciled,
        }
    }
}
