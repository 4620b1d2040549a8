//! The HTTP surface: `/metrics`, `/-/healthy`, `/-/ready`, the API and the page.

use std::{convert::Infallible, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer, Predicate as _,
        predicate::{NotForContentType, SizeAbove},
    },
};

use super::{api, family::Format, gauge::Gauge, page};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// Shorter answers are not worth it.
const LEAST_TO_COMPRESS: u16 = 1024;

/// What is answered where.
pub(crate) fn router(gauge: Gauge) -> Router {
    // The cheapest level: three quarters of an answer repeat what stands before.
    let gzip = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        // What is told as it happens must not wait for more.
        .compress_when(SizeAbove::new(LEAST_TO_COMPRESS.into()).and(NotForContentType::SSE));
    Router::new()
        .merge(page::router())
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
