//! One connection: its requests, one after the other, each within its bounds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
    response::IntoResponse as _,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::{
    Limits,
    live::{Live, Loaded},
    phase::{Phase, Watched},
    traffic::{Reason, Traffic},
    users::Gate,
};

/// Bytes that a request's line and headers may have together.
pub(super) const MOST_HEAD: usize = 16 << 10;
/// Headers of a request.
pub(super) const MOST_HEADERS: usize = 64;
/// How long somebody who is turned away may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What all connections share.
pub(super) struct Shared {
    pub(super) router: Router,
    pub(super) limits: Limits,
    pub(super) traffic: Arc<Traffic>,
    pub(super) live: Live,
    pub(super) gate: Gate,
}

/// The same, with TLS first where that is spoken.
pub(super) async fn begin(stream: TcpStream, shared: &Arc<Shared>, ending: watch::Receiver<()>) {
    let Some(tls) = shared.config().tls.clone() else { return serve(stream, shared, ending).await };
    match timeout(shared.limits.read, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, shared, ending).await,
        Ok(Err(error)) => {
            tracing::debug!("no TLS: {error}");
            shared.traffic.reject(Reason::Tls);
        }
        Err(_) => shared.traffic.reject(Reason::ReadTimeout),
    }
}

/// Answers what is asked until either side ends it, or a limit does. Once `ending` changes, what is being answered is
/// answered, and nothing more.
async fn serve<S>(stream: S, shared: &Arc<Shared>, mut ending: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let phase = Phase::new();
    let io = TokioIo::new(Watched { stream, phase: Arc::clone(&phase) });
    let service = {
        let (shared, phase) = (Arc::clone(shared), Arc::clone(&phase));
        service_fn(move |request| {
            phase.answer();
            let (shared, phase) = (Arc::clone(&shared), Arc::clone(&phase));
            async move {
                let answer = shared.answer(request).await;
                if is_stream(&answer) {
                    phase.stream();
                }
                Ok::<_, Infallible>(answer.map(|body| phase.watch(body)))
            }
        })
    };
    let mut connection =
        http1::Builder::new().max_headers(MOST_HEADERS).max_buf_size(MOST_HEAD).serve_connection(io, service);
    let traffic = &shared.traffic;
    let mut is_ending = false;
    loop {
        let (deadline, reason) = phase.deadline(&shared.limits);
        tokio::select! {
            biased;
            ended = &mut connection => {
                match ended {
                    Err(error) if error.is_parse_too_large() => traffic.reject(Reason::HeadSize),
                    Err(error) if error.is_parse() => traffic.reject(Reason::Malformed),
                    // Otherwise the other side has gone.
                    _ => {}
                }
                return;
            }
            () = phase.changed() => {}
            _ = ending.changed(), if !is_ending => {
                is_ending = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = sleep_until(deadline) => {
                traffic.reject(reason);
                if reason == Reason::ReadTimeout {
                    let stream = connection.into_parts().io.into_inner().stream;
                    say(stream, StatusCode::REQUEST_TIMEOUT, "the request did not come in time\n").await;
                }
                return;
            }
        }
    }
}

impl Shared {
    /// The web configuration as of now.
    pub(super) fn config(&self) -> Arc<Loaded> {
        let (loaded, as_written) = self.live.now();
        if self.live.has_file() {
            self.traffic.configured(as_written);
        }
        loaded
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let config = self.config();
        let refused = match &config.users {
            Some(users) if !self.gate.admits(users, request.headers()).await => {
                self.traffic.reject(Reason::Unauthorized);
                Some((StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, "Basic realm=\"tcptide\""))
            }
            _ if ![Method::GET, Method::HEAD].contains(request.method()) => {
                self.traffic.reject(Reason::Method);
                Some((StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "GET, HEAD"))
            }
            _ => None,
        };
        let mut response = match refused {
            Some((status, name, value)) => (status, [(name, value)]).into_response(),
            None => match self.router.clone().oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        };
        response.headers_mut().extend(config.headers.clone());
        response
    }
}

/// Whether it is told as it happens, and has no end.
fn is_stream(answer: &Response<Body>) -> bool {
    answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream")
}

/// Says that there is no room, to somebody who may not have asked yet.
pub(super) async fn turn_away(stream: TcpStream) {
    say(stream, StatusCode::SERVICE_UNAVAILABLE, "too many connections: see --web.max-connections\n").await;
}

/// An answer without a request that it is to. What comes meanwhile is read, or closing would make the other side lose the
/// answer.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: StatusCode, text: &str) {
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        text.len(),
    );
    let _ = timeout(LAST_WORDS, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut unused = [0; 1024];
        while stream.read(&mut unused).await? > 0 {}
        Ok::<_, std::io::Error>(())
    })
    .await;
}
