//! Connects that never become connections, each with its reason, and those that merely look so.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use functional::connections::{Connection, Connections, Trace};
use functional::forwarder::{Forwarder, Impairment};
use functional::netns::{Netns, veth_pair};
use functional::process::wait_until;
use functional::witness::{NetCounters, sockets};
use functional::workload::{Churn, Client, ServeOptions, Server, churn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

const CLIENT: &str = "198.18.21.1";
const SERVER: &str = "198.18.21.2";
const CLIENT_6: &str = "fd00:21::1";
const SERVER_6: &str = "fd00:21::2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn refuse(netns: &Netns, to: SocketAddr, errno: Errno) {
    let error = netns.enter(|| Ok(TcpStream::connect(to).unwrap_err())).unwrap();
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{to}: {error}");
}

/// Begins to connect, without waiting for it.
fn begin(netns: &Netns, to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    netns
        .enter(|| {
            let socket = socket_with(family, SocketType::STREAM, flags, None)?;
            match connect(&socket, &to) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
                Err(error) => Err(error.into()),
            }
        })
        .unwrap()
}

/// The failed connect to that address; its events were its SYN and its failure, and no more.
fn failed(told: &Connections, to: SocketAddr) -> Connection {
    let fail =
        told.events("fail").only(|end| (end.peer.address, end.peer.port) == (to.ip(), Some(to.port())));
    let fail = fail.one().unwrap().clone();
    assert_eq!(told.only(|end| end.cookie == fail.cookie).names(), ["open", "fail"]);
    assert_eq!(fail.direction(), "active");
    assert_eq!(fail.process.as_ref().unwrap().pid, std::process::id());
    assert_eq!((fail.bytes(), fail.connect_us), ((0, 0), None));
    fail
}

fn reason_and_errno(end: &Connection) -> (&str, Option<u64>) {
    (end.reason(), end.close.as_ref().unwrap().errno)
}

#[test]
fn refused() {
    let netns = Netns::new("refused").unwrap();
    let trace = Trace::start(&netns, &[]).unwrap();
    let targets = ["127.0.0.1:7009", "[::1]:7009"].map(|to| to.parse().unwrap());
    for to in targets {
        refuse(&netns, to, Errno::CONNREFUSED);
    }
    trace.wait_for("fail", 2).unwrap();
    let told = trace.end().unwrap();
    for to in targets {
        let fail = failed(&told, to);
        assert_eq!(reason_and_errno(&fail), ("refused", Some(111)));
        assert_eq!((fail.segments_out, fail.segments_in, fail.retransmits.total), (1, 1, 0));
    }
    assert_eq!(NetCounters::of(&netns).unwrap().get("TcpAttemptFails"), 2);
}

#[test]
fn timed_out_with_its_syns_counted() {
    let (a, b) = (Netns::new("timeout-a").unwrap(), Netns::new("timeout-b").unwrap());
    let path = Forwarder::build(&a, &b)
        .addresses(ip(CLIENT), ip(SERVER))
        .addresses(ip(CLIENT_6), ip(SERVER_6))
        .start()
        .unwrap();
    path.set_blackhole(true);
    a.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
    let trace = Trace::start(&a, &["--events", "open,established,close,fail"]).unwrap();
    let targets = [SERVER, SERVER_6].map(|to| SocketAddr::new(ip(to), 7000));
    thread::scope(|scope| {
        for to in targets {
            let a = &a;
            scope.spawn(move || refuse(a, to, Errno::TIMEDOUT));
        }
    });
    trace.wait_for("fail", 2).unwrap();
    let told = trace.end().unwrap();
    for to in targets {
        let fail = failed(&told, to);
        assert_eq!(reason_and_errno(&fail), ("timeout", Some(110)));
        assert_eq!((fail.segments_out, fail.segments_in), (1 + fail.retransmits.syn, 0));
        assert_eq!(fail.retransmits.total, fail.retransmits.syn);
        assert!(fail.retransmits.syn > 0 && fail.duration_us.unwrap() >= 2_000_000, "{fail:?}");
    }
    let syns: u64 = told.events("fail").0.iter().map(|fail| fail.retransmits.syn).sum();
    let counters = NetCounters::of(&a).unwrap();
    assert_eq!(counters.get("TcpExtTCPSynRetrans"), i64::try_from(syns).unwrap());
    assert_eq!(counters.get("TcpAttemptFails"), 2);
}

/// A router between a client and nowhere.
fn router() -> (Netns, Netns) {
    let (client, router) = (Netns::new("client").unwrap(), Netns::new("router").unwrap());
    let own = |address, length| format!("{address}/{length}");
    let at_client = [own(CLIENT, 24), own(CLIENT_6, 64)];
    let at_router = [own(SERVER, 24), own(SERVER_6, 64)];
    veth_pair(&client, &[&at_client[0], &at_client[1]], &router, &[&at_router[0], &at_router[1]]).unwrap();
    client.ip(&["route", "add", "default", "via", SERVER]).unwrap();
    client.ip(&["-6", "route", "add", "default", "via", SERVER_6]).unwrap();
    router.sysctl("net.ipv4.ip_forward", "1").unwrap();
    router.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    // It answers each SYN, and not one a second.
    router.sysctl("net.ipv4.icmp_ratelimit", "0").unwrap();
    router.sysctl("net.ipv6.icmp.ratelimit", "0").unwrap();
    (client, router)
}

#[test]
fn unreachable_as_a_router_says_or_as_no_neighbour_answers() {
    let (client, router) = router();
    for (kind, v4, v6) in
        [("unreachable", "198.18.22.0/24", "fd00:22::/64"), ("prohibit", "198.18.23.0/24", "fd00:23::/64")]
    {
        router.ip(&["route", "add", kind, v4]).unwrap();
        router.ip(&["-6", "route", "add", kind, v6]).unwrap();
    }
    let trace = Trace::start(&client, &[]).unwrap();
    let before = NetCounters::of(&client).unwrap();
    let targets = [
        ("198.18.22.1", Errno::HOSTUNREACH),
        ("198.18.23.1", Errno::HOSTUNREACH),
        // On the router there is no route there at all.
        ("198.18.24.1", Errno::NETUNREACH),
        ("fd00:22::1", Errno::NETUNREACH),
        ("fd00:24::1", Errno::NETUNREACH),
        // On the link, but nobody's.
        ("198.18.21.99", Errno::HOSTUNREACH),
    ]
    .map(|(to, errno)| (SocketAddr::new(ip(to), 7000), errno));
    for (to, errno) in targets {
        refuse(&client, to, errno);
    }
    trace.wait_for("fail", targets.len()).unwrap();
    let told = trace.end().unwrap();
    for (to, errno) in targets {
        let fail = failed(&told, to);
        let errno = u64::try_from(errno.raw_os_error()).unwrap();
        assert_eq!(reason_and_errno(&fail), ("unreachable", Some(errno)), "{to}");
    }
    let attempts = NetCounters::of(&client).unwrap().since(&before).get("TcpAttemptFails");
    assert_eq!(usize::try_from(attempts).unwrap(), targets.len());
}

#[test]
fn canceled_by_its_own_application() {
    let (a, b) = (Netns::new("cancel-a").unwrap(), Netns::new("cancel-b").unwrap());
    let path = Forwarder::between(&a, ip(CLIENT), &b, ip(SERVER), Impairment::default()).unwrap();
    path.set_blackhole(true);
    let to = SocketAddr::new(ip(SERVER), 7000);
    let trace = Trace::start(&a, &[]).unwrap();
    let before = NetCounters::of(&a).unwrap();
    let socket = begin(&a, to);
    let sending = wait_until("a second SYN", Duration::from_secs(5), || {
        let seen = sockets(&a, &["state", "syn-sent"])?;
        Ok(seen.into_iter().find(|socket| socket.retransmits() == 1))
    })
    .unwrap();
    drop(socket);
    trace.wait_for("fail", 1).unwrap();
    let fail = failed(&trace.end().unwrap(), to);
    assert_eq!(reason_and_errno(&fail), ("canceled", None));
    assert_eq!((Some(fail.cookie), fail.retransmits.syn, fail.segments_out), (sending.cookie, 1, 2));
    assert!(fail.duration_us.unwrap() >= 1_000_000);
    // Nothing failed, to the kernel.
    let grown = NetCounters::of(&a).unwrap().since(&before);
    assert_eq!((grown.get("TcpActiveOpens"), grown.get("TcpAttemptFails")), (1, 0));
}

#[test]
fn no_local_port_is_left() {
    let netns = Netns::new("ports").unwrap();
    netns.sysctl("net.ipv4.ip_local_port_range", "40000 40001").unwrap();
    let to = "127.0.0.1:7000".parse().unwrap();
    let _listener = netns.enter(|| Ok(TcpListener::bind(to)?)).unwrap();
    let _held = [(), ()].map(|()| netns.enter(|| Ok(TcpStream::connect(to)?)).unwrap());
    let trace = Trace::start(&netns, &[]).unwrap();
    refuse(&netns, to, Errno::ADDRNOTAVAIL);
    trace.wait_for("fail", 1).unwrap();
    let told = trace.end().unwrap();
    let fail = told.events("fail").one().unwrap().clone();
    assert_eq!(fail.reason(), "address_unavailable");
    // The socket keeps no error: only connect() itself returned one.
    assert_eq!(fail.close.as_ref().unwrap().errno, None);
    assert_eq!((fail.local.port, fail.segments_out), (None, 0));
    // The kernel does not count what sent no SYN as an open.
    assert_eq!(NetCounters::of(&netns).unwrap().get("TcpActiveOpens"), 2);
}

#[test]
fn a_short_connection_that_worked_is_no_failure() {
    const COUNT: u64 = 300;
    let netns = Netns::new("short").unwrap();
    let server = netns.enter(|| Server::start("127.0.0.1:0".parse()?, ServeOptions::default())).unwrap();
    let to = server.address();
    let trace = Trace::start(&netns, &[]).unwrap();
    for number in 0..COUNT {
        let socket = begin(&netns, to);
        if number % 2 == 0 {
            let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
            poll(&mut ready, None).unwrap();
            socket_error(&socket).unwrap().unwrap();
        }
        // Every other one is closed at once, without ever a look whether it was established.
    }
    let plan = Churn { count: Some(COUNT), ..Churn::new(3000.0, Duration::from_secs(20)) };
    let counts = netns.enter(|| Ok(churn(&Client::new(to), &plan))).unwrap();
    assert_eq!((counts.opened, counts.failures()), (COUNT, 0));
    trace.wait_for("close", 4 * COUNT as usize).unwrap();
    let told = trace.end().unwrap();
    assert_eq!(told.events("fail").names(), [""; 0]);
    for direction in ["active", "passive"] {
        let of = |event| told.events(event).only(|end| end.direction() == direction).0.len() as u64;
        assert_eq!([of("open"), of("established"), of("close")], [2 * COUNT; 3], "{direction}");
    }
    let counters = NetCounters::of(&netns).unwrap();
    assert_eq!(
        (counters.get("TcpAttemptFails"), counters.get("TcpActiveOpens")),
        (0, 2 * COUNT.cast_signed())
    );
    assert_eq!(server.stop().unwrap().accepted, 2 * COUNT);
}
