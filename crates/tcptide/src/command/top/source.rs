//! Where the numbers come from: a running agent, or the same thing inside this process. Only what is shown is asked for.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, TryRecvError},
};

use anyhow::{Context as _, bail};
use clap::{Args as _, CommandFactory as _, Parser as _};
use model::{
    connection::{Connection, Event},
    container::Container,
    filter::Filter,
};

use crate::{
    agent::{Following, Inside, query},
    answer::{
        connections::Connections,
        edges::Edges,
        listeners::Listeners,
        totals::{Metrics, Totals},
        watched::Watched,
    },
    args::{Cli, Command, OwnerFilterArgs, TopArgs},
    client::{Remote, Told},
};

/// What the containers' list is made of.
pub(super) const METRICS: [&str; 12] = [
    "tcptide_connections",
    "tcptide_sent_bytes_total",
    "tcptide_received_bytes_total",
    "tcptide_rtt_seconds",
    "tcptide_sent_segments_total",
    "tcptide_retransmitted_segments_total",
    "tcptide_opened_total",
    "tcptide_connect_failures_total",
    "tcptide_limited_seconds_total",
    "tcptide_accept_queue_connections",
    "tcptide_accept_queue_limit",
    "tcptide_listen_drops_total",
];

/// How many connections or edges are asked for at most, those that have carried most.
pub(super) const MOST: u32 = 1000;

/// How many events are read of those that came since the last time: the latest. On a busy host nobody reads more.
const READ: usize = 300;
/// How many may come at a time before what is read of them is shown.
const AT_ONCE: u32 = 20_000;

/// The agent inside. Nobody asks it for what was: it looks only when it is asked.
const INSIDE: [&str; 5] = ["tcptide", "agent", "--edges", "--history", "0"];

/// The options that are no parameters of the API.
const LOCAL: [&str; 3] = ["interval", "sort", "once"];

/// The events that are followed.
const EVENTS: [Event; 7] = [
    Event::Open,
    Event::Established,
    Event::Close,
    Event::Fail,
    Event::Retransmit,
    Event::Reset,
    Event::ZeroWindow,
];

/// Which container is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) cgroup_id: u64,
    path: Option<String>,
}

impl Of {
    pub(super) fn new(container: &Container) -> Self {
        // A path stands for all below it, and a comma would begin another one.
        let path = container.cgroup_path.clone().filter(|path| path.starts_with('/') && !path.contains(','));
        Self { cgroup_id: container.cgroup_id, path }
    }

    fn cgroup(&self) -> String {
        self.path.clone().unwrap_or_else(|| self.cgroup_id.to_string())
    }

    /// Whether it is this one: cgroups below it may be containers of their own.
    pub(super) fn is(&self, container: &Container) -> bool {
        self.cgroup_id == container.cgroup_id
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Containers,
    Edges(Option<Of>),
    Connections(Option<Of>),
    /// By its socket's cookie.
    Connection(u64),
    Listeners(Option<Of>),
    Events(Option<Of>),
}

/// What comes back.
pub(super) enum Answer {
    Containers(Totals),
    Edges(Edges),
    Connections(Connections),
    Connection(Box<Watched>),
    Listeners(Listeners),
    /// Those since the last time, and how many more there were.
    Events(Vec<Connection>, u64),
}

/// Who is asked.
enum Who {
    Inside(Inside, Box<Filter>),
    Agent(Remote),
}

/// Events that are followed.
enum Tail {
    Inside(Following),
    Agent(mpsc::Receiver<Told>),
}

pub(super) struct Source {
    who: Who,
    /// What is followed, while it is shown.
    tail: Option<(Option<Of>, Tail)>,
}

impl Source {
    /// The agent that was named, or one of its own.
    pub(super) fn start(args: &TopArgs, agent: Option<Remote>) -> anyhow::Result<Self> {
        let who = match agent {
            Some(agent) => Who::Agent(agent),
            None => {
                // As it would be without a file of settings and an environment.
                let cli = Cli::try_parse_from(INSIDE)?;
                let Command::Agent(mut settings) = cli.command else { bail!("there is no agent in here") };
                settings.runtimes = args.runtimes.clone();
                Who::Inside(Inside::start(&settings)?, Box::new(args.filter.filter()))
            }
        };
        Ok(Self { who, tail: None })
    }

    /// Whether programs of its own are asked.
    pub(super) fn is_inside(&self) -> bool {
        matches!(self.who, Who::Inside(..))
    }

    pub(super) fn answer(&mut self, question: &Question) -> anyhow::Result<Answer> {
        if !matches!(question, Question::Events(_)) {
            self.tail = None;
        }
        match question {
            Question::Containers => self.containers(),
            Question::Edges(of) => self.edges(of.as_ref()),
            Question::Connections(of) => self.connections(of.as_ref()),
            Question::Connection(cookie) => self.connection(*cookie),
            Question::Listeners(of) => self.listeners(of.as_ref()),
            Question::Events(of) => self.events(of.as_ref()),
        }
    }

    fn containers(&self) -> anyhow::Result<Answer> {
        let totals = match &self.who {
            Who::Inside(inside, filter) => {
                let places = METRICS.iter().filter_map(|name| Metrics::place(name)).collect();
                inside.totals(places, Filter::clone(filter))
            }
            Who::Agent(agent) => {
                agent.get("totals", &query::Totals::command(), &LOCAL, &[("metrics", &METRICS.join(","))])
            }
        };
        Ok(Answer::Containers(totals?))
    }

    fn edges(&self, of: Option<&Of>) -> anyhow::Result<Answer> {
        let mut edges = match &self.who {
            Who::Inside(inside, filter) => {
                inside.edges(MOST as usize, within(filter, of)?)?.context("nobody counts edges")?
            }
            Who::Agent(agent) => {
                let most = MOST.to_string();
                ask(agent, "edges", &query::Edges::command(), of, vec![("max_edges", most)])?
            }
        };
        if let Some(of) = of {
            let is_end = |node: &crate::answer::edges::Node| node.container().is_some_and(|one| of.is(one));
            edges.edges.retain(|edge| edge.is_other() || is_end(&edge.client) || is_end(&edge.server));
        }
        Ok(Answer::Edges(edges))
    }

    fn connections(&self, of: Option<&Of>) -> anyhow::Result<Answer> {
        let mut found: Connections = match &self.who {
            Who::Inside(inside, filter) => inside.connections(MOST as usize, within(filter, of)?)?,
            Who::Agent(agent) => {
                let most = MOST.to_string();
                ask(agent, "connections", &query::Connections::command(), of, vec![("limit", most)])?
            }
        };
        if let Some(of) = of {
            let before = found.connections.len();
            found.connections.retain(|one| of.is(&one.container));
            found.matched -= (before - found.connections.len()) as u64;
        }
        Ok(Answer::Connections(found))
    }

    fn connection(&self, cookie: u64) -> anyhow::Result<Answer> {
        let watched = match &self.who {
            Who::Inside(inside, _) => inside.watched(cookie)?,
            Who::Agent(agent) => {
                // What chooses containers is left out: a connection is chosen by itself.
                let choosing = OwnerFilterArgs::augment_args(clap::Command::new("filter"));
                let choosing = choosing.get_arguments().map(|one| one.get_id().as_str());
                let local: Vec<_> = LOCAL.into_iter().chain(choosing).collect();
                let cookie = cookie.to_string();
                agent.get("connection", &query::Watched::command(), &local, &[("cookie", &cookie)])?
            }
        };
        Ok(Answer::Connection(Box::new(watched)))
    }

    fn listeners(&self, of: Option<&Of>) -> anyhow::Result<Answer> {
        let mut found: Listeners = match &self.who {
            Who::Inside(inside, filter) => inside.listeners(within(filter, of)?)?,
            Who::Agent(agent) => ask(agent, "listeners", &query::Listeners::command(), of, Vec::new())?,
        };
        if let Some(of) = of {
            found.listeners.retain(|one| of.is(&one.connection.container));
        }
        Ok(Answer::Listeners(found))
    }

    fn events(&mut self, of: Option<&Of>) -> anyhow::Result<Answer> {
        if self.tail.as_ref().is_none_or(|(followed, _)| followed.as_ref() != of) {
            self.tail = Some((of.cloned(), self.follow(of)?));
        }
        let Some((_, tail)) = &mut self.tail else { return Ok(Answer::Events(Vec::new(), 0)) };
        let (mut latest, mut lost) = (VecDeque::new(), 0);
        for _ in 0..AT_ONCE {
            match tail.next() {
                Ok(Some(Told::Event(text))) => latest.push_back(text),
                Ok(Some(Told::Lost(count))) => lost += count,
                Ok(None) => break,
                // The next time it is followed anew.
                Err(error) => {
                    self.tail = None;
                    return Err(error);
                }
            }
            if latest.len() > READ {
                latest.pop_front();
                lost += 1;
            }
        }
        let read = |text: String| serde_json::from_str::<Connection>(&text).context("reading an event");
        let mut events = latest.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
        events.retain(|event| of.is_none_or(|of| of.is(&event.container)));
        Ok(Answer::Events(events, lost))
    }

    fn follow(&self, of: Option<&Of>) -> anyhow::Result<Tail> {
        match &self.who {
            Who::Inside(inside, filter) => Ok(Tail::Inside(inside.follow(&EVENTS, within(filter, of)?)?)),
            Who::Agent(agent) => {
                let names: Vec<_> = EVENTS.iter().map(|event| event.name().replace('_', "-")).collect();
                let mut more = vec![("events", names.join(","))];
                let local = parameters(of, &mut more);
                let more: Vec<_> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
                Ok(Tail::Agent(agent.follow("events", &query::Events::command(), &local, &more)?))
            }
        }
    }
}

impl Tail {
    fn next(&mut self) -> anyhow::Result<Option<Told>> {
        match self {
            Self::Inside(following) => following.next(),
            Self::Agent(told) => match told.try_recv() {
                Ok(told) => Ok(Some(told)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => bail!("the agent ended the stream of events"),
            },
        }
    }
}

/// What the command line asks for, within one container.
fn within(filter: &Filter, of: Option<&Of>) -> anyhow::Result<Filter> {
    let mut filter = filter.clone();
    if let Some(of) = of {
        filter.cgroup = of.cgroup().parse().map_err(anyhow::Error::msg)?;
    }
    Ok(filter)
}

/// Adds the container to the parameters; the options that are not sent.
fn parameters(of: Option<&Of>, more: &mut Vec<(&'static str, String)>) -> Vec<&'static str> {
    let mut local = LOCAL.to_vec();
    if let Some(of) = of {
        more.push(("cgroup", of.cgroup()));
        local.push("cgroup");
    }
    local
}

fn ask<T: serde::de::DeserializeOwned>(
    agent: &Remote,
    what: &str,
    takes: &clap::Command,
    of: Option<&Of>,
    mut more: Vec<(&'static str, String)>,
) -> anyhow::Result<T> {
    let local = parameters(of, &mut more);
    let more: Vec<_> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
    agent.get(what, takes, &local, &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_that_are_asked_for_are_there() {
        for name in METRICS {
            assert!(Metrics::place(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_settings_inside_are_good() {
        let cli = Cli::try_parse_from(INSIDE).unwrap();
        let Command::Agent(settings) = cli.command else { panic!("{:?}", cli.command) };
        assert!(settings.edges && settings.history.is_zero());
    }
}
