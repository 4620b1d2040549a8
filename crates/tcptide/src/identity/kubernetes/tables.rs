//! What the API server told: written by the thread that talks to it, read by everyone else. Locks are held for
//! single lookups and updates only, never while waiting for an answer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::addresses::{Addresses, Counts, Source};
use super::client::Kind;
use super::objects::{Bare, EndpointSlice, Key, Meta, Node, Pod, Service};
use super::pods::Pods;

/// A kind of objects that is listed.
pub(super) trait Object: DeserializeOwned {
    const KIND: Kind;

    fn meta(&self) -> &Meta;

    /// Takes it over.
    fn put(self, shared: &Shared);

    fn remove(key: &Key, shared: &Shared);

    /// Forgets those that are not among these.
    fn keep(listed: &HashSet<Key>, shared: &Shared);
}

/// How the conversation with the API server goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KubernetesState {
    /// No answer and no failure yet.
    Starting,
    /// It answers.
    Connected {
        /// Such as `v1.33.1`; empty if it does not tell.
        version: String,
    },
    /// What was tried and what came of it.
    Failed(String),
}

/// The API server and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubernetesStatus {
    /// Where it is, as far as that is known.
    pub(crate) server: String,
    /// The own node.
    pub(crate) node: String,
    /// How the conversation goes.
    pub(crate) state: KubernetesState,
    /// Pods of the own node.
    pub(crate) pods: usize,
    /// What has names in the cluster.
    pub(crate) counts: Counts,
    /// What it does not answer, and what is not told therefore.
    pub(crate) complaints: Vec<String>,
}

impl KubernetesStatus {
    /// Whether all is told that could be.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self.state, KubernetesState::Failed(_)) && self.complaints.is_empty()
    }
}

impl fmt::Display for KubernetesStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, node, state, pods, counts, complaints } = self;
        if !server.is_empty() {
            write!(f, "{server}: ")?;
        }
        match state {
            KubernetesState::Starting => return write!(f, "no answer yet"),
            KubernetesState::Failed(why) => return write!(f, "no names from it: {why}"),
            KubernetesState::Connected { version } if version.is_empty() => write!(f, "Kubernetes")?,
            KubernetesState::Connected { version } => write!(f, "Kubernetes {version}")?,
        }
        let Counts { services, endpoints, left_out } = counts;
        write!(
            f,
            ", {pods} pods of node {node}, {services} addresses of services, {endpoints} of endpoints"
        )?;
        if *left_out > 0 {
            write!(f, "; {left_out} objects left out for want of room")?;
        }
        complaints.iter().try_for_each(|complaint| write!(f, "; {complaint}"))
    }
}

/// Everything that is read by others.
pub(super) struct Tables {
    pub(super) pods: Pods,
    pub(super) addresses: Addresses,
}

/// How far the conversation came.
struct Talk {
    server: String,
    state: KubernetesState,
    /// The kinds that were listed, or refused.
    settled: BTreeSet<&'static str>,
    complaints: BTreeMap<&'static str, String>,
}

/// See the module.
pub(super) struct Shared {
    pub(super) node: String,
    tables: RwLock<Tables>,
    /// Counts changes of what is told of containers, so that readers know when to look again.
    generation: AtomicU64,
    talk: Mutex<Talk>,
    answered: Condvar,
    /// A Job turned up.
    pub(super) jobs: Notify,
    /// A node turned up.
    pub(super) nodes: Notify,
}

impl Shared {
    pub(super) fn new(node: String) -> Self {
        let talk = Talk {
            server: String::new(),
            state: KubernetesState::Starting,
            settled: BTreeSet::new(),
            complaints: BTreeMap::new(),
        };
        Self {
            node,
            tables: RwLock::new(Tables { pods: Pods::new(), addresses: Addresses::default() }),
            generation: AtomicU64::new(0),
            talk: Mutex::new(talk),
            answered: Condvar::new(),
            jobs: Notify::new(),
            nodes: Notify::new(),
        }
    }

    /// The count of changes so far.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes pods; `change` says whether containers are told otherwise than before.
    fn change(&self, change: impl FnOnce(&mut Tables) -> bool) {
        let mut tables = self.tables_mut();
        if change(&mut tables) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Where the server is.
    pub(super) fn set_server(&self, server: String) {
        self.talk().server = server;
    }

    /// How the conversation goes.
    pub(super) fn set_state(&self, state: KubernetesState) {
        let mut talk = self.talk();
        if talk.state != state {
            tracing::debug!("Kubernetes: {state:?}");
            talk.state = state;
        }
        self.answered.notify_all();
    }

    /// This kind of objects is listed and watched, or why it is not.
    pub(super) fn settled(&self, kind: Kind, result: Result<(), String>) {
        let mut talk = self.talk();
        talk.settled.insert(kind.plural);
        match result {
            Ok(()) => drop(talk.complaints.remove(kind.plural)),
            Err(why) => {
                let without = match kind.plural {
                    "pods" => "no owners of pods",
                    "services" => "no names of services",
                    "endpointslices" => "no names of other nodes' pods",
                    "nodes" => "other nodes' pods have names at their services' ports only",
                    _ => "Jobs are told without their CronJob",
                };
                talk.complaints.insert(kind.plural, format!("{without}: {why}"));
            }
        }
        self.answered.notify_all();
    }

    /// Waits until everything was listed, refused, or failed, at most for `timeout`.
    pub(super) fn settle(&self, timeout: Duration) {
        let awaited = [Pod::KIND, Service::KIND, EndpointSlice::KIND].map(|kind| kind.plural);
        let unsettled = |talk: &mut Talk| {
            !matches!(talk.state, KubernetesState::Failed(_))
                && awaited.iter().any(|kind| !talk.settled.contains(kind))
        };
        // Both outcomes mean the same to the caller: go on with what is known.
        drop(self.answered.wait_timeout_while(self.talk(), timeout, unsettled));
    }

    pub(super) fn status(&self) -> KubernetesStatus {
        let (pods, left_out, counts) = {
            let tables = self.tables();
            (tables.pods.len(), tables.pods.left_out(), tables.addresses.counts())
        };
        let talk = self.talk();
        let mut complaints: Vec<String> = talk.complaints.values().cloned().collect();
        // Every node has some pod, if only what makes it part of the network.
        if pods == 0
            && talk.settled.contains(Pod::KIND.plural)
            && !talk.complaints.contains_key(Pod::KIND.plural)
        {
            complaints
                .push(format!("no pod is on a node `{}`: --node or NODE_NAME tells another name", self.node));
        }
        KubernetesStatus {
            server: talk.server.clone(),
            node: self.node.clone(),
            state: talk.state.clone(),
            pods,
            counts: Counts { left_out: counts.left_out + left_out, ..counts },
            complaints,
        }
    }

    /// A Job that is still to be asked for what it belongs to.
    pub(super) fn unknown_job(&self, last: Option<&Key>) -> Option<Key> {
        self.tables().pods.unknown_job(last)
    }

    /// What a Job told.
    pub(super) fn set_job(&self, job: &Key, of: &Bare) {
        self.change(|tables| tables.pods.set_job(job, &of.metadata, Instant::now()));
    }

    /// Waits until a slice names a node that the last list of nodes did not.
    pub(super) async fn until_a_node_is_missing(&self) {
        while !self.tables().addresses.nodes.are_missing() {
            self.nodes.notified().await;
        }
    }
}

const CORE: &str = "";

impl Object for Pod {
    const KIND: Kind = Kind { plural: "pods", group: CORE, version: "v1" };

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn put(self, shared: &Shared) {
        shared.change(|tables| {
            tables.addresses.put_pod(&self);
            tables.pods.put(&self, Instant::now())
        });
        shared.jobs.notify_one();
    }

    fn remove(key: &Key, shared: &Shared) {
        shared.change(|tables| {
            tables.addresses.remove(Source::Pod, key);
            tables.pods.remove(key, Instant::now());
            // Nothing that a reader is told changes.
            false
        });
    }

    fn keep(listed: &HashSet<Key>, shared: &Shared) {
        shared.change(|tables| {
            tables.addresses.keep(Source::Pod, listed);
            tables.pods.keep(listed, Instant::now());
            false
        });
    }
}

impl Object for Service {
    const KIND: Kind = Kind { plural: "services", group: CORE, version: "v1" };

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn put(self, shared: &Shared) {
        shared.tables_mut().addresses.put_service(&self);
    }

    fn remove(key: &Key, shared: &Shared) {
        shared.tables_mut().addresses.remove(Source::Service, key);
    }

    fn keep(listed: &HashSet<Key>, shared: &Shared) {
        shared.tables_mut().addresses.keep(Source::Service, listed);
    }
}

impl Object for EndpointSlice {
    const KIND: Kind = Kind { plural: "endpointslices", group: "discovery.k8s.io", version: "v1" };

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn put(self, shared: &Shared) {
        shared.tables_mut().addresses.put_slice(&self);
        shared.nodes.notify_one();
    }

    fn remove(key: &Key, shared: &Shared) {
        shared.tables_mut().addresses.remove(Source::Slice, key);
    }

    fn keep(listed: &HashSet<Key>, shared: &Shared) {
        shared.tables_mut().addresses.keep(Source::Slice, listed);
    }
}

/// Listed, and not watched: a node's object changes every few minutes, its addresses hardly ever.
impl Object for Node {
    const KIND: Kind = Kind { plural: "nodes", group: CORE, version: "v1" };

    fn meta(&self) -> &Meta {
        &self.metadata
    }

    fn put(self, shared: &Shared) {
        shared.tables_mut().addresses.nodes.put(&self);
    }

    fn remove(_: &Key, _: &Shared) {}

    fn keep(listed: &HashSet<Key>, shared: &Shared) {
        shared.tables_mut().addresses.nodes.keep(listed);
    }
}
