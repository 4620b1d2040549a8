//! Containers of LXC and systemd-nspawn: no daemon, no API, a name in the cgroup's path, and the network of who starts
//! them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{entries, folder, image, remove_cgroup_tree, remove_folder};
use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::{Reading, output, require};
use crate::workload::Running;

/// Where in the folder LXC's containers are.
const LXC: &str = "lxc";
/// How long a system may take from its boot to its end.
const BOOT: Duration = Duration::from_secs(120);
/// What LXC and systemd-nspawn make beside the containers' cgroups, in hierarchies of version 1 too, and leave.
pub(super) const CGROUPS: [&str; 3] = ["lxc.pivot", "payload", "supervisor"];

/// A root to run, and a place for what belongs to the containers. On `Drop` they go.
#[derive(Debug)]
pub struct Machines {
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Machines {
    /// Makes the root.
    pub fn new() -> Result<Self> {
        let folder = folder("machines")?;
        let path = folder.path().to_owned();
        image::unpack(&path.join("root"))?;
        Ok(Self { folder: Some(folder), path })
    }

    /// Runs `args` as the first process of a container of LXC, in the background, without any input. What it writes is
    /// not kept.
    pub fn lxc(&self, netns: &Netns, name: &str, args: &[&str]) -> Result<()> {
        let program = require("lxc-start", "lxc")?;
        let place = self.path.join(LXC);
        fs::create_dir_all(place.join(name)).context("making the container's folder")?;
        let mut config = format!("lxc.uts.name = {name}\nlxc.net.0.type = none\n");
        writeln!(config, "lxc.rootfs.path = dir:{}", self.path.join("root").display())?;
        config.push_str("lxc.apparmor.profile = unconfined\nlxc.mount.auto = proc\n");
        fs::write(place.join(name).join("config"), config)
            .context("writing the container's configuration")?;
        let mut command = Command::new(program);
        command.args(["-d", "-n", name, "-P"]).arg(place).arg("--").args(args);
        output(&mut netns.wrap(&command)).map(drop)
    }

    /// Runs `args` in a container of systemd-nspawn that stays in the cgroup it is started in: that of a unit, by which
    /// the container is called.
    pub fn nspawn(&self, netns: &Netns, unit: &Cgroup, args: &[&str]) -> Result<Running> {
        let mut command = Command::new(require("systemd-nspawn", "systemd-container")?);
        command.args(["--quiet", "--register=no", "--keep-unit", "-D"]).arg(self.path.join("root"));
        // Its console is a pipe: nothing is to be changed on the way.
        command.args(["--console=pipe", "--"]).args(args);
        Running::start(&mut unit.wrap(&netns.wrap(&command)))
    }

    /// Boots this host's own system in a container of systemd-nspawn, on top of which every change is in memory, without the
    /// host's network, and with these files and folders of the host at these places; to the one unit that is named, which
    /// should end in `systemctl poweroff`. Returns what the console said.
    pub fn boot(&self, unit: &Cgroup, files: &[(&Path, &str)], wanted: &str) -> Result<Vec<String>> {
        require("systemd-nspawn", "systemd-container")?;
        let root = self.path.join("host");
        fs::create_dir_all(&root).context("making a place for the root")?;
        // It takes no root that is its own: a second mount of it, which is gone with the namespace of mounts.
        let script = r#"mount --bind / "$1"; shift; exec systemd-nspawn "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", script, "sh"]).arg(&root);
        command.args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--capability=all"]);
        command.args(["--console=pipe", "--boot", "--volatile=overlay", "-D"]).arg(&root);
        for (file, place) in files {
            command.arg(format!("--bind={}:{place}", file.display()));
        }
        command.arg(format!("systemd.unit={wanted}"));
        // What may be done with BPF is for the unit's own filter to say.
        command.env("SYSTEMD_SECCOMP", "0");
        let mut running = Reading::start(&mut unit.wrap(&command))?;
        running.close_stdin();
        let ended = running.wait(BOOT);
        // It has others in hierarchies of version 1; and where it did not end in time, there is more to end than its keeper.
        remove_cgroup_tree(unit.path().strip_prefix("/").unwrap_or(unit.path()));
        let ended = ended?;
        Ok([ended.stdout, ended.stderr].concat())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            let containers = container_cgroups(&self.path);
            remove_folder(&folder.keep(), &containers);
        }
    }
}

/// The cgroups of LXC's containers in a folder and of what keeps them, below the hierarchies' mounts.
pub(super) fn container_cgroups(folder: &Path) -> Vec<PathBuf> {
    let both = |name: String| ["payload", "monitor"].map(|part| format!("lxc.{part}.{name}").into());
    entries(&folder.join(LXC)).into_iter().flat_map(both).collect()
}
