//! A Docker Engine for tests: answers on a unix socket what it is told to, rightly or wrongly.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

#[derive(Default)]
struct Behaviour {
    list: String,
    inspect: String,
    hang: bool,
    ended: bool,
    connections: usize,
    /// Connections that asked for events.
    listeners: Vec<UnixStream>,
    /// Connections kept open without an answer.
    hanging: Vec<UnixStream>,
}

pub(super) struct FakeRuntime {
    socket: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    _directory: Option<tempfile::TempDir>,
}

impl FakeRuntime {
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::bind(&directory.path().join("docker.sock"), Some(directory), &json!([]))
    }

    pub(super) fn start_at(socket: &Path, containers: &Value) -> Self {
        Self::bind(socket, None, containers)
    }

    fn bind(socket: &Path, directory: Option<tempfile::TempDir>, containers: &Value) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let behaviour =
            Arc::new(Mutex::new(Behaviour { list: containers.to_string(), ..Behaviour::default() }));
        let shared = behaviour.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.lock().unwrap().ended {
                    return;
                }
                serve(stream, &shared);
            }
        });
        Self { socket: socket.to_owned(), behaviour, _directory: directory }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(super) fn list(&self, containers: &Value) {
        self.list_text(&containers.to_string());
    }

    pub(super) fn list_text(&self, text: &str) {
        text.clone_into(&mut self.behaviour.lock().unwrap().list);
    }

    pub(super) fn inspect(&self, container: &Value) {
        self.behaviour.lock().unwrap().inspect = container.to_string();
    }

    pub(super) fn hang(&self) {
        self.behaviour.lock().unwrap().hang = true;
    }

    pub(super) fn connections(&self) -> usize {
        self.behaviour.lock().unwrap().connections
    }

    pub(super) fn event(&self, event: &Value) {
        self.event_text(&format!("{event}\n"));
    }

    /// Sends a chunk to every listener, once there is one.
    pub(super) fn event_text(&self, text: &str) {
        loop {
            let mut behaviour = self.behaviour.lock().unwrap();
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            behaviour.listeners.retain_mut(|stream| {
                stream.set_nonblocking(true).is_ok() && stream.write_all(chunk.as_bytes()).is_ok()
            });
            if !behaviour.listeners.is_empty() {
                return;
            }
            drop(behaviour);
            thread::yield_now();
        }
    }
}

impl Drop for FakeRuntime {
    fn drop(&mut self) {
        fs::remove_file(&self.socket).ok();
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.ended = true;
        for stream in behaviour.listeners.drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn serve(mut stream: UnixStream, behaviour: &Mutex<Behaviour>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(request)) = lines.next() else { return };
    let headers_end = lines.map_while(Result::ok).any(|line| line.is_empty());
    assert!(headers_end, "a whole request");
    let mut behaviour = behaviour.lock().unwrap();
    if behaviour.ended {
        return;
    }
    behaviour.connections += 1;
    if behaviour.hang {
        behaviour.hanging.push(stream);
        return;
    }
    let path = request.split_whitespace().nth(1).unwrap_or_default();
    let body = match path.split('?').next().unwrap_or_default() {
        "/version" => json!({"Version": "20.10.24", "ApiVersion": "1.41"}).to_string(),
        "/containers/json" => behaviour.list.clone(),
        "/events" => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).ok();
            behaviour.listeners.push(stream);
            return;
        }
        _ => behaviour.inspect.clone(),
    };
    drop(behaviour);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok();
}

/// A container as `/containers/json` lists it.
pub(super) fn container(id: &str, name: &str) -> Value {
    json!({"Id": id, "Names": [name], "Image": "nginx:1", "State": "running", "Labels": {"tier": "front"}})
}

/// An event of a container.
pub(super) fn event(action: &str, id: &str, name: &str) -> Value {
    let attributes = json!({"name": name, "image": "busybox", "tier": "back"});
    json!({"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes}, "time": 1})
}
