//! Asks Docker and Podman, over their unix sockets, what their containers are called.
//!
//! One background thread serves all sockets. For each it lists the containers, then listens to events, so
//! that even a container of 100 ms gets its name: a create event carries name, image and labels. Events
//! are asked for from before the list was, so none falls between. Without a socket, or when one goes away,
//! it looks again at growing intervals.

use std::collections::HashMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bollard::models::{ContainerSummary, EventMessage};
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use futures_util::future::join_all;
use model::container::Metadata;
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::registry::{Registry, RuntimeState, same_file};

/// Event names of Docker and, where they differ, of Podman.
const EVENTS: [&str; 5] = ["create", "start", "rename", "destroy", "remove"];
/// Attributes of an event that are no labels.
const NO_LABELS: [&str; 8] =
    ["image", "name", "oldName", "exitCode", "containerExitCode", "signal", "execID", "podId"];

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// For the answer to one request.
    pub(super) request: Duration,
    /// Before the first new try, and between looks for a socket that is not there.
    pub(super) retry: Duration,
    /// Before a new try at most, reached by doubling.
    pub(super) longest_retry: Duration,
    /// Between full lists on a connection that works, in case an event got lost.
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

/// The sockets where Docker and Podman usually listen, each once. `DOCKER_HOST` comes first, since it is
/// what `docker` itself would use.
pub(super) fn default_sockets() -> Vec<PathBuf> {
    let docker_host = env::var("DOCKER_HOST").ok();
    let host = docker_host.as_deref().and_then(|host| host.strip_prefix("unix://")).map(PathBuf::from);
    let podman = env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("podman/podman.sock"));
    let fixed = ["/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from);
    let mut sockets: Vec<PathBuf> = Vec::new();
    for socket in host.into_iter().chain(fixed).chain(podman).filter(|socket| socket.is_absolute()) {
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

/// The conversation with one runtime.
struct Watcher {
    registry: Arc<Registry>,
    source: usize,
    timing: Timing,
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
        match self.talk(socket).await {
            Ok(()) => RuntimeState::Failed("the stream of events ended".to_owned()),
            Err(error) => RuntimeState::Failed(format!("{error:#}")),
        }
    }

    async fn talk(&self, socket: &Path) -> anyhow::Result<()> {
        let docker = self.connect(socket)?;
        let server = self.server(&docker).await?;
        // A second earlier: the clock of events has whole seconds.
        let since =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(1);
        self.list(&docker).await?;
        self.registry.set_state(self.source, RuntimeState::Connected { server });
        self.listen(&docker, since).await
    }

    fn connect(&self, socket: &Path) -> anyhow::Result<Docker> {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let seconds = self.timing.request.as_secs().max(1);
        Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION).context("connecting")
    }

    async fn server(&self, docker: &Docker) -> anyhow::Result<String> {
        let version = self.answer("its version", docker.version()).await?;
        let podman = version.components.iter().flatten().any(|part| part.name.contains("Podman"));
        let name = if podman { "Podman" } else { "Docker" };
        Ok(format!("{name} {}", version.version.unwrap_or_default()).trim_end().to_owned())
    }

    async fn list(&self, docker: &Docker) -> anyhow::Result<()> {
        let everything = ListContainersOptionsBuilder::default().all(true).build();
        let list = self.answer("its containers", docker.list_containers(Some(everything))).await?;
        self.registry.replace(self.source, list.into_iter().filter_map(from_list).collect());
        Ok(())
    }

    /// Takes events as they come and lists all again now and then.
    async fn listen(&self, docker: &Docker, since: u64) -> anyhow::Result<()> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), EVENTS.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptions { since: Some(since.to_string()), until: None, filters: Some(filters) };
        // Some servers send the first byte of the answer with the first event, whenever that is.
        let patient = docker.clone().with_timeout(Duration::from_secs(u64::from(u32::MAX)));
        let mut events = Box::pin(patient.events(Some(options)));
        let mut relist = self.relist_timer();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.take(docker, event.context("reading its events")?).await,
                    None => return Ok(()),
                },
                _ = relist.tick() => self.list(docker).await?,
            }
        }
    }

    fn relist_timer(&self) -> Interval {
        let mut timer = interval(self.timing.relist);
        timer.reset();
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer
    }

    async fn take(&self, docker: &Docker, event: EventMessage) {
        let Some((id, attributes)) = event.actor.and_then(|actor| Some((actor.id?, actor.attributes))) else {
            return;
        };
        match event.action.as_deref() {
            Some("create" | "start") => {
                self.registry.insert(self.source, id, from_event(attributes.unwrap_or_default()));
            }
            // Which of its names a rename event carries depends on the server.
            Some("rename") => match self.inspect(docker, &id).await {
                Ok(metadata) => self.registry.insert(self.source, id, metadata),
                Err(error) => tracing::debug!("container {id} was renamed: {error:#}"),
            },
            Some("destroy" | "remove") => self.registry.remove(&id),
            _ => {}
        }
    }

    async fn inspect(&self, docker: &Docker, id: &str) -> anyhow::Result<Metadata> {
        let inspect = docker.inspect_container(id, None::<InspectContainerOptions>);
        let found = self.answer("a container", inspect).await?;
        let config = found.config.unwrap_or_default();
        Ok(Metadata::new(
            found.name.as_deref().map(plain_name),
            config.image,
            config.labels.unwrap_or_default(),
        ))
    }

    /// Waits for one answer, at most for the time that a request has.
    async fn answer<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> anyhow::Result<T> {
        match timeout(self.timing.request, request).await {
            Ok(answer) => answer.with_context(|| format!("asking for {what}")),
            Err(_) => anyhow::bail!("asking for {what}: no answer within {:?}", self.timing.request),
        }
    }
}

fn from_list(listed: ContainerSummary) -> Option<(String, Metadata)> {
    // A linked container is also listed as `/<other>/<alias>`.
    let names = listed.names.unwrap_or_default();
    let name = names.iter().map(|name| plain_name(name)).find(|name| !name.contains('/'));
    Some((listed.id?, Metadata::new(name, listed.image, listed.labels.unwrap_or_default())))
}

/// Attributes are the labels, plus what the server says of the event.
fn from_event(mut attributes: HashMap<String, String>) -> Metadata {
    let (name, image) = (attributes.remove("name"), attributes.remove("image"));
    attributes.retain(|key, _| !NO_LABELS.contains(&key.as_str()));
    Metadata::new(name.as_deref().map(plain_name), image, attributes)
}

/// Docker puts a slash before names.
fn plain_name(name: &str) -> String {
    name.strip_prefix('/').unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::fake_runtime::{FakeRuntime, container, event};
    use super::*;

    const QUICK: Timing = Timing {
        request: Duration::from_millis(300),
        retry: Duration::from_millis(20),
        longest_retry: Duration::from_millis(100),
        relist: Duration::from_secs(300),
    };

    struct Watched {
        registry: Arc<Registry>,
        _keep: Option<oneshot::Sender<()>>,
    }

    impl Watched {
        fn start(sockets: Vec<PathBuf>, timing: Timing) -> Self {
            let registry = Arc::new(Registry::new(sockets));
            let keep = start(registry.clone(), timing).unwrap();
            Self { registry, _keep: keep }
        }

        fn state(&self) -> RuntimeState {
            self.registry.statuses()[0].state.clone()
        }

        fn name(&self, id: &str) -> Option<String> {
            self.registry.metadata(id)?.name.clone()
        }

        /// Waits for something that must come true soon.
        fn until(&self, what: &str, true_yet: impl Fn(&Self) -> bool) {
            let begun = Instant::now();
            while !true_yet(self) {
                assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.registry.statuses());
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn is_failed(watched: &Watched, text: &str) -> bool {
        matches!(watched.state(), RuntimeState::Failed(error) if error.contains(text))
    }

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

        let fake = FakeRuntime::start_at(&socket);
        fake.list(&json!([container("bbb", "/web")]));
        watched.until("came", |watched| watched.name("bbb").is_some());

        drop(fake);
        watched.until("went", |watched| watched.state() == RuntimeState::Absent);
        assert_eq!(watched.name("bbb").as_deref(), Some("web"));

        let fake = FakeRuntime::start_at(&socket);
        fake.list(&json!([container("eee", "/again")]));
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
    fn usual_sockets_are_each_listed_once() {
        let sockets = default_sockets();
        assert!(sockets.iter().any(|socket| socket.ends_with("run/docker.sock")));
        assert!(sockets.iter().any(|socket| socket.ends_with("podman/podman.sock")));
        if same_file(Path::new("/var/run"), Path::new("/run")) {
            assert_eq!(sockets.iter().filter(|socket| socket.ends_with("run/docker.sock")).count(), 1);
        }
    }
}
