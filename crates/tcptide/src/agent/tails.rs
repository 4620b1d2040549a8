//! Those who follow events through the API. While there are none, the kernel sends none for them.

use std::{mem, sync::Arc};

use model::{
    connection::{Clock, since_ns, subject},
    container::Container,
    filter::Filter,
    record,
};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use crate::{
    args::PeerArgs,
    identity::Directory,
    names::Names,
    peers::{Peers, Starts},
    session::{clock, connection, tell_far_end},
};

/// All kinds of events: bits.
pub(super) const ALL_EVENTS: u32 = (1 << record::event::EVENTS) - 1;
/// How many events may wait for one reader.
const ROOM: usize = 16_384;

/// What a reader gets.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// An event's connection, as JSON.
    Event(Arc<str>),
    /// There was no room for so many.
    Lost(u64),
}

/// What one of them wants.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Bits.
    pub(super) events: u32,
    pub(super) filter: Filter,
    pub(super) peer: PeerArgs,
}

struct Tail {
    wanted: Wanted,
    to: Sender<Told>,
    lost: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Tails {
    all: Vec<Tail>,
    /// What was fetched last. It is told with the next batch, in which the other end may be, where far ends are known.
    waiting: Vec<record::Connection>,
    batch: Vec<record::Connection>,
}

impl Tails {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What anybody wants: bits.
    pub(super) fn events(&self) -> u32 {
        self.all.iter().fold(0, |all, tail| all | tail.wanted.events)
    }

    /// One more, from now on.
    pub(super) fn add(&mut self, wanted: Wanted) -> Receiver<Told> {
        let (to, from) = channel(ROOM);
        self.all.push(Tail { wanted, to, lost: 0 });
        from
    }

    /// Takes in an event.
    pub(super) fn event(&mut self, event: &record::Connection) {
        if self.events() & (1 << event.event) != 0 {
            self.batch.push(*event);
        }
    }

    /// Tells what was taken in. Whether somebody left.
    pub(super) fn tell(&mut self, directory: &Directory, names: &Names, peers: Option<&Peers>) -> bool {
        let batch = mem::take(&mut self.batch);
        let due = if peers.is_some() { mem::replace(&mut self.waiting, batch) } else { batch };
        let clock = clock();
        for event in &due {
            let near = directory.resolve(event.cgroup_id);
            let far = peers.zip(Starts::of(event)).and_then(|(peers, starts)| peers.of(starts));
            let far = far.map(|end| directory.resolve(end.cgroup_id));
            let mut text = None;
            for tail in &mut self.all {
                let wanted = &tail.wanted;
                if wanted.events & (1 << event.event) != 0
                    && wanted.filter.matches(&subject(event, &near))
                    && wanted.peer.matches(far.as_deref())
                {
                    let text = text
                        .get_or_insert_with(|| json(event, &near, far.as_ref(), &clock, names, directory));
                    if let Some(text) = text {
                        tail.tell(Arc::clone(text));
                    }
                }
            }
        }
        let before = self.all.len();
        self.all.retain(|tail| !tail.to.is_closed());
        if self.all.is_empty() {
            self.waiting.clear();
        }
        before != self.all.len()
    }
}

impl Tail {
    fn tell(&mut self, text: Arc<str>) {
        if self.lost > 0 {
            if self.to.try_send(Told::Lost(self.lost)).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(TrySendError::Full(_)) = self.to.try_send(Told::Event(text)) {
            self.lost += 1;
        }
    }
}

fn json(
    event: &record::Connection,
    near: &Arc<Container>,
    far: Option<&Arc<Container>>,
    clock: &Clock,
    names: &Names,
    directory: &Directory,
) -> Option<Arc<str>> {
    let mut told = connection(event, near, clock, true);
    tell_far_end(&mut told, far.cloned(), (event.peer_port, since_ns(event)), (names, directory));
    serde_json::to_string(&told).map(Arc::from).map_err(|e| tracing::warn!("an event as JSON: {e}")).ok()
}
