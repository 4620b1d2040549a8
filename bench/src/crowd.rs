//! Many live connections: pairs of a server and a client, each in a cgroup of its own, spread over network namespaces.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use functional::{
    cgroup::Cgroup,
    netns::Netns,
    sweep,
    workload::{self, Counts, Running, connections_per_process},
};

/// The processes let go after this in any case.
const SECONDS: &str = "900";
/// How long opening may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// The connections, for as long as this lives.
pub(crate) struct Crowd {
    // Dropped in this order: the processes leave before their cgroups and namespaces are removed.
    clients: Vec<Running>,
    servers: Vec<Running>,
    cgroups: Vec<Cgroup>,
    namespaces: Vec<Netns>,
    opened: u64,
}

impl Crowd {
    /// Opens them over the namespaces' loopback. On them, in turn, so many requests are sent and answered each
    /// second.
    pub(crate) fn open(connections: u64, cgroups: u64, namespaces: u64, request_rate: u64) -> Result<Self> {
        let pairs = cgroups / 2;
        let most = connections.div_ceil(pairs);
        if most > connections_per_process() {
            let room = connections_per_process();
            bail!("{most} connections for each process: only {room} files may be open; take more cgroups");
        }
        let start = Instant::now();
        let parent = sweep::own_name("crowd");
        let made = (0..namespaces).map(|number| Netns::new(&format!("crowd{number}")));
        let namespaces = made.collect::<Result<Vec<_>>>()?;
        let cgroup = |role: &str, pair: u64| Cgroup::new(format!("{parent}/{role}{pair}"));
        let mut crowd =
            Self { clients: Vec::new(), servers: Vec::new(), cgroups: Vec::new(), namespaces, opened: 0 };

        for pair in 0..pairs {
            let cgroup = cgroup("server", pair)?;
            let serve = workload::command(["serve", "--listen", "127.0.0.1:0", "--seconds", SECONDS])?;
            let netns = crowd.namespace_of(pair);
            crowd.servers.push(Running::start(&mut cgroup.wrap(&netns.wrap(&serve)))?);
            crowd.cgroups.push(cgroup);
        }
        for pair in 0..pairs {
            let cgroup = cgroup("client", pair)?;
            let to = crowd.servers[pair as usize].listening()?.to_string();
            let share = |all: u64| (all / pairs + u64::from(pair < all % pairs)).to_string();
            let hold = workload::command([
                "hold",
                "--to",
                &to,
                "--count",
                &share(connections),
                "--rate",
                &share(request_rate),
                "--seconds",
                SECONDS,
                "--timeout",
                "30",
            ])?;
            let netns = crowd.namespace_of(pair);
            crowd.clients.push(Running::start(&mut cgroup.wrap(&netns.wrap(&hold)))?);
            crowd.cgroups.push(cgroup);
        }
        for client in &crowd.clients {
            let line = client.ready(PATIENCE.saturating_sub(start.elapsed()))?;
            crowd.opened += line.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        }
        if crowd.opened != connections {
            bail!("only {} of {connections} connections could be opened", crowd.opened);
        }
        Ok(crowd)
    }

    fn namespace_of(&self, pair: u64) -> &Netns {
        &self.namespaces[pair as usize % self.namespaces.len()]
    }

    pub(crate) fn namespaces(&self) -> &[Netns] {
        &self.namespaces
    }

    pub(crate) fn cgroups(&self) -> &[Cgroup] {
        &self.cgroups
    }

    /// Connections; there are twice as many sockets.
    pub(crate) fn connections(&self) -> u64 {
        self.opened
    }

    /// Closes them. An error if a side did not have as many as the other.
    pub(crate) fn close(mut self) -> Result<()> {
        let finish = |all: &mut Vec<Running>| -> Result<Counts> {
            let mut counts = Counts::default();
            for one in all.drain(..) {
                counts.add(&one.finish()?);
            }
            Ok(counts)
        };
        let clients = finish(&mut self.clients)?;
        let servers = finish(&mut self.servers)?;
        if (clients.opened, servers.accepted) != (self.opened, self.opened) {
            bail!("{} connections were opened and {} accepted", clients.opened, servers.accepted);
        }
        Ok(())
    }
}
