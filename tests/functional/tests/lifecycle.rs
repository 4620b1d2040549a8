//! Connections from their opening to their end, whichever way they go, told from both ends.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use functional::cgroup::{Cgroup, mount_point};
use functional::connections::{Connection, Connections, Trace, inode, own_cgroup, time};
use functional::forwarder::{Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::witness::{NetCounters, sockets};
use functional::workload::{self, Churn, Client, Running, churn};
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr, set_tcp_user_timeout, socket_cookie};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, connect_unspec, socket_with};

const ABOUT_TO_ARRIVE: Duration = Duration::from_millis(100);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listen(netns: &Netns, at: &str) -> TcpListener {
    let at = address(at);
    netns.enter(|| Ok(TcpListener::bind(at)?)).unwrap()
}

/// A client and its server's side of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn connect(netns: &Netns, listener: &TcpListener, to: SocketAddr) -> Self {
        let client = netns.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
        Self { client, server: listener.accept().unwrap().0 }
    }

    fn here(netns: &Netns, listener: &TcpListener) -> Self {
        Self::connect(netns, listener, listener.local_addr().unwrap())
    }

    /// The ends' addresses, IPv4 inside IPv6 as IPv4.
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        (plain(self.client.local_addr().unwrap()), plain(self.client.peer_addr().unwrap()))
    }
}

/// Carries so many bytes, and returns when they were read.
fn carry(from: &TcpStream, to: &TcpStream, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| { from }.write_all(&vec![7; bytes]).unwrap());
        { to }.read_exact(&mut vec![0; bytes]).unwrap();
    });
}

/// Waits until the other end has closed its direction.
fn read_the_end(stream: &TcpStream) {
    assert_eq!({ stream }.read(&mut [0; 1]).unwrap(), 0);
}

/// Who closes first.
#[derive(Clone, Copy, Debug)]
enum Order {
    Client,
    Server,
    /// The client shuts its direction down before the server answers.
    HalfClosed,
}

/// Carries bytes both ways and closes in that order.
fn talk(pair: Pair, there: usize, back: usize, order: Order) {
    let Pair { client, server } = pair;
    carry(&client, &server, there);
    match order {
        Order::Client => {
            carry(&server, &client, back);
            drop(client);
            read_the_end(&server);
        }
        Order::Server => {
            carry(&server, &client, back);
            drop(server);
            read_the_end(&client);
        }
        Order::HalfClosed => {
            client.shutdown(Shutdown::Write).unwrap();
            read_the_end(&server);
            carry(&server, &client, back);
        }
    }
}

/// An end's three events, of which the last is returned.
fn whole_life(told: &Connections, local: SocketAddr) -> &Connection {
    let mut own = told.0.iter().filter(|connection| connection.is_at(local)).peekable();
    let cookie = own.peek().map(|connection| connection.cookie);
    assert!(own.all(|connection| Some(connection.cookie) == cookie));
    // An active end has its port from its SYN on, and not before.
    let all = told.only(|connection| Some(connection.cookie) == cookie);
    assert_eq!(all.names(), ["open", "established", "close"], "{local}: {all:#?}");
    assert_eq!(all.0[1].state, "established");
    assert!(all.0.iter().all(|connection| !connection.preexisting && connection.before.is_none()));
    told.0.iter().rfind(|connection| connection.is_at(local)).unwrap()
}

#[test]
fn both_ends_agree_to_the_byte_however_much_and_whoever_closes_first() {
    let netns = Netns::new("bytes").unwrap();
    let trace = Trace::start(&netns, &[]).unwrap();
    let began = SystemTime::now();
    let before = NetCounters::of(&netns).unwrap();
    let mut talks = Vec::new();
    // What listens, and how the client reaches it.
    for (listening, client_to) in
        [("127.0.0.1:7000", "127.0.0.1:7000"), ("[::1]:7000", "[::1]:7000"), ("[::]:7001", "127.0.0.1:7001")]
    {
        let listener = listen(&netns, listening);
        for (there, back) in [(0, 0), (1, 0), (0, 1), (1, 1), (1500, 100_000), (3 << 20, 5 << 20)] {
            for order in [Order::Client, Order::Server, Order::HalfClosed] {
                let pair = Pair::connect(&netns, &listener, address(client_to));
                let (client, server) = pair.addresses();
                let seen = sockets(&netns, &["exclude", "listening", "exclude", "time-wait"]).unwrap();
                let cookie = |local| seen.iter().find(|s| s.local == local && s.peer.port() != 0);
                let cookies = [client, server].map(|local| cookie(local).unwrap().cookie.unwrap());
                talks.push((client, server, cookies, there as u64, back as u64, order));
                talk(pair, there, back, order);
            }
        }
    }
    trace.wait_for("close", 2 * talks.len()).unwrap();
    let told = trace.end().unwrap();

    for (client, server, cookies, there, back, order) in &talks {
        // One server's port has many peers: its end is known by its cookie.
        let servers = told.only(|end| end.cookie == cookies[1]);
        let (active, passive) = (whole_life(&told, *client), whole_life(&servers, *server));
        let what = format!("{client} -> {server}, {there} there, {back} back, {order:?}");
        assert_eq!((active.cookie, passive.cookie), (cookies[0], cookies[1]), "{what}");
        assert_eq!((active.direction(), passive.direction()), ("active", "passive"), "{what}");
        assert_eq!((active.peer, passive.peer), (passive.local, active.local), "{what}");
        assert_eq!((active.bytes(), active.acked_bytes), ((*there, *back), *there), "{what}");
        assert_eq!((passive.bytes(), passive.acked_bytes), ((*back, *there), *back), "{what}");
        for end in [active, passive] {
            assert_eq!((end.state.as_str(), end.reason()), ("close", "normal"), "{what}");
            assert_eq!(end.close.as_ref().unwrap().errno, None, "{what}");
            assert_eq!(end.netns, inode(&netns).unwrap());
            assert_eq!(end.process.as_ref().map(|process| process.pid), Some(std::process::id()), "{what}");
            assert_eq!(end.cgroup(), own_cgroup().unwrap());
            assert!(end.duration_us.unwrap() >= end.connect_us.unwrap_or(0), "{what}");
        }
        assert!(active.connect_us.unwrap() < 1_000_000 && passive.connect_us.is_none(), "{what}");
    }
    let (first, last) = (&told.0[0], &told.0[told.0.len() - 1]);
    let opened = time(first.opened_at.as_ref().unwrap()).unwrap();
    assert!(began <= opened && opened <= time(&first.time).unwrap());
    assert!(time(&first.time).unwrap() <= time(&last.time).unwrap());
    assert!(time(&last.time).unwrap() <= SystemTime::now());
    let grown = NetCounters::of(&netns).unwrap().since(&before);
    let opens = grown.get("TcpActiveOpens") + grown.get("TcpPassiveOpens");
    assert_eq!(usize::try_from(opens).unwrap(), 2 * talks.len());
    assert_eq!(told.0.len(), 6 * talks.len(), "nothing but these was told of");
}

/// A way to end a connection with a reset.
type Breaking = fn(&mut Option<TcpStream>, &mut Option<TcpStream>);

fn lingering_0(stream: &mut Option<TcpStream>) {
    set_socket_linger(stream.as_ref().unwrap(), Some(Duration::ZERO)).unwrap();
    *stream = None;
}

/// Bytes arrive that `reader` never reads before it closes.
fn unread(reader: &mut Option<TcpStream>, writer: &mut Option<TcpStream>) {
    writer.as_ref().unwrap().write_all(b"unread").unwrap();
    reader.as_ref().unwrap().peek(&mut [0; 6]).unwrap();
    *reader = None;
}

/// The end that sends the reset, as `client` or `server`, and what it does.
const RESETS: [(&str, &str, Breaking); 7] = [
    ("lingering 0", "client", |client, _| lingering_0(client)),
    ("lingering 0", "server", |_, server| lingering_0(server)),
    ("unread data", "client", |client, server| unread(client, server)),
    ("unread data", "server", |client, server| unread(server, client)),
    ("lingering 0 after the peer's end", "client", |client, server| {
        server.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        read_the_end(client.as_ref().unwrap());
        lingering_0(client);
    }),
    ("lingering 0 after the own end", "client", |client, server| {
        client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        read_the_end(server.as_ref().unwrap());
        thread::sleep(ABOUT_TO_ARRIVE);
        lingering_0(client);
    }),
    ("unread data after the own end", "client", |client, server| {
        client.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        read_the_end(server.as_ref().unwrap());
        unread(client, server);
    }),
];

#[test]
fn a_reset_is_sent_by_one_end_and_received_by_the_other() {
    let netns = Netns::new("reset").unwrap();
    let listener = listen(&netns, "127.0.0.1:7000");
    let mut wrong = Vec::new();
    for (what, sender, break_off) in RESETS {
        let trace = Trace::start(&netns, &["--events", "open,close,reset"]).unwrap();
        let before = NetCounters::of(&netns).unwrap();
        let pair = Pair::here(&netns, &listener);
        let (client, server) = pair.addresses();
        let (mut at_client, mut at_server) = (Some(pair.client), Some(pair.server));
        break_off(&mut at_client, &mut at_server);
        thread::sleep(ABOUT_TO_ARRIVE);
        drop((at_client, at_server));
        trace.wait_for("close", 2).unwrap();
        let sent = NetCounters::of(&netns).unwrap().since(&before).get("TcpOutRsts");
        assert_eq!(sent, 1, "{what} at the {sender}");
        let told = trace.end().unwrap().events("close");
        let (sender_at, receiver_at) = if sender == "client" { (client, server) } else { (server, client) };
        let got = [sender_at, receiver_at].map(|end| told.at(end).one().unwrap().reason().to_owned());
        if got != ["reset_sent", "reset_received"] {
            wrong
                .push(format!("{what} at the {sender}: the sender says {}, the receiver {}", got[0], got[1]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn data_that_comes_after_an_orderly_close_resets_its_sender_only() {
    let netns = Netns::new("late-data").unwrap();
    let listener = listen(&netns, "127.0.0.1:7000");
    // The closed socket is still a whole one at first, and then no more than a TIME_WAIT.
    for wait in [Duration::ZERO, ABOUT_TO_ARRIVE] {
        let trace = Trace::start(&netns, &[]).unwrap();
        let before = NetCounters::of(&netns).unwrap();
        let pair = Pair::here(&netns, &listener);
        let (client, server) = pair.addresses();
        drop(pair.client);
        read_the_end(&pair.server);
        thread::sleep(wait);
        { &pair.server }.write_all(b"too late").unwrap();
        trace.wait_for("close", 2).unwrap();
        assert_eq!(NetCounters::of(&netns).unwrap().since(&before).get("TcpOutRsts"), 1);
        let told = trace.end().unwrap().events("close");
        assert_eq!(told.at(client).one().unwrap().reason(), "normal");
        let reset = told.at(server).one().unwrap().clone();
        assert_eq!((reset.reason(), reset.bytes()), ("reset_received", (8, 0)));
    }
}

#[test]
fn an_established_connection_whose_peer_is_gone_times_out() {
    let (a, b) = (Netns::new("gone-a").unwrap(), Netns::new("gone-b").unwrap());
    let [at_a, at_b] = ["198.18.20.1", "198.18.20.2"].map(|ip| ip.parse().unwrap());
    let path = Forwarder::between(&a, at_a, &b, at_b, Impairment::default()).unwrap();
    let listener = listen(&b, "198.18.20.2:7000");
    let trace = Trace::start(&a, &[]).unwrap();
    let client = a.enter(|| Ok(TcpStream::connect((at_b, 7000))?)).unwrap();
    let _server = listener.accept().unwrap();
    path.set_blackhole(true);
    set_tcp_user_timeout(&client, 500).unwrap();
    { &client }.write_all(b"hello?").unwrap();
    trace.wait_for("close", 1).unwrap();
    let told = trace.end().unwrap();
    let close = told.events("close");
    let close = close.one().unwrap();
    assert_eq!((close.reason(), close.close.as_ref().unwrap().errno), ("timeout", Some(110)));
    assert_eq!((close.sent_bytes, close.acked_bytes), (6, 0));
    let resent = NetCounters::of(&a).unwrap().get("TcpRetransSegs");
    assert!(resent > 0 && close.retransmits.total == u64::try_from(resent).unwrap(), "{resent} {close:?}");
    assert_eq!(close.retransmits.of_all_kinds(), close.retransmits.total);
}

#[test]
fn connections_that_nobody_accepted_are_reset_with_their_listener() {
    const WAITING: usize = 5;
    let netns = Netns::new("backlog").unwrap();
    let listener = listen(&netns, "127.0.0.1:7000");
    let to = listener.local_addr().unwrap();
    let trace = Trace::start(&netns, &[]).unwrap();
    let clients: Vec<_> =
        (0..WAITING).map(|_| netns.enter(|| Ok(TcpStream::connect(to)?)).unwrap()).collect();
    { &clients[0] }.write_all(b"will not be read").unwrap();
    thread::sleep(ABOUT_TO_ARRIVE);
    drop(listener);
    trace.wait_for("close", 2 * WAITING).unwrap();
    for mut client in clients {
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let told = trace.end().unwrap().events("close");
    let reasons = |direction| told.only(|end| end.direction() == direction).reasons().join(" ");
    assert_eq!(reasons("passive"), ["reset_sent"; WAITING].join(" "));
    assert_eq!(reasons("active"), ["reset_received"; WAITING].join(" "));
    let resets = NetCounters::of(&netns).unwrap().get("TcpEstabResets");
    assert_eq!(usize::try_from(resets).unwrap(), 2 * WAITING);
}

#[test]
fn each_worker_of_a_shared_port_owns_what_it_accepted() {
    const COUNT: u64 = 200;
    let netns = Netns::new("reuseport").unwrap();
    let cgroups = ["one", "two", "three"].map(|name| Cgroup::unique(name).unwrap());
    let workers = cgroups.each_ref().map(|cgroup| {
        let serve = workload::command(["serve", "--listen", "127.0.0.1:7000", "--reuse-port"]).unwrap();
        Running::start(&mut cgroup.wrap(&netns.wrap(&serve))).unwrap()
    });
    let to = workers.each_ref().map(|worker| worker.listening().unwrap())[0];
    let trace = Trace::start(&netns, &[]).unwrap();
    let plan = Churn { count: Some(COUNT), ..Churn::new(2000.0, Duration::from_secs(20)) };
    let counts = netns.enter(|| Ok(churn(&Client::new(to), &plan))).unwrap();
    trace.wait_for("close", 2 * COUNT as usize).unwrap();
    let told = trace.end().unwrap();
    assert_eq!((counts.opened, counts.closed), (COUNT, COUNT));
    let pids = workers.each_ref().map(Running::pid);
    for ((cgroup, worker), pid) in cgroups.iter().zip(workers).zip(pids) {
        let own = told.only(|end| end.cgroup() == cgroup.path().to_str().unwrap());
        let accepted = worker.finish().unwrap().accepted;
        assert!(accepted > 0, "a worker got nothing");
        for event in ["open", "established", "close"] {
            assert_eq!(own.events(event).0.len() as u64, accepted, "{event}");
        }
        assert!(own.0.iter().all(|end| end.container.cgroup_id == Some(cgroup.id().unwrap())));
        let closed = own.events("close");
        assert!(closed.0.iter().all(|end| end.process.as_ref().is_none_or(|process| process.pid == pid)));
    }
}

/// A socket that is bound, as a client that must have that port.
fn bound_client(netns: &Netns, from: SocketAddr, to: SocketAddr) -> TcpStream {
    netns
        .enter(|| {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &from)?;
            connect(&socket, &to)?;
            Ok(TcpStream::from(socket))
        })
        .unwrap()
}

#[test]
fn one_4_tuple_in_two_namespaces_is_two_connections() {
    let (client, server) = (address("127.0.0.1:7002"), address("127.0.0.1:7000"));
    let both = ["tuple-a", "tuple-b"].map(|name| Netns::new(name).unwrap());
    let traces = both.each_ref().map(|netns| Trace::start(netns, &[]).unwrap());
    let pairs = both.each_ref().map(|netns| {
        let listener = listen(netns, "127.0.0.1:7000");
        let client = bound_client(netns, client, server);
        Pair { client, server: listener.accept().unwrap().0 }
    });
    for (pair, bytes) in pairs.into_iter().zip([1000, 2000]) {
        talk(pair, bytes, 2 * bytes, Order::Client);
    }
    let mut cookies = Vec::new();
    for ((netns, trace), bytes) in both.iter().zip(traces).zip([1000, 2000]) {
        trace.wait_for("close", 2).unwrap();
        let told = trace.end().unwrap();
        let (active, passive) = (whole_life(&told, client), whole_life(&told, server));
        assert_eq!((active.bytes(), passive.bytes()), ((bytes, 2 * bytes), (2 * bytes, bytes)));
        assert_eq!(active.netns, inode(netns).unwrap());
        cookies.extend([active.cookie, passive.cookie]);
    }
    cookies.sort_unstable();
    cookies.dedup();
    assert_eq!(cookies.len(), 4);
}

#[test]
fn a_socket_that_connects_again_begins_anew() {
    let netns = Netns::new("again").unwrap();
    let (closed, open) = (address("127.0.0.1:7009"), address("127.0.0.1:7000"));
    let listener = listen(&netns, "127.0.0.1:7000");
    let trace = Trace::start(&netns, &[]).unwrap();
    let socket = netns
        .enter(|| Ok(socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?))
        .unwrap();
    let cookie = socket_cookie(&socket).unwrap();
    assert!(connect(&socket, &closed).is_err());
    connect(&socket, &open).unwrap();
    let client = TcpStream::from(socket);
    let server = listener.accept().unwrap().0;
    carry(&client, &server, 1000);
    // Not a close: the socket is taken off its connection, and used once more.
    connect_unspec(&client).unwrap();
    assert!({ &server }.read(&mut [0; 1]).is_err());
    connect(&client, &open).unwrap();
    let third = Pair { client, server: listener.accept().unwrap().0 };
    talk(third, 30, 40, Order::Client);
    trace.wait_for("close", 4).unwrap();
    let told = trace.end().unwrap().only(|end| end.cookie == cookie);
    let expected = ["open", "fail", "open", "established", "close", "open", "established", "close"];
    assert_eq!(told.names(), expected);
    let ends: Vec<_> = told.0.iter().filter(|end| end.close.is_some()).collect();
    let reasons: Vec<_> = ends.iter().map(|end| end.reason()).collect();
    assert_eq!(reasons, ["refused", "reset_sent", "normal"]);
    let bytes: Vec<_> = ends.iter().map(|end| end.bytes()).collect();
    assert_eq!(bytes, [(0, 0), (1000, 0), (30, 40)]);
    let opened = ends.iter().map(|end| time(end.opened_at.as_ref().unwrap()).unwrap());
    assert!(opened.is_sorted_by(|a, b| a < b));
    assert_eq!(NetCounters::of(&netns).unwrap().get("TcpActiveOpens"), 3);
}

#[test]
fn a_removed_cgroups_connection_keeps_its_name_to_the_end() -> Result<()> {
    let netns = Netns::new("rmdir")?;
    let cgroup = Cgroup::unique("rmdir")?;
    let (path, id) = (cgroup.path().to_str().unwrap().to_owned(), cgroup.id()?);
    let listener = listen(&netns, "127.0.0.1:7000");
    let trace = Trace::start(&netns, &[])?;
    let hold = workload::command(["hold", "--to", "127.0.0.1:7000", "--count", "1"])?;
    let holder = Running::start(&mut cgroup.wrap(&netns.wrap(&hold)))?;
    holder.ready(Duration::from_secs(10))?;
    let _server = listener.accept()?;
    let home = mount_point()?.join(own_cgroup()?.trim_start_matches('/'));
    fs::write(home.join("cgroup.procs"), holder.pid().to_string())?;
    // Its process lives elsewhere now, the socket stays where it was made.
    fs::remove_dir(cgroup.folder())?;
    wait_until("ss to see the socket without its cgroup", Duration::from_secs(5), || {
        let seen = sockets(&netns, &["dport", "=", ":7000"])?;
        Ok((seen.len() == 1 && seen[0].cgroup.as_deref() != Some(&path)).then_some(()))
    })?;
    thread::sleep(ABOUT_TO_ARRIVE);
    let looked = Connections::now(&netns, &[])?.only(|end| end.direction() == "active");
    assert_eq!(looked.one()?.container.cgroup_id, Some(id));
    holder.let_go(Duration::from_secs(10))?;
    trace.wait_for("close", 1)?;
    let told = trace.end()?.only(|end| end.direction() == "active");
    assert_eq!(told.names(), ["open", "established", "close"]);
    for end in &told.0 {
        assert_eq!((end.cgroup(), end.container.cgroup_id), (path.as_str(), Some(id)));
    }
    Ok(())
}

#[test]
fn nothing_is_told_of_listeners_and_of_other_protocols() {
    let netns = Netns::new("silent").unwrap();
    let trace = Trace::start(&netns, &["--events", "open,established,close,fail,retransmit,reset"]).unwrap();
    drop(listen(&netns, "127.0.0.1:7000"));
    netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9")?)).unwrap();
    thread::sleep(ABOUT_TO_ARRIVE);
    assert_eq!(trace.end().unwrap().names(), [""; 0]);
}
