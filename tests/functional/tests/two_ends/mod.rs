//! A client and a server with a path between them, and what tcptide, `ss` and the kernel say of each.

// Each file of stories has use for a part of it.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{CongestionStates, Connection, Connections, Limited, Path};
use functional::forwarder::{Direction, Forwarder, Impairment};
use functional::netns::Netns;
use functional::process::wait_until;
use functional::samples::Scrape;
use functional::tcptide::{Agent, Streaming, Tcptide};
use functional::witness::{NetCounters, Socket, sockets};
use functional::workload::{self, Counts, Running};

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
    pub(crate) fn wrap(&self, command: &Command) -> Command {
        self.cgroup.wrap(&self.netns.wrap(command))
    }

    /// What `ss` says of its only connection, once there is one.
    pub(crate) fn ss(&self) -> Socket {
        wait_until("a connection", SOON, || {
            let mut all = self.open()?;
            Ok((all.len() == 1).then(|| all.remove(0)))
        })
        .unwrap()
    }

    /// What `ss` says of its connections.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<Socket>> {
        sockets(&self.netns, &["exclude", "listening", "exclude", "time-wait"])
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

/// What is between two ends.
pub(crate) trait Between {
    /// Panics if it has lost what it was not told to lose.
    fn is_whole(&self);
}

impl Between for Forwarder {
    fn is_whole(&self) {
        for direction in [Direction::AToB, Direction::BToA] {
            assert_eq!(self.counters(direction).device_dropped, 0);
        }
    }
}

/// Both ends, the path, and the monitors at work.
pub(crate) struct Ends<P = Forwarder> {
    number: u8,
    pub(crate) client: End,
    pub(crate) server: End,
    pub(crate) path: P,
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
        Self::joined(number, |client, server, [at_client, at_server]| {
            prepare(client, server);
            Forwarder::build(client, server)
                .addresses(at_client.into(), at_server.into())
                .impair(Direction::AToB, there)
                .impair(Direction::BToA, back)
                .start()
                .unwrap()
        })
    }
}

impl<P: Between> Ends<P> {
    /// `join` makes the path between the two namespaces, with an address at each end.
    pub(crate) fn joined(number: u8, join: impl FnOnce(&Netns, &Netns, [Ipv4Addr; 2]) -> P) -> Self {
        let [mut client, mut server] = ["client", "server"].map(|end| End::new(&format!("{end}{number}")));
        let addresses = [1, 2].map(|host| Ipv4Addr::new(198, 18, number, host));
        let path = join(&client.netns, &server.netns, addresses);
        let peer = format!("198.18.{number}.0/24");
        let trace = ["trace", "-o", "json", "--events", "close,zero-window", "--peer", &peer];
        let trace = Tcptide::find().unwrap().spawn(trace).unwrap();
        trace.wait_ready().unwrap();
        // Whoever remembers looks every 5 s, and each look is a sample of some figures.
        let agent = Tcptide::find().unwrap().agent(["--metrics.grace", "1m", "--history", "0"]).unwrap();
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

    /// Starts a client that speaks when told to, however long it has to wait for that.
    pub(crate) fn speaker(&self, options: &[&str]) -> Speaker {
        Speaker(self.start("speak", &[&["--timeout", "300"], options].concat()))
    }

    /// Asks so many times, each once the last answer is there, and ends all.
    pub(crate) fn ask(self, requests: u64) -> (Counts, [Told; 2]) {
        let server = self.serve(&[]);
        let client = self.start("pingpong", &["--count", &requests.to_string(), "--bytes", "200"]);
        let counts = client.wait(SOON).unwrap();
        assert_eq!((counts.requests, counts.failures()), (requests, 0));
        let both = self.end();
        server.finish().unwrap();
        (counts, both)
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

    /// Waits until all is closed at both ends.
    pub(crate) fn closed(&self) {
        wait_until("both ends to be closed", SOON * 3, || {
            Ok((self.client.open()?.is_empty() && self.server.open()?.is_empty()).then_some(()))
        })
        .unwrap();
    }

    /// Waits until all is closed at both ends, and returns what was told of the client's and the server's. What the
    /// agent has of each is what its connections said.
    pub(crate) fn end(self) -> [Told; 2] {
        self.closed();
        self.path.is_whole();
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

/// A client that speaks when told to.
pub(crate) struct Speaker(Running);

impl Speaker {
    /// Has it send so many bytes.
    pub(crate) fn say(&mut self, bytes: u64) {
        self.0.say(bytes).unwrap();
    }

    /// Has it close its connection.
    pub(crate) fn close(self) {
        assert_eq!(self.0.let_go(SOON).unwrap().failures(), 0);
    }

    /// What it did, after it had to give up.
    pub(crate) fn given_up(self) -> Counts {
        self.0.let_go(SOON).unwrap()
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

    /// How many round-trip times fell into each bucket, by its upper bound in seconds.
    pub(crate) fn rtts(&self) -> Vec<(f64, u64)> {
        let labels = [("container", self.end.cgroup.path().to_str().unwrap())];
        let mut below = 0;
        let buckets = self.scrape.select("tcptide_rtt_seconds_bucket", &labels).map(|bucket| {
            let up_to = bucket.value as u64;
            let count = up_to - std::mem::replace(&mut below, up_to);
            (bucket.label("le").parse().unwrap_or(f64::INFINITY), count)
        });
        buckets.filter(|&(_, count)| count > 0).collect()
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
        // The two monitors look one after the other, each time that a state or a window changes; where a connection is
        // broken off, the time still runs meanwhile.
        let broken_off = self.closed.reasons().iter().any(|&reason| reason != "normal");
        let apart = if broken_off { 50_000.0 } else { 20_000.0 };
        let seconds = |name, label, value, us: u64| {
            let seconds = self.end.counted(&self.scrape, name, &[(label, value)]);
            assert!((seconds * 1e6 - us as f64).abs() < apart, "{name} {value}: {seconds} s, {us} us");
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
