//! Docker: a daemon of the story's own, in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Containers, IMAGE, entries, folder, image, remove_folder};
use crate::netns::Netns;
use crate::process::{Daemon, output, require};
use crate::{Serial, serial};

/// The bridge's address and the containers' network.
const BRIDGE: &str = "198.18.77.1/24";

/// Where in the folder containers and images are.
const DATA: &str = "data";
/// The parent of the containers' cgroups.
pub(super) const CGROUPS: &str = "docker";

/// A running Docker daemon. On `Drop` its containers, its processes, mounts and files go.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    daemon: Option<Daemon>,
    folder: Option<TempDir>,
    netns: Netns,
    args: Vec<String>,
    _serial: Serial,
}

impl Docker {
    /// Starts the daemon, waits until it answers, and imports [`IMAGE`].
    ///
    /// Containers are on a bridge in [`netns`](Self::netns) and reach one another; nothing leaves
    /// that namespace. One daemon at a time: a second story waits here.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with more arguments for `dockerd`.
    pub fn start_with(args: &[&str]) -> Result<Self> {
        let serial = serial("docker")?;
        require("docker", "docker.io")?;
        let netns = Netns::new("docker")?;
        let folder = folder("docker")?;
        let path = folder.path().to_owned();
        let socket = path.join("docker.sock");
        let args = args.iter().map(ToString::to_string).collect();
        let mut docker = Self { socket, daemon: None, folder: Some(folder), netns, args, _serial: serial };
        std::fs::write(path.join("daemon.json"), "{}").context("writing the daemon's configuration")?;
        docker.start_daemon()?;
        let archive = image::pack(&path)?;
        output(docker.cli().arg("import").arg(archive).arg(IMAGE))?;
        Ok(docker)
    }

    fn start_daemon(&mut self) -> Result<()> {
        let path = self.socket.parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(require("dockerd", "docker.io")?);
        command
            .arg("--data-root")
            .arg(path.join(DATA))
            .arg("--exec-root")
            .arg(path.join("exec"))
            .arg("--pidfile")
            .arg(path.join("docker.pid"))
            .arg("--config-file")
            .arg(path.join("daemon.json"))
            .args(["-H", &self.host(), "--bip", BRIDGE])
            // Nothing to filter or translate in a namespace without a way out.
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false", "--userland-proxy=false"])
            .args(&self.args);
        let mut daemon = Daemon::start(&mut self.netns.wrap(&command), &path.join("dockerd.log"))?;
        daemon.wait_ready(Duration::from_secs(60), || self.call(&["version"]).is_ok())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends the daemon. With `--live-restore` its containers live on.
    pub fn stop_daemon(&mut self) {
        self.daemon = None;
    }

    /// Starts the daemon again.
    pub fn restart_daemon(&mut self) -> Result<()> {
        self.stop_daemon();
        self.start_daemon()
    }

    /// The namespace with the containers' bridge; a host to the containers.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    fn remove_containers(&self) {
        let Ok(ids) = self.call(&["ps", "-aq"]) else { return };
        for id in ids.lines() {
            if let Err(error) = self.rm(id) {
                eprintln!("docker: a container stays: {error:#}");
            }
        }
    }
}

impl Containers for Docker {
    fn cli(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.host()]).env_remove("DOCKER_CONTEXT");
        // No file of the user's is read or written.
        if let Some(folder) = &self.folder {
            command.env("DOCKER_CONFIG", folder.path().join("client"));
        }
        command
    }

    fn run_args(&self) -> &[&str] {
        &[]
    }

    fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let path = self.socket.parent().unwrap_or(Path::new("/"));
        let containers = container_cgroups(path);
        if let Some(mut daemon) = self.daemon.take() {
            self.remove_containers();
            daemon.stop(Duration::from_secs(30));
        }
        if let Some(folder) = self.folder.take() {
            remove_folder(&folder.keep(), &containers);
        }
    }
}

/// The cgroups of the containers in a folder, below the hierarchies' mounts.
pub(super) fn container_cgroups(folder: &Path) -> Vec<PathBuf> {
    let containers = entries(&folder.join(DATA).join("containers"));
    containers.into_iter().map(|id| Path::new(CGROUPS).join(id)).collect()
}
