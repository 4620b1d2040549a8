//! The Kubernetes Container Runtime Interface (CRI), as containerd and CRI-O answer it over a unix socket.
//!
//! Pods and containers are listed, and events taken where the runtime has them: containerd from 1.7 on, CRI-O if
//! told to. What turns up and nobody told of is asked for by its id ([`Asking`]), which is how containers are learnt of
//! without events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::path::Path;
use std::pin::pin;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerEventResponse, ContainerEventType, ContainerFilter, ContainerStatus,
    GetEventsRequest, ImageSpec, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxFilter, PodSandboxStatus, VersionRequest,
};
use model::container::Metadata;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep_until;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::asking::Asking;
use super::registry::RuntimeState;
use super::runtime::{Watcher, every};

/// The longest answer taken, in bytes: 10,000 containers with 6 KiB of labels and annotations each. The kubelet
/// itself takes 16 MiB.
pub(super) const LONGEST_ANSWER: usize = 64 << 20;
/// What the kubelet calls the container that holds a pod's namespaces, the sandbox.
const SANDBOX: &str = "POD";

/// The two services of a runtime, over one connection.
pub(super) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    /// What images are called, by their ids: those without a name by the id.
    names: HashMap<String, String>,
}

impl Watcher {
    /// A runtime that answers CRI, and its name and version.
    ///
    /// # Errors
    /// When the socket does not answer, or not by CRI.
    pub(super) async fn cri(&self, socket: &Path) -> anyhow::Result<(Cri, String)> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let endpoint =
            Endpoint::from_shared(format!("unix://{path}")).context("reading the socket's path")?;
        let channel = self.answer("a connection", endpoint.connect()).await?;
        let mut cri = Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LONGEST_ANSWER),
            images: ImageServiceClient::new(channel).max_decoding_message_size(LONGEST_ANSWER),
            names: HashMap::new(),
        };
        let server = self.cri_server(&mut cri).await?;
        Ok((cri, server))
    }

    /// Keeps what `server` tells, until it no longer does.
    ///
    /// # Errors
    /// What was tried and what came of it.
    pub(super) async fn watch_cri(&self, mut cri: Cri, server: String) -> anyhow::Result<Infallible> {
        // From before the list on, so that no container falls between.
        let mut wanted = self.registry.wanted();
        self.list_cri(&mut cri).await?;
        self.registry.set_state(self.source, RuntimeState::Connected { server });
        let mut asking = Asking::new(Instant::now());
        let mut relist = every(self.timing.relist);
        // Without events nothing tells by itself that the runtime went away.
        let mut check = every(self.timing.longest_retry);
        let mut events = pin!(events(cri.runtime.clone()));
        let mut has_events = true;
        loop {
            let next = asking.next();
            tokio::select! {
                event = events.next(), if has_events => match event {
                    Some(Ok(event)) => self.take_cri(&mut cri, event).await,
                    Some(Err(status)) if status.code() != Code::Unimplemented => {
                        return Err(said(&status)).context("reading its events");
                    }
                    // It has none, or was told to send none.
                    Some(Err(_)) | None => has_events = false,
                },
                id = wanted.recv() => match id {
                    // Ids of other kinds are names that other runtimes gave.
                    Ok(id) if is_id(&id) => asking.want(id, Instant::now()),
                    // Too many at once: the latest are still there.
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => bail!("nobody is left to tell"),
                },
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {
                    let is_known = |id: &str| self.registry.metadata(id).is_some();
                    if let Some(wanted) = asking.take(Instant::now(), is_known) {
                        self.ask_cri(&mut cri, &wanted.id).await?;
                        if !is_known(&wanted.id) {
                            asking.not_found(wanted, Instant::now());
                        }
                    }
                }
                _ = relist.tick() => self.list_cri(&mut cri).await?,
                _ = check.tick() => {
                    self.cri_server(&mut cri).await?;
                }
            }
        }
    }

    async fn cri_server(&self, cri: &mut Cri) -> anyhow::Result<String> {
        let asking = async { Ok::<_, anyhow::Error>(cri.runtime.version(VersionRequest::default()).await) };
        match self.answer("its version", asking).await? {
            Ok(version) => {
                let version = version.into_inner();
                let text = format!("{} {}", version.runtime_name, version.runtime_version);
                Ok(text.trim().to_owned())
            }
            Err(status) if status.code() == Code::Unimplemented => bail!(
                "it answered that it has no CRI v1, as Docker's containerd, one without its CRI plugin, and one older \
                 than 1.6, which has v1alpha2 only, do: to have names from it, enable the plugin or update it ({})",
                status.message()
            ),
            Err(status) => Err(said(&status)).context("asking for its version"),
        }
    }

    /// Has the runtime list everything.
    async fn list_cri(&self, cri: &mut Cri) -> anyhow::Result<()> {
        // The containers first: the pod of each is then in the list of pods, unless it is gone.
        let containers = self.containers(cri, None).await?;
        let pods = self.pods(cri, None).await?;
        // Images may have got other names meanwhile.
        cri.names.clear();
        self.name_images(cri, &containers).await;
        self.registry.replace(self.source, told(containers, &pods, &cri.names));
        Ok(())
    }

    /// Asks for one container and its pod; the id may be that of a pod's sandbox.
    async fn ask_cri(&self, cri: &mut Cri, id: &str) -> anyhow::Result<()> {
        let containers = self.containers(cri, Some(id)).await?;
        let sandbox = containers.first().map_or(id, |container| &container.pod_sandbox_id);
        // Without an id the answer would be all pods.
        let pods = if sandbox.is_empty() { Vec::new() } else { self.pods(cri, Some(sandbox)).await? };
        self.add_cri(cri, containers, &pods).await;
        Ok(())
    }

    /// An event tells the state of a whole pod.
    async fn take_cri(&self, cri: &mut Cri, event: ContainerEventResponse) {
        let id = event.container_id;
        match ContainerEventType::try_from(event.container_event_type) {
            Ok(ContainerEventType::ContainerDeletedEvent) => self.registry.remove(&id),
            Ok(ContainerEventType::ContainerCreatedEvent | ContainerEventType::ContainerStartedEvent) => {
                let Some(pod) = event.pod_sandbox_status.map(as_listed_pod) else { return };
                let told = event.containers_statuses.into_iter().find(|told| told.id == id);
                let containers = told.map(|told| as_listed(told, &pod.id)).into_iter().collect();
                self.add_cri(cri, containers, &[pod]).await;
            }
            // A container that stopped keeps its name until it is deleted.
            Ok(ContainerEventType::ContainerStoppedEvent) | Err(_) => {}
        }
    }

    async fn add_cri(&self, cri: &mut Cri, containers: Vec<Container>, pods: &[PodSandbox]) {
        self.name_images(cri, &containers).await;
        for (id, metadata) in told(containers, pods, &cri.names) {
            self.registry.insert(self.source, id, metadata);
        }
    }

    /// All containers, or the one with this id.
    async fn containers(&self, cri: &mut Cri, only: Option<&str>) -> anyhow::Result<Vec<Container>> {
        let filter = only.map(|id| ContainerFilter { id: id.to_owned(), ..ContainerFilter::default() });
        let request = cri.runtime.list_containers(ListContainersRequest { filter });
        Ok(self.cri_answer("its containers", request).await?.containers)
    }

    /// All pods, or the one with this sandbox.
    async fn pods(&self, cri: &mut Cri, only: Option<&str>) -> anyhow::Result<Vec<PodSandbox>> {
        let filter = only.map(|id| PodSandboxFilter { id: id.to_owned(), ..PodSandboxFilter::default() });
        let request = cri.runtime.list_pod_sandbox(ListPodSandboxRequest { filter });
        Ok(self.cri_answer("its pods", request).await?.items)
    }

    /// Learns what the images of these containers are called, where the containers do not say.
    async fn name_images(&self, cri: &mut Cri, containers: &[Container]) {
        let images = containers.iter().filter_map(|container| container.image.as_ref());
        let ids = images.filter(|image| named_image(image).is_none()).map(|image| &image.image);
        let new: Vec<_> = ids.filter(|id| !cri.names.contains_key(*id)).collect();
        if new.is_empty() {
            return;
        }
        let asked = cri.images.list_images(ListImagesRequest::default());
        let images = self.cri_answer("its images", asked).await.map(|list| list.images);
        let images = images.unwrap_or_else(|error| {
            tracing::debug!("images are shown by their id: {error:#}");
            Vec::new()
        });
        // One that has no name is not asked for again.
        cri.names.extend(new.into_iter().map(|id| (id.clone(), id.clone())));
        cri.names.extend(
            images.into_iter().filter_map(|image| Some((image.id, image.repo_tags.into_iter().next()?))),
        );
    }

    async fn cri_answer<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        let request = async { request.await.map(Response::into_inner).map_err(|status| said(&status)) };
        self.answer(what, request).await
    }
}

/// The events of the runtime. Some servers send the first byte of the answer with the first event, whenever that
/// is: beginning to listen is part of the stream.
fn events(
    mut runtime: RuntimeServiceClient<Channel>,
) -> impl Stream<Item = Result<ContainerEventResponse, Status>> {
    let begin =
        async move { runtime.get_container_events(GetEventsRequest {}).await.map(Response::into_inner) };
    stream::once(begin).try_flatten()
}

/// What a runtime answered instead of what was asked for, or why it did not answer.
fn said(status: &Status) -> anyhow::Error {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    anyhow!(text)
}

/// What containers and their pods' sandboxes are called and belong to, by id.
pub(super) fn told(
    containers: Vec<Container>,
    pods: &[PodSandbox],
    images: &HashMap<String, String>,
) -> Vec<(String, Metadata)> {
    let by_id: HashMap<&str, &PodSandbox> = pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
    let of_containers = containers.into_iter().map(|listed| {
        let image = listed.image.as_ref().map(|image| match named_image(image) {
            Some(name) => name.to_owned(),
            None => images.get(&image.image).unwrap_or(&image.image).clone(),
        });
        let name = listed.metadata.map(|metadata| metadata.name);
        let metadata = Metadata::new(name, image, listed.labels).annotated(listed.annotations);
        let metadata = match by_id.get(listed.pod_sandbox_id.as_str()) {
            Some(pod) => in_pod(metadata, pod),
            None => metadata,
        };
        (listed.id, metadata.in_sandbox(listed.pod_sandbox_id))
    });
    let of_pods = pods.iter().map(|pod| {
        let metadata = Metadata::new(Some(SANDBOX.to_owned()), None, pod.labels.clone());
        (pod.id.clone(), in_pod(metadata, pod).in_sandbox(pod.id.clone()))
    });
    of_containers.chain(of_pods).collect()
}

/// Puts a container into its pod. The pod's annotations are its own, too, where it has none of that key.
fn in_pod(container: Metadata, pod: &PodSandbox) -> Metadata {
    let container =
        container.annotated(pod.annotations.iter().map(|(key, value)| (key.clone(), value.clone())));
    match &pod.metadata {
        Some(pod) => container.in_pod(&pod.name, &pod.namespace, &pod.uid),
        None => container,
    }
}

/// A container of an event as a list has it.
pub(super) fn as_listed(told: ContainerStatus, sandbox: &str) -> Container {
    Container {
        id: told.id,
        pod_sandbox_id: sandbox.to_owned(),
        metadata: told.metadata,
        image: told.image,
        labels: told.labels,
        annotations: told.annotations,
        ..Container::default()
    }
}

/// A pod of an event as a list has it.
pub(super) fn as_listed_pod(told: PodSandboxStatus) -> PodSandbox {
    PodSandbox {
        id: told.id,
        metadata: told.metadata,
        labels: told.labels,
        annotations: told.annotations,
        ..PodSandbox::default()
    }
}

/// The image as the user named it. The kubelet passes on an image's id, and the name beside it, which runtimes of
/// before 2023 do not keep.
fn named_image(image: &ImageSpec) -> Option<&str> {
    let is_id = |name: &str| is_id(name.strip_prefix("sha256:").unwrap_or(name));
    let names = [image.user_specified_image.as_str(), image.image.as_str()];
    names.into_iter().find(|name| !name.is_empty() && !is_id(name))
}

/// Whether this is an id as CRI runtimes give containers, pods and images.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
