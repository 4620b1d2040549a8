//! Resets by the state that the connection was in: refusals, aborts, half-open connections turned away.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use functional::connections::{Trace, own_cgroup};
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::witness::{self, NetCounters, TELLS_OF_STRAY_RESETS, sockets};
use rustix::net::sockopt::set_socket_linger;

const SOON: Duration = Duration::from_secs(20);
const UNATTRIBUTED: &str = "~unattributed";

fn agent() -> Agent {
    Tcptide::find().unwrap().agent([""; 0]).unwrap()
}

/// What an agent has of one owner, by direction and state.
fn resets(scrape: &Scrape, container: &str) -> Vec<(String, String, u64)> {
    let labels = [("container", container)];
    let mut all: Vec<_> = scrape
        .select("tcptide_resets_by_state_total", &labels)
        .map(|sample| {
            (sample.label("direction").to_owned(), sample.label("state").to_owned(), sample.value as u64)
        })
        .collect();
    all.sort();
    all
}

fn is(direction: &str, state: &str, times: u64) -> (String, String, u64) {
    (direction.to_owned(), state.to_owned(), times)
}

/// A connection on one host: the client's end and the server's.
fn connected(netns: &Netns, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let at = listener.local_addr().unwrap();
    let client = netns.enter(|| Ok(TcpStream::connect(at)?)).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn resets_are_told_by_the_state_that_they_ended() {
    let netns = Netns::new("resets").unwrap();
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, 7000).into();
    let agent = agent();
    let trace = Trace::start(&netns, &["--events", "close,fail"]).unwrap();
    let before = NetCounters::of(&netns).unwrap();
    // Nobody listens.
    netns.enter(|| Ok(TcpStream::connect(at).unwrap_err())).unwrap();
    let listener = netns.enter(|| Ok(TcpListener::bind(at)?)).unwrap();
    // Aborted: no time to linger.
    let (client, server) = connected(&netns, &listener);
    set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop((client, server));
    // Closed with something unread.
    let (mut client, server) = connected(&netns, &listener);
    client.write_all(b"unread").unwrap();
    wait_until("the data to arrive", SOON, || Ok((server.peek(&mut [0; 6])? == 6).then_some(()))).unwrap();
    drop(server);
    drop(client);
    // The same once the peer has ended.
    let (mut client, server) = connected(&netns, &listener);
    client.write_all(b"unread").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let has_ended = || Ok((sockets(&netns, &["state", "fin-wait-2"])?.len() == 1).then_some(()));
    wait_until("the end to be acknowledged", SOON, has_ended).unwrap();
    drop(server);
    drop(client);
    trace.wait_for("close", 6).unwrap();
    trace.wait_for("fail", 1).unwrap();
    drop(trace);
    let kernel = NetCounters::of(&netns).unwrap().since(&before);
    assert_eq!(kernel.get("TcpOutRsts"), 4);

    let scrape = agent.scrape().unwrap();
    let own = own_cgroup().unwrap();
    let mut expected = vec![
        is("received", "established", 2),
        is("received", "fin_wait2", 1),
        is("received", "syn_sent", 1),
        is("sent", "close_wait", 1),
        is("sent", "established", 2),
    ];
    if witness::kernel().unwrap() >= TELLS_OF_STRAY_RESETS {
        // No socket has sent it, but all sockets there are this cgroup's.
        expected.push(is("sent", "none", 1));
    }
    assert_eq!(resets(&scrape, &own), expected);
    // There may be refusals elsewhere on the host.
    for (direction, state, _) in resets(&scrape, UNATTRIBUTED) {
        assert!(
            direction == "sent" && ["none", "time_wait"].contains(&state.as_str()),
            "{direction} {state}"
        );
    }
    // Both metrics agree.
    for direction in ["sent", "received"] {
        let labels = [("container", own.as_str()), ("direction", direction)];
        let by_state = scrape.sum("tcptide_resets_by_state_total", &labels);
        assert_eq!(by_state, scrape.sum("tcptide_resets_total", &labels), "{direction}");
    }
}

/// Sets a limit of the whole host until it is dropped.
struct Limit {
    before: String,
}

impl Limit {
    const AT: &str = "/proc/sys/net/ipv4/tcp_max_orphans";

    fn set(value: &str) -> Self {
        let before = fs::read_to_string(Self::AT).unwrap();
        fs::write(Self::AT, value).unwrap();
        Self { before }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        fs::write(Self::AT, &self.before).unwrap();
    }
}

#[test]
#[ignore = "sets a limit of the whole host: make test-vm runs it"]
fn a_connection_that_is_one_too_many_without_a_process_is_orphaned() {
    let [near, far] = ["orphan-a", "orphan-b"].map(|name| Netns::new(name).unwrap());
    let [at_a, at_b] = [1, 2].map(|host| IpAddr::from([198, 18, 92, host]));
    let path = Forwarder::between(&near, at_a, &far, at_b, Impairment::default()).unwrap();
    let trace = Trace::start(&near, &["--events", "close"]).unwrap();
    let before = NetCounters::of(&near).unwrap();
    let listener = far.enter(|| Ok(TcpListener::bind((at_b, 7000))?)).unwrap();
    let at = listener.local_addr().unwrap();
    let [orderly, mut unanswered] = [(); 2].map(|()| near.enter(|| Ok(TcpStream::connect(at)?)).unwrap());
    let servers = [(); 2].map(|()| listener.accept().unwrap().0);
    orderly.shutdown(Shutdown::Write).unwrap();
    path.drop_if(Direction::BToA, |_| true);
    unanswered.write_all(b"is there anybody?").unwrap();
    // The kernel counts such connections every 100 ms: it finds the first one too many when it would send again.
    let limit = Limit::set("0");
    drop(unanswered);
    trace.wait_for("close", 1).unwrap();
    drop(limit);
    path.drop_if(Direction::BToA, |_| false);
    drop(orderly);
    drop(servers);
    trace.wait_for("close", 2).unwrap();
    let kernel = NetCounters::of(&near).unwrap().since(&before);
    assert_eq!(kernel.get("TcpExtTCPAbortOnMemory"), 1);
    let mut closed = trace.end().unwrap();
    assert_eq!(closed.0.remove(0).close.unwrap().reason, "orphaned");
    assert_ne!(closed.one().unwrap().reason(), "orphaned");
}
