//! The thread that owns the monitor. Scrapes come to it one by one, and those that came while it walked share the next
//! walk.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use model::{
    container::Container,
    filter::Filter,
    record::{self, Strays},
};
use probe::{Monitor, Options, Walk};
use tokio::sync::oneshot;

use super::{
    edges::Edges,
    exposition::{self, Exposition, OfEdges, OfNamespaces},
    namespaces::Namespaces,
    reconciliation::Reconciliation,
    reload::{LastReload, Live},
    series::Series,
    strays::Accounts,
    systemd::Watchdog,
};
use crate::{
    args::AgentArgs,
    identity::Directory,
    names::Names,
    namespaces::ALL,
    reconcile,
    session::{LIFE_EVENTS, ROWS, directory, dns_root, owner, take_cgroup_events},
};

/// How often cgroups made and removed are taken note of between scrapes.
const PERIOD: Duration = Duration::from_millis(250);
/// How often events are fetched, where there are any.
const EVENTS_PERIOD: Duration = Duration::from_millis(50);
/// Room for events, bytes: a walk and a scrape may keep them waiting. A comparison wants more kinds of them.
const BUFFER: u32 = 16 << 20;
const BUFFER_TO_COMPARE: u32 = 64 << 20;
/// How often network namespaces that appeared are looked into, for what was there before they were seen.
const ADOPTION_PERIOD: Duration = Duration::from_secs(30);

/// What a scrape gets: the metrics, or why there are none.
pub(crate) type Answer = Result<Arc<Exposition>, String>;

/// The way to the gauge's thread.
#[derive(Clone)]
pub(crate) struct Gauge {
    asked: Sender<Asked>,
}

/// What the thread is asked for.
enum Asked {
    Scrape(oneshot::Sender<Answer>),
    /// From now on these settings, if there are new ones, and what there is to say of reading them.
    Settings(Option<Live>, LastReload),
}

impl Gauge {
    /// Loads and attaches the programs, in a thread of their own.
    pub(crate) fn start(args: &AgentArgs) -> anyhow::Result<Self> {
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
        if args.edges {
            options.events |= LIFE_EVENTS;
            options.rows = ROWS;
            options.dns = args.dns.then(|| dns_root(directory.layout())).transpose()?;
        }
        let edges = args.edges.then(|| Edges::new(args.max_edges as usize));
        let series = Series::new(args.grace);
        let namespaces = Namespaces::new(args.max_namespaces as usize);
        let (ask, asked) = channel();
        let (ready, started) = channel();
        thread::Builder::new()
            .name("gauge".to_owned())
            .spawn(move || match Worker::start(&options, interval, directory, series, namespaces, edges) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run(&asked);
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .context("cannot start the gauge's thread")?;
        started.recv().context("the gauge's thread ended while it started")??;
        Ok(Self { asked: ask })
    }

    /// The metrics as of now.
    pub(crate) async fn scrape(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        let gone = || "the gauge's thread has ended".to_owned();
        self.asked.send(Asked::Scrape(answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// New settings, and how reading them went.
    pub(crate) fn change(&self, live: Option<Live>, last: LastReload) {
        // If nobody is there any more, scrapes say so.
        let _ = self.asked.send(Asked::Settings(live, last));
    }
}

struct Worker {
    monitor: Monitor,
    directory: Directory,
    series: Series,
    namespaces: Namespaces,
    strays: Accounts,
    reconciliation: Option<Reconciliation>,
    edges: Option<Edges>,
    names: Names,
    kernel: String,
    /// With a file of settings.
    reload: Option<LastReload>,
}

impl Worker {
    fn start(
        options: &Options,
        interval: Option<Duration>,
        directory: Directory,
        series: Series,
        namespaces: Namespaces,
        edges: Option<Edges>,
    ) -> anyhow::Result<Self> {
        let mut monitor = Monitor::start(options)?;
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
            names,
            kernel,
            reload: None,
        };
        if worker.edges.is_some() {
            // Those that are there already may be the far ends of what comes, and may end before the first scrape.
            worker.walk()?;
        }
        Ok(worker)
    }

    fn walk(&mut self) -> anyhow::Result<Walk> {
        let Some(edges) = &mut self.edges else { return Ok(self.monitor.walk(None)?) };
        edges.begin_walk();
        Ok(self.monitor.walk(Some(&mut |row| edges.row(row)))?)
    }

    /// Works until nobody is left to ask.
    fn run(mut self, asked: &Receiver<Asked>) {
        let mut adopted = Instant::now();
        let has_events = self.reconciliation.is_some() || self.edges.is_some();
        let period = if has_events { EVENTS_PERIOD } else { PERIOD };
        let mut watchdog = Watchdog::new();
        loop {
            watchdog.beat();
            let first = match asked.recv_timeout(period) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = self.take_notes() {
                tracing::warn!("{error:#}");
            }
            if adopted.elapsed() >= ADOPTION_PERIOD {
                adopted = Instant::now();
                self.names.forget_gone(&self.directory);
                if let Err(error) = self.monitor.adopt_namespaces() {
                    tracing::warn!("{error}");
                }
            }
            // Who asks from now on may know of more than this walk sees, and gets the next one.
            let mut waiting = Vec::new();
            for one in first.into_iter().chain(asked.try_iter()) {
                match one {
                    Asked::Scrape(scrape) => waiting.push(scrape),
                    Asked::Settings(live, last) => self.change(live, last),
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
        if let Some(Live { grace }) = live {
            self.series.set_grace(grace);
        }
    }

    fn take_notes(&mut self) -> anyhow::Result<()> {
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.monitor.tend()?;
        self.take_events()?;
        match &mut self.reconciliation {
            // Nothing is to be missed: whatever stands in for another program stays.
            Some(reconciliation) => reconciliation.tick(&mut self.monitor, || self.namespaces.read(ALL)),
            None => Ok(self.monitor.tend_nested()?),
        }
    }

    fn take_events(&mut self) -> anyhow::Result<()> {
        let (edges, reconciliation) = (&mut self.edges, &mut self.reconciliation);
        self.monitor.events(&mut |event| {
            if let Some(edges) = edges {
                edges.event(event);
            }
            if let Some(reconciliation) = reconciliation {
                reconciliation.event(event);
            }
        })?;
        let directory = &self.directory;
        if let Some(edges) = edges {
            let names = &mut self.names;
            self.monitor.dns_answers(&mut |answer| names.take(answer, directory))?;
            let owner = |id| directory.resolve(id);
            let name = |container: &Container, address, at| names.of(directory, container, address, at);
            edges.settle(Instant::now(), &owner, &name);
        }
        Ok(())
    }

    fn scrape(&mut self) -> anyhow::Result<Exposition> {
        let walk = self.walk()?;
        // What closed before the walk came by, and whose it is.
        take_cgroup_events(&mut self.monitor, &self.directory)?;
        self.take_events()?;
        let strays = self.monitor.strays()?;
        let namespaces = self.of_namespaces(&strays);
        let mut totals = self.monitor.totals()?;
        self.give(&strays)?;
        self.strays.add_to(&mut totals);
        let gone = self.series.update(&totals, &self.directory, walk.number);
        for cgroup in gone {
            self.monitor.forget(cgroup)?;
            self.strays.forget(cgroup);
        }
        let losses = self.monitor.losses();
        let about = exposition::About {
            walk,
            kernel: self.kernel.clone(),
            programs: self.monitor.programs(),
            measured: self.monitor.measured(),
            connection_events_lost: losses[record::loss::LOSS_CONNECTION_EVENT],
            cgroup_events_lost: losses[record::loss::LOSS_CGROUP_EVENT],
            dns_answers_lost: losses[record::loss::LOSS_DNS],
            storage_failures: losses[record::loss::LOSS_STORAGE],
            totals_failures: losses[record::loss::LOSS_TOTALS],
            unattributed: losses[record::loss::LOSS_OWNER],
            reload: self.reload,
        };
        Ok(Exposition::new(self.series.all(), self.of_edges(), &namespaces, about))
    }

    fn of_edges(&mut self) -> Option<OfEdges> {
        let directory = &self.directory;
        let edges = self.edges.as_mut()?;
        let owner = |id| directory.resolve(id);
        let name = |container: &Container, address, at| self.names.of(directory, container, address, at);
        let samples = edges.samples(&self.series.all(), Instant::now(), &owner, &name);
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
