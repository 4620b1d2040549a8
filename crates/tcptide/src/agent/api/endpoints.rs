//! Each endpoint: its row in the table, and how it is answered.

use std::{
    convert::Infallible,
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
use futures_util::{Stream, StreamExt as _, stream};
use schemars::{Schema, SchemaGenerator};

use super::{Refusal, json, live, openapi, query};
use crate::{
    agent::{
        gauge::{Gauge, Worker},
        past,
        process::Usage,
        tails::{Told, Wanted},
    },
    answer::{
        connections::Connections,
        containers::{Containers, identified},
        edges::Edges,
        health::{Cost, Health, Lost},
        history::History,
        listeners::Listeners,
        programs::{Program, Programs},
        states::{self, Rows, States},
        totals::Totals,
        watched::Watched,
    },
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
    /// The statuses of its own by which it refuses, and why.
    pub(super) refusals: &'static [(&'static str, &'static str)],
    pub(super) route: fn() -> MethodRouter<Gauge>,
}

/// All of them.
pub(in crate::agent) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        path: "/connections",
        summary: "Live connections, those that have carried most first.",
        parameters: query::Connections::command,
        answer: Some(SchemaGenerator::subschema_for::<Connections>),
        refusals: &[],
        route: || get(connections),
    },
    Endpoint {
        path: "/connection",
        summary: "One connection, which is watched from the first time it is asked about until nobody has asked for a \
                  minute: every RTT sample, and every state, up to its end. 64 of them at a time.",
        parameters: query::Watched::command,
        answer: Some(SchemaGenerator::subschema_for::<Watched>),
        refusals: &[
            ("404", "There is no such connection, and none was watched."),
            ("429", "As many are watched as there is room for."),
        ],
        route: || get(connection),
    },
    Endpoint {
        path: "/states",
        summary: "Sockets by container and TCP state.",
        parameters: query::States::command,
        answer: Some(SchemaGenerator::subschema_for::<Rows>),
        refusals: &[],
        route: || get(states),
    },
    Endpoint {
        path: "/listeners",
        summary: "Listening sockets, the fullest first.",
        parameters: query::Listeners::command,
        answer: Some(SchemaGenerator::subschema_for::<Listeners>),
        refusals: &[],
        route: || get(listeners),
    },
    Endpoint {
        path: "/containers",
        summary: "Containers, and how they were identified.",
        parameters: query::Containers::command,
        answer: Some(SchemaGenerator::subschema_for::<Containers>),
        refusals: &[],
        route: || get(containers),
    },
    Endpoint {
        path: "/totals",
        summary: "What each container has counted, by the names of its metrics; those that count anything, the most active \
                  first.",
        parameters: query::Totals::command,
        answer: Some(SchemaGenerator::subschema_for::<Totals>),
        refusals: &[],
        route: || get(totals),
    },
    Endpoint {
        path: "/history",
        summary: "What containers counted, step by step, in the time that the agent remembers.",
        parameters: query::History::command,
        answer: Some(SchemaGenerator::subschema_for::<History>),
        refusals: &[],
        route: || get(history),
    },
    Endpoint {
        path: "/edges",
        summary: "Who talks to whom. Only with --edges.",
        parameters: query::Edges::command,
        answer: Some(SchemaGenerator::subschema_for::<Edges>),
        refusals: &[],
        route: || get(edges),
    },
    Endpoint {
        path: "/events",
        summary: "Connections as they open, fail and close, as server-sent events: `data` is a connection; an event \
                  called `lost` has in `data` how many there was no room for.",
        parameters: query::Events::command,
        answer: None,
        refusals: &[],
        route: || get(events),
    },
    Endpoint {
        path: "/live",
        summary: "Answers of other endpoints, again and again, as server-sent events: an event called `answer` has in `data` \
                  what was asked (`ask`), the `status`, and the `answer`; one that is as it was is not told again.",
        parameters: query::Live::command,
        answer: None,
        refusals: &[],
        route: || get(live::live),
    },
    Endpoint {
        path: "/programs",
        summary: "What became of each BPF program.",
        parameters: query::Nothing::command,
        answer: Some(SchemaGenerator::subschema_for::<Programs>),
        refusals: &[],
        route: || get(programs),
    },
    Endpoint {
        path: "/health",
        summary: "How the agent is, and what it could not count.",
        parameters: query::Nothing::command,
        answer: Some(SchemaGenerator::subschema_for::<Health>),
        refusals: &[],
        route: || get(health),
    },
    Endpoint {
        path: "/openapi.json",
        summary: "This document.",
        parameters: query::Nothing::command,
        answer: Some(|_| schemars::json_schema!({ "type": "object" })),
        refusals: &[],
        route: || get(document),
    },
];

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
    let found = ask(&gauge, move |worker| worker.connections(all, cookie, limit as usize, &filter, &peer));
    let Connections { matched, connections } = found.await?;
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

async fn connection(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Watched { cookie } = query::parse(query.as_deref())?;
    let watched = ask(&gauge, move |worker| worker.watched(cookie)).await?;
    Ok(json(&watched.map_err(|why| Refusal::unwatched(&why))?))
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
    Ok(json(&ask(&gauge, move |worker| worker.listeners(&filter)).await?))
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
    let told = ask(&gauge, move |worker| worker.edges(since, max_edges as usize, &filter, &peer));
    let Some(edges) = told.await? else {
        return Err(Refusal::wrong("this agent does not count edges: it was started without --edges"));
    };
    Ok(json(&edges))
}

async fn events(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Events { events, filter, peer } = query::parse(query.as_deref())?;
    let wanted = Wanted { events: events.bits(), filter: filter.filter(), peer };
    let told = ask(&gauge, move |worker| Ok(worker.follow(wanted)));
    let told = stream::unfold(told.await?, async |mut told| {
        let event = match told.recv().await? {
            Told::Event(text) => Event::default().data(&text),
            Told::Lost(count) => Event::default().event("lost").data(count.to_string()),
        };
        Some((Ok::<_, Infallible>(event), told))
    });
    // Who reads it knows that from then on nothing is missed.
    let begun = stream::once(async { Ok(Event::default().comment("attached")) });
    Ok(streamed(begun.chain(told)))
}

/// Server-sent events. Now and then they say that they are there, while nothing happens.
pub(super) fn streamed(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    const ALIVE: Duration = Duration::from_secs(15);
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

async fn programs(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    let programs = ask(&gauge, |worker| {
        let is_measured = !worker.monitor.measured().is_zero();
        let of = |program| Program::of(program, is_measured);
        Ok(worker.monitor.programs().into_iter().map(of).collect())
    });
    Ok(json(&Programs { programs: programs.await? }))
}

async fn health(State(gauge): State<Gauge>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    let health = ask(&gauge, |worker| {
        let lost = Lost::of(&worker.monitor.losses());
        let cost = Cost::of(Usage::now(), worker.monitor.last_walk());
        Ok(Health::new(worker.kernel.clone(), worker.began, lost, cost, &worker.directory))
    });
    Ok(json(&health.await?))
}

async fn document(RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let query::Nothing {} = query::parse(query.as_deref())?;
    Ok(json(&openapi::document()))
}
