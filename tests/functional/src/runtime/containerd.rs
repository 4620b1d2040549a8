//! containerd with its CRI plugin: a daemon of the story's own, told what to run as the kubelet tells it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListImagesRequest, ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::{IMAGE, folder, image, remove_cgroup_tree, remove_folder};
use crate::netns::Netns;
use crate::process::{Daemon, output, require, wait_until};
use crate::sweep::own_name;
use crate::{Serial, serial};

/// The full name that containerd gives to [`IMAGE`].
const FULL_IMAGE: &str = "docker.io/library/tcptide-story:latest";
/// The file in the folder that holds the name of the cgroup above all pods.
const CGROUP_FILE: &str = "cgroup";
/// How long containerd may take for one request.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running containerd. On `Drop` its pods, its processes, mounts and files go.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    path: PathBuf,
    daemon: Option<Daemon>,
    folder: Option<TempDir>,
    netns: Netns,
    /// The cgroup above all pods.
    cgroup: String,
    api: tokio::runtime::Runtime,
    _serial: Serial,
}

/// A pod: its sandbox, and the configuration that containers in it are made with.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Id of the sandbox.
    pub id: String,
    /// UID, as the kubelet gives it.
    pub uid: String,
    config: PodSandboxConfig,
}

impl Containerd {
    /// Starts the daemon, waits until it answers, and imports [`IMAGE`], which sandboxes run too.
    ///
    /// Pods use the network of [`netns`](Self::netns). One daemon at a time: a second story waits here.
    pub fn start() -> Result<Self> {
        let containerd = Self::start_with("")?;
        containerd.wait_for("containerd's CRI plugin", || containerd.pods().map(drop))?;
        containerd.import()?;
        Ok(containerd)
    }

    /// Starts a containerd without its CRI plugin, as Docker starts it.
    pub fn start_without_cri() -> Result<Self> {
        Self::start_with("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
    }

    fn start_with(configuration: &str) -> Result<Self> {
        let serial = serial("containerd")?;
        let program = require("containerd", "containerd")?;
        require("ctr", "containerd")?;
        require("runc", "runc")?;
        let netns = Netns::new("containerd")?;
        let folder = folder("containerd")?;
        let path = folder.path().to_owned();
        let api = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut containerd = Self {
            socket: path.join("containerd.sock"),
            path: path.clone(),
            daemon: None,
            folder: Some(folder),
            netns,
            cgroup: own_name("pods"),
            api: api.context("starting a runtime for containerd's API")?,
            _serial: serial,
        };
        fs::write(path.join(CGROUP_FILE), &containerd.cgroup).context("noting the cgroup's name")?;
        let file = path.join("config.toml");
        fs::write(&file, containerd.configuration(configuration)).context("writing the configuration")?;
        fs::create_dir(path.join("run"))?;
        // Sockets of its shims have a place that cannot be configured: it is the folder's, for containerd alone.
        let mut command = Command::new("unshare");
        let script = r#"mkdir -p /run/containerd && mount --bind "$0/run" /run/containerd && exec "$@""#;
        command.args(["--mount", "sh", "-c", script]).arg(&path).arg(program).arg("--config").arg(&file);
        let mut command = containerd.netns.wrap(&command);
        let mut daemon = Daemon::start(&mut command, &path.join("containerd.log"))?;
        daemon.wait_ready(PATIENCE, || containerd.ctr(&["version"]).is_ok())?;
        containerd.daemon = Some(daemon);
        Ok(containerd)
    }

    fn configuration(&self, first: &str) -> String {
        let path = self.path.display();
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            "version = 2\n{first}\
             root = \"{path}/root\"\nstate = \"{path}/state\"\n\
             [grpc]\naddress = \"{path}/containerd.sock\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{path}/opt\"\n\
             [{cri}]\nsandbox_image = \"{FULL_IMAGE}\"\nrestrict_oom_score_adj = true\n\
             [{cri}.cni]\nbin_dir = \"{path}/cni\"\nconf_dir = \"{path}/cni\"\n\
             [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{cri}.containerd.runtimes.runc.options]\nRoot = \"{path}/runc\"\nSystemdCgroup = false\n"
        )
    }

    /// Packs and imports the image, and waits until CRI knows it.
    fn import(&self) -> Result<()> {
        let archive = image::pack_for_containerd(&self.path, FULL_IMAGE)?;
        self.ctr(&["--namespace", "k8s.io", "images", "import", &archive.to_string_lossy()])?;
        self.wait_for("the image", || self.image_id().map(drop))
    }

    fn wait_for(&self, what: &str, mut done: impl FnMut() -> Result<()>) -> Result<()> {
        let mut last = None;
        let waited = wait_until(what, PATIENCE, || Ok(done().map_err(|error| last = Some(error)).ok()));
        waited.with_context(|| {
            let log = fs::read_to_string(self.path.join("containerd.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(10).collect();
            format!("{last:?}; containerd's last words, the latest first: {}", lines.join("\n"))
        })
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        output(Command::new("ctr").arg("--address").arg(&self.socket).args(args))
    }

    /// The socket of its API.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The namespace whose network the pods use.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The id of [`IMAGE`].
    pub fn image_id(&self) -> Result<String> {
        let images = self.call(async |channel| {
            ImageServiceClient::new(channel).list_images(ListImagesRequest::default()).await
        })?;
        let found =
            images.images.into_iter().find(|image| image.repo_tags.iter().any(|tag| tag == FULL_IMAGE));
        found.map(|image| image.id).ok_or_else(|| anyhow!("CRI does not list the image {IMAGE}"))
    }

    /// Ids of the sandboxes.
    fn pods(&self) -> Result<Vec<String>> {
        let list = self.call(async |channel| {
            RuntimeServiceClient::new(channel).list_pod_sandbox(ListPodSandboxRequest::default()).await
        })?;
        Ok(list.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Runs a pod's sandbox.
    pub fn run_pod(&self, name: &str, namespace: &str) -> Result<Pod> {
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("asking for a random UID")?;
        let uid = uid.trim().to_owned();
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}/kubepods/burstable/pod{uid}", self.cgroup),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(host_network()),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            annotations: [("of", "the pod"), ("pod", name)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            linux: Some(linux),
            ..PodSandboxConfig::default()
        };
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let made = self
            .call(async |channel| RuntimeServiceClient::new(channel).run_pod_sandbox(request.clone()).await)
            .with_context(|| format!("running the pod {name}"))?;
        Ok(Pod { id: made.pod_sandbox_id, uid, config })
    }

    /// Starts a container in a pod, of an image by name or id, and returns its id: 64 hex digits.
    pub fn run(&self, pod: &Pod, name: &str, image: &str, args: &[&str]) -> Result<String> {
        let security =
            LinuxContainerSecurityContext { namespace_options: Some(host_network()), ..Default::default() };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
            command: args.iter().map(|&arg| arg.to_owned()).collect(),
            labels: [("story".to_owned(), name.to_owned())].into(),
            annotations: [("of".to_owned(), "the container".to_owned())].into(),
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let create =
            async |channel| RuntimeServiceClient::new(channel).create_container(request.clone()).await;
        let id = self.call(create).with_context(|| format!("making the container {name}"))?.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        let start = async |channel| RuntimeServiceClient::new(channel).start_container(request.clone()).await;
        self.call(start).with_context(|| format!("starting the container {name}"))?;
        Ok(id)
    }

    /// Kills and removes a container.
    pub fn rm(&self, id: &str) -> Result<()> {
        let stop = StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
        self.call(async |channel| RuntimeServiceClient::new(channel).stop_container(stop.clone()).await)?;
        let remove = RemoveContainerRequest { container_id: id.to_owned() };
        self.call(async |channel| RuntimeServiceClient::new(channel).remove_container(remove.clone()).await)?;
        Ok(())
    }

    /// How long a container that ended lived.
    pub fn lived(&self, id: &str) -> Result<Duration> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let ask = async |channel| RuntimeServiceClient::new(channel).container_status(request.clone()).await;
        wait_until("the container to end", PATIENCE, || {
            let status = self.call(ask)?.status.context("a container without status")?;
            let lived = u64::try_from(status.finished_at - status.started_at).ok();
            Ok(lived.filter(|_| status.finished_at > 0).map(Duration::from_nanos))
        })
    }

    fn remove_pod(&self, id: &str) -> Result<()> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(async |channel| RuntimeServiceClient::new(channel).stop_pod_sandbox(stop.clone()).await)?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call(async |channel| {
            RuntimeServiceClient::new(channel).remove_pod_sandbox(remove.clone()).await
        })?;
        Ok(())
    }

    /// One request, on a connection of its own.
    fn call<T>(
        &self,
        request: impl AsyncFn(Channel) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        self.api.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?;
            let channel = endpoint.connect().await.context("connecting to containerd")?;
            let answer =
                tokio::time::timeout(PATIENCE, request(channel)).await.context("waiting for containerd")?;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|status| anyhow!("containerd answered {:?}: {}", status.code(), status.message()))
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            for pod in self.pods().unwrap_or_default() {
                if let Err(error) = self.remove_pod(&pod) {
                    eprintln!("containerd: a pod stays: {error:#}");
                }
            }
            daemon.stop(Duration::from_secs(30));
        }
        if let Some(folder) = self.folder.take() {
            let folder = folder.keep();
            sweep(&folder);
            remove_folder(&folder, &[]);
        }
    }
}

/// The network of containerd itself.
fn host_network() -> NamespaceOption {
    NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() }
}

/// Ends what a dead run's containerd left, and removes its pods' cgroups.
pub(super) fn sweep(folder: &Path) {
    if let Ok(cgroup) = fs::read_to_string(folder.join(CGROUP_FILE)) {
        super::kill_users(folder);
        remove_cgroup_tree(Path::new(&cgroup));
    }
}
