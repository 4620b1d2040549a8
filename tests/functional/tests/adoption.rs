//! Connections that were there first: found with their owner, and counted from then on.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{Connection, Connections, Trace, own_cgroup};
use functional::forwarder::{Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::Tcptide;
use functional::witness::{Socket, sockets};
use functional::workload::{self, Running};
use rustix::net::sockopt::socket_cookie;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A listener, and one connection to it that is not accepted.
fn knock(netns: &Netns, at: &str) -> (TcpListener, TcpStream) {
    let at = address(at);
    netns
        .enter(|| {
            let listener = TcpListener::bind(at)?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            Ok((listener, client))
        })
        .unwrap()
}

fn pid(end: &Connection) -> Option<u32> {
    end.process.as_ref().map(|process| process.pid)
}

/// Carries so many bytes, and returns when they were read.
fn carry(from: &TcpStream, to: &TcpStream, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| { from }.write_all(&vec![7; bytes]).unwrap());
        { to }.read_exact(&mut vec![0; bytes]).unwrap();
    });
}

/// What `ss` says of the socket with this local address.
fn ss(netns: &Netns, local: SocketAddr) -> Socket {
    let all = sockets(netns, &["exclude", "listening"]).unwrap();
    all.into_iter().find(|socket| socket.local == local).unwrap()
}

#[test]
fn a_connection_of_the_hosts_own_namespace_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    carry(&client, &server, 123);
    let port = listener.local_addr().unwrap().port().to_string();
    let now = Connections::everywhere(&["--port", &port]).unwrap();
    for (stream, direction, bytes) in [(&client, "active", (123, 0)), (&server, "passive", (0, 123))] {
        let end = now.at(stream.local_addr().unwrap()).one().unwrap().clone();
        assert!(end.preexisting && end.opened_at.is_none() && end.duration_us.is_none(), "{end:?}");
        assert_eq!((end.direction(), end.state.as_str()), (direction, "established"));
        assert_eq!((end.cookie, pid(&end)), (socket_cookie(stream).unwrap(), Some(std::process::id())));
        assert_eq!(end.cgroup(), own_cgroup().unwrap());
        let before = end.before.unwrap();
        assert_eq!((before.sent_bytes, before.received_bytes), bytes);
        assert_eq!(end.bytes(), (0, 0));
    }
    assert_eq!(now.0.len(), 2);
}

#[test]
fn connections_of_other_namespaces_have_their_owners() {
    const COUNT: usize = 20;
    for at in ["127.0.0.1:7000", "[::1]:7000"] {
        let netns = Netns::new("owners").unwrap();
        let [serving, holding] = ["serve", "hold"].map(|name| Cgroup::unique(name).unwrap());
        let serve = workload::command(["serve", "--listen", at]).unwrap();
        let server = Running::start(&mut serving.wrap(&netns.wrap(&serve))).unwrap();
        server.listening().unwrap();
        let hold = workload::command(["hold", "--to", at, "--count", &COUNT.to_string()]).unwrap();
        let holder = Running::start(&mut holding.wrap(&netns.wrap(&hold))).unwrap();
        holder.ready(Duration::from_secs(10)).unwrap();
        let seen = wait_until("all to be accepted", Duration::from_secs(10), || {
            let seen = sockets(&netns, &["state", "established"])?;
            let all = seen.len() == 2 * COUNT && seen.iter().all(|socket| !socket.processes.is_empty());
            Ok(all.then_some(seen))
        })
        .unwrap();
        let now = Connections::now(&netns, &[]).unwrap();
        assert_eq!(now.0.len(), 2 * COUNT);
        for (cgroup, process, direction) in [(&serving, &server, "passive"), (&holding, &holder, "active")] {
            let own = now.only(|end| end.container.cgroup_id == Some(cgroup.id().unwrap()));
            assert_eq!(own.0.len(), COUNT, "{direction}");
            for end in &own.0 {
                assert!(end.preexisting);
                assert_eq!((end.direction(), pid(end)), (direction, Some(process.pid())));
                assert_eq!(end.process.as_ref().unwrap().comm, "workload");
                assert_eq!(end.cgroup(), cgroup.path().to_str().unwrap());
                let witness = seen.iter().find(|socket| socket.cookie == Some(end.cookie)).unwrap();
                assert!(end.is_at(witness.local) && end.peer.port == Some(witness.peer.port()));
            }
        }
    }
}

#[test]
fn bytes_are_counted_from_the_adoption_on() {
    for at in ["127.0.0.1:7000", "[::1]:7000"] {
        let netns = Netns::new("later").unwrap();
        let (listener, client) = knock(&netns, at);
        let server = listener.accept().unwrap().0;
        carry(&client, &server, 1_000_000);
        carry(&server, &client, 2001);
        let trace = Trace::start(&netns, &[]).unwrap();
        carry(&client, &server, 77);
        carry(&server, &client, 3_000_000);
        let addresses = [&client, &server].map(|stream| stream.local_addr().unwrap());
        let seen = addresses.map(|local| ss(&netns, local));
        drop(client);
        assert_eq!({ &server }.read(&mut [0]).unwrap(), 0);
        drop(server);
        trace.wait_for("close", 2).unwrap();
        let told = trace.end().unwrap();
        assert_eq!(told.names(), ["close", "close"]);
        let expected =
            [("active", (1_000_000, 2001), (77, 3_000_000)), ("passive", (2001, 1_000_000), (3_000_000, 77))];
        for ((local, seen), (direction, earlier, later)) in addresses.into_iter().zip(seen).zip(expected) {
            let close = told.at(local).one().unwrap().clone();
            let before = close.before.unwrap();
            assert!(close.preexisting && close.duration_us.is_none() && close.opened_at.is_none());
            assert_eq!(
                (close.direction(), close.reason(), pid(&close)),
                (direction, "normal", Some(std::process::id()))
            );
            assert_eq!(
                (before.sent_bytes, before.received_bytes, before.acked_bytes),
                (earlier.0, earlier.1, earlier.0)
            );
            assert_eq!((close.bytes(), close.acked_bytes), (later, later.0));
            assert_eq!(before.sent_bytes + close.sent_bytes, seen.bytes_sent() - seen.count("bytes_retrans"));
            assert_eq!(before.received_bytes + close.received_bytes, seen.bytes_received());
        }
    }
}

#[test]
fn what_waits_in_a_backlog_is_there_without_a_process() {
    let netns = Netns::new("backlog").unwrap();
    for (at, early) in [("127.0.0.1:7000", &b""[..]), ("[::1]:7000", b"early")] {
        let (listener, client) = knock(&netns, at);
        { &client }.write_all(early).unwrap();
        let local = client.local_addr().unwrap();
        let of_peer = |end: &Connection| end.peer.port == Some(local.port());
        let now = Connections::now(&netns, &[]).unwrap();
        let passive = now.only(of_peer).one().unwrap().clone();
        assert!(passive.preexisting);
        assert_eq!((passive.direction(), pid(&passive)), ("passive", None), "{passive:?}");
        assert_eq!(passive.cgroup(), own_cgroup().unwrap());
        assert_eq!(passive.before.unwrap().received_bytes, early.len() as u64);
        assert_eq!(now.at(local).one().unwrap().direction(), "active");
        let seen = sockets(&netns, &["dport", "=", &format!(":{}", local.port())]).unwrap();
        assert_eq!((seen[0].cookie, seen[0].processes.len()), (Some(passive.cookie), 0));

        let trace = Trace::start(&netns, &[]).unwrap();
        let server = listener.accept().unwrap().0;
        { &server }.read_exact(&mut vec![0; early.len()]).unwrap();
        carry(&server, &client, 10);
        drop(server);
        drop(client);
        trace.wait_for("close", 2).unwrap();
        let close = trace.end().unwrap().only(of_peer);
        let close = close.one().unwrap();
        // Whoever closed it is known by then.
        assert_eq!((close.bytes(), pid(close)), ((10, 0), Some(std::process::id())));
    }
}

/// Writes until nothing more fits anywhere.
fn fill(stream: &TcpStream) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let (chunk, mut total) = (vec![7; 64 * 1024], 0);
    let mut idle = 0;
    // The stack goes on taking what it has room for, a little later.
    while idle < 20 {
        match { stream }.write(&chunk) {
            Ok(written) => (total, idle) = (total + written as u64, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                idle += 1;
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    stream.set_nonblocking(false).unwrap();
    total
}

/// Reads to the end, and returns how much there was.
fn empty(stream: &TcpStream) -> u64 {
    std::io::copy(&mut { stream }, &mut std::io::sink()).unwrap()
}

#[test]
fn an_orphan_that_has_not_sent_all_is_there_and_is_counted_to_its_end() {
    let mut directions = Vec::new();
    for (at, orphan_is_client) in
        [("127.0.0.1:7000", true), ("127.0.0.1:7000", false), ("[::1]:7000", true), ("[::1]:7000", false)]
    {
        let netns = Netns::new("orphan").unwrap();
        let (listener, client) = knock(&netns, at);
        let server = listener.accept().unwrap().0;
        let (orphan, reader) = if orphan_is_client { (client, server) } else { (server, client) };
        let local = orphan.local_addr().unwrap();
        let written = fill(&orphan);
        drop(orphan);
        // What the window still takes goes out with the persist timer: it stands still after that.
        let orphan = || sockets(&netns, &["state", "fin-wait-1"]).map(|all| all.into_iter().next());
        let seen = wait_until("the orphan, and it has sent all it may", Duration::from_secs(10), || {
            let earlier = orphan()?;
            thread::sleep(Duration::from_millis(500));
            let later = orphan()?;
            let sent = |socket: &Option<Socket>| socket.as_ref().map(Socket::bytes_sent);
            Ok(later.clone().filter(|_| sent(&earlier) == sent(&later)))
        })
        .unwrap();
        let unsent = seen.count("notsent");
        assert!(unsent > 0, "{seen:?}");

        let now = Connections::now(&netns, &[]).unwrap().at(local);
        let now = now.one().unwrap();
        assert_eq!((now.cookie, now.state.as_str(), pid(now)), (seen.cookie.unwrap(), "fin_wait1", None));
        assert!(now.preexisting);
        assert_eq!(now.cgroup(), own_cgroup().unwrap());
        directions.push(now.direction().to_owned());
        assert_eq!(now.before.unwrap().sent_bytes, seen.bytes_sent() - seen.count("bytes_retrans"));

        let trace = Trace::start(&netns, &[]).unwrap();
        assert_eq!(empty(&reader), written);
        drop(reader);
        trace.wait_for("close", 2).unwrap();
        let close = trace.end().unwrap().at(local);
        let close = close.one().unwrap();
        let before = close.before.unwrap();
        assert_eq!((close.reason(), before.sent_bytes + close.sent_bytes), ("normal", written));
        assert_eq!(before.acked_bytes + close.acked_bytes, written);
        assert!(close.sent_bytes > 0 && before.sent_bytes > 0);
    }
    assert_eq!(directions, ["active", "passive", "active", "passive"]);
}

#[test]
fn a_connect_under_way_is_there_and_its_outcome_is_told() {
    let (a, b) = (Netns::new("way-a").unwrap(), Netns::new("way-b").unwrap());
    let [at_a, at_b]: [IpAddr; 2] = ["198.18.25.1", "198.18.25.2"].map(|ip| ip.parse().unwrap());
    let path = Forwarder::between(&a, at_a, &b, at_b, Impairment::default()).unwrap();
    let _listener = b.enter(|| Ok(TcpListener::bind((at_b, 7000))?)).unwrap();
    path.set_blackhole(true);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let begin = || {
        a.enter(|| {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            assert!(connect(&socket, &SocketAddr::new(at_b, 7000)).is_err());
            Ok(socket)
        })
        .unwrap()
    };
    let (lucky, given_up) = (begin(), begin());
    let now = Connections::now(&a, &[]).unwrap();
    assert_eq!(now.0.len(), 2);
    assert!(
        now.0.iter().all(|end| end.state == "syn_sent" && end.direction() == "active" && end.preexisting)
    );

    let trace = Trace::start(&a, &[]).unwrap();
    let (lucky_cookie, given_up_cookie) = (socket_cookie(&lucky).unwrap(), socket_cookie(&given_up).unwrap());
    drop(given_up);
    path.set_blackhole(false);
    trace.wait_for("established", 1).unwrap();
    drop(lucky);
    let told = trace.end().unwrap();
    let failed = told.only(|end| end.cookie == given_up_cookie);
    assert_eq!((failed.names(), failed.reasons()), (vec!["fail"], vec!["canceled"]));
    let established = told.events("established");
    let established = established.one().unwrap();
    assert_eq!((established.cookie, established.direction()), (lucky_cookie, "active"));
    // When it began is not known, and so its latency is not either.
    assert!(established.preexisting && established.connect_us.is_none() && established.duration_us.is_none());
}

#[test]
fn the_agent_counts_later_bytes_only() {
    let netns = Netns::new("agent").unwrap();
    let cgroup = Cgroup::unique("agent").unwrap();
    let listener = netns.enter(|| Ok(TcpListener::bind("127.0.0.1:7000")?)).unwrap();
    let args = ["pingpong", "--to", "127.0.0.1:7000", "--count", "2", "--bytes", "1000"];
    let client = Running::start(&mut cgroup.wrap(&netns.wrap(&workload::command(args).unwrap()))).unwrap();
    let mut server = listener.accept().unwrap().0;
    let mut request = [0; 1000];
    server.read_exact(&mut request).unwrap();
    let agent = Tcptide::find().unwrap().agent(["--metrics.grace", "1m"]).unwrap();
    let labels = [("container", cgroup.path().to_str().unwrap())];
    let sum = |name: &str, more: &[(&str, &str)]| {
        agent.scrape().unwrap().sum(name, &[&labels[..], more].concat()).unwrap_or(0.0) as u64
    };
    assert_eq!(sum("tcptide_sent_bytes_total", &[]), 0);
    assert_eq!(sum("tcptide_connections", &[("state", "established")]), 1);
    server.write_all(&request).unwrap();
    server.read_exact(&mut request).unwrap();
    // Still open: what is counted is brought up to now by the scrape.
    assert_eq!(sum("tcptide_sent_bytes_total", &[]), 1000);
    server.write_all(&request).unwrap();
    let counts = client.wait(Duration::from_secs(10)).unwrap();
    drop(server);
    wait_until("the close to be counted", Duration::from_secs(5), || {
        Ok((sum("tcptide_closed_total", &[("reason", "normal")]) == 1).then_some(()))
    })
    .unwrap();
    assert_eq!((counts.bytes_sent, counts.bytes_received), (2000, 2000));
    assert_eq!(sum("tcptide_sent_bytes_total", &[]), 1000);
    assert_eq!(sum("tcptide_received_bytes_total", &[]), 2000);
    assert_eq!(sum("tcptide_opened_total", &[]), 0, "nobody saw it open");
}
