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
mod protobuf;
mod reconciliation;
mod reload;
mod series;
mod strays;
mod systemd;
mod tails;
mod text;

pub(crate) use api::query;
#[cfg(test)]
pub(crate) use reload::RELOADABLE;

use std::{io::Write as _, net::TcpListener};

use anyhow::Context as _;
use probe::check_privileges;

use crate::{
    args::AgentArgs,
    output::{say, writer::Output},
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
    if let Some(text) = without(&check_privileges()?) {
        say!("{text}");
    }
    let gauge = gauge::Gauge::start(args)?;
    let reloader = reload::Reloader::new(args, &gauge);
    http::serve(listener, gauge, reloader)
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
