//! What the runtimes' APIs said of their containers: written by the thread that talks to them, read by
//! everyone else. Locks are held for single lookups and updates only, never while waiting for an answer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use model::container::{Labels, Metadata, Runtime};
use tokio::sync::broadcast;

use super::asking::MOST_WAITING;
use super::lingering::{CAPACITY, GRACE, Lingering};
use super::missing::Missing;

/// The most bytes of labels and annotations kept of all containers; what comes later is kept without its annotations,
/// and without its labels where those have no room either.
const MOST_LABEL_BYTES: usize = 64 << 20;

/// How the conversation with one runtime goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuntimeState {
    /// No answer and no failure yet.
    Starting,
    /// There is no socket: the runtime is not installed or not running.
    Absent,
    /// The socket is another path of one that is already listened to.
    SameAs(PathBuf),
    /// Containers are listed, and what changes is learnt.
    Connected {
        /// Name and version of the server, such as `Docker 20.10.24`.
        server: String,
    },
    /// What was tried and what the system or the server answered.
    Failed(String),
}

/// One runtime's socket and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeStatus {
    /// Path of its socket.
    pub(crate) socket: PathBuf,
    /// How the conversation goes.
    pub(crate) state: RuntimeState,
    /// Containers it told of that were not removed since.
    pub(crate) containers: usize,
}

/// A container as one runtime told it.
struct Told {
    /// Which runtime, by its place in the list of sockets.
    source: usize,
    metadata: Arc<Metadata>,
}

struct Containers {
    by_id: Lingering<String, Told>,
    label_bytes: usize,
    /// Who makes the containers that a source tells of, of those that say it.
    makers: HashMap<usize, Runtime>,
}

/// See the module.
pub(super) struct Registry {
    containers: RwLock<Containers>,
    /// Counts changes of the metadata, so that readers know when to look again.
    generation: AtomicU64,
    runtimes: Mutex<Vec<(PathBuf, RuntimeState)>>,
    answered: Condvar,
    /// Ids of containers that no runtime told of.
    missing: Mutex<Missing<String>>,
    /// Tells who can ask a runtime for one container of those.
    wanted: broadcast::Sender<String>,
}

impl Registry {
    pub(super) fn new(sockets: Vec<PathBuf>) -> Self {
        let containers =
            Containers { by_id: Lingering::new(CAPACITY, GRACE), label_bytes: 0, makers: HashMap::new() };
        Self {
            containers: RwLock::new(containers),
            generation: AtomicU64::new(0),
            runtimes: Mutex::new(sockets.into_iter().map(|path| (path, RuntimeState::Starting)).collect()),
            answered: Condvar::new(),
            missing: Mutex::new(Missing::new()),
            wanted: broadcast::Sender::new(MOST_WAITING),
        }
    }

    /// What is known of the container with this full id.
    pub(super) fn metadata(&self, id: &str) -> Option<Arc<Metadata>> {
        let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.by_id.get(&id.to_owned()).map(|told| told.metadata.clone())
    }

    /// Has the runtimes that can be asked for one container asked for one that no one told of, unless they were lately.
    /// Does not wait for the answer.
    pub(super) fn ask_for(&self, id: &str) {
        if self.wanted.receiver_count() == 0 {
            return;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.note(id.to_owned(), Instant::now()) {
            // Fails when the last one left a moment ago: the next one begins with a list of all.
            self.wanted.send(id.to_owned()).ok();
        }
    }

    /// The ids of containers that are asked for from now on.
    pub(super) fn wanted(&self) -> broadcast::Receiver<String> {
        self.wanted.subscribe()
    }

    /// The count of changes so far.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Runtime `source` told of a container.
    pub(super) fn insert(&self, source: usize, id: String, metadata: Metadata) {
        self.update(|containers| containers.insert(source, id, metadata, Instant::now()));
    }

    /// A runtime removed a container. Its metadata stays for the grace period.
    pub(super) fn remove(&self, id: &str) {
        self.update(|containers| {
            containers.by_id.remove(&id.to_owned(), Instant::now());
            // Nothing that a reader is told changes.
            false
        });
    }

    /// Runtime `source` told of all its containers: others of its that are known are gone.
    pub(super) fn replace(&self, source: usize, all: Vec<(String, Metadata)>) {
        self.update(|containers| containers.replace(source, all, Instant::now()));
    }

    /// The containers that runtime `source` tells of, and told of, are made by `maker`.
    pub(super) fn set_maker(&self, source: usize, maker: Runtime) {
        self.update(|containers| containers.set_maker(source, maker));
    }

    fn update(&self, change: impl FnOnce(&mut Containers) -> bool) {
        let mut containers = self.containers.write().unwrap_or_else(PoisonError::into_inner);
        if change(&mut containers) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes how the conversation with runtime `source` goes.
    pub(super) fn set_state(&self, source: usize, state: RuntimeState) {
        if let Some((socket, known)) = self.runtimes().get_mut(source)
            && *known != state
        {
            tracing::debug!("{}: {state:?}", socket.display());
            *known = state;
        }
        self.answered.notify_all();
    }

    /// The paths of the sockets before place `source` in the list.
    pub(super) fn sockets_before(&self, source: usize) -> Vec<PathBuf> {
        self.runtimes().iter().take(source).map(|(socket, _)| socket.clone()).collect()
    }

    /// The path of socket `source`.
    pub(super) fn socket(&self, source: usize) -> Option<PathBuf> {
        self.runtimes().get(source).map(|(socket, _)| socket.clone())
    }

    /// How many sockets there are to try.
    pub(super) fn sources(&self) -> usize {
        self.runtimes().len()
    }

    /// The state of every runtime.
    pub(super) fn statuses(&self) -> Vec<RuntimeStatus> {
        let runtimes = self.runtimes().clone();
        let mut counts = vec![0; runtimes.len()];
        let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
        for (_, told) in containers.by_id.live() {
            if let Some(count) = counts.get_mut(told.source) {
                *count += 1;
            }
        }
        let status = |((socket, state), containers)| RuntimeStatus { socket, state, containers };
        runtimes.into_iter().zip(counts).map(status).collect()
    }

    /// Waits until every runtime answered, failed or proved absent, at most for `timeout`.
    pub(super) fn settle(&self, timeout: Duration) {
        let unsettled = |runtimes: &mut Vec<(PathBuf, RuntimeState)>| {
            runtimes.iter().any(|(_, state)| *state == RuntimeState::Starting)
        };
        // Both outcomes mean the same to the caller: go on with what is known.
        drop(self.answered.wait_timeout_while(self.runtimes(), timeout, unsettled));
    }

    fn runtimes(&self) -> MutexGuard<'_, Vec<(PathBuf, RuntimeState)>> {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Containers {
    /// Returns whether a reader would be told something else than before.
    fn insert(&mut self, source: usize, id: String, mut metadata: Metadata, now: Instant) -> bool {
        let before = self.by_id.get(&id);
        let room = MOST_LABEL_BYTES - self.label_bytes + before.map_or(0, |told| label_bytes(&told.metadata));
        metadata.runtime = self.makers.get(&source).copied();
        if label_bytes(&metadata) > room {
            metadata.annotations = Labels::default();
        }
        if label_bytes(&metadata) > room {
            metadata.labels = Labels::default();
        }
        let known = before.is_some_and(|told| told.source == source && *told.metadata == metadata);
        if known && self.by_id.is_live(&id) {
            return false;
        }
        let needed = label_bytes(&metadata);
        let total = &mut self.label_bytes;
        let told = Told { source, metadata: Arc::new(metadata) };
        if self.by_id.insert(id, told, now, |_, old| *total -= label_bytes(&old.metadata)) {
            self.label_bytes += needed;
        }
        true
    }

    /// Returns whether a reader would be told something else than before.
    fn set_maker(&mut self, source: usize, maker: Runtime) -> bool {
        if self.makers.insert(source, maker) == Some(maker) {
            return false;
        }
        for told in self.by_id.values_mut().filter(|told| told.source == source) {
            Arc::make_mut(&mut told.metadata).runtime = Some(maker);
        }
        true
    }

    fn replace(&mut self, source: usize, all: Vec<(String, Metadata)>, now: Instant) -> bool {
        let listed: std::collections::HashSet<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
        let unlisted = |(id, told): &(&String, &Told)| told.source == source && !listed.contains(id.as_str());
        let gone: Vec<String> = self.by_id.live().filter(unlisted).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            self.by_id.remove(id, now);
        }
        let mut changed = false;
        for (id, metadata) in all {
            changed |= self.insert(source, id, metadata, now);
        }
        changed
    }
}

/// The bytes that the labels and annotations of one container hold.
fn label_bytes(metadata: &Metadata) -> usize {
    metadata
        .labels
        .iter()
        .chain(metadata.annotations.iter())
        .map(|(key, value)| key.len() + value.len())
        .sum()
}

/// Whether two paths lead to the same socket.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Metadata {
        Metadata { name: Some(name.to_owned()), ..Metadata::default() }
    }

    fn name(registry: &Registry, id: &str) -> Option<String> {
        registry.metadata(id).and_then(|metadata| metadata.name.clone())
    }

    #[test]
    fn a_full_list_replaces_only_its_own_runtime() {
        let registry = Registry::new(vec!["/a".into(), "/b".into()]);
        registry.insert(0, "one".into(), named("one"));
        registry.insert(1, "two".into(), named("two"));
        registry.replace(0, vec![("three".into(), named("three"))]);
        let counts: Vec<usize> = registry.statuses().iter().map(|status| status.containers).collect();
        assert_eq!(counts, [1, 1]);
        assert_eq!(name(&registry, "one").as_deref(), Some("one"), "named until its grace ends");
    }

    #[test]
    fn only_changes_are_news() {
        let registry = Registry::new(vec!["/a".into()]);
        registry.insert(0, "one".into(), named("one"));
        let generation = registry.generation();
        registry.insert(0, "one".into(), named("one"));
        registry.replace(0, vec![("one".into(), named("one"))]);
        registry.remove("one");
        assert_eq!(registry.generation(), generation);
        registry.insert(0, "one".into(), named("renamed"));
        assert!(registry.generation() > generation);
        assert_eq!(name(&registry, "one").as_deref(), Some("renamed"));
    }

    #[test]
    fn who_makes_containers_is_known_later() {
        let registry = Registry::new(vec!["/a".into(), "/b".into()]);
        let maker = |id: &str| registry.metadata(id).and_then(|told| told.runtime);
        registry.insert(0, "one".into(), named("one"));
        registry.insert(1, "two".into(), named("two"));
        registry.set_maker(0, Runtime::Podman);
        registry.insert(0, "three".into(), named("three"));
        assert_eq!(["one", "two", "three"].map(maker), [Some(Runtime::Podman), None, Some(Runtime::Podman)]);
        let generation = registry.generation();
        registry.insert(0, "one".into(), named("one"));
        registry.set_maker(0, Runtime::Podman);
        assert_eq!(registry.generation(), generation, "nothing else is told than before");
    }

    #[test]
    fn labels_have_a_budget() {
        let registry = Registry::new(vec!["/a".into()]);
        let big = |n: usize| {
            let many = || (0..64).map(|key| (format!("{n}-{key}"), "v".repeat(4096)));
            Metadata::new(Some(format!("c{n}")), None, many().take(32)).annotated(many())
        };
        let kept = |id: &str| registry.metadata(id).map(|told| (told.labels.len(), told.annotations.len()));
        for n in 0..300 {
            registry.insert(0, n.to_string(), big(n));
            assert!(registry.containers.read().unwrap().label_bytes <= MOST_LABEL_BYTES);
        }
        let few: Vec<_> =
            (0..300).filter_map(|n| kept(&n.to_string())).filter(|kept| *kept == (32, 0)).collect();
        assert!(!few.is_empty(), "labels are kept for longer than annotations");
        assert_eq!((kept("0"), kept("299")), (Some((32, 64)), Some((0, 0))));
        assert_eq!(name(&registry, "299").as_deref(), Some("c299"));
        let generation = registry.generation();
        registry.insert(0, "299".into(), big(299));
        assert_eq!(registry.generation(), generation, "nothing else is told than before");
        for n in 0..300 {
            registry.insert(0, n.to_string(), named("small"));
        }
        assert_eq!(registry.containers.read().unwrap().label_bytes, 0);
    }

    #[test]
    fn nothing_to_ask_is_settled_at_once() {
        let begun = Instant::now();
        Registry::new(Vec::new()).settle(Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(10));
        let silent = Registry::new(vec!["/a".into()]);
        silent.settle(Duration::from_millis(50));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }
}
