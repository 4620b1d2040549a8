//! What the commands share: the monitor, the names, the filter, and the end.

use std::{
    collections::BTreeMap,
    io,
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
    connection::{Clock, Connection, subject},
    container::Container,
    filter::Filter,
    mountinfo::CgroupLayout,
    record,
};
use probe::{Capability, CgroupEvent, Monitor, Options, Owner, Walk, check_privileges};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    args::{FilterArgs, OutputArgs, RuntimeArgs},
    identity::{self, Directory},
    output::say,
    owners::Owners,
    peers::{End, Peers, Starts},
};

/// How often events are fetched: often enough for a burst to fit the buffer, seldom enough to cost nothing.
const PERIOD: Duration = Duration::from_millis(50);
/// How long the runtimes may take for their first answer before names are done without.
const PATIENCE: Duration = Duration::from_millis(500);

/// A running monitor and all that is needed to tell what it saw.
pub(crate) struct Session {
    pub(crate) monitor: Monitor,
    pub(crate) directory: Directory,
    pub(crate) filter: Filter,
    /// The sockets of this host, where far ends are asked for.
    peers: Option<Peers>,
    owners: Owners,
    stop: Arc<AtomicBool>,
}

impl Session {
    /// Starts a monitor for these connections. What else is wanted stands in `options`.
    pub(crate) fn start(filter: &FilterArgs, output: &OutputArgs, options: Options) -> anyhow::Result<Self> {
        Self::begin(filter, output, options, None)
    }

    /// The same where far ends are to be told. They may be sockets that the filter leaves out, so that the kernel side sends
    /// all.
    pub(crate) fn start_with_peers(
        filter: &FilterArgs,
        output: &OutputArgs,
        options: Options,
    ) -> anyhow::Result<Self> {
        Self::begin(filter, output, options, Some(Peers::default()))
    }

    fn begin(
        filter: &FilterArgs,
        output: &OutputArgs,
        mut options: Options,
        peers: Option<Peers>,
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
        if peers.is_none() {
            options.filter = filter.clone();
            options.filter_cgroups = owners.are_asked_for();
        }
        let monitor = Monitor::start(&options)?;
        directory.settle(PATIENCE);
        let mut session = Self { monitor, directory, filter, peers, owners, stop };
        session.take_cgroup_events()?;
        session.owners.tell(&mut session.monitor, &session.directory)?;
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
        mut each: impl FnMut(&record::Connection, &Arc<Container>, &Clock) -> anyhow::Result<()>,
        mut now_and_then: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = duration.map(|d| Instant::now() + d);
        loop {
            let over = self.stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
            if !over {
                let left = end.map_or(PERIOD, |end| end.saturating_duration_since(Instant::now()));
                thread::sleep(PERIOD.min(left));
            }
            self.fetch(&mut each)?;
            now_and_then(self)?;
            if over {
                return Ok(());
            }
        }
    }

    /// Fetches the events that are there. A command whose last look is a walk calls it after that: what closed before the
    /// walk came by is there.
    pub(crate) fn fetch(
        &mut self,
        mut each: impl FnMut(&record::Connection, &Arc<Container>, &Clock) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let clock = clock();
        let mut batch = Vec::new();
        self.monitor.events(&mut |event| batch.push(*event))?;
        // A cgroup is made before its first connection, so its name is known now.
        if self.take_cgroup_events()? || self.owners.are_due() {
            self.owners.tell(&mut self.monitor, &self.directory)?;
        }
        if let Some(peers) = &mut self.peers {
            for event in &batch {
                peers.note(event);
            }
        }
        for event in &batch {
            let container = self.directory.resolve(event.cgroup_id);
            if self.filter.matches(&subject(event, &container)) {
                each(event, &container, &clock)?;
            }
        }
        Ok(())
    }

    /// Looks at all live connections.
    pub(crate) fn walk(
        &mut self,
        mut each: impl FnMut(&record::Connection, &Arc<Container>, &Clock),
    ) -> anyhow::Result<Walk> {
        let clock = clock();
        let (directory, filter, peers) = (&self.directory, &self.filter, &mut self.peers);
        let walk = self.monitor.walk(Some(&mut |row| {
            if let Some(peers) = peers {
                peers.note(row);
            }
            let container = directory.resolve(row.cgroup_id);
            if filter.matches(&subject(row, &container)) {
                each(row, &container, &clock);
            }
        }))?;
        Ok(walk)
    }

    /// The far end of a connection, if it is on this host and was seen by now.
    pub(crate) fn peer(&self, starts: Option<Starts>) -> Option<(End, Arc<Container>)> {
        let end = self.peers.as_ref()?.of(starts?)?;
        Some((end, self.directory.resolve(end.cgroup_id)))
    }

    /// The cookie of its socket.
    pub(crate) fn peer_cookie(&self, starts: Option<Starts>) -> Option<u64> {
        Some(self.peers.as_ref()?.of(starts?)?.cookie)
    }

    /// Nobody will ask for the far end of this one any more.
    pub(crate) fn forget_peer(&mut self, starts: Option<Starts>, cookie: u64) {
        if let (Some(peers), Some(starts)) = (&mut self.peers, starts) {
            peers.forget(starts, cookie);
        }
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
    Directory::start(identity::Options { mount: None, runtime_sockets: sockets })
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
