//! The agent: what it serves, whether that is true, and how it begins and ends.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use functional::cgroup::Cgroup;
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::{output, require, wait_until};
use functional::prometheus::{JOB, Prometheus, check_metrics};
use functional::runtime::{Containers, Docker};
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::witness::{NetCounters, sockets};
use functional::workload::{self, Client, Counts, Held, Running, ServeOptions, Server};

const SOON: Duration = Duration::from_secs(10);

fn agent(args: &[&str]) -> Agent {
    Tcptide::find().unwrap().agent(args).unwrap()
}

/// GETs `/metrics` and says what it accepts; returns the content type and the text.
fn metrics_as(agent: &Agent, accept: &str) -> (String, String) {
    let mut stream = TcpStream::connect(agent.address()).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (content_type.to_owned(), body.to_owned())
}

#[test]
fn a_reader_gets_the_format_it_asks_for() {
    let agent = agent(&[]);
    let (kind, text) = metrics_as(&agent, "text/plain");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(!text.contains("# EOF"));
    check_metrics(&text).unwrap();
    assert!(Scrape::parse(&text).unwrap().has("tcptide_build_info"));
    let (kind, text) = metrics_as(&agent, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.ends_with("# EOF\n"));
    for path in ["/-/healthy", "/-/ready", "/"] {
        assert_eq!(agent.get(path).unwrap().status, 200, "{path}");
    }
    assert_eq!(agent.get("/nothing/here").unwrap().status, 404);
}

#[test]
fn prometheus_scrapes_it() {
    let agent = agent(&["--program-stats", "always"]);
    let prometheus = Prometheus::scraping(agent.address()).unwrap();
    prometheus.wait_scraped().unwrap();
    assert_eq!(prometheus.number(&format!("up{{job=\"{JOB}\"}}")).unwrap(), Some(1.0));
    let attached = prometheus.number("sum(tcptide_program_status{status=\"attached\"})").unwrap().unwrap();
    assert_eq!(
        Some(attached),
        agent.scrape().unwrap().sum("tcptide_program_status", &[("status", "attached")])
    );
    let walks = prometheus.number("sum(tcptide_program_runs_total{program=\"walk\"})").unwrap();
    assert!(walks.is_some_and(|walks| walks > 0.0), "{walks:?}");
    // The answers to Prometheus itself are connections of this host.
    wait_until("histograms in Prometheus", SOON, || {
        prometheus.number("sum(tcptide_connection_duration_seconds_count)").map(|n| n.filter(|&n| n > 0.0))
    })
    .unwrap();
}

/// A client and a server in cgroups of their own, and namespaces with a path between them.
struct Ends {
    client: Cgroup,
    server: Cgroup,
    near: Netns,
    far: Netns,
    path: Forwarder,
}

impl Ends {
    fn new(story: &str, impairment: Impairment) -> Self {
        let [near, far] = ["near", "far"].map(|side| Netns::new(&format!("{story}-{side}")).unwrap());
        let (a, b) = ("198.18.3.1".parse().unwrap(), "198.18.3.2".parse().unwrap());
        let path = Forwarder::build(&near, &far).addresses(a, b).impair_both(impairment).start().unwrap();
        let [client, server] =
            ["client", "server"].map(|end| Cgroup::unique(&format!("{story}-{end}")).unwrap());
        Self { client, server, near, far, path }
    }

    fn serve(&self) -> (Running, String) {
        let serve = workload::command(["serve", "--listen", "198.18.3.2:80"]).unwrap();
        let server = Running::start(&mut self.far.wrap(&self.server.wrap(&serve))).unwrap();
        let to = server.listening().unwrap().to_string();
        (server, to)
    }

    fn run(&self, args: &[&str]) -> Running {
        let command = workload::command(args).unwrap();
        Running::start(&mut self.near.wrap(&self.client.wrap(&command))).unwrap()
    }
}

/// One cgroup's metric, a whole number, summed over its other labels.
fn sum(scrape: &Scrape, name: &str, cgroup: &Cgroup, more: &[(&str, &str)]) -> u64 {
    let path = cgroup.path().to_string_lossy();
    scrape.sum(name, &[&[("container", &*path)], more].concat()).unwrap_or(0.0) as u64
}

#[test]
fn counters_are_the_workloads_own_and_the_kernels() {
    let loss = Impairment { drop: 0.03, delay: Duration::from_millis(2), ..Impairment::default() };
    let ends = Ends::new("counters", loss);
    let agent = agent(&[]);
    let before = [&ends.near, &ends.far].map(|netns| NetCounters::of(netns).unwrap());
    let (server, to) = ends.serve();
    let churn =
        ["churn", "--to", &to, "--rate", "100", "--seconds", "100", "--count", "200", "--bytes", "9000"];
    let client: Counts =
        ends.run(&[&churn as &[&str], &["--timeout", "20"]].concat()).wait(SOON * 6).unwrap();
    assert_eq!((client.closed, client.failures()), (200, 0), "{client:?}");
    wait_until("the last connection to end", SOON, || {
        let open = sockets(&ends.near, &["state", "connected", "exclude", "time-wait"])?.len()
            + sockets(&ends.far, &["state", "connected", "exclude", "time-wait"])?.len();
        Ok((open == 0).then_some(()))
    })
    .unwrap();
    let scrape = agent.scrape().unwrap();
    let answered = server.finish().unwrap();
    let [near, far] = [(&ends.near, &before[0]), (&ends.far, &before[1])]
        .map(|(netns, before)| NetCounters::of(netns).unwrap().since(before));
    let began = sum(&scrape, "tcptide_opened_total", &ends.client, &[("direction", "active")]);
    assert_eq!((began, near.get("TcpActiveOpens").cast_unsigned()), (client.opened, client.opened));
    let taken = sum(&scrape, "tcptide_opened_total", &ends.server, &[("direction", "passive")]);
    assert_eq!((taken, far.get("TcpPassiveOpens").cast_unsigned()), (answered.accepted, answered.accepted));
    for (end, counts) in [(&ends.client, &client), (&ends.server, &answered)] {
        assert_eq!(sum(&scrape, "tcptide_closed_total", end, &[]), counts.closed);
        assert_eq!(sum(&scrape, "tcptide_sent_bytes_total", end, &[]), counts.bytes_sent);
        assert_eq!(sum(&scrape, "tcptide_acked_bytes_total", end, &[]), counts.bytes_sent);
        assert_eq!(sum(&scrape, "tcptide_received_bytes_total", end, &[]), counts.bytes_received);
    }
    let of_connect = sum(&scrape, "tcptide_connect_duration_seconds_count", &ends.client, &[]);
    assert_eq!(of_connect, client.opened);
    for (end, kernel) in [(&ends.client, &near), (&ends.server, &far)] {
        let again = sum(&scrape, "tcptide_retransmitted_segments_total", end, &[]);
        assert!(again > 0, "the path loses packets: {:?}", ends.path.counters(Direction::AToB));
        assert_eq!(again, kernel.get("TcpRetransSegs").cast_unsigned());
    }
}

#[test]
fn what_is_known_of_live_connections_is_counted_once() {
    const HELD: u64 = 23;
    let ends = Ends::new("live", Impairment::default());
    let (server, to) = ends.serve();
    let agent = agent(&[]);
    let holding = ends.run(&["hold", "--to", &to, "--count", &HELD.to_string()]);
    holding.ready(SOON).unwrap();
    let all_are_counted = |scrape: &Scrape| {
        let of = |name: &str, end: &Cgroup, more: &[(&str, &str)]| sum(scrape, name, end, more);
        let counts = [
            of("tcptide_opened_total", &ends.client, &[("direction", "active")]),
            of("tcptide_opened_total", &ends.server, &[("direction", "passive")]),
            of("tcptide_connect_duration_seconds_count", &ends.client, &[]),
            of("tcptide_handshake_duration_seconds_count", &ends.server, &[]),
        ];
        assert!(counts.iter().all(|&count| count == HELD), "{counts:?}");
    };
    // Each scrape is a walk of its own.
    for _ in 0..3 {
        all_are_counted(&agent.scrape().unwrap());
    }
    let closed = |scrape: &Scrape| sum(scrape, "tcptide_closed_total", &ends.client, &[]);
    assert_eq!(closed(&agent.scrape().unwrap()), 0);
    holding.finish().unwrap();
    server.finish().unwrap();
    let scrape = agent.scrape().unwrap();
    all_are_counted(&scrape);
    assert_eq!(closed(&scrape), HELD);
}

#[test]
fn what_finds_no_room_is_counted_and_room_is_given_back() {
    const HELD: u64 = 1000;
    let ends = Ends::new("room", Impairment::default());
    let (server, to) = ends.serve();
    let agent = agent(&["--max-sockets", "64"]);
    let failures = |scrape: &Scrape| scrape.sum("tcptide_storage_failures_total", &[]).unwrap() as u64;
    let seen =
        |scrape: &Scrape, end: &Cgroup| sum(scrape, "tcptide_connections", end, &[("state", "established")]);
    // Ten times as many as there is room for, one after the other.
    let churning = ends.run(&["churn", "--to", &to, "--rate", "500", "--count", "640", "--seconds", "30"]);
    let done = churning.wait(Duration::from_secs(40)).unwrap();
    let scrape = agent.scrape().unwrap();
    assert_eq!(sum(&scrape, "tcptide_closed_total", &ends.client, &[]), done.closed);
    // A gauge is wanted once more when the reset is sent.
    let aborting = ["churn", "--reset", "--rate", "500", "--count", "640", "--seconds", "30", "--to", &to];
    let aborted = ends.run(&aborting).wait(Duration::from_secs(40)).unwrap();
    let scrape = agent.scrape().unwrap();
    let closed = sum(&scrape, "tcptide_closed_total", &ends.client, &[("reason", "reset_sent")]);
    let resets = [("direction", "sent"), ("state", "established")];
    let sent = sum(&scrape, "tcptide_resets_by_state_total", &ends.client, &resets);
    assert_eq!([closed, sent], [aborted.opened; 2]);
    assert_eq!(failures(&scrape), 0);
    // And at the same time.
    let holding = ends.run(&["hold", "--to", &to, "--count", &HELD.to_string()]);
    holding.ready(SOON).unwrap();
    let scrape = agent.scrape().unwrap();
    let followed = seen(&scrape, &ends.client) + seen(&scrape, &ends.server);
    assert!(followed < 2 * HELD, "{followed} were followed");
    assert!(failures(&scrape) >= 2 * HELD - followed, "{followed}, and {} not", failures(&scrape));
    holding.finish().unwrap();
    // What was closed last ends when the server has closed it, too.
    let before = wait_until("nothing is left of it", SOON, || {
        let scrape = agent.scrape()?;
        Ok((sum(&scrape, "tcptide_connections", &ends.client, &[]) == 0).then_some(scrape))
    })
    .unwrap();
    let churning = ["churn", "--rate", "100", "--count", "100"];
    let churning = ends.run(&[churning.as_slice(), &["--to", &to, "--seconds", "30"]].concat());
    let done = churning.wait(SOON).unwrap();
    let after = agent.scrape().unwrap();
    let closed = |scrape: &Scrape| sum(scrape, "tcptide_closed_total", &ends.client, &[]);
    assert_eq!(closed(&after) - closed(&before), done.closed);
    assert_eq!(failures(&after), failures(&before));
    // Nearly as many as there is room for, and each is found: none of the room was lost.
    let holding = ends.run(&["hold", "--to", &to, "--count", "25"]);
    holding.ready(SOON).unwrap();
    let scrape = agent.scrape().unwrap();
    assert_eq!([seen(&scrape, &ends.client), seen(&scrape, &ends.server)], [25; 2]);
    assert_eq!(failures(&scrape), failures(&before));
    holding.finish().unwrap();
    server.finish().unwrap();
}

#[test]
fn run_times_are_measured_when_they_are_asked_for() {
    let seconds = |scrape: &Scrape| scrape.sum("tcptide_program_measured_seconds_total", &[]);
    let runs = |scrape: &Scrape, program| scrape.sum("tcptide_program_runs_total", &[("program", program)]);
    let never = agent(&["--program-stats", "never"]).scrape().unwrap();
    assert_eq!((seconds(&never), runs(&never, "lifecycle")), (None, None));

    let always = agent(&["--program-stats", "always"]);
    let [first, second] = [(); 2].map(|()| {
        thread::sleep(Duration::from_secs(1));
        always.scrape().unwrap()
    });
    let measured = seconds(&second).unwrap() - seconds(&first).unwrap();
    assert!((0.9..5.0).contains(&measured), "{measured} s of a second");
    // The scrape itself is a walk.
    assert!(runs(&second, "walk") > runs(&first, "walk"));

    // A sample begins when the agent does, and is over long before the next one.
    let sampled = agent(&[]);
    let one = wait_until("the end of the first sample", SOON, || {
        thread::sleep(Duration::from_millis(400));
        let [first, second] = [sampled.scrape()?, sampled.scrape()?];
        Ok((seconds(&first) == seconds(&second)).then_some(first))
    })
    .unwrap();
    let measured = seconds(&one).unwrap();
    assert!((0.0..3.0).contains(&measured) && measured > 0.0, "{measured} s");
    assert!(runs(&one, "lifecycle").is_some(), "what was measured stays");
}

#[test]
fn the_gauge_of_states_is_what_ss_shows() {
    let ends = Ends::new("states", Impairment::default());
    let (server, to) = ends.serve();
    let holding = ends.run(&["hold", "--to", &to, "--count", "37"]);
    holding.ready(SOON).unwrap();
    let agent = agent(&[]);
    for (netns, cgroup) in [(&ends.near, &ends.client), (&ends.far, &ends.server)] {
        let scrape = agent.scrape().unwrap();
        for (filter, state) in
            [("established", "established"), ("listening", "listen"), ("close-wait", "close_wait")]
        {
            let seen = sockets(netns, &["state", filter]).unwrap().len();
            assert_eq!(
                sum(&scrape, "tcptide_connections", cgroup, &[("state", state)]),
                seen as u64,
                "{state}"
            );
        }
    }
    holding.finish().unwrap();
    wait_until("nothing established", SOON, || {
        let left = sum(&agent.scrape()?, "tcptide_connections", &ends.client, &[("state", "established")]);
        Ok((left == 0).then_some(()))
    })
    .unwrap();
    server.finish().unwrap();
}

#[test]
fn scrapes_at_the_same_time_share_walks() {
    const SCRAPES: usize = 32;
    let netns = Netns::new("parallel").unwrap();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = netns.enter(|| Server::start(local, ServeOptions::default())).unwrap();
    let client = Client::new(server.address());
    let _held = netns.enter(|| Held::open(&client, 5000, SOON)).unwrap();
    let agent = agent(&["--program-stats", "always"]);
    let runs = |scrape: &Scrape| scrape.sum("tcptide_program_runs_total", &[("program", "walk")]).unwrap();
    let first = agent.scrape().unwrap();
    let second = agent.scrape().unwrap();
    let of_one = runs(&second) - runs(&first);
    // Servers may not have all of their ends yet.
    let seen = sockets(&netns, &["state", "established"]).unwrap().len();
    // For so many sockets the walk's program runs several times.
    assert!(seen >= 5000 && of_one >= 2.0, "{of_one} of {seen}");
    let barrier = Barrier::new(SCRAPES);
    thread::scope(|scope| {
        let scrapes: Vec<_> = (0..SCRAPES)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    agent.scrape()
                })
            })
            .collect();
        for scrape in scrapes {
            assert!(scrape.join().unwrap().unwrap().has("tcptide_walk_sockets"));
        }
    });
    let last = agent.scrape().unwrap();
    let walks = (runs(&last) - runs(&second)) / of_one - 1.0;
    assert!(walks < SCRAPES as f64 / 2.0, "{walks} walks for {SCRAPES} scrapes");
}

#[test]
fn a_removed_containers_series_stay_for_the_grace_period() {
    let docker = Docker::start().unwrap();
    let socket = docker.socket().to_string_lossy().into_owned();
    let agent = agent(&["--runtime-socket", &socket, "--metrics.grace", "2s"]);
    docker.run("server", &["workload", "serve", "--listen", "0.0.0.0:90"]).unwrap();
    let to = format!("{}:90", docker.address("server").unwrap());
    let churn = ["workload", "churn", "--to", &to, "--rate", "1000", "--seconds", "2", "--count", "20"];
    let counts: Counts = serde_json::from_str(
        &docker
            .call(
                &[&["run", "--rm", "--name", "brief", functional::runtime::IMAGE] as &[&str], &churn]
                    .concat(),
            )
            .unwrap(),
    )
    .unwrap();
    let sent = || agent.scrape().unwrap().sum("tcptide_sent_bytes_total", &[("container", "brief")]);
    // It was removed before anybody had looked.
    assert_eq!(sent(), Some(counts.bytes_sent as f64));
    let began = Instant::now();
    wait_until("the series to go", SOON, || Ok(sent().is_none().then_some(()))).unwrap();
    assert!(began.elapsed() > Duration::from_millis(1500), "{:?}", began.elapsed());
    let scrape = agent.scrape().unwrap();
    assert!(
        !scrape.samples.iter().any(|sample| sample.label("container") == "brief"),
        "all of them are gone"
    );
    let received = scrape.sum("tcptide_received_bytes_total", &[("container", "server")]);
    assert_eq!(received, Some(counts.bytes_sent as f64), "who lives stays");
}

#[test]
fn a_port_in_use_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ran = Tcptide::find().unwrap().run(["agent", "--web.listen-address", &address]).unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let stderr = ran.stderr.join("\n");
    assert!(
        stderr.contains(&address) && stderr.contains("in use") && stderr.contains("--web.listen-address"),
        "{stderr}"
    );
}

/// Ids of the BPF objects of a kind that were made by processes called tcptide.
fn bpf(kind: &str) -> BTreeSet<u64> {
    let bpftool = require("bpftool", "bpftool").unwrap();
    let all: serde_json::Value =
        serde_json::from_str(&output(Command::new(bpftool).args(["-j", kind, "list"])).unwrap()).unwrap();
    all.as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect()
}

/// Ids of the BPF objects of a kind that the process holds.
fn held(pid: u32, kind: &str) -> BTreeSet<u64> {
    let prefix = format!("{kind}_id:");
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    files
        .filter_map(|file| std::fs::read_to_string(file.path()).ok())
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix(&prefix)?.trim().parse().ok()))
        .collect()
}

#[test]
fn it_ends_at_once_and_leaves_nothing_in_the_kernel() {
    let agent = agent(&[]);
    agent.metrics().unwrap();
    let made = ["prog", "map", "link"].map(|kind| (kind, held(agent.pid(), kind)));
    for (kind, ids) in &made {
        assert!(!ids.is_empty() && bpf(kind).is_superset(ids), "bpftool sees its {kind}s: {ids:?}");
    }
    let began = Instant::now();
    let ended = agent.stop().unwrap();
    let took = began.elapsed();
    assert_eq!(ended.status.code(), Some(0), "{:?}", ended.stderr);
    assert!(took < Duration::from_secs(1), "{took:?}");
    for (kind, ids) in &made {
        // The kernel frees them after a grace period of its own.
        wait_until(&format!("its {kind}s to be gone"), SOON, || Ok(bpf(kind).is_disjoint(ids).then_some(())))
            .unwrap();
    }
}

#[test]
fn it_ends_while_somebody_keeps_a_connection_open() {
    let agent = agent(&[]);
    let _silent = TcpStream::connect(agent.address()).unwrap();
    let mut slow = TcpStream::connect(agent.address()).unwrap();
    write!(slow, "GET /metrics HT").unwrap();
    let mut idle = TcpStream::connect(agent.address()).unwrap();
    write!(idle, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 100]).unwrap();
    let began = Instant::now();
    let ended = agent.stop().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{:?}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
