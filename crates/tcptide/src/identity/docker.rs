//! Docker's API, which Podman answers too, over a unix socket.
//!
//! Containers are listed, then events listened to, so that even a container of 100 ms gets its name: a create
//! event carries name, image and labels. Events are asked for from before the list was, so none falls between.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bollard::models::{ContainerSummary, EventMessage};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use model::container::{Metadata, Runtime};

use super::registry::RuntimeState;
use super::runtime::{Watcher, every};

/// Event names of Docker and, where they differ, of Podman.
const EVENTS: [&str; 5] = ["create", "start", "rename", "destroy", "remove"];
/// Attributes of an event that are no labels.
const NO_LABELS: [&str; 8] =
    ["image", "name", "oldName", "exitCode", "containerExitCode", "signal", "execID", "podId"];

impl Watcher {
    /// Docker or Podman, once its containers are listed, and when that began, in seconds.
    ///
    /// # Errors
    /// When the socket does not answer as Docker does.
    pub(super) async fn docker(&self, socket: &Path) -> anyhow::Result<(Docker, u64)> {
        let docker = connect(socket, self.timing.request)?;
        // A second earlier: the clock of events has whole seconds.
        let since =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(1);
        self.list(&docker).await?;
        Ok((docker, since))
    }

    /// Keeps what the runtime tells of what happened after `since`, until it no longer does.
    ///
    /// # Errors
    /// What was tried and what came of it.
    pub(super) async fn watch_docker(&self, docker: &Docker, since: u64) -> anyhow::Result<Infallible> {
        // Not before the list: Podman runs programs to tell it, for seconds on a busy host.
        let server = self.server(docker).await?;
        self.registry.set_state(self.source, RuntimeState::Connected { server });
        self.listen(docker, since).await
    }

    async fn server(&self, docker: &Docker) -> anyhow::Result<String> {
        let version = self.answer("its version", docker.version()).await?;
        let podman = version.components.iter().flatten().any(|part| part.name.contains("Podman"));
        let (name, maker) = if podman { ("Podman", Runtime::Podman) } else { ("Docker", Runtime::Docker) };
        self.registry.set_maker(self.source, maker);
        Ok(format!("{name} {}", version.version.unwrap_or_default()).trim_end().to_owned())
    }

    async fn list(&self, docker: &Docker) -> anyhow::Result<()> {
        let everything = ListContainersOptionsBuilder::default().all(true).build();
        let list = self.answer("its containers", docker.list_containers(Some(everything))).await?;
        self.registry.replace(self.source, list.into_iter().filter_map(from_list).collect());
        Ok(())
    }

    /// Takes events as they come and lists all again now and then.
    async fn listen(&self, docker: &Docker, since: u64) -> anyhow::Result<Infallible> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), EVENTS.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptions { since: Some(since.to_string()), until: None, filters: Some(filters) };
        // Some servers send the first byte of the answer with the first event, whenever that is.
        let patient = docker.clone().with_timeout(Duration::from_secs(u64::from(u32::MAX)));
        let mut events = Box::pin(patient.events(Some(options)));
        let mut relist = every(self.timing.relist);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take(docker, event.context("reading its events")?).await,
                    None => anyhow::bail!("the stream of events ended"),
                },
                _ = relist.tick() => self.list(docker).await?,
            }
        }
    }

    async fn take(&self, docker: &Docker, event: EventMessage) {
        let Some((id, attributes)) = event.actor.and_then(|actor| Some((actor.id?, actor.attributes))) else {
            return;
        };
        match event.action.as_deref() {
            Some("create" | "start") => {
                self.registry.insert(self.source, id, from_event(attributes.unwrap_or_default()));
            }
            // Which of its names a rename event carries depends on the server.
            Some("rename") => match self.inspect(docker, &id).await {
                Ok(metadata) => self.registry.insert(self.source, id, metadata),
                Err(error) => tracing::debug!("container {id} was renamed: {error:#}"),
            },
            Some("destroy" | "remove") => self.registry.remove(&id),
            _ => {}
        }
    }

    async fn inspect(&self, docker: &Docker, id: &str) -> anyhow::Result<Metadata> {
        let inspect = docker.inspect_container(id, None::<InspectContainerOptions>);
        let found = self.answer("a container", inspect).await?;
        let config = found.config.unwrap_or_default();
        Ok(Metadata::new(
            found.name.as_deref().map(plain_name),
            config.image,
            config.labels.unwrap_or_default(),
        ))
    }
}

fn connect(socket: &Path, patience: Duration) -> anyhow::Result<Docker> {
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    Docker::connect_with_unix(path, patience.as_secs().max(1), API_DEFAULT_VERSION).context("connecting")
}

pub(super) fn from_list(listed: ContainerSummary) -> Option<(String, Metadata)> {
    // A linked container is also listed as `/<other>/<alias>`.
    let names = listed.names.unwrap_or_default();
    let name = names.iter().map(|name| plain_name(name)).find(|name| !name.contains('/'));
    Some((listed.id?, Metadata::new(name, listed.image, listed.labels.unwrap_or_default())))
}

/// Attributes are the labels, plus what the server says of the event.
pub(super) fn from_event(mut attributes: HashMap<String, String>) -> Metadata {
    let (name, image) = (attributes.remove("name"), attributes.remove("image"));
    attributes.retain(|key, _| !NO_LABELS.contains(&key.as_str()));
    Metadata::new(name.as_deref().map(plain_name), image, attributes)
}

/// Docker puts a slash before names.
fn plain_name(name: &str) -> String {
    name.strip_prefix('/').unwrap_or(name).to_owned()
}
