//! Which container a cgroup id stands for: the live directory.
//!
//! The path of the cgroup says most ([`model::container`]); Docker, Podman, and containerd and CRI-O by CRI,
//! where they run, add names, images, labels, annotations and pods; Kubernetes, where there is one, what pods belong to, and
//! names of addresses. Looking up never waits: what is not known yet is told as `cgroup:<id>`, and told better
//! once it is known.

mod asking;
mod cgroups;
mod cri;
mod docker;
#[cfg(test)]
mod fake_cri;
#[cfg(test)]
mod fake_runtime;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod kubernetes;
mod lingering;
mod missing;
mod registry;
mod runtime;
#[cfg(test)]
mod watched;

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use model::container::Container;
use model::mountinfo::{CgroupLayout, Mount};
use tokio::sync::oneshot;

use cgroups::Cgroups;
use kubernetes::{Access, Kubernetes, KubernetesStatus, PeerName};
use missing::Missing;
use registry::Registry;
pub(crate) use registry::{RuntimeState, RuntimeStatus};

/// The least time between two walks over the cgroup directories.
const WALK_INTERVAL: Duration = Duration::from_secs(1);

/// Where to look. The default is this host as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The cgroup hierarchy to read; none takes it from `/proc/self/mountinfo`.
    pub(crate) mount: Option<Mount>,
    /// Sockets of container runtimes; none takes the usual ones, an empty list asks nobody.
    pub(crate) runtime_sockets: Option<Vec<PathBuf>>,
    /// The Kubernetes API server to ask, if any.
    pub(crate) kubernetes: Option<Access>,
}

/// All cgroups and containers of this host. Shared by threads; every method takes `&self`.
pub(crate) struct Directory {
    shared: Arc<Shared>,
    layout: CgroupLayout,
    /// Asks for a walk; the walking thread ends when this is dropped.
    walk: SyncSender<()>,
    /// Keeps the thread that talks to the runtimes.
    _runtimes: Option<oneshot::Sender<()>>,
    /// Ids that a walk was asked for.
    missing: Mutex<Missing<u64>>,
}

/// What the background threads write.
struct Shared {
    cgroups: RwLock<Cgroups>,
    registry: Arc<Registry>,
    kubernetes: Option<Kubernetes>,
}

impl Shared {
    fn cgroups(&self) -> RwLockReadGuard<'_, Cgroups> {
        self.cgroups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_cgroups(&self) -> RwLockWriteGuard<'_, Cgroups> {
        self.cgroups.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    /// Walks the cgroups once and starts listening to the runtimes. A host without a visible cgroup
    /// hierarchy gets a directory without names, and a warning.
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` cannot be read or a thread cannot be started.
    pub(crate) fn start(options: Options) -> anyhow::Result<Self> {
        let Options { mount, runtime_sockets, kubernetes } = options;
        let layout = match mount {
            Some(mount) => CgroupLayout::Unified { mount },
            None => CgroupLayout::parse(
                &fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?,
            ),
        };
        let sockets = runtime_sockets.unwrap_or_else(runtime::default_sockets);
        let registry = Arc::new(Registry::new(sockets));
        let runtimes = runtime::start(registry.clone(), runtime::Timing::default())
            .context("starting the thread that asks the container runtimes")?;
        let kubernetes = kubernetes
            .map(|access| Kubernetes::start(access, kubernetes::Timing::default()))
            .transpose()
            .context("starting the thread that asks Kubernetes")?;
        let shared = Arc::new(Shared { cgroups: RwLock::new(Cgroups::new()), registry, kubernetes });
        let (walk, asked) = sync_channel(1);
        if let Some(mount) = layout.mount().cloned() {
            take_walk(&shared, &mount);
            let shared = shared.clone();
            thread::Builder::new()
                .name("cgroup-walk".to_owned())
                .spawn(move || walk_when_asked(&asked, &shared, &mount))
                .context("starting the thread that walks the cgroups")?;
        } else {
            tracing::warn!("no cgroup hierarchy is mounted here: containers are shown by cgroup id");
        }
        Ok(Self { shared, layout, walk, _runtimes: runtimes, missing: Mutex::new(Missing::new()) })
    }

    /// The container that cgroup `cgroup_id` is or lies in, as well as it is known now: `cgroup:<id>`
    /// while its path is unknown, `~unattributed` for 0.
    pub(crate) fn resolve(&self, cgroup_id: u64) -> Arc<Container> {
        let known = (cgroup_id != 0).then(|| self.known(cgroup_id)).flatten();
        known.unwrap_or_else(|| {
            self.ask_for(cgroup_id);
            Arc::new(Container::unknown(cgroup_id))
        })
    }

    fn known(&self, cgroup_id: u64) -> Option<Arc<Container>> {
        let Shared { registry, kubernetes, .. } = &*self.shared;
        // Both only grow.
        let generation = registry.generation() + kubernetes.as_ref().map_or(0, Kubernetes::generation);
        self.shared.cgroups().container(cgroup_id, generation, |identity| {
            let told = identity.id.as_deref().and_then(|id| {
                let metadata = registry.metadata(id);
                if metadata.is_none() {
                    registry.ask_for(id);
                }
                metadata
            });
            match kubernetes {
                Some(kubernetes) => kubernetes.complete(identity, told),
                None => told,
            }
        })
    }

    /// What an address and a port are called in the Kubernetes cluster: a service by its cluster address, or a pod of
    /// any node. None without Kubernetes, while it has not told yet, and for an address that may be something else
    /// too, such as a node's. Costs a hash table's lookup; an IPv4 address may be mapped to IPv6.
    pub(crate) fn name_of(&self, address: IpAddr, port: u16) -> Option<PeerName> {
        self.shared.kubernetes.as_ref()?.name_of(address, port)
    }

    /// How it goes with Kubernetes; none if it is not asked.
    pub(crate) fn kubernetes(&self) -> Option<KubernetesStatus> {
        self.shared.kubernetes.as_ref().map(Kubernetes::status)
    }

    /// The owners of all cgroups that still exist, each once.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let ids = self.shared.cgroups().live();
        let mut seen = HashSet::new();
        ids.into_iter()
            .filter_map(|id| Some(self.known(id)?.whole()))
            .filter(|container| seen.insert(container.cgroup_id))
            .collect()
    }

    /// Whether a runtime or Kubernetes may still tell names of containers that have none.
    pub(crate) fn awaits_names(&self) -> bool {
        let mut states = self.statuses().into_iter().map(|status| status.state);
        states.any(|state| matches!(state, RuntimeState::Starting | RuntimeState::Connected { .. }))
            || self.shared.kubernetes.as_ref().is_some_and(Kubernetes::awaits_names)
    }

    /// Whether this cgroup exists, as far as is known.
    pub(crate) fn is_live(&self, cgroup_id: u64) -> bool {
        self.shared.cgroups().is_live(cgroup_id)
    }

    /// Ids of the cgroup at `path` and of all below it, lately removed ones too; empty if there is none.
    pub(crate) fn subtree(&self, path: &str) -> Vec<u64> {
        self.shared.cgroups().subtree(path)
    }

    /// Waits for the first answers of the runtimes and of Kubernetes, at most for `timeout`. Returns at once when
    /// there is nobody to wait for.
    pub(crate) fn settle(&self, timeout: Duration) {
        let begun = Instant::now();
        self.shared.registry.settle(timeout);
        if let Some(kubernetes) = &self.shared.kubernetes {
            kubernetes.settle(timeout.saturating_sub(begun.elapsed()));
        }
    }

    /// The kernel made a cgroup. `path` is relative to the root of the hierarchy.
    pub(crate) fn cgroup_added(&self, id: u64, path: &str) {
        self.shared.change_cgroups().add(id, path, Instant::now());
        // A runtime that tells of nothing by itself is asked now: the container may live for a moment only.
        self.known(id);
    }

    /// The kernel removed a cgroup. It stays known for ten minutes, for the last events of its sockets.
    pub(crate) fn cgroup_removed(&self, id: u64) {
        self.shared.change_cgroups().remove(id, Instant::now());
    }

    /// How it goes with each runtime's socket.
    pub(crate) fn statuses(&self) -> Vec<RuntimeStatus> {
        self.shared.registry.statuses()
    }

    /// Which cgroup hierarchies this process sees.
    pub(crate) fn layout(&self) -> &CgroupLayout {
        &self.layout
    }

    /// Has the cgroups walked again, soon, unless a walk for this id was asked for lately.
    fn ask_for(&self, cgroup_id: u64) {
        if cgroup_id == 0 {
            return;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.note(cgroup_id, Instant::now()) {
            // Full means that a walk is about to begin, which will find this id too.
            self.walk.try_send(()).ok();
        }
    }
}

/// Walks as often as asked, but not more often than the interval.
fn walk_when_asked(asked: &Receiver<()>, shared: &Shared, mount: &Mount) {
    let mut last = Instant::now();
    while asked.recv().is_ok() {
        thread::sleep(WALK_INTERVAL.saturating_sub(last.elapsed()));
        take_walk(shared, mount);
        last = Instant::now();
    }
}

fn take_walk(shared: &Shared, mount: &Mount) {
    let walk = cgroups::walk(mount);
    shared.change_cgroups().merge(walk, Instant::now());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use serde_json::json;

    use super::fake_cri::{Call, FakeCri};
    use super::fake_runtime::{FakeRuntime, container, event};
    use super::*;

    const WEB: &str = "3f4d9a1be0c75c21d8f6aa0970b4e1c22d6b8f0e9a7c5d3b1f2e4a6c8d0b9e7f";
    const SHORT: &str = "b81ce77a05d94f3e6a2c1b0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f";

    /// A cgroup hierarchy of plain directories, whose inode numbers serve as ids all the same.
    struct Host {
        root: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            Self { root: tempfile::tempdir().unwrap() }
        }

        fn make(&self, path: &str) -> u64 {
            let directory = self.root.path().join(path);
            fs::create_dir_all(&directory).unwrap();
            fs::metadata(directory).unwrap().ino()
        }

        fn directory(&self, runtime_sockets: Vec<PathBuf>) -> Directory {
            let mount = Mount { point: self.root.path().to_owned(), root: "/".to_owned() };
            let runtime_sockets = Some(runtime_sockets);
            let options = Options { mount: Some(mount), runtime_sockets, kubernetes: None };
            Directory::start(options).unwrap()
        }
    }

    fn until(what: &str, true_yet: impl Fn() -> bool) {
        let begun = Instant::now();
        while !true_yet() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn path_and_runtime_are_joined() {
        let host = Host::new();
        let web = host.make(&format!("docker/{WEB}"));
        let deeper = host.make(&format!("docker/{WEB}/init.scope"));
        let service = host.make("system.slice/nginx.service");
        let fake = FakeRuntime::start();
        fake.list(&json!([container(WEB, "/web")]));
        let directory = host.directory(vec![fake.socket()]);
        directory.settle(Duration::from_secs(20));
        assert_eq!(directory.resolve(web).name, "web");
        assert_eq!(directory.resolve(deeper), directory.resolve(web));
        assert_eq!(directory.resolve(service).name, "nginx.service");
        assert!(Arc::ptr_eq(&directory.resolve(web), &directory.resolve(web)), "cached");
        let mut names: Vec<String> = directory.all().iter().map(|one| one.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["/", "/docker", "/system.slice", "nginx.service", "web"]);
        assert_eq!(directory.subtree(&format!("/docker/{WEB}")).len(), 2);
        assert_eq!(directory.statuses()[0].containers, 1);
    }

    #[test]
    fn a_name_that_comes_late_is_told() {
        let host = Host::new();
        let fake = FakeRuntime::start();
        let directory = host.directory(vec![fake.socket()]);
        directory.settle(Duration::from_secs(20));
        directory.cgroup_added(77, &format!("/docker/{SHORT}"));
        assert_eq!(directory.resolve(77).name, "b81ce77a05d9");
        fake.event(&event("create", SHORT, "short"));
        until("named", || directory.resolve(77).name == "short");
        // A container of a moment: everything is gone, its last connection still has a name.
        directory.cgroup_removed(77);
        fake.event(&event("destroy", SHORT, "short"));
        until("removed", || directory.statuses()[0].containers == 0);
        assert_eq!(directory.resolve(77).name, "short");
        assert!(directory.all().iter().all(|one| one.name != "short"));
    }

    #[test]
    fn an_unknown_id_is_looked_for() {
        let host = Host::new();
        let directory = host.directory(Vec::new());
        let late = host.make("lxc.payload.late");
        let first = directory.resolve(late);
        assert_eq!((first.name.clone(), first.cgroup_path.clone()), (format!("cgroup:{late}"), None));
        until("found", || directory.resolve(late).name == "late");
        fs::remove_dir(host.root.path().join("lxc.payload.late")).unwrap();
        directory.resolve(1);
        until("gone", || directory.all().iter().all(|one| one.name != "late"));
        assert_eq!(directory.resolve(late).name, "late", "named until its grace ends");
    }

    #[test]
    fn unknown_ids_cost_nothing() {
        let host = Host::new();
        let directory = host.directory(Vec::new());
        for id in (1 << 40)..(1 << 40) + 10_000 {
            assert_eq!(directory.resolve(id).name, format!("cgroup:{id}"));
        }
        assert_eq!(directory.missing.lock().unwrap().len(), missing::MOST_MISSING);
        assert_eq!(directory.resolve(0).name, "~unattributed");
    }

    #[test]
    fn resolving_does_not_wait_for_a_silent_runtime() {
        let host = Host::new();
        let web = host.make(&format!("docker/{WEB}"));
        let (docker, cri) = (FakeRuntime::start(), FakeCri::start());
        docker.hang();
        cri.hang_at(Call::Version);
        let begun = Instant::now();
        let directory = host.directory(vec![docker.socket(), cri.socket()]);
        for _ in 0..1000 {
            assert_eq!(directory.resolve(web).name, "3f4d9a1be0c7");
        }
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
        directory.settle(Duration::from_millis(10));
        let states = directory.statuses().into_iter().map(|status| status.state);
        assert!(states.into_iter().all(|state| state == RuntimeState::Starting));
    }

    #[test]
    fn a_storm_of_containers_does_not_wait_for_a_runtime_that_falls_silent() {
        let host = Host::new();
        let cri = FakeCri::start();
        let directory = host.directory(vec![cri.socket()]);
        directory.settle(Duration::from_secs(20));
        assert!(matches!(directory.statuses()[0].state, RuntimeState::Connected { .. }));
        cri.hang_at(Call::Containers);
        let begun = Instant::now();
        for id in 1..=10_000 {
            directory.cgroup_added(id, &format!("/kubepods/podu-1/{id:064x}"));
            assert_eq!(directory.resolve(id).name, format!("{id:064x}")[..12]);
        }
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    }

    #[test]
    fn this_host_has_a_directory() {
        let directory =
            Directory::start(Options { runtime_sockets: Some(Vec::new()), ..Options::default() }).unwrap();
        let Some(mount) = directory.layout().mount() else { return };
        let root = fs::metadata(&mount.point).unwrap().ino();
        assert_eq!(directory.resolve(root).cgroup_path.as_deref(), Some(mount.root.as_str()));
        assert!(Path::new(&mount.point).is_dir());
    }
}
