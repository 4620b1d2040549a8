//! What `tcptide doctor --reconcile` says of a namespace in which it is known what happened: the kernel's counters and
//! tcptide's agree, or the difference is the one that the story made, with its reason.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use functional::connections::inode;
use functional::forwarder::{Direction, Forwarder, Impairment, Verdict};
use functional::netns::Netns;
use functional::packet::{has_payload, is_syn, is_syn_ack, unreachable_for};
use functional::process::{output, require, wait_until};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Output, Streaming, Tcptide};
use functional::witness::{NetCounters, TELLS_OF_DROPS, TELLS_OF_STRAY_RESETS, kernel, sockets};
use functional::workload::{Churn, Client, ServeOptions, Server, Stream, churn, stream};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;

const CLIENT: &str = "198.18.41.1";
const SERVER: &str = "198.18.41.2";

/// More than what counts as close to a reading.
const CLEAR_OF_THE_EDGE: Duration = Duration::from_millis(50);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One counter of one namespace, as `-o json` has it.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    counter: String,
    kernel: i64,
    tcptide: i64,
    difference: i64,
    explained: bool,
    #[serde(default)]
    because: Vec<Reason>,
}

#[derive(Clone, Debug, Deserialize)]
struct Reason {
    reason: String,
    up_to: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Namespace {
    netns: u64,
    fate: String,
    counters: Vec<Line>,
}

impl Namespace {
    fn line(&self, counter: &str) -> &Line {
        self.counters.iter().find(|line| line.counter == counter).unwrap()
    }

    /// The counters agree, and are what they should be.
    fn agrees(&self, expected: &[(&str, i64)]) {
        for &(counter, n) in expected {
            let line = self.line(counter);
            assert_eq!((line.kernel, line.tcptide, line.difference), (n, n, 0), "{self:#?}");
            assert!(line.explained && line.because.is_empty(), "{line:?}");
        }
    }

    /// A counter of packets dropped for a socket agrees, where the kernel tells for which; else it is not there.
    fn agrees_on_drops(&self, counter: &str, n: i64) {
        if tells_of_drops() {
            self.agrees(&[(counter, n)]);
        } else {
            assert!(self.counters.iter().all(|line| line.counter != counter), "{self:#?}");
        }
    }

    /// The counters differ by so much, for a reason that has these words.
    fn differs(&self, counter: &str, by: i64, words: &str) {
        let line = self.line(counter);
        assert_eq!((line.difference, line.explained), (by, true), "{self:#?}");
        let reason = line.because.iter().find(|reason| reason.reason.contains(words)).unwrap();
        assert!(reason.up_to.is_none_or(|up_to| up_to >= by.abs()), "{line:?}");
    }

    /// No difference is without a reason, and the kernel's numbers are those that the namespace has.
    fn is_sound(&self, witness: &NetCounters) {
        assert_eq!(self.fate, "compared");
        for line in &self.counters {
            assert!(line.explained, "{line:?} in {self:#?}");
            let of = |name: &str| witness.get(&format!("Tcp{name}")) + witness.get(&format!("TcpExt{name}"));
            assert_eq!(line.kernel, line.counter.split('+').map(of).sum::<i64>(), "{line:?}");
        }
    }
}

/// `tcptide doctor --reconcile` at work.
struct Reconciling(Streaming);

impl Reconciling {
    fn start() -> Self {
        let args = ["doctor", "--reconcile", "--duration", "2m", "-o", "json"];
        let streaming = Tcptide::find().unwrap().spawn(args).unwrap();
        streaming.wait_ready().unwrap();
        thread::sleep(CLEAR_OF_THE_EDGE);
        Self(streaming)
    }

    /// Ends it as Ctrl-C does.
    fn end(self) -> Vec<Namespace> {
        thread::sleep(CLEAR_OF_THE_EDGE);
        let output = self.0.interrupt().unwrap().success().unwrap();
        serde_json::from_value(output.json().unwrap()).unwrap()
    }
}

fn of<'a>(all: &'a [Namespace], netns: &Netns) -> &'a Namespace {
    let netns = inode(netns).unwrap();
    all.iter().find(|namespace| namespace.netns == netns).unwrap()
}

fn grown(netns: &Netns, before: &NetCounters) -> NetCounters {
    NetCounters::of(netns).unwrap().since(before)
}

/// Until nothing is under way in a namespace.
fn settled(netns: &Netns) {
    wait_until("the connections to end", Duration::from_secs(20), || {
        let left = sockets(netns, &["exclude", "listening", "exclude", "time-wait"])?;
        Ok(left.is_empty().then_some(()))
    })
    .unwrap();
}

/// A connection within a namespace, both ends.
fn pair(netns: &Netns, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().unwrap();
    let client = netns.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
    (client, listener.accept().unwrap().0)
}

fn listen(netns: &Netns) -> TcpListener {
    netns.enter(|| Ok(TcpListener::bind("127.0.0.1:0")?)).unwrap()
}

/// The same, with so long a queue.
fn listen_with(netns: &Netns, at: IpAddr, backlog: i32) -> TcpListener {
    let listener = netns.enter(|| Ok(TcpListener::bind((at, 0))?)).unwrap();
    rustix::net::listen(&listener, backlog).unwrap();
    listener
}

/// Begins so many connections.
fn knock(netns: &Netns, at: SocketAddr, times: u32) -> Vec<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let begin = || {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        // Under way, or over loopback there already.
        let _ = connect(&socket, &at);
        Ok(socket)
    };
    netns.enter(|| (0..times).map(|_| begin()).collect()).unwrap()
}

fn tells_of_drops() -> bool {
    kernel().unwrap() >= TELLS_OF_DROPS
}

/// Waits for the RST.
fn is_reset(mut stream: TcpStream) {
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(104));
}

#[test]
fn connections_that_work_are_refused_and_are_reset() {
    let netns = Netns::new("reconcile").unwrap();
    let server = netns.enter(|| Server::start("127.0.0.1:0".parse()?, ServeOptions::default())).unwrap();
    let listener = listen(&netns);
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&netns).unwrap();
    let plan = Churn { count: Some(300), ..Churn::new(2000.0, Duration::from_secs(20)) };
    let counts = netns.enter(|| Ok(churn(&Client::new(server.address()), &plan))).unwrap();
    assert_eq!((counts.opened, counts.failures()), (300, 0));
    for _ in 0..20 {
        netns.enter(|| Ok(TcpStream::connect("127.0.0.1:9").unwrap_err())).unwrap();
    }
    for _ in 0..15 {
        let (client, server) = pair(&netns, &listener);
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        is_reset(server);
    }
    for _ in 0..10 {
        // Closed with a byte that nobody read.
        let (client, mut server) = pair(&netns, &listener);
        server.write_all(b"x").unwrap();
        wait_until("the byte", Duration::from_secs(5), || Ok(client.peek(&mut [0]).ok())).unwrap();
        drop(client);
        is_reset(server);
    }
    settled(&netns);
    let all = reconciling.end();
    let told = of(&all, &netns);
    told.is_sound(&grown(&netns, &before));
    told.agrees(&[
        ("ActiveOpens", 345),
        ("PassiveOpens", 325),
        ("AttemptFails", 20),
        // Both ends are here.
        ("EstabResets", 50),
    ]);
    // None, unless the machine stands still for longer than a timer.
    for counter in ["RetransSegs", "TCPTimeouts+TCPSlowStartRetrans"] {
        told.agrees(&[(counter, told.line(counter).kernel)]);
    }
    if kernel().unwrap() >= TELLS_OF_STRAY_RESETS {
        told.agrees(&[("OutRsts", 45)]);
    } else {
        // The refusals were sent for no socket.
        assert_eq!(told.line("OutRsts").kernel, 45);
        told.differs("OutRsts", 20, "no socket");
    }
}

#[test]
fn a_reset_after_the_own_fin_ends_no_established_connection() {
    let netns = Netns::new("half-closed").unwrap();
    let listener = listen(&netns);
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&netns).unwrap();
    for _ in 0..10 {
        let (client, mut server) = pair(&netns, &listener);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        // Or what acknowledges the FIN finds no socket, and is answered with an RST of its own.
        wait_until("the FIN to be acknowledged", Duration::from_secs(5), || {
            Ok((sockets(&netns, &["state", "fin-wait-2"])?.len() == 1).then_some(()))
        })
        .unwrap();
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_until("the reset", Duration::from_secs(5), || Ok(server.take_error()?)).unwrap();
    }
    // Here the RST comes from the other side, and tells the state in which it arrives.
    for _ in 0..5 {
        let (client, mut server) = pair(&netns, &listener);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        is_reset(client);
    }
    let all = reconciling.end();
    let told = of(&all, &netns);
    told.is_sound(&grown(&netns, &before));
    // The servers' ends were reset in CLOSE_WAIT; the clients' own ends had sent their FIN.
    told.agrees(&[("ActiveOpens", 15), ("PassiveOpens", 15), ("EstabResets", 15)]);
    // An acknowledgement that is on its way when the socket goes is answered with one more, for no socket.
    let resets = told.line("OutRsts");
    assert!(resets.tcptide >= 15, "{resets:?}");
    if kernel().unwrap() >= TELLS_OF_STRAY_RESETS {
        assert_eq!(resets.difference, 0, "{resets:?}");
    } else if resets.difference != 0 {
        told.differs("OutRsts", resets.difference, "no socket");
    }
}

#[test]
fn what_is_lost_on_the_way_and_sent_again() {
    let (a, b) = (Netns::new("lossy-a").unwrap(), Netns::new("lossy-b").unwrap());
    let none = Impairment { delay: Duration::from_millis(2), seed: 17, ..Impairment::default() };
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), none).unwrap();
    let server = b.enter(|| Server::start(SocketAddr::new(ip(SERVER), 0), ServeOptions::default())).unwrap();
    let to = server.address();
    // There before, with retransmissions that are not of the interval.
    let lossy = Impairment { drop: 0.05, ..none };
    let mut early = a.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
    let frame = |bytes: u64| [&bytes.to_be_bytes()[..], &vec![0; bytes as usize - 8]].concat();
    let mut exchange = |bytes: u64| {
        thread::scope(|scope| {
            let mut writing = early.try_clone().unwrap();
            scope.spawn(move || writing.write_all(&frame(bytes)).unwrap());
            early.read_exact(&mut vec![0; bytes as usize]).unwrap();
        });
    };
    path.impair(Direction::AToB, lossy);
    path.impair(Direction::BToA, lossy);
    exchange(300_000);
    let reconciling = Reconciling::start();
    let before = [&a, &b].map(|netns| NetCounters::of(netns).unwrap());
    exchange(300_000);
    for _ in 0..20 {
        let plan = Stream { bytes: 100_000, rate: None, answer: true };
        let counts = a.enter(|| Ok(stream(&Client::new(to), &plan))).unwrap();
        assert_eq!(counts.failures(), 0, "{counts:?}");
    }
    path.impair(Direction::AToB, none);
    path.impair(Direction::BToA, none);
    wait_until("all to be acknowledged", Duration::from_secs(20), || {
        let left = [&a, &b].map(|netns| sockets(netns, &["exclude", "listening", "exclude", "time-wait"]));
        let left: Vec<_> = left.into_iter().flat_map(Result::unwrap).collect();
        // Only the early one is left, with its two ends.
        Ok((left.len() == 2 && left.iter().all(|socket| socket.send_q == 0)).then_some(()))
    })
    .unwrap();
    let all = reconciling.end();
    for (netns, before) in [&a, &b].into_iter().zip(&before) {
        let (told, grown) = (of(&all, netns), grown(netns, before));
        told.is_sound(&grown);
        assert!(grown.get("TcpRetransSegs") > 20, "{grown:?}");
    }
    let (client, server) = (of(&all, &a), of(&all, &b));
    client.agrees(&[("ActiveOpens", 20), ("PassiveOpens", 0)]);
    server.agrees(&[("ActiveOpens", 0), ("PassiveOpens", 20)]);
    // Clients have no SYN-ACKs: every segment is one that a connection knows of.
    for counter in ["RetransSegs", "TCPSynRetrans", "TCPFastRetrans"] {
        assert_eq!(client.line(counter).difference, 0, "{client:#?}");
    }
}

#[test]
fn syns_and_syn_acks_are_lost() {
    let (a, b) = (Netns::new("syn-a").unwrap(), Netns::new("syn-b").unwrap());
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), Impairment::default()).unwrap();
    let listener = b.enter(|| Ok(TcpListener::bind((ip(SERVER), 0))?)).unwrap();
    let to = listener.local_addr().unwrap();
    let once = |is: fn(&[u8]) -> bool| {
        let mut dropped = 0;
        move |packet: &[u8]| {
            dropped += u32::from(is(packet));
            is(packet) && dropped == 1
        }
    };
    let reconciling = Reconciling::start();
    let before = [&a, &b].map(|netns| NetCounters::of(netns).unwrap());
    // One SYN is lost, and then one SYN-ACK: the connection comes all the same.
    path.drop_if(Direction::AToB, once(is_syn));
    let _first = a.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
    path.clear_filter(Direction::AToB);
    path.drop_if(Direction::BToA, once(is_syn_ack));
    let _second = a.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
    // No SYN-ACK arrives: both sides try again, and no connection comes of it.
    path.drop_if(Direction::BToA, is_syn_ack);
    a.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
    b.sysctl("net.ipv4.tcp_synack_retries", "1").unwrap();
    let error = a.enter(|| Ok(TcpStream::connect(to).unwrap_err())).unwrap();
    assert_eq!(error.raw_os_error(), Some(110));
    wait_until("the server to give up too", Duration::from_secs(20), || {
        Ok(sockets(&b, &["state", "syn-recv"])?.is_empty().then_some(()))
    })
    .unwrap();
    let all = reconciling.end();
    let told = [&a, &b].map(|netns| of(&all, netns));
    for ((told, netns), before) in told.into_iter().zip([&a, &b]).zip(&before) {
        told.is_sound(&grown(netns, before));
    }
    let [client, server] = told;
    let syns = client.line("TCPSynRetrans").kernel;
    assert!(syns >= 3, "{client:#?}");
    client.agrees(&[
        ("ActiveOpens", 3),
        ("AttemptFails", 1),
        ("TCPSynRetrans", syns),
        ("RetransSegs", syns),
        ("TCPLossProbes", 0),
    ]);
    client.agrees(&[("TCPAbortOnTimeout", 1)]);
    client.differs("TCPTimeouts+TCPSlowStartRetrans", 1, "TCPAbortOnTimeout");
    server.agrees(&[("PassiveOpens", 2), ("AttemptFails", 0)]);
    // One at least was for the second connection, which told of it.
    let synacks = server.line("TCPSynRetrans");
    assert!(synacks.tcptide >= 1 && synacks.difference >= 1, "{server:#?}");
    server.differs("TCPSynRetrans", synacks.difference, "no connection");
    server.differs("RetransSegs", synacks.difference, "no connection");
}

#[test]
fn listeners_turn_away() {
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let netns = Netns::new("listeners").unwrap();
    let early = listen_with(&netns, LOCAL, 1);
    let to = |listener: &TcpListener| listener.local_addr().unwrap();
    // One more than the limit is let in. Those turned away give up at once.
    let mut waiting = knock(&netns, to(&early), 2);
    drop(knock(&netns, to(&early), 7));
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&netns).unwrap();
    drop(knock(&netns, to(&early), 5));
    let late = listen_with(&netns, LOCAL, 1);
    waiting.extend(knock(&netns, to(&late), 2));
    drop(knock(&netns, to(&late), 4));
    // One that nobody ever looked at.
    let brief = listen_with(&netns, LOCAL, 1);
    let lost = knock(&netns, to(&brief), 2);
    drop(knock(&netns, to(&brief), 3));
    drop(brief);
    let all = reconciling.end();
    let told = of(&all, &netns);
    told.is_sound(&grown(&netns, &before));
    told.agrees(&[("ListenOverflows", 12), ("ListenDrops", 12), ("PassiveOpens", 4)]);
    drop((waiting, lost));
}

#[test]
fn listeners_turn_away_what_they_had_begun() {
    const HALF_OPEN: u32 = 3;
    let (a, b) = (Netns::new("begun-a").unwrap(), Netns::new("begun-b").unwrap());
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), Impairment::default()).unwrap();
    // It tries once more, and then forgets them.
    b.sysctl("net.ipv4.tcp_synack_retries", "1").unwrap();
    let listener = listen_with(&b, ip(SERVER), HALF_OPEN.cast_signed());
    let to = listener.local_addr().unwrap();
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&b).unwrap();
    path.drop_if(Direction::BToA, is_syn_ack);
    let half_open = knock(&a, to, HALF_OPEN);
    wait_until("the SYNs to arrive", Duration::from_secs(10), || {
        Ok((sockets(&b, &["state", "syn-recv"])?.len() == HALF_OPEN as usize).then_some(()))
    })
    .unwrap();
    // Others are let in meanwhile: when the handshakes complete there is no room.
    path.clear_filter(Direction::BToA);
    let waiting = knock(&a, to, HALF_OPEN + 1);
    wait_until("handshakes to be turned away", Duration::from_secs(20), || {
        Ok((grown(&b, &before).get("TcpExtListenOverflows") >= i64::from(HALF_OPEN)).then_some(()))
    })
    .unwrap();
    path.set_blackhole(true);
    wait_until("the rest to be forgotten", Duration::from_secs(20), || {
        Ok(sockets(&b, &["state", "syn-recv"])?.is_empty().then_some(()))
    })
    .unwrap();
    let all = reconciling.end();
    let told = of(&all, &b);
    told.is_sound(&grown(&b, &before));
    for counter in ["ListenOverflows", "ListenDrops"] {
        let line = told.line(counter);
        // The socket counts each of these twice, and SYNs that came again.
        assert!(line.tcptide >= 2 * line.kernel && line.kernel >= i64::from(HALF_OPEN), "{line:?}");
        told.differs(counter, line.difference, "listeners dropped beside");
    }
    drop((half_open, waiting));
}

#[test]
fn a_connection_times_out_after_a_router_said_why() {
    let (a, b) = (Netns::new("icmp-a").unwrap(), Netns::new("icmp-b").unwrap());
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), Impairment::default()).unwrap();
    a.sysctl("net.ipv4.tcp_retries2", "2").unwrap();
    let listener = b.enter(|| Ok(TcpListener::bind((ip(SERVER), 0))?)).unwrap();
    let to = listener.local_addr().unwrap();
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&a).unwrap();
    // Nobody says why to the first one.
    for answers in [false, true] {
        let mut stream = a.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
        path.filter(Direction::AToB, move |packet| match unreachable_for(packet, 1) {
            Some(answer) if answers && has_payload(packet) => Verdict::Answer(answer),
            _ => Verdict::Drop,
        });
        stream.write_all(b"x").unwrap();
        // Not asked for the error: that would take the router's word away from the kernel.
        wait_until("the end", Duration::from_secs(30), || Ok(sockets(&a, &[])?.is_empty().then_some(())))
            .unwrap();
        path.clear_filter(Direction::AToB);
    }
    let all = reconciling.end();
    let told = of(&all, &a);
    told.is_sound(&grown(&a, &before));
    let line = told.line("TCPAbortOnTimeout");
    assert_eq!((line.kernel, line.tcptide), (2, 1), "{line:?}");
    told.differs("TCPAbortOnTimeout", 1, "ICMP");
}

#[test]
fn packets_are_dropped_for_a_socket() {
    let (a, b) = (Netns::new("drops-a").unwrap(), Netns::new("drops-b").unwrap());
    let delay = Impairment { delay: Duration::from_millis(10), seed: 5, ..Impairment::default() };
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), delay).unwrap();
    let listener = b.enter(|| Ok(TcpListener::bind((ip(SERVER), 0))?)).unwrap();
    set_socket_recv_buffer_size(&listener, 200_000).unwrap();
    let to = listener.local_addr().unwrap();
    let connect = || {
        let client = a.enter(|| Ok(TcpStream::connect(to)?)).unwrap();
        client.set_nodelay(true).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&b).unwrap();

    // A large window was offered, and then there is no room for what was sent into it.
    let (mut client, server) = connect();
    for _ in 0..100 {
        client.write_all(&[0; 100]).unwrap();
    }
    wait_until("some bytes", Duration::from_secs(10), || {
        Ok(sockets(&b, &["state", "established"])?.iter().any(|socket| socket.recv_q >= 5000).then_some(()))
    })
    .unwrap();
    client.set_nonblocking(true).unwrap();
    set_socket_recv_buffer_size(&server, 1).unwrap();
    for _ in 0..300 {
        let _ = client.write(&[0; 100]);
    }
    let has = |names: &[&str]| {
        let grown = grown(&b, &before);
        Ok((names.iter().map(|name| grown.get(name)).sum::<i64>() > 0).then_some(()))
    };
    let no_room = ["TcpExtTCPRcvQDrop", "TcpExtTCPOFODrop"];
    wait_until("no room", Duration::from_secs(20), || has(&no_room)).unwrap();
    // It is sent again, into a closed window: newer kernels (6.18) call that beyond the window.
    thread::sleep(Duration::from_secs(1));

    // Segments that overtake each other, and come twice.
    let twice = Impairment { duplicate: 0.3, reorder: 0.2, ..delay };
    path.impair(Direction::AToB, twice);
    let (mut sending, mut reading) = connect();
    thread::scope(|scope| {
        scope.spawn(|| (0..300).for_each(|_| sending.write_all(&[0; 500]).unwrap()));
        reading.read_exact(&mut vec![0; 300 * 500]).unwrap();
    });
    path.impair(Direction::AToB, delay);
    wait_until("something that came twice", Duration::from_secs(10), || has(&["TcpExtTCPOFOMerge"])).unwrap();

    // Until nothing comes any more.
    path.set_blackhole(true);
    thread::sleep(Duration::from_millis(200));
    let all = reconciling.end();
    let (told, grown) = (of(&all, &b), grown(&b, &before));
    told.is_sound(&grown);
    let lines = [
        ("TCPRcvQDrop+TCPOFODrop", &no_room[..]),
        ("TCPZeroWindowDrop", &["TcpExtTCPZeroWindowDrop"]),
        ("TCPOFOMerge", &["TcpExtTCPOFOMerge"]),
    ];
    for (counter, names) in lines {
        let n = names.iter().map(|name| grown.get(name)).sum();
        assert!(n > 0 || counter == "TCPZeroWindowDrop", "{grown:?}");
        told.agrees_on_drops(counter, n);
    }
}

#[test]
fn signatures_are_not_expected() {
    const SIGNING: &str = "import socket, struct, sys
s = socket.socket()
key = b'key'
address = struct.pack('=HH4s', socket.AF_INET, 0, socket.inet_aton('127.0.0.1')).ljust(128, b'\\0')
s.setsockopt(socket.IPPROTO_TCP, 14, address + struct.pack('=BBHi', 0, 0, len(key), 0) + key.ljust(80, b'\\0'))
s.settimeout(0.3)
try:
    s.connect(('127.0.0.1', int(sys.argv[1])))
    sys.exit('it worked')
except TimeoutError:
    pass";
    let netns = Netns::new("signatures").unwrap();
    let listener = listen(&netns);
    let reconciling = Reconciling::start();
    let before = NetCounters::of(&netns).unwrap();
    let mut signing = Command::new(require("python3", "python3-minimal").unwrap());
    signing.args(["-c", SIGNING, &listener.local_addr().unwrap().port().to_string()]);
    for _ in 0..3 {
        output(&mut netns.wrap(&signing)).unwrap();
    }
    let all = reconciling.end();
    let told = of(&all, &netns);
    told.is_sound(&grown(&netns, &before));
    told.agrees_on_drops("TCPMD5NotFound+TCPMD5Unexpected+TCPMD5Failure", 3);
}

/// What the agent's comparison says of one namespace: by counter the kernel's sum, tcptide's, and what is unexplained.
fn compared(scrape: &Scrape, netns: &Netns) -> BTreeMap<String, (i64, i64, i64)> {
    let netns = inode(netns).unwrap().to_string();
    let of = |name: &str, counter: &str| {
        scrape.sum(name, &[("netns", &netns), ("counter", counter)]).map(|n| n as i64).unwrap()
    };
    let all = scrape.select("tcptide_reconcile_kernel_total", &[]).filter(|s| s.label("netns") == netns);
    let counters = all.map(|sample| sample.label("counter"));
    let lines = counters.map(|counter| {
        let counted = of("tcptide_reconcile_counted_total", counter);
        let unexplained = of("tcptide_reconcile_unexplained", counter);
        (counter.to_owned(), (of("tcptide_reconcile_kernel_total", counter), counted, unexplained))
    });
    lines.collect()
}

/// Until the agent has compared all that happened so far.
fn has_compared(agent: &Agent, netns: &Netns) -> BTreeMap<String, (i64, i64, i64)> {
    let told = wait_until("all to be compared", Duration::from_secs(20), || {
        let told = compared(&agent.scrape()?, netns);
        let kernel = NetCounters::of(netns)?;
        let of = |name: &str| kernel.get(&format!("Tcp{name}")) + kernel.get(&format!("TcpExt{name}"));
        let is_all =
            |(counter, (n, _, _)): (&String, &(i64, i64, i64))| counter.split('+').map(of).sum::<i64>() == *n;
        Ok((!told.is_empty() && told.iter().all(is_all)).then_some(told))
    });
    told.unwrap_or_else(|error| panic!("{error:#}: {:#?}", compared(&agent.scrape().unwrap(), netns)))
}

#[test]
fn an_agent_compares_interval_after_interval() {
    let netns = Netns::new("agent").unwrap();
    let server = netns.enter(|| Server::start("127.0.0.1:0".parse()?, ServeOptions::default())).unwrap();
    let agent = Tcptide::find().unwrap().agent(["--reconcile=1s"]).unwrap();
    assert!(compared(&agent.scrape().unwrap(), &netns).is_empty(), "nothing has moved");
    // Over several intervals, so that connections are under way wherever one ends.
    let counts = thread::scope(|scope| {
        let churning = scope.spawn(|| {
            let plan = Churn { count: Some(2000), ..Churn::new(400.0, Duration::from_secs(100)) };
            netns.enter(|| Ok(churn(&Client::new(server.address()), &plan))).unwrap()
        });
        while !churning.is_finished() {
            for (counter, (_, _, unexplained)) in compared(&agent.scrape().unwrap(), &netns) {
                assert_eq!(unexplained, 0, "{counter}");
            }
            thread::sleep(Duration::from_millis(300));
        }
        churning.join().unwrap()
    });
    assert_eq!((counts.opened, counts.failures()), (2000, 0));
    for _ in 0..20 {
        netns.enter(|| Ok(TcpStream::connect("127.0.0.1:9").unwrap_err())).unwrap();
    }
    settled(&netns);
    let told = has_compared(&agent, &netns);
    for (counter, n) in [("ActiveOpens", 2020), ("PassiveOpens", 2000), ("AttemptFails", 20)] {
        assert_eq!(told[counter], (n, n, 0), "{counter}");
    }
    // The refusals were sent for no socket; where the kernel does not tell of them that is a reason.
    let refusals = if kernel().unwrap() >= TELLS_OF_STRAY_RESETS { 20 } else { 0 };
    assert_eq!(told["OutRsts"], (20, refusals, 0));

    // One that comes later, whose end is known to be one.
    let later = Netns::new("agent-later").unwrap();
    let listener = listen_with(&later, "127.0.0.1".parse().unwrap(), 1);
    let to = listener.local_addr().unwrap();
    // It is compared from the next reading on.
    thread::sleep(Duration::from_millis(2500));
    let waiting = knock(&later, to, 2);
    drop(knock(&later, to, 6));
    let told = has_compared(&agent, &later);
    assert_eq!((told["ListenDrops"], told["PassiveOpens"]), ((6, 6, 0), (2, 2, 0)));
    let number = inode(&later).unwrap().to_string();
    drop((waiting, listener, later));
    wait_until("its series to go", Duration::from_secs(20), || {
        let scrape = agent.scrape()?;
        let left = scrape.select("tcptide_reconcile_kernel_total", &[]).any(|s| s.label("netns") == number);
        Ok((!left).then_some(()))
    })
    .unwrap();
}

#[test]
fn an_agent_compares_only_if_it_is_asked_to() {
    let agent = Tcptide::find().unwrap().agent(["--metrics.grace", "1m"]).unwrap();
    assert!(!agent.metrics().unwrap().contains("tcptide_reconcile"));
    let refused = Tcptide::find().unwrap().run(["agent", "--reconcile=10ms"]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.iter().any(|line| line.contains("a second at least")), "{:?}", refused.stderr);
}

#[test]
fn traffic_that_was_there_before_and_goes_on_after() {
    let netns = Netns::new("traffic").unwrap();
    let server = netns.enter(|| Server::start("127.0.0.1:0".parse()?, ServeOptions::default())).unwrap();
    let told = thread::scope(|scope| {
        let churning = scope.spawn(|| {
            let plan = Churn::new(1000.0, Duration::from_secs(6));
            netns.enter(|| Ok(churn(&Client::new(server.address()), &plan))).unwrap()
        });
        let args = ["doctor", "--reconcile", "--duration", "2s", "-o", "json"];
        let output = Tcptide::find().unwrap().run(args).unwrap().success().unwrap();
        // The readings were taken in the middle of it.
        assert!(!churning.is_finished());
        let all: Vec<Namespace> = serde_json::from_value(output.json().unwrap()).unwrap();
        of(&all, &netns).clone()
    });
    for line in &told.counters {
        assert!(line.explained && line.difference.abs() < 20, "{line:?}");
    }
    assert!(told.line("ActiveOpens").kernel > 1000 && told.line("PassiveOpens").tcptide > 1000, "{told:#?}");
}

#[test]
fn namespaces_that_come_and_go_are_said_to() {
    let gone = Netns::new("gone").unwrap();
    let left = inode(&gone).unwrap();
    let reconciling = Reconciling::start();
    drop(gone);
    let new = Netns::new("new").unwrap();
    let listener = listen(&new);
    let _pair = pair(&new, &listener);
    // A namespace with the number of the one that is gone, unless a story beside this one has got it.
    let again = wait_until("the number to be given again", Duration::from_secs(5), || {
        let one = Netns::new("again")?;
        Ok((inode(&one)? == left).then_some(one))
    });
    let all = reconciling.end();
    let came = of(&all, &new);
    let went = all.iter().find(|namespace| namespace.netns == left).unwrap();
    for (namespace, fate) in [(came, "appeared"), (went, "gone")] {
        assert!([fate, "replaced"].contains(&namespace.fate.as_str()), "{namespace:#?}");
        assert!(namespace.counters.is_empty(), "{namespace:#?}");
    }
    if again.is_ok() {
        assert_eq!(went.fate, "replaced");
    }
}

#[test]
fn a_table_for_people() {
    let netns = Netns::new("table").unwrap();
    let listener = listen(&netns);
    let args = ["doctor", "--reconcile", "--duration", "2s"];
    let running = Tcptide::find().unwrap().spawn(args).unwrap();
    running.wait_ready().unwrap();
    thread::sleep(CLEAR_OF_THE_EDGE);
    let _pair = pair(&netns, &listener);
    // It ends by itself.
    let Output { status, stdout, stderr } = running.wait(Duration::from_secs(20)).unwrap();
    assert!(status.success(), "{stderr:?}");
    let lines: Vec<_> = stdout.iter().filter(|line| line.contains(netns.name())).collect();
    assert_eq!(lines.len(), 2, "{stdout:#?}");
    for (line, counter) in lines.iter().zip(["ActiveOpens", "PassiveOpens"]) {
        let numbers: Vec<_> = line.split(counter).nth(1).unwrap().split_whitespace().take(3).collect();
        assert_eq!(numbers, ["1", "1", "0"], "{line}");
    }
    assert!(stderr.iter().any(|line| line.contains("counters agree")), "{stderr:?}");
}
