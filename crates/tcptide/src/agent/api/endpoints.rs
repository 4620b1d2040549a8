//! Each endpoint: its row in the table, and how it is answered.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::header,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{MethodRouter, get},
};
use clap::CommandFactory as _;
use futures_util::stream;
use jiff::Timestamp;
use model::{
    connection::{Connection, LISTEN},
    container::Container,
    filter::{Filter, Subject},
    record,
};
use schemars::{Schema, SchemaGenerator};

use super::{Refusal, json, openapi, query};
use crate::{
    agent::{
        gauge::{Gauge, Worker},
        past,
        tails::{Told, Wanted},
    },
    answer::{
        connections::Connections,
        containers::{Containers, identified},
        edges::{Edge, Edges, Node, fold},
        health::{Health, Lost},
        history::History,
        listeners::{self, Listener, Listeners},
        programs::{Program, Programs},
        states::{self, Rows, States},
        totals::Totals,
    },
    args::PeerArgs,
    peers::{Peers, Starts},
    session::{clock, connection, tell_far_end},
};

/// One endpoint.
pub(in crate::agent) struct Endpoint {
    /// Below `/api/v1`.
    pub(super) path: &'static str,
    /// What it answers.
    pub(super) summary: &'static str,
    /// Its parameters, as options.
    pub(super) parameters: fn() -> clap::Command,
    /// What an answer looks like; `None`: a stream of events.
    pub(super) answer: Option<fn(&mut SchemaGenerator) -> Schema>,
    pub(super) route: fn() -> MethodRouter<Gauge>,
}

/// All of them.
pub(in crate::agent) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        path: "/connections",
        summary: "Live connections, those that have carried most first.",
        parameters: query::Connections::command,
        answer: Some(SchemaGenerator::subschema_for::<Connections>),
        route: || get(connections),
    },
    Endpoint {
        path: "/states",
        summary: "Sockets by container and TCP state.",
        parameters: query::States::command,
        answer: Some(SchemaGenerator::subschema_for::<Rows>),
        route: || get(states),
    },
    Endpoint {
        path: "/listeners",
        summary: "Listening sockets, the fullest first.",
        parameters: query::Listeners::command,
        answer: Some(SchemaGenerator::subschema_for::<Listeners>),
        route: || get(listeners),
    },
    Endpoint {
        path: "/containers",
        summary: "Containers, and how they were identified.",
        parameters: query::Containers::command,
        answer: Some(SchemaGenerator::subschema_for::<Containers>),
        route: || get(containers),
    },
    Endpoint {
        path: "/totals",
        summary: "What each container has counted, by the names of its metrics; those that count anything, the most active \
                  first.",
        parameters: query::Totals::command,
        answer: Some(SchemaGenerator::subschema_for::<Totals>),
        route: || get(totals),
    },
    Endpoint {
        path: "/history",
        summary: "What containers counted, step by step, in the time that the agent remembers.",
        parameters: query::History::command,
        answer: Some(SchemaGenerator::subschema_for::<History>),
        route: || get(history),
    },
    Endpoint {
        path: "/edges",
        summary: "Who talks to whom. Only with --edges.",
        parameters: query::Edges::command,
        answer: Some(SchemaGenerator::subschema_for::<Edges>),
        route: || get(edges),
    },
    Endpoint {
        path: "/events",
        summary: "Connections as they open, fail and close, as server-sent events: `data` is a connection; an event \
                  called `lost` has in `data` how many there was no room for.",
        parameters: query::Events::command,
        answer: None,
        route: || get(events),
    },
    Endpoint {
        path: "/programs",
        summary: "What became of each BPF program.",
        parameters: query::Nothing::command,
        answer: Some(SchemaGenerator::subschema_for::<Programs>),
        route: || get(programs),
    },
    Endpoint {
        path: "/health",
        summary: "How the agent is, and what it could not count.",
        parameters: query::Nothing::command,
        answer: Some(SchemaGenerator::subschema_for::<Health>),
        route: || get(health),
    },
    Endpoint {
        path: "/openapi.json",
        summary: "This document.",
        parameters: query::Nothing::command,
        answer: Some(|_| schemars::json_schema!({ "type": "object" })),
        route: || get(document),
    },
];

/// How often a stream says that it is there while nothing happens.
const ALIVE: Duration = Duration::from_secs(15);

/// Asks the gauge's thread.
async fn ask<T: Send + 'static>(
    gauge: &Gauge,
    question: impl FnOnce(&mut Worker) -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    gauge.ask(question).await.map_err(Refusal::failed)?.map_err(|error| Refusal::failed(format!("{error:#}")))
}

async fn connections(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Connections { all, limit, cookie, filter, peer } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let found = ask(&gauge, move |worker| {
        let is_wanted = move |r: &record::Connection| {
            (all || r.state != LISTEN) && cookie.is_none_or(|cookie| cookie == r.cookie)
        };
        worker.look(&filter, Some(&peer), limit as usize, &is_wanted)
    });
    let Found { matched, connections } = found.await?;
    // A hundred thousand of them are 200 MB of text: it is made as it is taken.
    let begin = format!("{{\"matched\":{matched},\"connections\":[");
    let items = connections.into_iter().enumerate().map(|(at, connection)| {
        let comma = if at == 0 { "" } else { "," };
        format!("{comma}{}", serde_json::to_string(&connection).unwrap_or_else(|_| "null".to_owned()))
    });
    let pieces = std::iter::once(begin).chain(items).chain(["]}".to_owned()]).map(Ok::<_, Infallible>);
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream::iter(pieces)))
        .into_response())
}

async fn states(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::States { filter, peer } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let states = ask(&gauge, move |worker| {
        let mut states = States::default();
        let everything = filter.is_empty() && peer.is_empty();
        worker
            .each(&filter, (!peer.is_empty()).then_some(&peer), |r, container, _| states.see(r, container))?;
        let mut rows = states.rows();
        if everything {
            rows.extend(states::time_wait(|| worker.directory.resolve(0)));
        }
        Ok(rows)
    });
    Ok(json(&Rows { states: states.await? }))
}

async fn listeners(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Listeners { filter } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let found = ask(&gauge, move |worker| {
        worker.look(&filter, None, usize::MAX, &|r: &record::Connection| r.state == LISTEN)
    });
    let of = |connection| Listener { connection, watched: None };
    let mut listeners: Vec<_> = found.await?.connections.into_iter().map(of).collect();
    listeners::sort(&mut listeners);
    Ok(json(&Listeners { listeners }))
}

async fn containers(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Containers { all } = query::parse(query.as_deref())?;
    let containers = ask(&gauge, move |worker| {
        worker.take_events()?;
        Ok(identified(&worker.directory, all))
    });
    Ok(json(&Containers { containers: containers.await? }))
}

async fn totals(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Totals { metrics, filter } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let totals = ask(&gauge, move |worker| worker.counted(&metrics, &filter)).await?;
    Ok(json(&totals))
}

async fn history(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::History { since, step, limit, metrics, filter } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let now = Instant::now();
    let time = now.checked_sub(since).unwrap_or(now);
    let told = ask(&gauge, move |worker| {
        let shown = worker.measured(&metrics);
        Ok(worker.past(time, &filter).map(|(steps, ended)| (steps, ended, shown)))
    });
    let Some((steps, ended, shown)) = told.await? else {
        return Err(Refusal::wrong("this agent remembers nothing: it was started with --history 0"));
    };
    let step = step.unwrap_or(since / 120);
    Ok(json(&past::told(&steps, ended, step, limit as usize, &shown)))
}

async fn edges(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Edges { since, max_edges, filter, peer } = query::parse(query.as_deref())?;
    let filter = filter.filter();
    let told = ask(&gauge, move |worker| {
        worker.walk_edges(|edges, owner, name| edges.told(since, Instant::now(), owner, name))
    });
    let Some((covered, mut edges)) = told.await? else {
        return Err(Refusal::wrong("this agent does not count edges: it was started without --edges"));
    };
    edges.retain(|edge| is_wanted(edge, &filter, &peer));
    let matched = edges.len() as u64;
    let now = Timestamp::now();
    let seconds = covered.map(|covered| covered.as_secs_f64());
    let since = covered.and_then(|covered| now.checked_sub(covered).ok());
    Ok(json(&Edges { since, seconds, matched, edges: fold(edges, max_edges as usize) }))
}

/// Whether either end is asked for, with the other one at the far end.
fn is_wanted(edge: &Edge, filter: &Filter, peer: &PeerArgs) -> bool {
    let matches = |near: &Node, far: &Node| {
        let subject = Subject {
            local_port: edge.port,
            peer_addr: if let Node::Address(address) = far { Some(*address) } else { None },
            ..near.container().map(Container::subject).unwrap_or_default()
        };
        filter.matches(&subject) && peer.matches(far.container())
    };
    (filter.is_empty() && peer.is_empty())
        || matches(&edge.client, &edge.server)
        || matches(&edge.server, &edge.client)
}

async fn events(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Events { events, filter, peer } = query::parse(query.as_deref())?;
    let wanted = Wanted { events: events.bits(), filter: filter.filter(), peer };
    let told = ask(&gauge, move |worker| {
        let told = worker.tails.add(wanted);
        worker.send_wanted_events();
        Ok(told)
    });
    let told = stream::unfold(told.await?, async |mut told| {
        let event = match told.recv().await? {
            Told::Event(text) => Event::default().data(&text),
            Told::Lost(count) => Event::default().event("lost").data(count.to_string()),
        };
        Some((Ok::<_, Infallible>(event), told))
    });
    // Who reads it knows that from then on nothing is missed.
    let begun = stream::once(async { Ok(Event::default().comment("attached")) });
    let all = futures_util::StreamExt::chain(begun, told);
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

async fn programs(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    let programs = ask(&gauge, |worker| Ok(worker.monitor.programs().into_iter().map(Program::of).collect()));
    Ok(json(&Programs { programs: programs.await? }))
}

async fn health(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    let health = ask(&gauge, |worker| {
        let lost = Lost::of(&worker.monitor.losses());
        Ok(Health::new(worker.kernel.clone(), worker.began, lost, &worker.directory))
    });
    Ok(json(&health.await?))
}

async fn document(RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    Ok(json(&openapi::document()))
}

/// What a look found.
struct Found {
    matched: u64,
    connections: Vec<Connection>,
}

/// A row by what it has carried, then by its cookie.
struct Heavy(u64, Box<record::Connection>);

impl Heavy {
    fn key(&self) -> (u64, Reverse<u64>) {
        (self.0, Reverse(self.1.cookie))
    }
}

impl PartialEq for Heavy {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Heavy {}

impl PartialOrd for Heavy {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Heavy {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Worker {
    /// Calls `each` with the sockets asked for, once each. Where a far end is asked for, all are walked twice: no far end is
    /// known before all sockets are.
    fn each(
        &mut self,
        filter: &Filter,
        peer: Option<&PeerArgs>,
        mut each: impl FnMut(&record::Connection, &Arc<Container>, Option<&Peers>),
    ) -> anyhow::Result<()> {
        let mut peers = Peers::default();
        if peer.is_some() {
            self.monitor.walk(Some(&mut |r| peers.note(r)))?;
        }
        self.take_notes()?;
        let peers = peer.map(|_| &peers);
        let mut seen = std::collections::HashSet::new();
        let directory = &self.directory;
        let wanted = peer.filter(|peer| !peer.is_empty());
        self.monitor.walk(Some(&mut |r| {
            let container = directory.resolve(r.cgroup_id);
            let is_far_end_wanted = wanted.is_none_or(|wanted| {
                let far = peers.zip(Starts::of(r)).and_then(|(peers, starts)| peers.of(starts));
                wanted.matches(far.map(|end| directory.resolve(end.cgroup_id)).as_deref())
            });
            // A walk in several parts may meet a socket again.
            if is_far_end_wanted
                && filter.matches(&model::connection::subject(r, &container))
                && seen.insert(r.cookie)
            {
                each(r, &container, peers);
            }
        }))?;
        Ok(())
    }

    /// The connections asked for, at most so many: those that have carried most. Far ends are told where they are asked for.
    fn look(
        &mut self,
        filter: &Filter,
        peer: Option<&PeerArgs>,
        limit: usize,
        is_wanted: &dyn Fn(&record::Connection) -> bool,
    ) -> anyhow::Result<Found> {
        let mut heaviest: BinaryHeap<Reverse<Heavy>> = BinaryHeap::new();
        let mut far_ends = std::collections::HashMap::new();
        let mut matched = 0;
        self.each(filter, peer, |r, _, peers| {
            if !is_wanted(r) {
                return;
            }
            matched += 1;
            let carried = [&r.before, &r.since].map(|counters| counters.sent_bytes + counters.received_bytes);
            heaviest.push(Reverse(Heavy(carried.iter().sum(), Box::new(*r))));
            if let Some(end) = peers.zip(Starts::of(r)).and_then(|(peers, starts)| peers.of(starts)) {
                far_ends.insert(r.cookie, end.cgroup_id);
            }
            if heaviest.len() > limit
                && let Some(Reverse(Heavy(_, lightest))) = heaviest.pop()
            {
                far_ends.remove(&lightest.cookie);
            }
        })?;
        let clock = clock();
        let directory = &self.directory;
        let told = heaviest.into_sorted_vec().into_iter().map(|Reverse(Heavy(_, r))| {
            let container = directory.resolve(r.cgroup_id);
            let mut told = connection(&r, &container, &clock, false);
            let far = far_ends.get(&r.cookie).map(|cgroup| directory.resolve(*cgroup));
            tell_far_end(&mut told, far, (r.peer_port, clock.monotonic_ns), (&self.names, directory));
            told
        });
        Ok(Found { matched, connections: told.collect() })
    }
}
