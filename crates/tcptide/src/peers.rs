//! The far ends of connections, as far as they are on this host too: found among its own sockets.
//!
//! Both ends of a connection count from the same two sequence numbers, of which the kernel chooses one at each end by chance.
//! Addresses and ports may be translated on the way (NAT, a service's address, a published port) and may exist twice in
//! two networks; these numbers are neither. Where something ends connections and begins others in between, such as a
//! proxy, it is the far end. Nothing is guessed: a socket whose numbers two others have has no far end here.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use foldhash::fast::RandomState;
use model::{connection::Direction, record};

/// Both ends of a connection have told of its end after so long.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

/// The kernel's number of SYN_SENT: the peer's numbers are not known yet.
const SYN_SENT: u8 = 2;
/// The kernel's number of the LISTEN state.
const LISTEN: u8 = model::connection::LISTEN;

/// The sequence numbers of the first bytes in both directions: the own, the peer's.
type Numbers = (u32, u32);

/// Those that a socket may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Starts {
    numbers: Numbers,
    /// Whether the own may be one more: nobody saw who began, and a SYN counts only on the side that did.
    or_one_more: bool,
}

impl Starts {
    /// Those of a socket that has both.
    pub(crate) fn of(r: &record::Connection) -> Option<Self> {
        let state = if r.state_before == 0 { r.state } else { r.state_before };
        let or_one_more = Direction::of(r.direction).is_none();
        let numbers = (r.own_start, r.peer_start);
        (state != SYN_SENT && state != LISTEN).then_some(Self { numbers, or_one_more })
    }

    fn each(self) -> impl Iterator<Item = Numbers> {
        let (own, peer) = self.numbers;
        [Some((own, peer)), self.or_one_more.then(|| (own.wrapping_add(1), peer))].into_iter().flatten()
    }
}

/// A socket of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) cookie: u64,
    pub(crate) cgroup_id: u64,
    pub(crate) local_port: u16,
    /// Who began, if it was seen there.
    pub(crate) direction: Option<Direction>,
}

/// Who began a connection, as either end saw it.
pub(crate) fn direction(own: Option<Direction>, far: Option<&End>) -> Option<Direction> {
    own.or_else(|| far?.direction.map(Direction::other))
}

/// The port of the server that this side connected to. It may be translated on the way: the server knows its own.
pub(crate) fn server_port(peer_port: u16, far: Option<&End>) -> u16 {
    far.map_or(peer_port, |end| end.local_port)
}

/// The sockets of this host by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// `None`: several sockets have them.
    ends: HashMap<Numbers, Option<End>, RandomState>,
}

impl Peers {
    /// Takes note of a socket; of one that is known already, what is known of it last.
    pub(crate) fn note(&mut self, r: &record::Connection) {
        let Some(starts) = Starts::of(r) else { return };
        let end = End {
            cookie: r.cookie,
            cgroup_id: r.cgroup_id,
            local_port: r.local_port,
            direction: Direction::of(r.direction),
        };
        for numbers in starts.each() {
            match self.ends.entry(numbers) {
                Entry::Vacant(vacant) => drop(vacant.insert(Some(end))),
                Entry::Occupied(mut known) => {
                    let same = known.get().is_some_and(|known| known.cookie == end.cookie);
                    known.insert(same.then_some(end));
                }
            }
        }
    }

    /// Forgets a socket.
    pub(crate) fn forget(&mut self, starts: Starts, cookie: u64) {
        for numbers in starts.each() {
            if let Entry::Occupied(known) = self.ends.entry(numbers)
                && known.get().is_some_and(|end| end.cookie == cookie)
            {
                known.remove();
            }
        }
    }

    /// The far end of a connection.
    pub(crate) fn of(&self, starts: Starts) -> Option<End> {
        let mut found = starts.each().filter_map(|(own, peer)| *self.ends.get(&(peer, own))?);
        let first = found.next()?;
        found.all(|other| other.cookie == first.cookie).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(cookie: u64, own_start: u32, peer_start: u32) -> record::Connection {
        record::Connection {
            cookie,
            cgroup_id: cookie * 10,
            own_start,
            peer_start,
            state: 1,
            direction: 1,
            ..record::Connection::default()
        }
    }

    fn peer_of(peers: &Peers, r: &record::Connection) -> Option<u64> {
        peers.of(Starts::of(r)?).map(|end| end.cookie)
    }

    #[test]
    fn two_ends_find_each_other() {
        let (client, server) = (socket(1, 100, 200), socket(2, 200, 100));
        let mut peers = Peers::default();
        peers.note(&client);
        assert_eq!(peer_of(&peers, &client), None, "the far end is on another host");
        peers.note(&server);
        peers.note(&server);
        assert_eq!((peer_of(&peers, &client), peer_of(&peers, &server)), (Some(2), Some(1)));
        peers.forget(Starts::of(&server).unwrap(), 3);
        assert_eq!(peer_of(&peers, &client), Some(2));
        peers.forget(Starts::of(&server).unwrap(), 2);
        assert_eq!((peer_of(&peers, &client), peer_of(&peers, &server)), (None, Some(1)));
    }

    #[test]
    fn nobody_is_found_for_numbers_that_two_have() {
        let client = socket(1, 100, 200);
        let mut peers = Peers::default();
        for cookie in [2, 3, 2, 4] {
            peers.note(&socket(cookie, 200, 100));
        }
        assert_eq!(peer_of(&peers, &client), None);
    }

    #[test]
    fn a_connection_to_itself_is_its_own_far_end() {
        let own = socket(1, 100, 100);
        let mut peers = Peers::default();
        peers.note(&own);
        assert_eq!(peer_of(&peers, &own), Some(1));
    }

    #[test]
    fn where_nobody_saw_who_began_a_syn_may_count_or_not() {
        for (client_unknown, server_unknown) in [(true, false), (false, true), (true, true)] {
            let unknown = |r: record::Connection| record::Connection { direction: 0, ..r };
            // Without the SYN the client's own number is one less.
            let client = if client_unknown { unknown(socket(1, 99, 200)) } else { socket(1, 100, 200) };
            let server = if server_unknown { unknown(socket(2, 200, 100)) } else { socket(2, 200, 100) };
            let mut peers = Peers::default();
            peers.note(&client);
            peers.note(&server);
            assert_eq!((peer_of(&peers, &client), peer_of(&peers, &server)), (Some(2), Some(1)));
            peers.forget(Starts::of(&client).unwrap(), 1);
            assert_eq!(
                (peer_of(&peers, &server), peers.ends.len()),
                (None, if server_unknown { 2 } else { 1 })
            );
        }
    }

    #[test]
    fn what_has_no_numbers_yet_has_no_far_end() {
        let mut peers = Peers::default();
        for state in [SYN_SENT, LISTEN] {
            let r = record::Connection { state, ..socket(1, 0, 0) };
            peers.note(&r);
            assert_eq!(Starts::of(&r), None);
        }
        let failed = record::Connection { state: 7, state_before: SYN_SENT, ..socket(1, 0, 0) };
        assert_eq!(Starts::of(&failed), None);
    }
}
