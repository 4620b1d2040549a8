//! See `agent::fuzz`.
// That is how a finding is told.
#![allow(clippy::missing_panics_doc)]

use std::path::Path;

use axum::http::{HeaderMap, header};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{config::WebConfig, tls, users};

/// Reads a web configuration; every file that it names has the same bytes. Whether it is one.
pub fn web_config(bytes: &[u8]) -> bool {
    let Some(config) = str::from_utf8(bytes).ok().and_then(|text| WebConfig::parse(text).ok()) else {
        return false;
    };
    if let Some(settings) = &config.tls_server_config {
        drop(tls::server(settings, &mut |_: &Path| Ok(bytes.to_vec())));
    }
    config.headers().is_ok() & config.users().is_ok()
}

/// Reads the names in a client's certificate. Whether there are any.
pub fn certificate(bytes: &[u8]) -> bool {
    tls::names(&CertificateDer::from(bytes)).is_ok_and(|names| !names.is_empty())
}

/// Reads who asks.
pub(in crate::agent) fn users(headers: &HeaderMap) {
    for value in headers.get_all(header::AUTHORIZATION) {
        if let Some((user, _)) = users::basic(value.as_bytes()) {
            assert!(!user.contains(':'));
        }
    }
}
