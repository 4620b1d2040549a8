//! Who lets whom wait: for `accept()`, for an answer, for a read.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use functional::cgroup::Cgroup;
use functional::connections::{Connections, Trace, inode};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::tcptide::{Agent, Tcptide};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_millis(300);

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

/// A client and a server on one host, neither of which does anything by itself.
struct Pair {
    netns: Netns,
    cgroup: Cgroup,
    listener: TcpListener,
}

impl Pair {
    fn new(story: &str) -> Self {
        let netns = Netns::new(story).unwrap();
        let cgroup = Cgroup::unique(story).unwrap();
        let listener = cgroup.host(|| netns.enter(|| Ok(TcpListener::bind("[::1]:7000")?))).unwrap();
        Self { netns, cgroup, listener }
    }

    fn at(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn connect(&self) -> TcpStream {
        self.cgroup.host(|| self.netns.enter(|| Ok(TcpStream::connect(self.at())?))).unwrap()
    }
}

/// Whether the kernel tells of `accept()` itself: its own list of programs says so.
fn is_exact() -> bool {
    let doctor = Tcptide::find().unwrap().run(["doctor", "-o", "json"]).unwrap().json().unwrap();
    let programs = doctor["programs"].as_array().unwrap().clone();
    programs.iter().any(|program| program["name"] == "accepted" && program["status"] == "attached")
}

/// The distributions that an agent has of a pair.
struct Distributions {
    agent: Agent,
    cgroup: String,
}

impl Distributions {
    fn of_pair(pair: &Pair, args: &[&str]) -> Self {
        let agent = Tcptide::find().unwrap().agent(args).unwrap();
        Self { agent, cgroup: pair.cgroup.path().to_str().unwrap().to_owned() }
    }

    fn has(&self, name: &str) -> bool {
        self.agent.scrape().unwrap().has(&format!("{name}_count"))
    }

    /// How many samples, and their sum in microseconds.
    fn of(&self, name: &str) -> (u64, f64) {
        let scrape = self.agent.scrape().unwrap();
        let of = |end: &str| {
            let labels = [("container", self.cgroup.as_str())];
            scrape.sum(&format!("{name}_{end}"), &labels).unwrap_or_else(|| panic!("no {name}"))
        };
        (of("count") as u64, of("sum") * 1e6)
    }
}

#[test]
fn a_connection_waits_to_be_accepted() {
    let pair = Pair::new("accept");
    let (agent, is_exact) = (Distributions::of_pair(&pair, &[]), is_exact());
    let trace = Trace::start(&pair.netns, &["--events", "close"]).unwrap();
    let begun = Instant::now();
    let mut client = pair.connect();
    let connected = Instant::now();
    thread::sleep(WAIT);
    let looked = Connections::now(&pair.netns, &[]).unwrap();
    let mut waits: Vec<_> = looked.0.iter().map(|c| (c.direction().to_owned(), c.waits_for_accept)).collect();
    waits.sort();
    assert_eq!(waits, [("active".to_owned(), false), ("passive".to_owned(), true)]);
    let accepting = Instant::now();
    let (mut server, _) = pair.listener.accept().unwrap();
    let accepted = Instant::now();
    assert!(Connections::now(&pair.netns, &[]).unwrap().0.iter().all(|c| !c.waits_for_accept));
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    let seen = Instant::now();
    trace.wait_for("close", 2).unwrap();
    let closed = trace.end().unwrap();
    let [active, passive] =
        ["active", "passive"].map(|side| closed.only(|c| c.direction() == side).one().unwrap().clone());
    assert_eq!((active.accept_wait_us, active.handshake_us), (None, None));
    let wait = passive.accept_wait_us.unwrap();
    assert_eq!(passive.accept_wait_is_bound, !is_exact);
    // It is seen at work by its first data, at the latest.
    let latest = if is_exact { accepted } else { seen };
    assert!((micros(accepting - connected)..=micros(latest - begun)).contains(&wait), "{wait}");
    let handshake = passive.handshake_us.unwrap();
    // The last segment may be worked on after connect() has returned.
    assert!(handshake <= micros(accepting - begun), "{handshake} {active:?}");

    // Only one of the two metrics is there.
    let names = ["tcptide_accept_wait_seconds", "tcptide_accept_wait_bound_seconds"];
    assert_eq!(names.map(|name| agent.has(name)), [is_exact, !is_exact]);
    let (count, sum) = agent.of(names[usize::from(!is_exact)]);
    assert!(count == 1 && sum >= micros(WAIT) as f64, "{count} {sum}");
    let (count, sum) = agent.of("tcptide_handshake_duration_seconds");
    assert_eq!((count, sum.round() as u64), (1, handshake));
}

#[test]
fn a_connection_that_nobody_accepted_has_no_wait() {
    let pair = Pair::new("unaccepted");
    let trace = Trace::start(&pair.netns, &["--events", "close"]).unwrap();
    let client = pair.connect();
    drop(pair.listener);
    drop(client);
    trace.wait_for("close", 2).unwrap();
    let closed = trace.end().unwrap();
    let passive = closed.only(|c| c.direction() == "passive");
    assert_eq!(passive.one().unwrap().accept_wait_us, None);
}

#[test]
fn listeners_that_are_watched_tell_how_long_connections_waited() {
    const CONNECTIONS: usize = 5;
    let pair = Pair::new("watched");
    let port = pair.at().port().to_string();
    let listen = ["listen", "--duration", "3s", "-o", "json", "--port", &port];
    let is_exact = is_exact();
    let watching = Tcptide::find().unwrap().spawn(listen).unwrap();
    wait_until("the first look", SOON, || {
        Ok(watching.stderr().iter().any(|line| line.contains("looking again")).then_some(()))
    })
    .unwrap();
    let begun = Instant::now();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| pair.connect()).collect();
    thread::sleep(WAIT);
    let mut servers: Vec<_> = (0..CONNECTIONS).map(|_| pair.listener.accept().unwrap().0).collect();
    // Some are gone by the last look.
    clients.truncate(2);
    servers.truncate(2);
    let listeners = watching.wait(SOON).unwrap().success().unwrap().json().unwrap();
    let took = micros(begun.elapsed());
    let netns = inode(&pair.netns).unwrap();
    let listener = listeners.as_array().unwrap().iter().find(|l| l["netns"] == netns).unwrap();
    assert_ne!(listener["queues"]["limit"], 0);
    let watched = &listener["watched"];
    assert_eq!((&watched["drops"], &watched["accept_wait"]["count"]), (&json!(0), &json!(CONNECTIONS)));
    assert_eq!(watched.get("accept_wait_is_bound").is_none(), is_exact);
    assert_eq!(
        watched.get("overflows"),
        is_exact.then_some(&json!(0)),
        "both are told by the same kind of program"
    );
    let mean = watched["accept_wait"]["sum_us"].as_u64().unwrap() / CONNECTIONS as u64;
    assert!((micros(WAIT)..=took).contains(&mean), "{watched}");
}

#[test]
fn an_answer_takes_as_long_as_the_server() {
    const QUESTIONS: u64 = 3;
    let pair = Pair::new("answer");
    let agent = Distributions::of_pair(&pair, &[]);
    let trace = Trace::start(&pair.netns, &["--events", "close"]).unwrap();
    let mut client = pair.connect();
    let (mut server, _) = pair.listener.accept().unwrap();
    let mut took = Vec::new();
    for question in 1..=QUESTIONS {
        let asked = Instant::now();
        client.write_all(b"how long?").unwrap();
        server.read_exact(&mut [0; 9]).unwrap();
        thread::sleep(WAIT / u32::try_from(question).unwrap());
        // In two parts: only the first is the answer.
        for part in [&b"so "[..], b"long"] {
            server.write_all(part).unwrap();
            client.read_exact(&mut vec![0; part.len()]).unwrap();
        }
        took.push(micros(asked.elapsed()));
    }
    // What the server says unasked is no answer.
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
    drop((client, server));
    trace.wait_for("close", 2).unwrap();
    let closed = trace.end().unwrap();
    let [active, passive] =
        ["active", "passive"].map(|side| closed.only(|c| c.direction() == side).one().unwrap().clone());
    let latest = active.response_us.unwrap();
    assert!((micros(WAIT) / QUESTIONS..=took[2]).contains(&latest), "{latest} {took:?}");
    assert_eq!(passive.response_us, None);
    let (count, sum) = agent.of("tcptide_response_seconds");
    let least = (1..=QUESTIONS).map(|question| micros(WAIT) / question).sum::<u64>();
    assert_eq!(count, QUESTIONS);
    assert!((least as f64..=took.iter().sum::<u64>() as f64).contains(&sum), "{least} {sum} {took:?}");
}

#[test]
fn data_waits_for_an_application_that_is_slow_to_read() {
    const MESSAGES: u64 = 3;
    let pair = Pair::new("read");
    let agent = Distributions::of_pair(&pair, &["--read-delay"]);
    let without = Distributions::of_pair(&pair, &[]);
    let trace = Trace::start(&pair.netns, &["--events", "close", "--read-delay"]).unwrap();
    let mut client = pair.connect();
    let (mut server, _) = pair.listener.accept().unwrap();
    let begun = Instant::now();
    for _ in 0..MESSAGES {
        client.write_all(b"news").unwrap();
        thread::sleep(WAIT / 2);
        // The second is there when the first is read: it waits no longer.
        client.write_all(b"and more").unwrap();
        server.read_exact(&mut [0; 12]).unwrap();
    }
    let took = micros(begun.elapsed());
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    trace.wait_for("close", 2).unwrap();
    let closed = trace.end().unwrap();
    let [active, passive] =
        ["active", "passive"].map(|side| closed.only(|c| c.direction() == side).one().unwrap().clone());
    let delay = passive.read_delay.unwrap();
    assert_eq!(delay.times, MESSAGES);
    let least = micros(WAIT) / 2 * MESSAGES;
    assert!((least..=took).contains(&delay.total_us), "{delay:?} {took}");
    assert_eq!(active.read_delay.unwrap().times, 0);
    let (count, sum) = agent.of("tcptide_read_delay_seconds");
    // Each measures for itself.
    assert!(count == MESSAGES && (sum - delay.total_us as f64).abs() < 5_000.0, "{sum} {delay:?}");
    assert!(!without.has("tcptide_read_delay_seconds"), "not asked for");
}

#[test]
fn nobody_pays_for_read_delays_that_nobody_asked_for() {
    let pair = Pair::new("unasked");
    let trace = Trace::start(&pair.netns, &["--events", "close"]).unwrap();
    drop(pair.connect());
    drop(pair.listener.accept().unwrap());
    trace.wait_for("close", 2).unwrap();
    assert!(trace.end().unwrap().0.iter().all(|c| c.read_delay.is_none()));
}
