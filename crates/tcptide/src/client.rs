//! A running agent, asked through its API: `--connect`.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{ArgMatches, CommandFactory as _, parser::ValueSource};
use model::connection::Connection;
use rustls::{
    AlertDescription as Alert,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, de::DeserializeOwned};
use ureq::{
    Body,
    http::{Response, Uri},
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig},
};

use crate::{agent::query, output::say, session::stop_flag};

/// Where an agent serves that was not told otherwise.
pub(crate) const USUAL: &str = "http://127.0.0.1:9836";
/// How long an agent may take to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often who follows events does what else there is to do.
const PERIOD: Duration = Duration::from_millis(50);
/// An answer up to this is read at once, bytes.
const AT_ONCE: u64 = 16 << 20;
/// How long an event may be on its way: an agent fetches them every 50 ms, and tells them with the next ones where far ends
/// are known.
const ON_THEIR_WAY: Duration = Duration::from_millis(200);
/// The options that are about whom to ask, and about what becomes of the answer.
const NEVER_ASKED: &[&str] = &["connect", "connect-ca", "connect-cert", "connect-key", "output"];

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

/// Events that are followed.
pub(crate) struct Events {
    told: mpsc::Receiver<Told>,
    stop: Arc<AtomicBool>,
    lost: u64,
    has_ended: bool,
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
        let path = |name| value(name).map(Path::new);
        let who = path("connect-cert").zip(path("connect-key"));
        if who.is_some() && !url.starts_with("https:") {
            bail!("--connect-cert: {url} is no https:// address, and nobody asks for a certificate there");
        }
        let http = http(path("connect-ca"), who)?;
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
        let mut reader = self.ask(what, takes, local, more)?.into_body().into_reader();
        // Text in memory is read faster; but there may be hundreds of megabytes of it.
        let mut first = Vec::new();
        (&mut reader).take(AT_ONCE).read_to_end(&mut first).context("reading the agent's answer")?;
        let answer = if (first.len() as u64) < AT_ONCE {
            serde_json::from_slice(&first)
        } else {
            serde_json::from_reader(BufReader::new(first.as_slice().chain(reader)))
        };
        answer.with_context(|| {
            format!("the answer of the agent at {} cannot be read; is it of another version?", self.url)
        })
    }

    /// Follows connections as they open, fail and close, with those of the command's options that this takes. What happens
    /// from now on is told; SIGINT and SIGTERM end it.
    pub(crate) fn events(&self, local: &[&str], more: &[(&str, &str)]) -> anyhow::Result<Events> {
        let stop = stop_flag()?;
        let told = self.follow("events", &query::Events::command(), local, more)?;
        say!("attached to the agent at {}; Ctrl-C ends", self.url);
        Ok(Events { told, stop, lost: 0, has_ended: false })
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

    /// An error if there is an option that cannot be asked of what `takes` these.
    pub(crate) fn insist_on(&self, takes: &clap::Command, local: &[&str]) -> anyhow::Result<()> {
        let is_taken = |given: &Given| takes.get_arguments().any(|arg| arg.get_long() == Some(&given.name));
        match self.asked(local).find(|given| !is_taken(given)) {
            Some(Given { name, .. }) => {
                bail!("--{name} cannot be asked of a running agent: leave it out, or --connect")
            }
            None => Ok(()),
        }
    }

    /// The options that were given and are not this side's.
    fn asked(&self, local: &[&str]) -> impl Iterator<Item = &Given> {
        let is_asked = move |given: &&Given| {
            let name = given.name.as_str();
            !local.contains(&name) && !NEVER_ASKED.contains(&name)
        };
        self.given.iter().filter(is_asked)
    }

    fn ask(
        &self,
        what: &str,
        takes: &clap::Command,
        local: &[&str],
        more: &[(&str, &str)],
    ) -> anyhow::Result<Response<Body>> {
        self.insist_on(takes, local)?;
        let mut request = self.http.get(format!("{}/api/v1/{what}", self.url));
        for Given { name, values } in self.asked(local) {
            request = request.query(name.replace('-', "_"), values.join(","));
        }
        for (name, value) in more {
            request = request.query(*name, *value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut answer = request.call().map_err(|error| self.cannot_ask(&error))?;
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

    /// Why there was no answer, with what to do.
    fn cannot_ask(&self, error: &ureq::Error) -> anyhow::Error {
        let url = &self.url;
        if !url.starts_with("https:") || !is_about_certificate(error) {
            anyhow::anyhow!("cannot ask the agent at {url}: {error}; `tcptide agent` is one")
        } else if self.has("connect-cert") {
            anyhow::anyhow!("the agent at {url} seems not to take the certificate in --connect-cert: {error}")
        } else {
            anyhow::anyhow!(
                "the agent at {url} turned this side away: {error}; it may want a client's certificate: \
                 --connect-cert FILE --connect-key FILE"
            )
        }
    }
}

impl Events {
    /// Calls `each` with the events and `now_and_then` in between, until the time is over, somebody or the agent ends it, or
    /// one of them fails.
    pub(crate) fn each(
        &mut self,
        duration: Option<Duration>,
        mut each: impl FnMut(&Connection) -> anyhow::Result<()>,
        mut now_and_then: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = duration.map(|duration| Instant::now() + duration);
        let mut last = Instant::now();
        loop {
            let now = Instant::now();
            if self.has_ended || self.stop.load(Ordering::Relaxed) || end.is_some_and(|end| now >= end) {
                break;
            }
            let next = end.map_or(last + PERIOD, |end| end.min(last + PERIOD));
            self.take(next, &mut each)?;
            if last.elapsed() >= PERIOD {
                last = Instant::now();
                now_and_then()?;
            }
        }
        now_and_then()
    }

    /// What happened up to now, and was still on its way.
    pub(crate) fn rest(
        &mut self,
        mut each: impl FnMut(&Connection) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + ON_THEIR_WAY;
        while !self.has_ended && Instant::now() < end {
            self.take(end, &mut each)?;
        }
        Ok(())
    }

    /// Whether the agent ended them.
    pub(crate) fn have_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether all that happened was told.
    pub(crate) fn are_complete(&self) -> bool {
        self.lost == 0 && !self.has_ended
    }

    /// Says what was lost. An error if it was the agent that ended it.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        if self.lost > 0 {
            say!("{} events were lost: this side reads too slowly", self.lost);
        }
        if self.has_ended {
            bail!("the agent ended the stream");
        }
        Ok(())
    }

    /// Takes in what comes next, if it comes by then.
    fn take(
        &mut self,
        by: Instant,
        each: &mut impl FnMut(&Connection) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self.told.recv_timeout(by.saturating_duration_since(Instant::now())) {
            Ok(Told::Event(text)) => {
                each(&serde_json::from_str(&text).context("reading an event of the agent")?)
            }
            Ok(Told::Lost(count)) => {
                self.lost += count;
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                self.has_ended = true;
                Ok(())
            }
        }
    }
}

/// Waits for so long, or until a signal comes.
pub(crate) fn wait(duration: Duration, stop: &AtomicBool) {
    let end = Instant::now() + duration;
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        thread::sleep(PERIOD.min(end.saturating_duration_since(Instant::now())));
    }
}

/// Whether the other side may have ended TLS for a certificate that it got or missed. Of its words nothing is heard where
/// they cross with this side's own.
fn is_about_certificate(error: &ureq::Error) -> bool {
    let error = match error {
        ureq::Error::Rustls(error) => error,
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(error) => error,
            None => return matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        },
        _ => return false,
    };
    matches!(
        error,
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
                | Alert::HandshakeFailure
        )
    )
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

fn http(ca: Option<&Path>, who: Option<(&Path, &Path)>) -> anyhow::Result<ureq::Agent> {
    let provider = Arc::new(ring::default_provider());
    let roots = match ca {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            RootCerts::from(certificates("--connect-ca", path)?.iter().map(own).collect::<Vec<_>>())
        }
    };
    let who = who.map(|(cert, key)| client_cert(cert, key, &provider)).transpose()?;
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .client_cert(who)
        .unversioned_rustls_crypto_provider(provider)
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

/// Who this side is, once it is known that the key is that of the certificate.
fn client_cert(cert: &Path, key: &Path, provider: &CryptoProvider) -> anyhow::Result<ClientCert> {
    let chain = certificates("--connect-cert", cert)?;
    let name = || format!("--connect-key {}", key.display());
    let text = std::fs::read(key).with_context(name)?;
    let no_key = || format!("{}: no private key in it (PEM without a passphrase is expected)", name());
    let der = PrivateKeyDer::from_pem_slice(&text).with_context(no_key)?;
    CertifiedKey::from_der(chain.clone(), der, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            anyhow::anyhow!(
                "{} is not the key of the certificate in --connect-cert {}",
                name(),
                cert.display()
            )
        }
        error => anyhow::anyhow!("--connect-cert {}, {}: {error}", cert.display(), name()),
    })?;
    let chain: Vec<_> = chain.iter().map(own).collect();
    Ok(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(&text).with_context(no_key)?))
}

/// The certificates in an option's file.
fn certificates(option: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let name = || format!("{option} {}", path.display());
    let text = std::fs::read(path).with_context(name)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().with_context(name)?;
    if all.is_empty() {
        bail!("{}: no certificate in it (PEM is expected)", name());
    }
    Ok(all)
}

fn own(der: &CertificateDer<'_>) -> Certificate<'static> {
    Certificate::from_der(der).to_owned()
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
