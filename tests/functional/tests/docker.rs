//! Real Docker containers: who they are, also when they live for a moment, and when Docker is ill.

#![allow(clippy::unwrap_used)]

mod containers;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use containers::{
    SOON, ask, list, name, network, of, serve_and_talk, ss, tell_of_a_live_connection, tell_of_a_page,
    tell_of_names, trace,
};
use functional::cgroup::Cgroup;
use functional::netns::{Netns, veth_pair};
use functional::process::{running, wait_until};
use functional::runtime::{Containers, Docker, IMAGE};
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
