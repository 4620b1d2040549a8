//! One connection: its requests, one after the other, each within its bounds.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Response, StatusCode, header},
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
use tower::ServiceExt as _;

use super::{
    Limits,
    phase::{Phase, Watched},
    traffic::{Reason, Traffic},
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
}

/// Answers what is asked until either side ends it, or a limit does. Once `ending` changes, what is being answered is
/// answered, and nothing more.
pub(super) async fn serve<S>(stream: S, shared: &Arc<Shared>, mut ending: watch::Receiver<()>)
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
            async move { Ok::<_, Infallible>(shared.answer(request).await.map(|body| phase.watch(body))) }
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
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            self.traffic.reject(Reason::Method);
            let allowed = HeaderValue::from_static("GET, HEAD");
            return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, allowed)]).into_response();
        }
        match self.router.clone().oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
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
