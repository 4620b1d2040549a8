//! The running monitor: attached programs, and the ways to read them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{ErrorKind, Read as _},
    os::fd::{AsFd as _, AsRawFd, OwnedFd},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use libbpf_rs::{Iter, Link, MapCore as _, MapFlags, RingBuffer, RingBufferBuilder, skel::Skel as _};
use model::record::{self, loss};

use crate::{
    batch::each_record,
    error::Error,
    namespaces::{network_namespaces, sockets_in_use, visit},
    programs::{PROGRAMS, Program, Status},
    read,
    rows::Rows,
    skel::TcpSkel,
    start::{Loaded, Measure, Options, fill_maps, load, refuse_if_required, with_log},
    stats::{self, Costs, ProgramStats},
};

/// A cgroup was made or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupEvent {
    /// With its path below the hierarchy's root; `None` if that was too long to be sent.
    Made(u64, Option<PathBuf>),
    /// It is gone; sockets may still belong to it.
    Removed(u64),
}

/// A cgroup that has had a socket in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceOwner {
    /// The namespace: its cookie, where the kernel gives it one when it makes it (since 5.12), else its inode number.
    pub id: u64,
    /// Its inode number.
    pub netns: u64,
    /// The cgroup's id.
    pub cgroup: u64,
}

/// What a walk did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walk {
    /// Its number, as in [`record::Totals::walk`].
    pub number: u32,
    /// Sockets looked at.
    pub sockets: u64,
    /// Rows handed out.
    pub rows: u64,
    /// How long it took.
    pub took: Duration,
}

/// What the kernel answers where it has a function and no way in for programs; no error of user space, so errno(3) lacks it.
const ENOTSUPP: i32 = 524;

type Queue<T> = Rc<RefCell<Vec<T>>>;

/// The BPF programs at work. When it is dropped, they and all they gathered are gone.
pub struct Monitor {
    // Fields are dropped in this order: programs stop before their maps go.
    links: BTreeMap<&'static str, Link>,
    events: (RingBuffer<'static>, Queue<record::Connection>),
    cgroups: (RingBuffer<'static>, Queue<record::CgroupEvent>),
    dns: (RingBuffer<'static>, Queue<record::DnsAnswer>),
    /// What programs on packets hang on.
    cgroup_root: Option<File>,
    rows: Option<Rows>,
    statuses: BTreeMap<&'static str, Status>,
    visited: BTreeSet<u64>,
    costs: Costs,
    when_measured: Measure,
    nesting: Nesting,
    last_walk: Option<Walk>,
    skel: TcpSkel<'static>,
}

/// The program whose skipped runs matter most, and the one that stands in for it.
const NESTING: &str = "lifecycle";
const NESTED: &str = "lifecycle_nested";
/// For how long nothing nests before the second stands by; and so many times that, each time that it was wrong to.
const QUIET: Duration = Duration::from_secs(10);
const PATIENCE: u32 = 10;

#[derive(Clone, Copy)]
struct Nesting {
    /// Runs of the first that the kernel left out, as of the last look.
    seen: u64,
    /// Those among them while the second stood by.
    alone: u64,
    /// When there was one.
    last: Instant,
    /// How long there must be none for the second to stand by.
    quiet: Duration,
}

impl Monitor {
    /// Loads and attaches the programs, then adopts the connections that are there already: no connection is missed
    /// in between, and none is met twice.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let Loaded { skel, statuses } = load(options)?;
        fill_maps(&skel, options)?;
        let rows = match options.rows {
            0 => None,
            capacity => Some(Rows::map(skel.maps.walked.as_fd(), capacity as usize)?),
        };
        let mut monitor = Self {
            links: BTreeMap::new(),
            events: queue(&skel.maps.events)?,
            cgroups: queue(&skel.maps.cgroup_events)?,
            dns: queue(&skel.maps.dns_answers)?,
            cgroup_root: options
                .dns
                .as_ref()
                .map(File::open)
                .transpose()
                .map_err(|e| Error::system("open the root of the cgroups", e))?,
            rows,
            statuses,
            visited: BTreeSet::new(),
            costs: Costs::default(),
            nesting: Nesting { seen: 0, alone: 0, last: Instant::now(), quiet: QUIET },
            when_measured: options.measure,
            last_walk: None,
            skel,
        };
        for program in PROGRAMS {
            monitor.attach(program)?;
        }
        monitor.adopt()?;
        monitor.measure();
        Ok(monitor)
    }

    fn attach(&mut self, program: &'static Program) -> Result<(), Error> {
        if self.statuses.get(program.name) != Some(&Status::Attached) {
            return Ok(());
        }
        let Some(loaded) = self.skel.object().progs_mut().find(|p| p.name() == program.name) else {
            return Err(Error::system(
                "attach a BPF program",
                format!("the object has no '{}'", program.name),
            ));
        };
        let root = self.cgroup_root.as_ref().map(AsRawFd::as_raw_fd);
        let (link, _) = with_log(|| match (program.hook, root) {
            ("iter/bpf_map_elem", _) => loaded.attach_iter(self.skel.maps.once.as_fd()),
            ("cgroup_skb/ingress" | "cgroup_skb/egress", Some(root)) => loaded.attach_cgroup(root),
            _ => loaded.attach(),
        });
        match link {
            Ok(link) => drop(self.links.insert(program.name, link)),
            Err(error) => {
                let said = format!("{error:#}");
                let status = if said.contains(&format!("os error {ENOTSUPP}")) {
                    Status::Unsupported("this kernel lets no program into that function".to_owned())
                } else {
                    Status::Refused(said)
                };
                refuse_if_required(program, &status)?;
                self.statuses.insert(program.name, status);
            }
        }
        Ok(())
    }

    /// Takes up connections that were there before: through the files of all processes, then namespace by namespace
    /// those that no process holds (not yet accepted, or closed and not yet done).
    fn adopt(&mut self) -> Result<(), Error> {
        if let Some(link) = self.links.get("adopt_files") {
            run(link)?;
        }
        self.adopt_namespaces().map(drop)
    }

    /// Looks into network namespaces that were not there at the last call. Returns how many there were. Costs some
    /// milliseconds for each: an iterator over a namespace's sockets searches the whole host's table.
    pub fn adopt_namespaces(&mut self) -> Result<usize, Error> {
        let Some(link) = self.links.get("adopt_namespace") else { return Ok(0) };
        let all = network_namespaces();
        let visited = &self.visited;
        let new: BTreeMap<_, _> =
            all.iter().filter(|(id, _)| !visited.contains(id)).map(clone_pair).collect();
        let iterate = link.as_fd().try_clone_to_owned().map_err(|e| Error::system("share an iterator", e))?;
        let held = self.held()?;
        let done = visit(&new, move |id| {
            // What processes hold was met before; there is no need to look where there is no more.
            if sockets_in_use() == Some(held.get(&id).copied().unwrap_or(0)) {
                return Ok(());
            }
            drain(create_iterator(&iterate)?)
        })?;
        self.visited = all.into_keys().collect();
        Ok(done.len())
    }

    /// Sockets that processes hold, by network namespace.
    fn held(&self) -> Result<BTreeMap<u64, i64>, Error> {
        let map = &self.skel.maps.held;
        let mut all = BTreeMap::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::system("count sockets", e))?;
            if let (Ok(id), Some(Ok(n))) =
                (<[u8; 4]>::try_from(key.as_slice()), value.map(|v| <[u8; 8]>::try_from(v.as_slice())))
            {
                all.insert(u64::from(u32::from_ne_bytes(id)), i64::from_ne_bytes(n));
            }
        }
        Ok(all)
    }

    /// Hands over the events since the last call. Nothing wakes the reader: call it several times a second, as far
    /// as [`Options::buffer`] reaches.
    pub fn events(&mut self, each: &mut dyn FnMut(&record::Connection)) -> Result<usize, Error> {
        let (ring, queue) = &self.events;
        ring.consume().map_err(|e| Error::system("read connection events", e))?;
        let mut n = 0;
        for mut event in queue.borrow_mut().drain(..) {
            if let Some(open) = read::opened_too(&mut event) {
                n += 1;
                each(&open);
            }
            n += 1;
            each(&event);
        }
        Ok(n)
    }

    /// Hands over the cgroups made and removed since the last call, in order.
    pub fn cgroup_events(&mut self) -> Result<Vec<CgroupEvent>, Error> {
        let (ring, queue) = &self.cgroups;
        ring.consume().map_err(|e| Error::system("read cgroup events", e))?;
        Ok(queue.borrow_mut().drain(..).map(|event| cgroup_event(&event)).collect())
    }

    /// Hands over the DNS answers since the last call, in order. Needs [`Options::dns`].
    pub fn dns_answers(&mut self, each: &mut dyn FnMut(&record::DnsAnswer)) -> Result<(), Error> {
        let (ring, queue) = &self.dns;
        ring.consume().map_err(|e| Error::system("read DNS answers", e))?;
        queue.borrow_mut().drain(..).for_each(|answer| each(&answer));
        Ok(())
    }

    /// Looks at every live connection and listener, in all namespaces: brings the totals up to now, counts states,
    /// and hands out a row each if rows are wanted and asked for. A connection that closes meanwhile is in no row, and
    /// its event tells; one that opens meanwhile may be missed by this walk.
    pub fn walk(&mut self, each: Option<&mut dyn FnMut(&record::Connection)>) -> Result<Walk, Error> {
        let walk = self.walk_over(0, each)?;
        self.last_walk = Some(walk);
        Ok(walk)
    }

    /// Looks at the live connection or listener whose socket has this cookie, and at no other: totals are as of the last
    /// walk, and not even that without another. Needs rows.
    pub fn find(&mut self, cookie: u64) -> Result<Option<record::Connection>, Error> {
        let mut found = None;
        self.walk_over(cookie, Some(&mut |row| found = Some(*row)))?;
        Ok(found)
    }

    fn walk_over(
        &mut self,
        cookie: u64,
        mut each: Option<&mut dyn FnMut(&record::Connection)>,
    ) -> Result<Walk, Error> {
        let began = Instant::now();
        let link =
            self.links.get("walk").ok_or_else(|| Error::system("walk the sockets", "the program is off"))?;
        let mut iterator = Iter::new(link).map_err(|e| Error::system("walk the sockets", e))?;
        let state =
            self.skel.maps.bss_data.as_deref_mut().ok_or_else(|| Error::system("walk", "no variables"))?;
        // Zero is that of no walk.
        state.walk_number = state.walk_number.wrapping_add(1).max(1);
        state.walk_used = 0;
        state.walk_seen = 0;
        state.walk_at = 0;
        state.walk_noted_count = 0;
        state.walk_next = 0;
        state.walk_rows = each.is_some() && self.rows.is_some();
        state.walk_cookie = cookie;
        let mut walk = Walk { number: state.walk_number, ..Walk::default() };
        let mut unused = [0; 64];
        loop {
            let answer = iterator.read(&mut unused);
            let state = self
                .skel
                .maps
                .bss_data
                .as_deref_mut()
                .ok_or_else(|| Error::system("walk", "no variables"))?;
            if let (Some(rows), Some(each)) = (&self.rows, each.as_mut()) {
                let rows = rows.used(state.walk_used as usize);
                for row in rows {
                    each(row);
                }
                walk.rows += rows.len() as u64;
                state.walk_used = 0;
            }
            walk.sockets = state.walk_seen;
            match answer {
                Ok(0) => break,
                Ok(_) => {}
                // The rows were full, or it has been at work for long enough at a time: it goes on where it was.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(Error::system("walk the sockets", e)),
            }
        }
        walk.took = began.elapsed();
        Ok(walk)
    }

    /// What the last walk did, if there was one.
    pub fn last_walk(&self) -> Option<Walk> {
        self.last_walk
    }

    /// Hands over the totals of every cgroup that had a connection; those of live connections as of the last walk.
    pub fn each_total(&self, each: &mut dyn FnMut(u64, &record::Totals)) -> Result<(), Error> {
        each_record(&self.skel.maps.totals, each)
    }

    /// Keeps what [`Monitor::watched`] tells of a connection, from now on, even if that ends; [`record::WATCHES`] of them
    /// at most. The programs look for it with each walk, each end and each change of state.
    pub fn watch(&mut self, cookie: u64) -> Result<(), Error> {
        let map = &self.skel.maps.watched;
        let nothing = record::Watched::default();
        map.update(&cookie.to_ne_bytes(), read::bytes(&nothing), MapFlags::ANY)
            .map_err(|e| Error::system("watch a connection", e))?;
        self.count_watches();
        Ok(())
    }

    /// Keeps that no longer.
    pub fn unwatch(&mut self, cookie: u64) -> Result<(), Error> {
        delete(&self.skel.maps.watched, &cookie.to_ne_bytes())?;
        self.count_watches();
        Ok(())
    }

    fn count_watches(&mut self) {
        let count = self.skel.maps.watched.keys().count();
        if let Some(state) = self.skel.maps.bss_data.as_deref_mut() {
            state.watches = u32::try_from(count).unwrap_or(u32::MAX);
        }
    }

    /// What was kept of a connection since it is watched; RTT samples up to the last walk, or its end.
    pub fn watched(&self, cookie: u64) -> Result<Option<record::Watched>, Error> {
        let mut record = record::Watched::default();
        let is_there = self
            .skel
            .maps
            .watched
            .lookup_into(&cookie.to_ne_bytes(), read::bytes_of(&mut record), MapFlags::ANY)
            .map_err(|e| Error::system("read what is kept of a connection", e))?;
        Ok(is_there.then_some(record))
    }

    /// Drops a cgroup's totals. Connections that still belong to it would begin new ones.
    pub fn forget(&self, cgroup: u64) -> Result<(), Error> {
        delete(&self.skel.maps.totals, &cgroup.to_ne_bytes())
    }

    /// What became of packets of no socket, by network namespace, as [`NamespaceOwner::id`]. Needs [`Options::totals`].
    pub fn strays(&self) -> Result<Vec<(u64, Box<record::Strays>)>, Error> {
        records(&self.skel.maps.strays)
    }

    /// Drops what is known of a namespace. Packets that still come there begin anew.
    pub fn forget_strays(&self, namespace: u64) -> Result<(), Error> {
        delete(&self.skel.maps.strays, &namespace.to_ne_bytes())
    }

    /// Whose sockets have been in which network namespace, since the monitor began; `None` once there was no room for
    /// all of them. Needs [`Options::namespace_owners`].
    pub fn namespace_owners(&self) -> Result<Option<Vec<NamespaceOwner>>, Error> {
        if self.skel.maps.bss_data.as_deref().is_none_or(|state| state.namespace_owners_lost > 0) {
            return Ok(None);
        }
        let map = &self.skel.maps.namespace_owners;
        let mut all = Vec::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::system("read a BPF map", e))?;
            if let (Some((netns, cgroup)), Some(inode)) =
                (key.split_first_chunk::<8>(), value.as_deref().and_then(<[u8]>::first_chunk::<4>))
                && let Some(cgroup) = cgroup.first_chunk::<8>()
            {
                all.push(NamespaceOwner {
                    id: u64::from_ne_bytes(*netns),
                    netns: u32::from_ne_bytes(*inode).into(),
                    cgroup: u64::from_ne_bytes(*cgroup),
                });
            }
        }
        Ok(Some(all))
    }

    /// Drops one of them. A socket that is made there later brings it back.
    pub fn forget_namespace_owner(&self, owner: &NamespaceOwner) -> Result<(), Error> {
        let key = [owner.id.to_ne_bytes(), owner.cgroup.to_ne_bytes()].concat();
        delete(&self.skel.maps.namespace_owners, &key)
    }

    /// Says whether connections of a cgroup are asked for, and, unless it is said of this one alone, of those below it
    /// that nothing was said of. Needs [`Options::filter_cgroups`].
    pub fn want_cgroup(&self, cgroup: u64, wanted: bool, alone: bool) -> Result<(), Error> {
        let value = (u8::from(wanted) * record::WANTED) | (u8::from(alone) * record::WANTED_ALONE);
        self.skel
            .maps
            .wanted_cgroups
            .update(&cgroup.to_ne_bytes(), &[value], MapFlags::ANY)
            .map_err(|e| Error::system("filter by cgroup", e))
    }

    /// Says whether connections of all other cgroups are asked for; they are at the start.
    pub fn want_other_cgroups(&mut self, wanted: bool) {
        if let Some(data) = self.skel.maps.data_data.as_deref_mut() {
            data.cgroup_by_default = wanted;
        }
    }

    /// Says which of [`Options::events`] are sent from now on: a bit for each of [`record::event`]. All are at the start.
    pub fn send_events(&mut self, events: u32) {
        if let Some(data) = self.skel.maps.data_data.as_deref_mut() {
            data.sent_events = events;
        }
    }

    /// What was lost so far, indexed by [`record::loss`].
    pub fn losses(&self) -> [u64; loss::LOSSES] {
        // Read as the kernel writes it, from other CPUs.
        self.skel.maps.bss_data.as_deref().map_or([0; loss::LOSSES], |state| {
            let at = &raw const state.losses;
            // SAFETY: a live, aligned place; a torn reading of a single u64 does not happen on 64-bit machines.
            unsafe { at.read_volatile() }
        })
    }

    /// What became of each program, and what it has cost in the time that [`Monitor::measured`] tells.
    pub fn programs(&self) -> Vec<ProgramStats> {
        let mut all = self.read_programs();
        let (sums, _) = self.costs.sums(&reading(&all));
        for program in &mut all {
            if let Some(run) = &mut program.run {
                (run.run_time_ns, run.runs) = sums.get(program.program.name).copied().unwrap_or_default();
            }
        }
        all
    }

    /// For how long the kernel has measured run times for this monitor.
    pub fn measured(&self) -> Duration {
        self.costs.sums(&BTreeMap::new()).1
    }

    /// As the kernel counts.
    fn read_programs(&self) -> Vec<ProgramStats> {
        let loaded: BTreeMap<_, _> =
            self.skel.object().progs().map(|p| (p.name().to_string_lossy().into_owned(), p)).collect();
        PROGRAMS
            .iter()
            .map(|program| {
                let status = self.statuses.get(program.name).cloned().unwrap_or(Status::Off);
                let is_loaded = matches!(status, Status::Attached | Status::Standby);
                let run = loaded.get(program.name).filter(|_| is_loaded).and_then(|p| {
                    stats::of(p.as_fd()).map_err(|e| tracing::warn!("{}: {e}", program.name)).ok()
                });
                ProgramStats { program, status, run }
            })
            .collect()
    }

    /// Begins to measure, or ends it, as is due.
    fn measure(&mut self) {
        let mut costs = std::mem::take(&mut self.costs);
        if let Err(error) = costs.tend(self.when_measured, || reading(&self.read_programs())) {
            tracing::warn!("no run times: {error}");
            self.when_measured = Measure::Never;
        }
        self.costs = costs;
    }

    /// What is to be done from time to time by those who watch for long, every quarter of a second or so: measures run
    /// times, if they are to be samples, from one call to the next, every 10 s.
    pub fn tend(&mut self) -> Result<(), Error> {
        self.measure();
        Ok(())
    }

    /// Has `lifecycle_nested` stand by where nothing has nested for a while, and brings it back as soon as something
    /// does: it makes every state change dearer. To be called as [`Monitor::tend`]; without such calls it is always there.
    pub fn tend_nested(&mut self) -> Result<(), Error> {
        let missed = self.missed_by(NESTING);
        let standing_by = self.statuses.get(NESTED) == Some(&Status::Standby);
        if missed > self.nesting.seen {
            if standing_by {
                self.nesting.alone += missed - self.nesting.seen;
                self.statuses.insert(NESTED, Status::Attached);
                self.attach(program(NESTED)?)?;
            }
            if standing_by {
                self.nesting.quiet *= PATIENCE;
            }
            self.nesting = Nesting { seen: missed, last: Instant::now(), ..self.nesting };
        } else if self.is_attached(NESTED) && self.nesting.last.elapsed() >= self.nesting.quiet {
            self.links.remove(NESTED);
            self.statuses.insert(NESTED, Status::Standby);
        }
        Ok(())
    }

    fn missed_by(&self, name: &str) -> u64 {
        let loaded = self.skel.object().progs().find(|p| p.name() == name);
        loaded.and_then(|p| stats::of(p.as_fd()).ok()).map_or(0, |run| run.missed)
    }

    /// How many events no program saw, at most: each program on the hook was running on that CPU already.
    pub fn missed(&self) -> u64 {
        let mut by_hook = BTreeMap::new();
        for (program, run) in self.programs().into_iter().filter_map(|p| Some((p.program, p.run?))) {
            let alone = if program.name == NESTING { self.nesting.alone } else { 0 };
            let missed = run.missed.saturating_sub(alone);
            let least = by_hook.entry(program.hook).or_insert(missed);
            *least = missed.min(*least);
        }
        by_hook.values().sum::<u64>() + self.nesting.alone
    }

    /// Whether this program runs, so that what it feeds is measured.
    pub fn is_attached(&self, program: &str) -> bool {
        self.statuses.get(program) == Some(&Status::Attached)
    }
}

fn reading(all: &[ProgramStats]) -> BTreeMap<&'static str, (u64, u64)> {
    let run = |p: &ProgramStats| Some((p.program.name, p.run.map(|run| (run.run_time_ns, run.runs))?));
    all.iter().filter_map(run).collect()
}

fn program(name: &str) -> Result<&'static Program, Error> {
    let missing = || Error::system("find a BPF program", format!("there is no '{name}'"));
    PROGRAMS.iter().find(|p| p.name == name).ok_or_else(missing)
}

fn clone_pair((id, path): (&u64, &PathBuf)) -> (u64, PathBuf) {
    (*id, path.clone())
}

/// A ring buffer that is emptied into a queue.
fn queue<T: read::Plain + 'static>(
    map: &libbpf_rs::MapMut<'_>,
) -> Result<(RingBuffer<'static>, Queue<T>), Error> {
    let queue = Queue::default();
    let into = Rc::clone(&queue);
    let mut builder = RingBufferBuilder::new();
    builder
        .add(map, move |bytes| {
            into.borrow_mut().push(read::record(bytes));
            0
        })
        .map_err(|e| Error::system("open a ring buffer", e))?;
    let ring = builder.build().map_err(|e| Error::system("open a ring buffer", e))?;
    Ok((ring, queue))
}

/// All records of a map at once.
fn records<T: read::Plain>(map: &libbpf_rs::MapMut<'_>) -> Result<Vec<(u64, Box<T>)>, Error> {
    let mut all = Vec::new();
    each_record(map, &mut |number, record| all.push((number, Box::new(*record))))?;
    Ok(all)
}

/// Deletes a record, if it is there.
fn delete(map: &libbpf_rs::MapMut<'_>, key: &[u8]) -> Result<(), Error> {
    match map.delete(key) {
        Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
            Err(Error::system("delete from a BPF map", e))
        }
        _ => Ok(()),
    }
}

fn cgroup_event(event: &record::CgroupEvent) -> CgroupEvent {
    if event.removed != 0 {
        return CgroupEvent::Removed(event.id);
    }
    let path = event.path.get(..event.path_len as usize).filter(|path| !path.is_empty());
    CgroupEvent::Made(event.id, path.map(|bytes| String::from_utf8_lossy(bytes).into_owned().into()))
}

fn run(link: &Link) -> Result<(), Error> {
    drain(Iter::new(link).map_err(|e| Error::system("go through the sockets of all processes", e))?)
}

/// An iterator's program runs while it is read; it prints nothing.
fn drain(mut iterator: impl std::io::Read) -> Result<(), Error> {
    let mut unused = [0; 64];
    loop {
        match iterator.read(&mut unused) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(Error::system("go through the sockets", e)),
        }
    }
}

/// An iterator over the sockets of the calling thread's network namespace.
fn create_iterator(link: &OwnedFd) -> Result<std::fs::File, Error> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};
    // SAFETY: takes a descriptor that is open, returns a new one or a negative errno.
    let fd = unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) };
    if fd < 0 {
        let error = std::io::Error::from_raw_os_error(-fd);
        return Err(Error::system("go through the sockets of a network namespace", error));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}
