//! A running agent, asked through its API: `--connect`.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{ArgMatches, parser::ValueSource};
use serde::{Deserialize, de::DeserializeOwned};
use ureq::{
    Body,
    http::{Response, Uri},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

/// Where an agent serves that was not told otherwise.
pub(crate) const USUAL: &str = "http://127.0.0.1:9836";
/// How long an agent may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent, and what of the command line is to be asked of it.
pub(crate) struct Remote {
    /// Without a slash at the end.
    url: String,
    authorization: Option<String>,
    http: ureq::Agent,
    given: Vec<Given>,
}

/// An option that was given.
struct Given {
    name: String,
    values: Vec<String>,
}

/// What an agent says that refuses.
#[derive(Deserialize)]
struct Said {
    error: String,
}

/// What comes on a stream.
pub(crate) enum Told {
    /// An event's data.
    Event(String),
    /// There was no room for so many.
    Lost(u64),
}

impl Remote {
    /// The agent that the options of a command name, if they name one.
    pub(crate) fn of(matches: &ArgMatches, command: &clap::Command) -> anyhow::Result<Option<Self>> {
        let mut given = Vec::new();
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            let Some(name) = arg.get_long() else { continue };
            if matches.value_source(id) == Some(ValueSource::CommandLine) {
                let raw = matches.get_raw(id).into_iter().flatten();
                let values = raw.map(|value| value.to_string_lossy().into_owned()).collect();
                given.push(Given { name: name.to_owned(), values });
            }
        }
        let value = |name: &str| {
            let given = given.iter().find(|given| given.name == name)?;
            given.values.first().map(String::as_str)
        };
        // Only an agent remembers.
        let url = value("connect").or_else(|| value("since").map(|_| USUAL));
        let Some(url) = url else { return Ok(None) };
        let (url, authorization) = parts(url)?;
        let http = http(value("connect-ca").map(Path::new))?;
        Ok(Some(Self { url, authorization, http, given }))
    }

    /// Whether an option was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.given.iter().any(|given| given.name == name)
    }

    /// Asks for something below `/api/v1`, with those of the command's options that it takes; `local` ones are this side's.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        what: &str,
        takes: &clap::Command,
        local: &[&str],
        more: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let answer = self.ask(what, takes, local, more)?;
        let reader = BufReader::new(answer.into_body().into_reader());
        serde_json::from_reader(reader).with_context(|| {
            format!("the answer of the agent at {} cannot be read; is it of another version?", self.url)
        })
    }

    /// Follows a stream; lines come through the channel until the agent ends it.
    pub(crate) fn follow(
        &self,
        what: &str,
        takes: &clap::Command,
        local: &[&str],
        more: &[(&str, &str)],
    ) -> anyhow::Result<mpsc::Receiver<Told>> {
        let answer = self.ask(what, takes, local, more)?;
        let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
        // The first line says that from now on nothing is missed.
        lines.next().context("the agent ended the stream")?.context("reading the agent's stream")?;
        let (to, told) = mpsc::sync_channel(1024);
        thread::Builder::new().name("agent".to_owned()).spawn(move || {
            let mut event = String::new();
            for line in lines.map_while(Result::ok) {
                let next = if let Some(name) = line.strip_prefix("event:") {
                    name.trim().clone_into(&mut event);
                    None
                } else if let Some(data) = line.strip_prefix("data:") {
                    match event.as_str() {
                        "lost" => data.trim().parse().ok().map(Told::Lost),
                        _ => Some(Told::Event(data.trim().to_owned())),
                    }
                } else {
                    event.clear();
                    None
                };
                if next.is_some_and(|told| to.send(told).is_err()) {
                    return;
                }
            }
        })?;
        Ok(told)
    }

    fn ask(
        &self,
        what: &str,
        takes: &clap::Command,
        local: &[&str],
        more: &[(&str, &str)],
    ) -> anyhow::Result<Response<Body>> {
        let mut request = self.http.get(format!("{}/api/v1/{what}", self.url));
        for Given { name, values } in &self.given {
            if local.contains(&name.as_str()) || ["connect", "connect-ca", "output"].contains(&name.as_str())
            {
                continue;
            }
            if !takes.get_arguments().any(|arg| arg.get_long() == Some(name)) {
                bail!("--{name} cannot be asked of a running agent: leave it out, or --connect");
            }
            request = request.query(name.replace('-', "_"), values.join(","));
        }
        for (name, value) in more {
            request = request.query(*name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut answer = request.call().map_err(|error| {
            anyhow::anyhow!("cannot ask the agent at {}: {error}; `tcptide agent` is one", self.url)
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str::<Said>(&text) {
            Ok(said) => bail!("the agent at {} answers: {}", self.url, said.error),
            Err(_) if status.as_u16() == 401 => {
                bail!("the agent at {} wants a user and a password: http://USER:PASSWORD@HOST:PORT", self.url)
            }
            Err(_) => bail!("{} answers {status}: is it an agent of tcptide, with an API?", self.url),
        }
    }
}

/// The address without user and password, and these as a header.
fn parts(url: &str) -> anyhow::Result<(String, Option<String>)> {
    let wrong = || format!("--connect {url}: not an address such as {USUAL}");
    let parsed: Uri = url.parse().with_context(wrong)?;
    let (Some("http" | "https"), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        bail!(wrong());
    };
    let text = authority.as_str();
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    let scheme = parsed.scheme_str().unwrap_or("http");
    let path = parsed.path().trim_end_matches('/');
    let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(decode(user))));
    Ok((format!("{scheme}://{host}{path}"), authorization))
}

/// What stands for itself, and `%40` for `@`.
fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn http(ca: Option<&Path>) -> anyhow::Result<ureq::Agent> {
    let roots = match ca {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("--connect-ca {}", path.display()))?;
            let certificates: Vec<Certificate<'static>> = parse_pem(&text)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                bail!("--connect-ca {}: no certificate in it (PEM is expected)", path.display());
            }
            RootCerts::from(certificates)
        }
    };
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .tls_config(tls)
        .build();
    Ok(config.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let (url, authorization) = parts("http://127.0.0.1:9836/").unwrap();
        assert_eq!((url.as_str(), authorization), (USUAL, None));
        let (url, authorization) = parts("https://anna:p%40ss@host:1/behind/").unwrap();
        assert_eq!(url, "https://host:1/behind");
        // anna:p@ss
        assert_eq!(authorization.as_deref(), Some("Basic YW5uYTpwQHNz"));
        for wrong in ["127.0.0.1:9836", "ftp://a", "http://", "", "/api"] {
            let error = format!("{:#}", parts(wrong).unwrap_err());
            assert!(error.contains(USUAL), "{error}");
        }
    }
}
