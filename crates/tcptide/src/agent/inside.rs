//! The agent without HTTP, for a command of this process: the same thread, asked what the API asks it.

use std::sync::Arc;

use model::{connection::Event, filter::Filter};
use probe::check_privileges;
use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::{
    gauge::{Gauge, Worker},
    tails::{Told, Wanted},
    web::Traffic,
};
use crate::{
    answer::{
        connections::Connections, edges::Edges, listeners::Listeners, totals::Totals, watched::Watched,
    },
    args::{AgentArgs, PeerArgs},
    client,
    output::say,
    session::without,
};

/// The way to its thread.
pub(crate) struct Inside(Gauge);

impl Inside {
    /// Loads and attaches the programs. The calling thread gives up its privileges.
    pub(crate) fn start(args: &AgentArgs) -> anyhow::Result<Self> {
        if let Some(text) = without(&check_privileges()?) {
            say!("{text}");
        }
        Ok(Self(Gauge::start(args, Arc::new(Traffic::default()))?))
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.0.ask_and_wait(question).map_err(anyhow::Error::msg)?
    }

    /// What containers have counted; only these metrics, by their places.
    pub(crate) fn totals(&self, metrics: Vec<usize>, filter: Filter) -> anyhow::Result<Totals> {
        self.ask(move |worker| worker.counted(&metrics, &filter))
    }

    /// Live connections, at most so many: those that have carried most.
    pub(crate) fn connections(&self, limit: usize, filter: Filter) -> anyhow::Result<Connections> {
        self.ask(move |worker| worker.connections(false, None, limit, &filter, &PeerArgs::default()))
    }

    /// One connection, watched from the first time on.
    pub(crate) fn watched(&self, cookie: u64) -> anyhow::Result<Watched> {
        self.ask(move |worker| worker.watched(cookie)?.map_err(|why| anyhow::anyhow!("{why}")))
    }

    /// Listening sockets.
    pub(crate) fn listeners(&self, filter: Filter) -> anyhow::Result<Listeners> {
        self.ask(move |worker| worker.listeners(&filter))
    }

    /// Who talks to whom, since the start.
    pub(crate) fn edges(&self, most: usize, filter: Filter) -> anyhow::Result<Option<Edges>> {
        self.ask(move |worker| worker.edges(None, most, &filter, &PeerArgs::default()))
    }

    /// Events of these kinds from now on.
    pub(crate) fn follow(&self, events: &[Event], filter: Filter) -> anyhow::Result<Following> {
        let events = events.iter().fold(0, |all, event| all | event.bit());
        let wanted = Wanted { events, filter, peer: PeerArgs::default() };
        Ok(Following(self.ask(move |worker| Ok(worker.follow(wanted)))?))
    }
}

/// Events as they come.
pub(crate) struct Following(Receiver<Told>);

impl Following {
    /// The next one, if it is there; an error if none comes any more.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<client::Told>> {
        match self.0.try_recv() {
            Ok(Told::Event(text)) => Ok(Some(client::Told::Event(text.to_string()))),
            Ok(Told::Lost(count)) => Ok(Some(client::Told::Lost(count))),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => anyhow::bail!("nobody tells of events any more"),
        }
    }
}
