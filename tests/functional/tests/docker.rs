//! Real Docker containers: who they are, also when they live for a moment, and when Docker is ill.

#![allow(clippy::unwrap_used)]

mod containers;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use containers::{
    SOON, ask, list, name, network, of, serve_and_talk, ss, tell_apart_in_one_network,
    tell_of_a_live_connection, tell_of_a_page, tell_of_another_name, tell_of_names, trace,
};
use functional::cgroup::Cgroup;
use functional::netns::{Netns, veth_pair};
use functional::process::{running, wait_until};
use functional::runtime::{Containers, Docker, IMAGE};
use functional::tcptide::{Agent, Tcptide};
use functional::workload::{self, Counts, Running};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn connections_are_told_with_their_containers() {
    let docker = Docker::start().unwrap();
    tell_of_a_page(&docker, "docker", IMAGE);
    tell_of_a_live_connection(&docker, "docker", IMAGE);
    tell_of_names(&docker, "docker");
}

#[test]
fn a_container_of_a_moment_is_named() {
    let docker = Docker::start().unwrap();
    docker.run("server", &["workload", "serve", "--listen", "0.0.0.0:90"]).unwrap();
    let to = format!("{}:90", docker.address("server").unwrap());
    let trace = trace(&docker, &["--port", "90", "--peer", &network(&docker, "server")]);
    let names = ["moth-1", "moth-2", "moth-3"];
    for moth in names {
        let churn = ["workload", "churn", "--to", &to, "--rate", "100", "--seconds", "1", "--count", "1"];
        let words = [&["run", "--rm", "--name", moth, IMAGE] as &[&str], &churn].concat();
        let counts: Counts = serde_json::from_str(&docker.call(&words).unwrap()).unwrap();
        assert_eq!(counts.closed, 1, "{counts:?}");
        let close = trace.wait_for_json(SOON, |event| name(event) == moth).unwrap();
        let bytes = [&close["sent_bytes"], &close["received_bytes"]].map(|bytes| bytes.as_u64().unwrap());
        assert_eq!(bytes, [counts.bytes_sent, counts.bytes_received]);
        assert_eq!(close["container"]["image"], IMAGE);
    }
    let closes = trace.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let moths: Vec<_> = closes.iter().map(name).filter(|&name| name != "server").collect();
    assert_eq!(moths, names, "and nobody else connected");
}

#[test]
fn a_container_removed_with_its_connection_is_named_at_its_end() {
    let docker = Docker::start().unwrap();
    serve_and_talk(&docker);
    let id = docker.inspect("client").unwrap()["Id"].clone();
    let cgroup = docker.cgroup("client").unwrap();
    let trace = trace(&docker, &["--port", "90", "--peer", &network(&docker, "server")]);
    let before = ss(&docker, "client", &["state", "established"]).remove(0);
    docker.rm("client").unwrap();
    let mount = functional::cgroup::mount_point().unwrap();
    assert!(!mount.join(cgroup.strip_prefix("/").unwrap()).exists(), "the cgroup is gone");
    let close = trace.wait_for_json(Duration::from_secs(30), |event| name(event) != "server").unwrap();
    assert_eq!((name(&close), &close["container"]["id"]), ("client", &id), "{close:#}");
    assert_eq!(close["cookie"].as_u64(), before.cookie);
    let sent = close["sent_bytes"].as_u64().unwrap() + close["before"]["sent_bytes"].as_u64().unwrap();
    assert!(sent >= before.bytes_sent(), "{close:#}");
}

#[test]
fn containers_in_one_network_are_told_apart() {
    let docker = Docker::start().unwrap();
    tell_apart_in_one_network(&docker, docker.netns(), &["--network", "container:net"]);
}

/// An agent, and what it has of a container.
struct Counting(Agent);

impl Counting {
    fn new(docker: &Docker) -> Self {
        let socket = docker.socket().to_string_lossy();
        let args = ["--runtime-socket", &socket, "--metrics.grace", "1m"];
        Self(Tcptide::find().unwrap().agent(args).unwrap())
    }

    /// Connections opened under this name, and the ids behind it.
    fn of(&self, name: &str) -> (Option<f64>, BTreeSet<String>) {
        let scrape = self.0.scrape().unwrap();
        let labels = [("container", name)];
        let ids = scrape.select("tcptide_container_info", &labels).map(|one| one.label("id").to_owned());
        (scrape.sum("tcptide_opened_total", &labels), ids.collect())
    }

    fn wait_for(&self, name: &str, expected: &(Option<f64>, BTreeSet<String>)) {
        let is_so = || Ok((self.of(name) == *expected).then_some(()));
        let what = format!("{name} as {expected:?}");
        wait_until(&what, SOON, is_so).unwrap_or_else(|error| panic!("{error}: {:?}", self.of(name)));
    }
}

#[test]
fn names_change_and_are_given_again() {
    let docker = Docker::start().unwrap();
    let counting = Counting::new(&docker);
    serve_and_talk(&docker);
    let id = |name| docker.inspect(name).unwrap()["Id"].as_str().unwrap().to_owned();
    let first = id("client");
    let only = |id: &String| BTreeSet::from([id.clone()]);
    tell_of_another_name(&docker);
    counting.wait_for("client", &(Some(1.0), only(&first)));

    // Renamed while somebody watches: what was under the name before is under the new one.
    let trace = trace(&docker, &["--port", "90", "--peer", &network(&docker, "server")]);
    docker.call(&["rename", "client", "caller"]).unwrap();
    counting.wait_for("caller", &(Some(1.0), only(&first)));
    assert_eq!(counting.of("client"), (None, BTreeSet::new()));
    docker.call(&["rename", "caller", "client"]).unwrap();
    counting.wait_for("client", &(Some(1.0), only(&first)));

    // Removed, and another run under its name: two containers with one name.
    docker.rm("client").unwrap();
    docker.rm("server").unwrap();
    serve_and_talk(&docker);
    let second = id("client");
    let now = list(&docker, &["conns", "--container", "client", "--port", "90"]);
    assert_eq!(of(&now, "client")["container"]["id"], second);
    counting.wait_for("client", &(Some(2.0), BTreeSet::from([first.clone(), second.clone()])));
    docker.rm("client").unwrap();
    let mut ids = Vec::new();
    let is_client = |event: &Value| {
        if name(event) == "client" {
            ids.push(event["container"]["id"].clone());
        }
        ids.len() == 2
    };
    trace.wait_for_json(Duration::from_secs(30), is_client).unwrap();
    assert_eq!(ids, [first, second]);
}

#[test]
fn who_starts_before_docker_has_the_names_when_it_is_back() {
    let mut docker = Docker::start_with(&["--live-restore"]).unwrap();
    serve_and_talk(&docker);
    let id = docker.inspect("client").unwrap()["Id"].as_str().unwrap().to_owned();
    docker.stop_daemon();
    let counting = Counting::new(&docker);
    let established = |name: &str| {
        let labels = [("container", name), ("state", "established")];
        counting.0.scrape().unwrap().sum("tcptide_connections", &labels)
    };
    assert_eq!(established(&id[..12]), Some(1.0));
    docker.restart_daemon().unwrap();
    counting.wait_for("client", &(Some(0.0), BTreeSet::from([id.clone()])));
    assert_eq!((established("client"), established(&id[..12])), (Some(1.0), None));
    assert_eq!(of(&list(&docker, &["conns", "--port", "90"]), "client")["container"]["id"], id);
}

#[test]
fn a_container_in_a_container_is_told_beside_it() {
    let docker = Docker::start().unwrap();
    serve_and_talk(&docker);
    let node = docker.cgroup("server").unwrap();
    let id = format!("{:064x}", u128::from(std::process::id()) << 64);
    // As in a node of kind.
    let pod = "kubelet/kubepods/burstable/pod6c1f2f5e-9f0d-4f0c-8a5e-0d1b2c3d4e5f";
    let inner = Cgroup::new(node.join(pod).join(&id)).unwrap();
    let mut inside = std::process::Command::new("nsenter");
    inside.arg(format!("--net=/proc/{}/ns/net", docker.pid("server").unwrap()));
    inside.arg(functional::workload::program().unwrap());
    inside.args(["hold", "--to", "127.0.0.1:90", "--count", "2"]);
    let held = Running::start(&mut inner.wrap(&inside)).unwrap();
    held.ready(SOON).unwrap();

    let all = list(&docker, &["conns", "--container", "server", "--port", "90"]);
    let (within, own): (Vec<_>, Vec<_>) = all.iter().partition(|end| end["container"]["inner"].is_object());
    assert_eq!((within.len(), own.len()), (2, 3), "{all:#?}");
    for end in within {
        assert_eq!((name(end), &end["direction"]), ("server", &"active".into()));
        assert_eq!(end["container"]["cgroup_path"], node.to_str().unwrap());
        let told = &end["container"]["inner"];
        assert_eq!((&told["id"], &told["runtime"]), (&id.as_str().into(), &"kubernetes".into()));
        assert_eq!((&told["name"], &told["cgroup_path"]), (&id[..12].into(), &inner.path().to_str().into()));
    }
    // What they call is the outer one's own, and told as that at the far end.
    let callers = own.iter().filter(|end| end["peer"]["container"]["inner"]["id"] == id.as_str());
    assert_eq!(callers.count(), 2);
    // Sums are the outer one's.
    let states = list(&docker, &["states", "--container", "server"]);
    assert_eq!(of(&states, "server")["container"].get("inner"), None);
    assert_eq!(of(&states, "server")["states"]["established"], 5);
}

/// Stopped with SIGSTOP until dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The data is there, soon, with the beginning of the id for a name.
fn assert_nameless_but_there(docker: &Docker, network: &str, ids: &[String]) {
    // The best of three: the machine may be busy, but a stall would be in each.
    let look = || {
        let began = Instant::now();
        (list(docker, &["conns", "--port", "90", "--peer", network]), began.elapsed())
    };
    let (ends, took) = (0..3).map(|_| look()).min_by_key(|(_, took)| *took).unwrap();
    assert!(took < Duration::from_secs(2), "conns took {took:?}");
    for id in ids {
        let end = of(&ends, &id[..12]);
        assert_eq!(
            (&end["container"]["id"], &end["container"]["runtime"]),
            (&id.as_str().into(), &"docker".into())
        );
    }
    let containers = ask(docker, &["containers"]).success().unwrap();
    assert!(!containers.stderr.is_empty(), "says what is wrong");
}

#[test]
fn a_docker_that_hangs_or_is_dead_costs_names_and_nothing_else() {
    let docker = Docker::start().unwrap();
    serve_and_talk(&docker);
    let ids = ["client", "server"]
        .map(|container| docker.inspect(container).unwrap()["Id"].as_str().unwrap().to_owned());
    let network = network(&docker, "server");
    let to = format!("{}:90", docker.address("server").unwrap());
    let client = docker.pid("client").unwrap();
    let trace = trace(&docker, &["--port", "90", "--peer", &network]);
    let mut counts = Vec::new();
    let mut connect = || {
        // Docker cannot be asked to run it.
        let mut inside = std::process::Command::new("nsenter");
        inside.args([&format!("--net=/proc/{client}/ns/net"), "--"]);
        inside.arg(functional::workload::program().unwrap());
        inside.args(["churn", "--to", &to, "--rate", "1000", "--seconds", "5", "--count", "5"]);
        let text = functional::process::output(&mut inside).unwrap();
        counts.push(serde_json::from_str::<Counts>(&text).unwrap());
    };

    let daemon = docker.daemon_pid().unwrap();
    let hanging = Stopped::new(daemon);
    assert_nameless_but_there(&docker, &network, &ids);
    connect();
    drop(hanging);
    wait_until("names again", SOON, || {
        let ends = list(&docker, &["conns", "--port", "90", "--peer", &network]);
        Ok(ends.iter().any(|end| name(end) == "client").then_some(()))
    })
    .unwrap();

    kill_process(Pid::from_raw(daemon.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("Docker's end", SOON, || Ok((!running(daemon.cast_signed())).then_some(()))).unwrap();
    assert!(Path::new("/proc").join(client.to_string()).exists(), "the containers live on");
    assert_nameless_but_there(&docker, &network, &ids);
    connect();

    // Who knew the names before keeps them.
    let is_server = |event: &Value| name(event) == "server";
    let mut seen = 0;
    trace
        .wait_for_json(SOON, |event| {
            seen += usize::from(is_server(event));
            seen == 10
        })
        .unwrap();
    let closes = trace.interrupt().unwrap().success().unwrap().json_lines().unwrap();
    let received: u64 = closes
        .iter()
        .filter(|event| is_server(event))
        .map(|event| event["received_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(received, counts.iter().map(|counts| counts.bytes_sent).sum::<u64>());
}

/// A shop as `docker compose` would make it: a published port, a network of its own, and somebody who calls from elsewhere.
#[test]
fn a_map_has_exactly_the_edges_that_exist() {
    let docker = Docker::start_with(&["--iptables=true", "--userland-proxy=true"]).unwrap();
    docker.call(&["network", "create", "--subnet", "198.18.79.0/24", "shop"]).unwrap();
    let start = |name: &str, at: &str, more: &[&str]| {
        let serve = [IMAGE, "workload", "serve", "--listen", at];
        let words = [&["run", "-d", "--network", "shop", "--name", name] as &[&str], more, &serve].concat();
        docker.call(&words).unwrap();
        let address =
            docker.inspect(name).unwrap()["NetworkSettings"]["Networks"]["shop"]["IPAddress"].clone();
        address.as_str().unwrap().to_owned()
    };
    let db = start("db", "0.0.0.0:5432", &[]);
    let cache = start("cache", "0.0.0.0:6379", &[]);
    let app = start("app", "0.0.0.0:8000", &[]);
    start("web", "0.0.0.0:80", &["--publish", "8080:80"]);
    let hold = |from: &str, to: String, count: &str| {
        let words =
            ["exec", "-i", from, "workload", "hold", "--to", &to, "--count", count, "--seconds", "120"];
        Running::start(docker.cli().args(words)).unwrap()
    };
    let outside = Netns::new("shop-outside").unwrap();
    veth_pair(&outside, &["203.0.113.2/24"], docker.netns(), &["203.0.113.1/24"]).unwrap();
    let load = Cgroup::unique("shop-load").unwrap();
    let call = |netns: &Netns, to: &str, count: &str| {
        let command = workload::command(["hold", "--to", to, "--count", count]).unwrap();
        Running::start(&mut load.wrap(&netns.wrap(&command))).unwrap()
    };
    let holding = [
        hold("web", format!("{app}:8000"), "2"),
        hold("app", format!("{db}:5432"), "3"),
        hold("app", format!("{cache}:6379"), "1"),
        // Through the published port, translated by the kernel; and by a process, from the host itself.
        call(&outside, "203.0.113.1:8080", "4"),
        call(docker.netns(), "127.0.0.1:8080", "5"),
    ];
    for one in &holding {
        one.ready(Duration::from_secs(20)).unwrap();
    }

    let edges = list(&docker, &["map", "--container", "web,app,db,cache"]);
    let end = |node: &Value| node["container"]["cgroup_path"].as_str().unwrap_or_default().to_owned();
    let found: BTreeSet<_> = edges
        .iter()
        .map(|edge| {
            let counts = [&edge["port"], &edge["connections"]].map(|number| number.as_u64().unwrap());
            (end(&edge["client"]), end(&edge["server"]), counts)
        })
        .collect();
    let container = |name: &str| docker.cgroup(name).unwrap().to_string_lossy().into_owned();
    let proxy = std::fs::read_to_string(format!("/proc/{}/cgroup", docker.daemon_pid().unwrap())).unwrap();
    let proxy = proxy.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let expected = BTreeSet::from([
        (container("web"), container("app"), [8000, 2]),
        (container("app"), container("db"), [5432, 3]),
        (container("app"), container("cache"), [6379, 1]),
        (load.path().to_str().unwrap().to_owned(), container("web"), [80, 4]),
        (proxy.to_owned(), container("web"), [80, 5]),
    ]);
    assert_eq!(found, expected);
    assert_eq!(edges.len(), expected.len());
    for edge in &edges {
        let side = |side: &str| edge[side]["min_rtt_us"].as_u64().is_some_and(|us| us > 0);
        assert!(side("client_side") && side("server_side"), "{edge}");
    }
    let of_web = list(&docker, &["map", "--container", "db", "--peer-container", "app"]);
    assert_eq!(of_web.len(), 1, "{of_web:?}");
    let drawn = ask(&docker, &["map", "--container", "web,app,db,cache", "--draw", "dot"]);
    assert_eq!(drawn.stdout.iter().filter(|line| line.contains("->")).count(), expected.len());
    for name in ["web", "app", "db", "cache"] {
        assert!(drawn.stdout.iter().any(|line| line.contains(&format!("label=\"{name}\""))), "{name}");
    }
}
