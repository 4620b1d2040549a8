//! Names that tell who made a thing, and the removal of what dead runs left behind.
//!
//! `Drop` removes what a story made, also after a panic. It does not run when the test process is
//! killed, so the first use in the next run sweeps: namespaces and folders whose name carries the
//! id of a process that no longer exists, and cgroups marked with such an id.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cgroup;
use crate::process::{alive, kill_all, output};
use crate::runtime;

/// What every name made here starts with.
const PREFIX: &str = "tcptide-";

/// `tcptide-PID-N-story`: unique on this machine, and tells whose it is.
pub fn own_name(story: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let story: String =
        story.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    format!("{PREFIX}{}-{number}-{story}", std::process::id())
}

/// Whether `name` is one that [`own_name`] gave in a process that no longer exists.
pub fn is_left_over(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse().ok())
        .is_some_and(|pid: i32| !alive(pid))
}

/// Sweeps, the first time it is called in this process.
pub fn once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
}

/// Removes what dead runs left: runtime folders with their daemons and mounts, namespaces, cgroups.
pub fn sweep() {
    for folder in left_over_in(&std::env::temp_dir()) {
        runtime::sweep(&std::env::temp_dir().join(folder));
    }
    for name in left_over_in(Path::new("/run/netns")) {
        remove_netns(&name);
    }
    cgroup::sweep();
}

fn left_over_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_left_over(name))
        .collect()
}

/// Ends who still runs in a dead run's namespace, and removes it.
fn remove_netns(name: &str) {
    let pids = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    let pids: Vec<i32> = pids.lines().filter_map(|pid| pid.trim().parse().ok()).collect();
    kill_all(&pids);
    if let Err(error) = output(Command::new("ip").args(["netns", "del", name])) {
        eprintln!("a left-over namespace stays: {error:#}");
    }
}
