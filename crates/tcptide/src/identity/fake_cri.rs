//! A CRI runtime for tests: answers on a unix socket what it is told to.

use std::collections::HashMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread;

use futures_util::{Stream, stream};
use k8s_cri::v1;
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Version,
    Containers,
    Pods,
}

#[derive(Default)]
struct Behaviour {
    containers: Vec<v1::Container>,
    pods: Vec<v1::PodSandbox>,
    hang: Option<Call>,
    /// How often all containers were asked for.
    lists: usize,
    /// The ids of those that were asked for by their id.
    asked: Vec<String>,
    has_events: bool,
    listeners: Vec<mpsc::UnboundedSender<v1::ContainerEventResponse>>,
}

pub(super) struct FakeCri {
    socket: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    _directory: Option<tempfile::TempDir>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeCri {
    pub(super) fn start() -> Self {
        Self::in_folder(Behaviour::default())
    }

    pub(super) fn with_events() -> Self {
        Self::in_folder(Behaviour { has_events: true, ..Behaviour::default() })
    }

    pub(super) fn start_at(socket: &Path, containers: Vec<v1::Container>) -> Self {
        Self::bind(socket, None, Behaviour { containers, ..Behaviour::default() })
    }

    fn in_folder(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::bind(&directory.path().join("containerd.sock"), Some(directory), behaviour)
    }

    fn bind(socket: &Path, directory: Option<tempfile::TempDir>, behaviour: Behaviour) -> Self {
        let behaviour = Arc::new(Mutex::new(behaviour));
        let service = RuntimeServiceServer::new(Fake(behaviour.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = std_mpsc::channel();
        let path = socket.to_owned();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(path).unwrap();
                bound.send(()).unwrap();
                let incoming = stream::unfold(listener, |listener| async {
                    Some((listener.accept().await.map(|(stream, _)| stream), listener))
                });
                tokio::select! {
                    _ = stopped => {}
                    served = Server::builder().add_service(service).serve_with_incoming(incoming) => served.unwrap(),
                }
            });
        });
        is_bound.recv().unwrap();
        Self {
            socket: socket.to_owned(),
            behaviour,
            _directory: directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(super) fn list(&self, pods: Vec<v1::PodSandbox>, containers: Vec<v1::Container>) {
        let mut behaviour = self.behaviour.lock().unwrap();
        (behaviour.pods, behaviour.containers) = (pods, containers);
    }

    /// Never answers this again.
    pub(super) fn hang_at(&self, call: Call) {
        self.behaviour.lock().unwrap().hang = Some(call);
    }

    pub(super) fn answer_all(&self) {
        self.behaviour.lock().unwrap().hang = None;
    }

    pub(super) fn lists(&self) -> usize {
        self.behaviour.lock().unwrap().lists
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.behaviour.lock().unwrap().asked.clone()
    }

    /// Sends an event to every listener, once there is one.
    pub(super) fn event(&self, event: &v1::ContainerEventResponse) {
        loop {
            let listeners = &mut self.behaviour.lock().unwrap().listeners;
            listeners.retain(|listener| listener.send(event.clone()).is_ok());
            if !listeners.is_empty() {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        std::fs::remove_file(&self.socket).ok();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Fake(Arc<Mutex<Behaviour>>);

impl Fake {
    async fn maybe_hang(&self, call: Call) {
        let hang = self.0.lock().unwrap().hang;
        if hang == Some(call) {
            pending::<()>().await;
        }
    }
}

/// The service, with nothing behind the calls that are listed.
macro_rules! service {
    ($($name:ident $request:ident $response:ident)*) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            type GetContainerEventsStream =
                Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

            async fn version(
                &self,
                _: Request<v1::VersionRequest>,
            ) -> Result<Response<v1::VersionResponse>, Status> {
                self.maybe_hang(Call::Version).await;
                Ok(Response::new(v1::VersionResponse {
                    runtime_name: "containerd".to_owned(),
                    runtime_version: "1.6.20".to_owned(),
                    ..v1::VersionResponse::default()
                }))
            }

            async fn list_containers(
                &self,
                request: Request<v1::ListContainersRequest>,
            ) -> Result<Response<v1::ListContainersResponse>, Status> {
                self.maybe_hang(Call::Containers).await;
                let id = request.into_inner().filter.map(|filter| filter.id);
                let mut behaviour = self.0.lock().unwrap();
                match &id {
                    Some(id) => behaviour.asked.push(id.clone()),
                    None => behaviour.lists += 1,
                }
                let mut containers = behaviour.containers.clone();
                containers.retain(|container| is_asked_for(&container.id, id.as_deref()));
                Ok(Response::new(v1::ListContainersResponse { containers }))
            }

            async fn list_pod_sandbox(
                &self,
                request: Request<v1::ListPodSandboxRequest>,
            ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
                self.maybe_hang(Call::Pods).await;
                let id = request.into_inner().filter.map(|filter| filter.id);
                let mut items = self.0.lock().unwrap().pods.clone();
                items.retain(|pod| is_asked_for(&pod.id, id.as_deref()));
                Ok(Response::new(v1::ListPodSandboxResponse { items }))
            }

            async fn get_container_events(
                &self,
                _: Request<v1::GetEventsRequest>,
            ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
                let mut behaviour = self.0.lock().unwrap();
                if !behaviour.has_events {
                    return Err(Status::unimplemented("unknown method GetContainerEvents"));
                }
                let (listener, events) = mpsc::unbounded_channel();
                behaviour.listeners.push(listener);
                let events = stream::unfold(events, |mut events| async {
                    events.recv().await.map(|event| (Ok(event), events))
                });
                Ok(Response::new(Box::pin(events)))
            }

            $(async fn $name(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not in this fake"))
            })*
        }
    };
}

service! {
    run_pod_sandbox RunPodSandboxRequest RunPodSandboxResponse
    stop_pod_sandbox StopPodSandboxRequest StopPodSandboxResponse
    remove_pod_sandbox RemovePodSandboxRequest RemovePodSandboxResponse
    pod_sandbox_status PodSandboxStatusRequest PodSandboxStatusResponse
    create_container CreateContainerRequest CreateContainerResponse
    start_container StartContainerRequest StartContainerResponse
    stop_container StopContainerRequest StopContainerResponse
    remove_container RemoveContainerRequest RemoveContainerResponse
    container_status ContainerStatusRequest ContainerStatusResponse
    update_container_resources UpdateContainerResourcesRequest UpdateContainerResourcesResponse
    reopen_container_log ReopenContainerLogRequest ReopenContainerLogResponse
    exec_sync ExecSyncRequest ExecSyncResponse
    exec ExecRequest ExecResponse
    attach AttachRequest AttachResponse
    port_forward PortForwardRequest PortForwardResponse
    container_stats ContainerStatsRequest ContainerStatsResponse
    list_container_stats ListContainerStatsRequest ListContainerStatsResponse
    pod_sandbox_stats PodSandboxStatsRequest PodSandboxStatsResponse
    list_pod_sandbox_stats ListPodSandboxStatsRequest ListPodSandboxStatsResponse
    update_runtime_config UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse
    status StatusRequest StatusResponse
    checkpoint_container CheckpointContainerRequest CheckpointContainerResponse
    list_metric_descriptors ListMetricDescriptorsRequest ListMetricDescriptorsResponse
    list_pod_sandbox_metrics ListPodSandboxMetricsRequest ListPodSandboxMetricsResponse
    runtime_config RuntimeConfigRequest RuntimeConfigResponse
}

/// Whether a filter lets this one pass. The beginning of an id will do, as for containerd.
fn is_asked_for(id: &str, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| id.starts_with(filter))
}

/// A pod whose sandbox has this id.
pub(super) fn pod(id: &str, name: &str) -> v1::PodSandbox {
    let (name, namespace, uid) = (name.to_owned(), "prod".to_owned(), format!("uid-of-{name}"));
    v1::PodSandbox {
        id: id.to_owned(),
        metadata: Some(v1::PodSandboxMetadata { name, uid, namespace, attempt: 0 }),
        annotations: annotations([("owner", "the pod"), ("config", "b")]),
        ..v1::PodSandbox::default()
    }
}

fn annotations<const N: usize>(all: [(&str, &str); N]) -> HashMap<String, String> {
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// A container in the pod with this sandbox.
pub(super) fn container(id: &str, name: &str, sandbox: &str) -> v1::Container {
    v1::Container {
        id: id.to_owned(),
        pod_sandbox_id: sandbox.to_owned(),
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "nginx:1".to_owned(), ..v1::ImageSpec::default() }),
        labels: HashMap::from([("tier".to_owned(), "front".to_owned())]),
        annotations: annotations([("owner", "the container")]),
        ..v1::Container::default()
    }
}

/// An event of a container in the pod `shop`.
pub(super) fn event(kind: v1::ContainerEventType, id: &str, name: &str) -> v1::ContainerEventResponse {
    let status = |id: &str, name: &str| {
        let listed = container(id, name, "sss");
        v1::ContainerStatus {
            id: listed.id,
            metadata: listed.metadata,
            image: listed.image,
            labels: listed.labels,
            annotations: listed.annotations,
            ..v1::ContainerStatus::default()
        }
    };
    let sandbox = pod("sss", "shop");
    let sandbox = v1::PodSandboxStatus {
        id: sandbox.id,
        metadata: sandbox.metadata,
        annotations: sandbox.annotations,
        ..v1::PodSandboxStatus::default()
    };
    v1::ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        pod_sandbox_status: Some(sandbox),
        containers_statuses: vec![status("other", "other"), status(id, name)],
        ..v1::ContainerEventResponse::default()
    }
}
