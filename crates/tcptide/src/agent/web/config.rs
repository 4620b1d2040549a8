//! The web configuration file, in the format of Prometheus' exporter-toolkit
//! (<https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md>).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bcrypt::HashParts;
use serde::Deserialize;

/// Users, and the bcrypt hashes of their passwords.
pub(super) type Users = BTreeMap<String, String>;

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebConfig {
    pub(super) tls_server_config: Option<TlsSettings>,
    http_server_config: Option<HttpSettings>,
    basic_auth_users: Option<Users>,
}

/// How TLS is spoken, if it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsSettings {
    pub(super) cert: Option<String>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) key: Option<String>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) client_ca: Option<String>,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) client_auth_type: ClientAuth,
    pub(super) client_allowed_sans: Vec<String>,
    pub(super) min_version: Option<String>,
    pub(super) max_version: Option<String>,
    pub(super) cipher_suites: Vec<String>,
    pub(super) curve_preferences: Vec<String>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
}

/// What is asked of clients' certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum ClientAuth {
    /// Nothing.
    #[default]
    NoClientCert,
    /// They are asked for, and may be missing or anybody's.
    RequestClientCert,
    /// There has to be one, anybody's.
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    /// There need not be one, but it has to be good.
    VerifyClientCertIfGiven,
    /// There has to be one, and a good one.
    RequireAndVerifyClientCert,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpSettings {
    /// That it is allowed: HTTP/1.1 is what is spoken in either case.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: BTreeMap<String, String>,
}

/// The headers that may be set, in lower case, and the values that they may have, if not any.
const HEADERS: &[(&str, &[&str])] = &[
    ("content-security-policy", &[]),
    ("strict-transport-security", &[]),
    ("x-content-type-options", &["nosniff"]),
    ("x-frame-options", &["deny", "sameorigin"]),
    ("x-xss-protection", &[]),
];

/// The dearest hash: each step doubles the time for one password, which is seconds here.
const MOST_COST: u32 = 16;

impl WebConfig {
    /// Reads the text of a file. An error names the key.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        // An empty file is no mapping, and asks for nothing.
        let config: Option<Self> =
            // Without the lines around it, in which there may be keys and hashes.
            serde_saphyr::from_str(text).map_err(|error| anyhow!("{}", error.without_snippet()))?;
        Ok(config.unwrap_or_default())
    }

    /// The headers that every answer gets.
    pub(super) fn headers(&self) -> anyhow::Result<HeaderMap> {
        let all = self.http_server_config.iter().flat_map(|http| &http.headers);
        all.map(|(name, value)| {
            header(name, value).with_context(|| format!("http_server_config.headers.{name}"))
        })
        .collect()
    }

    /// Those who may ask, if not anybody may.
    pub(super) fn users(self) -> anyhow::Result<Option<Users>> {
        let users = self.basic_auth_users.unwrap_or_default();
        for (user, hash) in &users {
            check(user, hash).with_context(|| format!("basic_auth_users.{user}"))?;
        }
        Ok((!users.is_empty()).then_some(users))
    }
}

fn header(name: &str, value: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let lower = name.to_ascii_lowercase();
    let Some((known, values)) = HEADERS.iter().find(|(known, _)| **known == lower) else {
        let names: Vec<_> = HEADERS.iter().map(|(known, _)| *known).collect();
        bail!("this header cannot be set; those that can are {}", names.join(", "));
    };
    let is_allowed = values.is_empty() || values.contains(&value.to_ascii_lowercase().as_str());
    ensure!(is_allowed, "'{value}' is none of its values: {}", values.join(", "));
    let value =
        HeaderValue::from_str(value).with_context(|| format!("'{value}' cannot be sent in a header"))?;
    Ok((HeaderName::from_static(known), value))
}

/// No hash is said in an error.
fn check(user: &str, hash: &str) -> anyhow::Result<()> {
    ensure!(!user.is_empty() && !user.contains(':'), "a user's name is not empty, and has no colon");
    let hash: HashParts = hash.parse().context("no bcrypt hash, as `htpasswd -nB USER` prints one")?;
    let cost = hash.get_cost();
    ensure!((4..=MOST_COST).contains(&cost), "the hash has cost {cost}, and 4 to {MOST_COST} is good here");
    Ok(())
}

/// A path in the file is relative to the file.
pub(super) fn relative_to(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `test`.
    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuoD8yw7MmybLKVooaTGGZAt3HXugv2.a";

    fn error(text: &str) -> String {
        let config = match WebConfig::parse(text) {
            Ok(config) => config,
            Err(error) => return format!("{error:#}"),
        };
        let headers = config.headers().err();
        format!("{:#}", headers.or_else(|| config.users().err()).expect(text))
    }

    #[test]
    fn all_that_the_format_has_is_read() {
        let config = WebConfig::parse(&format!(
            "tls_server_config:\n  cert_file: a.pem\n  key_file: /b.pem\n  client_auth_type: RequireAndVerifyClientCert\n\
             \x20 client_ca_file: ca.pem\n  client_allowed_sans: [a.example, 10.0.0.1]\n  min_version: TLS12\n\
             \x20 max_version: TLS13\n  cipher_suites:\n    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\n\
             \x20 prefer_server_cipher_suites: false\n  curve_preferences: [X25519]\n\
             http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n    Content-Security-Policy: \"default-src 'self'\"\n\
             basic_auth_users:\n  alice: {HASH}\n  bob: {HASH}\n"
        ))
        .unwrap();
        let tls = config.tls_server_config.as_ref().unwrap();
        assert_eq!(tls.client_auth_type, ClientAuth::RequireAndVerifyClientCert);
        assert_eq!(tls.client_allowed_sans, ["a.example", "10.0.0.1"]);
        assert_eq!(tls.prefer_server_cipher_suites, Some(false));
        let headers = config.headers().unwrap();
        assert_eq!((headers.len(), headers["x-frame-options"].to_str().unwrap()), (2, "deny"));
        assert_eq!(config.users().unwrap().unwrap().len(), 2);
    }

    #[test]
    fn nothing_is_asked_for_by_an_empty_file() {
        for text in
            ["", "# a comment\n", "{}", "basic_auth_users:\n", "tls_server_config:\nhttp_server_config:\n"]
        {
            let config = WebConfig::parse(text).unwrap();
            assert!(config.tls_server_config.is_none() && config.headers().unwrap().is_empty(), "{text}");
            assert_eq!(config.users().unwrap(), None);
        }
    }

    #[test]
    fn an_error_names_the_key_and_what_is_wrong() {
        for (text, words) in [
            ("basic_auth_user:\n  a: b\n", ["basic_auth_user", "basic_auth_users"]),
            ("tls_server_config:\n  cert_fil: x\n", ["cert_fil", "cert_file"]),
            ("tls_server_config:\n  client_auth_type: Maybe\n", ["Maybe", "RequireAndVerifyClientCert"]),
            ("http_server_config:\n  headers:\n    Server: x\n", ["headers.Server", "x-frame-options"]),
            (
                "http_server_config:\n  headers:\n    X-Frame-Options: perhaps\n",
                ["X-Frame-Options", "sameorigin"],
            ),
            ("basic_auth_users:\n  alice: secret\n", ["basic_auth_users.alice", "htpasswd"]),
            ("basic_auth_users: [alice]\n", ["line 1, column 19", "mapping"]),
            ("[1, 2", ["line 1", ""]),
        ] {
            let error = error(text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let dear = HASH.replace("$04$", "$30$");
        assert!(error(&format!("basic_auth_users:\n  alice: {dear}\n")).contains("cost 30"));
    }
}
