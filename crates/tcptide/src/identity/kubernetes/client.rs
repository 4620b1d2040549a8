//! The API server: how it is found, what is asked of it, and what its refusals mean.
//!
//! Every answer is bounded in time and in size. A client lives until something fails; the next one reads tokens and
//! certificates anew.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::io::{AsyncBufReadExt, AsyncReadExt};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use kube::api::{GetParams, ListParams, WatchParams};
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{Request, WatchEvent};
use kube::{Client, Config};
use rustix::system::uname;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};
use tower::{BoxError, ServiceBuilder};

use super::objects::{List, Version};

/// The longest answer or event taken, in bytes. A page of EndpointSlices has some megabytes.
const LONGEST_ANSWER: u64 = 64 << 20;
/// The longest message of a server that is passed on, in characters.
const LONGEST_MESSAGE: usize = 300;
/// Where a pod finds the token of its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// From inside a pod, with its service account.
    Cluster,
    /// By a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Which API server to ask, and for which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    way: Way,
    /// The name of the own node.
    pub(super) node: String,
}

impl Access {
    /// With `kubeconfig` as that says, else with the service account where this is a pod that has one; none
    /// elsewhere. Without `node`, that is `NODE_NAME` of the environment or the host's name.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub(crate) fn find(kubeconfig: Option<&Path>, node: Option<&str>) -> anyhow::Result<Option<Self>> {
        let way = match kubeconfig {
            Some(path) => {
                Kubeconfig::read_from(path)
                    .with_context(|| format!("--kubeconfig {}: not usable", path.display()))?;
                Way::Kubeconfig(path.to_owned())
            }
            None if env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists() => {
                Way::Cluster
            }
            None => return Ok(None),
        };
        let given = node.map(str::to_owned).or_else(|| env::var("NODE_NAME").ok());
        // The kubelet takes the host's name in lower case.
        let host = || uname().nodename().to_string_lossy().to_lowercase();
        let node = given.filter(|node| !node.is_empty()).unwrap_or_else(host);
        Ok(Some(Self { way, node }))
    }

    async fn config(&self) -> anyhow::Result<Config> {
        match &self.way {
            Way::Cluster => Config::incluster().context("as a pod of the cluster"),
            Way::Kubeconfig(path) => {
                let file = Kubeconfig::read_from(path).context("reading the kubeconfig")?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.context("taking the kubeconfig")
            }
        }
    }

    /// Makes a client, and says where the server is.
    pub(super) async fn client(&self, request: Duration) -> anyhow::Result<(Api, String)> {
        let config = self.config().await?;
        if let Some(proxy) = &config.proxy_url {
            bail!("the kubeconfig wants the proxy {proxy}: proxies are not supported");
        }
        let url = config.cluster_url.to_string();
        // Not kube's own stack: that writes every failure to the log, and tries again by itself for minutes.
        let connector = config.rustls_https_connector().context("preparing TLS")?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().context("taking the credentials")?)
            .layer(config.extra_headers_layer().context("taking the credentials")?)
            .map_err(BoxError::from)
            .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
        let client = Client::new(service, config.default_namespace);
        Ok((Api { client, request }, url.trim_end_matches('/').to_owned()))
    }
}

/// Why something was not answered.
#[derive(Debug)]
pub(super) enum Failure {
    /// The version asked for is too old, or of another history: list again.
    Gone,
    /// The server does not let us, or does not have it; it may answer other questions.
    Denied(String),
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// A kind of objects of the API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Such as `pods`.
    pub(super) plural: &'static str,
    /// Its API group, empty for the core.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
}

impl Kind {
    fn path(self, namespace: Option<&str>) -> String {
        let Self { plural, group, version } = self;
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let namespace = namespace.map(|name| format!("namespaces/{name}/")).unwrap_or_default();
        format!("{root}/{version}/{namespace}{plural}")
    }

    fn denied(self, verb: &str, status: &kube::core::Status) -> Option<Failure> {
        let Self { plural, group, version } = self;
        let group =
            if group.is_empty() { "the core API group".to_owned() } else { format!("API group {group}") };
        Some(Failure::Denied(match status.code {
            403 => format!(
                "not allowed to {verb} {plural}: grant `{verb}` on `{plural}` of {group}, as the ClusterRole in \
                 docs/kubernetes.md does ({})",
                short(&status.message)
            ),
            404 if verb != "get" => format!("this server has no {plural} of {group} {version}"),
            _ => return None,
        }))
    }
}

/// A server that is asked.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    request: Duration,
}

type Stream = std::pin::Pin<Box<dyn futures_util::io::AsyncBufRead + Send>>;

impl Api {
    /// What the server calls its version; empty if that is nobody's business.
    pub(super) async fn version(&self) -> anyhow::Result<String> {
        let request = Request::new("").get("version", &GetParams::default())?;
        match self.json::<Version>(request).await {
            Ok(version) => Ok(version.git_version),
            Err(Refusal::Status(status)) if status.code == 403 => Ok(String::new()),
            Err(refusal) => Err(refusal.into_error().context("asking for its version")),
        }
    }

    /// One page of a list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        kind: Kind,
        params: &ListParams,
    ) -> Result<List<T>, Failure> {
        let request = Request::new(kind.path(None)).list(params).map_err(anyhow::Error::new)?;
        let answer = self.json(request).await;
        answer.map_err(|refusal| refusal.into_failure(kind, "list"))
    }

    /// One object; none if there is no such one.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        let request = Request::new(kind.path(Some(namespace))).get_metadata(name, &GetParams::default());
        match self.json(request.map_err(anyhow::Error::new)?).await {
            Ok(object) => Ok(Some(object)),
            Err(Refusal::Status(status)) if status.code == 404 => Ok(None),
            Err(refusal) => Err(refusal.into_failure(kind, "get")),
        }
    }

    /// What happens after `version`, for `seconds` at most.
    pub(super) async fn watch(
        &self,
        kind: Kind,
        selector: Option<&str>,
        version: &str,
        seconds: u32,
    ) -> Result<Events, Failure> {
        let mut params = WatchParams::default().timeout(seconds);
        if let Some(selector) = selector {
            params = params.fields(selector);
        }
        let request = Request::new(kind.path(None)).watch(&params, version).map_err(anyhow::Error::new)?;
        let stream = self.stream(request).await.map_err(|refusal| refusal.into_failure(kind, "watch"))?;
        let until = Instant::now() + Duration::from_secs(seconds.into()) + self.request;
        Ok(Events { stream, until, kind, line: Vec::new() })
    }

    async fn stream(&self, request: Asked) -> Result<Stream, Refusal> {
        match timeout(self.request, self.client.request_stream(request)).await {
            Ok(Ok(stream)) => Ok(Box::pin(stream)),
            Ok(Err(kube::Error::Api(status))) => Err(Refusal::Status(status)),
            Ok(Err(error)) => Err(Refusal::Error(plain(error))),
            Err(_) => Err(Refusal::Error(anyhow!("no answer within {:?}", self.request))),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: Asked) -> Result<T, Refusal> {
        let stream = self.stream(request).await?;
        let mut text = Vec::new();
        let read = async { stream.take(LONGEST_ANSWER).read_to_end(&mut text).await };
        match timeout(self.request, read).await {
            Ok(Ok(read)) if read as u64 >= LONGEST_ANSWER => Err(Refusal::Error(anyhow!(
                "an answer of more than {} MiB is not taken",
                LONGEST_ANSWER >> 20
            ))),
            Ok(Ok(_)) => serde_json::from_slice(&text)
                .map_err(|error| Refusal::Error(anyhow!("an answer that is not Kubernetes': {error}"))),
            Ok(Err(error)) => Err(Refusal::Error(anyhow!("the answer broke off: {error}"))),
            Err(_) => Err(Refusal::Error(anyhow!("no whole answer within {:?}", self.request))),
        }
    }
}

/// A request that [`Request`] made.
type Asked = axum::http::Request<Vec<u8>>;

/// What came instead of an answer.
enum Refusal {
    Status(Box<kube::core::Status>),
    Error(anyhow::Error),
}

impl Refusal {
    fn into_error(self) -> anyhow::Error {
        match self {
            Self::Status(status) if status.code == 401 => anyhow!(
                "the server does not accept the credentials (401 {}); they are read again at each try: see that the \
                 token or the certificate has not expired",
                short(&status.message)
            ),
            Self::Status(status) => anyhow!("the server answered {} {}", status.code, short(&status.message)),
            Self::Error(error) => error,
        }
    }

    fn into_failure(self, kind: Kind, verb: &str) -> Failure {
        if let Self::Status(status) = &self {
            // A server whose store was put back to an earlier state is behind what was seen of it.
            if status.code == 410 || status.message.contains("Too large resource version") {
                return Failure::Gone;
            }
            if let Some(denied) = kind.denied(verb, status) {
                return denied;
            }
        }
        Failure::Failed(self.into_error().context(format!("{verb} {}", kind.plural)))
    }
}

/// The events of a watch.
pub(super) struct Events {
    stream: Stream,
    until: Instant,
    kind: Kind,
    line: Vec<u8>,
}

/// How a watch goes on.
pub(super) enum Next<T> {
    Event(WatchEvent<T>),
    /// It is over, or the connection broke: what comes is told by the next one.
    End,
}

impl Events {
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Next<T>, Failure> {
        let Self { stream, until, kind, line } = self;
        line.clear();
        let read = async { stream.take(LONGEST_ANSWER).read_until(b'\n', line).await };
        match timeout_at(*until, read).await {
            Ok(Ok(_)) if line.ends_with(b"\n") => {}
            Ok(Ok(read)) if read as u64 >= LONGEST_ANSWER => {
                let most = LONGEST_ANSWER >> 20;
                return Err(
                    anyhow!("watch {}: an event of more than {most} MiB is not taken", kind.plural).into()
                );
            }
            // A silent server was told when to end it, and did not: the next request will show whether it is there.
            end => {
                tracing::debug!("watch {}: over: {end:?}", kind.plural);
                return Ok(Next::End);
            }
        }
        match serde_json::from_slice(line) {
            Ok(WatchEvent::Error(status)) if status.code == 410 => Err(Failure::Gone),
            Ok(WatchEvent::Error(status)) => Err(Refusal::Status(status).into_failure(*kind, "watch")),
            Ok(event) => Ok(Next::Event(event)),
            Err(error) => {
                Err(anyhow!("watch {}: an event that is not Kubernetes': {error}", kind.plural).into())
            }
        }
    }
}

/// The beginning of what a server said: some answer with whole web pages.
fn short(message: &str) -> String {
    let mut short: String = message.chars().take(LONGEST_MESSAGE).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    short
}

/// An error without the words of the layers that only pass it on.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Service(error) => anyhow!(error),
        error => error.into(),
    }
}
