//! Names from Kubernetes: what pods of this node belong to, and what addresses are called in the cluster.
//!
//! One background thread lists and watches: pods of the own node, services and EndpointSlices of all namespaces.
//! Without a cluster or a kubeconfig there is none. Looking up never waits.

mod addresses;
mod client;
#[cfg(test)]
mod fake_api;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod nodes;
mod objects;
mod pods;
mod tables;
#[cfg(test)]
mod tests;
mod watch;

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use model::container::{Identity, Metadata};
use tokio::sync::oneshot;
use tokio::time::sleep;

pub(crate) use addresses::PeerName;
pub(crate) use client::Access;
use client::{Api, Failure, Kind};
use objects::{Bare, EndpointSlice, Meta, Node, Pod, Service};
pub(crate) use tables::KubernetesStatus;
use tables::{KubernetesState, Object, Shared};
use watch::{Pause, Position, follow, list};

/// Asked for one by one.
const JOBS: Kind = Kind { plural: "jobs", group: "batch", version: "v1" };

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// For the answer to one request.
    request: Duration,
    /// Before the first new try.
    retry: Duration,
    /// Before a new try at most, reached by doubling.
    longest_retry: Duration,
    /// Before asking again for what was not allowed.
    denied: Duration,
    /// Between lists of nodes at least.
    nodes: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(15),
            retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(60),
            denied: Duration::from_secs(60),
            nodes: Duration::from_secs(300),
        }
    }
}

/// See the module.
pub(super) struct Kubernetes {
    shared: Arc<Shared>,
    /// The thread ends when this is dropped.
    _keep: oneshot::Sender<()>,
}

impl Kubernetes {
    /// Starts the thread that asks.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(access: Access, timing: Timing) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::new(access.node.clone()));
        let (keep, dropped) = oneshot::channel::<()>();
        let talk = Talk { access, shared: shared.clone(), timing };
        thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = dropped => {}
                    () = talk.run() => {}
                }
            });
        })?;
        Ok(Self { shared, _keep: keep })
    }

    /// The count of changes of what is told of containers.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// Completes what a runtime told of a container, or tells it where none did.
    pub(super) fn complete(&self, identity: &Identity, told: Option<Arc<Metadata>>) -> Option<Arc<Metadata>> {
        self.shared.tables().pods.complete(identity, told)
    }

    /// What this address and port are called in the cluster.
    pub(super) fn name_of(&self, address: IpAddr, port: u16) -> Option<PeerName> {
        self.shared.tables().addresses.name_of(address, port)
    }

    /// Waits for the first lists, at most for `timeout`.
    pub(super) fn settle(&self, timeout: Duration) {
        self.shared.settle(timeout);
    }

    /// How it goes.
    pub(super) fn status(&self) -> KubernetesStatus {
        self.shared.status()
    }

    /// Whether names may still come.
    pub(super) fn awaits_names(&self) -> bool {
        !matches!(self.status().state, KubernetesState::Failed(_))
    }
}

/// How far each watch came.
#[derive(Default)]
struct Positions {
    pods: Position,
    services: Position,
    slices: Position,
}

/// The conversation with the API server.
struct Talk {
    access: Access,
    shared: Arc<Shared>,
    timing: Timing,
}

impl Talk {
    async fn run(self) {
        let mut positions = Positions::default();
        let mut pause = Pause::new(&self.timing);
        loop {
            let begun = Instant::now();
            let Err(error) = self.session(&mut positions).await;
            self.shared.set_state(KubernetesState::Failed(format!("{error:#}")));
            sleep(pause.after(begun.elapsed())).await;
        }
    }

    /// Talks until something fails that all depends on.
    async fn session(&self, positions: &mut Positions) -> anyhow::Result<Infallible> {
        let Self { access, shared, timing } = self;
        let (api, server) = access.client(timing.request).await?;
        shared.set_server(server);
        let version = api.version().await?;
        shared.set_state(KubernetesState::Connected { version });
        let Positions { pods, services, slices } = positions;
        let own = format!("spec.nodeName={}", access.node);
        let (end, ..) = tokio::try_join!(
            follow::<Pod>(&api, shared, Some(&own), pods, timing),
            follow::<Service>(&api, shared, None, services, timing),
            follow::<EndpointSlice>(&api, shared, None, slices, timing),
            self.nodes(&api),
            self.jobs(&api),
        )?;
        Ok(end)
    }

    /// Keeps the list of nodes: taken anew when a slice names one that is not in it.
    async fn nodes(&self, api: &Api) -> anyhow::Result<Infallible> {
        let mut pause = Pause::new(&self.timing);
        loop {
            match list::<Node>(api, &self.shared, None, false).await {
                Ok(_) => {
                    sleep(self.timing.nodes).await;
                    self.shared.until_a_node_is_missing().await;
                }
                Err(failure) => self.complain(Node::KIND, failure, &mut pause).await,
            }
        }
    }

    /// Asks Jobs that pods belong to what they belong to themselves.
    async fn jobs(&self, api: &Api) -> anyhow::Result<Infallible> {
        let mut pause = Pause::new(&self.timing);
        loop {
            let mut last = None;
            while let Some(job) = self.shared.unknown_job(last.as_ref()) {
                match api.get::<Bare>(JOBS, &job.0, &job.1).await {
                    Ok(told) => {
                        // One that is gone will not tell any more.
                        let told = told.unwrap_or(Bare { metadata: Meta::default() });
                        self.shared.set_job(&job, &told);
                        self.shared.settled(JOBS, Ok(()));
                        last = Some(job);
                    }
                    Err(failure) => self.complain(JOBS, failure, &mut pause).await,
                }
            }
            self.shared.jobs.notified().await;
        }
    }

    /// Says what is not answered, and waits until it is time to ask again.
    async fn complain(&self, kind: Kind, failure: Failure, pause: &mut Pause) {
        let (why, wait) = match failure {
            Failure::Denied(why) => (Some(why), self.timing.denied),
            Failure::Failed(error) => (Some(format!("{error:#}")), pause.after(Duration::ZERO)),
            Failure::Gone => (None, pause.after(Duration::ZERO)),
        };
        if let Some(why) = why {
            self.shared.settled(kind, Err(why));
        }
        sleep(wait).await;
    }
}
