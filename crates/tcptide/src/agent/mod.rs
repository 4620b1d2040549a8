//! `tcptide agent`: the daemon. One thread owns the monitor and answers scrapes, one serves HTTP.

mod api;
mod budget;
mod edges;
mod exemplars;
mod exposition;
mod family;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gauge;
mod history;
mod http;
mod ledger;
mod namespaces;
mod process;
mod protobuf;
mod reconciliation;
mod series;
mod strays;
mod tails;
mod text;
mod web;

pub(crate) use api::query;

use std::{net::TcpListener, sync::Arc, thread};

use anyhow::{Context as _, bail};
use probe::check_privileges;
use rustix::thread::CapabilitySet;

pub(crate) use self::web::Limits;
use crate::{args::AgentArgs, output::say, privileges, session::without};

pub(crate) fn run(args: &AgentArgs) -> anyhow::Result<()> {
    // Before anything is loaded: these are the usual mistakes.
    let listener = TcpListener::bind(args.listen).with_context(|| {
        format!("cannot serve on {}; another address can be chosen with --web.listen-address", args.listen)
    })?;
    // As it is read later: without capabilities.
    let live = thread::scope(|scope| {
        let start = || {
            privileges::keep(CapabilitySet::empty())?;
            web::Live::start(args.web_config.as_deref())
        };
        scope.spawn(start).join().unwrap_or_else(|_| bail!("cannot read the web configuration"))
    })?;
    if let Some(text) = without(&check_privileges()?) {
        say!("{text}");
    }
    let traffic = Arc::new(web::Traffic::default());
    let gauge = gauge::Gauge::start(args, Arc::clone(&traffic))?;
    privileges::keep(CapabilitySet::empty())?;
    say!("attached, serving {}://{}/metrics", live.scheme(), listener.local_addr().unwrap_or(args.listen));
    web::serve(listener, http::router(gauge), args.limits(), traffic, live)
}
