//! `tcptide agent`: the daemon. One thread owns the monitor and answers scrapes, one serves HTTP.

mod answers;
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
mod inside;
mod ledger;
mod namespaces;
mod packed;
mod page;
mod past;
pub(crate) mod process;
mod protobuf;
mod reconciliation;
mod reload;
mod series;
mod strays;
mod systemd;
mod tails;
mod text;
mod watches;
mod web;

pub(crate) use api::query;
#[cfg(test)]
pub(crate) use reload::RELOADABLE;

use std::{io::Write as _, net::TcpListener, sync::Arc, thread};

use anyhow::{Context as _, bail};
use probe::check_privileges;
use rustix::thread::CapabilitySet;

pub(crate) use self::{
    inside::{Following, Inside},
    web::Limits,
};
use crate::{
    args::AgentArgs,
    output::{say, writer::Output},
    privileges,
    session::without,
};

pub(crate) fn run(args: &AgentArgs) -> anyhow::Result<()> {
    if args.check_config {
        return check(args);
    }
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
    let reloader = reload::Reloader::new(args, &gauge);
    let fault = gauge.end();
    web::serve(listener, http::router(gauge), args.limits(), (traffic, live), reloader, fault)
}

/// Whoever comes here has settings that are right.
fn check(args: &AgentArgs) -> anyhow::Result<()> {
    let mut out = Output::stdout();
    let file = match &args.config_file {
        Some(file) => format!("{}, the environment and the flags", file.display()),
        None => "the environment and the flags, without a file (--config.file)".to_owned(),
    };
    writeln!(out, "the settings are right: {file}")?;
    Ok(out.flush()?)
}
