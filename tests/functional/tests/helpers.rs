//! The helpers do what they say: a story is worth as much as what it is told with.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use functional::cgroup::{self, Cgroup};
use functional::forwarder::{Direction, Forwarder, Impairment, Verdict};
use functional::netns::{Netns, veth_pair};
use functional::nginx::Nginx;
use functional::process::{Reading, output, running, wait_until};
use functional::prometheus::{Prometheus, check_metrics};
use functional::runtime::{Containers, Docker, Podman};
use functional::tcptide::Tcptide;
use functional::witness::{NetCounters, Socket, sockets};
use functional::workload::{
    self, Churn, Client, Held, PingPong, Running, ServeOptions, Server, Stream, churn, ping_pong, stream,
};
use functional::{Serial, http, packet, serial, sweep};
use rustix::fs::{XattrFlags, setxattr};

/// One at a time: times are measured here, and the machine is looked at before and after.
fn alone() -> Serial {
    serial("helpers").unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const A: &str = "198.18.1.1";
const B: &str = "198.18.1.2";
const A6: &str = "fd00:1::1";
const B6: &str = "fd00:1::2";

/// Two namespaces to put a path between.
fn two(story: &str) -> (Netns, Netns) {
    (Netns::new(&format!("{story}-a")).unwrap(), Netns::new(&format!("{story}-b")).unwrap())
}

fn serve_in(netns: &Netns, address: &str) -> Server {
    let address = SocketAddr::new(ip(address), 0);
    netns.enter(|| Server::start(address, ServeOptions::default())).unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_namespace_is_entered_and_goes_away_also_after_a_panic() {
    let _alone = alone();
    let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut path = PathBuf::new();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let netns = Netns::new("panic").unwrap();
        path = netns.path();
        let inside = netns.enter(|| Ok(fs::read_link("/proc/thread-self/ns/net")?)).unwrap();
        assert_ne!(inside, here);
        let child = output(netns.command("readlink").arg("/proc/self/ns/net")).unwrap();
        assert_eq!(Path::new(&child), inside);
        assert!(output(netns.command("ls").arg(cgroup::mount_point().unwrap())).unwrap().contains("cgroup"));
        netns.sysctl("net.ipv4.tcp_tw_reuse", "1").unwrap();
        let error: Result<()> = netns.enter(|| Err(anyhow!("an error inside")));
        assert_eq!(error.unwrap_err().to_string(), "an error inside");
        netns.enter(|| -> Result<()> { panic!("a panic inside") }).unwrap();
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"a panic inside"));
    assert!(!path.as_os_str().is_empty() && !path.exists());
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
}

#[test]
fn a_dead_runs_left_overs_are_swept_and_a_living_runs_stay() {
    let _alone = alone();
    let mut ended = Command::new("true").spawn().unwrap();
    let dead = ended.id();
    ended.wait().unwrap();
    let living = Netns::new("living").unwrap();
    let name = format!("tcptide-{dead}-0-gone");
    output(Command::new("ip").args(["netns", "add", &name])).unwrap();
    let file = format!("--net=/run/netns/{name}");
    let mut sleeper = Command::new("nsenter").args([&file, "sleep", "60"]).spawn().unwrap();
    wait_until("the sleeper to be inside", ms(5000), || {
        let pids = output(Command::new("ip").args(["netns", "pids", &name]))?;
        Ok((!pids.is_empty()).then_some(()))
    })
    .unwrap();
    let folder = std::env::temp_dir().join(format!("{name}-folder"));
    fs::create_dir_all(folder.join("part")).unwrap();
    let marked = cgroup::mount_point().unwrap().join(&name);
    fs::create_dir(&marked).unwrap();
    let mark = dead.to_string();
    setxattr(&marked, "trusted.tcptide-test", mark.as_bytes(), XattrFlags::empty()).unwrap();
    sweep::sweep();
    assert!(!Path::new("/run/netns").join(&name).exists());
    assert!(!folder.exists() && !marked.exists());
    assert!(sleeper.wait().unwrap().code().is_none(), "the sleeper was killed");
    assert!(living.path().exists());
}

#[test]
fn a_veth_pair_carries_both_families_and_ss_sees_what_the_workload_counts() {
    let _alone = alone();
    let (a, b) = two("veth");
    veth_pair(&a, &["198.18.2.1/24", "fd00:2::1/64"], &b, &["198.18.2.2/24", "fd00:2::2/64"]).unwrap();
    for address in ["198.18.2.2", "fd00:2::2"] {
        let server = serve_in(&b, address);
        let client = Client::new(server.address());
        let before = NetCounters::of(&a).unwrap();
        let held = a.enter(|| Held::open(&client, 3, ms(5000))).unwrap();
        let (mut connection, mut frame) = (&held.connections()[0], vec![7_u8; 1000]);
        frame[..8].copy_from_slice(&1000_u64.to_be_bytes());
        connection.write_all(&frame).unwrap();
        connection.read_exact(&mut frame).unwrap();
        let seen = sockets(&a, &["state", "established"]).unwrap();
        assert_eq!(seen.len(), 3);
        let local = connection.local_addr().unwrap();
        let seen = seen.iter().find(|socket| socket.local == local).unwrap();
        assert_eq!((seen.bytes_sent(), seen.bytes_received()), (1000, 1000));
        assert_eq!(seen.peer, server.address());
        assert!(seen.cookie.is_some() && seen.rtt_ms().is_some());
        assert_eq!(seen.processes[0].1, std::process::id());
        let grown = NetCounters::of(&a).unwrap().since(&before);
        assert_eq!(grown.get("TcpActiveOpens"), 3);
        held.close();
        let counts = server.stop().unwrap();
        assert_eq!((counts.accepted, counts.bytes_received, counts.bytes_sent), (3, 1000, 1000));
    }
}

#[test]
fn a_child_is_born_in_its_cgroup_and_does_not_survive_it() {
    let _alone = alone();
    let path = format!("{}/inner/leaf", sweep::own_name("cgroup"));
    let cgroup = Cgroup::new(&path).unwrap();
    assert!(Cgroup::new(&path).is_err(), "a cgroup that is there is refused");
    assert_ne!(cgroup.id().unwrap(), 0);
    let own = output(cgroup.command("cat").arg("/proc/self/cgroup")).unwrap();
    assert!(own.lines().any(|line| line == format!("0::/{path}")), "{own}");
    let netns = Netns::new("cgroup").unwrap();
    let mut both = cgroup.wrap(netns.command("sleep").arg("60"));
    let mut child = both.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    wait_until("the child to be inside", ms(5000), || Ok(cgroup.processes()?.contains(&pid).then_some(())))
        .unwrap();
    let top = cgroup.folder().ancestors().nth(2).unwrap().to_owned();
    drop(cgroup);
    assert!(!top.exists());
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_delay_of_50_ms_each_way_is_a_round_trip_of_100_ms() {
    let _alone = alone();
    let (a, b) = two("delay");
    let impairment = Impairment { delay: ms(50), ..Impairment::default() };
    let path = Forwarder::build(&a, &b)
        .addresses(ip(A), ip(B))
        .addresses(ip(A6), ip(B6))
        .impair_both(impairment)
        .start()
        .unwrap();
    for address in [B, B6] {
        let server = serve_in(&b, address);
        let plan = PingPong { count: 20, bytes: 64, interval: ms(0), limit: ms(20_000) };
        let client = Client::new(server.address());
        let counts = a.enter(|| Ok(ping_pong(&client, &plan))).unwrap();
        let (connect, trips) = (counts.connect_us.unwrap(), counts.round_trip_us.unwrap());
        for measured in [connect.min, trips.min, trips.p50] {
            assert!((100_000.0..104_000.0).contains(&measured), "{measured} us over {address}");
        }
        assert_eq!(counts.requests, 20);
        server.stop().unwrap();
    }
    let there = wait_until("nothing to be under way", ms(1000), || {
        let there = path.counters(Direction::AToB);
        Ok((there.received == there.forwarded).then_some(there))
    })
    .unwrap();
    assert_eq!((there.device_dropped, there.dropped, there.undeliverable), (0, 0, 0));
}

/// Sends 1000 numbered datagrams through a path and returns those that arrive, in order.
fn datagrams(impairment: Impairment) -> (Vec<u16>, functional::forwarder::Counters) {
    let (a, b) = two("seed");
    let path = Forwarder::between(&a, ip(A), &b, ip(B), impairment).unwrap();
    let receiver = b.enter(|| Ok(UdpSocket::bind((ip(B), 7))?)).unwrap();
    let sender = a.enter(|| Ok(UdpSocket::bind((ip(A), 7))?)).unwrap();
    sender.connect((ip(B), 7)).unwrap();
    receiver.set_read_timeout(Some(ms(300))).unwrap();
    let reader = thread::spawn(move || {
        let (mut arrived, mut buffer) = (Vec::new(), [0; 2]);
        while let Ok(2) = receiver.recv(&mut buffer) {
            arrived.push(u16::from_be_bytes(buffer));
        }
        arrived
    });
    for number in 0..1000_u16 {
        sender.send(&number.to_be_bytes()).unwrap();
        if number % 20 == 0 {
            thread::sleep(ms(1));
        }
    }
    (reader.join().unwrap(), path.counters(Direction::AToB))
}

#[test]
fn a_path_loses_what_it_says_and_the_seed_decides_which() {
    let _alone = alone();
    let lossy = Impairment { drop: 0.1, duplicate: 0.05, seed: 42, ..Impairment::default() };
    let (arrived, counters) = datagrams(lossy);
    let distinct: BTreeSet<_> = arrived.iter().collect();
    assert_eq!(counters.received, 1000);
    assert!(counters.dropped > 50 && counters.duplicated > 20, "{counters:?}");
    assert_eq!(distinct.len() as u64, 1000 - counters.dropped);
    assert_eq!(arrived.len() as u64, distinct.len() as u64 + counters.duplicated);
    assert_eq!(arrived.len() as u64, counters.forwarded);
    assert_eq!(arrived, datagrams(lossy).0, "the same seed does the same");
    assert_ne!(arrived, datagrams(Impairment { seed: 43, ..lossy }).0);
}

#[test]
fn held_back_packets_are_overtaken() {
    let _alone = alone();
    let (arrived, counters) = datagrams(Impairment { reorder: 0.1, seed: 5, ..Impairment::default() });
    assert_eq!(arrived.len(), 1000);
    assert!(counters.held_back > 50 && !arrived.is_sorted(), "{counters:?}");
}

#[test]
fn corruption_is_noticed_by_tcp_and_repaired() {
    let _alone = alone();
    let (a, b) = two("corrupt");
    let corrupting = Impairment { corrupt: 0.02, seed: 9, ..Impairment::default() };
    let path =
        Forwarder::build(&a, &b).addresses(ip(A), ip(B)).impair(Direction::AToB, corrupting).start().unwrap();
    let silent = ServeOptions { bytes_back: Some(0), count: Some(1), ..ServeOptions::default() };
    let server = b.enter(|| Server::start(SocketAddr::new(ip(B), 0), silent)).unwrap();
    let before = NetCounters::of(&b).unwrap();
    let client = Client::new(server.address());
    let plan = Stream { bytes: 2_000_000, rate: None, answer: false };
    let sent = a.enter(|| Ok(stream(&client, &plan))).unwrap();
    assert_eq!((sent.bytes_sent, server.wait().unwrap().bytes_received), (2_000_000, 2_000_000));
    wait_until("the last segment", ms(10_000), || {
        Ok(sockets(&b, &["exclude", "listening"])?.is_empty().then_some(()))
    })
    .unwrap();
    let noticed = NetCounters::of(&b).unwrap().since(&before).get("TcpInCsumErrors");
    let corrupted = path.counters(Direction::AToB).corrupted;
    assert!(corrupted > 5);
    assert_eq!(noticed, i64::try_from(corrupted).unwrap());
}

#[test]
fn a_rate_is_kept_and_a_full_queue_drops() {
    let _alone = alone();
    let (a, b) = two("rate");
    let slow =
        Impairment { rate_bytes_per_s: Some(1_000_000), queue_bytes: Some(30_000), ..Impairment::default() };
    let path = Forwarder::between(&a, ip(A), &b, ip(B), slow).unwrap();
    let server = serve_in(&b, B);
    let client = Client::new(server.address());
    let plan = Stream { bytes: 1_000_000, rate: None, answer: true };
    let counts = a.enter(|| Ok(stream(&client, &plan))).unwrap();
    // A megabyte there and, as the answer, a megabyte back.
    assert!((1.9..4.0).contains(&counts.seconds), "{counts:?}");
    assert_eq!((counts.bytes_sent, counts.bytes_received), (1_000_000, 1_000_000));
    let (there, back) = (path.counters(Direction::AToB), path.counters(Direction::BToA));
    assert!(there.overflowed + back.overflowed > 0);
    let resent = NetCounters::of(&a).unwrap().get("TcpRetransSegs");
    assert!(resent > 0 || there.overflowed == 0, "{resent} {there:?}");
}

#[test]
fn a_filter_drops_or_answers_just_the_packets_it_picks() {
    let _alone = alone();
    let (a, b) = two("filter");
    let path = Forwarder::build(&a, &b).addresses(ip(A), ip(B)).addresses(ip(A6), ip(B6)).start().unwrap();
    for (address, unreachable) in [(B, "EHOSTUNREACH"), (B6, "EHOSTUNREACH")] {
        let server = serve_in(&b, address);
        let client = Client::new(server.address());
        let plan = PingPong { count: 1, bytes: 64, interval: ms(0), limit: ms(9000) };
        let talk = || a.enter(|| Ok(ping_pong(&client, &plan))).unwrap();

        let mut first = true;
        path.drop_if(Direction::AToB, move |packet| packet::is_syn(packet) && std::mem::take(&mut first));
        let before = NetCounters::of(&a).unwrap();
        let late = talk();
        assert_eq!(late.requests, 1);
        assert!((1e6..1.3e6).contains(&late.connect_us.unwrap().min), "{late:?}");
        assert_eq!(NetCounters::of(&a).unwrap().since(&before).get("TcpExtTCPSynRetrans"), 1);

        path.filter(Direction::AToB, |packet| match packet::reset_for(packet) {
            Some(reset) if packet::is_syn(packet) => Verdict::Answer(reset),
            _ => Verdict::Pass,
        });
        assert_eq!(talk().failed.keys().collect::<Vec<_>>(), ["ECONNREFUSED"]);

        let code = if ip(address).is_ipv4() { 1 } else { 3 };
        path.filter(Direction::AToB, move |packet| {
            packet::unreachable_for(packet, code).map_or(Verdict::Pass, Verdict::Answer)
        });
        assert_eq!(talk().failed.keys().collect::<Vec<_>>(), [unreachable]);
        path.clear_filter(Direction::AToB);
        assert_eq!(talk().failures(), 0);
    }
    assert!(path.counters(Direction::AToB).answered >= 4);
}

#[test]
fn a_blackhole_swallows_everything_until_it_is_gone() {
    let _alone = alone();
    let (a, b) = two("blackhole");
    let path = Forwarder::between(&a, ip(A), &b, ip(B), Impairment::default()).unwrap();
    let server = serve_in(&b, B);
    let client = Client { timeout: ms(500), ..Client::new(server.address()) };
    let plan = PingPong { count: 1, bytes: 64, interval: ms(0), limit: ms(9000) };
    path.set_blackhole(true);
    let lost = a.enter(|| Ok(ping_pong(&client, &plan))).unwrap();
    assert_eq!((lost.opened, lost.failed.get("timeout")), (0, Some(&1)));
    assert!(path.counters(Direction::AToB).blackholed > 0);
    path.set_blackhole(false);
    assert_eq!(a.enter(|| Ok(ping_pong(&client, &plan))).unwrap().requests, 1);
}

#[test]
fn churn_reaches_5000_connections_a_second_and_both_sides_count_the_same() {
    let _alone = alone();
    let netns = Netns::new("churn").unwrap();
    let cgroup = Cgroup::unique("churn").unwrap();
    let serving = workload::command(["serve", "--listen", "127.0.0.1:0", "--bytes-back", "200"]).unwrap();
    let server = Running::start(&mut cgroup.wrap(&netns.wrap(&serving))).unwrap();
    let address = server.listening().unwrap().to_string();
    let args = ["churn", "--to", &address, "--rate", "5000", "--seconds", "2", "--bytes", "100"];
    let client = Running::start(&mut netns.wrap(&workload::command(args).unwrap())).unwrap();
    let client = client.wait(ms(10_000)).unwrap();
    let server = server.finish().unwrap();
    assert_eq!(client.failures() + server.failures(), 0, "{client:?} {server:?}");
    assert!((9_800..=10_000).contains(&client.opened), "{client:?}");
    assert_eq!((client.opened, client.closed), (server.accepted, server.closed));
    assert_eq!((client.bytes_sent, client.bytes_received), (server.bytes_received, server.bytes_sent));
    assert_eq!((client.bytes_sent, client.bytes_received), (client.opened * 100, client.opened * 200));
}

#[test]
fn failures_are_counted_by_their_errno() {
    let _alone = alone();
    let netns = Netns::new("refused").unwrap();
    let client = Client::new("127.0.0.1:9".parse().unwrap());
    let plan = Churn { count: Some(10), ..Churn::new(1000.0, ms(2000)) };
    let counts = netns.enter(|| Ok(churn(&client, &plan))).unwrap();
    assert_eq!((counts.opened, counts.failed.get("ECONNREFUSED")), (0, Some(&10)));
    let server = serve_in(&netns, "127.0.0.1");
    let client = Client { reset: true, ..Client::new(server.address()) };
    let counts = netns.enter(|| Ok(churn(&client, &plan))).unwrap();
    assert_eq!(counts.closed, 10);
    thread::sleep(ms(50));
    assert_eq!(server.stop().unwrap().failed.get("ECONNRESET"), Some(&10));
}

#[test]
fn more_connections_are_held_than_one_process_may_open() {
    let _alone = alone();
    let netns = Netns::new("hold").unwrap();
    let count = (workload::connections_per_process() + 2_000).min(30_000);
    let serving = workload::command(["serve", "--listen", "127.0.0.1:0", "--processes", "3"]).unwrap();
    let server = Running::start(&mut netns.wrap(&serving)).unwrap();
    let address = server.listening().unwrap().to_string();
    let holding = workload::command(["hold", "--to", &address, "--count", &count.to_string()]).unwrap();
    let holder = Running::start(&mut netns.wrap(&holding)).unwrap();
    assert_eq!(holder.ready(ms(60_000)).unwrap(), format!("holding {count} connections"));
    let summary = output(netns.command("ss").args(["-tnH", "state", "established", "dst", &address]));
    assert_eq!(summary.unwrap().lines().count() as u64, count);
    let client = holder.let_go(ms(60_000)).unwrap();
    assert_eq!((client.opened, client.closed, client.failures()), (count, count, 0));
    // What was closed last may not have reached the server yet.
    wait_until("the server to see the last close", ms(10_000), || {
        let rest = output(netns.command("ss").args(["-tnH", "state", "close-wait"]))?;
        Ok(rest.is_empty().then_some(()))
    })
    .unwrap();
    let counts = server.finish().unwrap();
    assert_eq!((counts.accepted, counts.closed, counts.failures()), (count, count, 0));
}

#[test]
fn held_connections_speak_in_turn() {
    let _alone = alone();
    let netns = Netns::new("speak").unwrap();
    let serving = workload::command(["serve", "--listen", "127.0.0.1:0"]).unwrap();
    let server = Running::start(&mut netns.wrap(&serving)).unwrap();
    let address = server.listening().unwrap().to_string();
    let hold = workload::command(["hold", "--to", &address, "--count", "3", "--rate", "4"]).unwrap();
    let holder = Running::start(&mut netns.wrap(&hold)).unwrap();
    holder.ready(ms(10_000)).unwrap();
    // Four requests of eight bytes at once, four a second later, and so on.
    let mut spoken = wait_until("the second time", ms(10_000), || {
        let all = sockets(&netns, &["dst", &address])?;
        let spoken = all.iter().map(Socket::bytes_sent).collect::<Vec<_>>();
        Ok((spoken.iter().sum::<u64>() >= 64).then_some(spoken))
    })
    .unwrap();
    spoken.sort_unstable();
    assert!(spoken.len() == 3 && spoken[2] - spoken[0] <= 8, "{spoken:?}");
    let counts = holder.let_go(ms(10_000)).unwrap();
    assert_eq!((counts.opened, counts.requests % 4, counts.failures()), (3, 0, 0));
    assert_eq!(server.finish().unwrap().bytes_received, 8 * counts.requests);
}

/// What a runtime may leave behind on the machine. Of cgroups, those with nobody in them: others
/// may run containers at the same time.
#[derive(Debug, PartialEq)]
struct Traces {
    mounts: BTreeSet<String>,
    netns: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

impl Traces {
    fn now() -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |point: &&str| point.contains("tcptide-") || point.contains("/run/netns/netns-");
        let names = |folder: &str| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let cgroups = output(Command::new("find").args(["/sys/fs/cgroup", "-type", "d"])).unwrap();
        let empty = |path: &&str| {
            let has_child = cgroups.contains(&format!("{path}/"));
            !has_child
                && fs::read_to_string(Path::new(path).join("cgroup.procs"))
                    .is_ok_and(|members| members.is_empty())
        };
        let of_runtimes = |path: &&str| path.contains("/docker") || path.contains("/libpod");
        let podmans = |name: &String| name.starts_with("netns-") || name.starts_with("tcptide-");
        Self {
            mounts: mountinfo
                .lines()
                .filter_map(|line| line.split(' ').nth(4))
                .filter(ours)
                .map(Into::into)
                .collect(),
            netns: names("/run/netns").into_iter().filter(podmans).collect(),
            cgroups: cgroups.lines().filter(of_runtimes).filter(empty).map(Into::into).collect(),
        }
    }
}

/// A container serves, another reaches it, exact counts come out, and nothing is left.
fn tell_container_story<R: Containers>(start: fn() -> Result<R>, host: fn(&R) -> &Netns) {
    let before = Traces::now();
    let runtime = start().unwrap();
    let id = runtime.run("web", &["httpd", "-f", "-p", "80", "-h", "/etc"]).unwrap();
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let web = SocketAddr::new(runtime.address("web").unwrap(), 80);
    runtime.run("reader", &["sleep", "1000"]).unwrap();
    let page = format!("http://{web}/passwd");
    let read = wait_until("httpd to answer", ms(10_000), || {
        Ok(runtime.exec("reader", &["wget", "-q", "-O", "-", &page]).ok())
    })
    .unwrap();
    assert!(read.starts_with("root:"));
    // The bridge's namespace is the containers' host.
    let answer = host(&runtime).enter(|| http::get(web, "/passwd")).unwrap();
    assert_eq!(answer.status, 200);
    let cgroup = runtime.cgroup("web").unwrap();
    assert!(cgroup.to_string_lossy().contains(&id), "{}", cgroup.display());

    runtime.run("server", &["workload", "serve", "--listen", "0.0.0.0:90", "--count", "50"]).unwrap();
    let server = SocketAddr::new(runtime.address("server").unwrap(), 90).to_string();
    wait_until("the server to listen", ms(10_000), || {
        Ok(runtime.exec("server", &["netstat", "-ltn"])?.contains(":90 ").then_some(()))
    })
    .unwrap();
    let args = ["workload", "churn", "--to", &server, "--rate", "500", "--seconds", "10", "--count", "50"];
    let client: workload::Counts = serde_json::from_str(&runtime.exec("reader", &args).unwrap()).unwrap();
    let counts = wait_until("the server's counts", ms(10_000), || {
        let logs = runtime.logs("server")?;
        Ok(logs.lines().find_map(|line| serde_json::from_str::<workload::Counts>(line).ok()))
    })
    .unwrap();
    assert_eq!((client.opened, client.bytes_sent), (50, counts.bytes_received));
    assert_eq!(counts.accepted, 50);

    let pids = ["web", "reader"].map(|name| runtime.pid(name).unwrap());
    let api = http::get_unix(runtime.socket(), "/v1.40/containers/json").unwrap().ok().unwrap();
    assert!(api.contains(&id) && api.contains("web"), "the API knows names: {api}");
    let folder = runtime.socket().parent().unwrap().to_owned();
    drop(runtime);
    assert!(!folder.exists());
    assert!(pids.iter().all(|&pid| !running(pid)));
    assert_eq!(Traces::now(), before);
    let processes = output(Command::new("ps").args(["-eo", "args"])).unwrap();
    assert!(!processes.contains(folder.to_str().unwrap()), "{processes}");
}

#[test]
fn docker_runs_containers_and_leaves_nothing() {
    let _alone = alone();
    tell_container_story(Docker::start, Docker::netns);
}

#[test]
fn podman_runs_containers_and_leaves_nothing() {
    let _alone = alone();
    tell_container_story(Podman::start, Podman::netns);
}

#[test]
fn a_panic_in_a_container_story_leaves_nothing_either() {
    let _alone = alone();
    let before = Traces::now();
    let panic = catch_unwind(|| {
        let docker = Docker::start().unwrap();
        docker.run("stays", &["sleep", "1000"]).unwrap();
        panic!("in the middle of the story");
    });
    assert!(panic.is_err());
    assert_eq!(Traces::now(), before);
}

/// Told twice: a child starts the runtimes and is killed, its parent sweeps.
#[test]
fn a_killed_runs_containers_are_swept() {
    const CHILD: &str = "TCPTIDE_TEST_IS_KILLED";
    if std::env::var_os(CHILD).is_some() {
        let (docker, podman) = (Docker::start().unwrap(), Podman::start().unwrap());
        docker.run("stays", &["sleep", "1000"]).unwrap();
        podman.run("stays", &["sleep", "1000"]).unwrap();
        println!("\npids {} {}", docker.pid("stays").unwrap(), podman.pid("stays").unwrap());
        thread::sleep(Duration::from_secs(60));
        return;
    }
    let _alone = alone();
    let before = Traces::now();
    let mut run = Command::new(std::env::current_exe().unwrap());
    run.args(["--exact", "a_killed_runs_containers_are_swept", "--nocapture"]).env(CHILD, "yes");
    let child = Reading::start(&mut run).unwrap();
    let line = child.stdout().wait_for("the pids", ms(60_000), |line| line.starts_with("pids ")).unwrap();
    let pids: Vec<i32> = line.split(' ').skip(1).map(|pid| pid.parse().unwrap()).collect();
    let folder_prefix = format!("tcptide-{}-", child.pid());
    let processes = || output(Command::new("ps").args(["-eo", "args"])).unwrap();
    drop(child);
    assert!(processes().contains(&folder_prefix), "the daemons outlive the killed run");
    assert!(pids.len() == 2 && pids.iter().all(|&pid| running(pid)), "and so do the containers");
    assert_ne!(Traces::now(), before);
    sweep::sweep();
    assert!(!processes().contains(&folder_prefix), "{}", processes());
    assert!(!pids.iter().any(|&pid| running(pid)));
    assert_eq!(Traces::now(), before);
}

#[test]
fn nginx_serves_in_a_namespace_and_cgroup() {
    let _alone = alone();
    let netns = Netns::new("nginx").unwrap();
    let cgroup = Cgroup::unique("nginx").unwrap();
    let address = "127.0.0.1:8080".parse().unwrap();
    let nginx = Nginx::start(&netns, address, 2, 5000, |command| cgroup.wrap(&command)).unwrap();
    let page = netns.enter(|| http::get(nginx.address(), "/")).unwrap().ok().unwrap();
    assert_eq!(page.len(), 5000);
    assert_eq!(cgroup.processes().unwrap().len(), 3, "a master and two workers");
    let pid = i32::try_from(nginx.pid()).unwrap();
    drop(nginx);
    assert!(!running(pid));
}

/// Answers every request with a metrics page, until the process ends.
fn metrics_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body =
                "# HELP story_total Things told.\n# TYPE story_total counter\nstory_total{a=\"b\"} 7\n";
            let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

#[test]
fn prometheus_scrapes_and_promtool_judges() {
    let _alone = alone();
    let prometheus = Prometheus::scraping(metrics_server()).unwrap();
    prometheus.wait_scraped().unwrap();
    assert_eq!(prometheus.number("story_total{a=\"b\"}").unwrap(), Some(7.0));
    assert_eq!(prometheus.number("absent_total").unwrap(), None);
    assert!(prometheus.query("1 +").is_err());
    check_metrics("# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n").unwrap();
    let error = check_metrics("# HELP a Things.\n# TYPE a counter\na 1\n").unwrap_err();
    assert!(error.to_string().contains("_total"), "{error}");
}

/// A script that behaves as tcptide's commands do.
fn pretended_tcptide(folder: &Path, script: &str) -> Tcptide {
    let path = folder.join("tcptide");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Tcptide::at(path).unwrap()
}

#[test]
fn a_stream_is_awaited_read_and_interrupted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
        [ "$1" = fail ] && { echo "no privileges" >&2; exit 1; }
        trap 'echo "{\"event\":\"last\"}"; exit 0' INT
        echo "tcptide: attached" >&2
        echo "{\"event\":\"open\"}"
        while :; do sleep 0.05; done"#;
    let tcptide = pretended_tcptide(folder.path(), script);
    let streaming = tcptide.spawn(["trace", "-o", "json"]).unwrap();
    streaming.wait_ready().unwrap();
    let event = streaming.wait_for_json(ms(5000), |value| value["event"] == "open").unwrap();
    assert_eq!(event["event"], "open");
    assert!(streaming.wait_for_json(ms(100), |value| value["event"] == "never").is_err());
    let output = streaming.interrupt().unwrap().success().unwrap();
    assert_eq!(output.json_lines().unwrap().len(), 2);
    let failed = tcptide.run(["fail"]).unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.success().unwrap_err().to_string().contains("no privileges"));
    assert!(tcptide.spawn(["fail"]).unwrap().wait_ready().unwrap_err().to_string().contains("no privileges"));
    assert!(Tcptide::at("/nowhere/tcptide").is_err());
}

#[test]
fn the_agent_is_awaited_and_scraped() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("-")).unwrap();
    fs::write(folder.path().join("-/ready"), "yes").unwrap();
    let page = "tcptide_opened_total{container=\"a\"} 2\ntcptide_opened_total{container=\"b\"} 3\n";
    fs::write(folder.path().join("metrics"), page).unwrap();
    let script = format!("exec busybox httpd -f -p \"$3\" -h {}", folder.path().display());
    let tcptide = pretended_tcptide(folder.path(), &script);
    let agent = tcptide.agent(["--anything"]).unwrap();
    let scrape = agent.scrape().unwrap();
    assert_eq!(scrape.sum("tcptide_opened_total", &[]), Some(5.0));
    assert_eq!(scrape.sum("tcptide_opened_total", &[("container", "b")]), Some(3.0));
    let pid = i32::try_from(agent.pid()).unwrap();
    agent.stop().unwrap();
    assert!(!running(pid));
    let error = pretended_tcptide(folder.path(), "echo broken >&2; exit 1").agent(["x"]).unwrap_err();
    assert!(format!("{error:#}").contains("broken"), "{error:#}");
}

#[test]
fn a_missing_program_is_an_error_that_names_the_package() {
    let error = functional::process::require("no-such-program", "its-package").unwrap_err();
    assert!(error.to_string().contains("apt-get install its-package"));
}

#[test]
fn serials_exclude_one_another() -> Result<()> {
    let name = format!("test-{}", std::process::id());
    let held = serial(&name)?;
    let other = thread::spawn({
        let name = name.clone();
        move || serial(&name).map(|_| Instant::now())
    });
    thread::sleep(ms(100));
    let released = Instant::now();
    drop(held);
    let taken = other.join().map_err(|_| anyhow!("the other thread panicked"))??;
    assert!(taken >= released);
    fs::remove_file(std::env::temp_dir().join(format!("tcptide-{name}.lock"))).context("removing the lock")
}

#[test]
fn a_connection_can_be_made_by_hand_too() {
    let _alone = alone();
    let netns = Netns::new("by-hand").unwrap();
    let server = serve_in(&netns, "127.0.0.1");
    let address = server.address();
    netns
        .enter(|| {
            let mut stream = TcpStream::connect(address)?;
            // A frame in two parts, and then half of one.
            stream.write_all(&[0, 0, 0, 0, 0, 0])?;
            thread::sleep(ms(20));
            stream.write_all(&[0, 9, 1])?;
            stream.read_exact(&mut [0; 9])?;
            stream.write_all(&[0; 3])?;
            Ok(())
        })
        .unwrap();
    thread::sleep(ms(50));
    let counts = server.stop().unwrap();
    assert_eq!((counts.requests, counts.bytes_received, counts.bytes_sent), (1, 12, 9));
    assert_eq!(counts.failed.get("early-end"), Some(&1));
}
