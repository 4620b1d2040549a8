//! A Kubernetes API server for tests: HTTP/1.1 on loopback, with the semantics of list and watch, and of what goes
//! wrong with them.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

pub(super) const PODS: &str = "/api/v1/pods";
pub(super) const SERVICES: &str = "/api/v1/services";
pub(super) const NODES: &str = "/api/v1/nodes";
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// The kind of a change that is told by a line that is not Kubernetes'.
const GARBAGE: &str = "";

/// Something that happened, at a version.
struct Change {
    version: u64,
    path: String,
    kind: &'static str,
    object: Value,
}

/// How a watch is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// As the server does when the time is over.
    InOrder,
    /// In the middle of a chunk.
    InAChunk,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By path of the collection, then namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    changes: Vec<Change>,
    /// What was before this version is not known any more.
    compacted: u64,
    /// Whether that is told by an event instead of a status.
    gone_as_event: bool,
    token: Option<String>,
    denied: HashSet<String>,
    /// What every request is answered with.
    answer: Option<(u16, String)>,
    hang: bool,
    ended: bool,
    /// Counts the cuts.
    cuts: (usize, Option<Cut>),
    /// What was asked for: `GET` and path with query.
    requests: Vec<String>,
    connections: Vec<TcpStream>,
    listening: usize,
}

pub(super) struct FakeApi {
    address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
    directory: tempfile::TempDir,
}

impl FakeApi {
    pub(super) fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub(super) fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new((Mutex::new(State { version: 100, ..State::default() }), Condvar::new()));
        let served = shared.clone();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = served.0.lock().unwrap();
                if state.ended {
                    return;
                }
                state.connections.push(stream.try_clone().unwrap());
                drop(state);
                let served = served.clone();
                thread::spawn(move || serve(stream, &served));
            }
        });
        Self { address, shared, directory: tempfile::tempdir().unwrap() }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// A kubeconfig that leads here, with the token in a file of its own.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        self.write_token("first");
        std::fs::write(&path, kubeconfig(&self.address(), &self.token_file())).unwrap();
        path
    }

    fn token_file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    pub(super) fn write_token(&self, token: &str) {
        std::fs::write(self.token_file(), token).unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.1.notify_all();
    }

    /// Creates or changes an object.
    pub(super) fn put(&self, path: &str, object: Value) {
        self.change(|state| state.put(path, object));
    }

    pub(super) fn delete(&self, path: &str, namespace: &str, name: &str) {
        self.change(|state| {
            state.version += 1;
            let key = (namespace.to_owned(), name.to_owned());
            let mut object = state.objects.get_mut(path).and_then(|all| all.remove(&key)).unwrap();
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.note(path, "DELETED", object);
        });
    }

    /// What happened so far can no longer be told.
    pub(super) fn forget_changes(&self, as_event: bool) {
        self.change(|state| {
            state.gone_as_event = as_event;
            state.version += 1;
            state.compacted = state.version;
            state.changes.clear();
        });
    }

    pub(super) fn bookmark(&self, path: &str) {
        self.change(|state| {
            state.version += 1;
            let version = state.version.to_string();
            let object = json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": version}});
            state.note(path, "BOOKMARK", object);
        });
    }

    /// Something happens that is told, to all who watch from before it, by a line that is not Kubernetes'.
    pub(super) fn garbage(&self, path: &str) {
        self.change(|state| {
            state.version += 1;
            state.note(path, GARBAGE, Value::Null);
        });
    }

    pub(super) fn want_token(&self, token: &str) {
        self.change(|state| state.token = Some(token.to_owned()));
    }

    pub(super) fn deny(&self, paths: &[&str]) {
        self.change(|state| state.denied = paths.iter().map(|path| (*path).to_owned()).collect());
    }

    pub(super) fn answer(&self, answer: Option<(u16, &str)>) {
        self.change(|state| state.answer = answer.map(|(code, text)| (code, text.to_owned())));
    }

    pub(super) fn hang(&self, hang: bool) {
        self.change(|state| state.hang = hang);
    }

    /// Ends all watches.
    pub(super) fn cut(&self, cut: Cut) {
        self.change(|state| state.cuts = (state.cuts.0 + 1, Some(cut)));
    }

    /// What was asked for since the last call, of requests that begin like this.
    pub(super) fn requests(&self, prefix: &str) -> Vec<String> {
        self.state().requests.iter().filter(|request| request.starts_with(prefix)).cloned().collect()
    }

    pub(super) fn forget_requests(&self) {
        self.state().requests.clear();
    }

    /// How many watches are open.
    pub(super) fn listening(&self) -> usize {
        self.state().listening
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.change(|state| {
            state.ended = true;
            for stream in state.connections.drain(..) {
                stream.shutdown(Shutdown::Both).ok();
            }
        });
        // Wakes the listening thread, which then ends and closes the port.
        TcpStream::connect(self.address).ok();
    }
}

/// A kubeconfig for a server with a token.
pub(super) fn kubeconfig(address: &str, token: &Path) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "test", "user": {"tokenFile": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (text("namespace"), text("name"));
        let before = self.objects.entry(path.to_owned()).or_default().insert(key, object.clone());
        self.note(path, if before.is_some() { "MODIFIED" } else { "ADDED" }, object);
    }

    fn note(&mut self, path: &str, kind: &'static str, object: Value) {
        self.changes.push(Change { version: self.version, path: path.to_owned(), kind, object });
    }

    /// The answer to a list: status and body.
    fn list(&self, path: &str, query: &BTreeMap<String, String>) -> (u16, Value) {
        let (version, begin) = match query.get("continue").and_then(|token| token.split_once(':')) {
            Some((version, begin)) => (version.parse().unwrap(), begin.parse().unwrap()),
            None => (self.version, 0),
        };
        if version < self.compacted {
            return gone();
        }
        let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let all: Vec<&Value> = self.objects.get(path).map(|all| all.values().collect()).unwrap_or_default();
        let all: Vec<&Value> = all.into_iter().filter(|object| is_selected(object, query)).collect();
        let page: Vec<&Value> = all.iter().skip(begin).take(limit).copied().collect();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if begin + page.len() < all.len() {
            metadata["continue"] = json!(format!("{version}:{}", begin + page.len()));
        }
        let items = if page.is_empty() { Value::Null } else { json!(page) };
        (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }
}

fn is_selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some(selector) = query.get("fieldSelector") else { return true };
    let node = selector.strip_prefix("spec.nodeName=").expect("the only one that is known");
    object["spec"]["nodeName"] == node
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    let (kind, failure) = ("Status", "Failure");
    json!({"kind": kind, "apiVersion": "v1", "metadata": {}, "status": failure, "code": code, "reason": reason,
           "message": message})
}

fn gone() -> (u16, Value) {
    (410, status(410, "Expired", "too old resource version"))
}

fn serve(stream: TcpStream, shared: &(Mutex<State>, Condvar)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((target, token)) = request(&mut reader) {
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=").replace("%3A", ":")))
            .collect();
        let mut state = shared.0.lock().unwrap();
        state.requests.push(format!("GET {target}"));
        while state.hang && !state.ended {
            state = shared.1.wait(state).unwrap();
        }
        if state.ended {
            return;
        }
        let (code, body) = if let Some((code, text)) = &state.answer {
            (*code, text.clone())
        } else if state.token.as_ref().is_some_and(|wanted| token != format!("Bearer {wanted}")) {
            (401, status(401, "Unauthorized", "Unauthorized").to_string())
        } else if state.denied.contains(path) {
            (403, status(403, "Forbidden", "User \"test\" cannot do that at the cluster scope").to_string())
        } else if path == "/version" {
            (200, json!({"major": "1", "minor": "33", "gitVersion": "v1.33.1"}).to_string())
        } else if query.contains_key("watch") {
            let from = query["resourceVersion"].parse::<u64>().expect("a version");
            if from < state.compacted && !state.gone_as_event {
                (410, gone().1.to_string())
            } else if from > state.version {
                (504, status(504, "Timeout", "Too large resource version: it is in the future").to_string())
            } else {
                state.listening += 1;
                drop(state);
                watch(stream, shared, path, &query, from);
                shared.0.lock().unwrap().listening -= 1;
                return;
            }
        } else if let Some((namespace, rest)) =
            path.strip_prefix("/apis/batch/v1/namespaces/").and_then(|rest| rest.split_once("/jobs/"))
        {
            let jobs = state.objects.get("/apis/batch/v1/jobs");
            match jobs.and_then(|all| all.get(&(namespace.to_owned(), rest.to_owned()))) {
                Some(job) => (200, job.to_string()),
                None => (404, status(404, "NotFound", "no such job").to_string()),
            }
        } else {
            let (code, body) = state.list(path, &query);
            (code, body.to_string())
        };
        drop(state);
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = &stream;
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

/// Target and credentials of one request.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let target = line.split_whitespace().nth(1)?.to_owned();
    let mut token = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            return Some((target, token));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            value.trim().clone_into(&mut token);
        }
    }
}

/// Tells all changes after `from`, until it is cut.
fn watch(
    mut stream: TcpStream,
    (state, news): &(Mutex<State>, Condvar),
    path: &str,
    query: &BTreeMap<String, String>,
    from: u64,
) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).is_err() {
        return;
    }
    let mut told = from;
    let mut state = state.lock().unwrap();
    let cuts = state.cuts.0;
    loop {
        if state.ended {
            return;
        }
        let line = |kind: &str, object: &Value| match kind {
            GARBAGE => "]{ not json\n".to_owned(),
            _ => format!("{}\n", json!({"type": kind, "object": object})),
        };
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let mut text = String::new();
        let mut over = false;
        if told < state.compacted && state.gone_as_event {
            text = chunk(&line("ERROR", &gone().1));
            over = true;
        } else {
            let news = state.changes.iter().filter(|change| change.version > told && change.path == path);
            let is_for_all = |kind| ["BOOKMARK", GARBAGE].contains(&kind);
            for change in news.filter(|change| is_for_all(change.kind) || is_selected(&change.object, query))
            {
                // In two pieces: a chunk is no line.
                let line = line(change.kind, &change.object);
                let (first, second) = line.split_at(line.len() / 2);
                text.extend([chunk(first), chunk(second)]);
            }
            told = told.max(state.version);
        }
        if state.cuts.0 != cuts {
            match state.cuts.1 {
                Some(Cut::InAChunk) => text.push_str("1000\r\n{\"type\":\"ADDED\",\"object\":{\"metada"),
                _ => text.push_str("0\r\n\r\n"),
            }
            over = true;
        }
        if over && state.cuts.1 != Some(Cut::InAChunk) && !text.ends_with("0\r\n\r\n") {
            text.push_str("0\r\n\r\n");
        }
        if stream.write_all(text.as_bytes()).is_err() || over {
            stream.shutdown(Shutdown::Both).ok();
            return;
        }
        state = news.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
    }
}

/// A pod with one container.
pub(super) fn pod(name: &str, node: &str, container: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "prod", "uid": format!("uid-of-{name}"),
            "labels": {"pod-template-hash": "7d9f8b6c54", "other": "x"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "shop-7d9f8b6c54", "controller": true, "uid": "r"}],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "nginx:1", "env": [{"name": "A"}]}]},
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "podIP": address, "podIPs": [{"ip": address}],
            "containerStatuses": [
                {"name": "web", "image": "sha256:1", "containerID": format!("containerd://{container}"),
                 "lastState": {}, "state": {"running": {}}, "ready": true},
            ],
        },
    })
}

/// A service with one port.
pub(super) fn service(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "prod"},
        "spec": {"clusterIP": address, "clusterIPs": [address],
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]},
    })
}

/// A slice with one endpoint.
pub(super) fn slice(name: &str, address: &str, pod: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "prod"}, "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": true},
                       "targetRef": {"kind": "Pod", "namespace": "prod", "name": pod, "uid": "u"}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// A node.
pub(super) fn node(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}
