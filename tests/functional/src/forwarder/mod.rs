//! A path between two namespaces that delays, loses, duplicates, reorders, corrupts, marks, or is slow.
//!
//! Each namespace gets a TUN device; a thread per direction carries packets from one to the other
//! in user space. Unlike `netem`, it needs no kernel module, can be told to pick packets (drop
//! just the SYNs), does the same to the n-th packet in every run with the same seed, and counts
//! everything it does.
//!
//! `delay` is one way: with 50 ms in both directions a round trip takes 100 ms.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, eventfd};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::netns::{self, Netns};
use crate::process::lock;

mod direction;
mod impairment;

pub use impairment::{HOLD_BACK, Impairment};

use direction::{Control, Direction as Carrier};
use impairment::Impairer;

/// The device's name in both namespaces.
pub const DEVICE: &str = "path";
/// The largest IP packet the path carries, in bytes.
pub const MTU: u16 = 1500;
/// Packets that may wait for the forwarder's thread: enough for several full TCP windows, so that
/// a busy machine does not add losses of its own (they would be counted as `device_dropped`).
const DEVICE_QUEUE: u32 = 20_000;

/// One of the two ways through a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first namespace to the second.
    AToB,
    /// From the second namespace to the first.
    BToA,
}

/// What a filter wants done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on, through the impairment.
    Pass,
    /// Drop it (counted as `filtered`).
    Drop,
    /// Drop it, and give this IP packet to the sender at once (see [`crate::packet`]).
    Answer(Vec<u8>),
}

/// Sees every unicast IP packet of a direction, in order, before the impairment does.
pub type Filter = dyn FnMut(&[u8]) -> Verdict + Send;

/// What one direction has done so far, in packets.
///
/// Of a packet received, one of these becomes true: `filtered`, `blackholed`, `dropped`,
/// `overflowed`, `forwarded`, `undeliverable`, or it is still under way. `forwarded` and
/// `undeliverable` count the duplicates too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Unicast packets taken from the device.
    pub received: u64,
    /// Their bytes, IP headers included.
    pub received_bytes: u64,
    /// Delivered, duplicates included.
    pub forwarded: u64,
    /// Their bytes, IP headers included.
    pub forwarded_bytes: u64,
    /// Lost by the impairment's `drop`.
    pub dropped: u64,
    /// Lost because the queue of a path with a rate was full.
    pub overflowed: u64,
    /// Picked out by the filter.
    pub filtered: u64,
    /// Of those, answered.
    pub answered: u64,
    /// Lost in the blackhole.
    pub blackholed: u64,
    /// Packets of which a second copy was sent.
    pub duplicated: u64,
    /// Held back so that later ones could overtake.
    pub held_back: u64,
    /// With a bit flipped.
    pub corrupted: u64,
    /// Given a congestion mark, duplicates not counted.
    pub marked: u64,
    /// Multicast (router solicitations, group reports), never forwarded.
    pub ignored: u64,
    /// Refused by the receiving device.
    pub undeliverable: u64,
    /// Lost in front of the path because its thread was too slow; 0 in a good run.
    pub device_dropped: u64,
}

/// A path to be; made by [`Forwarder::build`].
#[derive(Debug)]
pub struct Builder<'a> {
    a: &'a Netns,
    b: &'a Netns,
    addresses: Vec<(IpAddr, IpAddr)>,
    a_to_b: Impairment,
    b_to_a: Impairment,
}

impl Builder<'_> {
    /// Gives each end an address and a route to the other's. Call it again for the other family.
    #[must_use]
    pub fn addresses(mut self, a: IpAddr, b: IpAddr) -> Self {
        self.addresses.push((a, b));
        self
    }

    /// Impairs one direction.
    #[must_use]
    pub fn impair(mut self, direction: Direction, impairment: Impairment) -> Self {
        match direction {
            Direction::AToB => self.a_to_b = impairment,
            Direction::BToA => self.b_to_a = impairment,
        }
        self
    }

    /// Impairs both directions.
    #[must_use]
    pub fn impair_both(self, impairment: Impairment) -> Self {
        self.impair(Direction::AToB, impairment).impair(Direction::BToA, impairment)
    }

    /// Makes the devices and starts to forward.
    pub fn start(self) -> Result<Forwarder> {
        let device_a = open_device(self.a)?;
        let device_b = open_device(self.b)?;
        for &(a, b) in &self.addresses {
            if a.is_ipv4() != b.is_ipv4() {
                bail!("the ends of a path have addresses of one family, not {a} and {b}");
            }
            add_address(self.a, a, b)?;
            add_address(self.b, b, a)?;
        }
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("making an eventfd")?);
        let mut forwarder = Forwarder {
            ends: [self.a.path(), self.b.path()],
            controls: [control(self.a_to_b, 0), control(self.b_to_a, 1)],
            stop,
            threads: Vec::new(),
        };
        for (number, from, to) in [(0, &device_a, &device_b), (1, &device_b, &device_a)] {
            let carrier = Carrier::new(
                Arc::clone(from),
                Arc::clone(to),
                Arc::clone(&forwarder.stop),
                Arc::clone(&forwarder.controls[number]),
            );
            forwarder.threads.push(thread::spawn(move || carrier.run()));
        }
        Ok(forwarder)
    }
}

/// A path between two namespaces. On `Drop` its threads end and its devices go away.
pub struct Forwarder {
    ends: [PathBuf; 2],
    controls: [Arc<Mutex<Control>>; 2],
    stop: Arc<std::os::fd::OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Forwarder {
    /// Describes a path between two namespaces; nothing is made before [`Builder::start`].
    pub fn build<'a>(a: &'a Netns, b: &'a Netns) -> Builder<'a> {
        let none = Impairment::default();
        Builder { a, b, addresses: Vec::new(), a_to_b: none, b_to_a: none }
    }

    /// A path with one address at each end and the same impairment both ways.
    pub fn between(
        a: &Netns,
        a_address: IpAddr,
        b: &Netns,
        b_address: IpAddr,
        impairment: Impairment,
    ) -> Result<Self> {
        Self::build(a, b).addresses(a_address, b_address).impair_both(impairment).start()
    }

    /// Changes what happens to packets from now on. The seed of the start stays.
    pub fn impair(&self, direction: Direction, impairment: Impairment) {
        lock(self.control(direction)).impairer.set(impairment);
    }

    /// Lets everything that enters the path, in both directions, vanish; or ends that.
    pub fn set_blackhole(&self, on: bool) {
        for control in &self.controls {
            lock(control).blackhole = on;
        }
    }

    /// Sets or changes the filter of one direction.
    pub fn filter(&self, direction: Direction, filter: impl FnMut(&[u8]) -> Verdict + Send + 'static) {
        lock(self.control(direction)).filter = Some(Box::new(filter));
    }

    /// Drops the packets of one direction for which `unwanted` holds.
    pub fn drop_if(&self, direction: Direction, mut unwanted: impl FnMut(&[u8]) -> bool + Send + 'static) {
        self.filter(direction, move |packet| if unwanted(packet) { Verdict::Drop } else { Verdict::Pass });
    }

    /// Lets every packet pass again.
    pub fn clear_filter(&self, direction: Direction) {
        lock(self.control(direction)).filter = None;
    }

    /// What one direction has done so far.
    pub fn counters(&self, direction: Direction) -> Counters {
        let counters = lock(self.control(direction)).counters;
        let device_dropped = device_drops(&self.ends[direction as usize]).unwrap_or_default();
        Counters { device_dropped, ..counters }
    }

    fn control(&self, direction: Direction) -> &Mutex<Control> {
        &self.controls[direction as usize]
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn control(impairment: Impairment, stream: u64) -> Arc<Mutex<Control>> {
    Arc::new(Mutex::new(Control {
        impairer: Impairer::new(impairment, stream),
        filter: None,
        blackhole: false,
        counters: Counters::default(),
    }))
}

/// Makes the TUN device of one end, up but without addresses.
fn open_device(netns: &Netns) -> Result<Arc<SyncDevice>> {
    let device = netns.enter(|| {
        let device = DeviceBuilder::new()
            .name(DEVICE)
            .mtu(MTU)
            .enable(false)
            .build_sync()
            .context("making a TUN device: is there a /dev/net/tun?")?;
        device.set_nonblocking(true).context("making the TUN device non-blocking")?;
        Ok(device)
    })?;
    // Without a link-local address the kernel has nothing of its own to say on the path.
    netns.ip(&["link", "set", DEVICE, "addrgenmode", "none"])?;
    netns.ip(&["link", "set", DEVICE, "txqueuelen", &DEVICE_QUEUE.to_string(), "up"])?;
    Ok(Arc::new(device))
}

fn add_address(netns: &Netns, own: IpAddr, other: IpAddr) -> Result<()> {
    let prefix = if own.is_ipv4() { 32 } else { 128 };
    netns::add_address(netns, DEVICE, &format!("{own}/{prefix}"))?;
    netns.ip(&["route", "add", &format!("{other}/{prefix}"), "dev", DEVICE, "src", &own.to_string()])?;
    Ok(())
}

/// Packets that the sending device dropped because its queue was full.
fn device_drops(netns: &Path) -> Option<u64> {
    let text = netns::enter(netns, || Ok(fs::read_to_string("/proc/thread-self/net/dev")?)).ok()?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("path:"))?;
    // Eight columns of receiving, then bytes, packets, errs, drop of sending.
    line.split_whitespace().nth(11)?.parse().ok()
}
