//! What the kernel counts by network namespace alone: the agent has the same numbers, of every namespace, and says whose
//! it is.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use functional::cgroup::Cgroup;
use functional::connections::inode;
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::packet::{Segment, flags};
use functional::process::{Reading, require, wait_until};
use functional::samples::{Sample, Scrape};
use functional::tcptide::{Agent, Tcptide};
use functional::witness::{NetCounters, TELLS_OF_STRAY_RESETS, kernel, sockets};
use functional::workload::{self, Counts, Running};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(20);
const NEAR: &str = "198.18.90.1";
const FAR: &str = "198.18.90.2";

/// What the agent calls it, what `nstat` calls it.
const EVENTS: &[(&str, &str)] = &[
    ("listen_overflow", "TcpExtListenOverflows"),
    ("listen_drop", "TcpExtListenDrops"),
    ("syn_cookie_sent", "TcpExtSyncookiesSent"),
    ("syn_cookie_received", "TcpExtSyncookiesRecv"),
    ("syn_cookie_failed", "TcpExtSyncookiesFailed"),
    ("syn_queue_cookie", "TcpExtTCPReqQFullDoCookies"),
    ("syn_queue_drop", "TcpExtTCPReqQFullDrop"),
    ("half_open_reset", "TcpExtEmbryonicRsts"),
    ("time_wait_overflow", "TcpExtTCPTimeWaitOverflow"),
    ("orphan_abort", "TcpExtTCPAbortOnMemory"),
    ("receive_prune", "TcpExtPruneCalled"),
    ("receive_collapse", "TcpExtTCPRcvCollapsed"),
    ("receive_prune_drop", "TcpExtRcvPruned"),
    ("out_of_order_prune", "TcpExtOfoPruned"),
    ("receive_queue_drop", "TcpExtTCPRcvQDrop"),
    ("fast_open_active", "TcpExtTCPFastOpenActive"),
    ("fast_open_active_fail", "TcpExtTCPFastOpenActiveFail"),
    ("fast_open_passive", "TcpExtTCPFastOpenPassive"),
    ("fast_open_passive_fail", "TcpExtTCPFastOpenPassiveFail"),
    ("fast_open_cookie_requested", "TcpExtTCPFastOpenCookieReqd"),
    ("fast_open_listen_overflow", "TcpExtTCPFastOpenListenOverflow"),
    ("md5_not_found", "TcpExtTCPMD5NotFound"),
    ("md5_unexpected", "TcpExtTCPMD5Unexpected"),
    ("md5_failure", "TcpExtTCPMD5Failure"),
    ("ao_required", "TcpExtTCPAORequired"),
    ("ao_key_not_found", "TcpExtTCPAOKeyNotFound"),
    ("ao_failure", "TcpExtTCPAOBad"),
    ("mptcp_connect", "MPTcpExtMPCapableSYNTX"),
    ("mptcp_connect_fallback", "MPTcpExtMPCapableFallbackSYNACK"),
    ("mptcp_connect_drop", "MPTcpExtMPCapableSYNTXDrop"),
    ("mptcp_accept", "MPTcpExtMPCapableACKRX"),
    ("mptcp_accept_fallback", "MPTcpExtMPCapableFallbackACK"),
    ("mptcp_join", "MPTcpExtMPJoinAckRx"),
    ("mptcp_infinite_mapping", "MPTcpExtInfiniteMapRx"),
];

/// A namespace whose sockets are all of one container, if the story keeps out of it.
struct Place {
    netns: Netns,
    cgroup: Cgroup,
}

impl Place {
    fn new(story: &str) -> Self {
        Self { netns: Netns::new(story).unwrap(), cgroup: Cgroup::unique(story).unwrap() }
    }

    fn path(&self) -> &str {
        self.cgroup.path().to_str().unwrap()
    }

    fn run(&self, args: &[&str]) -> Running {
        let command = workload::command(args).unwrap();
        Running::start(&mut self.cgroup.wrap(&self.netns.wrap(&command))).unwrap()
    }

    /// Python, which has every socket option.
    fn python(&self, script: &str, args: &[&str]) -> Reading {
        let python = require("python3", "python3-minimal").unwrap();
        let mut command = Command::new(python);
        command.args(["-uc", script]).args(args);
        Reading::start(&mut self.cgroup.wrap(&self.netns.wrap(&command))).unwrap()
    }

    /// A script that is to end by itself.
    fn done(&self, script: &str, args: &[&str]) {
        let mut script = self.python(script, args);
        script.close_stdin();
        let ended = script.wait(SOON).unwrap();
        assert!(ended.status.success(), "{:?}", ended.stderr);
    }

    fn inode(&self) -> String {
        inode(&self.netns).unwrap().to_string()
    }

    /// What the kernel has counted, by the agent's names. What did not happen is left out, but for listeners.
    fn counted(&self) -> BTreeMap<String, u64> {
        let counters = NetCounters::of(&self.netns).unwrap();
        let of = |&(event, name): &(&str, &str)| {
            let n = counters.get(name).cast_unsigned();
            (n > 0 || event.starts_with("listen_")).then(|| (event.to_owned(), n))
        };
        EVENTS.iter().filter_map(of).collect()
    }

    fn kernel(&self, counter: &str) -> u64 {
        NetCounters::of(&self.netns).unwrap().get(counter).cast_unsigned()
    }

    /// What the agent says of it.
    fn told<'a>(&self, scrape: &'a Scrape) -> Vec<&'a Sample> {
        let netns = self.inode();
        let all = scrape.select("tcptide_namespace_events_total", &[]);
        all.filter(|sample| sample.label("netns") == netns).collect()
    }

    /// Until the agent says the same as the kernel, and whose it is.
    fn agrees(&self, agent: &Agent) -> BTreeMap<String, u64> {
        let begun = Instant::now();
        loop {
            let before = self.counted();
            let scrape = agent.scrape().unwrap();
            let samples = self.told(&scrape);
            let told: BTreeMap<_, _> = samples
                .iter()
                .map(|sample| (sample.label("event").to_owned(), sample.value as u64))
                .collect();
            assert_eq!(told.len(), samples.len(), "each once");
            let labels = |sample: &&Sample| [sample.label("pod"), sample.label("namespace")] == ["", ""];
            let is_ours = samples.iter().all(|s| labels(s) && s.label("container") == self.path());
            if told == before && is_ours {
                return told;
            }
            // A reading is good for a second.
            assert!(begun.elapsed() < SOON, "{samples:#?}\nare not\n{before:#?}\nof {}", self.path());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Two of them with a path between, and an agent.
struct Ends {
    near: Place,
    far: Place,
    path: Forwarder,
    agent: Agent,
}

impl Ends {
    fn new(story: &str) -> Self {
        let [near, far] = ["near", "far"].map(|end| Place::new(&format!("{story}-{end}")));
        let delay = Impairment { delay: Duration::from_millis(5), ..Impairment::default() };
        let [a, b] = [NEAR, FAR].map(|ip| ip.parse::<IpAddr>().unwrap());
        let path = Forwarder::between(&near.netns, a, &far.netns, b, delay).unwrap();
        Self { near, far, path, agent: agent(&[]) }
    }

    /// Both say the same as the kernel; these of the far end.
    fn agree(&self) -> BTreeMap<String, u64> {
        self.near.agrees(&self.agent);
        self.far.agrees(&self.agent)
    }

    /// A server at the far end, which accepts nothing.
    fn deaf(&self, port: u16, backlog: u32) -> Running {
        let at = format!("{FAR}:{port}");
        let server = self.far.run(&["serve", "--listen", &at, "--backlog", &backlog.to_string()]);
        server.listening().unwrap();
        kill_process(Pid::from_raw(server.pid().cast_signed()).unwrap(), Signal::STOP).unwrap();
        server
    }

    /// Begins so many connections to the far end, from the namespace at the near one and no container.
    fn knock(&self, port: u16, times: u32) -> Vec<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let at = SocketAddr::new(FAR.parse().unwrap(), port);
        let begin = || {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            // Under way.
            let _ = connect(&socket, &at);
            Ok(socket)
        };
        self.near.netns.enter(|| (0..times).map(|_| begin()).collect()).unwrap()
    }
}

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// Kernels from 6.11 on tell which socket a packet was dropped for; before, that is nobody's.
fn dropped(scrape: &Scrape, place: &Place, reason: &str) -> u64 {
    let of = |container: &str| {
        scrape.sum("tcptide_dropped_packets_total", &[("container", container), ("reason", reason)])
    };
    of(place.path()).or_else(|| of("~unattributed")).unwrap_or(0.0) as u64
}

#[test]
fn a_listener_turns_away() {
    let ends = Ends::new("overflow");
    ends.near.netns.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
    let _server = ends.deaf(7001, 2);
    let _waiting = ends.knock(7001, 3);
    wait_until("a full queue", SOON, || {
        let listening = sockets(&ends.far.netns, &["state", "listening"])?;
        Ok((listening[0].recv_q == 3).then_some(()))
    })
    .unwrap();
    assert_eq!(ends.far.agrees(&ends.agent)["listen_overflow"], 0);
    // Each SYN is sent twice, and turned away both times.
    let _turned_away = ends.knock(7001, 5);
    wait_until("all to be turned away", SOON, || {
        Ok((ends.far.kernel("TcpExtListenOverflows") >= 10).then_some(()))
    })
    .unwrap();
    let told = ends.far.agrees(&ends.agent);
    assert_eq!((told["listen_overflow"], told["listen_drop"]), (10, 10));
}

#[test]
fn cookies_are_sent_received_and_refused() {
    /// Accepts, and ends each connection with a RST when it is told to.
    const SERVER: &str = "import signal, socket, struct, sys
s = socket.create_server((sys.argv[1], 7002))
print('ready')
c, _ = s.accept()
c.recv(100, socket.MSG_WAITALL)
print('read')
sys.stdin.readline()
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
c.close()
print('closed')
signal.pause()";
    let ends = Ends::new("cookies");
    ends.far.netns.sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
    let server = ends.far.run(&["serve", "--listen", &format!("{FAR}:7001")]);
    let to = server.listening().unwrap().to_string();
    let client: Counts = ends
        .near
        .run(&["churn", "--to", &to, "--rate", "100", "--seconds", "20", "--count", "30"])
        .wait(SOON)
        .unwrap();
    assert_eq!((client.closed, client.failures()), (30, 0), "{client:?}");
    let told = ends.agree();
    let of = |event: &str| told.get(event).copied().unwrap_or(0);
    assert_eq!(["syn_cookie_sent", "syn_cookie_received", "syn_queue_cookie"].map(of), [30; 3], "{told:?}");
    assert_eq!(of("syn_cookie_failed"), 0);

    // A RST that is lost: what comes after it belongs to no connection, and is no cookie.
    let mut resetting = ends.far.python(SERVER, &[FAR]);
    resetting.stdout().wait_for("the listener", SOON, |line| line == "ready").unwrap();
    let at = SocketAddr::new(FAR.parse().unwrap(), 7002);
    let mut stream = ends.near.netns.enter(|| Ok(TcpStream::connect(at)?)).unwrap();
    // Far enough from the numbers of the handshake: there the cookie would be good once more.
    stream.write_all(&[0; 100]).unwrap();
    resetting.stdout().wait_for("some bytes", SOON, |line| line == "read").unwrap();
    let is_reset = |packet: &[u8]| Segment::parse(packet).is_some_and(|segment| segment.has(flags::RST));
    ends.path.drop_if(Direction::BToA, is_reset);
    resetting.close_stdin();
    resetting.stdout().wait_for("its end", SOON, |line| line == "closed").unwrap();
    stream.write_all(b"x").unwrap();
    wait_until("no cookie", SOON, || Ok((ends.far.kernel("TcpExtSyncookiesFailed") > 0).then_some(())))
        .unwrap();
    // The near end's sockets are not its container's alone any more.
    drop(stream);
    let told = ends.far.agrees(&ends.agent);
    assert!(told["syn_cookie_failed"] > 0 && told["syn_cookie_received"] == 31, "{told:?}");
}

#[test]
fn time_wait_is_full() {
    let ends = Ends::new("time-wait");
    ends.near.netns.sysctl("net.ipv4.tcp_max_tw_buckets", "4").unwrap();
    let server = ends.far.run(&["serve", "--listen", &format!("{FAR}:7001")]);
    let to = server.listening().unwrap().to_string();
    let client: Counts = ends
        .near
        .run(&["churn", "--to", &to, "--rate", "100", "--seconds", "20", "--count", "20"])
        .wait(SOON)
        .unwrap();
    assert_eq!((client.closed, client.failures()), (20, 0), "{client:?}");
    wait_until("the last one to end", SOON, || {
        Ok(sockets(&ends.near.netns, &["exclude", "time-wait"])?.is_empty().then_some(()))
    })
    .unwrap();
    ends.agree();
    let told = ends.near.agrees(&ends.agent);
    let waiting = sockets(&ends.near.netns, &["state", "time-wait"]).unwrap().len() as u64;
    assert!(waiting < 10, "{waiting}");
    assert_eq!(told["time_wait_overflow"], 20 - waiting);
}

#[test]
fn a_receive_buffer_has_no_room() {
    /// Offers a large window, and then has no room for what was sent into it.
    const RECEIVER: &str = "import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
s.bind((sys.argv[1], 7001))
s.listen()
print('ready')
c, _ = s.accept()
c.recv(1)
c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
print('small')
sys.stdin.read()";
    /// Each byte in a segment of its own.
    const SENDER: &str = "import signal, socket, sys
c = socket.create_connection((sys.argv[1], 7001))
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for n in range(100):
    c.send(bytes(100))
sys.stdin.readline()
c.setblocking(False)
try:
    for n in range(200):
        c.send(bytes(100))
except BlockingIOError:
    pass
print('sent')
signal.pause()";
    let ends = Ends::new("receive");
    let receiver = ends.far.python(RECEIVER, &[FAR]);
    receiver.stdout().wait_for("the listener", SOON, |line| line == "ready").unwrap();
    let mut sender = ends.near.python(SENDER, &[FAR]);
    receiver.stdout().wait_for("a small buffer", SOON, |line| line == "small").unwrap();
    sender.close_stdin();
    sender.stdout().wait_for("the rest", SOON, |line| line == "sent").unwrap();
    wait_until("no room", SOON, || Ok((ends.far.kernel("TcpExtTCPRcvQDrop") > 0).then_some(()))).unwrap();
    let told = ends.agree();
    for event in ["receive_prune", "receive_collapse", "receive_prune_drop", "receive_queue_drop"] {
        assert!(told.get(event).is_some_and(|n| *n > 0), "{event} in {told:?}");
    }
    // The same packets, by the reason they were dropped for.
    let both = |scrape: &Scrape| {
        let kernel = ["TcpExtTCPRcvQDrop", "TcpExtTCPOFODrop"].map(|name| ends.far.kernel(name));
        (dropped(scrape, &ends.far, "proto_mem"), kernel.iter().sum::<u64>())
    };
    let (told, kernel) = both(&ends.agent.scrape().unwrap());
    assert_eq!(told, kernel);
}

#[test]
fn signatures_are_missing_unexpected_and_wrong() {
    const KEYS: &str = "import socket, struct, sys
TCP_MD5SIG = 14
def sign(s, peer, key):
    address = struct.pack('=HH4s', socket.AF_INET, 0, socket.inet_aton(peer)).ljust(128, b'\\0')
    key = key.encode()
    s.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, address + struct.pack('=BBHi', 0, 0, len(key), 0) + key.ljust(80, b'\\0'))
";
    let ends = Ends::new("md5");
    let script = |rest: &str| format!("{KEYS}{rest}");
    let server = script(
        "for port, key in [(7001, 'one'), (7002, None), (7003, 'one')]:
    s = socket.create_server((sys.argv[1], port))
    if key:
        sign(s, sys.argv[2], key)
    globals()[f's{port}'] = s
print('ready')
sys.stdin.read()",
    );
    let client = script(
        "for port, key in [(7001, None), (7002, 'one'), (7003, 'two')]:
    s = socket.socket()
    s.settimeout(0.5)
    if key:
        sign(s, sys.argv[1], key)
    try:
        s.connect((sys.argv[1], port))
        sys.exit('it worked')
    except TimeoutError:
        s.close()",
    );
    let server = ends.far.python(&server, &[FAR, NEAR]);
    server.stdout().wait_for("the listeners", SOON, |line| line == "ready").unwrap();
    ends.near.done(&client, &[FAR]);
    let told = ends.agree();
    let events = ["md5_not_found", "md5_unexpected", "md5_failure"];
    assert_eq!(events.map(|event| told[event]), [1; 3], "{told:?}");
    let scrape = ends.agent.scrape().unwrap();
    let reasons = ["tcp_md5notfound", "tcp_md5unexpected", "tcp_md5failure"];
    assert_eq!(reasons.map(|reason| dropped(&scrape, &ends.far, reason)), [1; 3]);
}

#[test]
fn data_comes_with_the_syn() {
    const SERVER: &str = "import socket, sys
s = socket.create_server((sys.argv[1], 7001))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
print('ready')
while True:
    c, _ = s.accept()
    c.sendall(c.recv(5))
    c.close()";
    /// The first one asks for a cookie, the others use it.
    const CLIENT: &str = "import socket, sys
for n in range(4):
    c = socket.socket()
    c.sendto(b'hello', socket.MSG_FASTOPEN, (sys.argv[1], 7001))
    assert c.recv(5) == b'hello'
    c.close()";
    let ends = Ends::new("fast-open");
    for place in [&ends.near, &ends.far] {
        place.netns.sysctl("net.ipv4.tcp_fastopen", "3").unwrap();
    }
    let server = ends.far.python(SERVER, &[FAR]);
    server.stdout().wait_for("the listener", SOON, |line| line == "ready").unwrap();
    ends.near.done(CLIENT, &[FAR]);
    let told = ends.agree();
    assert_eq!((told["fast_open_cookie_requested"], told["fast_open_passive"]), (1, 3), "{told:?}");
    assert_eq!(ends.near.agrees(&ends.agent)["fast_open_active"], 3);
}

#[test]
fn mptcp_is_asked_for_and_not_had() {
    const CLIENT: &str = "import socket, sys
for port in sys.argv[2:]:
    c = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    c.connect((sys.argv[1], int(port)))
    c.close()";
    const SERVER: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.bind((sys.argv[1], 7002))
s.listen()
print('ready')
c, _ = s.accept()
c.recv(1)
sys.stdin.read()";
    let ends = Ends::new("mptcp");
    let _plain = ends.deaf(7001, 10);
    let server = ends.far.python(SERVER, &[FAR]);
    server.stdout().wait_for("the listener", SOON, |line| line == "ready").unwrap();
    ends.near.done(CLIENT, &[FAR, "7001", "7001", "7002"]);
    let told = ends.near.agrees(&ends.agent);
    assert_eq!((told["mptcp_connect"], told["mptcp_connect_fallback"]), (3, 2), "{told:?}");
    assert_eq!(ends.far.agrees(&ends.agent)["mptcp_accept"], 1);
}

/// Whose the agent says the namespace is; `None`: it does not tell of it.
fn owner(agent: &Agent, netns: &str) -> Option<String> {
    let scrape = agent.scrape().unwrap();
    let labels = [("netns", netns), ("event", "listen_drop")];
    let sample = scrape.select("tcptide_namespace_events_total", &labels).next()?;
    Some(sample.label("container").to_owned())
}

fn becomes(agent: &Agent, netns: &str, expected: Option<&str>) {
    let what = format!("the owner {expected:?} of {netns}");
    wait_until(&what, SOON, || Ok((owner(agent, netns).as_deref() == expected).then_some(()))).unwrap();
}

#[test]
fn a_namespace_is_its_containers_as_long_as_nobody_else_has_a_socket_there() {
    const BRIEFLY: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--seconds", "0.01"];
    let place = Place::new("owner");
    let netns = place.inode();
    let agent = agent(&[]);
    becomes(&agent, &netns, Some(""));
    // Nobody looks while it is there.
    place.run(&BRIEFLY).wait(SOON).unwrap();
    becomes(&agent, &netns, Some(place.path()));
    // There is no container any more, and still no other.
    let Place { netns: kept, cgroup } = place;
    let name = cgroup.path().to_str().unwrap().to_owned();
    drop(cgroup);
    thread::sleep(Duration::from_millis(1500));
    becomes(&agent, &netns, Some(&name));
    let other = Place { netns: kept, cgroup: Cgroup::unique("owner-other").unwrap() };
    other.run(&BRIEFLY).wait(SOON).unwrap();
    becomes(&agent, &netns, Some(""));
    // It goes, and nothing of it stays.
    drop(other);
    becomes(&agent, &netns, None);
    // The next one with its number begins anew.
    let again = wait_until("the number to be given again", Duration::from_secs(5), || {
        let one = Place::new("owner-again");
        Ok((one.inode() == netns).then_some(one))
    });
    if let Ok(again) = again {
        becomes(&agent, &netns, Some(""));
        again.run(&BRIEFLY).wait(SOON).unwrap();
        becomes(&agent, &netns, Some(again.path()));
    }
}

/// What the agent says of packets that no socket got, and of the RSTs that were sent for none.
fn strays(scrape: &Scrape, container: &str) -> [u64; 2] {
    let of = |name, label| scrape.sum(name, &[("container", container), label]).unwrap_or(0.0) as u64;
    [
        of("tcptide_dropped_packets_total", ("reason", "no_socket")),
        of("tcptide_resets_by_state_total", ("state", "none")),
    ]
}

#[test]
fn packets_of_no_socket_are_the_containers_whose_namespace_they_are_in() {
    const TIMES: u64 = 7;
    let refused = ["churn", "--to", "127.0.0.1:9", "--rate", "100", "--seconds", "20", "--count", "7"];
    // Before Linux 6.10 the kernel tells of no such RST.
    let expected = |times| [times, if kernel().unwrap() >= TELLS_OF_STRAY_RESETS { times } else { 0 }];
    let own = Place::new("strays");
    let agent = agent(&[]);
    assert_eq!(own.run(&refused).wait(SOON).unwrap().failures(), TIMES);
    assert_eq!(own.kernel("TcpOutRsts"), TIMES);
    let scrape = agent.scrape().unwrap();
    assert_eq!(strays(&scrape, own.path()), expected(TIMES));
    let nobodys = strays(&scrape, "~unattributed");

    // When somebody else is there too, nobody knows any more whose they are. What was the container's stays its own.
    let Place { netns, cgroup } = own;
    let guest = Place { netns, cgroup: Cgroup::unique("strays-guest").unwrap() };
    assert_eq!(guest.run(&refused).wait(SOON).unwrap().failures(), TIMES);
    wait_until("the guest to be known", SOON, || {
        let scrape = agent.scrape()?;
        let is_nobodys = guest.told(&scrape).iter().all(|sample| sample.label("container").is_empty());
        Ok(is_nobodys.then_some(()))
    })
    .unwrap();
    assert_eq!(guest.run(&refused).wait(SOON).unwrap().failures(), TIMES);
    let scrape = agent.scrape().unwrap();
    let path = cgroup.path().to_str().unwrap();
    let [first, second] = [strays(&scrape, path), strays(&scrape, guest.path())];
    // The first of the guest may have come before it was known to be there.
    let most = expected(2 * TIMES);
    assert!((0..2).all(|i| (expected(TIMES)[i]..=most[i]).contains(&first[i])), "{first:?}");
    let all = strays(&scrape, "~unattributed");
    assert!((0..2).all(|i| all[i] - nobodys[i] >= expected(TIMES)[i]), "{all:?} after {nobodys:?}");
    assert_eq!(second, [0, 0]);
}

#[test]
fn a_namespace_that_was_there_before_is_its_containers_too() {
    let place = Place::new("before");
    let server = place.run(&["serve", "--listen", "127.0.0.1:7001"]);
    server.listening().unwrap();
    let agent = agent(&[]);
    assert_eq!(owner(&agent, &place.inode()).as_deref(), Some(place.path()));
}

#[test]
fn more_namespaces_than_are_to_be_read_are_left_out_and_counted() {
    let agent = agent(&["--metrics.max-namespaces", "1"]);
    let read = |scrape: &Scrape| -> Vec<String> {
        let mut all: Vec<_> =
            scrape.select("tcptide_namespace_events_total", &[("event", "listen_drop")]).collect();
        all.dedup_by_key(|sample| sample.label("netns").to_owned());
        all.iter().map(|sample| sample.label("netns").to_owned()).collect()
    };
    let first = read(&agent.scrape().unwrap());
    assert_eq!(first.len(), 1);
    let _more = [Netns::new("more-a").unwrap(), Netns::new("more-b").unwrap()];
    wait_until("two to be left out", SOON, || {
        let scrape = agent.scrape()?;
        let of = |status| scrape.sum("tcptide_namespaces", &[("status", status)]);
        Ok((of("read") == Some(1.0) && of("left_out") >= Some(2.0)).then_some(()))
    })
    .unwrap();
    assert_eq!(read(&agent.scrape().unwrap()), first, "who was in stays in");
}

#[test]
fn scrapes_of_a_second_share_a_reading() {
    let place = Place::new("shared");
    let agent = agent(&[]);
    let netns = place.inode();
    assert!(owner(&agent, &netns).is_some());
    let took = |scrape: &Scrape| scrape.sum("tcptide_namespaces_duration_seconds", &[]).unwrap();
    let begun = Instant::now();
    let all: Vec<_> = (0..5).map(|_| took(&agent.scrape().unwrap())).collect();
    if begun.elapsed() < Duration::from_millis(500) {
        let mut different = all.clone();
        different.dedup_by(|a, b| (*a - *b).abs() < f64::EPSILON);
        assert!(different.len() <= 2, "{all:?}");
    }
    thread::sleep(Duration::from_millis(1100));
    assert!((took(&agent.scrape().unwrap()) - all[4]).abs() > f64::EPSILON);
}
