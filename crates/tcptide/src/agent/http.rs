//! The HTTP surface: `/metrics`, `/-/healthy`, `/-/ready`.

use std::{
    convert::Infallible,
    future::pending,
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer, Predicate as _,
        predicate::{NotForContentType, SizeAbove},
    },
};

use super::{api, family::Format, gauge::Gauge, reload::Reloader, systemd};
use crate::output::say;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// Shorter answers are not worth it.
const LEAST_TO_COMPRESS: u16 = 1024;

const INDEX: &str = "<!doctype html><title>tcptide</title><h1>tcptide</h1>\
    <ul><li><a href=metrics>Metrics</a><li><a href=api/v1/openapi.json>API</a><li><a href=-/healthy>Health</a></ul>";

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
    // The cheapest level: three quarters of an answer repeat what stands before.
    let gzip = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        // What is told as it happens must not wait for more.
        .compress_when(SizeAbove::new(LEAST_TO_COMPRESS.into()).and(NotForContentType::SSE));
    Router::new()
        .route("/", get(async || Html(INDEX)))
        .route("/metrics", get(metrics))
        .route("/-/healthy", get(async || "tcptide is healthy\n"))
        // It serves only once everything is attached.
        .route("/-/ready", get(async || "tcptide is ready\n"))
        .nest("/api/v1", api::router())
        .layer(gzip)
        .with_state(gauge)
}

async fn metrics(State(gauge): State<Gauge>, headers: HeaderMap) -> Response {
    let start = Instant::now();
    let format = wanted(&headers);
    let (kind, name) = match format {
        Format::OpenMetrics => (OPENMETRICS, "openmetrics"),
        Format::Prometheus => (PROMETHEUS, "prometheus"),
        Format::Protobuf => (PROTOBUF, "protobuf"),
    };
    let encoding = if wants_gzip(&headers) { "gzip" } else { "identity" };
    match gauge.scrape().await {
        // Made as it is taken: who reads slowly keeps numbers in memory, and one metric's text.
        Ok(exposition) => {
            let mut families = exposition.answer(format, &gauge.answered());
            let mut size = 0;
            let body = std::iter::from_fn(move || {
                let Some(family) = families.next() else {
                    gauge.note_answered((name, encoding), start.elapsed(), size);
                    return None;
                };
                size += family.len() as u64;
                Some(Ok::<_, Infallible>(family))
            });
            ([(header::CONTENT_TYPE, kind)], Body::from_stream(stream::iter(body.fuse()))).into_response()
        }
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("no metrics: {why}\n")).into_response(),
    }
}

/// The items of a header that is a list, each with its parameters.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = (&str, Vec<(&str, &str)>)> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        (
            kind,
            parts
                .filter_map(|part| part.split_once('='))
                .map(|(k, v)| (k.trim(), v.trim().trim_matches('"')))
                .collect(),
        )
    })
}

/// How much an item is wanted: 1 where that is not said, 0: not at all.
fn weight(parameters: &[(&str, &str)]) -> f32 {
    let q = parameters.iter().find(|(name, _)| *name == "q");
    q.map_or(1.0, |(_, q)| q.parse().unwrap_or(0.0))
}

/// What is wanted most of what there is; of equals, what was named first. Who names nothing of it gets what everyone can read.
fn wanted(headers: &HeaderMap) -> Format {
    let mut best = (Format::Prometheus, 0.0);
    for (kind, parameters) in items(headers, header::ACCEPT) {
        let is = |name: &str, wanted: &[&str]| {
            parameters.iter().filter(|(key, _)| *key == name).all(|(_, value)| wanted.contains(value))
        };
        let has = |name: &str| parameters.iter().any(|(key, _)| *key == name);
        let format = match kind {
            "application/vnd.google.protobuf"
                if has("proto")
                    && is("proto", &["io.prometheus.client.MetricFamily"])
                    && has("encoding")
                    && is("encoding", &["delimited"]) =>
            {
                Format::Protobuf
            }
            "application/openmetrics-text" if is("version", &["1.0.0", "0.0.1"]) => Format::OpenMetrics,
            "text/plain" if is("version", &["0.0.4"]) => Format::Prometheus,
            "text/*" | "*/*" => Format::Prometheus,
            _ => continue,
        };
        let weight = weight(&parameters);
        if weight > best.1 {
            best = (format, weight);
        }
    }
    best.0
}

/// Whether the layer around this answers with gzip.
fn wants_gzip(headers: &HeaderMap) -> bool {
    let mut wanted = items(headers, header::ACCEPT_ENCODING);
    wanted.any(|(encoding, parameters)| encoding == "gzip" && weight(&parameters) > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accept: &str) -> Format {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        wanted(&headers)
    }

    #[test]
    fn openmetrics_only_for_those_who_ask() {
        let wants = |accept| accepting(accept) == Format::OpenMetrics;
        assert!(wants("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"));
        assert!(wants("application/openmetrics-text; version=0.0.1"));
        assert!(!wants("text/plain"));
        assert!(!wants("*/*"));
        assert!(!wants("application/openmetrics-text; version=2.0.0"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert_eq!(wanted(&HeaderMap::new()), Format::Prometheus);
    }

    #[test]
    fn protobuf_is_for_those_who_want_it_most() {
        let protobuf =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        // As Prometheus 2.42 says it, with native histograms and without, and Prometheus 3.
        let native = format!(
            "{protobuf},application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        assert_eq!(accepting(&native), Format::Protobuf);
        let without = format!(
            "application/openmetrics-text;version=1.0.0,{protobuf};q=0.75,text/plain;version=0.0.4;q=0.5"
        );
        assert_eq!(accepting(&without), Format::OpenMetrics);
        assert_eq!(
            accepting(
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4"
            ),
            Format::OpenMetrics
        );
        for other in [
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;proto=another;encoding=delimited",
        ] {
            assert_eq!(accepting(other), Format::Prometheus, "{other}");
        }
        assert_eq!(accepting(&format!("{protobuf};q=0")), Format::Prometheus);
        assert_eq!(accepting(&format!("text/plain;q=0.2,{protobuf};q=0.3")), Format::Protobuf);
    }
}
