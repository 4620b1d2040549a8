//! Podman with runc: storage, network and API service of the story's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Containers, IMAGE, entries, folder, image, remove_folder};
use crate::netns::Netns;
use crate::process::{Daemon, output, require, wait_until, with_command_line};
use crate::{Serial, http, serial};

/// The containers' network.
const SUBNET: &str = "198.18.88.0/24";
/// Memory that all of root's Podmans share their locks in.
const LOCKS: &str = "/dev/shm/libpod_lock";
/// Where in the folder containers and images are.
const STORAGE: &str = "storage";
/// The parent of the containers' cgroups.
pub(super) const CGROUPS: &str = "libpod_parent";
/// The file in the folder that holds the name of the network namespace.
const NETNS_FILE: &str = "netns";
/// Where the CNI plugin `host-local` notes the addresses it gave.
const LEASES: &str = "/var/lib/cni/networks";

/// A Podman with an API service. On `Drop` its containers, its processes, mounts and files go.
#[derive(Debug)]
pub struct Podman {
    socket: PathBuf,
    path: PathBuf,
    service: Option<Daemon>,
    folder: Option<TempDir>,
    netns: Netns,
    network: String,
    /// There were none before, so none are to stay.
    remove_locks: bool,
    _serial: Serial,
}

impl Podman {
    /// Sets everything up, starts the API service, waits until it answers, and imports [`IMAGE`].
    ///
    /// Containers are on a bridge in [`netns`](Self::netns) and reach one another. One Podman at
    /// a time: a second story waits here.
    pub fn start() -> Result<Self> {
        let serial = serial("podman")?;
        require("podman", "podman")?;
        require("runc", "runc")?;
        require("iptables", "iptables")?;
        let netns = Netns::new("podman")?;
        let folder = folder("podman")?;
        let path = folder.path().to_owned();
        let network = netns.name().to_owned();
        let mut podman = Self {
            socket: path.join("podman.sock"),
            path: path.clone(),
            service: None,
            folder: Some(folder),
            netns,
            network,
            remove_locks: !Path::new(LOCKS).exists(),
            _serial: serial,
        };
        fs::write(path.join(NETNS_FILE), podman.netns.name()).context("noting the namespace's name")?;
        podman.call(&["network", "create", "--disable-dns", "--subnet", SUBNET, &podman.network])?;
        let archive = image::pack(&path)?;
        output(podman.cli().arg("import").arg(archive).arg(IMAGE))?;
        let mut service = podman.cli();
        service.args(["system", "service", "--time", "0"]);
        service.arg(format!("unix://{}", podman.socket.display()));
        let mut service = Daemon::start(&mut service, &path.join("service.log"))?;
        service.wait_ready(Duration::from_secs(30), || {
            http::get_unix(&podman.socket, "/_ping").is_ok_and(|answer| answer.status == 200)
        })?;
        podman.service = Some(service);
        Ok(podman)
    }

    /// The namespace with the containers' bridge; a host to the containers.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Containers for Podman {
    fn cli(&self) -> Command {
        cli(&self.path, self.netns.name())
    }

    fn run_args(&self) -> &[&str] {
        // The limits podman asks for by itself may be higher than ours.
        &["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
    }

    fn default_network(&self) -> Option<&str> {
        Some(&self.network)
    }

    fn socket(&self) -> &Path {
        &self.socket
    }

    fn rm(&self, name: &str) -> Result<()> {
        self.call(&["rm", "--force", "--time", "0", name]).map(drop)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let containers = container_cgroups(&self.path);
        remove_containers(&self.path, self.netns.name());
        drop(self.service.take());
        // The cleanup of a container that ended by itself may still be at work.
        let text = self.path.to_string_lossy();
        let _ = wait_until("podman to clean up", Duration::from_secs(5), || {
            Ok(with_command_line(&text).is_empty().then_some(()))
        });
        if let Some(folder) = self.folder.take() {
            remove_folder(&folder.keep(), &containers);
        }
        let _ = fs::remove_dir_all(Path::new(LEASES).join(&self.network));
        if self.remove_locks {
            let _ = fs::remove_file(LOCKS);
        }
    }
}

/// The command line for the storage in a folder.
fn cli(folder: &Path, netns: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).args(["--", "podman"]);
    for (option, part) in
        [("--root", STORAGE), ("--runroot", "run"), ("--tmpdir", "tmp"), ("--network-config-dir", "networks")]
    {
        command.arg(option).arg(folder.join(part));
    }
    command
        .args(["--cgroup-manager", "cgroupfs", "--runtime", "runc", "--storage-driver", "overlay"])
        .arg(format!("--runtime-flag=root={}", folder.join("runc").display()))
        .args(["--events-backend", "none"]);
    command
}

/// One by one and the latest first: who is in another's network goes before that one, which else leaves it behind.
fn remove_containers(folder: &Path, netns: &str) {
    let ids = output(cli(folder, netns).args(["ps", "--all", "--quiet", "--no-trunc", "--sort", "created"]));
    for id in ids.unwrap_or_default().lines().rev() {
        if let Err(error) = output(cli(folder, netns).args(["rm", "--force", "--time", "0", id])) {
            eprintln!("podman: a container stays: {error:#}");
        }
    }
}

/// The cgroups of the containers in a folder, below the hierarchies' mounts.
pub(super) fn container_cgroups(folder: &Path) -> Vec<PathBuf> {
    let containers = entries(&folder.join(STORAGE).join("overlay-containers"));
    let cgroup = |id| Path::new(CGROUPS).join(format!("libpod-{id}"));
    containers.into_iter().map(cgroup).collect()
}

/// Removes the containers in a dead run's folder, as long as its namespace is still there: podman
/// alone knows which of the namespaces it made are theirs.
pub(super) fn sweep(folder: &Path) {
    if let Ok(netns) = fs::read_to_string(folder.join(NETNS_FILE)) {
        remove_containers(folder, &netns);
        let _ = fs::remove_dir_all(Path::new(LEASES).join(netns));
    }
}
