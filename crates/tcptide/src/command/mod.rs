//! The commands, one file each.

pub(crate) mod completions;
pub(crate) mod connlat;
pub(crate) mod conns;
pub(crate) mod containers;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod listen;
pub(crate) mod map;
mod reconcile;
pub(crate) mod rtt;
pub(crate) mod states;
pub(crate) mod top;
pub(crate) mod trace;

use std::io::Write as _;

use model::{
    connection::Endpoint,
    container::{Container, sanitize},
};
use serde::Serialize;

use crate::{
    args::PeerArgs,
    identity::{RuntimeState, RuntimeStatus, kubernetes::KubernetesStatus},
    output::{
        format::Format,
        say,
        table::{Cell, Column, Table},
        units,
        writer::{Output, Screen},
    },
    session::Session,
};

/// Prints what was found: a list for programs, a table for people.
fn print<T: Serialize>(
    format: Format,
    items: &[T],
    columns: &[Column],
    row: impl Fn(&T) -> Vec<Cell>,
) -> anyhow::Result<()> {
    let mut out = Output::stdout();
    match format.encoding() {
        Some(encoding) => encoding.list(&mut out, items)?,
        None => {
            let mut table = Table::new(columns, format.is_wide());
            for item in items {
                table.push(row(item));
            }
            write!(out, "{}", table.render(&Screen::detect()))?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Says on stderr that a filter left nothing of what there is.
fn explain_nothing(session: &Session, found: usize, all: u64, what: &str) {
    if found == 0 && !session.filter.is_empty() {
        say!("nothing matches {}; without the filter there are {all} {what}", session.filter.describe());
    }
}

/// The same where far ends were asked for, too.
fn explain_no_peer(session: &Session, peer: &PeerArgs, found: usize, all: u64) {
    if found == 0 && !peer.is_empty() {
        say!("no far end on this host matches --peer-container; `tcptide conns` shows all {all} sockets");
    } else {
        explain_nothing(session, found, all, "sockets");
    }
}

fn endpoint(end: &Endpoint) -> String {
    units::address(end.address, end.port.unwrap_or_default())
}

/// Whose the far end is, or what its address is called.
fn far_end(peer: &Endpoint) -> Option<String> {
    let named = || peer.name.as_deref().map(|name| sanitize(name).into_owned());
    peer.container.as_deref().map(owner).or_else(named)
}

/// A container's name, with its pod where it has one.
pub(crate) fn owner(container: &Container) -> String {
    match (&container.namespace, &container.pod) {
        (Some(namespace), Some(pod)) => {
            // Each is bounded by itself, or a long pod would hide the container.
            [namespace, pod, &container.name].map(|name| sanitize(name).into_owned()).join("/")
        }
        _ => container.name.clone(),
    }
}

/// What became of Kubernetes.
fn kubernetes(status: Option<&KubernetesStatus>) -> String {
    match status {
        None => "not asked: this is no pod with a service account, and there is no --kubeconfig".to_owned(),
        Some(status) => sanitize(&status.to_string()).into_owned(),
    }
}

/// How it goes with a runtime's API, in a line.
pub(crate) fn runtime(status: &RuntimeStatus) -> String {
    let state = match &status.state {
        RuntimeState::Starting => "no answer yet".to_owned(),
        RuntimeState::Absent => "not there".to_owned(),
        RuntimeState::Connected { server } => format!("{server}, {} containers", status.containers),
        RuntimeState::SameAs(path) => format!("the same as {}", path.display()),
        RuntimeState::Failed(why) => format!("no names from it: {why}"),
    };
    format!("{}: {}", status.socket.display(), sanitize(&state))
}
