//! What the commands share: the monitor, the names, the filter, and the end.

use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use model::{
    connection::{Clock, Connection, Event, since_ns, subject},
    container::Container,
    filter::Filter,
    mountinfo::CgroupLayout,
    record,
};
use probe::{Capability, CgroupEvent, Monitor, Options, Owner, Walk, check_privileges};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    args::{FilterArgs, OutputArgs, PeerArgs, RuntimeArgs, StreamPeerArgs},
    identity::{self, Directory, kubernetes::Access},
    names::Names,
    output::say,
    owners::Owners,
    peers::{End, Peers, SETTLED, Starts},
};

/// How often events are fetched: often enough for a burst to fit the buffer, seldom enough to cost nothing.
const PERIOD: Duration = Duration::from_millis(50);
/// How long the runtimes and Kubernetes may take for their first answer before names are done without.
const PATIENCE: Duration = Duration::from_millis(500);

/// Rows a walk brings at a time.
pub(crate) const ROWS: u32 = 16384;
/// The events of a connection's life by which whoever follows connections knows them: bits.
pub(crate) const LIFE_EVENTS: u32 = FAR_END_EVENTS | (1 << record::event::EVENT_FAIL);

/// A running monitor and all that is needed to tell what it saw.
pub(crate) struct Session {
    pub(crate) monitor: Monitor,
    pub(crate) directory: Directory,
    pub(crate) filter: Filter,
    /// The sockets of this host, where far ends are asked for.
    far_ends: Option<FarEnds>,
    names: Names,
    owners: Owners,
    stop: Arc<AtomicBool>,
}

/// The events that far ends are found by: bits.
const FAR_END_EVENTS: u32 = (1 << record::event::EVENT_ESTABLISHED) | (1 << record::event::EVENT_CLOSE);

/// What far ends are told by.
struct FarEnds {
    peers: Peers,
    filter: PeerArgs,
    /// Bits of the events that were asked for; others are sent for the far ends' sake.
    events: u32,
    /// Events wait here for the next batch, in which the other end may be.
    waiting: Vec<record::Connection>,
    /// Sockets that ended, to be forgotten, the first to end first.
    ended: VecDeque<(Instant, Starts, u64)>,
}

/// A connection at one moment.
pub(crate) struct Seen<'a> {
    pub(crate) record: &'a record::Connection,
    pub(crate) container: &'a Arc<Container>,
    /// Whose the far end is, where that is asked for and known.
    pub(crate) peer: Option<Arc<Container>>,
    pub(crate) clock: &'a Clock,
    /// Whom to ask what its address is called.
    names: (&'a Names, &'a Directory),
}

impl Seen<'_> {
    /// For a program.
    pub(crate) fn event(&self) -> Connection {
        let mut connection = connection(self.record, self.container, self.clock, true);
        let at = (self.record.peer_port, since_ns(self.record));
        tell_far_end(&mut connection, self.peer.clone(), at, self.names);
        connection
    }
}

/// Says whose a connection's far end is, and what its address and port were called at a time (`CLOCK_MONOTONIC`, ns).
pub(crate) fn tell_far_end(
    connection: &mut Connection,
    container: Option<Arc<Container>>,
    (port, at_ns): (u16, u64),
    (names, directory): (&Names, &Directory),
) {
    let called = names.of(directory, &connection.container, (connection.peer.address, port), at_ns);
    connection.peer.name = called.map(|called| called.name);
    connection.peer.container = container;
}

impl Session {
    /// Starts a monitor for these connections. What else is wanted stands in `options`.
    pub(crate) fn start(filter: &FilterArgs, output: &OutputArgs, options: Options) -> anyhow::Result<Self> {
        Self::begin(filter, output, options, None, false)
    }

    /// The same for a look that shows no far ends: only if one is asked for, all sockets are sent.
    pub(crate) fn start_to_look(
        filter: &FilterArgs,
        output: &OutputArgs,
        options: Options,
        peer: &PeerArgs,
    ) -> anyhow::Result<Self> {
        Self::begin(filter, output, options, (!peer.is_empty()).then(|| peer.clone()), false)
    }

    /// The same for looks that tell far ends. They may be sockets that the filter leaves out, so that the kernel side sends
    /// all. With `dns`, DNS answers are looked at.
    pub(crate) fn start_with_peers(
        filter: &FilterArgs,
        output: &OutputArgs,
        options: Options,
        dns: bool,
    ) -> anyhow::Result<Self> {
        Self::begin(filter, output, options, Some(PeerArgs::default()), dns)
    }

    /// The same for streams. Without a filter they tell far ends, for which the beginnings and ends of all connections are
    /// events, unless neither was wanted; with one, only if they are asked for.
    pub(crate) fn start_stream(
        filter: &FilterArgs,
        output: &OutputArgs,
        options: Options,
        peers: &StreamPeerArgs,
    ) -> anyhow::Result<Self> {
        let are_events = options.events & FAR_END_EVENTS != 0;
        let wanted = peers.are_asked_for() || (are_events && filter.filter().is_empty());
        Self::begin(filter, output, options, wanted.then(|| peers.peer.clone()), peers.dns)
    }

    fn begin(
        filter: &FilterArgs,
        output: &OutputArgs,
        mut options: Options,
        peers: Option<PeerArgs>,
        dns: bool,
    ) -> anyhow::Result<Self> {
        if let Some(text) = without(&check_privileges()?) {
            say!("{text}");
        }
        let filter = filter.filter();
        // From here on a signal ends the command in order.
        let stop = stop_flag()?;
        let directory = directory(&output.runtimes)?;
        let owners = Owners::new(&filter);
        options.owner = owner(directory.layout());
        options.dns = dns.then(|| dns_root(directory.layout())).transpose()?;
        let far_ends = peers.map(|filter| FarEnds::new(filter, options.events));
        if far_ends.is_none() {
            options.filter = filter.clone();
            options.filter_cgroups = owners.are_asked_for();
        } else if options.events != 0 {
            options.events |= FAR_END_EVENTS;
            options.rows = options.rows.max(ROWS);
        }
        let monitor = Monitor::start(&options)?;
        directory.settle(PATIENCE);
        let names = Names::start(&directory);
        let mut session = Self { monitor, directory, filter, far_ends, names, owners, stop };
        session.take_cgroup_events()?;
        session.owners.tell(&mut session.monitor, &session.directory)?;
        if options.events != 0 && session.far_ends.is_some() {
            // Those that are there already may be the far ends of what comes.
            session.walk(|_, _, _| {})?;
        }
        Ok(session)
    }

    /// Says on stderr that from now on nothing is missed; names that nothing matches are told of.
    pub(crate) fn announce(&self) {
        let attached = self.monitor.programs().iter().filter(|p| p.status == probe::Status::Attached).count();
        say!("attached ({attached} programs); Ctrl-C ends");
        if let Some(complaint) = self.owners.complaint(&self.directory) {
            say!("{complaint}; waiting for it");
        }
        let mut absent = BTreeMap::<String, Vec<_>>::new();
        for program in self.monitor.programs().into_iter().filter(|p| !p.program.has_substitute()) {
            if matches!(program.status, probe::Status::Unsupported(_) | probe::Status::Refused(_)) {
                absent.entry(program.status.to_string()).or_default().push(program.program);
            }
        }
        for (status, programs) in absent {
            let names = programs.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
            let feeds = programs.iter().map(|p| p.feeds).collect::<Vec<_>>().join("; ");
            say!("{names}: {status} (not shown: {feeds})");
        }
    }

    /// An error if the filter names owners that do not exist.
    pub(crate) fn insist_on_owners(&self) -> anyhow::Result<()> {
        self.owners.complaint(&self.directory).map_or(Ok(()), |complaint| Err(anyhow::anyhow!(complaint)))
    }

    /// Calls `each` with the events and `now_and_then` after each batch, until the time is over, somebody ends it, or
    /// one of them fails.
    pub(crate) fn stream(
        &mut self,
        duration: Option<Duration>,
        mut each: impl FnMut(&Seen<'_>) -> anyhow::Result<()>,
        mut now_and_then: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = duration.map(|d| Instant::now() + d);
        loop {
            let over = self.stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
            if !over {
                let left = end.map_or(PERIOD, |end| end.saturating_duration_since(Instant::now()));
                thread::sleep(PERIOD.min(left));
            }
            let mut batch = self.take_events()?;
            if let Some(far_ends) = &mut self.far_ends {
                mem::swap(&mut far_ends.waiting, &mut batch);
            }
            self.tell(&batch, &mut each)?;
            if over {
                self.tell_waiting(&mut each)?;
            }
            now_and_then(self)?;
            if let Some(far_ends) = &mut self.far_ends {
                far_ends.forget(Instant::now());
            }
            if over {
                return Ok(());
            }
        }
    }

    /// Fetches the events that are there. A command whose last look is a walk calls it after that: what closed before the
    /// walk came by is there.
    pub(crate) fn fetch(
        &mut self,
        mut each: impl FnMut(&Seen<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let batch = self.take_events()?;
        self.tell_waiting(&mut each)?;
        self.tell(&batch, &mut each)
    }

    fn take_events(&mut self) -> anyhow::Result<Vec<record::Connection>> {
        let mut batch = Vec::new();
        self.monitor.events(&mut |event| batch.push(*event))?;
        // A cgroup is made before its first connection, so its name is known now.
        if self.take_cgroup_events()? || self.owners.are_due() {
            self.owners.tell(&mut self.monitor, &self.directory)?;
        }
        if let Some(far_ends) = &mut self.far_ends {
            far_ends.note(&batch);
        }
        let (names, directory) = (&mut self.names, &self.directory);
        self.monitor.dns_answers(&mut |answer| names.take(answer, directory))?;
        Ok(batch)
    }

    fn tell_waiting(&mut self, each: &mut impl FnMut(&Seen<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let waiting = self.far_ends.as_mut().map(|far_ends| mem::take(&mut far_ends.waiting));
        self.tell(&waiting.unwrap_or_default(), each)
    }

    fn tell(
        &self,
        batch: &[record::Connection],
        each: &mut impl FnMut(&Seen<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let clock = clock();
        for record in batch.iter().filter(|record| self.is_asked_for(record)) {
            let container = &self.directory.resolve(record.cgroup_id);
            let peer = self.peer_of(Starts::of(record));
            if self.filter.matches(&subject(record, container)) && self.is_peer_wanted(peer.as_deref()) {
                each(&Seen {
                    record,
                    container,
                    peer,
                    clock: &clock,
                    names: (&self.names, &self.directory),
                })?;
            }
        }
        Ok(())
    }

    /// Whether an event of its kind was asked for.
    fn is_asked_for(&self, event: &record::Connection) -> bool {
        self.far_ends.as_ref().is_none_or(|far_ends| far_ends.events & (1 << event.event) != 0)
    }

    /// Whether its far end is asked for.
    fn is_peer_wanted(&self, peer: Option<&Container>) -> bool {
        self.far_ends.as_ref().is_none_or(|far_ends| far_ends.filter.matches(peer))
    }

    /// Calls `each` with all live connections, once the far ends of all are known.
    pub(crate) fn look(&mut self, mut each: impl FnMut(&Seen<'_>)) -> anyhow::Result<Walk> {
        if self.far_ends.is_none() {
            return self.walk_seen(each);
        }
        let mut rows = Vec::new();
        let walk = self.walk(|row, container, _| rows.push((*row, Arc::clone(container))))?;
        let clock = clock();
        for (record, container) in &rows {
            let peer = self.peer_of(Starts::of(record));
            if self.is_peer_wanted(peer.as_deref()) {
                each(&Seen { record, container, peer, clock: &clock, names: (&self.names, &self.directory) });
            }
        }
        Ok(walk)
    }

    /// Looks at all live connections.
    pub(crate) fn walk(
        &mut self,
        mut each: impl FnMut(&record::Connection, &Arc<Container>, &Clock),
    ) -> anyhow::Result<Walk> {
        self.walk_seen(|seen| each(seen.record, seen.container, seen.clock))
    }

    /// The same, before any far end is known.
    fn walk_seen(&mut self, mut each: impl FnMut(&Seen<'_>)) -> anyhow::Result<Walk> {
        let clock = &clock();
        let (filter, far_ends) = (&self.filter, &mut self.far_ends);
        let names = (&self.names, &self.directory);
        let walk = self.monitor.walk(Some(&mut |record| {
            if let Some(far_ends) = far_ends {
                far_ends.peers.note(record);
            }
            let container = &self.directory.resolve(record.cgroup_id);
            if filter.matches(&subject(record, container)) {
                each(&Seen { record, container, peer: None, clock, names });
            }
        }))?;
        Ok(walk)
    }

    /// The far end of a connection, if it is on this host and was seen by now.
    pub(crate) fn peer(&self, starts: Option<Starts>) -> Option<(End, Arc<Container>)> {
        let end = self.far_ends.as_ref()?.peers.of(starts?)?;
        Some((end, self.directory.resolve(end.cgroup_id)))
    }

    /// Whose it is.
    pub(crate) fn peer_of(&self, starts: Option<Starts>) -> Option<Arc<Container>> {
        self.peer(starts).map(|(_, container)| container)
    }

    /// What its address and port are called, as of a time (`CLOCK_MONOTONIC`, ns).
    pub(crate) fn peer_name(
        &self,
        container: &Container,
        address: (IpAddr, u16),
        at_ns: u64,
    ) -> Option<String> {
        Some(self.names.of(&self.directory, container, address, at_ns)?.name)
    }

    /// Waits for what names were asked for and are not known yet, for a moment at most.
    pub(crate) fn settle_names(&self) {
        self.names.settle(PATIENCE);
    }

    /// Says what the addresses of far ends are called.
    pub(crate) fn name_peers(&self, connections: &mut [&mut Connection]) {
        let now = clock().monotonic_ns;
        let address = |c: &Connection| (c.peer.address, c.peer.port.unwrap_or_default());
        let of = |c: &Connection| self.peer_name(&c.container, address(c), now);
        for connection in &*connections {
            of(connection);
        }
        self.settle_names();
        for connection in connections {
            connection.peer.name = of(connection);
        }
    }

    /// The cookie of its socket.
    pub(crate) fn peer_cookie(&self, starts: Option<Starts>) -> Option<u64> {
        Some(self.far_ends.as_ref()?.peers.of(starts?)?.cookie)
    }

    fn take_cgroup_events(&mut self) -> anyhow::Result<bool> {
        take_cgroup_events(&mut self.monitor, &self.directory)
    }

    /// Says on stderr what was lost.
    pub(crate) fn report_losses(&self) {
        let losses = self.monitor.losses();
        for (which, what) in [
            (
                record::loss::LOSS_CONNECTION_EVENT,
                "connection events were lost: the buffer was full (see --buffer)",
            ),
            (record::loss::LOSS_DNS, "DNS answers were lost: the buffer was full"),
            (
                record::loss::LOSS_STORAGE,
                "sockets could not be followed: there was no room or no memory for them",
            ),
        ] {
            if losses[which] > 0 {
                say!("{} {what}", losses[which]);
            }
        }
        let missed = self.monitor.missed();
        if missed > 0 {
            say!("up to {missed} events were missed: the programs were running on that CPU already");
        }
    }
}

impl FarEnds {
    fn new(filter: PeerArgs, events: u32) -> Self {
        Self { peers: Peers::default(), filter, events, waiting: Vec::new(), ended: VecDeque::new() }
    }

    /// Takes note of who is there, and of who will be forgotten.
    fn note(&mut self, batch: &[record::Connection]) {
        let now = Instant::now();
        for event in batch {
            self.peers.note(event);
            let is_over = Event::ALL.get(usize::from(event.event)) == Some(&Event::Close);
            if let (true, Some(starts)) = (is_over, Starts::of(event)) {
                self.ended.push_back((now, starts, event.cookie));
            }
        }
    }

    /// Forgets those that ended a while ago.
    fn forget(&mut self, now: Instant) {
        while let Some((ended, starts, cookie)) = self.ended.front().copied()
            && now.saturating_duration_since(ended) >= 2 * SETTLED
        {
            self.peers.forget(starts, cookie);
            self.ended.pop_front();
        }
    }
}

/// Where programs on packets hang that see DNS answers.
pub(crate) fn dns_root(layout: &CgroupLayout) -> anyhow::Result<PathBuf> {
    let mount = layout.unified().context("--dns needs a cgroup2 hierarchy, and none is mounted here")?;
    Ok(mount.point.clone())
}

/// Hands cgroups that were made and removed to the directory. Returns whether there were any.
pub(crate) fn take_cgroup_events(monitor: &mut Monitor, directory: &Directory) -> anyhow::Result<bool> {
    let events = monitor.cgroup_events()?;
    let any = !events.is_empty();
    for event in events {
        match event {
            CgroupEvent::Made(id, Some(path)) => directory.cgroup_added(id, &path.to_string_lossy()),
            CgroupEvent::Made(_, None) => {} // found by a walk when it is asked for
            CgroupEvent::Removed(id) => directory.cgroup_removed(id),
        }
    }
    Ok(any)
}

/// What is not shown for want of capabilities that one can do without.
pub(crate) fn without(missing: &[Capability]) -> Option<String> {
    let list: Vec<_> = missing.iter().map(ToString::to_string).collect();
    (!list.is_empty()).then(|| format!("without {}", list.join(", ")))
}

/// The containers of this host.
pub(crate) fn directory(runtimes: &RuntimeArgs) -> anyhow::Result<Directory> {
    let sockets = (!runtimes.sockets.is_empty()).then(|| runtimes.sockets.clone());
    let kubernetes = Access::find(runtimes.kubeconfig.as_deref(), runtimes.node.as_deref())?;
    Directory::start(identity::Options { mount: None, runtime_sockets: sockets, kubernetes })
        .context("cannot look at this host's containers")
}

/// Sockets know their cgroup2; where there is none, their tasks are asked.
pub(crate) fn owner(layout: &CgroupLayout) -> Owner {
    let CgroupLayout::V1Only { v1 } = layout else { return Owner::Socket };
    let controllers = v1.iter().flat_map(|hierarchy| &hierarchy.controllers);
    let known = controllers.into_iter().find(|name| ["memory", "pids"].contains(&name.as_str()));
    known.map_or(Owner::Socket, |controller| Owner::Task { controller: controller.clone() })
}

/// Set by SIGINT and SIGTERM; a second one ends at once.
pub(crate) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot wait for signals")?;
    }
    Ok(stop)
}

/// What time the kernel's clock means.
pub(crate) fn clock() -> Clock {
    let monotonic = clock_gettime(ClockId::Monotonic);
    Clock {
        at: Timestamp::now(),
        monotonic_ns: monotonic.tv_sec as u64 * 1_000_000_000 + monotonic.tv_nsec as u64,
    }
}

/// One connection, for a program.
pub(crate) fn connection(
    record: &record::Connection,
    container: &Arc<Container>,
    clock: &Clock,
    is_event: bool,
) -> Connection {
    Connection::new(record, clock, Arc::clone(container), is_event)
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stdout())
}
