//! A client and a server with a path between them, and what tcptide, `ss` and the kernel say of each.

#![allow(dead_code)] // no story uses all of it

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{CongestionStates, Connection, Connections, Limited, Path};
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::samples::Scrape;
use functional::tcptide::{Agent, Streaming, Tcptide};
use functional::witness::{NetCounters, Socket, sockets};
use functional::workload::{self, Running};

/// How long something may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Nothing went wrong on the way.
pub(crate) const SOUND: Path = Path { lost: 0, duplicates: 0, reorderings: 0, ce_marked: None };

/// One end: where it is, whose it is, and what the kernel had counted there when the story began.
pub(crate) struct End {
    pub(crate) netns: Netns,
    pub(crate) cgroup: Cgroup,
    before: NetCounters,
}

impl End {
    fn new(name: &str) -> Self {
        let netns = Netns::new(name).unwrap();
        // The host may have chosen one that paces; this one is everywhere.
        netns.sysctl("net.ipv4.tcp_congestion_control", "reno").unwrap();
        let cgroup = Cgroup::unique(name).unwrap();
        Self { netns, cgroup, before: NetCounters::default() }
    }

    /// `command`, to be run at this end.
    fn wrap(&self, command: &Command) -> Command {
        self.cgroup.wrap(&self.netns.wrap(command))
    }

    /// What `ss` says of its only connection, once there is one.
    pub(crate) fn ss(&self) -> Socket {
        wait_until("a connection", SOON, || {
            let mut all = open_at(self)?;
            Ok((all.len() == 1).then(|| all.remove(0)))
        })
        .unwrap()
    }

    /// What tcptide says of its only connection.
    pub(crate) fn look(&self) -> Connection {
        Connections::now(&self.netns, &[]).unwrap().one().unwrap().clone()
    }

    /// What the kernel counted here since the story began, in these counters together.
    pub(crate) fn kernel(&self, names: &[&str]) -> u64 {
        let grown = NetCounters::of(&self.netns).unwrap().since(&self.before);
        names.iter().map(|name| u64::try_from(grown.get(name)).unwrap()).sum()
    }

    /// One of an agent's figures, summed over the labels not named.
    pub(crate) fn counted(&self, scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = [&[("container", self.cgroup.path().to_str().unwrap())], labels].concat();
        scrape.sum(name, &labels).unwrap_or_else(|| panic!("no {name} {labels:?}"))
    }
}

fn open_at(end: &End) -> anyhow::Result<Vec<Socket>> {
    sockets(&end.netns, &["exclude", "listening", "exclude", "time-wait"])
}

/// Both ends, the path, and the monitors at work.
pub(crate) struct Ends {
    number: u8,
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) path: Forwarder,
    trace: Streaming,
    pub(crate) agent: Agent,
}

impl Ends {
    /// A story tells its number, which is part of its addresses, and what happens to packets on their way to the
    /// server and back. `prepare` comes before all connections.
    pub(crate) fn new(
        number: u8,
        there: Impairment,
        back: Impairment,
        prepare: impl FnOnce(&Netns, &Netns),
    ) -> Self {
        let [mut client, mut server] = ["client", "server"].map(|end| End::new(&format!("{end}{number}")));
        prepare(&client.netns, &server.netns);
        let [at_client, at_server] = [1, 2].map(|host| Ipv4Addr::new(198, 18, number, host).into());
        let path = Forwarder::build(&client.netns, &server.netns)
            .addresses(at_client, at_server)
            .impair(Direction::AToB, there)
            .impair(Direction::BToA, back)
            .start()
            .unwrap();
        let peer = format!("198.18.{number}.0/24");
        let trace = ["trace", "-o", "json", "--events", "close,zero-window", "--peer", &peer];
        let trace = Tcptide::find().unwrap().spawn(trace).unwrap();
        trace.wait_ready().unwrap();
        let agent = Tcptide::find().unwrap().agent(["--metrics.grace", "1m"]).unwrap();
        for end in [&mut client, &mut server] {
            end.before = NetCounters::of(&end.netns).unwrap();
        }
        Self { number, client, server, path, trace, agent }
    }

    /// Where the server listens.
    pub(crate) fn at(&self) -> SocketAddr {
        (Ipv4Addr::new(198, 18, self.number, 2), 7000).into()
    }

    /// Starts a server.
    pub(crate) fn serve(&self, args: &[&str]) -> Running {
        let at = self.at().to_string();
        let serve = workload::command([&["serve", "--listen", &at], args].concat()).unwrap();
        let server = Running::start(&mut self.server.wrap(&serve)).unwrap();
        server.listening().unwrap();
        server
    }

    /// Starts a server that reads and says nothing.
    pub(crate) fn listen(&self) -> Running {
        self.serve(&["--bytes-back", "0"])
    }

    /// Starts a client of the workload.
    pub(crate) fn start(&self, workload: &str, args: &[&str]) -> Running {
        let to = self.at().to_string();
        let command = workload::command([&[workload, "--to", &to], args].concat()).unwrap();
        Running::start(&mut self.client.wrap(&command)).unwrap()
    }

    /// Starts a client that speaks when told to.
    pub(crate) fn speaker(&self, options: &[&str]) -> Speaker {
        let (address, port) = (self.at().ip().to_string(), self.at().port().to_string());
        let mut command = Command::new("python3");
        command.args(["-c", SPEAKER, &address, &port]).args(options);
        let process = self.client.wrap(&command).stdin(Stdio::piped()).spawn().unwrap();
        Speaker { process }
    }

    /// Waits until the client has so many bytes acknowledged, and returns what `ss` says of it.
    pub(crate) fn acknowledged(&self, bytes: u64) -> Socket {
        wait_until("all to be acknowledged", SOON * 3, || {
            let seen = self.client.ss();
            // The SYN is one.
            Ok((seen.bytes_acked() == bytes + 1).then_some(seen))
        })
        .unwrap()
    }

    /// Waits until all is closed at both ends, and returns what was told of the client's and the server's. What the
    /// agent has of each is what its connections said.
    pub(crate) fn end(self) -> [Told; 2] {
        wait_until("both ends to be closed", SOON * 3, || {
            Ok((open_at(&self.client)?.len() + open_at(&self.server)?.len() == 0).then_some(()))
        })
        .unwrap();
        for direction in [Direction::AToB, Direction::BToA] {
            // What is lost, the path has lost.
            assert_eq!(self.path.counters(direction).device_dropped, 0);
        }
        let scrape = self.agent.scrape().unwrap();
        let lines = self.trace.interrupt().unwrap().success().unwrap().stdout;
        [self.client, self.server].map(|end| {
            let told = Connections::of_stream(&end.netns, &lines).unwrap();
            let (closed, zero_windows) = (told.events("close"), told.events("zero_window"));
            let told = Told { end, closed, zero_windows, scrape: scrape.clone() };
            told.totals_are_the_sums();
            told
        })
    }
}

/// For each number that it reads it sends a frame of so many bytes. Options: the size of its send buffer, and the rate
/// that the kernel paces it to, in bytes per second.
const SPEAKER: &str = "
import socket, sys
address, port, *options = sys.argv[1:]
SO_MAX_PACING_RATE = 47
client = socket.socket()
for option, value in zip([socket.SO_SNDBUF, SO_MAX_PACING_RATE], options):
    client.setsockopt(socket.SOL_SOCKET, option, int(value))
client.connect((address, int(port)))
for line in sys.stdin:
    client.sendall(int(line).to_bytes(8, 'big') + bytes(int(line) - 8))
";

/// A client that speaks when told to.
pub(crate) struct Speaker {
    process: Child,
}

impl Speaker {
    /// Has it send so many bytes.
    pub(crate) fn say(&mut self, bytes: u64) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{bytes}").unwrap();
    }

    /// Has it close its connection.
    pub(crate) fn close(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What tcptide told of one end.
pub(crate) struct Told {
    pub(crate) end: End,
    /// Its connections as they closed.
    pub(crate) closed: Connections,
    /// Closed windows, as they were seen.
    pub(crate) zero_windows: Connections,
    /// What the agent had in the end.
    pub(crate) scrape: Scrape,
}

impl Told {
    /// The only connection, as it closed.
    pub(crate) fn close(&self) -> &Connection {
        self.closed.one().unwrap()
    }

    /// Over all connections.
    pub(crate) fn sum(&self, of: impl Fn(&Connection) -> u64) -> u64 {
        self.closed.0.iter().map(of).sum()
    }

    /// Nothing was lost, doubled or overtaken, and no window was closed.
    pub(crate) fn is_sound(&self) {
        self.is_lossless();
        self.has_open_windows();
        let Connection { path, retransmits, .. } = self.close();
        assert!(path.duplicates <= retransmits.total && path.ce_marked.is_none(), "{path:?}");
    }

    /// Nothing was lost or overtaken. On a busy machine an acknowledgement may come so late that a timer has sent a
    /// segment again by then: the kernel knows.
    pub(crate) fn is_lossless(&self) {
        let Connection { path, retransmits, .. } = self.close();
        let kernel = |name| self.end.kernel(&[name]);
        assert_eq!((retransmits.total, path.reorderings), (kernel("TcpRetransSegs"), 0));
        assert!(retransmits.tlp <= kernel("TcpExtTCPLossProbes"), "{retransmits:?}");
        if kernel("TcpExtTCPTimeouts") == 0 {
            assert_eq!(self.close().congestion_states.unwrap().loss.entered, 0);
            assert_eq!((path.lost, retransmits.total), (0, retransmits.tlp), "{retransmits:?}");
        }
    }

    /// No window was closed.
    pub(crate) fn has_open_windows(&self) {
        assert_eq!(self.sum(|close| close.zero_windows.peer + close.zero_windows.own), 0);
        assert!(self.zero_windows.0.is_empty());
    }

    fn totals_are_the_sums(&self) {
        for (name, sum) in [
            ("tcptide_lost_segments_total", self.sum(|close| close.path.lost)),
            ("tcptide_duplicate_segments_total", self.sum(|close| close.path.duplicates)),
            ("tcptide_reorderings_total", self.sum(|close| close.path.reorderings)),
            ("tcptide_ce_marked_segments_total", self.sum(|close| close.path.ce_marked.unwrap_or(0))),
            ("tcptide_retransmitted_segments_total", self.sum(|close| close.retransmits.total)),
        ] {
            assert_eq!(self.end.counted(&self.scrape, name, &[]) as u64, sum, "{name} {:?}", self.closed);
        }
        for (of, sum) in [
            ("peer", self.sum(|close| close.zero_windows.peer)),
            ("own", self.sum(|close| close.zero_windows.own)),
        ] {
            let counted = self.end.counted(&self.scrape, "tcptide_zero_windows_total", &[("of", of)]);
            assert_eq!(counted as u64, sum, "{of} {:?}", self.zero_windows);
        }
        let seconds = |name, label, value, us: u64| {
            let seconds = self.end.counted(&self.scrape, name, &[(label, value)]);
            assert!((seconds * 1e6 - us as f64).abs() < 1000.0, "{name} {value}: {seconds} s, {us} us");
        };
        seconds("tcptide_zero_window_seconds_total", "of", "peer", self.sum(|c| c.zero_windows.peer_us));
        seconds("tcptide_zero_window_seconds_total", "of", "own", self.sum(|c| c.zero_windows.own_us));
        for at in 0..4 {
            let state = |c: &Connection| c.congestion_states.unwrap().by_name()[at].1;
            let name = CongestionStates::default().by_name()[at].0;
            seconds("tcptide_congestion_seconds_total", "state", name, self.sum(|c| state(c).us));
            let entered =
                self.end.counted(&self.scrape, "tcptide_congestion_entered_total", &[("state", name)]);
            assert_eq!(entered as u64, self.sum(|c| state(c).entered), "{name}");
        }
        let nothing = |Limited { busy, rwnd, sndbuf }| busy - rwnd - sndbuf;
        for (by, us) in [
            ("nothing", self.sum(|close| nothing(close.limited_us))),
            ("rwnd", self.sum(|close| close.limited_us.rwnd)),
            ("sndbuf", self.sum(|close| close.limited_us.sndbuf)),
        ] {
            seconds("tcptide_limited_seconds_total", "by", by, us);
        }
    }
}
