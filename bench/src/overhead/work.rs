//! The work whose cost is compared: both ends of it on one CPU, so that what that CPU spends is what the work costs.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use functional::{
    cgroup::Cgroup,
    netns::{Netns, veth_pair},
    workload::{self, Running},
};

use crate::{accounting::cpu_of, pin};

/// How long one measurement may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server waits for its work: longer than a bench takes.
const SECONDS: &str = "86400";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A lot in one direction, by one connection.
    Stream,
    /// Small requests and answers on a connection that stays.
    Requests,
    /// Connect, a request, its answer, close.
    Connections,
    /// The same, from one network namespace to another, through a pair of virtual devices.
    Veth,
}

impl Kind {
    /// As the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Stream => "a MiB of a stream",
            Self::Requests => "a request and its answer",
            Self::Connections => "connect, request, answer, close",
            Self::Veth => "the same through veth",
        }
    }

    /// How often it is done for one measurement: some tenths of a second, and of connections no more than the kernel can
    /// remember for a minute.
    fn operations(self) -> u64 {
        match self {
            Self::Stream => 512,
            Self::Requests => 20_000,
            Self::Connections | Self::Veth => 5_000,
        }
    }
}

/// A place where one kind of work is done, with its server at its post.
pub(crate) struct Work {
    kind: Kind,
    operations: u64,
    cpu: usize,
    // Dropped in this order: the server leaves before its cgroup and namespaces are removed.
    server: Running,
    server_ns: Netns,
    client_ns: Option<Netns>,
    cgroups: [Cgroup; 2],
    port: u16,
    turn: Cell<u8>,
}

impl Work {
    /// Starts the server on that CPU.
    pub(crate) fn start(kind: Kind, cpu: usize, short: bool) -> Result<Self> {
        let operations = if short { kind.operations() / 10 } else { kind.operations() };
        let cgroups = [Cgroup::unique("bench-server")?, Cgroup::unique("bench-client")?];
        let server_ns = Netns::new("bench")?;
        let client_ns = match kind {
            Kind::Veth => {
                let client_ns = Netns::new("bench-client")?;
                let there: Vec<_> = (1..=VETH_ADDRESSES).map(|n| format!("198.18.9.{n}/24")).collect();
                let there: Vec<_> = there.iter().map(String::as_str).collect();
                veth_pair(&server_ns, &there, &client_ns, &["198.18.9.254/24"])?;
                Some(client_ns)
            }
            _ => None,
        };
        let mut args = vec!["serve", "--listen", "0.0.0.0:0", "--seconds", SECONDS];
        if kind == Kind::Stream {
            args.extend(["--bytes-back", "8"]);
        }
        let server = pin::on(cpu, || {
            Running::start(&mut cgroups[0].wrap(&server_ns.wrap(&workload::command(args)?)))
        })?;
        let port = server.listening()?.port();
        Ok(Self { kind, operations, cpu, server, server_ns, client_ns, cgroups, port, turn: Cell::new(0) })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Does it once through; returns what one operation cost, us of CPU time of both ends.
    pub(crate) fn measure(&self) -> Result<f64> {
        let operations = self.operations;
        let (to, count) = (self.address().to_string(), operations.to_string());
        let bytes = (operations << 20).to_string();
        let args: &[&str] = match self.kind {
            Kind::Stream => &["stream", "--to", &to, "--bytes", &bytes],
            Kind::Requests => &["pingpong", "--to", &to, "--count", &count],
            // As fast as it can: each is late, and so made at once.
            Kind::Connections | Kind::Veth => {
                &["churn", "--to", &to, "--rate", "1000000", "--count", &count, "--seconds", "60"]
            }
        };
        let before = cpu_of(self.server.pid())?;
        let netns = self.client_ns.as_ref().unwrap_or(&self.server_ns);
        let mut client: Command = self.cgroups[1].wrap(&netns.wrap(&workload::command(args)?));
        let client = pin::on(self.cpu, || Running::start(&mut client))?;
        let counts = client.wait(PATIENCE).context("a client of the bench")?;
        let cpu = cpu_of(self.server.pid())?.saturating_sub(before).as_secs_f64() + counts.cpu_seconds;
        let done = match self.kind {
            Kind::Stream => counts.bytes_sent >> 20,
            Kind::Requests => counts.requests,
            Kind::Connections | Kind::Veth => counts.closed,
        };
        if done != operations || counts.failures() > 0 {
            bail!("{done} of {operations} were done, failed: {:?}", counts.failed);
        }
        Ok(cpu * 1e6 / operations as f64)
    }

    /// Another one each time: the ports of closed connections to an address are not free for a minute.
    fn address(&self) -> SocketAddr {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let ip = match self.kind {
            Kind::Veth => Ipv4Addr::new(198, 18, 9, turn % VETH_ADDRESSES + 1),
            _ => Ipv4Addr::new(127, 0, turn, 1),
        };
        (ip, self.port).into()
    }
}

/// Addresses of the server's end of a veth pair.
const VETH_ADDRESSES: u8 = 50;
