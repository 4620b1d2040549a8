//! Listeners: how full their queues are, and what they turn away.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, TcpListener};

use functional::connections::{Connections, Queues};
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::packet::is_syn_ack;
use functional::process::wait_until;
use functional::tcptide::{Agent, Tcptide};
use functional::witness::{NetCounters, sockets};
use rustix::process::Signal;

mod host;

use host::{Host, SOON, address, agent, knock, signal};

#[test]
fn a_full_queue_turns_away_and_an_empty_one_does_not() {
    let host = Host::new("queues");
    host.netns.sysctl("net.core.somaxconn", "9").unwrap();
    let agent = agent();
    let (small, large) = (address("127.0.0.1:7001"), address("127.0.0.1:7002"));
    let (first, second) = (host.listen(small, 2), host.listen(large, 4096));
    let empty = Queues { accept: 0, limit: 2, syn: 0, drops: 0 };
    let roomy = Queues { limit: 9, ..empty };
    host.has(small, empty);
    host.has(large, roomy);
    assert_eq!(host.counted(&agent), (0, 11, 0));

    // One more than the limit is let in.
    let waiting = [host.knock(small, 3), host.knock(large, 2)];
    host.has(small, Queues { accept: 3, ..empty });
    host.has(large, Queues { accept: 2, ..roomy });
    assert_eq!(host.counted(&agent), (5, 11, 0));
    for turned_away in 1..=4 {
        // Given up at once: no SYN is sent again.
        drop(host.knock(small, 1));
        host.has(small, Queues { accept: 3, drops: turned_away, ..empty });
        assert_eq!(host.counted(&agent), (5, 11, turned_away));
    }
    host.has(large, Queues { accept: 2, ..roomy });
    let kernel = ["TcpExtListenDrops", "TcpExtListenOverflows"].map(|name| host.kernel(name));
    assert_eq!(kernel, [4, 4]);

    let told = Connections::listeners(&host.netns, &[]).unwrap();
    let ports: Vec<_> = told.0.iter().map(|listener| listener.local.port.unwrap()).collect();
    assert_eq!(ports, [7001, 7002], "the fullest first");
    let pids = [&first, &second].map(|server| Some(server.pid()));
    assert_eq!([0, 1].map(|i| told.0[i].process.as_ref().map(|process| process.pid)), pids);
    is_in_the_table(&host, small, ["3", "2", "0", "4"]);

    for server in [&first, &second] {
        signal(server, Signal::CONT);
    }
    wait_until("all to be accepted", SOON, || Ok((host.counted(&agent) == (0, 11, 4)).then_some(())))
        .unwrap();
    host.has(small, Queues { drops: 4, ..empty });
    drop(waiting);
    assert_eq!((first.finish().unwrap().accepted, second.finish().unwrap().accepted), (3, 2));
    assert_eq!(host.counted(&agent), (0, 0, 4));
    assert!(Connections::listeners(&host.netns, &[]).unwrap().0.is_empty());
}

/// What people are shown: accept queue, limit, SYN queue and drops.
fn is_in_the_table(host: &Host, at: SocketAddr, expected: [&str; 4]) {
    let cgroup = host.cgroup.path().to_str().unwrap();
    let table = Tcptide::find().unwrap().run(["listen", "--cgroup", cgroup]).unwrap().success().unwrap();
    let row = table.stdout.iter().find(|line| line.contains(&at.to_string())).unwrap();
    let numbers: Vec<_> = row.split_whitespace().rev().take(4).collect();
    assert_eq!(numbers.into_iter().rev().collect::<Vec<_>>(), expected, "{table:?}");
}

#[test]
fn what_a_listener_turned_away_before_is_no_part_of_the_metric() {
    let host = Host::new("drops-before");
    let at = address("127.0.0.1:7001");
    let server = host.listen(at, 1);
    let _waiting = host.knock(at, 2);
    drop(host.knock(at, 5));
    let agent = agent();
    let full = Queues { accept: 2, limit: 1, syn: 0, drops: 5 };
    host.has(at, full);
    assert_eq!(host.counted(&agent), (2, 1, 0));
    drop(host.knock(at, 3));
    host.has(at, Queues { drops: 8, ..full });
    assert_eq!(host.counted(&agent), (2, 1, 3));
    assert_eq!(host.kernel("TcpExtListenDrops"), 8);

    // Nobody looks between the last ones and the listener's end.
    drop(host.knock(at, 7));
    signal(&server, Signal::KILL);
    wait_until("the listener's end", SOON, || Ok((host.counted(&agent) == (0, 0, 10)).then_some(())))
        .unwrap();
    assert_eq!(host.kernel("TcpExtListenDrops"), 15);
    // The next one on its port has turned nobody away.
    let _next = host.listen(at, 1);
    host.has(at, Queues { accept: 0, limit: 1, syn: 0, drops: 0 });
    assert_eq!(host.counted(&agent), (0, 1, 10));
}

#[test]
fn half_open_connections_wait_in_the_syn_queue() {
    /// As many as the limit: with more the kernel answers with cookies.
    const HALF_OPEN: u32 = 3;
    let (client, host) = (Netns::new("syn-client").unwrap(), Host::new("syn-server"));
    let [at_a, at_b]: [IpAddr; 2] = ["198.18.80.1", "198.18.80.2"].map(|ip| ip.parse().unwrap());
    let path = Forwarder::between(&client, at_a, &host.netns, at_b, Impairment::default()).unwrap();
    let agent = agent();
    let at = SocketAddr::new(at_b, 7001);
    let server = host.listen(at, HALF_OPEN);
    path.drop_if(Direction::BToA, is_syn_ack);
    let _half_open = knock(&client, None, at, HALF_OPEN);
    let half_open = || sockets(&host.netns, &["state", "syn-recv"]).map(|requests| requests.len() as u32);
    wait_until("the SYNs to arrive", SOON, || Ok((half_open()? == HALF_OPEN).then_some(()))).unwrap();
    // The socket counts SYNs that came again, which takes a second. One may come while somebody looks.
    let came_again = || NetCounters::of(&client).unwrap().get("TcpExtTCPSynRetrans");
    wait_until("a quiet moment", SOON, || {
        let before = came_again();
        let (told, seen) = host.look(at);
        if came_again() != before {
            return Ok(None);
        }
        let (limit, drops) = (HALF_OPEN.into(), seen.drops().unwrap());
        assert_eq!(told.queues, Some(Queues { accept: 0, limit, syn: limit, drops }));
        assert!(drops <= u64::try_from(before)? && host.kernel("TcpExtListenDrops") == 0);
        Ok(Some(()))
    })
    .unwrap();
    let syn_recv = |agent: &Agent| {
        let labels = [("container", host.cgroup.path().to_str().unwrap()), ("state", "syn_recv")];
        agent.scrape().unwrap().sum("tcptide_connections", &labels).unwrap() as u32
    };
    assert_eq!(syn_recv(&agent), HALF_OPEN);

    // Others fill the accept queue meanwhile: the handshakes that complete now are turned away.
    path.clear_filter(Direction::BToA);
    let _waiting = knock(&client, None, at, HALF_OPEN + 1);
    wait_until("handshakes to be turned away", SOON, || {
        Ok((host.kernel("TcpExtListenOverflows") >= HALF_OPEN.into()).then_some(()))
    })
    .unwrap();
    // More of them may be while somebody looks.
    wait_until("a quiet moment", SOON, || {
        let before = host.look(at).1.drops().unwrap();
        let ((told, seen), counted) = (host.look(at), host.counted(&agent));
        if host.look(at).1.drops() != Some(before) {
            return Ok(None);
        }
        let (accept, limit) = (u64::from(HALF_OPEN) + 1, HALF_OPEN.into());
        assert_eq!(told.queues, Some(Queues { accept, limit, syn: limit, drops: before }));
        assert_eq!((counted, seen.recv_q), ((accept, limit, before), accept));
        // The socket counts SYNs that came again, too.
        assert!(before >= host.kernel("TcpExtListenDrops"));
        Ok(Some(()))
    })
    .unwrap();
    signal(&server, Signal::CONT);
    wait_until("the rest to be accepted", SOON, || Ok((half_open()? == 0).then_some(()))).unwrap();
    let (told, _) = host.look(at);
    assert_eq!(told.queues.map(|queues| (queues.accept, queues.syn)), Some((0, 0)));
    assert_eq!(syn_recv(&agent), 0);
    let expected = u64::from(HALF_OPEN) * 2 + 1;
    assert_eq!(server.finish().unwrap().accepted, expected);
}

#[test]
fn a_listener_that_listens_again_has_the_new_limit() {
    let netns = Netns::new("again").unwrap();
    let at = address("127.0.0.1:7001");
    let listener = netns.enter(|| Ok(TcpListener::bind(at)?)).unwrap();
    let limit = || {
        let told = Connections::listeners(&netns, &[]).unwrap();
        told.at(at).one().unwrap().queues.unwrap().limit
    };
    for (backlog, expected) in [(3, 3), (17, 17)] {
        rustix::net::listen(&listener, backlog).unwrap();
        assert_eq!(limit(), expected);
    }
    // What is connected is no listener, and what listens is no connection.
    let connected = knock(&netns, None, at, 1);
    assert_eq!(Connections::listeners(&netns, &[]).unwrap().0.len(), 1);
    let now = Connections::now(&netns, &[]).unwrap();
    assert_eq!(now.0.len(), 2);
    assert!(now.0.iter().all(|end| end.queues.is_none() && end.buffered.is_some()));
    drop(connected);
}
