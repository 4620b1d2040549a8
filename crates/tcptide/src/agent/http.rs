//! The HTTP surface: `/metrics`, `/-/healthy`, `/-/ready`.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures_util::stream;

use super::{gauge::Gauge, text::Format};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

const INDEX: &str = "<!doctype html><title>tcptide</title><h1>tcptide</h1>\
    <ul><li><a href=metrics>Metrics</a><li><a href=-/healthy>Health</a></ul>";

/// What is answered where.
pub(crate) fn router(gauge: Gauge) -> Router {
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
