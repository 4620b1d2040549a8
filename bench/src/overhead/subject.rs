//! What is compared: nothing, the floor, tcptide in its modes, and other tools.

use std::{thread, time::Duration};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use functional::{
    http,
    process::wait_until,
    tcptide::{Agent, Tcptide},
};
use probe::Floor;

use crate::pin;

use super::{
    peers::{self, Peer, Sign},
    scraper::Scraper,
};

/// How long an agent that sees nothing nest may take to have its second program stand by, as it has for most of its life.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked.
const BETWEEN: Duration = Duration::from_millis(500);

/// Somebody who may watch the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Nobody: what all others are compared with.
    Nothing,
    /// An empty program on each hook that tcptide takes.
    Floor,
    /// The agent, which nobody scrapes.
    AgentIdle,
    /// The agent, scraped every 5 s.
    Agent,
    /// The agent, scraped each second.
    AgentEachSecond,
    /// The agent with edges, scraped each second.
    AgentEdges,
    /// The same with names from DNS answers.
    AgentDns,
    /// The agent with everything on, scraped each second.
    AgentAll,
    /// `tcptide trace -o json`.
    Trace,
    /// bcc's tcplife (libbpf-tools).
    Tcplife,
    /// bcc's tcpstates (libbpf-tools).
    Tcpstates,
    /// bcc's tcprtt (libbpf-tools), where the kernel takes it.
    Tcprtt,
    /// bcc's tcpconnlat (libbpf-tools), where the kernel takes it.
    Tcpconnlat,
    /// bcc's tcptop (libbpf-tools), where the kernel takes it.
    Tcptop,
    /// bpftrace: a histogram of round-trip times.
    BpftraceRtt,
    /// bpftrace: a histogram of lifetimes.
    BpftraceLife,
    /// Rezolus with all its samplers of TCP (`cargo install rezolus`).
    Rezolus,
    /// `ss -tin` once a second.
    Ss,
}

impl Subject {
    /// As the table calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Floor => "empty programs",
            Self::AgentIdle => "agent, not scraped",
            Self::Agent => "agent, every 5 s",
            Self::AgentEachSecond => "agent, each second",
            Self::AgentEdges => "agent --edges, each second",
            Self::AgentDns => "agent --edges --dns, each second",
            Self::AgentAll => "agent, all on, each second",
            Self::Trace => "trace -o json",
            Self::Tcplife => "tcplife",
            Self::Tcpstates => "tcpstates",
            Self::Tcprtt => "tcprtt",
            Self::Tcpconnlat => "tcpconnlat",
            Self::Tcptop => "tcptop",
            Self::BpftraceRtt => "bpftrace, round trips",
            Self::BpftraceLife => "bpftrace, lifetimes",
            Self::Rezolus => "rezolus, TCP",
            Self::Ss => "ss -tin each second",
        }
    }

    /// Whether it is another tool.
    pub(crate) fn is_peer(self) -> bool {
        peers::needs(self).is_some()
    }

    /// What is missing for it on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        peers::missing(self)
    }
}

fn has_settled(agent: &Agent) -> Result<bool> {
    let answer = http::get(agent.address(), "/api/v1/programs")?.ok()?;
    let answer: serde_json::Value = serde_json::from_str(&answer).context("reading an agent's programs")?;
    let programs = answer["programs"].as_array().context("an agent without programs")?;
    let nested = programs.iter().find(|program| program["name"] == "lifecycle_nested");
    Ok(nested.context("an agent without lifecycle_nested")?["status"] == "standby")
}

/// A subject at work; gone with this.
pub(crate) enum Attached {
    Nothing,
    Floor { _programs: Floor },
    // Dropped in this order.
    Agent { scraper: Option<Scraper>, agent: Agent },
    Peer(Peer),
}

impl Attached {
    /// Starts it on that CPU, and waits until it watches.
    pub(crate) fn start(subject: Subject, tcptide: &Tcptide, cpu: usize, short: bool) -> Result<Self> {
        let agent = |args: &[&str], seconds: Option<u64>| -> Result<Self> {
            // Samples of run times are rare, and might be as long as all of a short measurement.
            let stats = if short { "never" } else { "sample" };
            let args = [args, &["--program-stats", stats]].concat();
            let agent = pin::on(cpu, || tcptide.agent(&args))?;
            // Whoever reconciles keeps it.
            if !args.contains(&"--reconcile") {
                wait_until("an agent to settle", PATIENCE, || {
                    thread::sleep(BETWEEN);
                    has_settled(&agent).map(|settled| settled.then_some(()))
                })?;
            }
            let scraper =
                seconds.map(|seconds| Scraper::start(agent.address(), Duration::from_secs(seconds)));
            Ok(Self::Agent { scraper, agent })
        };
        match subject {
            Subject::Nothing => Ok(Self::Nothing),
            Subject::Floor => Ok(Self::Floor { _programs: Floor::attach(false)? }),
            Subject::AgentIdle => agent(&[], None),
            Subject::Agent => agent(&[], Some(5)),
            Subject::AgentEachSecond => agent(&[], Some(1)),
            Subject::AgentEdges => agent(&["--edges"], Some(1)),
            Subject::AgentDns => agent(&["--edges", "--dns"], Some(1)),
            Subject::AgentAll => agent(&["--read-delay", "--reconcile", "--edges", "--dns"], Some(1)),
            Subject::Trace => {
                let trace = tcptide.command(["trace", "-o", "json"]);
                pin::on(cpu, || Peer::start(trace, Sign::Says("tcptide: attached"))).map(Self::Peer)
            }
            peer => {
                // The file is read before it watches.
                let (command, sign, _config) = peers::command(peer)?;
                pin::on(cpu, || Peer::start(command, sign)).map(Self::Peer)
            }
        }
    }

    /// Its process, if all that it does is done by one.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Nothing | Self::Floor { .. } => None,
            Self::Agent { agent, .. } => Some(agent.pid()),
            Self::Peer(peer) => peer.worker(),
        }
    }

    /// Why it watches no more, if it is another tool that gave up.
    pub(crate) fn failed(&mut self) -> Result<Option<String>> {
        match self {
            Self::Peer(peer) => peer.failed(),
            _ => Ok(None),
        }
    }

    /// Ends it in order.
    pub(crate) fn end(self) -> Result<()> {
        match self {
            Self::Nothing | Self::Floor { .. } => Ok(()),
            Self::Agent { scraper, agent } => {
                let scrapes = scraper.map(Scraper::end).transpose()?;
                if scrapes == Some(0) {
                    bail!("the agent was never scraped");
                }
                agent.stop()?.success().map(drop)
            }
            Self::Peer(peer) => peer.end(),
        }
    }
}
