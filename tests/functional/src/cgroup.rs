//! cgroups of a story's own, and processes that are born inside them.
//!
//! A story may ask for any path below the cgroup2 mount, such as one that a container runtime
//! would use. What is made here carries a mark (an extended attribute with the maker's pid), and
//! nothing without that mark is ever entered, emptied or removed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::process::{alive, kill_all, wait_until, wrapped};
use crate::{require_root, sweep};

/// Holds the pid of the process that made the cgroup, as decimal text.
const MARK: &str = "trusted.tcptide-test";

/// A cgroup (version 2) made by a story. Emptied and removed on `Drop`.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup at `path`, relative to the cgroup2 mount, and the parents it needs.
    ///
    /// An error if it is there already: then it is somebody else's.
    pub fn new(path: impl AsRef<Path>) -> Result<Self> {
        require_root()?;
        sweep::once();
        let path = path.as_ref();
        let relative = path.strip_prefix("/").unwrap_or(path);
        if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
            bail!("a cgroup's path has plain names only, not {}", path.display());
        }
        let root = mount_point()?;
        let folder = root.join(relative);
        make_folder(&root, &folder)?;
        Ok(Self { path: Path::new("/").join(relative), folder })
    }

    /// Makes a cgroup with a name of its own at the top level.
    pub fn unique(story: &str) -> Result<Self> {
        Self::new(sweep::own_name(story))
    }

    /// Its path as `/proc/PID/cgroup` shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cgroup's id as BPF sees it: its directory's inode number.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.folder).with_context(|| format!("{}", self.folder.display()))?.ino())
    }

    /// A command that will run `program` inside: it is a member before it is executed.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.wrap(&Command::new(program))
    }

    /// `command`, with its arguments and environment, to be run inside.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        let script = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        shell.args(["-c", script]).arg(&self.folder);
        wrapped(shell, command)
    }

    /// Makes this process a member while `inside` runs: the sockets made there belong to the cgroup for good.
    pub fn host<T>(&self, inside: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
        // Also after a panic: who is left in a cgroup is killed with it.
        let _guest = Guest { home: mount_point()?.join(own) };
        join(&self.folder)?;
        inside()
    }

    /// The processes in it, as this pid namespace numbers them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let file = self.folder.join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// This process in a cgroup that is not its own, until `Drop`.
struct Guest {
    home: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = join(&self.home) {
            eprintln!("{error:#}");
        }
    }
}

/// Makes this process a member of a cgroup.
fn join(folder: &Path) -> Result<()> {
    let members = folder.join("cgroup.procs");
    fs::write(&members, "0").with_context(|| format!("joining {}", members.display()))
}

/// Where the cgroup2 hierarchy is mounted: `/sys/fs/cgroup`, or elsewhere beside version 1.
pub fn mount_point() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    cgroup2_mount(&text).ok_or_else(|| anyhow!("no cgroup2 hierarchy is mounted"))
}

/// The mount point of the whole cgroup2 hierarchy in the text of a `mountinfo`.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && filesystem.starts_with("cgroup2 ")).then(|| PathBuf::from(point))
    })
}

/// Makes `folder` and its missing parents below `root`, each with the mark.
fn make_folder(root: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        bail!("the cgroup {} is there already, and not this story's", folder.display());
    }
    let parents = folder.ancestors().take_while(|&parent| parent != root);
    for missing in parents.filter(|parent| !parent.exists()).collect::<Vec<_>>().into_iter().rev() {
        match fs::create_dir(missing) {
            Ok(()) => {}
            // Another story may share the parent and have made it just now.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && missing != folder => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("making the cgroup {}", missing.display()));
            }
        }
        let pid = std::process::id().to_string();
        setxattr(missing, MARK, pid.as_bytes(), XattrFlags::empty())
            .with_context(|| format!("marking the cgroup {}", missing.display()))?;
    }
    Ok(())
}

/// The pid in the mark, if the cgroup carries one.
fn maker(folder: &Path) -> Option<i32> {
    let mut value = [0_u8; 16];
    let length = getxattr(folder, MARK, &mut value).ok()?;
    std::str::from_utf8(value.get(..length)?).ok()?.parse().ok()
}

/// Kills the members of a cgroup of ours, removes it, and its parents if they are ours and empty.
fn remove(folder: &Path) {
    for child in children(folder) {
        remove(&child);
    }
    let emptied = wait_until("the cgroup to be empty", Duration::from_secs(10), || {
        let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        kill_all(&members.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
        // Fails with EBUSY as long as an exiting member has not left.
        Ok((!folder.exists() || fs::remove_dir(folder).is_ok()).then_some(()))
    });
    if let Err(error) = emptied {
        eprintln!("leaving the cgroup {} behind: {error:#}", folder.display());
        return;
    }
    for parent in folder.ancestors().skip(1).take_while(|parent| maker(parent).is_some()) {
        if fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes the cgroups whose maker no longer exists.
pub(crate) fn sweep() {
    let Ok(root) = mount_point() else { return };
    for folder in children(&root) {
        remove_if_dead(&folder, false);
    }
}

/// Removes `folder` if its mark, or for want of one its parent's, is a dead process's.
///
/// A living story's cgroup below a dead one's parent stays, and keeps the parent.
fn remove_if_dead(folder: &Path, parent_is_dead: bool) -> bool {
    let dead = maker(folder).map_or(parent_is_dead, |pid| !alive(pid));
    let kept = children(folder).iter().filter(|child| !remove_if_dead(child, dead)).count();
    if dead && kept == 0 {
        remove(folder);
    }
    dead && kept == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_beside_version_1() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                    40 31 0:38 /kubepods /mnt/part rw - cgroup2 cgroup2 rw\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount("31 23 0:28 / /sys rw - sysfs sysfs rw"), None);
    }

    #[test]
    fn a_path_that_climbs_is_refused() {
        assert!(Cgroup::new("a/../../b").is_err());
    }
}
