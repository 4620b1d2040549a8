//! Asks the container runtimes, over their unix sockets, what their containers are called.
//!
//! One background thread serves all sockets. Which API a socket has is told by its name, or found out. Without
//! a socket, or when one goes away, it looks again at growing intervals.

use std::convert::Infallible;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::registry::{Registry, RuntimeState, same_file};

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// For the answer to one request.
    pub(super) request: Duration,
    /// Before the first new try, and between looks for a socket that is not there.
    pub(super) retry: Duration,
    /// Before a new try at most, reached by doubling.
    pub(super) longest_retry: Duration,
    /// Between full lists on a connection that works, in case something got lost.
    pub(super) relist: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            longest_retry: Duration::from_secs(30),
            relist: Duration::from_secs(300),
        }
    }
}

/// Where the runtimes usually listen.
const USUAL: [&str; 6] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// The sockets where the runtimes usually listen, each once. `DOCKER_HOST` and `CONTAINER_RUNTIME_ENDPOINT` come
/// first, since they are what `docker` and `crictl` themselves would use.
pub(super) fn default_sockets() -> Vec<PathBuf> {
    let named = |variable| {
        let value = env::var(variable).ok()?;
        value.strip_prefix("unix://").map(PathBuf::from)
    };
    let first = ["DOCKER_HOST", "CONTAINER_RUNTIME_ENDPOINT"].into_iter().filter_map(named);
    let podman = env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("podman/podman.sock"));
    let all = first.chain(USUAL.map(PathBuf::from)).chain(podman);
    let mut sockets: Vec<PathBuf> = Vec::new();
    for socket in all.filter(|socket| socket.is_absolute()) {
        // On most hosts /var/run leads to /run, also before the socket is there.
        let same = |known: &PathBuf| {
            known.file_name() == socket.file_name()
                && known.parent().zip(socket.parent()).is_some_and(|(a, b)| a == b || same_file(a, b))
        };
        if !sockets.iter().any(same) {
            sockets.push(socket);
        }
    }
    sockets
}

/// Starts the thread. It ends when the returned sender is dropped; without sockets there is none.
pub(super) fn start(registry: Arc<Registry>, timing: Timing) -> io::Result<Option<oneshot::Sender<()>>> {
    let sources = registry.sources();
    if sources == 0 {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (keep, dropped) = oneshot::channel::<()>();
    thread::Builder::new().name("runtimes".to_owned()).spawn(move || {
        let watchers = (0..sources).map(|source| Watcher { registry: registry.clone(), source, timing });
        let all = join_all(watchers.map(Watcher::run));
        runtime.block_on(async {
            tokio::select! {
                _ = dropped => {}
                _ = all => {}
            }
        });
    })?;
    Ok(Some(keep))
}

/// What a socket answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    /// Docker's API, which is Podman's too.
    Docker,
    /// The Kubernetes Container Runtime Interface.
    Cri,
}

impl Api {
    /// By the name that runtimes give their sockets.
    fn of(socket: &Path) -> Option<Self> {
        match socket.file_name()?.to_str()? {
            "docker.sock" | "podman.sock" => Some(Self::Docker),
            "containerd.sock" | "crio.sock" => Some(Self::Cri),
            _ => None,
        }
    }
}

/// The conversation with one runtime.
pub(super) struct Watcher {
    pub(super) registry: Arc<Registry>,
    /// Which runtime, by its place in the list of sockets.
    pub(super) source: usize,
    pub(super) timing: Timing,
}

impl Watcher {
    async fn run(self) {
        let Some(socket) = self.registry.socket(self.source) else { return };
        let mut pause = self.timing.retry;
        loop {
            let begun = Instant::now();
            let end = self.session(&socket).await;
            let lasted = begun.elapsed() >= self.timing.longest_retry;
            pause = match end {
                RuntimeState::Failed(_) if !lasted => pause,
                _ => self.timing.retry,
            };
            let failed = matches!(end, RuntimeState::Failed(_));
            self.registry.set_state(self.source, end);
            sleep(pause).await;
            if failed {
                pause = (2 * pause).min(self.timing.longest_retry);
            }
        }
    }

    /// Talks to the runtime until that ends; says why.
    async fn session(&self, socket: &Path) -> RuntimeState {
        match socket.try_exists() {
            Ok(true) => {}
            Ok(false) => return RuntimeState::Absent,
            Err(error) => return RuntimeState::Failed(format!("looking for {}: {error}", socket.display())),
        }
        let before = self.registry.sockets_before(self.source);
        if let Some(same) = before.into_iter().find(|other| same_file(other, socket)) {
            return RuntimeState::SameAs(same);
        }
        let Err(error) = self.talk(socket).await;
        RuntimeState::Failed(format!("{error:#}"))
    }

    async fn talk(&self, socket: &Path) -> anyhow::Result<Infallible> {
        match Api::of(socket) {
            Some(Api::Docker) => {
                let (docker, since) = self.docker(socket).await?;
                self.watch_docker(&docker, since).await
            }
            Some(Api::Cri) => {
                let (cri, server) = self.cri(socket).await?;
                self.watch_cri(cri, server).await
            }
            None => match self.docker(socket).await {
                Ok((docker, since)) => self.watch_docker(&docker, since).await,
                Err(not_docker) => {
                    let found = self.cri(socket).await;
                    let (cri, server) = found
                        .map_err(|not_cri| anyhow!("as Docker's API: {not_docker:#}; as CRI: {not_cri:#}"))?;
                    self.watch_cri(cri, server).await
                }
            },
        }
    }

    /// Waits for one answer, at most for the time that a request has.
    pub(super) async fn answer<T, E: Into<anyhow::Error>>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        match timeout(self.timing.request, request).await {
            Ok(answer) => answer.map_err(|error| error.into().context(format!("asking for {what}"))),
            Err(_) => anyhow::bail!("asking for {what}: no answer within {:?}", self.timing.request),
        }
    }
}

/// Ticks after each `period`, not at once.
pub(super) fn every(period: Duration) -> Interval {
    let mut timer = interval(period);
    timer.reset();
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::fake_cri::FakeCri;
    use super::super::fake_runtime::{FakeRuntime, container, event};
    use super::super::watched::{QUICK, Watched, is_failed};
    use super::*;

    #[test]
    fn listed_containers_are_named() {
        let fake = FakeRuntime::start();
        let mut linked = container("aaa", "/shop/db");
        linked["Names"] = json!(["/web/db", "/shop-db"]);
        fake.list(&json!([container("bbb", "/web"), linked]));
        let watched = Watched::start(vec![fake.socket()], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        assert_eq!(watched.state(), RuntimeState::Connected { server: "Docker 20.10.24".into() });
        assert_eq!(watched.name("bbb").as_deref(), Some("web"));
        assert_eq!(watched.name("aaa").as_deref(), Some("shop-db"));
        assert_eq!(watched.registry.statuses()[0].containers, 2);
        let metadata = watched.registry.metadata("bbb").unwrap();
        assert_eq!(metadata.image.as_deref(), Some("nginx:1"));
        assert_eq!(metadata.labels["tier"], "front");
    }

    #[test]
    fn events_name_rename_and_remove() {
        let fake = FakeRuntime::start();
        fake.list(&json!([]));
        let watched = Watched::start(vec![fake.socket()], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        fake.event(&event("create", "ccc", "short"));
        watched.until("created", |watched| watched.name("ccc").as_deref() == Some("short"));
        let metadata = watched.registry.metadata("ccc").unwrap();
        assert_eq!(metadata.image.as_deref(), Some("busybox"));
        assert_eq!(metadata.labels.iter().collect::<Vec<_>>(), [(&"tier".to_owned(), &"back".to_owned())]);

        fake.inspect(&json!({"Id": "ccc", "Name": "/new", "Config": {"Image": "busybox", "Labels": null}}));
        fake.event(&event("rename", "ccc", "whichever"));
        watched.until("renamed", |watched| watched.name("ccc").as_deref() == Some("new"));

        fake.event(&event("destroy", "ccc", "new"));
        watched.until("removed", |watched| watched.registry.statuses()[0].containers == 0);
        assert_eq!(watched.name("ccc").as_deref(), Some("new"), "named until its grace ends");
    }

    #[test]
    fn a_silent_server_is_given_up() {
        let fake = FakeRuntime::start();
        fake.hang();
        let watched = Watched::start(vec![fake.socket()], QUICK);
        let begun = Instant::now();
        watched.registry.settle(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(is_failed(&watched, "no answer within 300ms"), "{:?}", watched.state());
    }

    #[test]
    fn garbage_is_an_error_and_then_forgotten() {
        let fake = FakeRuntime::start();
        fake.list_text("]\u{0}{ not json");
        let watched = Watched::start(vec![fake.socket()], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        assert!(is_failed(&watched, "asking for its containers"), "{:?}", watched.state());
        fake.list(&json!([container("bbb", "/web")]));
        watched.until("recovered", |watched| watched.name("bbb").is_some());
        let before = fake.connections();
        fake.event_text("}{ garbage\n");
        watched.until("asked again", |_| fake.connections() >= before + 3);
        watched.until("connected", |watched| matches!(watched.state(), RuntimeState::Connected { .. }));
        fake.event(&json!({"Type": "container", "Action": "create"}));
        fake.event(&event("create", "ddd", "after"));
        watched.until("still listening", |watched| watched.name("ddd").is_some());
    }

    #[test]
    fn ten_thousand_containers_with_long_labels() {
        let fake = FakeRuntime::start();
        let mut all: Vec<_> = (0..10_000).map(|n| container(&format!("id{n}"), &format!("/c{n}"))).collect();
        all[7]["Labels"] = json!({"long": "x".repeat(65_536)});
        fake.list(&json!(all));
        let watched =
            Watched::start(vec![fake.socket()], Timing { request: Duration::from_secs(15), ..QUICK });
        watched.registry.settle(Duration::from_secs(20));
        assert_eq!(watched.registry.statuses()[0].containers, 10_000);
        assert_eq!(watched.name("id9999").as_deref(), Some("c9999"));
        assert_eq!(watched.registry.metadata("id7").unwrap().labels["long"].len(), 4096);
    }

    #[test]
    fn a_runtime_may_come_go_and_return() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let watched = Watched::start(vec![socket.clone()], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        assert_eq!(watched.state(), RuntimeState::Absent);

        let fake = FakeRuntime::start_at(&socket, &json!([container("bbb", "/web")]));
        // The list comes first: it is connected only when it has told its version.
        let is_connected = |watched: &Watched| matches!(watched.state(), RuntimeState::Connected { .. });
        watched.until("came", |watched| watched.name("bbb").is_some() && is_connected(watched));

        drop(fake);
        watched.until("went", |watched| watched.state() == RuntimeState::Absent);
        assert_eq!(watched.name("bbb").as_deref(), Some("web"));

        let _fake = FakeRuntime::start_at(&socket, &json!([container("eee", "/again")]));
        watched.until("returned", |watched| watched.name("eee").is_some());
        assert_eq!(watched.registry.statuses()[0].containers, 1, "the first one is gone");
    }

    #[test]
    fn what_is_no_socket_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("docker.sock");
        fs::write(&file, "").unwrap();
        let watched = Watched::start(vec![file], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        assert!(is_failed(&watched, "refused"), "{:?}", watched.state());
    }

    #[test]
    fn one_socket_under_two_names_is_asked_once() {
        let fake = FakeRuntime::start();
        fake.list(&json!([container("bbb", "/web")]));
        let alias = fake.socket().with_file_name("alias.sock");
        std::os::unix::fs::symlink(fake.socket(), &alias).unwrap();
        let watched = Watched::start(vec![fake.socket(), alias], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        let statuses = watched.registry.statuses();
        assert_eq!(statuses[1].state, RuntimeState::SameAs(fake.socket()));
        assert_eq!((statuses[0].containers, statuses[1].containers), (1, 0));
    }

    #[test]
    fn a_lost_event_is_made_up_for() {
        let fake = FakeRuntime::start();
        fake.list(&json!([]));
        let watched =
            Watched::start(vec![fake.socket()], Timing { relist: Duration::from_millis(50), ..QUICK });
        watched.registry.settle(Duration::from_secs(20));
        fake.list(&json!([container("bbb", "/web")]));
        watched.until("listed again", |watched| watched.name("bbb").is_some());
        assert!(matches!(watched.state(), RuntimeState::Connected { .. }));
    }

    #[test]
    fn a_socket_by_another_name_is_asked_in_both_ways() {
        let directory = tempfile::tempdir().unwrap();
        let [cri, docker] = ["cri", "docker"].map(|name| directory.path().join(name));
        let (fake_cri, fake_docker) =
            (FakeCri::start_at(&cri, Vec::new()), FakeRuntime::start_at(&docker, &json!([])));
        let watched = Watched::start(vec![cri, docker], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        let states: Vec<_> = watched.registry.statuses().into_iter().map(|status| status.state).collect();
        let connected = |server: &str| RuntimeState::Connected { server: server.to_owned() };
        assert_eq!(states, [connected("containerd 1.6.20"), connected("Docker 20.10.24")]);
        drop((fake_cri, fake_docker));
    }

    #[test]
    fn what_answers_otherwise_is_an_error_that_tells_both() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("other.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::io::Write::write_all(&mut stream, b"220 mail.example.org ESMTP\r\n").ok();
            }
        });
        let watched = Watched::start(vec![socket], QUICK);
        watched.registry.settle(Duration::from_secs(20));
        assert!(is_failed(&watched, "as Docker's API: "), "{:?}", watched.state());
        assert!(is_failed(&watched, "as CRI: "), "{:?}", watched.state());
    }

    #[test]
    fn usual_sockets_are_each_listed_once() {
        let sockets = default_sockets();
        assert!(sockets.iter().any(|socket| socket.ends_with("run/docker.sock")));
        assert!(sockets.iter().any(|socket| socket.ends_with("podman/podman.sock")));
        if same_file(Path::new("/var/run"), Path::new("/run")) {
            assert_eq!(sockets.iter().filter(|socket| socket.ends_with("run/docker.sock")).count(), 1);
        }
    }
}
