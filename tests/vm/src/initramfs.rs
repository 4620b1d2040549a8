//! A guest's whole file system: busybox, the programs under test with their libraries, what the stories call, and the
//! kernel's modules. Made of several archives, one after the other, as the kernel allows: the programs are the same for
//! all guests, the modules for all guests of one kernel, and each file of tests goes where it is needed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use functional::process::{find, output, require};
use tempfile::TempDir;

use crate::kernels::Kernel;
use crate::plan::{PLAN, Plan};
use crate::programs::Programs;

/// Kernel modules that init.sh loads, and those that the kernel asks for when a story does.
const MODULES: [&str; 5] = ["veth", "tun", "tcp_diag", "tcp_bbr", "sch_netem"];
/// One that Debian's kernels have from this version on.
const MPTCP_DIAG: (&str, (u64, u64)) = ("mptcp_diag", (5, 11));

/// What init.sh and the stories call and busybox has not got, or not like this; and Debian's package of it.
const TOOLS: [(&str, &str); 18] = [
    ("sh", "dash"),
    ("bash", "bash"),
    ("date", "coreutils"),
    ("kmod", "kmod"),
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("prlimit", "util-linux"),
    ("script", "bsdutils"),
    ("bpftool", "bpftool"),
    // What the bench compares with.
    ("tcplife", "libbpf-tools"),
    ("tcpstates", "libbpf-tools"),
    ("tcprtt", "libbpf-tools"),
    ("tcpconnlat", "libbpf-tools"),
    ("tcptop", "libbpf-tools"),
];

/// The archive of the programs, as a file at `archive`.
pub(crate) fn programs(programs: &Programs, archive: &Path) -> Result<()> {
    let root = Root::new()?;
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "root", "var"] {
        fs::create_dir_all(root.at(folder))?;
    }
    symlink("/run", root.at("var/run"))?;
    // The kernel looks for modprobe in sbin.
    symlink("bin", root.at("sbin"))?;
    symlink("kmod", root.at("bin/modprobe"))?;
    fs::write(root.at("init"), include_str!("init.sh"))?;
    fs::set_permissions(root.at("init"), Permissions::from_mode(0o755))?;
    let busybox = require("busybox", "busybox-static")?;
    ensure!(libraries(&busybox)?.is_empty(), "busybox needs libraries: apt-get install busybox-static");
    root.program(&busybox, "bin/busybox")?;
    for (tool, package) in TOOLS {
        root.program(&require(tool, package)?, &format!("bin/{tool}"))?;
    }
    // In no distribution; the bench leaves it out where it is not.
    if let Some(rezolus) = find("rezolus") {
        root.program(&rezolus, "bin/rezolus")?;
    }
    root.program(&std::env::current_exe()?, "bin/vm")?;
    root.program(&programs.tcptide, "bin/tcptide")?;
    root.program(&programs.bench, "bin/bench")?;
    // The tests look for it in the folder above theirs.
    root.program(&programs.workload, "bin/workload")?;
    root.pack(archive)
}

/// The archive of one file of tests.
pub(crate) fn tests(file: &str, executable: &Path, archive: &Path) -> Result<()> {
    let root = Root::new()?;
    root.program(executable, &format!("bin/tests/{file}"))?;
    root.pack(archive)
}

/// The archive of a kernel's modules.
pub(crate) fn modules(kernel: &Kernel, archive: &Path) -> Result<()> {
    let root = Root::new()?;
    let mut modprobe = Command::new(require("modprobe", "kmod")?);
    modprobe.arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", "-a"]).args(MODULES);
    if kernel.number() >= MPTCP_DIAG.1 {
        modprobe.arg(MPTCP_DIAG.0);
    }
    let own = format!("lib/modules/{}", kernel.release);
    // `insmod /path/of/a.ko` for each, those that others need first.
    for line in output(&mut modprobe)?.lines() {
        let Some(file) = line.strip_prefix("insmod ").map(|file| Path::new(file.trim_end())) else {
            continue;
        };
        let below = file.strip_prefix(kernel.root.join(&own));
        let below = below.with_context(|| format!("the module {} of {}", file.display(), kernel.release))?;
        root.file(file, &Path::new(&own).join(below))?;
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        root.file(&kernel.root.join(&own).join(list), &Path::new(&own).join(list))?;
    }
    output(Command::new(require("depmod", "kmod")?).arg("-b").arg(root.at("")).arg(&kernel.release))?;
    root.pack(archive)
}

/// The archive of what one guest has to do.
pub(crate) fn plan(plan: &Plan, archive: &Path) -> Result<()> {
    let root = Root::new()?;
    fs::write(root.at(PLAN.trim_start_matches('/')), serde_json::to_string(plan)?)?;
    root.pack(archive)
}

/// Puts archives one after the other.
pub(crate) fn join(archives: &[&Path], into: &Path) -> Result<()> {
    let mut whole = File::create(into)?;
    for archive in archives {
        io::copy(&mut File::open(archive)?, &mut whole)
            .with_context(|| format!("joining {}", archive.display()))?;
    }
    Ok(())
}

/// A folder that will be a root.
struct Root {
    folder: TempDir,
}

impl Root {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // The guest has other users than root.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        Ok(Self { folder })
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(path)
    }

    fn file(&self, from: &Path, to: &Path) -> Result<()> {
        let to = self.at(to);
        let copied = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(from, &to));
        copied.map(drop).with_context(|| format!("copying {} to {}", from.display(), to.display()))
    }

    /// A program, without its symbols, and its libraries where it looks for them.
    fn program(&self, from: &Path, to: &str) -> Result<()> {
        self.file(from, Path::new(to))?;
        output(Command::new(require("strip", "binutils")?).arg(self.at(to)))?;
        for library in libraries(from)? {
            let to = library.strip_prefix("/").unwrap_or(&library);
            if !self.at(to).exists() {
                self.file(&library, to)?;
            }
        }
        Ok(())
    }

    /// All of it as a cpio archive, as root's.
    fn pack(&self, archive: &Path) -> Result<()> {
        let mut shell = Command::new("sh");
        let script = "find . -print0 | cpio --null --create --format=newc --owner=+0:+0 --quiet > \"$0\"";
        require("cpio", "cpio")?;
        output(shell.args(["-c", script]).arg(archive).current_dir(self.at(""))).map(drop)
    }
}

/// The libraries that a program loads; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("starting `ldd`")?;
    let (told, said) = (String::from_utf8_lossy(&ldd.stdout), String::from_utf8_lossy(&ldd.stderr));
    ensure!(
        ldd.status.success() || said.contains("not a dynamic executable"),
        "ldd {}: {said}",
        program.display()
    );
    Ok(loaded(&told))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)` or `/lib64/ld-linux-x86-64.so.2 (0x00007f…)`.
fn loaded(ldd: &str) -> Vec<PathBuf> {
    let paths = ldd.lines().filter_map(|line| line.rsplit_once(" (0x")?.0.split_whitespace().last());
    paths.filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd5)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f9)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f9a)\n\tstatically linked\n";
        assert_eq!(loaded(text), ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
    }

    #[test]
    fn a_program_comes_with_its_libraries_for_every_user() {
        let root = Root::new().unwrap();
        root.program(&std::env::current_exe().unwrap(), "bin/test").unwrap();
        let libc = libraries(&root.at("bin/test")).unwrap();
        let libc = libc.iter().find(|library| library.ends_with("libc.so.6")).unwrap();
        assert!(root.at(libc.strip_prefix("/").unwrap()).is_file());
        let archive = tempfile::NamedTempFile::new().unwrap();
        root.pack(archive.path()).unwrap();
        let packed = fs::read(archive.path()).unwrap();
        // The first entry, the root itself: `070701`, inode, then the mode in hexadecimal.
        assert_eq!((&packed[..6], &packed[14..22]), (&b"070701"[..], &b"000041ED"[..]));
    }
}
