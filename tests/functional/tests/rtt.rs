//! Round-trip times, connect latencies and retransmissions on a path whose delay and loss are known.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{Connection, Connections, Retransmits};
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::{Streaming, Tcptide};
use functional::witness::{NetCounters, sockets};
use functional::workload::{self, Counts, Running};
use serde_json::Value;

/// A client and a server, each in a namespace and a cgroup of its own, and a path between them.
struct Story {
    /// The third number of their addresses, and the port's last: stories are told at the same time.
    number: u8,
    a: Netns,
    b: Netns,
    client: Cgroup,
    server: Cgroup,
    path: Forwarder,
}

impl Story {
    fn new(number: u8, impairment: Impairment) -> Self {
        let [a, b] = ["rtt-a", "rtt-b"].map(|name| Netns::new(name).unwrap());
        let [client, server] = ["rtt-client", "rtt-server"].map(|name| Cgroup::unique(name).unwrap());
        let [at_a, at_b] = [1, 2].map(|host| Ipv4Addr::new(198, 18, number, host).into());
        let path = Forwarder::between(&a, at_a, &b, at_b, impairment).unwrap();
        Self { number, a, b, client, server, path }
    }

    fn at(&self, host: u8) -> SocketAddr {
        (Ipv4Addr::new(198, 18, self.number, host), 7000 + u16::from(self.number)).into()
    }

    /// A command of tcptide, ready, that looks at the story's connections only.
    fn watch(&self, command: &str, args: &[&str]) -> Streaming {
        let (port, peer) = (self.at(2).port().to_string(), format!("198.18.{}.0/24", self.number));
        let common = [command, "-o", "json", "--port", &port, "--peer", &peer];
        let watching = Tcptide::find().unwrap().spawn([&common, args].concat()).unwrap();
        watching.wait_ready().unwrap();
        watching
    }

    fn serve(&self) -> Running {
        let serve = workload::command(["serve", "--listen", &self.at(2).to_string()]).unwrap();
        let server = Running::start(&mut self.server.wrap(&self.b.wrap(&serve))).unwrap();
        server.listening().unwrap();
        server
    }

    fn start(&self, workload: &str, args: &[&str]) -> Running {
        let to = self.at(2).to_string();
        let command = workload::command([&[workload, "--to", &to], args].concat()).unwrap();
        Running::start(&mut self.client.wrap(&self.a.wrap(&command))).unwrap()
    }
}

fn path(cgroup: &Cgroup) -> &str {
    cgroup.path().to_str().unwrap()
}

fn results(watching: Streaming) -> Vec<Value> {
    watching.interrupt().unwrap().success().unwrap().json_lines().unwrap()
}

fn us(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// A round trip of 40 ms, in the slot that ends at 44.2 ms, with one look every round trip. What else
/// the machine does may make some of them longer.
fn is_a_distribution_around_40_ms(line: &Value, round_trips: u64) {
    let rtt = &line["rtt"];
    assert!((40_000 * 9 / 10..44_195).contains(&us(&rtt["p50_us"])), "{line}");
    let around: u64 = rtt["buckets"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|bucket| us(&bucket["le_us"]) == 44_194)
        .map(|bucket| us(&bucket["count"]))
        .sum();
    let count = us(&rtt["count"]);
    assert!(around * 2 > count, "{line}");
    // The handshake's, and one for every request or answer.
    assert!((round_trips * 9 / 10..=round_trips + 2).contains(&count), "{line}");
    assert!(us(&rtt["sum_us"]) / count >= 40_000, "{line}");
    assert!((40_000..43_000).contains(&us(&line["min_us"])), "{line}");
    assert_eq!((us(&line["connections"]), &line["summary"]), (1, &Value::Bool(true)));
}

fn own(lines: &[Value], wanted: impl Fn(&Value) -> bool) -> &Value {
    let found: Vec<_> = lines.iter().filter(|line| wanted(line)).collect();
    assert_eq!(found.len(), 1, "{lines:?}");
    found[0]
}

#[test]
fn a_path_of_20_ms_each_way_is_a_round_trip_of_40_ms() {
    let story = Story::new(26, Impairment { delay: Duration::from_millis(20), ..Impairment::default() });
    let server = story.serve();
    let by = ["container", "peer", "port", "edge"].map(|by| story.watch("rtt", &["--by", by]));
    let connlat = story.watch("connlat", &[]);
    let slow = story.watch("connlat", &["--min", "1s"]);
    let client = story.start("pingpong", &["--count", "60"]);
    let seen = wait_until("ss to see the round trips", Duration::from_secs(10), || {
        let seen = sockets(&story.a, &["state", "established"])?;
        Ok(seen.into_iter().find(|socket| socket.count("data_segs_out") > 10))
    })
    .unwrap();
    let counts = client.wait(Duration::from_secs(20)).unwrap();
    assert_eq!(counts.requests, 60);
    let [container, peer, port, edge] = by.map(results);

    let (far_client, far_server) = (story.at(1).ip().to_string(), story.at(2).ip().to_string());
    for (cgroup, direction, far) in
        [(&story.client, "active", &far_server), (&story.server, "passive", &far_client)]
    {
        let of = |line: &Value| line["container"]["cgroup_path"] == path(cgroup);
        is_a_distribution_around_40_ms(own(&container, of), 60);
        is_a_distribution_around_40_ms(own(&peer, |line| line["peer"] == far.as_str()), 60);
        let line = own(&edge, of);
        is_a_distribution_around_40_ms(line, 60);
        assert_eq!(
            (&line["direction"], &line["peer"], &line["port"]),
            (&direction.into(), &far.as_str().into(), &story.at(2).port().into())
        );
    }
    assert_eq!((container.len(), peer.len(), edge.len()), (2, 2, 2));
    // Both ends are ends of one service.
    let both = own(&port, |line| line["port"] == story.at(2).port());
    assert_eq!((us(&both["connections"]), port.len()), (2, 1));
    assert!((36_000..44_195).contains(&us(&both["rtt"]["p50_us"])), "{both}");

    // ss's minimum and the workload's own are those of the client's socket.
    let min =
        us(&own(&container, |line| line["container"]["cgroup_path"] == path(&story.client))["min_us"]) as f64;
    assert!((min - seen.min_rtt_ms().unwrap() * 1e3).abs() < 1000.0, "{min} {seen:?}");
    assert!(min <= counts.round_trip_us.unwrap().min, "{min} {counts:?}");
    is_the_handshake(&results(connlat), &story, &counts);
    assert_eq!(results(slow), [Value::Null; 0], "no connect took a second");
    server.finish().unwrap();
}

/// One connection, and the summary of its container.
fn is_the_handshake(lines: &[Value], story: &Story, counts: &Counts) {
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let connection: Connection = serde_json::from_value(lines[0].clone()).unwrap();
    let summary = &lines[1];
    assert_eq!((connection.cgroup(), connection.direction()), (path(&story.client), "active"));
    let connect_us = connection.connect_us.unwrap();
    let own = counts.connect_us.unwrap().min;
    assert!(
        connect_us >= 40_000 && (own - 5000.0..=own).contains(&(connect_us as f64)),
        "{connect_us} {own}"
    );
    assert_eq!(summary["container"]["cgroup_path"], path(&story.client));
    let connect = &summary["connect"];
    assert_eq!((us(&connect["count"]), us(&connect["sum_us"])), (1, connect_us));
    assert_eq!(us(&connect["p50_us"]), connect_us, "one value is its own median");
}

#[test]
fn live_connections_are_shown_every_interval_and_nothing_is_counted_twice() {
    let story = Story::new(27, Impairment { delay: Duration::from_millis(5), ..Impairment::default() });
    let server = story.serve();
    let rtt = story.watch("rtt", &["--duration", "5s", "--interval", "500ms"]);
    let client = story.start("pingpong", &["--count", "250"]);
    let counts = client.wait(Duration::from_secs(20)).unwrap();
    assert_eq!(counts.requests, 250);
    let output = rtt.wait(Duration::from_secs(30)).unwrap().success().unwrap();
    let lines = output.json_lines().unwrap();
    let own: Vec<_> =
        lines.iter().filter(|line| line["container"]["cgroup_path"] == path(&story.client)).collect();
    let count = |summary: bool| -> Vec<u64> {
        own.iter().filter(|line| line["summary"] == summary).map(|line| us(&line["rtt"]["count"])).collect()
    };
    let (intervals, whole) = (count(false), count(true));
    assert!(intervals.len() >= 4, "{intervals:?}");
    assert_eq!(whole, [intervals.iter().sum::<u64>()]);
    assert!((225..=252).contains(&whole[0]), "{whole:?}");
    server.finish().unwrap();
}

fn sum(connections: &Connections) -> Retransmits {
    connections.0.iter().map(|end| end.retransmits).fold(Retransmits::default(), |a, b| Retransmits {
        total: a.total + b.total,
        rto: a.rto + b.rto,
        tlp: a.tlp + b.tlp,
        fast: a.fast + b.fast,
        syn: a.syn + b.syn,
        synack: a.synack + b.synack,
        other: a.other + b.other,
    })
}

#[test]
fn every_segment_sent_again_is_counted_by_its_kind() {
    let lossy = Impairment { delay: Duration::from_millis(2), drop: 0.1, seed: 11, ..Impairment::default() };
    let story = Story::new(28, lossy);
    let server = story.serve();
    let agent = Tcptide::find().unwrap().agent([""; 0]).unwrap();
    let trace = story.watch("trace", &["--events", "close,fail,retransmit"]);
    let before = [&story.a, &story.b].map(|netns| NetCounters::of(netns).unwrap());
    let many = ["--rate", "1000", "--seconds", "30", "--count", "80", "--threads", "20"];
    let large = ["--bytes", "50000", "--timeout", "30"];
    let client = story.start("churn", &[&many[..], &large].concat());
    let client = client.wait(Duration::from_secs(90)).unwrap();
    assert_eq!((client.opened, client.failures()), (80, 0), "{client:?}");
    wait_until("both ends of all to be closed", Duration::from_secs(60), || {
        let open = [&story.a, &story.b]
            .map(|netns| sockets(netns, &["exclude", "listening", "exclude", "time-wait"]));
        let left = open.into_iter().map(|open| Ok(open?.len())).sum::<anyhow::Result<usize>>()?;
        Ok((left == 0).then_some(()))
    })
    .unwrap();
    server.finish().unwrap();
    let scrape = agent.scrape().unwrap();
    let output = trace.interrupt().unwrap().success().unwrap();
    let (lines, stderr) = (output.stdout, output.stderr);
    for ((netns, before), (cgroup, far)) in [&story.a, &story.b]
        .into_iter()
        .zip(before)
        .zip([(&story.client, "active"), (&story.server, "passive")])
    {
        let kernel = NetCounters::of(netns).unwrap().since(&before);
        let kernel = |name: &str| u64::try_from(kernel.get(name)).unwrap();
        let told = Connections::of_stream(netns, &lines).unwrap();
        assert_eq!(told.events("fail").names(), [""; 0]);
        let closed = told.events("close").only(|end| end.direction() == far);
        let sum = sum(&closed);
        println!("{far}: {sum:?}");
        assert_eq!((closed.0.len(), sum.total), (80, kernel("TcpRetransSegs")));
        // Of whatever kind each was: none is lost between the kinds.
        assert_eq!(sum.of_all_kinds(), sum.total, "{sum:?} {stderr:?}");
        assert!(sum.rto > 0 && sum.fast > 0, "{sum:?}");
        assert_eq!(if far == "active" { sum.synack } else { sum.syn }, 0);
        // Rarely the kernel sends a segment again without a trace; it then counts with the next one's kind.
        let near = |told: u64, kernel: u64| told.abs_diff(kernel) <= 5;
        assert!(near(sum.syn + sum.synack, kernel("TcpExtTCPSynRetrans")), "{sum:?}");
        assert!(near(sum.fast, kernel("TcpExtTCPFastRetrans")), "{sum:?}");
        assert!(sum.tlp <= kernel("TcpExtTCPLossProbes") + 5, "{sum:?}");
        // Bytes are counted once, however often they were sent.
        assert!(closed.0.iter().all(|end| end.bytes() == (50_000, 50_000)));

        for (kind, told_of, number) in [
            ("rto", "rto", sum.rto),
            ("tlp", "tlp", sum.tlp),
            ("fast", "fast", sum.fast),
            ("syn", "syn", sum.syn),
            ("synack", "", sum.synack),
        ] {
            let labels = [("container", path(cgroup)), ("kind", kind)];
            let counted = scrape.sum("tcptide_retransmitted_segments_total", &labels);
            assert_eq!(counted, Some(number as f64), "{far} {kind}");
            let events =
                told.events("retransmit").only(|event| event.kind.as_deref() == Some(told_of)).0.len();
            // An event may be about several segments.
            assert!(
                events as u64 <= number && (events > 0 || number == 0 || told_of.is_empty()),
                "{kind}: {events}"
            );
        }
    }
    assert!(story.path.counters(Direction::AToB).dropped > 0);
}
