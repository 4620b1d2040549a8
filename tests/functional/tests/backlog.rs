//! A flood of SYNs from an address that never answers, with SYN cookies and without, and handshakes that end at a full
//! accept queue: what listeners show of it, and who of those that mean it becomes a connection.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use functional::connections::{Connections, Queues, Trace};
use functional::forwarder::{DEVICE, Direction, Forwarder, Impairment};
use functional::netns::{Netns, add_address};
use functional::packet::{Header, is_syn_ack};
use functional::process::wait_until;
use functional::witness::sockets;
use functional::workload::{self, Counts, Running};
use rustix::process::Signal;

mod host;

use host::{Host, SOON, agent, knock, signal};

/// The length of a listener's queues, to be flooded.
const LIMIT: u64 = 8;
/// What the kernel counts of SYNs that find the queue full, with cookies and without.
const SENT: &str = "TcpExtSyncookiesSent";
const DROPPED: &str = "TcpExtListenDrops";

/// A host, those who mean it, and a flood.
struct Net {
    client: Netns,
    host: Host,
    path: Forwarder,
    /// The listener.
    at: SocketAddr,
    flooder: IpAddr,
}

impl Net {
    /// What the listening host does when its SYN queue is full: `net.ipv4.tcp_syncookies`.
    fn new(number: u8, cookies: &str) -> Self {
        let (client, host) = (Netns::new("backlog").unwrap(), Host::new("backlog"));
        let [at_a, at_b, flooder]: [IpAddr; 3] =
            [1, 2, 3].map(|ip| format!("198.18.{number}.{ip}").parse().unwrap());
        let path = Forwarder::between(&client, at_a, &host.netns, at_b, Impairment::default()).unwrap();
        add_address(&client, DEVICE, &format!("{flooder}/32")).unwrap();
        host.netns.ip(&["route", "add", &format!("{flooder}/32"), "dev", DEVICE]).unwrap();
        host.netns.sysctl("net.ipv4.tcp_syncookies", cookies).unwrap();
        // Whoever is flooded never answers.
        path.drop_if(Direction::BToA, move |packet| {
            is_syn_ack(packet) && Header::parse(packet).is_some_and(|header| header.destination == flooder)
        });
        Self { client, host, path, at: SocketAddr::new(at_b, 7000), flooder }
    }

    /// Sends so many SYNs, each once, and waits until the host has counted those that found no room. Returns how many
    /// did.
    fn flood(&self, syns: u32, no_room: &str) -> u64 {
        let before = self.host.kernel(no_room);
        let room = || u64::from(syns) - (self.host.kernel(no_room) - before);
        drop(knock(&self.client, Some(self.flooder), self.at, syns));
        // Older kernels have room for as many as the limit, newer ones for one more.
        wait_until(no_room, SOON, || Ok((room() <= LIMIT + 1).then_some(()))).unwrap();
        wait_until("the SYN queue to be full", SOON, || Ok((self.half_open() >= room()).then_some(())))
            .unwrap();
        room()
    }

    fn half_open(&self) -> u64 {
        sockets(&self.host.netns, &["state", "syn-recv"]).unwrap().len() as u64
    }

    /// What tcptide says of the listener's queues while `ss` says the same.
    fn queues(&self) -> Queues {
        wait_until("a quiet moment", SOON, || {
            let before = self.half_open();
            let (told, seen) = self.host.look(self.at);
            if self.half_open() != before {
                return Ok(None);
            }
            let queues = told.queues.unwrap();
            let drops = seen.drops().unwrap();
            assert_eq!(queues, Queues { accept: seen.recv_q, limit: seen.send_q, syn: before, drops });
            Ok(Some(queues))
        })
        .unwrap()
    }

    /// Connects so many times one after the other, with a request and its answer each.
    fn churn(&self, count: u64) -> Counts {
        let (to, count) = (self.at.to_string(), count.to_string());
        let churn = ["churn", "--to", &to, "--rate", "100", "--seconds", "20", "--count", &count];
        let client = Running::start(&mut self.client.wrap(&workload::command(churn).unwrap())).unwrap();
        client.wait(SOON * 2).unwrap()
    }

    /// Until one more finds no room: the kernel soon gives up those of a flood.
    fn fill_the_syn_queue(&self, no_room: &str) {
        let before = self.host.kernel(no_room);
        wait_until("a full SYN queue", SOON, || {
            drop(knock(&self.client, Some(self.flooder), self.at, 1));
            Ok((self.host.kernel(no_room) > before).then_some(()))
        })
        .unwrap();
    }
}

/// What was told of passive connections is what their clients did, whose owner is the listener's, and what the kernel
/// counted.
fn are_connections_like_others(net: &Net, told: &Connections, counts: &Counts) {
    assert_eq!((counts.failures(), counts.closed), (0, counts.opened));
    assert_eq!(net.host.kernel("TcpPassiveOpens"), counts.opened);
    for event in ["open", "established", "close"] {
        let told = told.events(event);
        assert_eq!((event, told.0.len() as u64), (event, counts.opened));
        for end in &told.0 {
            assert_eq!(end.cgroup(), net.host.cgroup.path().to_str().unwrap());
            assert!(end.direction() == "passive" && end.is_at(net.at) && end.peer.address != net.flooder);
        }
    }
    let closed = told.events("close");
    let sum = |of: fn(&functional::connections::Connection) -> u64| closed.0.iter().map(of).sum::<u64>();
    let bytes = (sum(|end| end.sent_bytes), sum(|end| end.received_bytes));
    assert_eq!(bytes, (counts.bytes_received, counts.bytes_sent));
    assert!(closed.reasons().iter().all(|&reason| reason == "normal"), "{closed:?}");
}

#[test]
fn a_flood_is_answered_with_cookies_and_takes_no_room() {
    let net = Net::new(81, "1");
    let (agent, trace) = (agent(), Trace::start(&net.host.netns, &[]).unwrap());
    let server = net.host.serve(net.at, LIMIT as u32);
    // The rest is answered with cookies, and the host remembers nothing of it.
    let room = net.flood(40, SENT);
    let queues = net.queues();
    assert!((LIMIT..=LIMIT + 1).contains(&room) && (1..=room).contains(&queues.syn), "{room} {queues:?}");
    assert_eq!((queues.accept, queues.limit, queues.drops), (0, LIMIT, 0));
    assert_eq!(net.host.kernel(DROPPED), 0);

    // Who means it gets in with a cookie.
    net.fill_the_syn_queue(SENT);
    let counts = net.churn(5);
    assert!(net.host.kernel("TcpExtSyncookiesRecv") > 0);
    trace.wait_for("close", 5).unwrap();
    server.finish().unwrap();
    are_connections_like_others(&net, &trace.end().unwrap(), &counts);
    let scrape = agent.scrape().unwrap();
    let figure = |name, labels: &[_]| net.host.figure(&scrape, name, labels);
    assert_eq!(figure("tcptide_opened_total", &[("direction", "passive")]), 5);
    assert_eq!((figure("tcptide_closed_total", &[]), figure("tcptide_listen_drops_total", &[])), (5, 0));
}

#[test]
fn connections_made_with_nothing_but_cookies_are_seen_from_their_beginning() {
    const COUNT: u64 = 30;
    // Always, and not only for a full queue.
    let net = Net::new(82, "2");
    let (agent, trace) = (agent(), Trace::start(&net.host.netns, &[]).unwrap());
    let server = net.host.serve(net.at, LIMIT as u32);
    let counts = net.churn(COUNT);
    let cookies = ["TcpExtSyncookiesSent", "TcpExtSyncookiesRecv"].map(|name| net.host.kernel(name));
    assert_eq!((counts.opened, cookies), (COUNT, [COUNT, COUNT]));
    trace.wait_for("close", COUNT as usize).unwrap();
    assert_eq!(net.queues(), Queues { accept: 0, limit: LIMIT, syn: 0, drops: 0 });
    server.finish().unwrap();
    are_connections_like_others(&net, &trace.end().unwrap(), &counts);
    let scrape = agent.scrape().unwrap();
    assert_eq!(net.host.figure(&scrape, "tcptide_opened_total", &[("direction", "passive")]), COUNT);
}

#[test]
fn without_cookies_a_flood_turns_everybody_away() {
    let net = Net::new(83, "0");
    let agent = agent();
    let _server = net.host.serve(net.at, LIMIT as u32);
    let room = net.flood(40, DROPPED);
    let dropped = net.host.kernel(DROPPED);
    assert_eq!((40 - room, net.host.kernel("TcpExtTCPReqQFullDrop")), (dropped, dropped));
    let queues = net.queues();
    assert!((LIMIT..=LIMIT + 1).contains(&room) && (1..=room).contains(&queues.syn), "{room} {queues:?}");
    assert_eq!((queues.accept, queues.limit, queues.drops), (0, LIMIT, dropped));
    assert_eq!(net.host.counted(&agent), (0, LIMIT, dropped));

    // Who means it is turned away, too.
    net.fill_the_syn_queue(DROPPED);
    let dropped = net.host.kernel(DROPPED);
    let waiting = knock(&net.client, None, net.at, 1);
    wait_until("the SYN to be dropped", SOON, || Ok((net.host.kernel(DROPPED) > dropped).then_some(())))
        .unwrap();
    assert_eq!(net.host.kernel("TcpPassiveOpens"), 0);
    let asking = Connections::now(&net.client, &["--port", "7000"]).unwrap();
    let asking = asking.only(|end| end.local.address != net.flooder);
    assert_eq!(asking.one().unwrap().state, "syn_sent");
    drop(waiting);
    let scrape = agent.scrape().unwrap();
    // An agent that saw none has no such figure of this container.
    let opened = [("container", net.host.cgroup.path().to_str().unwrap()), ("direction", "passive")];
    assert_eq!(scrape.sum("tcptide_opened_total", &opened).unwrap_or(0.0) as u64, 0);
}

#[test]
fn a_handshake_that_ends_at_a_full_queue_is_a_connection_to_its_client_only() {
    const LATE: u32 = 3;
    let net = Net::new(84, "1");
    // A reset instead of silence.
    net.host.netns.sysctl("net.ipv4.tcp_abort_on_overflow", "1").unwrap();
    let (at_host, at_client) =
        (Trace::start(&net.host.netns, &[]).unwrap(), Trace::start(&net.client, &[]).unwrap());
    let agent = agent();
    let server = net.host.listen(net.at, LATE);
    // Their SYN-ACKs come when others have filled the queue.
    net.path.drop_if(Direction::BToA, is_syn_ack);
    let late = knock(&net.client, None, net.at, LATE);
    wait_until("the SYNs to arrive", SOON, || Ok((net.half_open() == u64::from(LATE)).then_some(())))
        .unwrap();
    net.path.clear_filter(Direction::BToA);
    let early = knock(&net.client, None, net.at, LATE + 1);
    at_client.wait_for("close", LATE as usize).unwrap();
    let overflows = net.host.kernel("TcpExtListenOverflows");
    assert!(overflows >= u64::from(LATE) && overflows == net.host.kernel(DROPPED), "{overflows}");
    let queues = net.queues();
    assert_eq!((queues.accept, queues.limit, queues.syn), (u64::from(LATE) + 1, LATE.into(), 0));
    // The socket counts SYNs that came again, too.
    assert!(queues.drops >= overflows && net.host.counted(&agent).2 == queues.drops, "{queues:?}");

    signal(&server, Signal::CONT);
    wait_until("the rest to be accepted", SOON, || Ok((net.host.counted(&agent).0 == 0).then_some(())))
        .unwrap();
    let accepted = u64::from(LATE) + 1;
    assert_eq!(net.host.kernel("TcpPassiveOpens"), accepted);
    let opened = [("direction", "passive")];
    assert_eq!(net.host.figure(&agent.scrape().unwrap(), "tcptide_opened_total", &opened), accepted);
    let ends = |sockets: &[OwnedFd]| -> Vec<SocketAddr> {
        sockets.iter().map(|socket| rustix::net::getsockname(socket).unwrap().try_into().unwrap()).collect()
    };
    let (late_at, early_at) = (ends(&late), ends(&early));
    drop((late, early));
    assert_eq!(server.finish().unwrap().accepted, accepted);
    at_client.wait_for("close", (2 * LATE + 1) as usize).unwrap();
    let (told, at_host) = (at_client.end().unwrap(), at_host.end().unwrap());
    for (ends, reason) in [(late_at, "reset_received"), (early_at, "normal")] {
        for end in ends {
            let told = told.at(end);
            assert_eq!(told.events("established").0.len(), 1, "{end}");
            assert_eq!(told.events("close").one().unwrap().reason(), reason, "{end}");
            let seen =
                at_host.only(|host| host.peer.address == end.ip() && host.peer.port == Some(end.port()));
            let opened = usize::from(reason == "normal");
            assert_eq!(seen.events("open").0.len(), opened, "{end} {seen:?}");
        }
    }
}
