//! From options to a loaded object: constants, sizes, which programs, and trying again without those that the kernel
//! refuses.

use std::{
    collections::BTreeMap,
    mem::MaybeUninit,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use libbpf_rs::{
    MapCore as _, MapFlags, PrintLevel, set_print,
    skel::{OpenSkel as _, SkelBuilder as _},
};
use model::{
    drop,
    filter::Filter,
    histogram::Scale,
    record::{self, DROP_OTHER},
};

use crate::{
    error::Error,
    kernel::{Kernel, check_privileges, is_confidential},
    namespaces::sockets_of_host,
    programs::{PROGRAMS, Program, Status},
    skel::{OpenTcpSkel, TcpSkel, TcpSkelBuilder, types},
};

/// How many sockets there is room for, unless more is asked for or there are many already.
pub const MAX_SOCKETS: u32 = 1 << 18;

/// Room for DNS answers, bytes: some 1,800 short ones between two looks.
const DNS_BUFFER: u32 = 1 << 20;

/// What a [`crate::Monitor`] does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether to follow connections from now on. Without it there is one look at what is there.
    pub follow: bool,
    /// Which events are sent: a bit for each of [`record::event`].
    pub events: u32,
    /// Whether totals are kept for each cgroup.
    pub totals: bool,
    /// Whether [`crate::Monitor::namespace_owners`] is kept.
    pub namespace_owners: bool,
    /// Whether the end of a listener is an event too: a close with [`record::FLAG_LISTENER`].
    pub listener_ends: bool,
    /// Whether rows and close events carry RTT samples.
    pub samples: bool,
    /// Rows that a walk returns at a time; 0: walks return no rows.
    pub rows: u32,
    /// Room for events on their way, bytes; a power of two, and a page at least.
    pub buffer: u32,
    /// Most cgroups with totals of their own.
    pub max_cgroups: u32,
    /// Most sockets that are followed at a time, or twice as many as there are at the start, if that is more.
    pub max_sockets: u32,
    /// Which connections events and rows are about. The kernel side knows ports and peers by this, and cgroups as far
    /// as [`crate::Monitor::want_cgroup`] told it; names are left to the reader.
    pub filter: Filter,
    /// Whether [`crate::Monitor::want_cgroup`] will be used.
    pub filter_cgroups: bool,
    /// At most one RTT sample of a connection in this time.
    pub sample_interval: Duration,
    /// Whether it is measured how long data waits to be read, which costs something with every receive.
    pub read_delay: bool,
    /// When the kernel is made to measure the programs' run time, which costs some 80 ns a run.
    pub measure: Measure,
    /// Whose a socket is.
    pub owner: Owner,
    /// Whether [`crate::Monitor::dns_answers`] has the answers to name lookups: of the sockets of all cgroups below this
    /// directory of a cgroup2 hierarchy.
    pub dns: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            follow: true,
            events: 0,
            totals: false,
            namespace_owners: false,
            listener_ends: false,
            samples: false,
            rows: 0,
            buffer: 8 << 20,
            max_cgroups: 16384,
            max_sockets: MAX_SOCKETS,
            filter: Filter::default(),
            filter_cgroups: false,
            sample_interval: Duration::from_millis(1),
            read_delay: false,
            measure: Measure::Never,
            owner: Owner::Socket,
            dns: None,
        }
    }
}

impl Options {
    /// Whether this event is sent.
    pub fn wants(&self, event: usize) -> bool {
        self.events & (1 << event) != 0
    }
}

/// When the programs' run time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Not at all.
    Never,
    /// From time to time, for a moment: see [`crate::Monitor::tend`].
    Sample,
    /// All the time.
    Always,
}

/// Where the owner of a socket is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// In the socket: its cgroup in the cgroup2 hierarchy.
    Socket,
    /// In the task that connects, or that is seen to use an accepted socket: its cgroup in a version 1 hierarchy. For
    /// hosts without cgroup2.
    Task {
        /// The controller, as in /proc/cgroups: `memory` or `pids`.
        controller: String,
    },
}

/// A loaded object, and what became of every program.
pub(crate) struct Loaded {
    pub(crate) skel: TcpSkel<'static>,
    pub(crate) statuses: BTreeMap<&'static str, Status>,
}

/// Loads what the options need, without what this kernel does not have or does not take.
pub(crate) fn load(options: &Options) -> Result<Loaded, Error> {
    check_privileges()?;
    let kernel = Kernel::look()?;
    if is_confidential() {
        return Err(Error::Lockdown);
    }
    let mut statuses = BTreeMap::new();
    for program in PROGRAMS {
        let status = if !program.is_needed(options) {
            Status::Off
        } else if let Some(hook) = program.tracepoint().filter(|h| kernel.tracepoint_arguments(h).is_none()) {
            Status::Unsupported(format!("kernel {} has no tracepoint {hook}", kernel.release))
        } else if let Some((place, function)) = program.function() {
            kernel.takes(place, function)
        } else if program.name == "drop" && kernel.tracepoint_arguments("kfree_skb") < Some(3) {
            Status::Unsupported(format!("kernel {} tells no reasons", kernel.release))
        } else {
            Status::Attached
        };
        refuse_if_required(program, &status)?;
        statuses.insert(program.name, status);
    }
    loop {
        // libbpf wants the object to stay where it is: one small allocation for each try is never given back.
        let place = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open =
            TcpSkelBuilder::default().open(place).map_err(|e| Error::system("open the BPF object", e))?;
        configure(&mut open, options, &kernel)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            let runs = |name: &str| statuses.get(name) == Some(&Status::Attached);
            constants.sees_segments = runs("rtt");
            constants.sees_accepts = runs("accepted");
            constants.sees_reads = runs("used");
            constants.sees_congestion = runs("congestion");
            constants.sees_resets = runs("reset_sent");
            constants.sees_overflows = runs("overflow_syn") && runs("overflow_ack");
        }
        for mut program in open.open_object_mut().progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            program.set_autoload(statuses.get(name.as_str()) == Some(&Status::Attached));
        }
        let (result, log) = with_log(|| open.load());
        match result {
            Ok(skel) => return Ok(Loaded { skel, statuses }),
            Err(error) => {
                let Some(program) =
                    PROGRAMS.iter().find(|p| log.contains(&format!("prog '{}': failed to load", p.name)))
                else {
                    return Err(Error::system(
                        "load the BPF object",
                        last_words(&log).unwrap_or(error.to_string()),
                    ));
                };
                let status = Status::Refused(reason(&log, program).unwrap_or(error.to_string()));
                refuse_if_required(program, &status)?;
                statuses.insert(program.name, status);
            }
        }
    }
}

/// Without a required program there is nothing to show.
pub(crate) fn refuse_if_required(program: &Program, status: &Status) -> Result<(), Error> {
    match status {
        Status::Unsupported(reason) | Status::Refused(reason) if program.required => {
            Err(Error::Refused { program: program.name.to_owned(), reason: reason.clone() })
        }
        _ => Ok(()),
    }
}

fn configure(open: &mut OpenTcpSkel<'_>, options: &Options, kernel: &Kernel) -> Result<(), Error> {
    let peers = options.filter.peer.prefixes();
    let constants: &mut types::rodata = open
        .maps
        .rodata_data
        .as_deref_mut()
        .ok_or_else(|| Error::system("set the constants", "no constants"))?;
    constants.retransmit_has_err = kernel.tracepoint_arguments("tcp_retransmit_skb").is_some_and(|n| n > 2);
    constants.accept_has_argument = kernel.function_arguments("inet_csk_accept").is_some_and(|n| n < 4);
    constants.wanted_events = options.events;
    constants.wants_totals = options.totals;
    constants.wants_namespace_owners = options.namespace_owners;
    constants.wants_listener_ends = options.listener_ends;
    constants.wants_samples = options.samples;
    constants.filters_cgroups = options.filter_cgroups;
    constants.filters_ports = !options.filter.port.is_empty();
    constants.port_by_default = options.filter.port.includes().is_empty();
    constants.filters_peers = !options.filter.peer.is_empty();
    constants.peer_by_default = peers.default;
    constants.walk_capacity = options.rows;
    constants.sample_interval_us = u32::try_from(options.sample_interval.as_micros()).unwrap_or(u32::MAX);
    constants.tick_ns = tick_ns();
    constants.drop_has_socket = kernel.tracepoint_arguments("kfree_skb").is_some_and(|n| n > 3);
    fill_drop_slots(&mut constants.drop_slots, kernel);
    if let Owner::Task { controller } = &options.owner {
        let value = kernel.enum_value("cgroup_subsys_id", &format!("{controller}_cgrp_id"));
        constants.owner_by_task = true;
        constants.owner_controller = value.and_then(|v| u32::try_from(v).ok()).ok_or_else(|| {
            Error::system("tell owners by task", format!("this kernel has no controller {controller}"))
        })?;
        constants.owner_hierarchy = hierarchy_of(controller).unwrap_or_default();
    }
    for (scale, all) in [
        (record::SCALE_RTT, &Scale::RTT),
        (record::SCALE_CONNECT, &Scale::CONNECT),
        (record::SCALE_LIFETIME, &Scale::LIFETIME),
    ] {
        fill(&mut constants.bounds[scale], all);
    }
    let there = sockets_of_host().and_then(|n| u32::try_from(2 * n).ok()).unwrap_or(0);
    let sockets = options.max_sockets.max(there);
    let sizes = [
        (&mut open.maps.walked, options.rows.max(1)),
        (&mut open.maps.events, if options.events == 0 { 4096 } else { options.buffer }),
        (&mut open.maps.dns_answers, if options.dns.is_some() { DNS_BUFFER } else { 4096 }),
        // One more for CGROUP_OTHER.
        (&mut open.maps.totals, options.max_cgroups + 1),
        (&mut open.maps.gauges, sockets),
        (&mut open.maps.seats, sockets),
    ];
    for (map, size) in sizes {
        map.set_max_entries(size).map_err(|e| Error::system("size a BPF map", e))?;
    }
    Ok(())
}

fn fill(bounds: &mut [u64], scale: &Scale) {
    // What a program subtracts from it stays positive.
    bounds.fill(u64::MAX / 2);
    for (bound, us) in bounds.iter_mut().zip(scale.bounds_us()) {
        *bound = us;
    }
}

/// A tick of the kernel's clock, ns: what its coarse clocks advance by.
fn tick_ns() -> u32 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u32::try_from(tick.tv_nsec).unwrap_or(4_000_000)
}

/// What each of this kernel's reasons to drop a packet is counted as.
fn fill_drop_slots(slots: &mut [u8], kernel: &Kernel) {
    slots.fill(DROP_OTHER as u8);
    for (name, value) in kernel.enum_values("skb_drop_reason") {
        if let Some(slot) = usize::try_from(value).ok().and_then(|at| slots.get_mut(at)) {
            *slot = drop::slot(&name) as u8;
        }
    }
}

/// A version 1 hierarchy's number: `/proc/cgroups`, second column.
fn hierarchy_of(controller: &str) -> Option<i32> {
    let text = std::fs::read_to_string("/proc/cgroups").ok()?;
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(controller))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

/// Fills the maps that do not change while the monitor runs.
pub(crate) fn fill_maps(skel: &TcpSkel<'_>, options: &Options) -> Result<(), Error> {
    let put = |map: &libbpf_rs::MapMut<'_>, key: &[u8], value: &[u8]| {
        map.update(key, value, MapFlags::ANY).map_err(|e| Error::system("fill a BPF map", e))
    };
    if options.totals {
        let none = vec![0; size_of::<record::Totals>()];
        put(&skel.maps.totals, &record::CGROUP_OTHER.to_ne_bytes(), &none)?;
    }
    let ports = &options.filter.port;
    for port in ports.includes() {
        put(&skel.maps.wanted_ports, &port.to_ne_bytes(), &[1])?;
    }
    for port in ports.excludes() {
        put(&skel.maps.wanted_ports, &port.to_ne_bytes(), &[0])?;
    }
    for prefix in options.filter.peer.prefixes().entries {
        let key = [&u32::from(prefix.length).to_ne_bytes(), prefix.address.as_slice()].concat();
        put(&skel.maps.wanted_peers, &key, &[prefix.include.into()])?;
    }
    Ok(())
}

/// libbpf's callback has no argument of ours, so what it says while an object is loaded goes here.
static LOG: Mutex<String> = Mutex::new(String::new());

/// What libbpf says meanwhile, and nothing of it on stderr.
pub(crate) fn with_log<R>(act: impl FnOnce() -> R) -> (R, String) {
    #[allow(clippy::needless_pass_by_value)] // libbpf-rs wants it so
    fn keep(_: PrintLevel, text: String) {
        tracing::debug!(target: "libbpf", "{}", text.trim_end());
        LOG.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
    LOG.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let before = set_print(Some((PrintLevel::Warn, keep)));
    let result = act();
    set_print(before);
    (result, std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// What the kernel said of one program: the verifier's last line before its statistics, and the error.
fn reason(log: &str, program: &Program) -> Option<String> {
    let about = format!("libbpf: prog '{}': ", program.name);
    let error =
        log.lines().find_map(|l| l.strip_prefix(&about)?.strip_prefix("BPF program load failed: "))?;
    let verifier = log
        .lines()
        .take_while(|line| !line.starts_with("-- END PROG LOAD LOG --"))
        .filter(|line| !line.is_empty() && !line.starts_with("libbpf:") && !line.starts_with("-- BEGIN"))
        .take_while(|line| !line.starts_with("verification time") && !line.starts_with("processed "))
        .last();
    Some(verifier.map_or_else(|| error.to_owned(), |line| format!("{error} ({line})")))
}

fn last_words(log: &str) -> Option<String> {
    log.lines().rev().find(|l| !l.trim().is_empty()).map(|l| l.trim_start_matches("libbpf: ").to_owned())
}
