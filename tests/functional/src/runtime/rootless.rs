//! Podman without root: containers of a user, in the user's own storage, named by the user's own API service, in cgroups below
//! the user's own as systemd delegates it. Podman makes them where it sees version 2 alone, so it is shown nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{IMAGE, image};
use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::{Daemon, output, require, wait_until, with_command_line};
use crate::sweep::own_name;
use crate::{Serial, http, serial};

/// `nobody`, a user that is there everywhere.
const USER: u32 = 65534;
/// Joins the cgroup `$0` below the only hierarchy in sight, and runs the rest.
const WITH_VERSION_2: &str = r#"umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup &&
echo $$ > "/sys/fs/cgroup$0/cgroup.procs" && exec "$@""#;

/// A user's Podman, in a network namespace. On `Drop` its containers, processes and files go.
#[derive(Debug)]
pub struct Rootless {
    path: PathBuf,
    service: Option<Daemon>,
    cgroup: Cgroup,
    netns: Netns,
    _folder: TempDir,
    _serial: Serial,
}

impl Rootless {
    /// Imports [`IMAGE`], and starts the API service.
    pub fn start() -> Result<Self> {
        let serial = serial("podman")?;
        require("podman", "podman")?;
        require("runc", "runc")?;
        let netns = Netns::new("rootless")?;
        let cgroup = Cgroup::new(format!("user.slice/user-{USER}.slice/user@{USER}.service/app.slice"))?;
        delegate(cgroup.folder().parent().context("no parent of a cgroup")?)?;
        delegate(cgroup.folder())?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", own_name("rootless")))
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("making a folder for Podman")?;
        let path = folder.path().to_owned();
        let archive = image::pack(&path)?;
        for own in ["home", "run"] {
            fs::create_dir(path.join(own))?;
            chown(path.join(own), Some(USER), Some(USER))?;
        }
        fs::set_permissions(path.join("run"), Permissions::from_mode(0o700))?;
        let mut rootless = Self { path, service: None, cgroup, netns, _folder: folder, _serial: serial };
        output(rootless.cli().arg("import").arg(archive).arg(IMAGE))?;
        let mut service = rootless.cli();
        service.args(["system", "service", "--time", "0"]);
        service.arg(format!("unix://{}", rootless.socket().display()));
        let mut service = Daemon::start(&mut service, &rootless.path.join("service.log"))?;
        service.wait_ready(Duration::from_secs(30), || {
            http::get_unix(&rootless.socket(), "/_ping").is_ok_and(|answer| answer.status == 200)
        })?;
        rootless.service = Some(service);
        Ok(rootless)
    }

    /// The network namespace that the user is in, and the containers.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The socket of the user's API service.
    pub fn socket(&self) -> PathBuf {
        self.path.join("run/podman.sock")
    }

    /// The user's own cgroup, which the user's systemd is given: a path.
    pub fn home(&self) -> Option<&Path> {
        self.cgroup.path().parent()
    }

    /// Runs a container in the user's network: its whole id, and its first process.
    pub fn run(&self, name: &str, command: &[&str]) -> Result<(String, i32)> {
        let mut run = self.cli();
        // The limits podman asks for by itself may be higher than ours.
        run.args(["run", "--detach", "--network", "host", "--ulimit", "nofile=4096:4096"]);
        run.args(["--ulimit", "nproc=4096:4096", "--name", name]).arg(format!("localhost/{IMAGE}"));
        let id = output(run.args(command))?.trim().to_owned();
        let pid = output(self.cli().args(["inspect", "--format", "{{.State.Pid}}", &id]))?;
        Ok((id, pid.trim().parse().context("podman told no process id")?))
    }

    fn cli(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.path().display()));
        command.args(["--", "unshare", "--mount", "--propagation=private", "sh", "-c", WITH_VERSION_2]);
        command.arg(self.cgroup.path()).args([
            "setpriv",
            &format!("--reuid={USER}"),
            &format!("--regid={USER}"),
            "--clear-groups",
        ]);
        command.args([
            "--",
            "podman",
            "--cgroup-manager",
            "cgroupfs",
            "--runtime",
            "runc",
            "--storage-driver",
            "vfs",
        ]);
        // One id is mapped, as for a user without others: the image's files are all the user's.
        command.args(["--storage-opt", "vfs.ignore_chown_errors=true", "--events-backend", "none"]);
        for (option, part) in [("--root", "home/storage"), ("--runroot", "run/root"), ("--tmpdir", "run/tmp")]
        {
            command.arg(option).arg(self.path.join(part));
        }
        command.env("HOME", self.path.join("home")).env("XDG_RUNTIME_DIR", self.path.join("run"));
        command.current_dir("/");
        command
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        if let Err(error) = output(self.cli().args(["rm", "--all", "--force", "--time", "0"])) {
            eprintln!("podman: containers stay: {error:#}");
        }
        drop(self.service.take());
        // What keeps the user's namespaces goes by no other way.
        for file in pause_files(&self.path) {
            let pid = fs::read_to_string(&file).unwrap_or_default();
            let _ = output(Command::new("kill").args(["-KILL", pid.trim()]));
        }
        let text = self.path.to_string_lossy();
        let _ = wait_until("podman to clean up", Duration::from_secs(5), || {
            Ok(with_command_line(&text).is_empty().then_some(()))
        });
        let _ = fs::remove_file(format!("/dev/shm/libpod_rootless_lock_{USER}"));
    }
}

/// Gives the user a cgroup as systemd does: to make others in it, and to move processes.
fn delegate(folder: &Path) -> Result<()> {
    let files = ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
    files
        .into_iter()
        .try_for_each(|file| chown(folder.join(file), Some(USER), Some(USER)))
        .context("giving a cgroup to its user")
}

/// Files with the process that keeps the user's namespaces.
fn pause_files(folder: &Path) -> Vec<PathBuf> {
    let places = ["run/tmp/pause.pid", "run/libpod/tmp/pause.pid"];
    places.into_iter().map(|place| folder.join(place)).filter(|file| file.exists()).collect()
}
