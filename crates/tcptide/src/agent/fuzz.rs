//! What comes over HTTP, and the files of the web configuration, as bytes.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request, Uri},
};
use tower::ServiceExt as _;

use super::{gauge::Gauge, http, web};

pub use super::web::fuzz::{certificate, web_config};

/// Asks for the path in the first line with the headers in the others: `name: value`. There is no gauge, so that all but the
/// numbers of an answer are made. Whether it is a request.
pub fn http(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let Some(Ok(uri)) = lines.next().map(Uri::try_from) else { return false };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = uri;
    for line in lines {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            request.headers_mut().append(name, value);
        }
    }
    web::fuzz::users(request.headers());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return false };
    runtime.block_on(async { http::router(Gauge::nobody()).oneshot(request).await.is_ok() })
}
