//! The Kubernetes Container Runtime Interface (CRI), as containerd and CRI-O answer it over a unix socket.
//!
//! Pods and containers are listed, and events taken where the runtime has them: containerd from 1.7 on, CRI-O if
//! told to. Without events the list is asked for again when a container turns up that nobody told of.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::path::Path;
use std::pin::pin;

use anyhow::{Context, anyhow, bail};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerEventResponse, ContainerEventType, GetEventsRequest, ImageSpec,
    ListContainersRequest, ListImagesRequest, ListPodSandboxRequest, PodSandboxMetadata, VersionRequest,
};
use model::container::Metadata;
use tokio::net::UnixStream;
use tokio::time::{Instant, interval, sleep_until};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};
use tower::service_fn;

use super::registry::RuntimeState;
use super::runtime::Watcher;

/// The longest answer taken, in bytes: 10,000 containers with 6 KiB of labels and annotations each. The kubelet
/// itself takes 16 MiB.
pub(super) const LONGEST_ANSWER: usize = 64 << 20;
/// What the kubelet calls the container that holds a pod's namespaces, the sandbox.
const SANDBOX: &str = "POD";

/// The two services of a runtime, over one connection.
#[derive(Clone)]
pub(super) struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Watcher {
    /// A runtime that answers CRI, and its name and version.
    ///
    /// # Errors
    /// When the socket does not answer, or not by CRI.
    pub(super) async fn cri(&self, socket: &Path) -> anyhow::Result<(Cri, String)> {
        let path = socket.to_owned();
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never looked at: the connector knows the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = self.answer("a connection", endpoint.connect_with_connector(connector)).await?;
        let cri = Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LONGEST_ANSWER),
            images: ImageServiceClient::new(channel).max_decoding_message_size(LONGEST_ANSWER),
        };
        let server = self.cri_server(&cri).await?;
        Ok((cri, server))
    }

    /// Keeps what `server` tells, until it no longer does.
    ///
    /// # Errors
    /// What was tried and what came of it.
    pub(super) async fn watch_cri(&self, cri: Cri, server: String) -> anyhow::Result<Infallible> {
        // From before the list on, so that no container falls between.
        let mut wanted = self.registry.wanted();
        let mut answered = self.registry.asked();
        self.list_cri(&cri).await?;
        self.registry.set_state(self.source, RuntimeState::Connected { server });
        let mut listed = Instant::now();
        let mut due: Option<Instant> = None;
        let mut relist = self.relist_timer();
        // Without events nothing tells by itself that the runtime went away.
        let mut check = interval(self.timing.longest_retry);
        let mut events = pin!(events(cri.clone()));
        let mut has_events = true;
        loop {
            tokio::select! {
                event = events.next(), if has_events => match event {
                    Some(Ok(event)) => self.take_cri(event),
                    Some(Err(status)) if status.code() != Code::Unimplemented => {
                        return Err(said(&status)).context("reading its events");
                    }
                    // It has none, or was told to send none.
                    Some(Err(_)) | None => has_events = false,
                },
                Ok(()) = wanted.changed(), if due.is_none() => {
                    let wanted = self.registry.is_wanted(answered);
                    due = wanted.then(|| listed + self.timing.least_relist);
                }
                () = sleep_until(due.unwrap_or(listed)), if due.is_some() => {
                    answered = self.registry.asked();
                    self.list_cri(&cri).await?;
                    (listed, due) = (Instant::now(), None);
                }
                _ = relist.tick() => {
                    self.list_cri(&cri).await?;
                    listed = Instant::now();
                }
                _ = check.tick() => {
                    self.cri_server(&cri).await?;
                }
            }
        }
    }

    async fn cri_server(&self, cri: &Cri) -> anyhow::Result<String> {
        let mut runtime = cri.runtime.clone();
        let asking = async { Ok::<_, anyhow::Error>(runtime.version(VersionRequest::default()).await) };
        match self.answer("its version", asking).await? {
            Ok(version) => {
                let version = version.into_inner();
                let text = format!("{} {}", version.runtime_name, version.runtime_version);
                Ok(text.trim().to_owned())
            }
            Err(status) if status.code() == Code::Unimplemented => bail!(
                "it answered that it has no CRI v1, as Docker's containerd and one without its CRI plugin do \
                 ({})",
                status.message()
            ),
            Err(status) => Err(said(&status)).context("asking for its version"),
        }
    }

    async fn list_cri(&self, cri: &Cri) -> anyhow::Result<()> {
        let Cri { mut runtime, mut images } = cri.clone();
        // The containers first: the pod of each is then in the list of pods, unless it is gone.
        let containers = runtime.list_containers(ListContainersRequest::default());
        let containers = self.cri_answer("its containers", containers).await?.containers;
        let pods = runtime.list_pod_sandbox(ListPodSandboxRequest::default());
        let pods = self.cri_answer("its pods", pods).await?.items;
        let mut tags = HashMap::new();
        if containers.iter().any(|container| named_image(container.image.as_ref()).is_none()) {
            let asked = images.list_images(ListImagesRequest::default());
            match self.cri_answer("its images", asked).await {
                Ok(list) => {
                    let names = list.images.into_iter();
                    tags = names
                        .filter_map(|image| Some((image.id, image.repo_tags.into_iter().next()?)))
                        .collect();
                }
                Err(error) => tracing::debug!("images are shown by their id: {error:#}"),
            }
        }
        let by_id: HashMap<&str, &PodSandboxMetadata> =
            pods.iter().filter_map(|pod| Some((pod.id.as_str(), pod.metadata.as_ref()?))).collect();
        let mut all: Vec<_> = containers
            .into_iter()
            .map(|container| {
                let pod = by_id.get(container.pod_sandbox_id.as_str()).copied();
                from_list(container, pod, &tags)
            })
            .collect();
        all.extend(pods.iter().map(|pod| (pod.id.clone(), sandbox(pod.metadata.as_ref(), &pod.labels))));
        self.registry.replace(self.source, all);
        Ok(())
    }

    /// An event tells the state of a whole pod.
    fn take_cri(&self, event: ContainerEventResponse) {
        let id = event.container_id;
        match ContainerEventType::try_from(event.container_event_type) {
            Ok(ContainerEventType::ContainerDeletedEvent) => self.registry.remove(&id),
            Ok(ContainerEventType::ContainerCreatedEvent | ContainerEventType::ContainerStartedEvent) => {
                let Some(pod) = event.pod_sandbox_status else { return };
                for told in event.containers_statuses.into_iter().filter(|told| told.id == id) {
                    let name = told.metadata.map(|metadata| metadata.name);
                    let image = named_image(told.image.as_ref()).map(str::to_owned);
                    let metadata = Metadata::new(name, image, told.labels);
                    self.registry.insert(self.source, told.id, in_pod(metadata, pod.metadata.as_ref()));
                }
                if pod.id == id {
                    self.registry.insert(self.source, id, sandbox(pod.metadata.as_ref(), &pod.labels));
                }
            }
            // A container that stopped keeps its name until it is deleted.
            Ok(ContainerEventType::ContainerStoppedEvent) | Err(_) => {}
        }
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
fn events(cri: Cri) -> impl Stream<Item = Result<ContainerEventResponse, Status>> {
    let Cri { mut runtime, .. } = cri;
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

fn from_list(
    listed: Container,
    pod: Option<&PodSandboxMetadata>,
    tags: &HashMap<String, String>,
) -> (String, Metadata) {
    let image = named_image(listed.image.as_ref()).map(str::to_owned).or_else(|| {
        let id = listed.image.map(|image| image.image)?;
        Some(tags.get(&id).cloned().unwrap_or(id))
    });
    let name = listed.metadata.map(|metadata| metadata.name);
    (listed.id, in_pod(Metadata::new(name, image, listed.labels), pod))
}

/// The image as the user named it. The kubelet passes on an image's id, and the name beside it, which runtimes of
/// before 2023 do not keep.
fn named_image(image: Option<&ImageSpec>) -> Option<&str> {
    let image = image?;
    let is_id = |name: &str| {
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let names = [image.user_specified_image.as_str(), image.image.as_str()];
    names.into_iter().find(|name| !name.is_empty() && !is_id(name))
}

fn sandbox(pod: Option<&PodSandboxMetadata>, labels: &HashMap<String, String>) -> Metadata {
    in_pod(Metadata::new(Some(SANDBOX.to_owned()), None, labels.clone()), pod)
}

fn in_pod(container: Metadata, pod: Option<&PodSandboxMetadata>) -> Metadata {
    match pod {
        Some(pod) => container.in_pod(&pod.name, &pod.namespace, &pod.uid),
        None => container,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";

    fn spec(image: &str, user: &str) -> ImageSpec {
        ImageSpec { image: image.to_owned(), user_specified_image: user.to_owned(), ..ImageSpec::default() }
    }

    #[test]
    fn an_image_is_called_as_the_user_called_it() {
        assert_eq!(named_image(Some(&spec(ID, "nginx:1"))), Some("nginx:1"));
        assert_eq!(named_image(Some(&spec("nginx:1", ""))), Some("nginx:1"));
        assert_eq!(named_image(Some(&spec(ID, ""))), None);
        assert_eq!(named_image(Some(&spec(&ID["sha256:".len()..], ""))), None);
        assert_eq!(named_image(None), None);
        let tags = HashMap::from([(ID.to_owned(), "redis:7".to_owned())]);
        let of = |image: &str| {
            let listed = Container { image: Some(spec(image, "")), ..Container::default() };
            from_list(listed, None, &tags).1.image
        };
        assert_eq!(of(ID).as_deref(), Some("redis:7"));
        assert_eq!(of(&ID.replace('3', "4")), Some(ID.replace('3', "4")), "an id is better than nothing");
        assert_eq!(of(""), None);
    }
}
