//! A virtual machine, emulated: it needs neither root nor /dev/kvm, and is the same everywhere.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use functional::process::{require, wait_until};

use crate::kernels::Kernel;
use crate::plan::{Boot, Line};

/// MiB of memory; the file system takes its part of it.
const MEMORY: &str = "2048";
/// Two, so that packets can be processed elsewhere than where they were sent.
const CPUS: &str = "2";
/// One thread for all CPUs: with one for each, QEMU before 8.1 may translate an instruction while the kernel patches it,
/// and the breakpoint that is there for that moment stays: a panic, too.
const ACCELERATOR: &str = "tcg,thread=single";
/// How much of the kernel's last words is shown.
const LAST_WORDS: usize = 30;

/// What a guest sent, and how it ended.
pub(crate) struct Ran {
    /// In the order in which they came.
    pub lines: Vec<Line>,
    /// Why there may be more to tell than came, if so, with the console's last lines.
    pub broken: Option<String>,
    /// From start to end.
    pub took: Duration,
}

/// Boots a kernel and waits for its end, for at most `limit`. `folder` receives console and results.
pub(crate) fn run(
    kernel: &Kernel,
    boot: Boot,
    initramfs: &Path,
    limit: Duration,
    folder: &Path,
) -> Result<Ran> {
    let [console, results] = ["console", "results"].map(|name| folder.join(name));
    let mut qemu = Command::new(require("qemu-system-x86_64", "qemu-system-x86")?);
    qemu.args(["-accel", ACCELERATOR, "-cpu", cpu(kernel), "-m", MEMORY]);
    match boot {
        Boot::Counted => qemu.args(["-smp", "1", "-icount", "shift=0,sleep=off"]),
        Boot::Usual | Boot::CgroupV1 => qemu.args(["-smp", CPUS]),
    };
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    for line in [&console, &results] {
        qemu.arg("-serial").arg(format!("file:{}", line.display()));
    }
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    // panic=-1 with -no-reboot: a guest that panics ends.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);

    let log = File::create(folder.join("qemu"))?;
    let begun = Instant::now();
    let mut child =
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("starting QEMU")?;
    let ended = wait_until("the guest to end", limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().context("ending QEMU")?;
        child.wait()?;
    }
    let took = begun.elapsed();
    let lines = parse(&fs::read_to_string(&results).unwrap_or_default());
    let why = match (ended, lines.last()) {
        (Err(_), _) => Some(format!("the guest was ended after {} s", limit.as_secs())),
        (Ok(_), Some(Line::End)) => None,
        (Ok(status), _) => Some(format!("the guest ended early (QEMU: {status})")),
    };
    let broken =
        why.map(|why| format!("{why}; its last words:\n{}", last_words(&[folder.join("qemu"), console])));
    Ok(Ran { lines, broken, took })
}

/// A plain one: with the wide registers and the fifth level of page tables of `max`, QEMU takes a sixth longer. And QEMU
/// 7.2 leaves wrong flags behind `cmpxchg16b`, and an interrupt at that moment makes the kernel panic: 6.12 in every fourth
/// boot on a busy machine, never without the instruction. From 7.0 on the kernel needs it for the storage of BPF programs
/// (`kmalloc_nolock`), and boots as it should.
fn cpu(kernel: &Kernel) -> &'static str {
    if kernel.number() < (7, 0) { "Nehalem,-cx16" } else { "Nehalem" }
}

/// A line that is cut off is none.
fn parse(results: &str) -> Vec<Line> {
    results.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn last_words(files: &[impl AsRef<Path>]) -> String {
    let text: String = files
        .iter()
        .map(|file| String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned())
        .collect();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}
