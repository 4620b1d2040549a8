//! One direction of a path: a thread that takes packets from one TUN device, decides their fate,
//! and writes them to the other when they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::SyncDevice;

use super::impairment::{Fate, Impairer};
use super::{Counters, Filter, Verdict};
use crate::packet::{Header, flip_bit, mark_congestion};
use crate::process::lock;

/// Packets taken before looking again at what is due: bounds how late a due packet can be.
const BATCH: usize = 32;
/// Room for any IP packet.
const LARGEST_PACKET: usize = 65_536;

/// What a story can change while packets flow.
pub(super) struct Control {
    pub(super) impairer: Impairer,
    pub(super) filter: Option<Box<Filter>>,
    pub(super) blackhole: bool,
    pub(super) counters: Counters,
}

/// A packet under way, ordered by the moment it is due, then by its arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

/// One direction of a path; see [`Direction::run`].
pub(super) struct Direction {
    pub(super) from: Arc<SyncDevice>,
    pub(super) to: Arc<SyncDevice>,
    /// Readable when it is time to end.
    pub(super) stop: Arc<std::os::fd::OwnedFd>,
    pub(super) control: Arc<Mutex<Control>>,
    queue: BinaryHeap<Reverse<UnderWay>>,
    number: u64,
}

impl Direction {
    pub(super) fn new(
        from: Arc<SyncDevice>,
        to: Arc<SyncDevice>,
        stop: Arc<std::os::fd::OwnedFd>,
        control: Arc<Mutex<Control>>,
    ) -> Self {
        Self { from, to, stop, control, queue: BinaryHeap::new(), number: 0 }
    }

    /// Forwards until told to stop, or until a device is gone. What is under way then is lost.
    pub(super) fn run(mut self) {
        // The default slack, 50 us, would be added to every delay.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut buffer = vec![0; LARGEST_PACKET];
        loop {
            self.deliver_due();
            let mut ready =
                [PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&*self.from, PollFlags::IN)];
            let timeout = self.queue.peek().map(|Reverse(next)| until(next.due));
            match poll(&mut ready, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            if !ready[0].revents().is_empty() {
                return;
            }
            if ready[1].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                return;
            }
            for _ in 0..BATCH {
                match self.from.recv(&mut buffer) {
                    Ok(length) => self.take(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => return,
                }
            }
        }
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|Reverse(next)| next.due <= now) {
            let Some(Reverse(next)) = self.queue.pop() else { return };
            let sent = self.to.send(&next.packet);
            let mut control = lock(&self.control);
            match sent {
                Ok(_) => {
                    control.counters.forwarded += 1;
                    control.counters.forwarded_bytes += next.packet.len() as u64;
                }
                Err(_) => control.counters.undeliverable += 1,
            }
        }
    }

    /// Decides what happens to a packet that came in, and queues what shall go out.
    fn take(&mut self, packet: &[u8]) {
        let control = Arc::clone(&self.control);
        let mut control = lock(&control);
        // Router solicitations and multicast reports come when the kernel likes: if they drew
        // random numbers, stories would differ from run to run.
        if Header::parse(packet).is_none_or(|header| header.destination.is_multicast()) {
            control.counters.ignored += 1;
            return;
        }
        control.counters.received += 1;
        control.counters.received_bytes += packet.len() as u64;
        let verdict = control.filter.as_mut().map_or(Verdict::Pass, |filter| filter(packet));
        if control.blackhole {
            control.counters.blackholed += 1;
            return;
        }
        match verdict {
            Verdict::Pass => self.impair(&mut control, packet),
            Verdict::Drop => control.counters.filtered += 1,
            Verdict::Answer(answer) => {
                control.counters.filtered += 1;
                match self.from.send(&answer) {
                    Ok(_) => control.counters.answered += 1,
                    Err(_) => control.counters.undeliverable += 1,
                }
            }
        }
    }

    fn impair(&mut self, control: &mut Control, packet: &[u8]) {
        let fate = control.impairer.fate();
        if fate.drop {
            control.counters.dropped += 1;
            return;
        }
        let Some(due) = control.impairer.due(Instant::now(), packet.len(), &fate) else {
            control.counters.overflowed += 1;
            return;
        };
        let packet = changed(control, packet, &fate);
        if fate.hold_back {
            control.counters.held_back += 1;
        }
        if fate.duplicate {
            control.counters.duplicated += 1;
            self.enqueue(due, packet.clone());
        }
        self.enqueue(due, packet);
    }

    fn enqueue(&mut self, due: Instant, packet: Vec<u8>) {
        self.number += 1;
        self.queue.push(Reverse(UnderWay { due, number: self.number, packet }));
    }
}

/// The packet with what its fate does to its bytes.
fn changed(control: &mut Control, packet: &[u8], fate: &Fate) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(random) = fate.corrupt
        && flip_bit(&mut packet, random)
    {
        control.counters.corrupted += 1;
    }
    if fate.mark && mark_congestion(&mut packet) {
        control.counters.marked += 1;
    }
    packet
}

/// The time left until `moment` as `poll` wants it; zero if it has passed.
fn until(moment: Instant) -> Timespec {
    let left = moment.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
}
