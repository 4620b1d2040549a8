//! `/api/v1`: what the agent knows, as JSON with the names that the commands print. [`ENDPOINTS`] lists it, for the router
//! and for the OpenAPI document.

mod endpoints;
mod live;
mod openapi;
pub(crate) mod query;

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use self::endpoints::ENDPOINTS;

use super::{gauge::Gauge, watches::Unwatched};

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn wrong(text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, text: text.into() }
    }

    fn unwatched(why: &Unwatched) -> Self {
        let status = match why {
            Unwatched::Gone(_) => StatusCode::NOT_FOUND,
            Unwatched::Full => StatusCode::TOO_MANY_REQUESTS,
        };
        Self { status, text: why.to_string() }
    }

    fn failed(text: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, text: text.into() }
    }
}

/// What a refusal says.
#[derive(Debug, Serialize, schemars::JsonSchema)]
struct Said {
    /// What is wrong, and what would be right.
    error: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, json(&Said { error: self.text })).into_response()
    }
}

/// An answer as JSON.
fn json<T: Serialize>(answer: &T) -> Response {
    match serde_json::to_vec(answer) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("no JSON: {error}\n")).into_response(),
    }
}

/// All of it, to be nested under `/api/v1`.
pub(super) fn router() -> Router<Gauge> {
    ENDPOINTS
        .iter()
        .fold(Router::new(), |router, endpoint| router.route(endpoint.path, (endpoint.route)()))
        .fallback(async || {
            let known: Vec<_> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
            let text = format!("there is nothing here; below /api/v1 there are {}", known.join(", "));
            Refusal { status: StatusCode::NOT_FOUND, text }
        })
}
