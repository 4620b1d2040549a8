//! Real container runtimes, each with a data folder, a network namespace and an API socket of its
//! own, so that nothing on the machine is shared or left changed.
//!
//! A missing program is an error that names the Debian package.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{kill_all, output, with_command_line};
use crate::sweep::own_name;

mod containerd;
mod docker;
mod image;
mod machines;
mod podman;
mod rootless;

pub use containerd::{Containerd, Pod};
pub use docker::Docker;
pub use image::IMAGE;
pub use machines::Machines;
pub use podman::Podman;
pub use rootless::Rootless;

/// What a story does with containers; Docker's and Podman's command lines agree on it.
pub trait Containers {
    /// The runtime's command line, ready for a subcommand.
    fn cli(&self) -> Command;

    /// Arguments that `run` needs here in every case.
    fn run_args(&self) -> &[&str];

    /// The network to use unless the options name another; `None` for the runtime's default.
    fn default_network(&self) -> Option<&str> {
        None
    }

    /// The Unix socket of its API.
    fn socket(&self) -> &Path;

    /// Runs a subcommand to its end and returns its stdout.
    fn call(&self, args: &[&str]) -> Result<String> {
        output(self.cli().args(args))
    }

    /// Starts a container of the image [`IMAGE`] in the background and returns its id: 64 hex
    /// digits. `args` is what it runs.
    fn run(&self, name: &str, args: &[&str]) -> Result<String> {
        self.run_with(name, &[], args)
    }

    /// As [`run`](Self::run), with more options for the runtime, such as `--network=host`.
    fn run_with(&self, name: &str, options: &[&str], args: &[&str]) -> Result<String> {
        let mut command = self.cli();
        command.args(["run", "-d", "--name", name]).args(self.run_args()).args(options);
        let chosen = options.iter().any(|option| option.starts_with("--net"));
        if let Some(network) = self.default_network().filter(|_| !chosen) {
            command.args(["--network", network]);
        }
        output(command.arg(IMAGE).args(args))
    }

    /// Runs a program in a running container to its end and returns its stdout.
    fn exec(&self, name: &str, args: &[&str]) -> Result<String> {
        output(self.cli().args(["exec", name]).args(args))
    }

    /// Kills and removes a container.
    fn rm(&self, name: &str) -> Result<()> {
        output(self.cli().args(["rm", "-f", name])).map(drop)
    }

    /// What a container wrote to stdout.
    fn logs(&self, name: &str) -> Result<String> {
        output(self.cli().args(["logs", name]))
    }

    /// `inspect`, as JSON.
    fn inspect(&self, name: &str) -> Result<Value> {
        let text = output(self.cli().args(["inspect", "--type", "container", name]))?;
        let all: Value = serde_json::from_str(&text).context("reading the output of inspect")?;
        all.get(0).cloned().ok_or_else(|| anyhow!("inspect knows no container {name}"))
    }

    /// The container's first process, as the host numbers it.
    fn pid(&self, name: &str) -> Result<i32> {
        let value = self.inspect(name)?;
        let pid = value.pointer("/State/Pid").and_then(Value::as_i64).filter(|&pid| pid > 0);
        pid.map(|pid| pid as i32).ok_or_else(|| anyhow!("the container {name} does not run"))
    }

    /// The container's address on the runtime's network.
    fn address(&self, name: &str) -> Result<IpAddr> {
        let value = self.inspect(name)?;
        let networks = value.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        networks
            .into_iter()
            .flatten()
            .find_map(|(_, network)| network.get("IPAddress")?.as_str()?.parse().ok())
            .ok_or_else(|| anyhow!("the container {name} has no address"))
    }

    /// The container's cgroup (version 2), as a path below the mount.
    fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let file = format!("/proc/{}/cgroup", self.pid(name)?);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        path.map(PathBuf::from).ok_or_else(|| anyhow!("{file} has no cgroup2 line"))
    }
}

/// Makes a runtime's folder, named after this process.
fn folder(runtime: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("{}-", own_name(runtime)))
        .tempdir()
        .with_context(|| format!("making a folder for {runtime}"))
}

/// Removes what a dead run's runtime left in its folder, and around it.
pub(crate) fn sweep(folder: &Path) {
    let containers = [
        docker::container_cgroups(folder),
        podman::container_cgroups(folder),
        machines::container_cgroups(folder),
    ]
    .concat();
    podman::sweep(folder);
    containerd::sweep(folder);
    remove_folder(folder, &containers);
}

/// Ends every process that was started with something in this folder, and those in the containers
/// it held; unmounts what is mounted below it, and removes it and the containers' cgroups.
///
/// The folder's name is random, so whoever has it on the command line is ours.
fn remove_folder(folder: &Path, containers: &[PathBuf]) {
    kill_users(folder);
    for cgroup in containers {
        remove_container_cgroups(cgroup);
    }
    for mount in mounts_below(folder) {
        let _ = unmount(&mount, UnmountFlags::DETACH);
    }
    if let Err(error) = fs::remove_dir_all(folder)
        && folder.exists()
    {
        eprintln!("leaving {} behind: {error}", folder.display());
    }
    for mount in cgroup_mounts() {
        for left in machines::CGROUPS {
            remove_empty_below(&mount.join(left));
        }
    }
    remove_empty_cgroups(Path::new(docker::CGROUPS));
    remove_empty_cgroups(&Path::new(podman::CGROUPS).join("conmon"));
    remove_empty_cgroups(Path::new(podman::CGROUPS));
}

fn kill_users(folder: &Path) {
    kill_all(&with_command_line(&folder.to_string_lossy()));
}

/// Ends who is left in a cgroup or below it, and removes all of them in every hierarchy.
fn remove_cgroup_tree(path: &Path) {
    for mount in cgroup_mounts() {
        remove_below(&mount, path);
    }
}

fn remove_below(mount: &Path, path: &Path) {
    let children = fs::read_dir(mount.join(path)).into_iter().flatten().flatten();
    for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_below(mount, &path.join(child.file_name()));
    }
    remove_container_cgroups(path);
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Mount points below a folder, the innermost and latest first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    below
}

/// Where the cgroup hierarchies are mounted: one, or with version 1 one for each controller.
fn cgroup_mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_cgroups = text.lines().filter(|line| {
        line.split_once(" - ").is_some_and(|(_, filesystem)| filesystem.starts_with("cgroup"))
    });
    of_cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Ends who is left in a container, and removes its cgroups in every hierarchy.
fn remove_container_cgroups(path: &Path) {
    for folder in cgroup_mounts().iter().map(|mount| mount.join(path)).filter(|folder| folder.exists()) {
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        kill_all(&members.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
        let _ = fs::remove_dir(folder);
    }
}

/// Removes a cgroup and all below it, as a system that was booted leaves them, where nothing is in them.
fn remove_empty_below(folder: &Path) {
    for child in entries(folder) {
        let child = folder.join(child);
        if child.is_dir() {
            remove_empty_below(&child);
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Removes the cgroups with this path in every hierarchy if nothing is in them: a runtime makes
/// such parents when it needs them, and leaves them.
fn remove_empty_cgroups(path: &Path) {
    for mount in cgroup_mounts() {
        // Fails, as it should, where there is none or a container is in it.
        let _ = fs::remove_dir(mount.join(path));
    }
}
