//! The HTTP server: how many may ask at once, how much they may say, and how long they may take. What they are answered is the
//! router's matter.

mod config;
mod connection;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod live;
mod phase;
mod tls;
mod traffic;
mod users;

use std::{future::pending, io, net::TcpListener, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use axum::Router;
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::{connection::Shared, traffic::Reason, users::Gate};
pub(crate) use self::{live::Live, traffic::Traffic};
use super::{reload::Reloader, systemd};
use crate::output::say;

/// How long an answer may take that is under way at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long to wait when there is no descriptor for one more connection.
const PAUSE: Duration = Duration::from_secs(1);

/// What may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// For a request's head.
    pub(crate) read: Duration,
    /// For an answer, from the request's head to the last byte that is sent.
    pub(crate) write: Duration,
    /// Between an answer and the next request.
    pub(crate) idle: Duration,
}

/// Serves until SIGTERM or SIGINT; what is being answered then is answered first, if that does not take long. A `fault` ends it
/// with an error.
///
/// With a `reloader`, SIGHUP has it read the settings again; without one it ends the agent as it ends other programs whose
/// terminal is gone.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    (traffic, live): (Arc<Traffic>, Live),
    reloader: Option<Reloader>,
    fault: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let gate = Gate::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the HTTP server")?;
    runtime.block_on(async {
        listener.set_nonblocking(true).context("cannot start the HTTP server")?;
        let listener = tokio::net::TcpListener::from_std(listener).context("cannot start the HTTP server")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let hangup = reloader.is_some().then(|| signal(SignalKind::hangup())).transpose();
        let mut reloading = reloader.zip(hangup.context("cannot wait for SIGHUP")?);
        let serving = format!("serving {}://{}/metrics", live.scheme(), listener.local_addr()?);
        // From here on no signal is lost.
        say!("attached, {serving}");
        systemd::ready(&serving);
        let mut server = Server::new(Shared { router, limits, traffic, live, gate });
        let mut fault = pin!(fault);
        let ended = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => server.take(stream),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        tracing::warn!("cannot accept HTTP connections: {error}");
                        sleep(PAUSE).await;
                    }
                },
                Some(_) = server.connections.join_next() => {}
                reloader = hung_up(&mut reloading) => {
                    systemd::reloading();
                    systemd::ready(&format!("{serving}; {}", reloader.reload()));
                }
                // Nobody would count any more: whoever started the agent may start another.
                () = &mut fault => break Err(anyhow!("a fault in tcptide ended the thread that counts")),
                _ = terminate.recv() => break Ok(()),
                _ = interrupt.recv() => break Ok(()),
            }
        };
        systemd::stopping();
        drop(listener);
        server.end().await;
        ended
    })
}

/// Waits for the next SIGHUP, if somebody waits for any.
async fn hung_up(reloading: &mut Option<(Reloader, Signal)>) -> &mut Reloader {
    let Some((reloader, hangup)) = reloading else { return pending().await };
    if hangup.recv().await.is_none() {
        return pending().await;
    }
    reloader
}

/// Whether the connection is at fault, which is gone, and not the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The connections.
struct Server {
    shared: Arc<Shared>,
    connections: JoinSet<()>,
    room: Arc<Semaphore>,
    /// For those who are told that there is no room.
    hall: Arc<Semaphore>,
    ending: watch::Sender<()>,
}

impl Server {
    fn new(shared: Shared) -> Self {
        Self {
            connections: JoinSet::new(),
            room: Arc::new(Semaphore::new(shared.limits.connections)),
            hall: Arc::new(Semaphore::new(shared.limits.connections)),
            ending: watch::Sender::new(()),
            shared: Arc::new(shared),
        }
    }

    fn take(&mut self, stream: TcpStream) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            self.shared.traffic.reject(Reason::Connections);
            // Who expects TLS would not understand.
            if self.shared.config().tls.is_none()
                && let Ok(place) = Arc::clone(&self.hall).try_acquire_owned()
            {
                self.connections.spawn(async move {
                    connection::turn_away(stream).await;
                    drop(place);
                });
            }
            return;
        };
        // An answer is written in few pieces, none of which is to wait for the other side.
        let _ = stream.set_nodelay(true);
        let (shared, ending) = (Arc::clone(&self.shared), self.ending.subscribe());
        self.connections.spawn(async move {
            let open = shared.traffic.open();
            connection::begin(stream, &shared, ending).await;
            drop((open, place));
        });
    }

    /// A client that says nothing could hold the end up for as long as it likes.
    async fn end(mut self) {
        let _ = self.ending.send(());
        let all = async { while self.connections.join_next().await.is_some() {} };
        let _ = timeout(LAST_WORDS, all).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[test]
    fn a_fault_ends_it_with_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = Duration::from_secs(1);
        let limits = Limits { connections: 1, read: second, write: second, idle: second };
        let with = (Arc::default(), Live::start(None).unwrap());
        let ended = serve(listener, Router::new(), limits, with, None, ready(()));
        assert!(ended.unwrap_err().to_string().contains("a fault"));
    }
}
