//! A host with listeners on it, and what tcptide, `ss` and the kernel say of their queues.

// Each file of stories has use for a part of it.
#![allow(dead_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use functional::cgroup::Cgroup;
use functional::connections::{Connection, Connections, Queues};
use functional::netns::Netns;
use functional::samples::Scrape;
use functional::tcptide::{Agent, Tcptide};
use functional::witness::{NetCounters, Socket, sockets};
use functional::workload::{self, Running};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process};

/// How long something may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn signal(process: &Running, signal: Signal) {
    kill_process(Pid::from_raw(process.pid().cast_signed()).unwrap(), signal).unwrap();
}

/// A host of its own with a container on it.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) cgroup: Cgroup,
}

impl Host {
    pub(crate) fn new(story: &str) -> Self {
        Self { netns: Netns::new(story).unwrap(), cgroup: Cgroup::unique(story).unwrap() }
    }

    /// Starts a server with so long a queue.
    pub(crate) fn serve(&self, at: SocketAddr, backlog: u32) -> Running {
        let serve = ["serve", "--listen", &at.to_string(), "--backlog", &backlog.to_string()];
        let serve = workload::command(serve).unwrap();
        let server = Running::start(&mut self.cgroup.wrap(&self.netns.wrap(&serve))).unwrap();
        server.listening().unwrap();
        server
    }

    /// Starts a server with so long a queue, and stops it before it accepts anything.
    pub(crate) fn listen(&self, at: SocketAddr, backlog: u32) -> Running {
        let server = self.serve(at, backlog);
        signal(&server, Signal::STOP);
        server
    }

    /// Begins so many connections.
    pub(crate) fn knock(&self, at: SocketAddr, times: u32) -> Vec<OwnedFd> {
        knock(&self.netns, None, at, times)
    }

    /// What tcptide and `ss` say of the listener.
    pub(crate) fn look(&self, at: SocketAddr) -> (Connection, Socket) {
        let told = Connections::listeners(&self.netns, &[]).unwrap().at(at).one().unwrap().clone();
        let port = format!(":{}", at.port());
        let seen = sockets(&self.netns, &["state", "listening", "sport", "=", &port]).unwrap().remove(0);
        assert_eq!((told.state.as_str(), told.cookie), ("listen", seen.cookie.unwrap()));
        assert_eq!(told.cgroup(), self.cgroup.path().to_str().unwrap());
        (told, seen)
    }

    /// A look at which tcptide says this of the queues, and `ss` the same.
    pub(crate) fn has(&self, at: SocketAddr, expected: Queues) {
        let (told, seen) = self.look(at);
        assert_eq!(told.queues, Some(expected), "{at}");
        assert_eq!((seen.recv_q, seen.send_q), (expected.accept, expected.limit));
        assert_eq!(seen.drops(), Some(expected.drops));
    }

    /// One of the namespace's counters.
    pub(crate) fn kernel(&self, counter: &str) -> u64 {
        u64::try_from(NetCounters::of(&self.netns).unwrap().get(counter)).unwrap()
    }

    /// Connections in accept queues, their limits, and drops, as the agent has them.
    pub(crate) fn counted(&self, agent: &Agent) -> (u64, u64, u64) {
        let scrape = agent.scrape().unwrap();
        let of = |name| self.figure(&scrape, name, &[]);
        (
            of("tcptide_accept_queue_connections"),
            of("tcptide_accept_queue_limit"),
            of("tcptide_listen_drops_total"),
        )
    }

    /// One of the container's figures, summed over the labels not named.
    pub(crate) fn figure(&self, scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> u64 {
        let labels = [&[("container", self.cgroup.path().to_str().unwrap())], labels].concat();
        scrape.sum(name, &labels).unwrap_or_else(|| panic!("no {name} {labels:?}")) as u64
    }
}

/// Begins so many connections, from this address if one is given.
pub(crate) fn knock(netns: &Netns, from: Option<IpAddr>, at: SocketAddr, times: u32) -> Vec<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let begin = || {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        if let Some(from) = from {
            bind(&socket, &SocketAddr::new(from, 0))?;
        }
        // Under way, or over loopback there already.
        let _ = connect(&socket, &at);
        Ok(socket)
    };
    netns.enter(|| (0..times).map(|_| begin()).collect()).unwrap()
}

/// An agent whose figures outlive what they are of.
pub(crate) fn agent() -> Agent {
    Tcptide::find().unwrap().agent(["--metrics.grace", "1m"]).unwrap()
}
