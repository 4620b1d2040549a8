//! Names from containers' own `/etc/hosts`.
//!
//! Read as the container's processes see it, in a thread: the file system may be one that never answers. A container
//! cannot make anything else be read: links are followed within its own root, and only a plain file is read.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::privileges;

/// A file is good for so long; who has none is asked again as often.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// The most bytes that are read of one.
const LONGEST: u64 = 256 << 10;
/// The most containers whose files are kept.
const MOST: usize = 4096;
/// Requests that wait for the thread; more are asked for again later.
const WAITING: usize = 1024;
/// How deep a container's cgroups are searched for a process.
const DEPTH: usize = 4;

type Entries = HashMap<IpAddr, Arc<str>>;

/// Who asks is told what is known, and the file is read meanwhile.
#[derive(Default)]
pub(super) struct Hosts {
    shared: Arc<Shared>,
    /// To the thread, which begins with the first request; none where it could not.
    requests: OnceLock<Option<SyncSender<Request>>>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<Files>,
    done: Condvar,
}

#[derive(Default)]
struct Files {
    by_container: HashMap<u64, HostsFile>,
    /// Requests that were not answered yet.
    pending: usize,
}

struct HostsFile {
    asked: Instant,
    entries: Arc<Entries>,
}

struct Request {
    container: u64,
    /// The container's cgroup.
    folder: PathBuf,
}

impl Hosts {
    /// Begins to read.
    fn start(&self) -> Option<SyncSender<Request>> {
        let (requests, asked) = sync_channel::<Request>(WAITING);
        let run = {
            let shared = self.shared.clone();
            move || {
                // What it reads is containers' own.
                if let Err(error) = privileges::keep(privileges::OF_FILES) {
                    tracing::warn!("{error:#}");
                    return;
                }
                for request in asked {
                    let entries = read(&request.folder).unwrap_or_else(|error| {
                        tracing::debug!("{}: {error:#}", request.folder.display());
                        Entries::new()
                    });
                    shared.answer(request.container, entries);
                }
            }
        };
        let thread = thread::Builder::new().name("hosts-files".to_owned()).spawn(run);
        thread.ok().map(|_| requests)
    }

    /// What a container's file calls an address, as far as it has been read. `folder` is the container's cgroup.
    pub(super) fn name(
        &self,
        container: u64,
        address: IpAddr,
        folder: impl FnOnce() -> Option<PathBuf>,
    ) -> Option<Arc<str>> {
        // That of a container's own names for itself tells nothing.
        if address.is_loopback() {
            return None;
        }
        let requests = self.requests.get_or_init(|| self.start()).as_ref()?;
        let mut files = self.shared.files();
        let now = Instant::now();
        let is_good = |file: &HostsFile| now.saturating_duration_since(file.asked) < GOOD_FOR;
        let mut name = None;
        if let Some(file) = files.by_container.get_mut(&container) {
            name = file.entries.get(&address).cloned();
            if is_good(file) {
                return name;
            }
            file.asked = now;
        } else {
            if files.by_container.len() >= MOST {
                files.by_container.retain(|_, file| is_good(file));
            }
            if files.by_container.len() >= MOST {
                return None;
            }
            files.by_container.insert(container, HostsFile { asked: now, entries: Arc::default() });
        }
        let request = folder().map(|folder| Request { container, folder });
        match request.map(|request| requests.try_send(request)) {
            Some(Ok(())) => files.pending += 1,
            Some(Err(_)) => drop(files.by_container.remove(&container)),
            None => {}
        }
        name
    }

    /// Waits until what was asked for is there, for so long at most.
    pub(super) fn settle(&self, timeout: Duration) {
        let files = self.shared.files();
        let done = self.shared.done.wait_timeout_while(files, timeout, |files| files.pending > 0);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, container: u64, entries: Entries) {
        let mut files = self.files();
        files.pending -= 1;
        if let Some(file) = files.by_container.get_mut(&container) {
            file.entries = Arc::new(entries);
        }
        self.done.notify_all();
    }
}

/// The file of the processes in a cgroup, or in one below it.
fn read(folder: &Path) -> anyhow::Result<Entries> {
    let Some(pid) = process_in(folder, DEPTH) else { bail!("no process to look at") };
    let process = openat(
        CWD,
        format!("/proc/{pid}"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("opening the process")?;
    // From here on it is this process, whoever has its number later: see that it is still one of these.
    if process_in(folder, DEPTH) != Some(pid) {
        bail!("its process ended meanwhile");
    }
    let root = openat(&process, "root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context("opening its root")?;
    entries_below(&root)
}

/// The file below a root directory.
fn entries_below(root: &OwnedFd) -> anyhow::Result<Entries> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: File =
        openat2(root, "etc/hosts", flags, Mode::empty(), resolve).context("opening /etc/hosts")?.into();
    if !file.metadata().context("looking at /etc/hosts")?.is_file() {
        bail!("/etc/hosts is no file");
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).context("reading /etc/hosts")?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn process_in(folder: &Path, depth: usize) -> Option<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process that this one's namespace has not got.
    let mut pids = text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0);
    pids.next().or_else(|| {
        let below = fs::read_dir(folder).ok().filter(|_| depth > 0)?.flatten();
        below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .find_map(|entry| process_in(&entry.path(), depth - 1))
    })
}

/// The first name of each address, in the order of the file: hosts(5).
pub(super) fn parse(text: &str) -> Entries {
    let mut entries = Entries::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if let (Some(Ok(address)), Some(name)) = (words.next().map(str::parse::<IpAddr>), words.next()) {
            entries.entry(address.to_canonical()).or_insert_with(|| name.to_ascii_lowercase().into());
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn root_of(folder: &Path) -> OwnedFd {
        openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn lines_name_addresses() {
        let entries = parse(
            "127.0.0.1 localhost\n\n# 192.0.2.9 no\n192.0.2.1\tDB.example db # the database\n192.0.2.1 later\n\
             ::ffff:192.0.2.2 mapped\n2001:db8::1 six\nnonsense\n192.0.2.3\n999.0.0.1 x\n",
        );
        let name = |address: &str| entries.get(&address.parse().unwrap()).map(|name| &**name);
        let told = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3", "192.0.2.9"].map(name);
        assert_eq!(told, [Some("db.example"), Some("mapped"), Some("six"), None, None]);
    }

    #[test]
    fn nothing_outside_of_the_root_is_read() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "192.0.2.1 secret\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let hosts = etc.join("hosts");
        for target in [outside.path().join("secret"), Path::new("../../../../etc/hosts").to_owned()] {
            symlink(&target, &hosts).unwrap();
            assert!(entries_below(&root_of(root.path())).is_err(), "{}", target.display());
            fs::remove_file(&hosts).unwrap();
        }
        fs::write(root.path().join("real"), "192.0.2.1 real\n").unwrap();
        symlink("/real", &hosts).unwrap();
        assert_eq!(
            entries_below(&root_of(root.path())).unwrap().len(),
            1,
            "a link within the root is followed"
        );
        fs::remove_file(&hosts).unwrap();
        rustix::fs::mknodat(CWD, &hosts, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let begun = Instant::now();
        assert!(entries_below(&root_of(root.path())).is_err(), "nobody waits for a pipe");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn this_process_has_a_file() {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let layout = model::mountinfo::CgroupLayout::parse(&text);
        let Some(mount) = layout.mount() else { return };
        let Ok(hosts) = fs::read_to_string("/etc/hosts") else { return };
        let reader = Hosts::default();
        let folder = Some(mount.point.clone());
        for (address, name) in parse(&hosts).into_iter().filter(|(address, _)| !address.is_loopback()) {
            assert_eq!(reader.name(1, address, || folder.clone()), None);
            reader.settle(Duration::from_secs(20));
            assert_eq!(reader.name(1, address, || folder.clone()), Some(name));
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(text in ".{0,200}") {
            parse(&text);
        }
    }
}
