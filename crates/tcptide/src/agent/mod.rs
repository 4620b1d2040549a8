//! `tcptide agent`: the daemon. One thread owns the monitor and answers scrapes, one serves HTTP.

mod api;
mod budget;
mod edges;
mod exemplars;
mod exposition;
mod family;
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

pub(crate) use api::query;

use std::net::TcpListener;

use anyhow::Context as _;
use probe::check_privileges;

use crate::{args::AgentArgs, output::say, session::without};

pub(crate) fn run(args: &AgentArgs) -> anyhow::Result<()> {
    // Before anything is loaded: these are the usual mistakes.
    let listener = TcpListener::bind(args.listen).with_context(|| {
        format!("cannot serve on {}; another address can be chosen with --web.listen-address", args.listen)
    })?;
    if let Some(text) = without(&check_privileges()?) {
        say!("{text}");
    }
    let gauge = gauge::Gauge::start(args)?;
    say!("attached, serving http://{}/metrics", listener.local_addr().unwrap_or(args.listen));
    http::serve(listener, gauge)
}
