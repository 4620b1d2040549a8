//! What a connection is at, and since when: each phase may take so long and no longer. It is told by what passes through the
//! stream below HTTP and by the bodies above it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

use super::{Limits, traffic::Reason};

/// As good as no limit: ten years.
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A request's head is awaited or on its way.
    Head,
    /// An answer is being made.
    Answer,
    /// An answer without an end is being made, and what there is of it has been sent.
    Stream,
    /// The same, and what there is of it is not taken.
    Stalled,
    /// It is made whole, and being sent.
    Sending,
    /// All was answered.
    Idle,
}

/// The phase of one connection.
#[derive(Debug)]
pub(super) struct Phase {
    now: Mutex<(State, Instant)>,
    changed: Notify,
}

impl Phase {
    /// From a connection's beginning on the first request's head is awaited.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { now: Mutex::new((State::Head, Instant::now())), changed: Notify::new() })
    }

    fn now(&self) -> MutexGuard<'_, (State, Instant)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: State) {
        *self.now() = (state, Instant::now());
        self.changed.notify_one();
    }

    /// A request has come.
    pub(super) fn answer(&self) {
        self.enter(State::Answer);
    }

    /// The answer has no end: it may take as long as it is taken.
    pub(super) fn stream(&self) {
        self.enter(State::Stream);
    }

    /// The end of the phase as far as is known, and what it is then.
    pub(super) fn deadline(&self, limits: &Limits) -> (Instant, Reason) {
        let (state, since) = *self.now();
        let (limit, reason) = match state {
            State::Head => (limits.read, Reason::ReadTimeout),
            State::Answer | State::Stalled | State::Sending => (limits.write, Reason::WriteTimeout),
            State::Idle => (limits.idle, Reason::IdleTimeout),
            State::Stream => (ENDLESS, Reason::WriteTimeout),
        };
        (since + limit, reason)
    }

    /// Waits until another phase has begun.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A body whose end is taken note of.
    pub(super) fn watch(self: &Arc<Self>, body: Body) -> Body {
        Body::new(WatchedBody { body, phase: Arc::clone(self) })
    }

    fn body_is_made(&self) {
        let mut now = self.now();
        if [State::Answer, State::Stream, State::Stalled].contains(&now.0) {
            now.0 = State::Sending;
        }
    }

    fn received(&self) {
        let state = self.now().0;
        if state == State::Idle {
            self.enter(State::Head);
        }
    }

    fn flushed(&self) {
        let state = self.now().0;
        match state {
            State::Sending => self.enter(State::Idle),
            State::Stalled => self.enter(State::Stream),
            State::Head | State::Answer | State::Stream | State::Idle => {}
        }
    }

    fn not_taken(&self) {
        let state = self.now().0;
        if state == State::Stream {
            self.enter(State::Stalled);
        }
    }
}

struct WatchedBody {
    body: Body,
    phase: Arc<Phase>,
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.phase.body_is_made();
    }
}

/// A stream whose use tells the phase.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) phase: Arc<Phase>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let answer = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.phase.received();
        }
        answer
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write(cx, data);
        if answer.is_pending() {
            self.phase.not_taken();
        }
        answer
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        if answer.is_pending() {
            self.phase.not_taken();
        }
        answer
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP asks for it once all that it had to say is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = answer {
            self.phase.flushed();
        }
        answer
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
