//! The HTTP surface: `/metrics`, `/-/healthy`, `/-/ready`.

use std::{convert::Infallible, future::pending, net::TcpListener, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{gauge::Gauge, reload::Reloader, systemd, text::Format};
use crate::output::say;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

const INDEX: &str = "<!doctype html><title>tcptide</title><h1>tcptide</h1>\
    <ul><li><a href=metrics>Metrics</a><li><a href=-/healthy>Health</a></ul>";

/// How long an answer may take that is under way at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT; what is being answered then is answered first, if that does not take long.
///
/// With a `reloader`, SIGHUP has it read the settings again; without one it ends the agent as it ends other programs whose
/// terminal is gone.
pub(crate) fn serve(listener: TcpListener, gauge: Gauge, reloader: Option<Reloader>) -> anyhow::Result<()> {
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
        let serving = format!("serving http://{}/metrics", listener.local_addr()?);
        let hangup = reloader.is_some().then(|| signal(SignalKind::hangup())).transpose();
        let mut reloading = reloader.zip(hangup.context("cannot wait for SIGHUP")?);
        // From here on no signal is lost.
        say!("attached, {serving}");
        systemd::ready(&serving);
        let reloads = async move {
            while let Some((reloader, hangup)) = &mut reloading
                && hangup.recv().await.is_some()
            {
                systemd::reloading();
                systemd::ready(&format!("{serving}; {}", reloader.reload()));
            }
            pending::<()>().await;
        };
        let (ending, ended) = oneshot::channel::<()>();
        let end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            systemd::stopping();
            drop(ending);
        };
        // A client that says nothing could hold the end up for as long as it likes.
        let too_long = async move {
            let _ = ended.await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            served = axum::serve(listener, router(gauge)).with_graceful_shutdown(end) => {
                served.context("the HTTP server failed")
            }
            () = too_long => Ok(()),
            () = reloads => Ok(()),
        }
    })
}

fn router(gauge: Gauge) -> Router {
    Router::new()
        .route("/", get(async || Html(INDEX)))
        .route("/metrics", get(metrics))
        .route("/-/healthy", get(async || "tcptide is healthy\n"))
        // It serves only once everything is attached.
        .route("/-/ready", get(async || "tcptide is ready\n"))
        .with_state(gauge)
}

async fn metrics(State(gauge): State<Gauge>, headers: HeaderMap) -> Response {
    let (kind, format) = if wants_openmetrics(&headers) {
        (OPENMETRICS, Format::OpenMetrics)
    } else {
        (PROMETHEUS, Format::Prometheus)
    };
    match gauge.scrape().await {
        // Made as it is taken: who reads slowly keeps numbers in memory, and one metric's text.
        Ok(exposition) => {
            let text = exposition.text(format).map(Ok::<_, Infallible>);
            ([(header::CONTENT_TYPE, kind)], Body::from_stream(stream::iter(text))).into_response()
        }
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("no metrics: {why}\n")).into_response(),
    }
}

/// Prometheus asks for OpenMetrics by name; everyone else gets what everyone can read.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|kind| {
            let mut parameters = kind.split(';').map(str::trim);
            parameters.next() == Some("application/openmetrics-text")
                && !parameters.any(|p| {
                    p == "q=0" || p.starts_with("version=") && p != "version=1.0.0" && p != "version=0.0.1"
                })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_only_for_those_who_ask() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_openmetrics(&headers)
        };
        assert!(wants("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
        assert!(wants("application/openmetrics-text; version=0.0.1"));
        assert!(!wants("text/plain"));
        assert!(!wants("*/*"));
        assert!(!wants("application/openmetrics-text; version=2.0.0"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants_openmetrics(&HeaderMap::new()));
    }
}
